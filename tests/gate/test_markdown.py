"""The comment of a pull request, rendered by a CommonMark parser with tables and read as a browser would."""

import re
from html.parser import HTMLParser

import pytest
from markdown_it import MarkdownIt
from verdicts import HOSTILE, check, hostile, mixed, verdict

from edgekit.errors import printable
from edgekit.gate.markdown import MARKER, page
from edgekit.results import Failure, Interval


class Read(HTMLParser):
    """Tags in order, table rows as cells of text, and all text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[str] = []
        self.rows: list[list[str]] = []
        self.comments: list[str] = []
        self.closed: list[str] = []
        self.text = ""
        renderer = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
        self.feed(renderer.render(text))
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [name for name, _ in attrs]
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.rows and self.rows[-1] and "table" not in self.closed:
            self.rows[-1][-1] += data.strip("\n")

    def handle_endtag(self, tag: str) -> None:
        self.closed.append(tag)

    def handle_comment(self, data: str) -> None:
        self.comments.append(data)


def test_a_comment_in_figures() -> None:
    text = page(mixed())
    assert text.startswith(f"{MARKER}\n## REGRESSION: ")
    read = Read(text)
    assert read.comments == [" edgekit-gate "]
    assert read.rows[1:] == [
        ["pixel-8", "latency_s 32", "7.12 ms", "7.15 ms", "+0.4 %", "+0.1 to +0.7 %", "3.0 %", "PASS"],
        ["pixel-8", "latency_s 128", "7.12 ms", "8.12 ms", "+14.0 %", "+11.2 to +17.0 %", "3.0 %", "REGRESSION"],
        ["pixel-8", "peak_rss_bytes", "27.10 MB", "27.15 MB", "+0.4 %", "+0.1 to +0.7 %", "3.0 %", "INCONCLUSIVE"],
        ["pixel-8", "budget latency_s 128", "-", "4.10 ms", "-", "-", "5.00 ms", "PASS"],
        ["pixel-8", "budget energy_j", "-", "-", "-", "-", "100 mJ", "REGRESSION"],
    ]
    for words in (
        "REGRESSION pixel-8, latency_s 128: slower by 14.0 %",
        "INCONCLUSIVE pixel-8, peak_rss_bytes: too uncertain to tell",
        "REGRESSION pixel-8, budget energy_j: not measured",
        "FAILED my-pi: ssh: refused",
        "left out: score: --no-score",
        "pixel-8, candidate: throttled: it was",
        "hottest zone 31 to 41.5 °C; clocks 1.8 to 2.85 GHz; load 2 to 55 %; battery 80 %; governor schedutil; "
        "charging: no",
        "2 comparisons: each at 99.5 %",
        f"digest {'b' * 64}",
        f"digest {'a' * 64}",
    ):
        assert words in read.text, words
    assert "within the floor" not in read.text
    assert read.tags.count("details") == read.tags.count("summary") == 3


def test_the_heading_says_the_intervals_level() -> None:
    levels = [check(interval=Interval(low=0.001, high=0.007, level=level)) for level in (0.99, 0.99, 0.95)]
    assert "| 99 % interval |" in page(verdict(*levels[:2]))
    assert "| interval |" in page(verdict(*levels))


def test_hostile_names_are_text() -> None:
    text = page(hostile())
    read = Read(text)
    plain = Read(page(mixed()))
    assert set(read.tags) <= set(plain.tags)
    assert not {"img", "a", "script", "em", "s", "h1"} & set(read.tags)
    assert set(read.attributes) <= {"style"}  # of the cells' alignment
    assert read.comments == [" edgekit-gate "]
    assert [len(row) for row in read.rows] == [8, 8, 8]
    assert read.tags.count("details") == 3
    shown = printable(HOSTILE)
    assert read.rows[1][0].replace("\u200b", "") == shown
    assert read.text.replace("\u200b", "").count(shown) >= 10


def test_nobody_is_pinged_and_nothing_is_linked() -> None:
    """Both sites look for these in the text of what was rendered."""
    text = Read(page(hostile())).text
    assert not re.search(r"@\w|#\d|!\d|~\d|\$\w|GH-\d|https?://|www\.\w|:[a-z]\w*:", text)
    assert "@\u200bteam" in text


@pytest.mark.parametrize(
    "name", ["macro_f1", "git:main", "adb:8A1X0", "ssh:pi at 10.0.0.1:22", "5.0 % of 3", "07:09:45"]
)
def test_usual_names_stand_as_they_are(name: str) -> None:
    assert f"| {name} |" in page(verdict(check(device=name)))


def test_a_long_verdict_fits_a_comment() -> None:
    checks = [check(device=f"device-{n}", answer="INCONCLUSIVE", reason="r" * 400) for n in range(500)]
    checks[444] = check(device="slow", answer="REGRESSION", reason="slower")
    text = page(verdict(*checks, answer="REGRESSION"))
    assert len(text) <= 65_536
    assert "**REGRESSION** slow, latency_s 128: slower" in text
    assert "400 more checks are in the report." in text
    failures = tuple(Failure(device=f"{n}", message=HOSTILE * 9, exit_code=4) for n in range(500))
    endless = page(verdict(answer="INFRA_ERROR", failures=failures))
    assert len(endless) <= 65_536
    assert endless.startswith(f"{MARKER}\n## INFRA_ERROR: ")
    assert "see the report" in endless


def test_a_verdict_of_nothing_says_so() -> None:
    text = page(verdict(answer="INFRA_ERROR", measured=(), correction=""))
    assert "Nothing was judged." in text
    assert not Read(text).rows
