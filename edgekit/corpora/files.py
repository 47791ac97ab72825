"""Rows from files: JSON Lines, CSV, TSV, Parquet, or a folder that the `datasets` library saved.

The suffix says which: `.jsonl` or `.json` (one object a line), `.csv` (with a header; RFC 4180), `.tsv` (with a header;
no quotation marks), each also `.gz`, and `.parquet`. Text is UTF-8. Rows are read as a stream.
"""

import csv
import gzip
import hashlib
import json
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from edgekit.corpora import Split
from edgekit.errors import InputError, nearest
from edgekit.records import Record
from edgekit.tasks import Row


class Params(Record):
    """A file (or a folder of `datasets`) for each split, relative to the recipe's folder."""

    train: str
    dev: str


def rows(params: Params, split: Split, base: Path) -> Iterator[Row]:
    """The rows of a split. Raises `InputError` where the file is absent, broken or without rows."""
    path = _path(params, split, base)
    row = None
    for row in _reader(path)(path):
        yield row
    if row is None:
        raise InputError(f"{path}: has no rows; add some, or name another file in the recipe's data.{split}")


def fingerprint(params: Params, base: Path) -> str:
    """The sha256 over the names and contents of the files."""
    return hash_files([_path(params, "train", base), _path(params, "dev", base)])


def hash_files(paths: list[Path]) -> str:
    """The sha256 over names and contents; a folder stands for every file below it."""
    digest = hashlib.sha256()
    for path in paths:
        for file in sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]:
            with file.open("rb") as stream:
                content = hashlib.file_digest(stream, "sha256").digest()
            digest.update(str(file.relative_to(path.parent)).encode() + b"\0" + content)
    return digest.hexdigest()


def _path(params: Params, split: Split, base: Path) -> Path:
    path = base / (params.train if split == "train" else params.dev)
    if not path.exists():
        there = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise InputError(f'recipe: key "data.{split}": {path} does not exist; {nearest(path.name, there)}')
    return path


def _reader(path: Path) -> Callable[[Path], Iterator[Row]]:
    if path.is_dir():
        return _folder
    readers = {
        ".jsonl": _json_lines,
        ".json": _json_lines,
        ".csv": _csv,
        ".tsv": _tsv,
        ".parquet": _parquet,
    }
    plain = path.with_suffix("") if path.suffix == ".gz" else path
    reader = readers.get(plain.suffix.lower())
    if reader is None or (reader is _parquet and plain != path):
        raise InputError(
            f'{path}: rows cannot be read from a file that ends in "{"".join(path.suffixes)}"; '
            "use .jsonl, .csv or .tsv (each also .gz), .parquet, or a folder saved by datasets"
        )
    return reader


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines of text, unpacked where the name ends in .gz."""
    number = 0
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            for number, line in enumerate(file, 1):
                yield number, _text(line, f"{path}: row {number}")
    except (EOFError, OSError, zlib.error) as error:
        raise InputError(f"{path}: cannot be read after line {number}: {error}; is the file complete?") from None


def _text(line: bytes, where: str) -> str:
    if b"\0" in line:
        raise InputError(f"{where}: holds a NUL byte, so it is not UTF-8 text; save it as UTF-8")
    try:
        return line.decode("utf-8-sig" if line.startswith(b"\xef\xbb\xbf") else "utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: is not UTF-8 at byte {error.start} of the line; save it as UTF-8") from None


def _json_lines(path: Path) -> Iterator[Row]:
    for number, line in _lines(path):
        if not line.strip():
            continue
        where = f"{path}: row {number}"
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{where}: is not valid JSON ({error}); write one object a line") from None
        if not isinstance(values, dict):
            raise InputError(f"{where}: holds a JSON {type(values).__name__}, not an object; write one object a line")
        yield Row(where, values, path.parent)


def _csv(path: Path) -> Iterator[Row]:
    return _table(path, csv.reader((line for _, line in _lines(path)), strict=True))


def _tsv(path: Path) -> Iterator[Row]:
    return _table(path, csv.reader((line for _, line in _lines(path)), delimiter="\t", quoting=csv.QUOTE_NONE))


def _table(path: Path, reader: Any) -> Iterator[Row]:
    """Rows under a header, the first one below it being row 1; the line is named too, as cells can hold line breaks."""
    header: list[str] | None = None
    number = 0
    while (cells := _next(path, reader)) is not None:
        if not cells:
            continue
        if header is None:
            header = cells
            if len(set(header)) < len(header):
                raise InputError(f"{path}: the header names a column twice: {', '.join(header)}")
            continue
        number += 1
        where = f"{path}: row {number} (line {reader.line_num})"
        if len(cells) != len(header):
            raise InputError(
                f"{where}: has {len(cells)} fields, the header {len(header)} ({', '.join(header)}); "
                "quote a field that holds the separator"
            )
        yield Row(where, dict(zip(header, cells, strict=True)), path.parent)


def _next(path: Path, reader: Any) -> list[str] | None:
    try:
        return next(reader, None)
    except csv.Error as error:
        raise InputError(
            f"{path}: line {reader.line_num}: is not valid CSV: {error}; is a quotation mark not closed or not doubled?"
        ) from None


def _parquet(path: Path) -> Iterator[Row]:
    import pyarrow
    from pyarrow import parquet

    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1000):
                for values in batch.to_pylist():
                    number += 1
                    yield Row(f"{path}: row {number}", values, path.parent)
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as Parquet after row {number}: {error}") from None


def _folder(path: Path) -> Iterator[Row]:
    import datasets
    import pyarrow

    if (path / "dataset_dict.json").is_file():
        splits = sorted(p.name for p in path.iterdir() if p.is_dir())
        raise InputError(f"{path}: holds several splits, {', '.join(splits)}; name one, as {path / splits[0]}")
    if not (path / "state.json").is_file():
        raise InputError(f"{path}: is a folder, but not one that datasets' save_to_disk wrote; name a file in it")
    try:
        yield from dataset_rows(datasets.load_from_disk(str(path)), str(path), path)
    except (pyarrow.ArrowException, OSError, ValueError, KeyError) as error:
        raise InputError(f"{path}: cannot be read as a folder of datasets: {error}") from None


def dataset_rows(dataset: Any, where: str, folder: Path) -> Iterator[Row]:
    """The rows of a `datasets.Dataset`: class labels by their names, images and sounds as their files' bytes."""
    number = 0
    for table in dataset.with_format("arrow").iter(batch_size=1000):
        for values in table.to_pylist():
            number += 1
            named = {name: _named(dataset.features[name], value) for name, value in values.items()}
            yield Row(f"{where}: row {number}", named, folder)


def _named(feature: Any, value: Any) -> Any:
    """Class labels, alone or in a list, as their names; one that is not given (-1) is None."""
    inner = getattr(feature, "feature", None)
    if inner is not None and isinstance(value, list):
        return [_named(inner, one) for one in value]
    names: Mapping[int, str] = dict(enumerate(getattr(feature, "names", ())))
    return names.get(value) if names and isinstance(value, int) else value
