"""`edgekit report`: results, verdicts and bundles as one HTML page that needs nothing but itself.

    write(read([Path("verdict.json"), Path("bundles/punctuation-android")]), Path("report.html"))

The page asks no host for anything, holds no script, and every number in its text is one of the records': it stands in
`<data value="0.00777">7.77 ms</data>`, and the records are in the page as JSON. What was read is a stranger's: strings
are escaped and shown on one line, without control characters.
"""

import json
import math
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit import bundle
from edgekit.comparison import Compared
from edgekit.errors import InputError, printable
from edgekit.gate import history, junit, markdown, plots, sections, units
from edgekit.gate.sections import Shown
from edgekit.records import parse
from edgekit.results import Benched, Bundled, Failure, Modelled, RunResult, Verdict

if TYPE_CHECKING:
    from markupsafe import Markup

_LIMIT = 200_000_000  # bytes of a file; a verdict with the samples of ten devices has a few million
_SAMPLES = 200_000  # in the page: about 4 MB
_RAW = ("samples_s", "cpu_s", "warmup_s")
_KINDS = (
    (Verdict, {"candidate", "baseline", "checks"}, "a verdict (edgekit gate --json)"),
    (Benched, {"results", "failures"}, "results of several devices (edgekit bench --json)"),
    (RunResult, {"workload", "latency"}, "a result of edgekit bench"),
    (Compared, {"methods", "seeds"}, "a comparison (edgekit compare)"),
)


def read(paths: Sequence[Path], past: str | None = None) -> Shown:
    """What the files at `paths` hold: results, verdicts, comparisons and bundles (folders or zips), with the history at
    `past`.

    Raises `InputError` for any other file.
    """
    verdicts: list[Verdict] = []
    results: list[RunResult] = []
    bundles: list[Bundled] = []
    failures: list[Failure] = []
    comparisons: list[Compared] = []
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
        elif isinstance(found, Compared):
            comparisons.append(found)
        else:
            results.append(found)
    judged = [result for one in verdicts for two in one.measured for result in (two.baseline, two.candidate)]
    fresh = [result for n, result in enumerate(results) if result not in judged and result not in results[:n]]
    sources = tuple(printable(str(path)) for path in paths)
    return Shown(
        verdicts=tuple(verdicts), results=tuple(fresh), bundles=tuple(bundles), failures=tuple(failures),
        comparisons=tuple(comparisons), history=history.read(past) if past else (), sources=sources,
    )  # fmt: skip


def bundled(source: str, manifest: bundle.Manifest) -> Bundled:
    """A bundle as a verdict and a report name it."""
    sizes = {file.path: file.bytes for file in manifest.files}
    return Bundled(
        name=manifest.name, digest=manifest.digest, source=source, recipe=manifest.recipe, stages=manifest.stages,
        models=tuple(Modelled(path=m.path, bytes=sizes[m.path], parts=m.parts) for m in manifest.models),
    )  # fmt: skip


def write(shown: Shown, outs: Sequence[Path]) -> None:
    """Write `shown` to each of `outs`, by its ending: `.html` a page, `.md` a comment, `.xml` JUnit; each whole or not
    at all.

    Raises `InputError` for another ending and where there is no verdict to comment on, before anything is written, and
    for a file that cannot be written.
    """
    for out, text in [(out, _text(shown, out)) for out in outs]:
        _place(text, out)


def _place(text: str, out: Path) -> None:
    unfinished = out.with_name(out.name + ".part")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        unfinished.write_text(text, encoding="utf-8")
        unfinished.replace(out)
    except OSError as error:
        unfinished.unlink(missing_ok=True)
        raise InputError(f"--out: {out}: the report cannot be written: {error.strerror}; name another file") from None


def _text(shown: Shown, out: Path) -> str:
    """What is to be in `out`."""
    verdicts = shown.verdicts
    if out.suffix in (".html", ".htm"):
        return page(shown)
    if out.suffix not in (".md", ".xml"):
        raise InputError(f"--out: {out}: must end in .html (a page), .md (a comment) or .xml (JUnit)")
    if not verdicts:
        raise InputError(f"--out: {out}: is made of a verdict, and there is none; add what edgekit gate --json wrote")
    if out.suffix == ".md":
        return "\n".join(map(markdown.page, verdicts))
    first, *others = verdicts
    if others:
        raise InputError(f"--out: {out}: JUnit XML is made of one verdict, and here are {len(verdicts)}; name one")
    return junit.document(first)


def page(shown: Shown) -> str:
    """The page as HTML. Equal records give equal text."""
    try:
        import matplotlib  # noqa: F401  # pyright: ignore[reportUnusedImport]  (the figures need it)
        from jinja2 import Environment, StrictUndefined
        from markupsafe import Markup
    except ModuleNotFoundError as error:
        raise InputError(f"a report needs {error.name}: pip install 'edgekit[gate]'") from None

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
        finalize=lambda value: printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value,
    )  # fmt: skip
    environment.filters.update(units.FILTERS)
    template = environment.from_string((Path(__file__).parent / "page.html").read_text(encoding="utf-8"))
    groups, bundles = tuple(sections.groups(shown)), tuple(sections.bundles(shown))
    tradeoffs, series = tuple(sections.tradeoffs(groups, bundles)), sections.series(shown, groups)
    figures = sections.figures(shown, groups, bundles, tradeoffs, series)
    data, whole = _embedded(shown)
    return template.render(
        shown=shown, groups=groups, bundles=bundles, plots=figures, tradeoffs=tradeoffs, trends=series,
        front=plots.front, data=data, whole=whole,
    )  # fmt: skip


def _record(path: Path) -> Verdict | Benched | RunResult | Compared:
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
