"""The page: what stands on it is in the records, whatever the records hold, and a real browser shows all of it."""

import json
import math
import re
import shutil
import time
import zipfile
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pages
import pytest

from edgekit.comparison import Compared, Reason
from edgekit.errors import InputError, printable
from edgekit.gate import history
from edgekit.gate.report import Shown, page, read, write
from edgekit.records import Budget
from edgekit.results import Benched, BudgetCheck, Energy, Failure, Interval, Sustained

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
LABELS = {"p90", "p99"}
"""Words with digits that the template itself says."""
SECTIONS = [
    "verdict",
    "methods",
    "pipeline",
    "latency",
    "memory",
    "energy",
    "size",
    "tradeoff",
    "trends",
    "conditions",
    "how",
]


class Page(HTMLParser):
    """A page's parts: texts outside and values inside <data>, ids, elements with their attributes, the JSON."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: list[str] = []
        self.data: list[tuple[str, str]] = []
        self.ids: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.json = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.elements.append((tag, found))
        if "id" in found:
            self.ids.append(found["id"] or "")
        if tag == "data":
            self.data.append((found["value"] or "", ""))
        if tag not in ("meta", "link", "br", "use", "path", "rect", "circle", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in self.open:
            while self.open.pop() != tag:
                pass

    def handle_data(self, data: str) -> None:
        if "script" in self.open:
            self.json += data
        elif "style" in self.open:
            return
        elif "data" in self.open:
            self.data[-1] = (self.data[-1][0], self.data[-1][1] + data)
        else:
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    @property
    def sections(self) -> list[str]:
        return [attrs["id"] or "" for tag, attrs in self.elements if tag == "section"]


def leaves(value: Any) -> Iterator[Any]:
    """Every number and string of a JSON value, and every key."""
    if isinstance(value, dict):
        for key, one in value.items():
            yield key
            yield from leaves(one)
    elif isinstance(value, list):
        for one in value:
            yield from leaves(one)
    else:
        yield value


def check_numbers(text: str) -> Page:
    """Every number in the page's text is one of its JSON, exactly."""
    found = Page(text)
    values = list(leaves(json.loads(found.json)))
    numbers = {value for value in values if isinstance(value, int | float) and not isinstance(value, bool)}
    strings = "\n".join({printable(value) for value in values if isinstance(value, str)})
    assert not [(value, shown) for value, shown in found.data if json.loads(value) not in numbers]
    assert all(re.search(r"\d", shown) for _, shown in found.data)
    words = {word.strip("(),.;:·") for text in found.texts for word in text.split()}
    assert not [word for word in words - LABELS if re.search(r"\d", word) and word not in strings]
    return found


@pytest.fixture(scope="module")
def full() -> str:
    """A page with everything."""
    shown = Shown(
        verdicts=(pages.verdict(),), history=pages.history(), comparisons=(pages.comparison(),),
        sources=("verdict.json", "compare.json"),
    )  # fmt: skip
    return page(shown)


def test_every_number_of_a_full_page_is_in_its_json(full: str) -> None:
    found = check_numbers(full)
    assert len(found.data) > 300
    shown = dict(found.data)
    assert shown[json.dumps(128 * 60.7e-6)] == "7.77\u00a0ms"
    assert shown["0.052"] == "+5.2\u00a0%"
    assert shown["-0.0017"] == "−0.0017"
    assert shown["26061824.0"] == "26.1\u00a0MB"
    assert shown[json.dumps(pages.comparison().methods[0].deviation)] == "0.0037"
    assert shown["132.5"] == "2\u00a0min\u00a012\u00a0s"


def test_sections_stand_in_order_verdict_first(full: str) -> None:
    found = Page(full)
    assert found.sections == SECTIONS
    assert found.text.index("REGRESSION") < found.text.index("Pipeline")
    for said in (
        "energy_j: no meter on rpi-5", "score on rpi-5: --no-score", "(Bonferroni)", "the link was lost",
        "a new level begins at", "refused: static: slower", "relative tolerance",
        "theseus : recipe: step distill: the student must be as wide",
    ):  # fmt: skip
        assert said in found.text


def test_the_page_holds_no_code_and_names_no_host(full: str) -> None:
    found = Page(full)
    assert [attrs["type"] for tag, attrs in found.elements if tag == "script"] == ["application/json"]
    addresses = [
        value
        for _, attrs in found.elements
        for name, value in attrs.items()
        if name in ("src", "href", "xlink:href", "action", "srcset", "data", "poster")
    ]
    assert all(value and value.startswith(("#", "data:,")) for value in addresses)
    assert not [name for _, attrs in found.elements for name in attrs if name.startswith("on")]
    assert "@import" not in full
    assert set(re.findall(r"url\(([^#)])", full)) == set()


def test_ids_are_unique_and_what_refers_to_one_finds_it(full: str) -> None:
    found = Page(full)
    assert len(found.ids) == len(set(found.ids))
    used = set(re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', full))
    assert {name for pair in used for name in pair if name} <= set(found.ids)


def test_every_figure_says_what_it_is(full: str) -> None:
    labels = [attrs.get("aria-label") for tag, attrs in Page(full).elements if tag == "svg"]
    assert len(labels) > 15
    assert all(label and len(label) > 20 for label in labels)


def test_equal_records_give_equal_bytes() -> None:
    shown = Shown(results=(pages.result(lengths=(32,)),), history=pages.history(8))
    assert page(shown) == page(shown)


def test_the_json_is_the_records(full: str) -> None:
    data = json.loads(Page(full).json)
    assert data.pop("raw_samples") is True
    assert Shown.model_validate(data).verdicts == (pages.verdict(),)


@pytest.mark.parametrize(
    "shown",
    [
        Shown(results=(pages.result(lengths=(None,), memory=None, energy=None, score=None, budgets=(), readings=()),)),
        Shown(results=(pages.result(), pages.result(device="rpi-5"), pages.result(model="onnx/x.onnx", score=None))),
        Shown(verdicts=(pages.nothing(),)),
        Shown(verdicts=(pages.verdict("INCONCLUSIVE", ("a",)), pages.verdict("PASS", ("b",)))),
        Shown(bundles=(pages.bundle(parts=False), pages.bundle(digest="ab" * 32).model_copy(update={"stages": ()}))),
        Shown(failures=(Failure(device="board", message="no link", exit_code=4),)),
        Shown(comparisons=(pages.comparison(1), pages.comparison(2, teacher=None, metric=None))),
        Shown(comparisons=(pages.comparison(methods=pages.comparison().methods[3:]),)),
        Shown(history=pages.history(1)),
        Shown(history=pages.history(500)),
        Shown(),
    ],
    ids=[
        "images", "several", "nothing measured", "two verdicts", "bundles", "failure",
        "methods", "no method", "1 gate", "500 gates", "empty",
    ],
)  # fmt: skip
def test_whatever_there_is_every_number_is_in_the_json(shown: Shown) -> None:
    found = check_numbers(page(shown))
    assert found.sections[0] == "verdict" and found.sections[-1] == "how"
    assert "None" not in found.text and "nan" not in found.text.split()


def test_sections_with_nothing_to_say_are_left_out() -> None:
    bare = pages.result(memory=None, energy=None, score=None, readings=(), doubts=(), budgets=())
    assert Page(page(Shown(results=(bare,)))).sections == ["verdict", "latency", "how"]


def test_an_empty_verdict_says_so_and_what_was_left_out() -> None:
    text = Page(page(Shown(verdicts=(pages.nothing(),)))).text
    assert "INFRA ERROR" in text
    assert "Nothing was judged." in text
    assert "energy_j: no meter on rpi-5" in text


def test_budgets_of_a_bench_are_kept_broken_or_not_measured() -> None:
    def with_budget(kept: bool | None, observed: float | None) -> str:
        left = None if observed is None else 2e7 - observed
        one = BudgetCheck(
            budget=Budget(metric="peak_rss_bytes", limit=2e7), observed=observed, kept=kept, headroom=left
        )
        return check_numbers(page(Shown(results=(pages.result(lengths=(), readings=(), budgets=(one,)),)))).text

    assert "BUDGETS KEPT" in with_budget(True, 1e7)
    assert "BUDGET BROKEN" in with_budget(False, 3e7)
    assert "BUDGET NOT MEASURED" in with_budget(None, None)


def test_energy_that_was_not_measured_says_why() -> None:
    refused = pages.result(energy=Energy(state="refused", reason="the phone is charging; unplug it"))
    found = Page(page(Shown(results=(refused,))))
    assert "refused: the phone is charging; unplug it" in found.text
    assert not [1 for tag, attrs in found.elements if tag == "svg" and "energy" in (attrs["aria-label"] or "")]


def hostile_comparison() -> Compared:
    """Every string of it hostile."""
    name, one = pages.HOSTILE, pages.comparison()
    failure = Reason(message=name, exit_code=2)
    methods = tuple(
        method.model_copy(update={"method": name, "title": name, "source": name, "failure": failure})
        for method in one.methods
    )
    return one.model_copy(
        update={"recipe": name, "task": name, "metric": name, "host": name, "began": name, "methods": methods}
    )


def test_hostile_strings_stay_text() -> None:
    name = pages.HOSTILE
    one = pages.verdict(devices=(name,))
    bundle = one.candidate.model_copy(update={"name": name, "source": name, "digest": name})
    shown = Shown(
        verdicts=(one.model_copy(update={"candidate": bundle, "left_out": (name,), "correction": name}),),
        results=(pages.result(name, runtime=name, doubts=(name,), bundle=name, model=name, began=name),),
        bundles=(bundle,), failures=(Failure(device=name, message=name, exit_code=4),), sources=(printable(name),),
        history=pages.history(8, name), comparisons=(hostile_comparison(),),
    )  # fmt: skip
    text = page(shown)
    found = check_numbers(text)
    assert not [tag for tag, _ in found.elements if tag == "img"]
    assert len([tag for tag, _ in found.elements if tag == "script"]) == 1
    assert "onerror" not in {name for _, attrs in found.elements for name in attrs}
    assert json.loads(found.json)["failures"][0]["device"] == name
    assert "49" not in found.texts  # {{ 7 * 7 }}
    assert not set(text) & set("\x00\x1b\u202e")


def test_what_is_no_number_is_said_in_words() -> None:
    row = pages.latency(1, 32, 0.002)
    odd = row.model_copy(
        update={"p50_s": math.nan, "p99_s": math.inf, "samples_s": (math.nan, math.inf, -1.0, 1e300, 0.0),
                "p50_interval": Interval(low=-math.inf, high=math.nan)}
    )  # fmt: skip
    broken = pages.result().model_copy(
        update={"latency": (odd,), "score": pages.score(math.nan), "seconds": 1e300,
                "sustained": Sustained(seconds=0, p50_s_by_minute=(math.nan, 1), last_over_first=0, samples_s=())}
    )  # fmt: skip
    one = pages.verdict(devices=("a",))
    checks = tuple(c.model_copy(update={"change": math.nan, "floor": math.inf, "candidate": 1e300}) for c in one.checks)
    found = check_numbers(page(Shown(verdicts=(one.model_copy(update={"checks": checks}),), results=(broken,))))
    assert found.text.count("no number") > 3


def test_a_big_page_is_quick_and_leaves_out_raw_samples_with_a_word() -> None:
    many = pages.result(lengths=(32, 64, 128), sustained=Sustained(
        seconds=600.0, p50_s_by_minute=(0.0078,) * 10, last_over_first=1.0, samples_s=pages.samples(1, 0.0078, 250_000)
    ))  # fmt: skip
    began = time.monotonic()
    text = page(Shown(results=(many,)))
    assert time.monotonic() - began < 30
    found = check_numbers(text)
    data = json.loads(found.json)
    assert data["raw_samples"] is False
    assert data["results"][0]["sustained"]["samples_s"] == []
    assert data["results"][0]["workload"]["warmup_s"] == 1.0
    assert "the raw samples, of which there are too many for a page" in found.text
    assert len(text) < 2_000_000


def test_reads_what_edgekit_wrote(tmp_path: Path) -> None:
    one, verdict = pages.result(device="board-1"), pages.verdict()
    failure = Failure(device="board", message="no link", exit_code=4)
    benched = Benched(results=(one, pages.result("board-2")), failures=(failure,))
    files = {"verdict.json": verdict, "one.json": one, "benched.json": benched, "compare.json": pages.comparison()}
    for name, record in files.items():
        (tmp_path / name).write_text(record.model_dump_json(indent=1), encoding="utf-8")
    judged = verdict.measured[0].candidate
    (tmp_path / "judged.json").write_text(judged.model_dump_json(), encoding="utf-8")
    shown = read([tmp_path / name for name in (*files, "judged.json")])
    assert shown.verdicts == (verdict,)
    assert shown.results == benched.results  # `one` once, and what the verdict has is not shown twice
    assert shown.failures == (failure,)
    assert shown.comparisons == (pages.comparison(),)
    assert shown.sources == tuple(str(tmp_path / name) for name in (*files, "judged.json"))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is no JSON that edgekit wrote"),
        (b"\x00\xff{", "is no JSON that edgekit wrote"),
        (b"[" * 100_000, "is no JSON that edgekit wrote"),
        (b'{"a": ' + b"9" * 5000 + b"}", "is no JSON that edgekit wrote"),
        (b"[1, 2]", "is nothing that a report can show"),
        (b'{"medians_s": []}', "is nothing that a report can show"),
        (b'{"workload": 1, "latency": []}', "is not a result of edgekit bench"),
        (b'{"candidate": {}, "baseline": {}, "checks": "' + b"x" * 100_000 + b'"}', "is not a verdict"),
        (b'{"methods": [], "seeds": "many"}', "is not a comparison"),
        (b'{"results": [{"device": "\\ud800"}], "failures": []}', "is not results of several devices"),
    ],
    ids=[
        "empty",
        "binary",
        "deep",
        "long number",
        "list",
        "other record",
        "wrong kind",
        "long string",
        "methods",
        "surrogate",
    ],
)
def test_what_edgekit_did_not_write_is_one_error(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "some.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=re.escape(str(path))) as raised:
        read([path])
    assert said in str(raised.value)
    assert len(str(raised.value)) < 2000


def test_what_is_not_there_and_what_is_too_large_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no such file; give a verdict"):
        read([tmp_path / "none.json"])
    large = tmp_path / "large.json"
    with large.open("wb") as file:
        file.truncate(200_000_001)
    with pytest.raises(InputError, match="has more than 200 MB"):
        read([large])
    with pytest.raises(InputError, match="is not a bundle"):
        read([tmp_path])
    with zipfile.ZipFile(tmp_path / "some.zip", "w") as archive:
        archive.writestr("a", "b")
    with pytest.raises(InputError, match="is not a whole bundle"):
        read([tmp_path / "some.zip"])


def test_a_page_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    out = tmp_path / "new" / "report.html"
    write(Shown(results=(pages.result(lengths=(32,), readings=()),)), [out])
    assert out.read_text(encoding="utf-8").endswith("</html>\n")
    assert [path.name for path in out.parent.iterdir()] == ["report.html"]
    (tmp_path / "folder.html").mkdir()
    with pytest.raises(InputError, match=r"--out: .*folder\.html: the report cannot be written"):
        write(Shown(), [tmp_path / "folder.html"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder.html", "new"]


def test_the_history_is_read_with_the_results(tmp_path: Path) -> None:
    where = tmp_path / "gates.jsonl"
    for entry in pages.history(7):
        history.add(str(where), entry)
    (tmp_path / "one.json").write_text(pages.result().model_dump_json(), encoding="utf-8")
    assert read([tmp_path / "one.json"], str(where)).history == pages.history(7)


def test_the_ending_decides_what_is_written(tmp_path: Path) -> None:
    shown = Shown(verdicts=(pages.verdict(),))
    for name in ("a.md", "a.xml"):
        write(shown, [tmp_path / name])
    assert (tmp_path / "a.md").read_text(encoding="utf-8").startswith("<!-- edgekit-gate -->\n## REGRESSION")
    assert (tmp_path / "a.xml").read_text(encoding="utf-8").startswith("<?xml")
    with pytest.raises(InputError, match=r"a\.pdf: must end in \.html"):
        write(shown, [tmp_path / "a.pdf"])
    for name in ("b.md", "b.xml"):
        with pytest.raises(InputError, match="is made of a verdict, and there is none"):
            write(Shown(results=(pages.result(),)), [tmp_path / name])
    with pytest.raises(InputError, match="here are 2"):
        write(Shown(verdicts=(pages.verdict(), pages.nothing())), [tmp_path / "b.xml"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.md", "a.xml"]


@pytest.fixture(scope="module")
def hostile() -> str:
    """A page full of long and hostile names."""
    long = "a" * 300
    one = pages.verdict(devices=(pages.HOSTILE,))
    return page(
        Shown(
            verdicts=(one.model_copy(update={"candidate": pages.bundle(name=long, digest="ab" * 32)}),),
            results=(pages.result(long, bundle=long, doubts=(pages.HOSTILE, long), model=long),),
            failures=(Failure(device=long, message=long, exit_code=4),),
            comparisons=(hostile_comparison(), pages.comparison(recipe=long, metric=long, task=long)),
        )
    )


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A real headless Chromium."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        pytest.skip("no Chromium is installed: apt-get install chromium")
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=program, args=FLAGS, timeout=60_000)
        yield started
        started.close()


@pytest.mark.target
@pytest.mark.parametrize("scripts", [False, True], ids=["without JavaScript", "with JavaScript"])
@pytest.mark.parametrize("kind", ["full", "hostile"])
def test_chromium_shows_it_without_complaint(
    browser: Any, request: pytest.FixtureRequest, tmp_path: Path, kind: str, scripts: bool
) -> None:
    text: str = request.getfixturevalue(kind)
    path = tmp_path / "report.html"
    path.write_text(text, encoding="utf-8")
    context = browser.new_context(java_script_enabled=scripts, viewport={"width": 360, "height": 740})
    context.set_default_timeout(60_000)
    asked: list[str] = []
    said: list[str] = []

    def only_the_file(route: Any) -> None:
        asked.append(route.request.url)
        route.continue_() if route.request.url == path.as_uri() else route.abort()

    try:
        context.route("**/*", only_the_file)
        tab = context.new_page()
        tab.on("console", lambda message: said.append(message.text))
        tab.on("pageerror", lambda error: said.append(str(error)))
        tab.on("dialog", lambda dialog: (said.append(dialog.message), dialog.dismiss()))
        tab.goto(path.as_uri())
        assert tab.locator("body > main > section").count() == len(Page(text).sections)
        if scripts:
            width = "[document.documentElement.scrollWidth, document.body.scrollWidth]"
            assert max(tab.evaluate(width)) <= 360
            wide = "[...document.querySelectorAll('svg')].filter(s => s.getBoundingClientRect().right > 360).length"
            assert tab.evaluate(wide) == 0
            small = "Math.min(...[...document.querySelectorAll('svg')].map(s => s.getBoundingClientRect().height))"
            assert tab.evaluate(small) > 60
            assert json.loads(tab.evaluate("document.getElementById('edgekit-data').textContent"))
            assert tab.evaluate("document.querySelectorAll('data').length") == len(Page(text).data)
        printed = tab.pdf(format="A4")
        assert printed.startswith(b"%PDF") and len(printed) > 20_000
        assert asked == [path.as_uri()]
        assert not said
    finally:
        context.close()
