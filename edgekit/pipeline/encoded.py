"""Training data encoded once, on disk, and read row by row: memory does not grow with the number of rows.

    encoded/51ab…/
      rows.i32       sequence after sequence: its example's number, its labels of one a row, then of its arrays of one
                     number a token each in full (ids, mask, segments, labels a token), int32
      index.i64      where each sequence begins in rows.i32, and the end of the last
      meta.json      the arrays' names, and a hash of all inputs; written last

Rows of the data become checked examples and features some thousand at a time, are written, and are forgotten. What a
task's own score needs of a feature (`extra`) is not kept: training data is not scored. Images stay where they are.
"""

import contextlib
import hashlib
import itertools
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
from filelock import FileLock, Timeout

from edgekit.errors import InputError
from edgekit.store import key
from edgekit.tasks import Feature

_BLOCK = 4096
"""How many sequences are read at a time where only their tokens matter."""
_KEPT = 8
"""How many sets stay on disk, those used last."""


class Encoded(Sequence[Feature]):
    """The features in a folder that `stored` filled."""

    def __init__(self, folder: Path) -> None:
        """Raises `InputError` where a file is not as long as it was made."""
        meta = json.loads((folder / "meta.json").read_text())
        self.fingerprint: str = meta["fingerprint"]
        self._scalars: list[str] = meta["scalars"]
        self._arrays: list[str] = meta["arrays"]
        self._rows: int = meta["rows"]
        self._files = [_Reader(folder / name, size) for name, size in meta["bytes"].items()]

    def __len__(self) -> int:
        return self._rows

    @overload
    def __getitem__(self, index: int) -> Feature: ...
    @overload
    def __getitem__(self, index: slice) -> list[Feature]: ...
    def __getitem__(self, index: int | slice) -> Feature | list[Feature]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self._rows))]
        i = range(self._rows)[index]
        rows, starts = self._files
        start, end = starts.read(np.int64, i, 2).tolist()
        record = rows.read(np.int32, start, end - start).astype(np.int64)
        example, *scalars = record[: 1 + len(self._scalars)]
        arrays = record[1 + len(self._scalars) :].reshape(len(self._arrays), -1)
        parts: dict[str, dict[str, np.ndarray]] = {"inputs": {}, "labels": {}}
        for name, value in itertools.chain(
            zip(self._arrays, arrays, strict=True), zip(self._scalars, scalars, strict=True)
        ):
            part, _, name = name.partition(".")
            parts[part][name] = np.asarray(value)
        return Feature(parts["inputs"], int(example), parts["labels"])

    def tokens(self) -> Iterator[np.ndarray]:
        """The ids of all tokens, int32, of some thousand sequences at a time."""
        place = 1 + len(self._scalars), self._arrays.index("inputs.input_ids")
        for first in range(0, self._rows, _BLOCK):
            rows = min(_BLOCK, self._rows - first)
            ends = self._files[1].read(np.int64, first, rows + 1)
            block = self._files[0].read(np.int32, int(ends[0]), int(ends[-1] - ends[0]))
            lengths = (np.diff(ends) - place[0]) // len(self._arrays)
            starts = ends[:-1] - ends[0] + place[0] + place[1] * lengths  # of each sequence's ids in the block
            before = np.cumsum(lengths) - lengths
            yield block[np.repeat(starts - before, lengths) + np.arange(lengths.sum())]

    def lengths(self) -> np.ndarray:
        """The number of tokens of each sequence, int32."""
        ends = self._files[1].read(np.int64, 0, self._rows + 1)
        return ((np.diff(ends) - 1 - len(self._scalars)) // len(self._arrays)).astype(np.int32)


class _Reader:
    """A file read by `pread`: the pages of a map would count as the process's own memory."""

    def __init__(self, path: Path, size: int) -> None:
        self._path = path
        self._file = path.open("rb", buffering=0)
        if os.fstat(self._file.fileno()).st_size != size:
            raise InputError(f"{path}: changed since it was made; remove the folder {path.parent} to make it again")

    def read(self, dtype: Any, start: int, count: int) -> np.ndarray:
        found = np.empty(count, dtype)
        if os.preadv(self._file.fileno(), [found.view(np.uint8).data], start * found.itemsize) != found.nbytes:
            raise InputError(f"{self._path}: was cut off while it was read; remove the folder {self._path.parent}")
        return found


def stored(root: Path, ingredients: Mapping[str, Any], chunks: Iterable[list[Feature]]) -> Sequence[Feature]:
    """The features that `ingredients` make, from disk, where `chunks` puts them the first time.

    Features that are no whole numbers, a row or a token (images, a task's own floats), are given as a list.
    """
    folder = root / key(ingredients)[:16]
    root.mkdir(parents=True, exist_ok=True)
    with FileLock(root / f".{folder.name}.lock"):
        if not (folder / "meta.json").is_file():
            chunks = iter(chunks)
            first = next(chunks, [])
            if not first or not all(_fits(feature, first[0]) for feature in first):
                return [*first, *itertools.chain.from_iterable(chunks)]
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            _write(folder, itertools.chain([first], chunks))
        found = Encoded(folder)
        os.utime(folder)
    _tidy(root)
    return found


def _tidy(root: Path) -> None:
    """Remove the sets that were used longest ago, but for those that another process is making."""
    with FileLock(root / ".lock"):
        sets = [path for path in root.iterdir() if path.is_dir()]
        for old in sorted(sets, key=lambda path: path.stat().st_mtime, reverse=True)[_KEPT:]:
            with contextlib.suppress(Timeout), FileLock(root / f".{old.name}.lock", timeout=0):
                shutil.rmtree(old, ignore_errors=True)


def _fits(feature: Feature, first: Feature) -> bool:
    if (feature.inputs.keys(), feature.labels.keys()) != (first.inputs.keys(), first.labels.keys()):
        return False
    if "input_ids" not in feature.inputs:
        return False
    length = len(feature.inputs["input_ids"])
    return all(
        array.dtype.kind in "iub" and array.shape in (((length,),) if part == "inputs" else ((length,), ()))
        for part in ("inputs", "labels")
        for array in getattr(feature, part).values()
    )


def _write(folder: Path, chunks: Iterable[list[Feature]]) -> None:
    arrays: list[tuple[str, str]] = []
    scalars: list[tuple[str, str]] = []
    digest, end, rows = hashlib.sha256(), 0, 0
    with (folder / "rows.i32").open("wb") as data, (folder / "index.i64").open("wb") as index:
        index.write(np.int64(0).tobytes())
        for feature in itertools.chain.from_iterable(chunks):
            if not rows:
                named = [(part, name) for part in ("inputs", "labels") for name in getattr(feature, part)]
                arrays = [(part, name) for part, name in named if getattr(feature, part)[name].ndim]
                scalars = [each for each in named if each not in arrays]
            _digest(digest, feature)
            record = np.concatenate([
                [feature.example], *([getattr(feature, part)[name]] for part, name in scalars),
                *(getattr(feature, part)[name] for part, name in arrays),
            ]).astype(np.int32)  # fmt: skip
            data.write(record.tobytes())
            end += len(record)
            index.write(np.int64(end).tobytes())
            rows += 1
    meta = {
        "arrays": [".".join(each) for each in arrays],
        "scalars": [".".join(each) for each in scalars],
        "rows": rows,
        "bytes": {"rows.i32": end * 4, "index.i64": (rows + 1) * 8},
        "fingerprint": digest.hexdigest(),
    }
    new = folder / "meta.new"
    new.write_text(json.dumps(meta, indent=1))
    new.replace(folder / "meta.json")


def _digest(digest: Any, feature: Feature) -> None:
    for name, array in feature.inputs.items():
        digest.update(f"{name} {len(array)} ".encode() + np.ascontiguousarray(array, np.int64).tobytes())


def lengths(features: Sequence[Feature]) -> np.ndarray | None:
    """The number of tokens of each sequence, int32; `None` for images."""
    if isinstance(features, Encoded):
        return features.lengths()
    if "input_ids" not in features[0].inputs:
        return None
    return np.fromiter((len(feature.inputs["input_ids"]) for feature in features), np.int32, len(features))


def counts(features: Sequence[Feature]) -> np.ndarray:
    """How often each id of a token stands in sequences of text, int64, up to the highest that does."""
    found = np.zeros(0, np.int64)
    if isinstance(features, Encoded):
        blocks = features.tokens()
    else:
        each = iter(features)
        chunks = iter(lambda: list(itertools.islice(each, _BLOCK)), [])
        blocks = (np.concatenate([feature.inputs["input_ids"] for feature in chunk]) for chunk in chunks)
    for ids in blocks:
        here = np.bincount(ids, minlength=len(found))
        here[: len(found)] += found
        found = here
    return found


def fingerprint(features: Sequence[Feature]) -> str:
    """The sha256 (hex) over the inputs of all sequences, of text."""
    if isinstance(features, Encoded):
        return features.fingerprint
    digest = hashlib.sha256()
    for feature in features:
        _digest(digest, feature)
    return digest.hexdigest()
