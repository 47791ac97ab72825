"""Trimmed means of pairs, by hand and against SciPy's own of the same source."""

import math

import numpy as np
import pytest
from scipy.stats import mstats

from edgekit import paired
from edgekit.errors import InputError
from edgekit.results import Block


def blocks(*sides_and_times: tuple[str, float]) -> list[Block]:
    return [
        Block(side=side, length=None, p50_s=seconds, peak_rss_bytes=100, runs=1)  # pyright: ignore[reportArgumentType]
        for side, seconds in sides_and_times
    ]


def test_a_pair_is_a_ratio_whichever_ran_first() -> None:
    found = paired.log_ratios(blocks(("baseline", 1.0), ("candidate", 2.0), ("candidate", 3.0), ("baseline", 1.0)))
    assert found == pytest.approx([math.log(2), math.log(3)])


def test_a_steady_drift_cancels() -> None:
    """Each block 1 % slower than the one before: the ratios alternate, their mean is nothing."""
    sides = ["baseline", "candidate", "candidate", "baseline"] * 4
    found = paired.log_ratios(blocks(*((side, 1.01**i) for i, side in enumerate(sides))))
    assert sum(found) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("sides", [("baseline", "baseline"), ("candidate", "candidate")])
def test_two_of_a_side_are_no_pair(sides: tuple[str, str]) -> None:
    with pytest.raises(InputError, match="are no pair"):
        paired.log_ratios(blocks(*((side, 1.0) for side in sides)))


def test_the_quarter_at_either_end_does_not_pull() -> None:
    values = [0.04, 0.05, 0.06, 0.05, 0.05, 0.04, 0.06]
    assert paired.trimmed_mean([*values[:-1], 9.0]) == pytest.approx(paired.trimmed_mean(values), abs=0.003)
    # 7 values: one goes at either end, so 0.04 ... 0.06 without a 0.04 and a 0.06
    assert paired.trimmed_mean(values) == pytest.approx((0.04 + 0.05 * 3 + 0.06) / 5)


def test_the_deviation_by_hand() -> None:
    """Of 1, 2, 3, 10 one goes at either end: winsorized 2, 2, 3, 3, whose deviation is sqrt(1/3), over 1 - 2/4."""
    assert paired.deviation([10, 1, 3, 2]) == pytest.approx(math.sqrt(1 / 3) / 0.5)


@pytest.mark.parametrize("count", [8, 12, 16, 20])
def test_the_interval_is_tukeys_and_mclaughlins(count: int) -> None:
    """SciPy's `trimmed_mean_ci` is of the same source; where a quarter is a whole number the two are the same."""
    values = np.random.default_rng(count).normal(0.05, 0.02, count)
    low, high = mstats.trimmed_mean_ci(values, limits=(0.25, 0.25), alpha=0.02)
    found = paired.interval(values.tolist(), level=0.98)
    assert (found.low, found.high, found.level) == (pytest.approx(low), pytest.approx(high), 0.98)


def test_the_interval_covers_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    inside = [
        (found := paired.interval(sample.tolist(), 0.95)).low <= 0.05 <= found.high
        for sample in rng.normal(0.05, 0.03, (1500, 11))
    ]
    assert 0.935 <= np.mean(inside) <= 0.965
