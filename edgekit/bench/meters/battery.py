"""The battery's own gauge: of a phone, or of a laptop that is unplugged.

    /sys/class/power_supply/battery/{status,current_now,voltage_now,power_now,charge_counter,charge_now,energy_now}
    dumpsys battery          where Android lets nobody but root read those: status, voltage, charge counter

By the kernel's rules (Documentation/ABI/testing/sysfs-class-power, include/linux/power_supply.h) these are uA, uV, uW,
uAh and uWh, and a current is negative while the battery discharges. Vendors differ, so that a pass is judged as a
whole:

- **Unit of current**: Samsung (seen on S21, A52s), Huawei and Honor print mA. A pass in which no current reaches 20000
  is in mA: 20 mA is less than any phone at work draws, 20 A more than any battery of one gives. `unit` overrides.
- **Sign of current**: Qualcomm's gauges up to PM8150B say positive while discharging, Pixel and the kernel's rules
  negative, some are unsigned (Linux commit 05f94eb98907 tells the story). On battery the current can only flow one way,
  so its size counts; a reading against the pass's majority is dropped.
- **Voltage**: 100000 and more is uV, less is mV (`dumpsys` prints mV). Outside 2 to 30 V it is none.
- **Charge**: less than 20000 is mAh (old `dumpsys`), else uAh.

Current times voltage is taken where there is one, then `power_now`, then the fall of charge times voltage, then that
of `energy_now`. Charge counters move in steps of about 1 mAh, which is 14 J: these are rarely resolvable. Gauges
refresh about once a second or slower.

On external power, even discharging, the gauge does not see all that the device uses: those readings say `charging`.
Where nothing says whether external power is there, there is no reading.
"""

import re
from collections.abc import Sequence
from typing import Literal

from edgekit.bench.meters import GET, SUPPLIES, Counter, Reading, Silence, charging, plain, quantum, whole
from edgekit.records import Record

TITLE = "battery gauge"

_AGE_S = 1.0
_SCRIPT = (
    GET
    + """\
amps=
for d in "$1"/sys/class/power_supply/*; do
  get "$d/type" && [ "$v" = Battery ] || continue
  get "$d/scope" && [ "$v" = Device ] && continue
  printf 'battery %s\\n' "${d##*/}"
  for f in current_now voltage_now power_now charge_counter charge_now energy_now; do
    if get "$d/$f"; then printf '%s %s\\n' "$f" "$v"; [ "$f" = current_now ] && amps=$v
    elif [ -e "$d/$f" ]; then printf 'unreadable %s\\n' "$f"; fi
  done
done
"""
    + SUPPLIES
    + """\
PATH=$1/system/bin:$PATH
[ -z "$amps" ] && command -v dumpsys >/dev/null && { printf 'dumpsys\\n'; dumpsys battery 2>/dev/null; }
:
"""
)
_ANDROID = {
    "Charge counter": "charge_counter",
    "voltage": "voltage_now",
    "current now": "current_now",  # Samsung's and Huawei's
}
_STATUS = {"2": "Charging", "3": "Discharging", "4": "Not charging", "5": "Full"}  # android.os.BatteryManager


class Params(Record):
    """`supply` is a folder of /sys/class/power_supply; none means `battery`, or the only battery that there is."""

    supply: str | None = None
    unit: Literal["uA", "mA"] | None = None
    """Of the current; `None`: by plausibility."""


class _Gauge(Record):
    """What one text says, in the vendor's units."""

    at_s: float
    name: str
    values: dict[str, int]
    charging: bool


def script(params: Params) -> str:
    """Prints a line a value, then what the power supplies say, then `dumpsys battery` where no current can be read."""
    return _SCRIPT


def parse(params: Params, printed: Sequence[tuple[float, str]]) -> list[Reading | Silence]:
    """Readings have power, or one counter that rises as the battery empties."""
    gauges = [_gauge(params, at_s, text) for at_s, text in printed]
    ways = (_by_current, _by_power, _by_charge, _by_energy)
    heard = [gauge for gauge in gauges if isinstance(gauge, _Gauge)]
    read = next((found for way in ways if (found := way(params, heard))), None)
    return [
        gauge
        if isinstance(gauge, Silence)
        else read[gauge.at_s]
        if read and gauge.at_s in read
        else Silence(reason=f"{gauge.name} shows neither current nor power nor charge that makes sense", there=True)
        for gauge in gauges
    ]


def _gauge(params: Params, at_s: float, text: str) -> _Gauge | Silence:
    supplies, _, dumped = text.partition("\ndumpsys\n") if not text.startswith("dumpsys\n") else ("", "", text)
    lines = supplies.splitlines()
    batteries: dict[str, dict[str, int]] = {}
    unreadable = False
    for key, _, value in (line.partition(" ") for line in lines):
        if key == "battery":
            batteries[value] = {}
        elif batteries and (number := whole(value)) is not None and key not in ("status", "online"):
            list(batteries.values())[-1].setdefault(key, number)
        unreadable |= key == "unreadable"
    name = params.supply or ("battery" if "battery" in batteries else next(iter(batteries), ""))
    if (params.supply and name not in batteries) or (name != "battery" and len(batteries) > 1 and not params.supply):
        names = ", ".join(plain(battery) for battery in batteries) or "none"
        return Silence(reason=f"name the battery as supply: there are {names}", there=bool(batteries))
    values = batteries.get(name, {})
    if "current_now" not in values and dumped:
        said, status = _dumped(dumped)
        if "(UPDATES STOPPED" in dumped:
            return Silence(reason="dumpsys battery has been overridden; run `dumpsys battery reset`", there=True)
        values, lines = {**said, **values}, [*lines, *status]
    if not values:
        if not batteries:
            return Silence(reason="no battery", there=False)
        why = "cannot be read: root may" if unreadable else "say nothing"
        return Silence(reason=f"the battery's files {why}", there=True)
    powered = charging(lines)
    if powered is None:
        return Silence(reason="nothing says whether external power is there", there=True)
    return _Gauge(at_s=at_s, name=plain(name or "battery"), values=values, charging=powered)


def _dumped(text: str) -> tuple[dict[str, int], list[str]]:
    """Values by sysfs's names, and lines as `SUPPLIES` prints them. The first of a key counts: logs may follow."""
    values: dict[str, int] = {}
    status: list[str] = []
    for key, value in re.findall(r"^ +([A-Za-z ]+): *(\S+) *$", text, re.MULTILINE):
        if key in _ANDROID and (number := whole(value)) is not None:
            values.setdefault(_ANDROID[key], number)
        elif key.endswith(" powered"):
            status.append(f"online {int(value == 'true')}")
        elif key == "status" and not any(line.startswith("status") for line in status):
            status.append(f"status {_STATUS.get(value, 'Unknown')}")
    return values, status


def _volts(gauge: _Gauge) -> float | None:
    raw = abs(gauge.values.get("voltage_now", 0))
    volts = raw / 1e6 if raw >= 100_000 else raw / 1e3
    return volts if 2 <= volts <= 30 else None


def _by_current(params: Params, gauges: Sequence[_Gauge]) -> dict[float, Reading]:
    """Power by time, from current times voltage; none where no current flows in any reading."""
    known = [(g, g.values["current_now"], v) for g in gauges if "current_now" in g.values and (v := _volts(g))]
    if not any(raw for _, raw, _ in known):
        return {}
    small = max(abs(raw) for _, raw, _ in known) < 20_000
    unit = 1e-3 if (params.unit or ("mA" if small else "uA")) == "mA" else 1e-6
    way = 1 if sum(1 if raw > 0 else -1 for _, raw, _ in known if raw) >= 0 else -1
    step = quantum(raw for _, raw, _ in known)
    return {
        g.at_s: _power(g, raw * way * unit * volts, step * unit * volts) for g, raw, volts in known if raw * way >= 0
    }


def _by_power(params: Params, gauges: Sequence[_Gauge]) -> dict[float, Reading]:
    known = [(g, abs(g.values["power_now"])) for g in gauges if "power_now" in g.values]
    step = quantum(raw for _, raw in known)
    return {g.at_s: _power(g, raw / 1e6, step / 1e6) for g, raw in known} if any(raw for _, raw in known) else {}


def _by_charge(params: Params, gauges: Sequence[_Gauge]) -> dict[float, Reading]:
    """The charge taken so far times the voltage at which it was taken."""
    key = "charge_counter" if any("charge_counter" in g.values for g in gauges) else "charge_now"
    known = [(g, g.values[key], v) for g in gauges if g.values.get(key) and (v := _volts(g))]
    coulombs = 3.6 if known and max(abs(raw) for _, raw, _ in known) < 20_000 else 3.6e-3
    return _counted(known, coulombs)


def _by_energy(params: Params, gauges: Sequence[_Gauge]) -> dict[float, Reading]:
    return _counted([(g, g.values["energy_now"], 1.0) for g in gauges if g.values.get("energy_now")], 3.6e-3)


def _counted(known: Sequence[tuple[_Gauge, int, float]], unit: float) -> dict[float, Reading]:
    """A counter that rises by what each value fell, times its factor and `unit`, which gives joules."""
    step = quantum(raw for _, raw, _ in known) * unit * max((factor for _, _, factor in known), default=0)
    used, before, readings = 0.0, None, dict[float, Reading]()
    for gauge, raw, factor in known:
        used += (before - raw) * factor * unit if before is not None else 0.0
        before = raw
        counter = Counter(name=gauge.name, energy_j=used)
        readings[gauge.at_s] = Reading(
            at_s=gauge.at_s, counters=(counter,), step=step, charging=gauge.charging, parts=(f"{gauge.name} charge",)
        )
    return readings


def _power(gauge: _Gauge, power_w: float, step: float) -> Reading:
    return Reading(
        at_s=gauge.at_s, power_w=power_w, step=step, age_s=_AGE_S, charging=gauge.charging,
        parts=(f"{gauge.name} current",),
    )  # fmt: skip
