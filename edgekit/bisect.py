"""`edgekit bisect`: which commit, or which step of a recipe, broke the gate first.

What stands between a baseline and a candidate that the gate refuses is a row of things, each the one before with one
more change: commits, or recipes that take one step more from the candidate. The row is halved until one is left:

    baseline  a  b  c  d  e  f  candidate         d: good, f: bad, e: bad -> e broke it
       good            ^  *  ^     bad

That rests on what broke staying broken: where a later change mends what an earlier one broke and another breaks it
again, one of the breaking ones is named, not always the first. A thing that cannot be judged is passed over, and what
cannot be told apart for that is reported as a range.
"""

import tempfile
import textwrap
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edgekit import bundle, commits, tables
from edgekit.errors import EdgekitError, InputError, printable
from edgekit.gate.verdict import overall
from edgekit.progress import say
from edgekit.recipe import Recipe
from edgekit.records import Record, parse
from edgekit.results import Answer, Check, Verdict
from edgekit.splice import Splice, Suspect, splices, unlike
from edgekit.store import Store

Gate = Callable[[Path, Path], Verdict]
"""Measures and judges the bundle at the first path against that at the second."""


@dataclass(frozen=True)
class Found:
    """What `first_bad` found: the answer for the last thing, and which may be the first bad one, in order: one, or
    several where those between could not be judged; none where the last is not bad."""

    last: Answer | None
    suspects: tuple[int, ...]


class Trial(Record):
    """One thing that was tried."""

    what: str
    answer: Answer | None
    """`None`: it could not be built, or not be gated."""
    reason: str | None
    """Why it was passed over; `None` where it was not."""
    broke: tuple[Check, ...]
    """The checks that it did not pass."""


class Bisected(Record):
    """What a bisection found, and all that was tried for it."""

    candidate: str
    baseline: str
    over: Literal["commits", "stages"]
    count: int
    """How many things there were to search."""
    answer: Answer
    """The candidate's, against the baseline."""
    suspects: tuple[Suspect, ...]
    """One: it broke the gate first. Several: one of them did. None: there was nothing to find, or see `note`."""
    broke: tuple[Check, ...]
    """The checks that the first thing known to be bad did not pass."""
    note: str | None
    trials: tuple[Trial, ...]
    """In the order of trying."""

    @property
    def exit_code(self) -> int:
        """0: the candidate passes, there is nothing to find. 3: the first bad one is named. 4: a device or link
        failed. 5: the candidate's verdict, or which one broke it, stays open."""
        if self.answer == "REGRESSION":
            return 3 if len(self.suspects) == 1 else 5
        return {"PASS": 0, "INFRA_ERROR": 4, "INCONCLUSIVE": 5}[self.answer]


def first_bad(count: int, judge: Callable[[int], Answer | None]) -> Found:
    """Which of `count` things in a row, 0 .. count - 1, is the first bad one, in as few calls of `judge` as may be.

    What stands before 0 is known to be good. The last is judged first; unless that gives REGRESSION, it is all.
    PASS is good and REGRESSION bad; any other answer passes a thing over, which is then not asked for again. Without
    such ones, these are 1 + ceil(log2(count)) calls at most. No good thing is taken to come after a bad one; none is
    tried, so none is found out either.
    """
    last = judge(count - 1)
    if last != "REGRESSION":
        return Found(last, ())
    good, bad = -1, count - 1
    skipped: set[int] = set()
    while untried := [i for i in range(good + 1, bad) if i not in skipped]:
        # The middle tells most. But what cannot be judged comes in groups (a commit that does not build is mended some
        # commits later), so a distance is kept from those.
        at = max(untried, key=lambda i: min(i - good, bad - i, *(4 * abs(i - other) for other in skipped)))
        match judge(at):
            case "PASS":
                good = at
            case "REGRESSION":
                bad = at
            case _:
                skipped.add(at)
    return Found("REGRESSION", tuple(range(good + 1, bad + 1)))


def bisect(
    candidate: str, baseline: str, gate: Gate, recipe: Path | None, target: str, store: Path, base: Path
) -> Bisected:
    """Find what made the candidate break the gate.

    Over commits where both are `git:REF`: each one tried is built by the repository's own `recipe` (see
    `commits.bundle_at`) for `target` and gated against the baseline. Over the steps of the recipes that two bundles
    carry otherwise: what is tried is built from the baseline's recipe with its first steps taken from the candidate's;
    relative paths in it start at `base`. The same bundle is not measured twice.

    Raises `InputError` where one is a commit and the other is not, where no commits lead from one to the other, and
    where the recipes are equal or their steps do not correspond.
    """
    if commits.is_commit(candidate) != commits.is_commit(baseline):
        raise InputError(
            f"bisect: {candidate} and {baseline} are a commit and a bundle; give two of git:REF, to search the "
            "commits between them, or two bundles, to search the steps of their recipes"
        )
    if commits.is_commit(candidate):
        return _over_commits(candidate, baseline, gate, recipe, target, store)
    return _over_stages(Path(candidate), Path(baseline), gate, store, base)


class _Bench:
    """Gates bundles against the baseline's, each different one once, and writes down what that gave."""

    def __init__(self, gate: Gate, baseline: Path) -> None:
        self._gate, self._baseline = gate, baseline
        self._known: dict[str, tuple[Answer, str | None, tuple[Check, ...]]] = {}
        self._known[bundle.verify(baseline).digest] = ("PASS", None, ())
        self.trials: list[Trial] = []

    def gated(self, what: str, path: Path) -> Answer:
        """The gate's answer for the bundle at `path`; an error of the gate's is one."""
        digest = bundle.verify(path).digest
        if digest in self._known:
            say(f"bisect: {what}: is byte for byte a bundle whose answer is known")
        else:
            verdict = self._gate(path, self._baseline)
            self._known[digest] = _read(verdict)
        answer, reason, broke = self._known[digest]
        self.trials.append(Trial(what=what, answer=answer, reason=reason, broke=broke))
        say(f"bisect: {what}: {answer}")
        return answer

    def search(
        self,
        count: int,
        name: Callable[[int], str],
        make: Callable[[int], AbstractContextManager[Path]],
        last: Answer | None = None,
    ) -> Found:
        """`first_bad` of the bundles that `make(i)` builds; `last` is the last one's answer where that is known."""
        answers: dict[int, Answer | None] = {}

        def judge(i: int) -> Answer | None:
            if last and i == count - 1:
                answers[i] = last
                return last
            good = max((k for k, answer in answers.items() if answer == "PASS"), default=-1)
            bad = min((k for k, answer in answers.items() if answer == "REGRESSION"), default=count)
            say(f"bisect: try {name(i)}; {bad - good - 1} to search")
            try:
                with make(i) as path:
                    answers[i] = self.gated(name(i), path)
            except EdgekitError as error:
                answers[i] = None
                self.trials.append(Trial(what=name(i), answer=None, reason=printable(str(error)), broke=()))
                say(f"bisect: {name(i)}: passed over: {error}")
            return answers[i]

        return first_bad(count, judge)

    def broke(self, what: str) -> tuple[Check, ...]:
        """The checks that the thing of this name did not pass."""
        return next(trial.broke for trial in self.trials if trial.what == what)


def _read(verdict: Verdict) -> tuple[Answer, str | None, tuple[Check, ...]]:
    """The answer, why it is neither good nor bad where that is so, and the checks that were not passed.

    A budget that the baseline does not keep either is nothing that a change since then broke, and does not count.
    """
    spoilt = {
        (found.baseline.device, one.budget.metric)
        for found in verdict.measured
        for one in found.baseline.budgets
        if one.kept is not True
    }
    checks = tuple(one for one in verdict.checks if one.rule == "change" or (one.device, one.metric) not in spoilt)
    answer = overall(checks, verdict.failures)
    at_fault = tuple(check for check in checks if check.answer == answer)
    if answer in ("PASS", "REGRESSION"):
        return answer, None, at_fault if answer == "REGRESSION" else ()
    why = [check.reason for check in at_fault] + [f"{one.device}: {one.message}" for one in verdict.failures]
    return answer, printable("; ".join(why)), ()


def _over_commits(candidate: str, baseline: str, gate: Gate, recipe: Path | None, target: str, store: Path) -> Bisected:
    between = commits.commits_between(baseline, candidate)
    found, last = None, len(between) - 1

    def name(i: int) -> str:
        return f"{between[i][:12]} {commits.describe(between[i]).subject}"

    def made(commit: str) -> AbstractContextManager[Path]:
        return commits.bundle_at(commits.SCHEME + commit, recipe, target, store)

    with made(commits.resolve(baseline)) as good:
        bench = _Bench(gate, good)
        say(f"bisect: first the candidate, {name(last)}")
        with made(between[last]) as path:
            answer = bench.gated(name(last), path)
        if answer == "REGRESSION":
            found = bench.search(len(between), name, lambda i: made(between[i]), answer)
    suspects = found.suspects if found else ()
    return Bisected(
        candidate=candidate, baseline=baseline, over="commits", count=len(between), answer=answer,
        suspects=tuple(_suspect(commits.describe(between[i])) for i in suspects),
        broke=bench.broke(name(suspects[-1])) if suspects else (),
        note=None, trials=tuple(bench.trials),
    )  # fmt: skip


def _suspect(commit: commits.Commit) -> Suspect:
    return Suspect(name=commit.hash, what=f"{commit.subject} ({commit.authored})")


def _over_stages(candidate: Path, baseline: Path, gate: Gate, store: Path, base: Path) -> Bisected:
    new, old = bundle.verify(candidate), bundle.verify(baseline)
    row = splices(old, new)
    bench = _Bench(gate, baseline)
    answer = bench.gated("candidate", candidate)
    suspects: tuple[Suspect, ...] = ()
    broke, note = bench.broke("candidate"), None
    if answer == "REGRESSION":
        found = bench.search(len(row), lambda i: row[i].suspect.name, lambda i: _built(row[i], store, base))
        suspects = tuple(row[i].suspect for i in found.suspects)
        if found.suspects == (0,):
            with _built(row[0], store, base) as path:  # the store has it now
                changes = unlike(old.stages, bundle.verify(path).stages)
            suspects = (suspects[0].model_copy(update={"changes": changes}),)
        if suspects:
            broke = bench.broke(suspects[-1].name)
        elif found.last == "PASS":
            with _built(row[-1], store, base) as path:
                changes = unlike(bundle.verify(path).stages, new.stages)
            note = (
                "the candidate's recipe, built here, passes; so the recipe did not break the gate, but code, data or "
                f"library versions did. From what is built here to the candidate: {'; '.join(changes)}"
            )
        else:
            note = "the candidate's recipe, built here, cannot be judged; so no step can be named"
    return Bisected(
        candidate=str(candidate), baseline=str(baseline), over="stages", count=len(row), answer=answer,
        suspects=suspects, broke=broke, note=note, trials=tuple(bench.trials),
    )  # fmt: skip


@contextmanager
def _built(splice: Splice, store: Path, base: Path) -> Generator[Path]:
    """A spliced recipe's bundle, while the context lasts."""
    from edgekit.pipeline.build import build

    recipe = parse(Recipe, splice.recipe, f"the recipe with the candidate's {splice.suspect.name}")
    with tempfile.TemporaryDirectory(prefix="edgekit-bisect-") as temporary:
        out = Path(temporary, "bundle")
        built = build(recipe, splice.target, Store(store), out, base, done=lambda row: say(tables.line(row)))
        if built.bundle is None:
            raise InputError(f"the recipe with the candidate's {splice.suspect.name} exports no model")
        yield out


def lines(found: Bisected) -> str:
    """What was found, for a terminal: at most 80 columns."""
    return "\n".join(
        row
        for line in _lines(found)
        for row in textwrap.wrap(printable(line), 80, subsequent_indent=" " * (len(line) - len(line.lstrip()) + 2))
    )


def _lines(found: Bisected) -> Iterator[str]:
    unit = "commit" if found.over == "commits" else "change"
    if found.answer == "PASS":
        yield f"Nothing to find: {found.candidate} passes the gate against {found.baseline}."
    elif found.answer != "REGRESSION":
        yield f"Nothing found: whether {found.candidate} is worse than {found.baseline} is {found.answer}."
    elif len(found.suspects) == 1:
        yield f"The first {unit} that broke the gate, of {found.count}:"
    elif found.suspects:
        yield f"One of these {len(found.suspects)} {unit}s broke the gate; those between could not be judged:"
    else:
        yield f"{found.candidate} is worse than {found.baseline}, and no {unit} can be named for it."
    for suspect in found.suspects:
        yield f"  {suspect.name[:12] if found.over == 'commits' else suspect.name}  {suspect.what}"
        yield from (f"    {change}" for change in suspect.changes)
    if found.note:
        yield f"  {found.note}"
    if found.broke:
        yield "It broke"
    for check in found.broke:
        length = f", {check.length} tokens" if check.length is not None else ""
        yield f"  {check.metric} on {check.device}{length}: {check.reason}"
    yield "Tried"
    for trial in found.trials:
        reason = f": {trial.reason}" if trial.reason else ""
        yield f"  {_WORDS.get(trial.answer, 'passed over')}  {trial.what}{reason}"


_WORDS: dict[Answer | None, str] = {"PASS": "good", "REGRESSION": "bad "}
