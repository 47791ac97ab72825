"""Intel and AMD processors: the energy counters of RAPL, as Linux's powercap shows them.

    /sys/class/powercap/intel-rapl:0/{name,energy_uj,max_energy_range_uj}     package-0
    /sys/class/powercap/intel-rapl:0:2/...                                   dram
    /sys/class/powercap/intel-rapl:1/...                                     psys: the whole board, on some laptops

Microjoules that start again at 0 after `max_energy_range_uj` (Documentation/power/powercap/powercap.rst). The zones
core and uncore are parts of the package and would count twice; so would the package within psys. A package's counter
does not see the rest of the machine. Only root may read them since Linux 5.10 (CVE-2020-8694).
"""

from collections.abc import Sequence
from typing import Literal

from edgekit.bench.meters import GET, Counter, Reading, Silence, plain, whole
from edgekit.records import Record

TITLE = "RAPL energy counters"

_STEP_J = 61e-6
"""The hardware's unit is 1/2^14 J on most processors and 1/2^16 J on others (Intel SDM, MSR_RAPL_POWER_UNIT)."""

_SCRIPT = (
    GET
    + """\
for d in "$1"/sys/class/powercap/intel-rapl:*; do
  get "$d/name" || continue; name=$v
  if get "$d/energy_uj"; then energy=$v; else energy=unreadable; fi
  get "$d/max_energy_range_uj"
  printf '%s %s %s\\n' "$energy" "${v:-0}" "$name"
done
"""
)


class Params(Record):
    """`package`: every package, and its memory where it is counted apart. `psys`: the platform's own counter."""

    domain: Literal["package", "psys"] = "package"


def script(params: Params) -> str:
    """Prints a line a zone: its counter and range in uJ, and its name."""
    return _SCRIPT


def parse(params: Params, printed: Sequence[tuple[float, str]]) -> list[Reading | Silence]:
    """A reading has a counter for each zone of the domain."""
    return [_reading(params, at_s, text) for at_s, text in printed]


def _reading(params: Params, at_s: float, text: str) -> Reading | Silence:
    zones = [parts for line in text.splitlines() if len(parts := line.split(" ", 2)) == 3]
    prefixes = ("psys",) if params.domain == "psys" else ("package", "dram")
    chosen = [(energy, most, plain(name)) for energy, most, name in zones if name.startswith(prefixes)]
    if not zones:
        return Silence(reason="no RAPL zones in /sys/class/powercap", there=False)
    if not any(name.startswith(prefixes[0]) for _, _, name in chosen):
        names = ", ".join(plain(name) for _, _, name in zones)
        return Silence(reason=f"RAPL has no {prefixes[0]} zone here, only {names}; choose another domain", there=True)
    if any(energy == "unreadable" for energy, _, _ in chosen):
        return Silence(
            reason="RAPL's counters can be read by root only: run the bench as root, or, for this session, "
            "`sudo chmod a+r /sys/class/powercap/intel-rapl:*/energy_uj`",
            there=True,
        )
    counters: list[Counter] = []
    for energy, most, name in chosen:
        value, wrap = whole(energy), whole(most)
        if value is None or value < 0:
            return Silence(reason=f"RAPL's {name} says {plain(energy)!r} where microjoules should stand", there=True)
        counters.append(Counter(name=name, energy_j=value / 1e6, wrap_j=wrap / 1e6 if wrap and wrap > 0 else None))
    names = tuple(counter.name for counter in counters)
    return Reading(at_s=at_s, counters=tuple(counters), step=_STEP_J * len(counters), parts=names)
