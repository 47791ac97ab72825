"""Trends: where a series of figures takes a step. They are shown on a report and decide no verdict.

    7.1 7.0 7.2 7.1 7.0 | 7.5 7.6 7.5 7.4 ...     ->     steps((7.1, ...)) == (5,)

A history compares numbers of different days, which a gate must not: a device that was warmer that week is a step too.
But many changes of 2 %, each within a gate's tolerance, show here and nowhere else.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from edgekit.records import Format, MetricName, Record
from edgekit.results import Entry

SMALLEST = 0.02
"""Steps by a smaller share than this are not reported."""
SHORTEST = 3
"""The fewest figures that make a level."""


class Series(Record):
    """One figure of a bundle's candidates over the gates of one device, in order of time."""

    bundle: str
    device: str
    metric: MetricName
    length: int | None
    format: Format | None
    unit: str
    at: tuple[str, ...]
    """When each was measured, ISO 8601."""
    digests: tuple[str, ...]
    """Of the candidates."""
    values: tuple[float, ...]
    steps: tuple[int, ...]
    """Where a new level begins, as indices of `values`."""


def series(history: Sequence[Entry]) -> tuple[Series, ...]:
    """The series that a history in order of time holds, in order of bundle, device, metric, length and format.

    A figure that was not measured is left out; one that is judged twice, against the baseline and a budget, counts
    once.
    """
    points: dict[tuple[str, str, MetricName, int | None, Format | None, str], dict[int, float]] = {}
    for number, entry in enumerate(history):
        for check in sorted(entry.checks, key=lambda check: check.rule == "budget"):
            if entry.event == "gate" and check.candidate is not None and math.isfinite(check.candidate):
                key = (entry.bundle, check.device, check.metric, check.length, entry.format, check.unit)
                points.setdefault(key, {}).setdefault(number, check.candidate)
    return tuple(
        Series(
            bundle=key[0], device=key[1], metric=key[2], length=key[3], format=key[4], unit=key[5],
            at=tuple(history[number].at for number in found),
            digests=tuple(history[number].digest for number in found),
            values=tuple(found.values()),
            steps=steps(tuple(found.values())),
        )
        for key, found in sorted(points.items(), key=lambda item: [(part is not None, part or 0) for part in item[0]])
    )  # fmt: skip


def steps(values: Sequence[float]) -> tuple[int, ...]:
    """The indices where a new level begins in a series of positive figures; none where one is 0 or less.

    The levels are the piecewise constant fit to the logarithms that has the least sum of squares and 4 s² ln n for
    each step; it is exact (PELT, Killick, Fearnhead and Eckley 2012, "Optimal detection of changepoints with a linear
    computational cost", by `ruptures`). s is the noise: the median absolute difference of neighbours, so that neither
    steps nor outliers count as noise. Outliers beyond 3 s of the median of five are drawn to it first.
    """
    import ruptures

    if len(values) < 2 * SHORTEST or not all(0 < value < math.inf for value in values):
        return ()
    logs = np.log(np.asarray(values, dtype=float))
    noise = max(1.4826 * float(np.median(np.abs(np.diff(logs)))) / math.sqrt(2), SMALLEST / 20)
    middle = np.pad(np.median(np.lib.stride_tricks.sliding_window_view(logs, 5), axis=1), 2, mode="edge")
    calm = np.clip(logs, middle - 3 * noise, middle + 3 * noise)
    search = ruptures.KernelCPD(kernel="linear", min_size=SHORTEST).fit(calm.reshape(-1, 1))
    found = [int(end) for end in search.predict(pen=4 * noise**2 * math.log(len(logs)))[:-1]]
    while found:
        edges = [0, *found, len(logs)]
        levels = [float(np.median(logs[begin:end])) for begin, end in pairwise(edges)]
        sizes = [abs(math.expm1(after - before)) for before, after in pairwise(levels)]
        if min(sizes) >= SMALLEST:
            break
        del found[sizes.index(min(sizes))]
    return tuple(found)
