"""Figures from raw samples. NumPy only: what a bench prints must not need a statistics package on the host."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from edgekit.bench.runner import Run
from edgekit.errors import DeviceError
from edgekit.results import Interval, Latency, Sustained
from edgekit.tasks import Arrays, Feature

_RESAMPLES = 200


def latency(run: Run, length: int | None) -> Latency:
    """One process's times as figures."""
    samples = _measured(run)
    return Latency(
        length=length, p50_s=float(np.median(samples)), p50_interval=median_interval(run.samples_s),
        p90_s=float(np.quantile(samples, 0.9)), p99_s=float(np.quantile(samples, 0.99)), mean_s=float(samples.mean()),
        per_second=len(samples) / float(samples.sum()), open_s=run.open_s, load_s=run.load_s,
        first_run_s=run.first_run_s, cpu_share=float(sum(run.cpu_s) / samples.sum()),
        involuntary_switches=run.involuntary_switches, warmup_s=run.warmup_s, samples_s=run.samples_s,
        cpu_s=run.cpu_s,
    )  # fmt: skip


def _measured(run: Run) -> np.ndarray:
    """The samples of a run, which has some and a clock that tells them from nothing."""
    samples = np.array(run.samples_s)
    if not len(samples) or not np.median(samples) > 0:
        found = "no samples" if not len(samples) else "samples of 0 s: the clock there is too coarse for this model"
        raise DeviceError(f"the runner measured nothing: {found}; try again, or the other runner (--runner)")
    return samples


def median_interval(samples: Sequence[float], z: float = 1.96) -> Interval:
    """The 95 % interval of the median from order statistics: ranks n/2 -+ z sqrt(n)/2, the normal approximation of the
    binomial (David and Nagaraja, Order Statistics, section 7.1). It assumes independent samples: a device that
    drifts is less certain than this says, which is what `edgekit devices calibrate` is for.

    >>> interval = median_interval([1, 2, 3, 4, 5, 6, 7, 8, 9, 10])
    >>> interval.low, interval.high
    (2.0, 9.0)
    """
    ordered = sorted(samples)
    half = z * math.sqrt(len(ordered)) / 2
    low = max(math.floor(len(ordered) / 2 - half), 0)
    high = len(ordered) - 1 - low
    return Interval(low=float(ordered[low]), high=float(ordered[high]))


def sustained(run: Run) -> Sustained:
    """A long run by minutes; what is left of the last minute counts as one when it has at least half."""
    samples = _measured(run)
    ends = np.cumsum(samples)
    minutes = np.minimum(ends // 60, max(round(float(ends[-1]) / 60) - 1, 0)).astype(int)
    medians = tuple(float(np.median(samples[minutes == m])) for m in np.unique(minutes))
    return Sustained(
        seconds=float(ends[-1]), p50_s_by_minute=medians, last_over_first=medians[-1] / medians[0],
        samples_s=run.samples_s,
    )  # fmt: skip


def percentiles(drawn: Sequence[float]) -> Interval:
    """The 95 % bootstrap interval: the percentiles of what was drawn (Efron 1979)."""
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Interval(low=float(low), high=float(high))


def resamples(
    score: Callable[[Sequence[Any], Sequence[Feature], Sequence[Arrays]], float],
    examples: Sequence[Any],
    features: Sequence[Feature],
    outputs: Sequence[Arrays],
) -> list[float]:
    """The score of 200 bootstrap resamples of whole examples. Which ones are drawn depends on their number alone, so
    two bundles that answered the same examples are resampled alike."""
    rng = np.random.default_rng(0)
    made_from: list[list[int]] = [[] for _ in examples]
    for i, feature in enumerate(features):
        made_from[feature.example].append(i)
    values: list[float] = []
    for _ in range(_RESAMPLES):
        picked = rng.integers(0, len(examples), len(examples))
        chosen = [(new, i) for new, old in enumerate(picked) for i in made_from[old]]
        values.append(
            score(
                [examples[old] for old in picked],
                [replace(features[i], example=new) for new, i in chosen],
                [outputs[i] for _, i in chosen],
            )
        )
    return values
