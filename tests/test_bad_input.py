"""Whatever is wrong with a user's data is one `InputError` (exit code 2) that names file, row and column."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from edgekit.errors import InputError
from edgekit.pipeline import TaskData
from edgekit.recipe import Recipe
from edgekit.records import parse

GOOD = b'{"text": "fine", "label": "yes"}\n{"text": "dull", "label": "no"}\n'
TAGGED = b'{"tokens": ["a", "b"], "tags": ["O", "B-PER"]}\n'
PACKED = gzip.compress(b"".join(b'{"text": "row %d", "label": "yes"}\n' % i for i in range(5000)))


def data(base: Path, task: str = "text_classification", **files: str) -> TaskData:
    content: dict[str, Any] = {
        "name": "bad",
        "task": {"name": task},
        "data": {"name": "files", "train": "train.jsonl", "dev": "dev.jsonl"} | files,
        "step": [{"stage": "teach", "model": "teacher"}],
    }
    return TaskData(parse(Recipe, content, "recipe.toml"), base)


def message(data: TaskData, folder: Path) -> str:
    with pytest.raises(InputError) as caught:
        data.examples("train")
        data.examples("dev")
    assert caught.value.exit_code == 2
    text = str(caught.value)
    assert "\n" not in text
    return text.replace(f"{folder}/", "")


@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        # what can be wrong with a file
        ("dev.csv", None, ['key "data.dev"', "dev.csv does not exist", "there is: train.jsonl"]),
        ("dev.jsonl", b"", ["dev.jsonl: has no rows"]),
        ("dev.csv", b"text,label\n", ["dev.csv: has no rows"]),
        ("dev.xlsx", b"PK", ['ends in ".xlsx"', "use .jsonl, .csv or .tsv"]),
        ("dev.parquet.gz", b"", ['ends in ".parquet.gz"']),
        (
            "dev.jsonl.gz",
            PACKED[: len(PACKED) // 2],
            ["dev.jsonl.gz: cannot be read after line", "is the file complete?"],
        ),
        ("dev.jsonl.gz", GOOD, ["dev.jsonl.gz: cannot be read after line 0", "Not a gzipped file"]),
        ("dev.jsonl.gz", PACKED[:100] + b"\xff" * 200, ["dev.jsonl.gz: cannot be read after line"]),
        ("dev.jsonl", GOOD + b'{"text": "caf\xe9", "label": "yes"}\n', ["dev.jsonl: row 3", "not UTF-8 at byte 13"]),
        ("dev.csv", "text,label\nfine,yes\n".encode("utf-16"), ["dev.csv: row 1", "UTF-8"]),
        ("dev.csv", b"text,label\nfi\0ne,yes\n", ["dev.csv: row 2", "NUL"]),
        ("dev.parquet", b"PAR1 not parquet", ["dev.parquet: cannot be read as Parquet"]),
        # what can be wrong with a row
        ("dev.jsonl", GOOD + b'{"text": "cut o', ["dev.jsonl: row 3", "not valid JSON", "Unterminated string"]),
        ("dev.jsonl", b"\n\n[1, 2]\n", ["dev.jsonl: row 3", "holds a JSON list, not an object"]),
        ("dev.json", b'[\n{"text": "fine", "label": "yes"}\n]', ["dev.json: row 1", "one object a line"]),
        ("dev.jsonl", b"[" * 100_000, ["dev.jsonl: row 1", "not valid JSON"]),
        ("dev.csv", b"text,label\na, b,yes\n", ["dev.csv: row 1 (line 2)", "has 3 fields, the header 2 (text, label)"]),
        ("dev.csv", b'text,label\n"a,yes\nb,no\n', ["dev.csv: line 3", "quotation mark"]),
        ("dev.csv", b'text,label\n"' + b"a" * 200_000, ["dev.csv: line 2", "field larger than field limit"]),
        ("dev.csv", b"text,label,text\na,yes,b\n", ["dev.csv: the header names a column twice: text, label, text"]),
        ("dev.tsv", b"text\tlabel\nfine\n", ["dev.tsv: row 1 (line 2)", "has 1 fields"]),
        # what can be wrong with a cell
        ("dev.csv", b"txt,label\na,yes\n", ['dev.csv: row 1 (line 2): there is no column "text"; did you mean "txt"?']),
        ("dev.csv", b"a;b\nfine;yes\n", ['there is no column "text"; there is: a;b']),
        ("dev.jsonl", b'{"text": "a", "label": "yse"}', ['row 1: column "label": label "yse"', 'did you mean "yes"?']),
        ("dev.jsonl", b'{"text": "a", "label": null}', ['row 1: column "label" is empty (found None)']),
        ("dev.jsonl", b'{"text": "a", "label": NaN}', ['row 1: column "label" is empty (found nan)']),
        ("dev.jsonl", b'{"text": "a", "label": 1.5}', ['row 1: column "label" must hold a label', "1.5 (float)"]),
        ("dev.jsonl", b'{"text": "a", "label": true}', ['row 1: column "label" must hold a label', "True (bool)"]),
        ("dev.jsonl", b'{"text": 7, "label": "yes"}', ['row 1: column "text" must hold a text, found 7 (int)']),
        ("dev.jsonl", b'{"text": " ", "label": "yes"}', ['row 1: column "text" holds only white space']),
        ("dev.jsonl", b'{"text": "\\ud800", "label": "yes"}', ['row 1: column "text" is not valid Unicode']),
        ("dev.csv", b"text,label\na,\n", ['dev.csv: row 1 (line 2): column "label" is empty']),
    ],
)
def test_bad_text_data(tmp_path: Path, name: str, content: bytes | None, parts: list[str]):
    (tmp_path / "train.jsonl").write_bytes(GOOD)
    if content is not None:
        (tmp_path / name).write_bytes(content)
    found = message(data(tmp_path, dev=name), tmp_path)
    assert all(part in found for part in parts), found


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ({"tokens": ["a", "b"], "tags": ["O"]}, ['column "tokens" holds 2 words and column "tags" 1 tags']),
        ({"tokens": [], "tags": []}, ['column "tokens" is empty']),
        ({"tokens": ["a", ""], "tags": ["O", "O"]}, ['column "tokens" must hold a text that is not blank at place 2']),
        ({"tokens": ["a", 3], "tags": ["O", "O"]}, ["place 2", "found 3 (int)"]),
        ({"tokens": {"a": 1}, "tags": ["O"]}, ['column "tokens" must hold a list of texts']),
        ({"tokens": ["a"], "tags": ["B-PRE"]}, ['column "tags": label "B-PRE"', 'did you mean "B-PER"?']),
        ({"words": ["a"], "tags": ["O"]}, ['there is no column "tokens"']),
    ],
)
def test_bad_tokens_and_tags(tmp_path: Path, content: dict[str, Any], parts: list[str]):
    (tmp_path / "train.jsonl").write_bytes(TAGGED)
    (tmp_path / "dev.jsonl").write_bytes(TAGGED + json.dumps(content).encode())
    found = message(data(tmp_path, "token_classification"), tmp_path)
    assert found.startswith("dev.jsonl: row 2: ")
    assert all(part in found for part in parts), found


def test_a_folder_that_is_no_data_set(tmp_path: Path):
    (tmp_path / "train.jsonl").write_bytes(GOOD)
    (tmp_path / "dev").mkdir()
    assert "not one that datasets' save_to_disk wrote" in message(data(tmp_path, dev="dev"), tmp_path)


def test_a_folder_of_several_splits_must_be_told_which(tmp_path: Path):
    import datasets

    rows = datasets.Dataset.from_list([{"text": "a", "label": "yes"}, {"text": "b", "label": "no"}])
    datasets.DatasetDict(test=rows, train=rows).save_to_disk(str(tmp_path / "saved"))
    found = message(data(tmp_path, train="saved", dev="saved/test"), tmp_path)
    assert found == "saved: holds several splits, test, train; name one, as saved/test"
    assert len(data(tmp_path, train="saved/train", dev="saved/test").examples("dev")) == 2
    (tmp_path / "saved" / "test" / "data-00000-of-00001.arrow").write_bytes(b"broken")
    found = message(data(tmp_path, train="saved/train", dev="saved/test"), tmp_path)
    assert found.startswith("saved/test: cannot be read as a folder of datasets")


def test_training_rows_of_one_label_teach_nothing(tmp_path: Path):
    (tmp_path / "train.jsonl").write_bytes(GOOD.splitlines()[0])
    assert 'column "label" holds' in message(data(tmp_path), tmp_path)


def test_an_unknown_mark_in_punctuation_data(tmp_path: Path):
    row = b'{"tokens": ["a"], "tags": ["PERIOD"]}\n'
    (tmp_path / "train.jsonl").write_bytes(row + row.replace(b"PERIOD", b"period"))
    found = message(data(tmp_path, "punctuation"), tmp_path)
    assert found.startswith('train.jsonl: row 2: column "tags": label "period" is not in the label set')
