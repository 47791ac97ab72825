"""`edgekit compare`: several ways to train one student, under the same budget and by the same seeds.

It stands above the wings. Every artifact is made in a process of its own, so that its peak memory is its own too, and
by the store, so that what is done is never done again: the teacher is made once for all, a comparison that was stopped
goes on where it was, and one more method or seed costs itself alone. Only the student's trainings take another seed.
"""

import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

from edgekit import __version__, fresh, progress, systems, tables
from edgekit import recipe as recipes
from edgekit.comparison import Compared, Reason, Reference, Run, contender, ranked, rivals
from edgekit.errors import EdgekitError, InputError, printable
from edgekit.recipe import Distill, Pretrain, Prune, Recipe, Step, Teach
from edgekit.records import Built, StageRow, Target
from edgekit.store import Store, standing
from edgekit.systems import System

_BARE = ("supervised",)
"""No distillation: compared only where it is asked for."""


def with_method(recipe: Recipe, name: str | None, base: Path, store: Store | None = None) -> Recipe:
    """`recipe` with its student trained by the method called `name`, if any; `base` is the recipe's folder. Training
    rows that have to be counted are encoded in the `store`, where a build finds them, else in memory."""
    if name is None:
        return recipe
    found = systems.apply(recipe, systems.find(name), lambda: _rows(recipe, base, store))
    if any(isinstance(step, Prune) and step not in found.step for step in recipe.step):
        progress.say(f"method {name}: a prune step of the recipe is left out, which is not for this method's student")
    return found


def _rows(recipe: Recipe, base: Path, store: Store | None) -> int:
    """How many training examples an epoch has: a long text gives several."""
    from edgekit.pipeline import TaskData, weights

    teach = recipe.step[0]
    assert isinstance(teach, Teach)  # the recipe's own validator saw to it
    data = TaskData(recipe, base, store and store.root)
    return len(data.features("train", weights.locate(teach, base)))


def compare(
    recipe: Recipe, base: Path, names: Sequence[str], seeds: int, store: Store,
    done: Callable[[Compared], None] = lambda found: None,
) -> Compared:  # fmt: skip
    """Train the student of `recipe` by each of the methods `names` (all but `supervised` where none is named), for as
    many `seeds`: the recipe's, the one after it and so on. `base` is the recipe's folder.

    `done` is told what there is after every run. A method that cannot train this student is in the result with the
    reason, and does not stop the others. Raises `InputError` where two names are equal or unknown, and where no method
    can train this student.
    """
    from edgekit.pipeline import processes

    if processes.count() > 1:
        raise InputError("compare: trains in one process after the other; start it without torchrun or accelerate")
    began, clock = datetime.now(UTC), time.monotonic()
    chosen = _chosen(names)
    numbers = tuple(recipe.seed + n for n in range(seeds))
    target = recipes.target("host")
    work, failures = _applied(recipe, base, chosen, store)
    failures |= _refused(work, numbers, target, base, store)
    if len(failures) == len(chosen):
        raise InputError("no method can train this student:\n" + "\n".join(_together(failures)))
    runs: dict[str, list[Run]] = {system.name: [] for system in chosen}
    teacher: Reference | None = None

    def found() -> Compared:
        rows = [contender(s.name, s.title, s.source, runs[s.name], failures.get(s.name)) for s in chosen]
        scores = (run.score.metric for row in rows for run in row.runs if run.score)
        return Compared(
            edgekit=__version__, recipe=recipe.name, task=recipe.task.name, metric=next(scores, None), host=_host(),
            seeds=numbers, teacher=teacher, methods=ranked(rows), began=began.isoformat(timespec="seconds"),
            seconds=round(time.monotonic() - clock, 3),
        )  # fmt: skip

    todo = [(seed, system) for seed in numbers for system in chosen]
    for count, (seed, system) in enumerate(todo, 1):
        if system.name in failures:
            continue
        try:
            built = _build(_seeded(work[system.name], seed), target, base, store, f"{system.name}, seed {seed}")
        except EdgekitError as error:
            failures[system.name] = Reason(message=str(error), exit_code=error.exit_code)
            progress.say(f"{system.name}, seed {seed}: failed: {error}")
        else:
            teacher = teacher or _reference(built.stages[0])
            runs[system.name].append(_run(seed, built.stages[1:]))
            progress.say(f"{system.name}, seed {seed}: {_line(runs[system.name][-1])} ({count} of {len(todo)})")
        done(found())
    return found()


def _chosen(names: Sequence[str]) -> list[System]:
    chosen = [systems.find(name) for name in names or (name for name in systems.names() if name not in _BARE)]
    if not chosen:
        raise InputError("compare: there is no method to compare; name some with --method")
    known = [system.name for system in chosen]
    if twice := next((name for name in known if known.count(name) > 1), None):
        raise InputError(f"--method: {twice} is named twice; name each method once")
    return chosen


def _together(failures: Mapping[str, Reason]) -> list[str]:
    """What the failures say, each once, after the methods that it is said of; what stops all is not the methods'."""
    said: dict[str, list[str]] = {}
    for name, reason in failures.items():
        said.setdefault(reason.message.removeprefix(f'method "{name}": '), []).append(f'"{name}"')
    if len(said) == 1 < len(failures):
        return [*said]
    return [f"method {', '.join(names)}: {message}" for message, names in said.items()]


def _applied(
    recipe: Recipe, base: Path, chosen: Sequence[System], store: Store
) -> tuple[dict[str, Recipe], dict[str, Reason]]:
    """For each method the recipe up to its student, without limits that would stop it, or why there is none."""
    rows = cache(lambda: _rows(recipe, base, store))
    work: dict[str, Recipe] = {}
    failures: dict[str, Reason] = {}
    for system in chosen:
        try:
            applied = systems.apply(recipe, system, rows)
        except InputError as error:
            failures[system.name] = Reason(message=str(error), exit_code=error.exit_code)
            continue
        steps = tuple(step.model_copy(update={"max_drop": None}) for step in applied.step[: 1 + len(system.step)])
        work[system.name] = applied.model_copy(update={"step": steps})
    return work, failures


def _seeded(recipe: Recipe, seed: int) -> Recipe:
    """`recipe` with that seed for all trainings of the student; teacher, language model and augmented data stay.

    A seed that the recipe gives a training of its own would be the same for all, so it is taken out. The recipe's seed
    need not be said again: `edgekit build --method` finds what is made here.
    """
    said = None if seed == recipe.seed else seed

    def seeded(step: Step) -> Step:
        if isinstance(step, Pretrain) and not (step.layers or step.student):
            return step  # the teacher's language model
        if not isinstance(step, Pretrain | Distill | Prune) or step.training is None:
            return step
        return step.model_copy(update={"training": step.training.model_copy(update={"seed": said})})

    return recipe.model_copy(update={"step": tuple(map(seeded, recipe.step))})


def _missing(recipe: Recipe, target: Target, base: Path, store: Store) -> tuple[bool, ...]:
    """Whether what each step makes is still to be made."""
    from edgekit.pipeline.build import keys, plan

    planned = plan(recipe, target)
    ids, _ = keys(recipe, target, base, planned)
    return tuple(store.find(one.name, ids[one.name]) is None for one in planned)


def _refused(
    work: Mapping[str, Recipe], seeds: Sequence[int], target: Target, base: Path, store: Store
) -> dict[str, Reason]:
    """The methods that cannot train this student, found out before the first expensive step."""
    failures: dict[str, Reason] = {}
    asked: dict[str, Recipe] = {}
    for name, recipe in work.items():
        try:
            if any(any(_missing(_seeded(recipe, seed), target, base, store)) for seed in seeds):
                asked[name] = recipe
        except InputError as error:
            failures[name] = _reason(name, error)
    return failures | (fresh.call(_refusals, asked, target, base, store.root) if asked else {})


def _reason(name: str, error: InputError) -> Reason:
    """Why the method cannot train this student, where the error names the recipe that the method's steps stand in."""
    return Reason(message=f'method "{name}": {error}', exit_code=error.exit_code)


def _refusals(work: Mapping[str, Recipe], target: Target, base: Path, store: Path) -> dict[str, Reason]:
    from edgekit.pipeline import TaskData, check
    from edgekit.pipeline.build import plan

    found: dict[str, Reason] = {}
    data = TaskData(next(iter(work.values())), base)  # task and data are the same for all
    for name, recipe in work.items():
        try:
            check.everything(recipe, target, base, data, plan(recipe, target), store)
        except InputError as error:
            found[name] = _reason(name, error)
    return found


def _build(recipe: Recipe, target: Target, base: Path, store: Store, what: str) -> Built:
    """Make what is missing, each artifact in a process of its own."""
    missing = _missing(recipe, target, base, store)
    if any(missing):
        progress.say(f"{what} …")
    built: Built | None = None
    for number, absent in enumerate(missing, 1):
        if absent:
            part = recipe.model_copy(update={"step": recipe.step[:number]})  # a step up to here makes one artifact
            built = fresh.call(_make, part, target, base, store.root)
    return built if built and missing[-1] else _make(recipe, target, base, store.root)


def _make(recipe: Recipe, target: Target, base: Path, store: Path) -> Built:
    from edgekit.pipeline.build import build

    return build(recipe, target, Store(store), store / "none", base)  # without an export step there is no bundle


def _run(seed: int, stages: Sequence[StageRow]) -> Run:
    """What the stages of one training of the student took, and what came out of the last."""
    last = stages[-1]
    peaks = [row.trained.peak_rss_bytes for row in stages if row.trained and row.trained.peak_rss_bytes is not None]
    return Run(
        seed=seed, artifact=f"{last.name}-{last.artifact[:16]}", score=last.metrics,
        examples=sum(row.trained.examples for row in stages if row.trained),
        seconds=round(sum(row.trained.seconds if row.trained else row.seconds for row in stages), 3),
        peak_rss_bytes=max(peaks, default=None), parameters=last.parameters, bytes=last.bytes,
    )  # fmt: skip


def _reference(teach: StageRow) -> Reference:
    return Reference(score=teach.metrics, parameters=teach.parameters, bytes=teach.bytes)


def _host() -> str:
    from edgekit.pipeline.bundle import host

    return host()


def exit_code(found: Compared, named: bool) -> int:
    """0 where all went well, else the failures' worst. That a method is not for this student is a failure only of
    methods that were `named`."""
    failures = [one.failure for one in found.methods if one.failure]
    named = named or not any(one.runs for one in found.methods)
    return max((one.exit_code for one in failures if named or one.exit_code != InputError.exit_code), default=0)


def keeper(out: Path, page: Path | None) -> Callable[[Compared], None]:
    """What keeps a comparison in `out`, as JSON, and on a `page` if one is wanted; call it after every run.

    Raises `InputError` at once where one of the two could not be written; what stood there stays until the first run.
    """
    from edgekit.gate import report
    from edgekit.gate.sections import Shown

    _writable(out, "--out")
    if page is not None:
        if page.suffix not in (".html", ".htm"):
            raise InputError(f"--report: {page}: must end in .html; a comparison is shown as a page")
        _writable(page, "--report")
        report.page(Shown())  # says now which package a page lacks

    def keep(found: Compared) -> None:
        _place(found.model_dump_json(indent=1) + "\n", out, "--out")
        if page is not None:
            _place(report.page(Shown(comparisons=(found,), sources=(str(out),))), page, "--report")

    return keep


def _writable(out: Path, option: str) -> None:
    """Raise `InputError` unless `out` can be written, and its folder made where it is missing."""
    try:
        with tempfile.TemporaryFile(dir=standing(out.parent)):
            pass
    except OSError as error:
        raise _unwritable(out, option, error) from None


def _place(text: str, out: Path, option: str) -> None:
    """Write `text` to `out`, whole or not at all. Raises `InputError` where it cannot be written."""
    unfinished = out.with_name(out.name + ".part")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        unfinished.write_text(text, encoding="utf-8")
        unfinished.replace(out)
    except OSError as error:
        unfinished.unlink(missing_ok=True)
        raise _unwritable(out, option, error) from None


def _unwritable(out: Path, option: str, error: OSError) -> InputError:
    return InputError(f"{option}: {out}: cannot be written: {error.strerror}; name another file")


def _line(run: Run) -> str:
    """One run in half a line."""
    score = f"{run.score.metric} {run.score.value:.4f}" if run.score else "no score"
    peak = f", peak {tables.size(run.peak_rss_bytes)}" if run.peak_rss_bytes is not None else ""
    return f"{score}, {_time(run.seconds)}{peak}"


def _time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s" if minutes else f"{seconds:.1f} s"


def lines(found: Compared) -> str:
    """The comparison as a table for a terminal, at most 80 columns, the best first."""
    return "\n".join([*(_table(found) if any(one.runs for one in found.methods) else ()), *_wrapped(_below(found))])


def _table(found: Compared) -> list[str]:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("method", overflow="fold", max_width=18)
    for name in (found.metric or "score", "spread", "examples", "time", "memory", "params", "size"):
        table.add_column(name, justify="right", no_wrap=name != (found.metric or "score"))
    for one in found.methods:
        if one.runs:
            table.add_row(
                printable(one.method), _figure(one.score), _figure(one.deviation, "±"), f"{one.examples:,}",
                _time(one.seconds or 0), *_sizes(one.peak_rss_bytes, one.parameters, one.bytes),
            )  # fmt: skip
    if teacher := found.teacher:
        score = teacher.score.value if teacher.score else None
        table.add_row("(teacher)", _figure(score), "", "", "", *_sizes(None, teacher.parameters, teacher.bytes))
    return tables.drawn(table, 80).splitlines()


def _figure(value: float | None, sign: str = "") -> str:
    return "-" if value is None else f"{sign}{value:.4f}"


def _sizes(peak: int | None, parameters: int | None, size: int | None) -> tuple[str, str, str]:
    return (
        "-" if peak is None else tables.size(peak),
        "-" if parameters is None else f"{parameters / 1e6:.2f} M",
        "-" if size is None else tables.size(size),
    )


def _below(found: Compared) -> Iterator[str]:
    """What stands below the table."""
    seeds, trained = len(found.seeds), any(one.runs for one in found.methods)
    if trained:
        yield _means(seeds)
    if others := rivals(found):
        yield f"These seeds do not tell {found.methods[0].method} apart from {', '.join(others)}: their scores overlap."
    for one in found.methods:
        if one.failure:
            done = f" after {len(one.runs)} of {seeds} seeds" if one.runs else ""
            yield f"{one.method}: not trained{done}: {one.failure.message}"
        elif len(one.runs) < seeds:
            yield f"{one.method}: {len(one.runs)} of {seeds} seeds so far"


def _means(seeds: int) -> str:
    kept = (
        "What the teacher said is kept, so the method that asked first took the time that those after it were spared."
    )
    if seeds == 1:
        return f"One seed tells little of how far scores vary: --seeds 3 trains each method three times. {kept}"
    return (
        f"Score and time are means over {seeds} seeds, the spread is the scores' standard deviation, memory is the "
        f"largest peak of a training, size that of the weights. {kept}"
    )


def _wrapped(rows: Iterator[str]) -> list[str]:
    return [part for row in rows for part in textwrap.wrap(printable(row), 80, subsequent_indent="  ")]
