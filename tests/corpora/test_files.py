import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgekit.corpora import files
from edgekit.errors import InputError

ROWS: list[dict[str, Any]] = [
    {"text": "a good film", "label": "yes"},
    {"text": 'dull, "very" dull', "label": "no"},
    {"text": "naïve 映画", "label": "yes"},
]


def jsonl(path: Path) -> None:
    path.write_bytes("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode())


def csv(path: Path) -> None:
    quoted = ['"' + row["text"].replace('"', '""') + '",' + row["label"] for row in ROWS]
    path.write_bytes("\n".join(["text,label", *quoted]).encode())


def tsv(path: Path) -> None:
    path.write_bytes("\n".join(["text\tlabel", *(f"{row['text']}\t{row['label']}" for row in ROWS)]).encode())


def windows(write: Callable[[Path], None]) -> Callable[[Path], None]:
    """As an editor on Windows saves it: a byte order mark, CRLF."""

    def both(path: Path) -> None:
        write(path)
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))

    return both


def packed(write: Callable[[Path], None]) -> Callable[[Path], None]:
    def both(path: Path) -> None:
        write(path)
        path.write_bytes(gzip.compress(path.read_bytes()))

    return both


def parquet(path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)


def folder(path: Path) -> None:
    import datasets

    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    datasets.Dataset.from_list(ROWS, features=features).save_to_disk(str(path))


def read(path: Path) -> list[Any]:
    params = files.Params(train="absent.csv", dev=path.name)
    return list(files.rows(params, "dev", path.parent))


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("a.jsonl", jsonl),
        ("a.json", windows(jsonl)),
        ("a.jsonl.gz", packed(jsonl)),
        ("a.csv", csv),
        ("a.CSV", windows(csv)),
        ("a.csv.gz", packed(csv)),
        ("a.tsv", tsv),
        ("a.tsv.gz", packed(windows(tsv))),
        ("a.parquet", parquet),
        ("a", folder),
    ],
)
def test_every_format_gives_the_same_rows(tmp_path: Path, name: str, write: Callable[[Path], None]):
    write(tmp_path / name)
    found = read(tmp_path / name)
    assert [dict(row.values) for row in found] == ROWS
    assert found[2].where.startswith(f"{tmp_path / name}: row 3")


def test_rows_tell_where_relative_paths_start(tmp_path: Path):
    csv(tmp_path / "a.csv")
    assert read(tmp_path / "a.csv")[0].folder == tmp_path


def test_a_cell_with_line_breaks_is_one_row(tmp_path: Path):
    (tmp_path / "a.csv").write_text('text,label\n"one\ntwo",yes\nthree,no\n')
    found = read(tmp_path / "a.csv")
    assert [row.values["text"] for row in found] == ["one\ntwo", "three"]
    assert found[1].where.endswith("row 2 (line 4)")


def test_class_labels_in_lists_get_their_names(tmp_path: Path):
    import datasets

    tags = datasets.List(datasets.ClassLabel(names=["O", "B-PER"]))
    features = datasets.Features({"tags": tags, "label": datasets.ClassLabel(names=["x"])})
    datasets.Dataset.from_list([{"tags": [0, 1], "label": -1}], features=features).save_to_disk(str(tmp_path / "a"))
    (row,) = read(tmp_path / "a")
    assert row.values == {"tags": ["O", "B-PER"], "label": None}


def test_rows_are_a_stream(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "good"}\nbroken\n')
    rows = files.rows(files.Params(train=path.name, dev=""), "train", tmp_path)
    assert next(rows).values == {"text": "good"}
    with pytest.raises(InputError, match="row 2"):
        next(rows)


@pytest.mark.parametrize("write", [jsonl, folder])
def test_the_fingerprint_is_of_content_not_time(tmp_path: Path, write: Callable[[Path], None]):
    write(tmp_path / "a.jsonl")
    csv(tmp_path / "b.csv")
    params = files.Params(train="a.jsonl", dev="b.csv")
    before = files.fingerprint(params, tmp_path)
    assert len(before) == 64
    os.utime(tmp_path / "b.csv", (0, 0))
    assert files.fingerprint(params, tmp_path) == before
    with (tmp_path / "b.csv").open("a") as file:
        file.write("\nmore,yes")
    assert files.fingerprint(params, tmp_path) != before


def test_the_fingerprint_needs_the_files(tmp_path: Path):
    with pytest.raises(InputError, match=r'key "data.train": .*a\.csv does not exist'):
        files.fingerprint(files.Params(train="a.csv", dev="b.csv"), tmp_path)
