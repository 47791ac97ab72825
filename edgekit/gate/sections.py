"""What stands beside each other on a report, and the figures of each of its sections."""

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from edgekit.comparison import Compared
from edgekit.errors import printable
from edgekit.gate import drawing, plots, race, units
from edgekit.records import Part, Record
from edgekit.results import Answer, Block, Bundled, Check, Entry, Failure, RunResult, SideBySide, Verdict

if TYPE_CHECKING:
    from markupsafe import Markup
    from matplotlib.figure import Figure

    from edgekit.gate import trends


class Shown(Record):
    """What a page shows."""

    verdicts: tuple[Verdict, ...] = ()
    results: tuple[RunResult, ...] = ()
    """Benches that are no part of a verdict."""
    bundles: tuple[Bundled, ...] = ()
    """Bundles beside those that the verdicts name."""
    failures: tuple[Failure, ...] = ()
    history: tuple[Entry, ...] = ()
    """Oldest first."""
    comparisons: tuple[Compared, ...] = ()
    """Of ways to train a student."""
    sources: tuple[str, ...] = ()
    """The files that were read, as the user named them."""


class Side(NamedTuple):
    """One of the results that stand beside each other. `role` is empty for a result that is compared with nothing."""

    role: str
    result: RunResult


class Group(NamedTuple):
    """What was measured on one device, together: a result, or a baseline's and a candidate's."""

    title: str
    sides: tuple[Side, ...]
    pair: SideBySide | None
    checks: tuple[Check, ...]


class Plot(NamedTuple):
    """A figure with the line above it."""

    title: "Markup"
    svg: "Markup"


class Tradeoff(NamedTuple):
    """Variants that may be compared: of one device and length, or of one build host."""

    title: str
    length: int | None
    metric: str
    points: list[plots.Point]


_BADNESS: tuple[Answer, ...] = ("PASS", "INCONCLUSIVE", "INFRA_ERROR", "REGRESSION")
_Draft = tuple[str, int | None, "Figure | None", str]
"""A figure to be drawn: title, length in tokens, figure, and what it shows in words."""


def groups(shown: Shown) -> Iterator[Group]:
    """What was measured together, verdicts first."""
    results = [pair.candidate for one in shown.verdicts for pair in one.measured] + list(shown.results)
    short = [f"{one.device}, {one.workload.format}" for one in results]
    long = [f"{one.device}, {one.bundle} {one.model}" for one in results]
    titles = iter(a if short.count(a) == 1 else b for a, b in zip(short, long, strict=True))
    for verdict in shown.verdicts:
        for pair in verdict.measured:
            sides = (Side("baseline", pair.baseline), Side("candidate", pair.candidate))
            checks = tuple(check for check in verdict.checks if check.device == pair.candidate.device)
            yield Group(next(titles), sides, pair, checks)
    for one in shown.results:
        yield Group(next(titles), (Side("", one),), None, ())


def bundles(shown: Shown) -> Iterator[tuple[str, Bundled]]:
    """Each bundle once, with the parts it plays."""
    found: dict[str, tuple[list[str], Bundled]] = {}
    for verdict in shown.verdicts:
        for role, one in (("candidate", verdict.candidate), ("baseline", verdict.baseline)):
            roles = found.setdefault(one.digest, ([], one))[0]
            if role not in roles:
                roles.append(role)
    for one in shown.bundles:
        found.setdefault(one.digest, ([], one))
    return ((" and ".join(roles), one) for roles, one in found.values())


def tradeoffs(groups: Sequence[Group], bundles: Sequence[tuple[str, Bundled]]) -> Iterator[Tradeoff]:
    """The variants with a score and a latency, each device's and length's together, and those of each build's host."""
    found: dict[tuple[str, int | None, str], list[plots.Point]] = {}
    for group in groups:
        for side in group.sides:
            result = side.result
            score = (result.score.metric, result.score.value) if result.score else None
            if group.pair and group.pair.score and side.role:
                paired = group.pair.score
                score = (paired.metric, paired.baseline if side.role == "baseline" else paired.candidate)
            if score and result.latency:
                last = result.latency[-1]
                point = plots.Point(side.role or f"{result.bundle} {result.workload.format}", last.p50_s, score[1])
                found.setdefault((result.device, last.length, score[0]), []).append(point)
    for role, one in bundles:
        for stage in one.stages:
            facts = stage.facts
            if facts.score and facts.latency_s is not None:
                title = f"{one.name}{f', {role}' if role else ''}, on the host that built it"
                point = plots.Point(stage.name, facts.latency_s, facts.score.value)
                found.setdefault((title, None, facts.score.metric), []).append(point)
    for (title, length, metric), points in found.items():
        if len(points) > 1:
            yield Tradeoff(title, length, metric, points)


def series(shown: Shown, groups: Sequence[Group]) -> "tuple[trends.Series, ...]":
    """The trends of the page's devices, or of all where the page has none."""
    if not shown.history:
        return ()
    from edgekit.gate import trends

    here = {group.sides[0].result.device for group in groups}
    return tuple(one for one in trends.series(shown.history) if one.device in here or not here)


def figures(
    shown: Shown,
    groups: Sequence[Group],
    bundles: Sequence[tuple[str, Bundled]],
    tradeoffs: Sequence[Tradeoff],
    series: "Sequence[trends.Series]",
) -> dict[str, list[Plot]]:
    """The figures by section."""
    drafts: dict[str, Iterable[_Draft]] = {
        "methods": (
            (one.recipe, None, race.figure(one), "each method's score with its seeds, and its size")
            for one in shown.comparisons
        ),
        "pipeline": _pipeline(bundles),
        "latency": _latency(groups),
        "memory": _memory(groups),
        "energy": _energy(groups),
        "parts": _parts(shown, bundles),
        "tradeoff": (
            (t.title, t.length, plots.tradeoff(t.points, t.metric), "score against latency, with the Pareto front")
            for t in tradeoffs
        ),
        "trends": _trend(shown, series),
        "conditions": _conditions(groups),
    }
    with drawing.style():
        return {section: _drawn(section, some) for section, some in drafts.items()}


def _drawn(section: str, drafts: Iterable[_Draft]) -> list[Plot]:
    """The figures of a section as SVG."""
    from markupsafe import Markup

    found: list[Plot] = []
    for n, (title, length, figure, says) in enumerate(drafts):
        if figure:
            shown = Markup("{}{}").format(
                printable(title), Markup(", {}").format(units.tokens(length)) if length else ""
            )
            label = f"{title}: {says}" if title else says
            found.append(Plot(shown, Markup(drawing.svg(figure, f"{section}{n}", label))))
    return found


def _pipeline(bundles: Sequence[tuple[str, Bundled]]) -> Iterator[_Draft]:
    for role, one in bundles:
        yield f"{one.name} {role}".strip(), None, plots.stages(one.stages), "size and score of each stage"


def _latency(groups: Sequence[Group]) -> Iterator[_Draft]:
    says = "share of calls that took no longer than a time"
    for group in groups:
        if group.pair is None:
            for side in group.sides:
                curves = [plots.Curve(_length(row.length), row.samples_s) for row in side.result.latency]
                yield group.title, None, plots.distribution(curves), says
        else:
            rows = [{row.length: row for row in side.result.latency} for side in group.sides]
            for length in dict.fromkeys([*rows[0], *rows[1]]):
                curves = [
                    plots.Curve(side.role, row.samples_s, plain=side.role == "baseline")
                    for side, by_length in zip(group.sides, rows, strict=True)
                    if (row := by_length.get(length))
                ]
                yield group.title, length, plots.distribution(curves), f"{says}: baseline dashed, candidate solid"
            for check in group.checks:
                if check.metric == "latency_s" and check.rule == "change":
                    figure = plots.pairs(_ratios(group.pair.blocks, check.length), check)
                    yield f"{group.title}: pairs", check.length, figure, "change of each pair, trimmed mean and floor"
        for side in group.sides:
            if side.result.sustained:
                figure = plots.sustained(side.result.sustained.p50_s_by_minute)
                yield f"{group.title} {side.role}: without a pause", None, figure, "median of each minute of work"


def _ratios(blocks: Sequence[Block], length: int | None) -> list[float]:
    """The candidate's time over the baseline's of each pair at `length`: neighbours of different sides."""
    found: list[float] = []
    before: Block | None = None
    for block in blocks:
        if block.length != length or not block.p50_s > 0:
            continue
        if before is None or before.side == block.side:
            before = block
            continue
        a, b = (before, block) if before.side == "baseline" else (block, before)
        found.append(b.p50_s / a.p50_s)
        before = None
    return found


def _length(length: int | None) -> str:
    return "images" if length is None else f"{length} tokens"


def _memory(groups: Sequence[Group]) -> Iterator[_Draft]:
    for group in groups:
        budgets = [b.budget.limit for s in group.sides for b in s.result.budgets if b.budget.metric == "peak_rss_bytes"]
        budgets += [c.limit for c in group.checks if c.metric == "peak_rss_bytes" and c.limit is not None]
        budget = budgets[-1] if budgets else None
        peaks = [float(side.result.memory.peak_rss_bytes) for side in group.sides if side.result.memory]
        for side in group.sides:
            if memory := side.result.memory:
                most = max([*peaks, *((budget,) if budget is not None and drawing.real(budget) else ())])
                title = f"{group.title} {side.role}".strip()
                yield title, None, plots.memory(memory, budget, most), "resident memory by phase and kind"


def _energy(groups: Sequence[Group]) -> Iterator[_Draft]:
    sides = [(f"{group.title} {side.role}".strip(), side.result.energy) for group in groups for side in group.sides]
    figure = plots.energy([(name, energy) for name, energy in sides if energy])
    yield "", None, figure, "energy of an inference with its intervals"


def _parts(shown: Shown, bundles: Sequence[tuple[str, Bundled]]) -> Iterator[_Draft]:
    says = "what a model file's bytes are spent on"
    done: set[str] = set()
    for verdict in shown.verdicts:
        new, old = verdict.candidate, verdict.baseline
        before: dict[str, tuple[Part, ...]] = {}
        if new.digest != old.digest:
            before = {model.path: model.parts for model in old.models}
        for model in new.models:
            figure = plots.parts(model.parts, before.get(model.path, ()))
            yield f"{new.name} {model.path}", None, figure, f"{says}, baseline hollow, candidate solid"
        done |= {new.digest, old.digest}
    for _, one in bundles:
        if one.digest not in done:
            for model in one.models:
                yield f"{one.name} {model.path}", None, plots.parts(model.parts, ()), says


def _trend(shown: Shown, series: "Sequence[trends.Series]") -> Iterator[_Draft]:
    for one in series:
        key = (one.device, one.metric, one.length)
        said: dict[tuple[str, str], Answer] = {}
        for entry in shown.history:
            which = (entry.at, entry.digest)
            for check in entry.checks if (entry.bundle, entry.format) == (one.bundle, one.format) else ():
                if (check.device, check.metric, check.length) == key:  # of a change and a budget the worse counts
                    before = said.get(which, check.answer)
                    said[which] = max((before, check.answer), key=_BADNESS.index)
        answers = [said.get(which) for which in zip(one.at, one.digests, strict=True)]
        accepted = [entry.at for entry in shown.history if entry.event == "accept" and entry.bundle == one.bundle]
        places = [sum(at <= when for at in one.at) for when in accepted]
        figure = plots.trend(one.values, answers, one.steps, places, one.metric)
        title = f"{one.bundle}, {one.device}, {one.format}: {units.NAMES[one.metric]}"
        yield title, one.length, figure, "figures over the history, with steps"


def _conditions(groups: Sequence[Group]) -> Iterator[_Draft]:
    says = "temperatures, clocks, load and battery"
    for group in groups:
        first, *others = group.sides
        alike = all(side.result.readings == first.result.readings for side in others)  # as of blocks in turns
        for side in (first,) if alike else group.sides:
            title = group.title if alike else f"{group.title} {side.role}"
            yield title, None, plots.conditions(side.result.readings), says
