"""Two bundles on one device in turns, so that whatever the device does meanwhile happens to both.

    pair 1: A B B A A B B A A B B A    pair 2: B A A B B A A B B A A B    ...

Each letter is a fresh process, which is warmed up and timed for some hundredths of a second; the median over a side's
processes is its block, and a pair has a block of each side. Disturbances on a shared machine last for tenths of
seconds, so turns that are shorter than those share them evenly: on a virtual machine with noisy neighbours, pairs of
one process of 0.7 s a side spread by 9 %, pairs of eight short ones by 0.9 %. How many pairs are enough is for the
caller to say, who looks after each one. Energy is not in turns: its windows last minutes, the baseline's first.
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
from edgekit.errors import InputError, NotGoodEnough
from edgekit.records import Device, Score
from edgekit.results import Block, OutputCheck, RunResult, SideBySide
from edgekit.tasks import Arrays

TURNS = 6
"""Processes of each side in a pair."""
TIMED_S = 0.08
WARMUP_S = 0.1
_LEAST_REPEATS = 5

Name = Literal["baseline", "candidate"]
_SIDES: tuple[Name, Name] = ("baseline", "candidate")


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
        checks: dict[Name, tuple[OutputCheck, ...]] = {}
        for name, side in sides.items():
            try:
                checks[name] = right(device, placed[name], side.expected)
            except NotGoodEnough as error:
                # wrong is the candidate's answer to give; a baseline that is wrong is no measure of it
                raise (NotGoodEnough if name == "candidate" else InputError)(f"the {name}: {error}") from None
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
        results[name] = result(device, measured, WARMUP_S, TURNS * TIMED_S, readings, began, clock)
    return SideBySide(
        baseline=results["baseline"], candidate=results["candidate"], blocks=tuple(blocks),
        score=evaluation.change(scores["baseline"], scores["candidate"]) if scores else None,
    )  # fmt: skip


def in_turns(
    placed: Mapping[Name, Placed], lengths: Sequence[int | None], settled: Callable[[Sequence[Block]], bool]
) -> tuple[list[Block], dict[tuple[Name, int | None], list[Run]]]:
    """Pairs of blocks until `settled`, and the processes behind them by side and length. Who begins changes from turn
    to turn and from pair to pair, so that a steady drift favours neither."""
    blocks: list[Block] = []
    runs: dict[tuple[Name, int | None], list[Run]] = {(name, length): [] for name in placed for length in lengths}
    first, second = _SIDES
    with progress.bar("pairs") as show:
        while not settled(blocks):
            for length in lengths:
                pair: dict[Name, list[Run]] = {first: [], second: []}
                for turn in range(TURNS):
                    for name in (first, second) if turn % 2 == 0 else (second, first):
                        pair[name].append(placed[name].timing(length, TIMED_S, WARMUP_S, _LEAST_REPEATS))
                for name, of in pair.items():
                    runs[name, length] += of
                    blocks.append(
                        Block(
                            side=name, length=length, p50_s=_together(of, length).p50_s,
                            peak_rss_bytes=max(run.phase("end").hwm_bytes for run in of),
                            runs=sum(len(run.samples_s) for run in of),
                        )
                    )  # fmt: skip
            first, second = second, first
            show(len(blocks) // (2 * len(lengths)))
    return blocks, runs


def _together(runs: Sequence[Run], length: int | None) -> figures.Latency:
    """The figures of several processes' samples; cold start is the first process's."""
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
