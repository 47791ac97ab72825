"""NVIDIA Jetson: the INA3221 power monitor on the module, as Linux's hwmon shows it.

    /sys/class/hwmon/hwmon1/{name,in1_label,in1_input,curr1_input,shunt1_resistor}
                            ina3221 VDD_IN    19000 mV  214 mA     5000 uOhm

There is no file with power: it is voltage times current (Documentation/hwmon/ina3221.rst). The chip resolves 40 uV on
the shunt and 8 mV of voltage (its data sheet), so 8 mA with 5 mOhm. On Orin Nano and NX `VDD_IN` is the whole module;
other rails are parts of it, so that a sum would count twice. The carrier board is not measured.
"""

from collections.abc import Sequence

from edgekit.bench.meters import GET, Reading, Silence, plain, whole
from edgekit.records import Record

TITLE = "INA3221 power monitor"

_SHUNT_STEP_V = 40e-6
_BUS_STEP_V = 8e-3
_USUAL_SHUNT_OHM = 5e-3
_SCRIPT = (
    GET
    + """\
for d in "$1"/sys/class/hwmon/hwmon*; do
  get "$d/name" && [ "$v" = ina3221 ] || continue
  for i in 1 2 3; do
    get "$d/in${i}_label" || continue; label=$v
    get "$d/in${i}_input" || continue; volts=$v
    get "$d/curr${i}_input" || continue; amps=$v
    get "$d/shunt${i}_resistor"
    printf '%s %s %s %s\\n' "$volts" "$amps" "${v:-0}" "$label"
  done
done
"""
)


class Params(Record):
    """`rails` are summed; none means `VDD_IN`, which is the whole module where it exists."""

    rails: tuple[str, ...] = ()


def script(params: Params) -> str:
    """Prints a line a channel: mV, mA, uOhm and the label."""
    return _SCRIPT


def parse(params: Params, printed: Sequence[tuple[float, str]]) -> list[Reading | Silence]:
    """A reading is the power of the rails together."""
    return [_reading(params, at_s, text) for at_s, text in printed]


def _reading(params: Params, at_s: float, text: str) -> Reading | Silence:
    channels: dict[str, tuple[int, int, int]] = {}
    for line in text.splitlines():
        parts = line.split(" ", 3)
        numbers = [number for part in parts[:3] if (number := whole(part)) is not None]
        if len(parts) == 4 and len(numbers) == 3:
            channels[plain(parts[3])] = (numbers[0], numbers[1], numbers[2])
    if not channels:
        return Silence(reason="no ina3221 among /sys/class/hwmon", there=False)
    wanted = params.rails or ("VDD_IN",)
    if missing := [rail for rail in wanted if rail not in channels]:
        return Silence(
            reason=f"the INA3221 has no rail {', '.join(missing)}; name those that add up to the whole among "
            f"{', '.join(channels)} as rails",
            there=True,
        )
    power_w = step_w = 0.0
    for rail in wanted:
        volts, amps, ohms = (channels[rail][0] / 1e3, channels[rail][1] / 1e3, channels[rail][2] / 1e6)
        power_w += volts * amps
        step_w += volts * _SHUNT_STEP_V / (ohms if ohms > 0 else _USUAL_SHUNT_OHM) + abs(amps) * _BUS_STEP_V
    return Reading(at_s=at_s, power_w=power_w, step=step_w, parts=tuple(wanted))
