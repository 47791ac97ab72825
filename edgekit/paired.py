"""Statistics of pairs: how much slower is B than A, when both ran one after the other again and again?

    A 10.0 B 10.5 | B 10.6 A 10.1 | A 10.0 B 17.2 ...   ->   ln(B/A): 0.049, 0.048, 0.542, ...   ->   +5 %, +1 to +9 %

A device drifts, so neighbours are compared; and it is disturbed now and then (another process, a stolen core), so the
mean is a trimmed one: the quarter of the pairs at either end does not pull it. Its interval is Student's t over the
winsorized deviation (Tukey and McLaughlin 1963; Wilcox, Introduction to Robust Estimation, section 4.3). A plain t
interval found 80 % of 5 % slowdowns in the simulation of `benchmarks/gate_simulation.py`, this one 99 %.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np

from edgekit.errors import InputError
from edgekit.results import Block, Interval

TRIM = 0.25
"""The share of the values that is trimmed at either end."""


def log_ratios(blocks: Sequence[Block], figure: Callable[[Block], float] = lambda block: block.p50_s) -> list[float]:
    """ln(candidate / baseline) of each pair of neighbours, whichever of the two came first."""
    ratios: list[float] = []
    for pair in (blocks[i : i + 2] for i in range(0, len(blocks), 2)):
        if sorted(block.side for block in pair) != ["baseline", "candidate"]:
            sides = " and ".join(block.side for block in pair)
            raise InputError(f"{sides} in a row are no pair of blocks: the result is not whole; measure again")
        first, second = pair
        ratio = math.log(figure(second) / figure(first))
        ratios.append(ratio if second.side == "candidate" else -ratio)
    return ratios


def trimmed_mean(values: Sequence[float]) -> float:
    """The mean of what lies between the outer quarters.

    >>> trimmed_mean([1.0, 2.0, 3.0, 4.0, 99.0])
    3.0
    """
    ordered, cut = np.sort(values), int(TRIM * len(values))
    return float(ordered[cut : len(ordered) - cut].mean())


def deviation(values: Sequence[float]) -> float:
    """What plays the standard deviation's part for `trimmed_mean`: its standard error times the root of the count."""
    ordered, cut = np.sort(values), int(TRIM * len(values))
    winsorized = np.clip(ordered, ordered[cut], ordered[-1 - cut])
    return float(winsorized.std(ddof=1)) / (1 - 2 * cut / len(ordered))


def half_width(deviation: float, count: int, level: float) -> float:
    """Half of the interval at `level` of a trimmed mean of `count` values whose `deviation` is that."""
    from scipy import stats

    degrees = count - 2 * int(TRIM * count) - 1
    return float(stats.t.ppf((1 + level) / 2, degrees)) * deviation / math.sqrt(count)


def interval(values: Sequence[float], level: float = 0.95) -> Interval:
    """The interval of the trimmed mean; three values at least."""
    middle, half = trimmed_mean(values), half_width(deviation(values), len(values), level)
    return Interval(low=middle - half, high=middle + half, level=level)
