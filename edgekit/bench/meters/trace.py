"""An instrument beside the device: a power monitor that writes a CSV file on this host while the bench runs.

    time,power                   time,voltage,current            time,energy
    1795243055.10,2.41           1795243055.10,5.1,0.47          1795243055.10,103.220

Times are epoch seconds of this host's clock (`offset_s` is added to them), power watts, voltage volts, current
amperes, energy joules since any start. Which columns there are decides what is read; the header's names can be set.
The bench asks the device for its time and so lays the file over its own windows. A file that does not cover them all is
refused: start the instrument before the bench and let it run beyond its end.
"""

import csv
import itertools
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

from edgekit.bench.meters import Counter, Reading, Silence, plain
from edgekit.records import Record

TITLE = "external instrument"


class Params(Record):
    """The file, and the names of its columns."""

    file: Path
    time: str = "time"
    power: str = "power"
    voltage: str = "voltage"
    current: str = "current"
    energy: str = "energy"
    offset_s: float = 0


def script(params: Params) -> Path:
    """The file, on this host."""
    return params.file


def parse(params: Params, printed: Sequence[tuple[float, str]]) -> list[Reading | Silence]:
    """A reading a row, or one `Silence`. The last row may be cut off: the instrument is still writing.

    The step is the last digit that the file shows.
    """
    return [reading for _, text in printed for reading in _rows(params, text)]


def _rows(params: Params, text: str) -> list[Reading | Silence]:
    lines = text.lstrip("\ufeff").splitlines()
    if lines and not text.endswith("\n"):
        lines.pop()
    try:
        rows = list(csv.reader(lines))
    except csv.Error as error:
        return [_bad(params, f"is no CSV: {error}")]
    header = [name.strip() for name in rows[0]] if rows else []
    kinds = [
        kind
        for kind in ((params.energy,), (params.power,), (params.voltage, params.current))
        if set(kind) <= set(header)
    ]
    if params.time not in header or not kinds:
        wanted = f"{params.time}, and {params.energy}, {params.power}, or {params.voltage} and {params.current}"
        return [_bad(params, f"has the columns {plain(', '.join(header)) or 'none'}; name {wanted}")]
    at = [header.index(name) for name in (params.time, *kinds[0])]
    values: list[list[float]] = []
    for number, row in enumerate(rows[1:], 2):
        if not row:
            continue
        try:
            values.append([float(row[i]) for i in at])
        except (ValueError, IndexError):
            return [_bad(params, f"line {number}: {plain(','.join(row))!r} is no row of numbers")]
        if not all(map(math.isfinite, values[-1])):
            return [_bad(params, f"line {number}: {plain(','.join(row))!r} is no row of numbers")]
    times = [value[0] for value in values]
    if len(times) < 2 or any(a >= b for a, b in itertools.pairwise(times)):
        return [_bad(params, "needs two rows or more, with times that ascend")]
    apart = sorted(b - a for a, b in itertools.pairwise(times))[len(times) // 2 - 1]
    digits = [_step(row[i] for row in rows[1:] if row) for i in at[1:]]
    return [_reading(value, params, digits, apart, kinds[0]) for value in values]


def _reading(
    value: Sequence[float], params: Params, digits: Sequence[float], apart: float, kind: tuple[str, ...]
) -> Reading:
    at_s = value[0] + params.offset_s
    if kind == (params.energy,):
        counter = Counter(name=plain(params.energy), energy_j=value[1])
        return Reading(at_s=at_s, counters=(counter,), step=digits[0], parts=(plain(params.energy),))
    power_w = math.prod(value[1:])
    step = digits[0] if len(kind) == 1 else abs(value[1]) * digits[1] + abs(value[2]) * digits[0]
    return Reading(at_s=at_s, power_w=power_w, step=step, age_s=apart, parts=tuple(map(plain, kind)))


def _step(column: Iterable[str]) -> float:
    """The place value of the last digit shown: 0.001 for `5.104`, the finest of a column."""
    finest = 1.0
    for text in column:
        mantissa, _, exponent = text.strip().lower().partition("e")
        finest = min(finest, 10.0 ** min(0, int(exponent or 0) - len(mantissa.partition(".")[2])))
    return finest


def _bad(params: Params, what: str) -> Silence:
    return Silence(reason=f"{params.file}: {what}", there=True)
