"""Steps in hand-made series with known noise, and how a history becomes series."""

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from edgekit.gate.trends import series, steps
from edgekit.results import Check, Entry


def noisy(rng: np.random.Generator, levels: list[tuple[int, float]], noise: float) -> list[float]:
    """So many figures at each level, with log-normal noise."""
    middle = np.concatenate([np.full(count, level) for count, level in levels])
    return list(middle * np.exp(noise * rng.normal(size=len(middle))))


def test_levels_worked_out_by_hand() -> None:
    assert steps([7.1, 7.0, 7.2, 7.1, 7.0, 8.5, 8.6, 8.5, 8.4, 8.5]) == (5,)
    assert steps([8.0] * 20 + [8.4] * 20 + [7.5] * 20) == (20, 40)
    assert steps([8.0] * 60) == ()
    assert type(steps([8.0] * 20 + [8.4] * 20)[0]) is int


@pytest.mark.parametrize("noise", [0.001, 0.015, 0.05])
def test_pure_noise_has_no_steps(noise: float) -> None:
    rng = np.random.default_rng(20261121)
    assert sum(bool(steps(noisy(rng, [(60, 0.007)], noise))) for _ in range(200)) < 10


@pytest.mark.parametrize("place", [10, 30, 50])
@pytest.mark.parametrize("change", [1.05, 1 / 1.05])
def test_a_step_of_5_percent_is_found(place: int, change: float) -> None:
    rng = np.random.default_rng(place)
    found = [steps(noisy(rng, [(place, 0.007), (60 - place, 0.007 * change)], 0.015)) for _ in range(200)]
    assert sum(any(abs(step - place) <= 2 for step in one) for one in found) >= 190


def test_a_single_outlier_is_no_level() -> None:
    rng = np.random.default_rng(3)
    for place in (0, 1, 30, 58, 59):
        values = noisy(rng, [(60, 0.007)], 0.01)
        values[place] *= 2
        assert steps(values) == ()


def test_a_level_has_three_figures() -> None:
    assert steps([7.0, 7.01, 7.02, 7.0, 7.01, 7.0, 8.0, 8.01, 8.0]) == (6,)
    assert steps([8.0, 8.01, 8.0, 7.0, 7.01, 7.02, 7.0, 7.01, 7.0]) == (3,)
    assert steps([7.0, 7.01, 7.02, 7.0, 7.01, 7.0, 7.0, 8.01, 8.0]) == ()
    assert steps([8.0, 8.01, 7.0, 7.0, 7.01, 7.02, 7.0, 7.01, 7.0]) == ()
    assert steps([7.0, 7.0, 7.0, 9.0, 9.0]) == ()
    assert steps([]) == ()


def test_steps_smaller_than_2_percent_are_not_reported() -> None:
    assert steps([1000.0] * 10 + [1015.0] * 10) == ()
    assert steps([1000.0] * 10 + [1025.0] * 10) == (10,)
    assert steps([1000.0] * 10 + [1015.0] * 10 + [1100.0] * 10) == (20,)


def test_figures_without_a_logarithm_have_no_steps() -> None:
    assert steps([0.0] * 10 + [1.0] * 10) == ()
    assert steps([1.0] * 10 + [float("inf")] * 10) == ()


def test_steps_do_not_depend_on_the_unit() -> None:
    values = noisy(np.random.default_rng(4), [(20, 7.0), (20, 7.7)], 0.01)
    assert steps(values) == steps([value / 1e3 for value in values]) == steps([value * 1e6 for value in values])


def entries() -> Iterator[Entry]:
    def check(**values: Any) -> Check:
        given: dict[str, Any] = {
            "device": "pi", "metric": "latency_s", "length": 128, "unit": "s", "rule": "change", "answer": "PASS",
            "reason": "r",
        }  # fmt: skip
        return Check.model_validate({**given, **values})

    for n in itertools.count():
        slower = 0.01 if n < 5 else 0.02
        yield Entry(
            at=f"2026-11-21T07:00:{n:02}Z", event="gate", bundle="b", digest=f"d{n}", baseline_digest=None,
            format="tflite", answer="PASS",
            checks=(
                check(rule="budget", candidate=99.0),
                check(candidate=slower),
                check(metric="size_bytes", length=None, unit="bytes", candidate=8e6),
                check(device="phone", candidate=None if n == 3 else 0.005),
            ),
        )  # fmt: skip


def test_a_history_in_series() -> None:
    history = list(itertools.islice(entries(), 10))
    accept = Entry(
        at="2026-11-21T07:00:05Z", event="accept", bundle="b", digest="d", baseline_digest=None, format=None,
        answer=None,
    )  # fmt: skip
    found = {(one.device, one.metric, one.length): one for one in series([*history[:5], accept, *history[5:]])}
    assert list(found) == [("phone", "latency_s", 128), ("pi", "latency_s", 128), ("pi", "size_bytes", None)]
    slower = found["pi", "latency_s", 128]
    assert slower.values == (0.01,) * 5 + (0.02,) * 5
    assert slower.steps == (5,)
    assert slower.at[5] == "2026-11-21T07:00:05Z"
    assert slower.digests[5] == "d5"
    assert (slower.bundle, slower.format, slower.unit) == ("b", "tflite", "s")
    assert len(found["phone", "latency_s", 128].values) == 9
    assert "d3" not in found["phone", "latency_s", 128].digests
    assert series([]) == ()
