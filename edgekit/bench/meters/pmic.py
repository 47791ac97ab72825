"""Raspberry Pi 5: the voltages and currents that its power management chip measures, rail by rail.

    vcgencmd pmic_read_adc      VDD_CORE_A current(7)=0.82156000A
                                VDD_CORE_V volt(15)=0.81203820V
                                EXT5V_V volt(24)=5.13480000V

Power is the sum of volts times amperes over the rails that have both. **That is not the whole 5 V input**: EXT5V has
a voltage and no current, so USB devices, the fan, HATs and the chip's own losses are not seen. What a model costs
(cores, memory) is; figures for the board need an instrument at its plug (`trace`). `vcgencmd` asks for membership
of the group `video`. No other Raspberry Pi measures currents.
"""

import re
from collections.abc import Sequence

from edgekit.bench.meters import Reading, Silence, plain
from edgekit.records import Record

TITLE = "Raspberry Pi 5 PMIC (its rails, not the whole 5 V input)"

_STEP_W = 0.01
"""Outputs published by users show VDD_CORE's current in steps of 8.93 mA, the other rails' in 1 mA or less: about
10 mW a reading."""

_LINE = re.compile(r"(\w{1,40})_([AV]) (?:current|volt)\([0-9]+\)=([0-9]{1,6}\.[0-9]{1,12})([AV])")
_SCRIPT = """\
PATH=$1/usr/bin:$PATH
command -v vcgencmd >/dev/null && vcgencmd pmic_read_adc 2>&1
"""


class Params(Record):
    """`rails` without their `_A` and `_V`; none means all that have both."""

    rails: tuple[str, ...] = ()


def script(params: Params) -> str:
    """Prints what vcgencmd does."""
    return _SCRIPT


def parse(params: Params, printed: Sequence[tuple[float, str]]) -> list[Reading | Silence]:
    """A reading is the power of the rails together."""
    return [_reading(params, at_s, text) for at_s, text in printed]


def _reading(params: Params, at_s: float, text: str) -> Reading | Silence:
    found = {
        (match[1], match[2]): float(match[3])
        for line in text.splitlines()
        if (match := _LINE.fullmatch(line.strip())) and match[2] == match[4]
    }
    rails = {
        name: found[name, "V"] * amps for (name, unit), amps in found.items() if (name, "V") in found and unit == "A"
    }
    if not text.strip():
        return Silence(reason="no vcgencmd", there=False)
    if not rails:
        said = plain(text.replace("\n", " "))
        if "not registered" in text or "error=" in text:
            return Silence(reason=f"vcgencmd says: {said}; only a Raspberry Pi 5 measures currents", there=False)
        return Silence(reason=f"vcgencmd says: {said}; add the user to the group video", there=True)
    if missing := [rail for rail in params.rails if rail not in rails]:
        return Silence(reason=f"no rail is called {', '.join(missing)}; there are {', '.join(rails)}", there=True)
    chosen = params.rails or tuple(rails)
    return Reading(at_s=at_s, power_w=sum(rails[rail] for rail in chosen), step=_STEP_W, parts=chosen)
