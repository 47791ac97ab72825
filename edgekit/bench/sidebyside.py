"""Two bundles on one device in turns, so that whatever the device does meanwhile happens to both.

    pair 1: A B    pair 2: B A    pair 3: A B    ...        each letter is one length's block in a fresh process

A block is warmed up and timed for about a second; what counts of it is its median. How many pairs are enough is for the
caller to say, who looks after each one.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from edgekit import progress
from edgekit.bench import conditions, evaluation, figures
from edgekit.bench.check import Subject
from edgekit.bench.evaluation import Evaluation
from edgekit.bench.measure import Measured, Wanted, answers, joules, peak, prepared, result, right, say
from edgekit.bench.placed import Placed, place
from edgekit.bench.runner import Run
from edgekit.errors import DeviceError
from edgekit.records import Device, Score
from edgekit.results import Block, RunResult, SideBySide
from edgekit.tasks import Arrays

BLOCK_S = 0.7
WARMUP_S = 0.4
_LEAST_REPEATS = 10

Name = Literal["baseline", "candidate"]


@dataclass(frozen=True)
class Side:
    """One of the two bundles: its model, this host's answers to its examples, and what it is scored on (if it is)."""

    subject: Subject
    expected: Mapping[int | None, Sequence[Arrays]]
    scored: Evaluation | None


def side_by_side(
    device: Device, sides: Mapping[Name, Side], wanted: Wanted, settled: Callable[[Sequence[Block]], bool]
) -> SideBySide:
    """Measure both sides on `device` until `settled` says, of the blocks so far, that there are enough pairs.

    Raises as `edgekit.bench.measure.measure` does.
    """
    began, clock = datetime.now(UTC), time.monotonic()
    with prepared(device, wanted.adb) as (transport, desk, facts):
        say(device, "uploading")
        placed: dict[Name, Placed] = {
            name: place(device, transport, desk, side.subject, facts, wanted.runner, name)
            for name, side in sides.items()
        }
        say(device, "checking outputs")
        checks = {name: right(device, placed[name], side.expected) for name, side in sides.items()}
        before = conditions.wait_until_ready(device, transport, clock, placed["candidate"].cpus)
        say(device, "timing in turns")
        with conditions.watch(transport, clock) as during:
            blocks, runs = in_turns(placed, sides["baseline"].subject.lengths, settled)
        say(device, "measuring memory")
        memory = {name: peak(device, placed[name]) for name in sides}
        used = {name: joules(device, placed[name]) if wanted.energy else None for name in sides}
        latency = {
            name: tuple(_together(runs[name, n], n) for n in side.subject.lengths) for name, side in sides.items()
        }
        scores: dict[Name, tuple[Score, list[float]]] = {
            name: side.scored.score(answers(device, placed[name], side.scored, latency[name][-1]))
            for name, side in sides.items()
            if side.scored
        }
        readings = (before, *during, conditions.read(transport, clock))
    results: dict[Name, RunResult] = {}
    for name in sides:
        score, drawn = scores.get(name, (None, ()))
        last, peaks = memory[name]
        measured = Measured(placed[name], facts, checks[name], latency[name], last, peaks, used[name], score, drawn)
        results[name] = result(device, measured, WARMUP_S, BLOCK_S, readings, began, clock)
    return SideBySide(
        baseline=results["baseline"], candidate=results["candidate"], blocks=tuple(blocks),
        score=evaluation.change(scores["baseline"], scores["candidate"]) if scores else None,
    )  # fmt: skip


def in_turns(
    placed: Mapping[Name, Placed], lengths: Sequence[int | None], settled: Callable[[Sequence[Block]], bool]
) -> tuple[list[Block], dict[tuple[Name, int | None], list[Run]]]:
    """Pairs of blocks until `settled`, and the processes behind them by side and length. Every second pair runs the
    candidate first, so that a steady drift favours neither."""
    blocks: list[Block] = []
    runs: dict[tuple[Name, int | None], list[Run]] = {(name, length): [] for name in placed for length in lengths}
    turns: tuple[Name, Name] = ("baseline", "candidate")
    with progress.bar("pairs") as show:
        while not settled(blocks):
            for length in lengths:
                for name in turns:
                    run, figure = placed[name].latency(length, BLOCK_S, WARMUP_S, _LEAST_REPEATS)
                    runs[name, length].append(run)
                    blocks.append(
                        Block(
                            side=name, length=length, p50_s=figure.p50_s, runs=len(run.samples_s),
                            peak_rss_bytes=run.phase("end").hwm_bytes,
                        )
                    )  # fmt: skip
            turns = (turns[1], turns[0])
            show(len(blocks) // (2 * len(lengths)))
    return blocks, runs


def _together(runs: Sequence[Run], length: int | None) -> figures.Latency:
    """The figures of several processes' samples; cold start is the first process's."""
    if not runs:
        raise DeviceError("nothing was timed; try again")
    first = runs[0]
    return figures.latency(
        first.model_copy(
            update={
                "samples_s": tuple(s for run in runs for s in run.samples_s),
                "cpu_s": tuple(s for run in runs for s in run.cpu_s),
                "involuntary_switches": sum(run.involuntary_switches for run in runs),
            }
        ),
        length,
    )
