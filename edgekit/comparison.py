"""What `edgekit compare` found: each method's runs, and the figures that are made of them."""

import math
import statistics
from collections.abc import Sequence

from edgekit.records import Record, Score


class Run(Record):
    """One training of the student by a method."""

    seed: int
    artifact: str
    """Of the last step: what the store calls it."""
    score: Score | None
    examples: int
    """Shown to models in training, repeated ones counted each time."""
    seconds: float
    """Of all trainings of the method, and of the steps that prepare for them; scoring is not among it."""
    peak_rss_bytes: int | None
    """The largest of its trainings."""
    parameters: int | None
    bytes: int
    """Of the student's weights, before export and quantization."""


class Reason(Record):
    """Why a method has no more runs, and the exit code that this would have alone."""

    message: str
    exit_code: int


class Contender(Record):
    """A method with its runs so far. The figures of several runs are means, but for memory, which is the largest."""

    method: str
    title: str
    source: str
    runs: tuple[Run, ...] = ()
    failure: Reason | None = None
    score: float | None = None
    deviation: float | None = None
    """Of the score: the standard deviation over the seeds (with n - 1); `None` for a single one."""
    low: float | None = None
    high: float | None = None
    examples: int | None = None
    seconds: float | None = None
    peak_rss_bytes: int | None = None
    parameters: int | None = None
    bytes: int | None = None


class Reference(Record):
    """The teacher, which all methods share."""

    score: Score | None
    parameters: int | None
    bytes: int


class Compared(Record):
    """Methods beside each other: one recipe, one teacher, one budget, the same seeds. The best score comes first."""

    edgekit: str
    recipe: str
    task: str
    metric: str | None
    """`None`: the task's data has no score."""
    host: str
    seeds: tuple[int, ...]
    """Those that were asked for."""
    teacher: Reference | None
    methods: tuple[Contender, ...]
    began: str
    """UTC, ISO 8601."""
    seconds: float


def contender(method: str, title: str, source: str, runs: Sequence[Run], failure: Reason | None) -> Contender:
    """A method with the figures of its runs.

    >>> run = dict(artifact="a", examples=8, seconds=1.0, peak_rss_bytes=None, parameters=None, bytes=4)
    >>> scores = [Score(metric="f1", value=value, examples=9) for value in (0.5, 0.7)]
    >>> found = contender("kd", "", "", [Run(seed=n, score=score, **run) for n, score in enumerate(scores)], None)
    >>> found.score, round(found.deviation, 4), found.low, found.peak_rss_bytes
    (0.6, 0.1414, 0.5, None)
    """
    scores = [run.score.value for run in runs if run.score and math.isfinite(run.score.value)]
    peaks = [run.peak_rss_bytes for run in runs if run.peak_rss_bytes is not None]
    return Contender(
        method=method, title=title, source=source, runs=tuple(runs), failure=failure,
        score=statistics.fmean(scores) if scores else None,
        deviation=statistics.stdev(scores) if len(scores) > 1 else None,
        low=min(scores, default=None), high=max(scores, default=None),
        examples=runs[0].examples if runs else None,
        seconds=round(statistics.fmean(run.seconds for run in runs), 3) if runs else None,
        peak_rss_bytes=max(peaks, default=None),
        parameters=runs[0].parameters if runs else None, bytes=runs[0].bytes if runs else None,
    )  # fmt: skip


def ranked(contenders: Sequence[Contender]) -> tuple[Contender, ...]:
    """The best score first; those without one last, as they came."""
    return tuple(sorted(contenders, key=lambda one: -math.inf if one.score is None else one.score, reverse=True))


def rivals(found: Compared) -> tuple[str, ...]:
    """The methods that these seeds do not tell apart from the best: one of theirs scored as high as one of its own."""
    best, *others = found.methods or (None,)
    if best is None or best.low is None or len(best.runs) < 2:
        return ()
    return tuple(one.method for one in others if one.high is not None and one.high >= best.low)
