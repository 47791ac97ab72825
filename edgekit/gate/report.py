"""`edgekit report`: results, verdicts and bundles as one HTML page that needs nothing but itself.

    write(read([Path("verdict.json"), Path("bundles/punctuation-android")]), Path("report.html"))

The page asks no host for anything, holds no script, and every number in its text is one of the records': it stands in
`<data value="0.00777">7.77 ms</data>`, and the records are in the page as JSON. What was read is a stranger's: strings
are escaped and shown on one line, without control characters.
"""

import json
import math
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from edgekit import bundle
from edgekit.errors import InputError, printable
from edgekit.gate import drawing, plots, units
from edgekit.records import Part, Record, parse
from edgekit.results import Benched, Bundled, Check, Entry, Failure, Modelled, RunResult, SideBySide, Verdict

if TYPE_CHECKING:
    from markupsafe import Markup
    from matplotlib.figure import Figure

    from edgekit.gate import trends

_LIMIT = 200_000_000  # bytes of a file; a verdict with the samples of ten devices has a few million
_SAMPLES = 200_000  # in the page: about 4 MB
_RAW = ("samples_s", "cpu_s", "warmup_s")
_KINDS = (
    (Verdict, {"candidate", "baseline", "checks"}, "a verdict (edgekit gate --json)"),
    (Benched, {"results", "failures"}, "results of several devices (edgekit bench --json)"),
    (RunResult, {"workload", "latency"}, "a result of edgekit bench"),
)


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


_Draft = tuple[str, int | None, "Figure | None", str]
"""A figure to be drawn: title, length in tokens, figure, and what it shows in words."""


def read(paths: Sequence[Path]) -> Shown:
    """What the files at `paths` hold: results, verdicts, and bundles (folders or zips); `InputError` for any other."""
    verdicts: list[Verdict] = []
    results: list[RunResult] = []
    bundles: list[Bundled] = []
    failures: list[Failure] = []
    for path in paths:
        if path.is_dir() or (path.is_file() and zipfile.is_zipfile(path)):
            with bundle.opened(path) as (_, manifest):
                bundles.append(bundled(printable(str(path)), manifest))
            continue
        found = _record(path)
        if isinstance(found, Verdict):
            verdicts.append(found)
        elif isinstance(found, Benched):
            results += found.results
            failures += found.failures
        else:
            results.append(found)
    judged = [result for one in verdicts for two in one.measured for result in (two.baseline, two.candidate)]
    fresh = [result for n, result in enumerate(results) if result not in judged and result not in results[:n]]
    sources = tuple(printable(str(path)) for path in paths)
    return Shown(
        verdicts=tuple(verdicts), results=tuple(fresh), bundles=tuple(bundles), failures=tuple(failures), history=(),
        sources=sources,
    )  # fmt: skip


def bundled(source: str, manifest: bundle.Manifest) -> Bundled:
    """A bundle as a verdict and a report name it."""
    sizes = {file.path: file.bytes for file in manifest.files}
    return Bundled(
        name=manifest.name, digest=manifest.digest, source=source, recipe=manifest.recipe, stages=manifest.stages,
        models=tuple(Modelled(path=m.path, bytes=sizes[m.path], parts=m.parts) for m in manifest.models),
    )  # fmt: skip


def write(shown: Shown, out: Path) -> None:
    """Write the page to `out`: all of it, or, with an `InputError`, nothing."""
    text = page(shown)
    unfinished = out.with_name(out.name + ".part")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        unfinished.write_text(text, encoding="utf-8")
        unfinished.replace(out)
    except OSError as error:
        raise InputError(f"--out: {out}: the report cannot be written: {error.strerror}; name another file") from None
    finally:
        if unfinished.is_file():
            unfinished.unlink()


def page(shown: Shown) -> str:
    """The page as HTML. Equal records give equal text."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        finalize=lambda value: printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value,
    )  # fmt: skip
    environment.filters.update(units.FILTERS)
    template = environment.from_string((Path(__file__).parent / "page.html").read_text(encoding="utf-8"))
    groups, bundles = tuple(_groups(shown)), tuple(_bundles(shown))
    tradeoffs, series = tuple(_tradeoffs(groups, bundles)), _trends(shown, groups)
    data, whole = _embedded(shown)
    with drawing.style():
        drafts = {
            "pipeline": (
                (f"{one.name} {role}".strip(), None, plots.stages(one.stages), "size and score of each stage")
                for role, one in bundles
            ),
            "latency": _latency(groups),
            "memory": _memory(groups),
            "energy": [("", None, plots.energy(_energy(groups)), "energy of an inference with its intervals")],
            "parts": _parts(shown, bundles),
            "tradeoff": (
                (t.title, t.length, plots.tradeoff(t.points, t.metric), "score against latency, with the Pareto front")
                for t in tradeoffs
            ),
            "trends": _trend(shown, series),
            "conditions": _conditions(groups),
        }
        drawn = {section: _drawn(section, some) for section, some in drafts.items()}
    return template.render(
        shown=shown, groups=groups, bundles=bundles, plots=drawn, tradeoffs=tradeoffs, trends=series,
        front=plots.front, data=data, whole=whole,
    )  # fmt: skip


def _record(path: Path) -> Verdict | Benched | RunResult:
    """The record in a JSON file that edgekit wrote."""
    wanted = f"give {', '.join(what for _, _, what in _KINDS)}, or a bundle"
    if not path.is_file():
        raise InputError(f"{path}: there is no such file; {wanted}")
    try:
        if path.stat().st_size > _LIMIT:
            raise InputError(f"{path}: has more than {_LIMIT // 10**6} MB, too many for a result; {wanted}")
        data = json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: is no JSON that edgekit wrote: {error}; {wanted}") from None
    for kind, keys, what in _KINDS:
        if isinstance(data, dict) and keys <= data.keys():
            try:
                return parse(kind, data, path)
            except InputError as error:
                lines = [line if len(line) <= 300 else f"{line[:300]}…" for line in str(error).splitlines()]
                raise InputError("\n".join([f"{path}: is not {what}:", *map(printable, lines[:3])])) from None
    raise InputError(f"{path}: is nothing that a report can show; {wanted}")


def _embedded(shown: Shown) -> tuple["Markup", bool]:
    """The records as JSON that can stand in a script element, and whether the raw samples are in it."""
    from markupsafe import Markup

    data = shown.model_dump(mode="json")
    whole = _samples(data) <= _SAMPLES
    text = json.dumps({"raw_samples": whole, **_clean(data, whole)}, separators=(",", ":"), allow_nan=False)
    for sign in "<>&":  # no string can end the element, or open a comment in it
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return Markup(text), whole


def _samples(data: Any) -> int:
    """How many raw samples a record's JSON holds."""
    if isinstance(data, dict):
        return sum(
            len(value) if key in _RAW and isinstance(value, list) else _samples(value) for key, value in data.items()
        )
    return sum(_samples(one) for one in data) if isinstance(data, list) else 0


def _clean(data: Any, whole: bool) -> Any:
    """A record's JSON without what JSON cannot say (infinity), and unless `whole` without raw samples."""
    if isinstance(data, dict):
        return {
            key: [] if key in _RAW and isinstance(value, list) and not whole else _clean(value, whole)
            for key, value in data.items()
        }
    if isinstance(data, list):
        return [_clean(value, whole) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data


def _groups(shown: Shown) -> Iterator[Group]:
    """What was measured together, verdicts first."""
    for verdict in shown.verdicts:
        for pair in verdict.measured:
            a, b = pair.baseline, pair.candidate
            title = (
                f"{b.device}, {b.workload.format}" if len(shown.verdicts) < 2 else f"{b.device}, {b.bundle} {b.model}"
            )
            checks = tuple(check for check in verdict.checks if check.device == b.device)
            yield Group(title, (Side("baseline", a), Side("candidate", b)), pair, checks)
    for one in shown.results:
        yield Group(f"{one.device}, {one.bundle} {one.model}", (Side("", one),), None, ())


def _bundles(shown: Shown) -> Iterator[tuple[str, Bundled]]:
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
                    figure = plots.pairs(group.pair.blocks, check)
                    yield f"{group.title}: pairs", check.length, figure, "change of each pair, trimmed mean and floor"
        for side in group.sides:
            if side.result.sustained:
                figure = plots.sustained(side.result.sustained.p50_s_by_minute)
                yield f"{group.title} {side.role}: without a pause", None, figure, "median of each minute of work"


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


def _energy(groups: Sequence[Group]) -> list[tuple[str, Any]]:
    sides = [(group, side) for group in groups for side in group.sides]
    return [(f"{side.result.device} {side.role}".strip(), e) for _, side in sides if (e := side.result.energy)]


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


class Tradeoff(NamedTuple):
    """Variants that may be compared: of one device and length, or of one build host."""

    title: str
    length: int | None
    metric: str
    points: list[plots.Point]


def _tradeoffs(groups: Sequence[Group], bundles: Sequence[tuple[str, Bundled]]) -> Iterator[Tradeoff]:
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


def _trends(shown: Shown, groups: Sequence[Group]) -> "tuple[trends.Series, ...]":
    """The trends of the page's devices, or of all where the page has none."""
    if not shown.history:
        return ()
    from edgekit.gate import trends

    here = {group.sides[0].result.device for group in groups}
    return tuple(one for one in trends.series(shown.history) if one.device in here or not here)


def _trend(shown: Shown, series: "Sequence[trends.Series]") -> Iterator[_Draft]:
    for one in series:
        key = (one.device, one.metric, one.length)
        said = {
            (entry.at, entry.digest): check.answer
            for entry in shown.history
            for check in entry.checks
            if (check.device, check.metric, check.length) == key and entry.format == one.format
        }
        answers = [said.get(which) for which in zip(one.at, one.digests, strict=True)]
        accepted = [entry.at for entry in shown.history if entry.event == "accept" and entry.bundle == one.bundle]
        places = [sum(at <= when for at in one.at) for when in accepted]
        figure = plots.trend(one.values, answers, one.steps, places, one.metric)
        title = f"{one.bundle}, {one.device}, {one.format}: {units.NAMES[one.metric]}"
        yield title, one.length, figure, "figures over the history, with steps"


def _conditions(groups: Sequence[Group]) -> Iterator[_Draft]:
    for group in groups:
        told: list[Any] = []
        for side in group.sides:
            if side.result.readings not in told:  # of a pair both sides may have the same
                told.append(side.result.readings)
                title = f"{group.title} {side.role}".strip()
                yield title, None, plots.conditions(side.result.readings), "temperatures, clocks, load and battery"
