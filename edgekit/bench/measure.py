"""Measure one model on one device: outputs first, then latency, memory and energy, each in a pass of its own, because
each disturbs the others. Every run of the model is a fresh process on the device."""

import sys
import tempfile
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from edgekit import __version__, plugins, progress
from edgekit.bench import check, conditions, deploy, doubts, energy, figures
from edgekit.bench import memory as memories
from edgekit.bench.check import Subject
from edgekit.bench.evaluation import Evaluation
from edgekit.bench.placed import Placed, connect, place
from edgekit.bench.runner import PYTHON, Run, write_tensors
from edgekit.bench.transports import Transport
from edgekit.errors import NotGoodEnough
from edgekit.records import Budget, Device, Format, Score
from edgekit.results import (
    BudgetCheck,
    DeviceFacts,
    Energy,
    Latency,
    Memory,
    OutputCheck,
    Reading,
    RunResult,
    Sustained,
    Workload,
)
from edgekit.tasks import Arrays

_WARMUP_S = 1.0
_LEAST_REPEATS = 20
_MEMORY_REPEATS = 10
_MOST_EXAMPLES = 1000
"""Of a score in one process: its outputs come back in one piece, under one deadline."""


@dataclass(frozen=True)
class Wanted:
    """What is asked of every device. Each pass beyond outputs, latency and memory is asked for by name."""

    format: Format | None = None
    """`None`: the target's first."""
    lengths: tuple[int, ...] = ()
    """In tokens; none: all that the bundle was built for."""
    seconds: float = 5.0
    """How long each length is timed, at least."""
    score: bool = False
    base: Path = Path()
    """Where relative paths in the recipe's data start."""
    energy: bool = False
    sustained_s: float | None = None
    memory_limit: int | None = None
    runner: Literal["native", "python"] | None = None
    """`None`: as the device's record says."""
    adb: Path | None = None
    """The adb program; `None`: looked for."""


def measure(
    device: Device,
    subject: Subject,
    expected: Mapping[int | None, Sequence[Arrays]],
    scored: Evaluation | None,
    wanted: Wanted,
) -> RunResult:
    """Everything that is `wanted` of one device. Raises `DeviceError` for a device or link that fails or is not in the
    condition that its record demands, and `NotGoodEnough` where it computes something else than this host."""
    began, clock = datetime.now(UTC), time.monotonic()
    with prepared(device, wanted.adb) as (transport, desk, facts):
        say(device, "uploading")
        placed = place(device, transport, desk, subject, facts, wanted.runner)
        say(device, "checking outputs")
        checks = right(device, placed, expected)
        before = conditions.wait_until_ready(device, transport, clock, placed.cpus)
        with conditions.watch(transport, clock) as during:
            latency = tuple(_latency(device, placed, length, wanted.seconds) for length in subject.lengths)
            sustained = None
            if wanted.sustained_s is not None:
                say(device, f"working for {wanted.sustained_s:.0f} s without a pause")
                load = placed.load(subject.lengths[-1], seconds=wanted.sustained_s, warmup_s=_WARMUP_S)
                sustained = figures.sustained(placed.run(placed.timed(subject.lengths[-1]), load))
        say(device, "measuring memory")
        last, memory = peak(device, placed, wanted.memory_limit)
        used = joules(device, placed) if wanted.energy else None
        score, drawn = scored.score(answers(device, placed, scored, latency[-1])) if scored else (None, ())
        readings = (before, *during, conditions.read(transport, clock))
    measured = Measured(placed, facts, checks, latency, last, memory, used, score, drawn, sustained)
    return result(device, measured, _WARMUP_S, wanted.seconds, readings, began, clock)


@contextmanager
def prepared(device: Device, adb: Path | None) -> Generator[tuple[Transport, deploy.Place, DeviceFacts]]:
    """A device that is connected and has a work folder, and what it says of itself."""
    link, workdir = connect(device, adb)
    if device.meter:  # energy comes last: what its record has wrong is said first
        plugins.use("meters", device.meter, f"device {device.name}")
    with link as transport, deploy.opened(transport, workdir) as desk:
        yield transport, desk, conditions.facts(transport, desk.folder)


@dataclass(frozen=True)
class Measured:
    """What the passes gave for one placed model; `None` was not asked for."""

    placed: Placed
    facts: DeviceFacts
    checks: tuple[OutputCheck, ...]
    latency: tuple[Latency, ...]
    last: Run
    """Any run of it: what the runner says of itself."""
    memory: Memory
    energy: Energy | None = None
    score: Score | None = None
    drawn: Sequence[float] = ()
    """The score of resampled examples."""
    sustained: Sustained | None = None


def result(
    device: Device, measured: Measured, warmup_s: float, repeat_s: float, readings: Sequence[Reading],
    began: datetime, clock: float,
) -> RunResult:  # fmt: skip
    """The record of a measurement that began at `began`, by the monotonic clock at `clock`."""
    placed, subject, latency = measured.placed, measured.placed.subject, measured.latency
    return RunResult(
        edgekit=__version__, bundle=subject.manifest.name, digest=subject.manifest.digest, model=subject.model.path,
        model_sha256=subject.sha256, size_bytes=subject.file.stat().st_size, device=device.name, facts=measured.facts,
        runner=measured.last.runner, runtime=f"{measured.last.runtime} {measured.last.library_version}",
        unverified=placed.unverified, cpus=placed.cpus, checks=measured.checks, latency=latency,
        memory=measured.memory, energy=measured.energy, sustained=measured.sustained,
        workload=Workload(
            format=subject.model.format, lengths=tuple(n for n in subject.lengths if n is not None),
            threads=placed.threads, warmup_s=warmup_s, repeat_s=repeat_s,
        ),
        score=measured.score, score_interval=figures.percentiles(measured.drawn) if measured.drawn else None,
        budgets=_budgets(device.budgets, measured), readings=tuple(readings),
        doubts=doubts.doubts(readings, latency, measured.facts, placed.threads, placed.cpus),
        began=began.isoformat(timespec="seconds"), seconds=round(time.monotonic() - clock, 3),
    )  # fmt: skip


def right(device: Device, placed: Placed, expected: Mapping[int | None, Sequence[Arrays]]) -> tuple[OutputCheck, ...]:
    """The device's answers to the bundle's own examples against this host's; `NotGoodEnough` where they differ."""
    subject = placed.subject
    found = {
        length: placed.answers(f"{placed.name}-check-{length}.in", length, len(subject.examples))
        for length in subject.lengths
    }
    checks = check.compare(subject, expected, found)
    if wrong := [one for one in checks if not one.passed]:
        said = "; ".join(
            f"{one.output}: cosine {one.cosine_min:.4f} at worst, largest difference {one.max_abs_diff:.4g}, "
            f"{one.flips} of {one.decisions} decisions flipped"
            for one in wrong
        )
        raise NotGoodEnough(
            f"device {device.name}: {subject.model.path} computes something else there than on this host ({said}); "
            "nothing was timed. Try another version of the runtime (edgekit runner build --runtime-lib), or --format"
        )
    return checks


def _latency(device: Device, placed: Placed, length: int | None, seconds: float) -> Latency:
    say(device, "timing" if length is None else f"timing {length} tokens")
    return figures.latency(placed.timing(length, seconds, _WARMUP_S, _LEAST_REPEATS), length)


def peak(device: Device, placed: Placed, limit_bytes: int | None = None) -> tuple[Run, Memory]:
    """The longest length's memory, the runtime's floor, on this host a Python process beside, and a limited run."""
    length = placed.subject.lengths[-1]
    inputs = placed.timed(length)
    load = placed.load(length, repeats=_MEMORY_REPEATS)
    run = placed.run(inputs, load)
    empty = f"{placed.desk.folder}/empty"
    bare = load.model_copy(update={"signature": None})
    floor = placed.run(f"{empty}.in", bare, model=f"{empty}.{placed.subject.model.format}")
    beside = None
    if run.runner == "native" and device.link and device.link.name == "local":
        placed.desk.put({"runner.py": PYTHON})
        start = (sys.executable, f"{placed.desk.folder}/runner.py")
        beside = replace(placed, start=start, library=None).run(inputs, load)
    memory = memories.memory(run, floor, beside)
    if limit_bytes is not None:
        words = placed.argv(inputs, None, load)
        limit = memories.limited(placed.transport, words, limit_bytes, load.deadline_s + 5)
        memory = memory.model_copy(update={"limit": limit})
    return run, memory


def joules(device: Device, placed: Placed) -> Energy:
    """What one inference at the longest length costs; takes minutes."""
    say(device, "measuring energy; this takes minutes")
    length = placed.subject.lengths[-1]
    inputs = placed.timed(length)

    def load(seconds: float) -> Run:
        return placed.run(inputs, placed.load(length, seconds=seconds))

    return energy.measure(device.meter, placed.transport, load)


def answers(device: Device, placed: Placed, scored: Evaluation, timed: Latency) -> list[Arrays]:
    """The device's unpadded outputs for the whole evaluation set, in order; deadlines follow what was `timed`."""
    subject = placed.subject
    lengths = subject.model.lengths or (None,)
    # attention costs the square of the length, and the greatest may not be among those that were asked for
    run_s = 5 * timed.p50_s * max((lengths[-1] or 1) / (timed.length or 1), 1) ** 2
    by_length: dict[int | None, list[int]] = {}
    for i, feature in enumerate(scored.features):
        tokens = len(next(iter(feature.inputs.values())))
        by_length.setdefault(next((n for n in lengths if n is None or n >= tokens), lengths[-1]), []).append(i)
    found: list[Arrays] = [{}] * len(scored.features)
    for length, numbers in [
        (length, every[first : first + _MOST_EXAMPLES])
        for length, every in by_length.items()
        for first in range(0, len(every), _MOST_EXAMPLES)
    ]:
        say(device, f"scoring {len(numbers)} examples" + (f" of up to {length} tokens" if length else ""))
        feeds = [subject.feed(scored.features[i].inputs, length) for i in numbers]
        with tempfile.TemporaryDirectory(prefix="edgekit-inputs-") as temporary:
            write_tensors(Path(temporary, "score"), feeds)
            placed.desk.send(Path(temporary, "score"), f"{placed.desk.folder}/score.in")
        for i, outputs in zip(numbers, placed.answers("score.in", length, len(feeds), run_s), strict=True):
            found[i] = check.unpadded(subject, outputs, scored.features[i].inputs, length)
    return found


def _budgets(budgets: Sequence[Budget], measured: Measured) -> tuple[BudgetCheck, ...]:
    """Each budget against what was measured; latency is the longest length's median."""
    observed = {
        "size_bytes": float(measured.placed.subject.file.stat().st_size),
        "latency_s": measured.latency[-1].p50_s,
        "peak_rss_bytes": float(measured.memory.peak_rss_bytes),
        "energy_j": measured.energy and measured.energy.gross_j,
        "score": measured.score and measured.score.value,
    }
    checks: list[BudgetCheck] = []
    for budget in budgets:
        seen = observed[budget.metric]
        headroom = None
        if seen is not None:
            headroom = seen - budget.limit if budget.metric == "score" else budget.limit - seen
        kept = None if headroom is None else headroom >= 0
        checks.append(BudgetCheck(budget=budget, observed=seen, kept=kept, headroom=headroom))
    return tuple(checks)


def say(device: Device, what: str) -> None:
    """One line on what is being done there."""
    progress.say(f"{device.name}: {what}")
