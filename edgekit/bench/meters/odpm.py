"""Google Pixel (6 and later): the on-device power monitor, an energy counter for each of 16 rails.

    /sys/bus/iio/devices/iio:device0/energy_value      t=349894
                                                       CH3(T=349894)[S2M_VDD_CPUCL2], 30203502

Microwatt-seconds since boot by rail; the times are milliseconds since boot (format: Android's power stats service for
Pixel, IioEnergyMeterDataProvider). Which rails the 16 channels carry is a setting of the phone. Only root may read
them on a phone as sold; a userdebug build grants `adb root`.
"""

import re
from collections.abc import Sequence

from pydantic import Field

from edgekit.bench.meters import GET, SUPPLIES, Counter, Reading, Silence, charging, plain
from edgekit.records import Record

TITLE = "Pixel on-device power monitor"

_STEP_J = 1e-6
_RAIL = re.compile(r"CH[0-9]+\(T=[0-9]+\)\[([^\]]{1,100})\], *([0-9]{1,20})")
_SCRIPT = (
    GET
    + """\
for d in "$1"/sys/bus/iio/devices/iio:device*; do
  [ -e "$d/energy_value" ] || continue
  { cat "$d/energy_value"; } 2>/dev/null || printf 'unreadable\\n'
done
"""
    + SUPPLIES
)


class Params(Record):
    """A rail counts where its name contains one of `rails`. The default is what a model on the CPU uses: the CPU
    clusters, the memory interface and the memory."""

    rails: tuple[str, ...] = Field(default=("VDD_CPU", "VDD_MIF", "VDDQ_MEM", "VDD2"), min_length=1)


def script(params: Params) -> str:
    """Prints every `energy_value` as it is, then what the power supplies say."""
    return _SCRIPT


def parse(params: Params, printed: Sequence[tuple[float, str]]) -> list[Reading | Silence]:
    """A reading has a counter for each chosen rail."""
    return [_reading(params, at_s, text) for at_s, text in printed]


def _reading(params: Params, at_s: float, text: str) -> Reading | Silence:
    lines = [line.strip() for line in text.splitlines()]
    rails = [(match[1], int(match[2])) for line in lines if (match := _RAIL.fullmatch(line))]
    if not rails:
        if "unreadable" in lines:
            remedy = "only root may read it: `adb root` on a userdebug build, or use the battery meter"
            return Silence(reason=f"the power monitor's energy_value cannot be read; {remedy}", there=True)
        return Silence(reason="no energy_value in /sys/bus/iio/devices", there=False)
    missing = [part for part in params.rails if not any(part in name for name, _ in rails)]
    chosen = [(plain(name), value) for name, value in rails if any(part in name for part in params.rails)]
    if not chosen or (missing and "rails" in params.model_fields_set):
        there = ", ".join(plain(name) for name, _ in rails)
        return Silence(reason=f"no rail is called {', '.join(missing)}; there are {there}", there=True)
    return Reading(
        at_s=at_s,
        counters=tuple(Counter(name=name, energy_j=value / 1e6) for name, value in chosen),
        step=_STEP_J * len(chosen),
        charging=charging(lines),
        parts=tuple(name for name, _ in chosen),
    )
