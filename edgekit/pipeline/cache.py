"""The teacher's signals on disk: one pass of the teacher serves all epochs, seeds, methods and students.

    signals/3f1c…/              what one teacher says of one set of sequences
      meta.json                 whose words these are
      hidden.2.384.f16          float16, sequence after sequence, [tokens, 384] each
      queries.6.12x32.f16       [tokens, 12, 32] each
      scores.4.12.f16           [12, tokens, tokens] each
      outputs.logits.2.f16      [2] each
      hidden.2.384.crc          uint32 a sequence: the CRC-32 of its bytes, 0 where it is not there yet

A batch of which something is missing has the teacher run on the rows that miss it; what it said is written and then
read back, so a first epoch and a later one see the very same float16 values. The lengths of the sequences say where
each begins, and how large a file will be before anything is computed: beyond `training.cache_gb`, or what the disk
has left, the signals that were used longest ago give way, and where that is not enough the teacher runs in every step.

A kill loses nothing, as a row's bytes are written before its checksum. After a loss of power the disk may hold one
without the other; then the checksum does not fit, and the row is made again. Two processes at once write the same rows
to the same places. Files are read by `pread`, not mapped, as the pages of a map count as the process's own memory.
"""

import contextlib
import fcntl
import json
import os
import shutil
import zlib
from collections.abc import Generator, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from edgekit import progress
from edgekit.errors import InputError
from edgekit.pipeline import Job, encoded
from edgekit.pipeline.signals import Signals, Teacher, Wanted
from edgekit.recipe import Training
from edgekit.records import Kind
from edgekit.store import key, sha256, sources
from edgekit.tasks import OUTPUTS, Feature

_FREE = 0.9
"""The share of the disk's free space that signals may take; checkpoints and models need some too."""
_PROCESSORS = ("tokenizer.json", "preprocessor_config.json")


@contextlib.contextmanager
def keeping(teachers: Sequence[Teacher], features: Sequence[Feature], job: Job, training: Training) -> Generator[None]:
    """Inside the block the `teachers` answer from disk, where the job has a shared folder and the recipe allows it.

    `features`: what is trained on; a teacher with a tokenizer of its own has them in its own tokens.
    """
    shared = job.data.shared if training.cache_gb else None
    with contextlib.ExitStack() as stack:
        for teacher in teachers:
            if shared is None:
                continue
            its = teacher.features or features
            lengths = encoded.lengths(its)
            # The key of images is that of their data file; their pixels need not be read for it.
            identity = encoded.fingerprint(its) if lengths is not None else f"{job.data.fingerprint} {len(its)}"
            kept = Cache(shared / "signals", teacher, identity, len(its), lengths, training.cache_gb)
            teacher.kept = stack.enter_context(contextlib.closing(kept))
        yield
        for teacher in teachers:
            teacher.kept = None


class Cache:
    """What one teacher said of one set of sequences; a `signals.Kept`."""

    def __init__(
        self, root: Path, teacher: Teacher, identity: str, rows: int, lengths: np.ndarray | None, limit_gb: float
    ) -> None:
        """`identity`: a hash of the sequences in the teacher's tokens; `lengths` in tokens, `None` for images, which
        are all of one size.

        Raises `InputError` where the folder holds another's signals.
        """
        parts = [*teacher.folder.glob("*.safetensors"), teacher.folder / "config.json"]
        meta = {
            "teacher": key({path.name: sha256(path) for path in parts}),
            "tokenizer": [sha256(path) for name in _PROCESSORS if (path := teacher.folder / name).is_file()],
            "sequences": identity,
            "rows": rows,
            "kind": teacher.kind,
            "code": sources(("edgekit.pipeline.signals",)),
        }
        self.folder = root / key(meta)[:16]
        self._root, self._limit, self._rows, self._lengths = root, limit_gb * 1e9, rows, lengths
        self._kind: Kind = teacher.kind
        self._meta = json.dumps(meta, indent=1)
        self._files: dict[str, _File] = {}
        self._chosen: dict[Wanted, list[_File] | None] = {}
        self._ends: dict[_Per, np.ndarray] = {}
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / ".lock"):
            self._make()

    def close(self) -> None:
        """Let go of the files, which may then give way to others."""
        for file in self._files.values():
            file.close()
        self._files.clear()
        self._chosen.clear()

    def signals(self, teacher: Teacher, batch: Mapping[str, Tensor], wanted: Wanted) -> Signals:
        """What is wanted of the batch's rows, float32 on the batch's device; padded positions are 0."""
        if "index" not in batch:
            return teacher.speak(batch)
        if wanted not in self._chosen:
            self._chosen[wanted] = self._open(teacher, batch, wanted)
        files = self._chosen[wanted]
        if files is None:
            return teacher.speak(batch)
        rows = batch["index"].cpu().numpy()
        missing = ~np.logical_and.reduce([file.has(rows) for file in files])
        if missing.any():
            said = _speak(teacher, {name: tensor[torch.from_numpy(missing)] for name, tensor in batch.items()})
            for file in files:
                if not file.write(rows[missing], _array(said, file.name)):
                    progress.say(f"{file.name} of the teacher is beyond float16; the teacher runs in every step")
                    self._chosen[wanted] = None
                    return teacher.speak(batch)
        return self._read(files, rows, batch, teacher)

    def _make(self) -> None:
        """Make the folder where it is missing, and refuse it where it is another's; the lock is held."""
        self.folder.mkdir(parents=True, exist_ok=True)
        meta = self.folder / "meta.json"
        if not meta.is_file():
            new = meta.with_suffix(".new")
            new.write_text(self._meta)
            new.replace(meta)
        elif meta.read_text() != self._meta:
            raise InputError(
                f"{meta}: says that the signals beside it are of another teacher or of other data than the folder's "
                f"name does; remove the folder {self.folder}, what is needed of it is made again"
            )

    def _open(self, teacher: Teacher, batch: Mapping[str, Tensor], wanted: Wanted) -> "list[_File] | None":
        """The files that hold what is wanted; `None` where there is no room for them."""
        said: Signals | None = None
        files: list[_File] = []
        for name in self._names(teacher, wanted):
            per = self._per(name)
            if there := sorted(self.folder.glob(f"{name}.*.f16")):
                shape = tuple(int(n) for n in there[0].name.split(".")[2].split("x") if n)
            else:
                said = said or _speak(teacher, batch)
                found = _array(said, name).shape
                shape = {"row": found[1:], "token": found[2:], "pair": found[1:2]}[per]
            files.append(
                self._files.get(name)
                or _File(self.folder, name, shape, per, self._rows, self._lengths, self._starts(per))
            )
        with FileLock(self._root / ".lock"):
            self._make()
            if why := self._no_room(files):
                progress.say(f"{why}; the teacher runs in every step")
                return None
            for file in files:
                if file.name not in self._files:
                    file.open()
                    self._files[file.name] = file
        return files

    def _names(self, teacher: Teacher, wanted: Wanted) -> list[str]:
        """What is kept of what is wanted: for the scores of long sequences queries and keys, which are smaller."""
        names: set[str] = set()
        for part, layer in wanted:
            if part == "outputs":
                names |= {f"outputs.{name}" for name in OUTPUTS[self._kind]}
            elif part == "scores" and self._lengths is not None and _long(self._lengths, teacher.head_size):
                names |= {f"queries.{layer}", f"keys.{layer}"}
            else:
                names.add(f"{part}.{layer}")
        return sorted(names)

    def _per(self, name: str) -> "_Per":
        if self._lengths is None:
            return "row"
        if name.startswith("outputs."):
            return "token" if self._kind in ("token-classification", "question-answering") else "row"
        return "pair" if name.startswith("scores.") else "token"

    def _starts(self, per: "_Per") -> np.ndarray | None:
        """Where each row begins, and the end of the last, counted in what a row is made of; `None` where it is one."""
        if per == "row" or self._lengths is None:
            return None
        if per not in self._ends:
            units = self._lengths.astype(np.int64) ** (2 if per == "pair" else 1)
            self._ends[per] = np.concatenate([[0], np.cumsum(units)])
        return self._ends[per]

    def _no_room(self, files: "Sequence[_File]") -> str | None:
        """Make room for `files`, by removing what was used longest ago; or why that cannot be done."""
        needed = sum(file.bytes for file in files)
        if needed > self._limit:
            return f"the teacher's signals would take {needed / 1e9:.3g} GB, cache_gb is {self._limit / 1e9:g}"
        own = {file.path for file in files}
        new = needed - sum(path.stat().st_blocks * 512 for path in own if path.is_file())
        room = shutil.disk_usage(self._root).free * _FREE
        others = sorted((p for p in self._root.glob("*/*.f16") if p not in own), key=lambda p: p.stat().st_mtime)
        used = needed + sum(path.stat().st_size for path in others)
        with contextlib.ExitStack() as stack:
            going: list[Path] = []
            for path in others:
                if used <= self._limit and new <= room:
                    break
                file = stack.enter_context(path.open("rb"))
                with contextlib.suppress(BlockingIOError):  # another process, or this one, is reading it
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    used -= path.stat().st_size
                    room += path.stat().st_blocks * 512
                    going.append(path)
            if new > room:
                return (
                    f"the teacher's signals take {new / 1e9:.1f} GB more, {self._root} has room for {room / 1e9:.1f} GB"
                )
            if used > self._limit:
                return f"the teacher's signals and others in use would take {used / 1e9:.1f} GB, cache_gb is less"
            for path in going:
                path.with_suffix(".crc").unlink(missing_ok=True)
                path.unlink()
                if not any(path.parent.glob("*.f16")) and path.parent != self.folder:
                    shutil.rmtree(path.parent)
        return None

    def _read(
        self, files: "Sequence[_File]", rows: np.ndarray, batch: Mapping[str, Tensor], teacher: Teacher
    ) -> Signals:
        device = _device(batch)
        mask = None if self._lengths is None else batch["attention_mask"]
        length = 0 if mask is None else mask.shape[1]
        outputs: dict[str, Tensor] = {}
        layers: dict[str, dict[int, Tensor]] = {"hidden": {}, "scores": {}, "queries": {}, "keys": {}, "values": {}}
        for file in files:
            part, which = file.name.split(".")
            tensor = torch.from_numpy(file.read(rows, length)).to(device).float()
            if part == "outputs":
                outputs[which] = tensor
            else:
                layers[part][int(which)] = tensor.transpose(1, 2) if part in _HEADS else tensor
        if mask is None:  # every patch of an image is real
            tokens = max((tensor.shape[-2] for its in layers.values() for tensor in its.values()), default=1)
            mask = torch.ones(len(rows), tokens, dtype=torch.long, device=device)
        kept = layers.pop("scores")
        return Signals(outputs, **layers, mask=mask, depth=teacher.depth, kept=kept)


_Per = Literal["row", "token", "pair"]
_HEADS = ("queries", "keys", "values")


class _File:
    """One signal of all sequences: `shape` float16 numbers a row, a token or a pair of tokens, and a checksum a row."""

    def __init__(
        self, folder: Path, name: str, shape: Sequence[int], per: _Per, rows: int, lengths: np.ndarray | None,
        starts: np.ndarray | None,
    ) -> None:  # fmt: skip
        self.name, self._shape, self._per, self._rows, self._lengths = name, tuple(shape), per, rows, lengths
        self.path = folder / f"{name}.{'x'.join(map(str, shape))}.f16"
        self._starts = starts
        self.bytes = self._start(rows)

    def _start(self, row: int) -> int:
        """Where a row begins, in bytes."""
        return int(row if self._starts is None else self._starts[row]) * prod(self._shape) * 2

    def open(self) -> None:
        """Open the files, made at their full size where they are missing; what is not written takes no disk."""
        sums = self.path.with_suffix(".crc")
        self._data, self._sums = (os.open(path, os.O_RDWR | os.O_CREAT, 0o644) for path in (self.path, sums))
        fcntl.flock(self._data, fcntl.LOCK_SH)
        for path, file, size in ((self.path, self._data, self.bytes), (sums, self._sums, 4 * self._rows)):
            if (found := os.fstat(file).st_size) not in (0, size):
                self.close()
                raise InputError(
                    f"{path}: has {found} bytes, {self._rows} sequences need {size}; remove the folder {path.parent}, "
                    "what is needed of it is made again"
                )
            os.ftruncate(file, size)
            os.utime(file)
        self._crc = np.memmap(sums, "<u4", "r", shape=(self._rows,))
        self._sure = np.zeros(self._rows, bool)

    def close(self) -> None:
        """Close the files."""
        os.close(self._data)
        os.close(self._sums)

    def has(self, rows: np.ndarray) -> np.ndarray:
        """Which of `rows` are there; the bytes of each are held against its checksum once."""
        unsure = rows[~self._sure[rows]]
        for row in unsure[self._crc[unsure] != 0].tolist():
            data = np.empty(self._start(row + 1) - self._start(row), np.uint8)
            self._pread(data, row)
            self._sure[row] = _checksum(data) == self._crc[row]
        return self._sure[rows]

    def write(self, rows: np.ndarray, values: np.ndarray) -> bool:
        """Keep padded float `values` [len(rows), ...] of `rows`; `False`, with nothing kept, where float16 cannot."""
        with np.errstate(over="ignore"):
            half = [self._cut(value, row).astype("<f2") for value, row in zip(values, rows, strict=True)]
        if not all(np.isfinite(each).all() for each in half):
            return False
        for row, there, each in zip(rows.tolist(), self.has(rows), half, strict=True):
            if not there:
                _pwrite(self._data, each, self._start(row))
                _pwrite(self._sums, np.array([_checksum(each)], "<u4"), 4 * row)
                self._sure[row] = True
        return True

    def read(self, rows: np.ndarray, length: int) -> np.ndarray:
        """float16 [len(rows), ...], padded with 0 to `length` tokens."""
        tokens = {"row": (), "token": (length,), "pair": (length, length)}[self._per]
        shape = (*self._shape, *tokens) if self._per == "pair" else (*tokens, *self._shape)
        found = np.zeros((len(rows), *shape), "<f2")
        for out, row in zip(found, rows.tolist(), strict=True):
            part = self._cut(out, row)
            if part.flags.c_contiguous:
                self._pread(part, row)
            else:
                whole = np.empty(part.shape, "<f2")
                self._pread(whole, row)
                part[...] = whole
        return found

    def _cut(self, padded: np.ndarray, row: int) -> np.ndarray:
        """The part of a row's padded array that is of its real tokens."""
        if self._per == "row" or self._lengths is None:
            return padded
        n = self._lengths[row]
        return padded[:n] if self._per == "token" else padded[:, :n, :n]

    def _pread(self, into: np.ndarray, row: int) -> None:
        if os.preadv(self._data, [_bytes(into)], self._start(row)) != into.nbytes:
            raise InputError(f"{self.path}: was cut off while it was read; remove the folder {self.path.parent}")


def _pwrite(file: int, data: np.ndarray, at: int) -> None:
    left = _bytes(np.ascontiguousarray(data))
    while left:
        done = os.pwrite(file, left, at)
        left, at = left[done:], at + done


def _checksum(data: np.ndarray) -> int:
    """CRC-32, never 0."""
    return zlib.crc32(_bytes(np.ascontiguousarray(data))) or 1


def _bytes(array: np.ndarray) -> memoryview:
    """The memory of a contiguous array."""
    return array.reshape(-1).view(np.uint8).data


def _long(lengths: np.ndarray, head_size: int) -> bool:
    """Whether attention scores, a number a head and pair of tokens, take more than queries and keys."""
    tokens = lengths.astype(np.int64)
    return bool((tokens**2).sum() > 2 * head_size * tokens.sum())


def _speak(teacher: Teacher, batch: Mapping[str, Tensor]) -> Signals:
    """Live, and in float32 whatever the training's precision, since runs of another will read it too."""
    with torch.autocast(_device(batch).type, enabled=False):
        return teacher.speak(batch)


def _device(batch: Mapping[str, Tensor]) -> torch.device:
    """That of the model; which rows a batch holds is said on the CPU."""
    return batch["input_ids" if "input_ids" in batch else "pixel_values"].device


def _array(said: Signals, name: str) -> np.ndarray:
    """A signal with the tokens before the heads; scores are [batch, heads, length, length]."""
    part, which = name.split(".")
    if part == "outputs":
        found = said.outputs[which]
    elif part == "scores":
        found = said.scores(int(which))
    else:
        found = getattr(said, part)[int(which)]
    return (found.transpose(1, 2) if part in _HEADS else found).float().cpu().numpy()
