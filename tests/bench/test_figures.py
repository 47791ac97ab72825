"""Figures against values worked out by hand."""

import math

import numpy as np
import pytest

from edgekit.bench import figures
from edgekit.bench.runner import PHASES, Run
from edgekit.errors import DeviceError
from edgekit.results import MemoryPhase
from edgekit.tasks import Feature


def run(samples: list[float], **values: object) -> Run:
    phases = [
        MemoryPhase(
            name=name, hwm_bytes=9, rss_bytes=8, anon_bytes=5, file_bytes=3, shmem_bytes=0, pss_bytes=None, swap_bytes=0
        )
        for name in PHASES  # type: ignore[misc]
    ]
    given = {
        "runner": "native", "format": "tflite", "runtime": "litert", "library_version": "2", "threads": 1, "cpus": None,
        "open_s": 0.1, "load_s": 0.2, "first_run_s": 0.3, "warmup_s": (0.5,), "samples_s": tuple(samples),
        "cpu_s": tuple(s / 2 for s in samples), "began_s": 1.0, "ended_s": 2.0, "voluntary_switches": 1,
        "involuntary_switches": 2, "minor_faults": 3, "major_faults": 4, "phases": tuple(phases), "examples": 1,
    }  # fmt: skip
    return Run.model_validate({**given, **values})


def test_latency_of_a_hundred_and_one_samples() -> None:
    found = figures.latency(run([i / 100 for i in range(101)][::-1]), 128)
    assert (found.length, found.p50_s, found.mean_s) == (128, 0.5, pytest.approx(0.5))
    assert (found.p90_s, found.p99_s) == (pytest.approx(0.9), pytest.approx(0.99))
    assert found.per_second == pytest.approx(2.0)
    assert found.cpu_share == pytest.approx(0.5)
    assert (found.open_s, found.load_s, found.first_run_s, found.involuntary_switches) == (0.1, 0.2, 0.3, 2)
    # ranks 50.5 -+ 1.96 * sqrt(101) / 2 = 40.65 and 60.35: the 41st and the 61st
    assert (found.p50_interval.low, found.p50_interval.high) == (0.40, 0.60)


def test_nothing_measured_is_refused() -> None:
    with pytest.raises(DeviceError, match="measured nothing"):
        figures.latency(run([]), 128)


def test_the_medians_interval_holds_what_it_promises() -> None:
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(1000):
        found = figures.median_interval(list(rng.exponential(size=51)))
        hits += found.low <= math.log(2) <= found.high
    assert 0.93 <= hits / 1000 <= 0.985


def test_the_medians_interval_of_20_is_the_textbooks() -> None:
    """Ranks 6 and 15 of 20: their binomial interval holds 95.9 % (Conover, Practical Nonparametric Statistics)."""
    found = figures.median_interval([float(rank) for rank in range(1, 21)])
    assert (found.low, found.high) == (6, 15)


def test_a_clock_too_coarse_to_measure_with_is_refused() -> None:
    for figure in (lambda run: figures.latency(run, 128), figures.sustained):
        with pytest.raises(DeviceError, match="too coarse"):
            figure(run([0.0] * 20))
        with pytest.raises(DeviceError, match="no samples"):
            figure(run([]))


def test_few_samples_give_their_range() -> None:
    found = figures.median_interval([3.0, 1.0, 2.0])
    assert (found.low, found.high) == (1.0, 3.0)


def test_sustained_minutes() -> None:
    samples = [0.5] * 120 + [1.0] * 60 + [2.0] * 44  # two minutes, then 88 s
    found = figures.sustained(run(samples))
    assert found.p50_s_by_minute == (0.5, 1.0, 2.0)  # the last 28 s are not half a minute
    assert (found.seconds, found.last_over_first) == (208, 4.0)
    assert figures.sustained(run([1.0] * 10)).p50_s_by_minute == (1.0,)


def test_score_interval_is_that_of_a_proportion() -> None:
    """Accuracy over 400 examples of which 300 are right: 0.75 -+ 1.96 * sqrt(0.75 * 0.25 / 400) = 0.042."""
    features = [Feature(inputs={}, example=i) for i in range(400)]
    outputs = [{"logits": np.array([float(i % 4 != 0)])} for i in range(400)]

    def accuracy(examples: object, features: object, outputs: list[dict[str, np.ndarray]]) -> float:
        return float(np.mean([o["logits"][0] for o in outputs]))

    found = figures.percentiles(figures.resamples(accuracy, list(range(400)), features, outputs))  # type: ignore[arg-type]
    assert found.low == pytest.approx(0.708, abs=0.012)
    assert found.high == pytest.approx(0.792, abs=0.012)


def test_score_interval_keeps_the_features_of_an_example_together() -> None:
    features = [Feature(inputs={}, example=i // 2, extra={"of": i // 2}) for i in range(20)]
    outputs = [{"logits": np.array([i])} for i in range(20)]

    def whole(examples: list[int], given: list[Feature], found: list[dict[str, np.ndarray]]) -> float:
        assert [f.example for f in given] == [i // 2 for i in range(20)]
        assert [examples[f.example] for f in given] == [f.extra["of"] for f in given]
        assert [int(o["logits"][0]) // 2 for o in found] == [f.extra["of"] for f in given]
        return 1.0

    figures.percentiles(figures.resamples(whole, list(range(10)), features, outputs))  # type: ignore[arg-type]
