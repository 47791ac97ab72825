"""The bundle: a folder, or a zip of it, that holds all an app needs, and a manifest that says what is in it.

    manifest.json                  the record below: every file's sha256, and how the bundle came to be
    README.md  labels.json         a model card; the labels in the order of the model's outputs
    examples.npz                   a handful of real inputs, which a device must answer as the host does
    onnx/model.onnx                beside config.json and the tokenizer: loads as is in Optimum
    tflite/model.tflite
    samples/                       how to call it, from Python and from Kotlin

There is one copy of the tokenizer (or image preprocessor): in `onnx/`, or in `tflite/` where there is no ONNX.
`verify` and all other reading treat a bundle as a stranger's: nothing in it is used before every hash is checked.
"""

import ctypes
import hashlib
import json
import os
import shutil
import stat
import tempfile
import zipfile
import zlib
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from edgekit.errors import InputError
from edgekit.records import Artifact, File, Format, Kind, Parity, Part, Record, Score, Target, Tensor, Use, parse
from edgekit.store import MANIFEST, files_in, sha256
from edgekit.tasks import Arrays

VERSION = 2
FOLDER = "bundle"
"""The bundle's folder inside the artifact that the bundle stage makes, which has a manifest of the store's."""
EXAMPLES = "examples.npz"
_EXAMPLES_LIMIT = 64_000_000  # bytes; eight texts have thousands, four images some millions
_HERE = -100  # AT_FDCWD: names as they stand, from the working folder
_MANIFEST_LIMIT = 8_000_000  # bytes; a real one has tens of thousands


class ModelFile(Record):
    """A model of the bundle. `lengths`: TFLite has a signature for each; ONNX takes any length up to the last."""

    format: Format
    path: str
    quantized: bool
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    lengths: tuple[int, ...]
    score: Score | None
    parity: tuple[Parity, ...]
    latency_s: float | None
    """On the machine that `Manifest.host` describes, not on the target."""
    float_latency_s: float | None
    parts: tuple[Part, ...] = ()
    """What the file's bytes are spent on; their sum is its size."""


class Manifest(Record):
    """What a bundle holds and how it was made. It has no times of day: equal inputs give equal bytes."""

    version: int
    """Of the bundle's format."""
    edgekit: str
    name: str
    task: Use
    kind: Kind
    labels: tuple[str, ...]
    target: Target
    max_length: int
    """The longest sequence to encode, in tokens; longer texts are cut or windowed by the task."""
    pad_id: int
    encoder: str
    """The folder with config.json and the tokenizer or image preprocessor."""
    models: tuple[ModelFile, ...] = Field(min_length=1)
    host: str
    """The machine that built the bundle and measured its latencies."""
    recipe: dict[str, Any]
    stages: tuple[Artifact, ...]
    """What the bundle was made from, in order, each with its id (a hash), its parents' ids and library versions."""
    files: tuple[File, ...]
    """Every file but the manifest."""
    digest: str
    """sha256 of the rest of the manifest, as `_text` writes it.

    It shows accidents and careless edits, and printed at build it names the whole bundle in one line. It is no
    signature: who changes a bundle on purpose can make a new one, so compare it with the one the build printed.
    """

    def model(self, format: Format | None = None) -> ModelFile:
        """The model in `format`, by default in the target's first format; an `InputError` says what there is."""
        ranked = sorted(self.models, key=lambda model: self.target.formats.index(model.format))
        wanted = [model for model in ranked if format in (None, model.format)]
        if not wanted:
            there = ", ".join(model.format for model in ranked)
            raise InputError(f'--format: bundle "{self.name}" has no {format} model; there is: {there}')
        return wanted[0]


def write(folder: Path, manifest: Manifest) -> Manifest:
    """Write manifest.json for the files that `folder` holds; gives the manifest with `files` and `digest` filled."""
    data = manifest.model_copy(update={"files": files_in(folder)}).model_dump(mode="json")
    text = _text(data)
    (folder / MANIFEST).write_text(text, encoding="utf-8")
    return Manifest.model_validate_json(text)


def pack(folder: Path) -> Path:
    """Write the verified bundle in `folder` to `folder`.zip beside it and give its path.

    Equal bundles give equal bytes: entries are sorted, stored without compression, and have one date and mode.
    """
    names = sorted([MANIFEST, *(file.path for file in verify(folder).files)])
    path = _zip_of(folder)
    unfinished = path.with_name(path.name + ".part")
    with zipfile.ZipFile(unfinished, "w", zipfile.ZIP_STORED) as archive:
        for name in names:
            entry = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
            entry.create_system = 3  # Unix, whose mode bits follow
            entry.external_attr = (stat.S_IFREG | 0o644) << 16
            entry.file_size = (folder / name).stat().st_size
            with (folder / name).open("rb") as source, archive.open(entry, "w") as sink:
                shutil.copyfileobj(source, sink)
    os.replace(unfinished, path)
    return path


def write_examples(folder: Path, examples: Sequence[Arrays]) -> None:
    """Write real inputs of the model, by name and without padding, to examples.npz. Equal inputs give equal bytes."""
    arrays = {f"{i}.{name}": array for i, inputs in enumerate(examples) for name, array in inputs.items()}
    np.savez(folder / EXAMPLES, allow_pickle=False, **arrays)  # pyright: ignore[reportArgumentType]


def examples(folder: Path, where: Path) -> list[dict[str, np.ndarray]]:
    """The inputs in the opened bundle's examples.npz: int64 [length] or float32 [channels, height, width] by name."""
    try:
        with zipfile.ZipFile(folder / EXAMPLES) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
        if unpacked > _EXAMPLES_LIMIT:
            raise InputError(f"{where}: {EXAMPLES}: unpacks to {unpacked} bytes, too many for a handful of examples")
        found: dict[int, dict[str, np.ndarray]] = {}
        with np.load(folder / EXAMPLES, allow_pickle=False) as arrays:
            for key in arrays.files:
                number, _, name = key.partition(".")
                found.setdefault(int(number), {})[name] = arrays[key]
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{where}: {EXAMPLES}: cannot be read: {error}; build the bundle again") from None
    if not found:
        raise InputError(f"{where}: {EXAMPLES}: is empty; build the bundle again")
    return [found[number] for number in sorted(found)]


def check_out(out: Path) -> None:
    """Raise `InputError` unless a bundle can be placed at `out`: it is free, or holds a bundle and nothing else."""
    _check_zip(_zip_of(out), "--out")
    _check_folder(out, "--out")


def _check_zip(path: Path, option: str) -> None:
    if path.exists() and not (zipfile.is_zipfile(path) and MANIFEST in zipfile.ZipFile(path).namelist()):
        raise InputError(f"{option}: {path} is there and is not a bundle; remove it, or name another place")


def _check_folder(path: Path, option: str) -> None:
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    if not (path / MANIFEST).is_file():
        raise InputError(f"{option}: {path} holds something that is not a bundle; name another folder")
    listed = {file.path for file in _parse((path / MANIFEST).read_bytes(), f"{option}: {path / MANIFEST}").files}
    other = sorted(_regular_files(path, path) - listed - {MANIFEST})
    if other:
        raise InputError(
            f"{option}: {path} holds {other[0]}, which is not the bundle's; move it, or name another folder"
        )


def place(artifact: Path, out: Path) -> Path:
    """Copy the bundle of the store's folder `artifact` to the folder `out`, and its zip beside it; gives the zip.

    Nothing is written where both are there already. A bundle at `out` is replaced (see `check_out`).
    """
    source, zipped = artifact / FOLDER, _zip_of(out)
    digest = verify(source).digest
    if _holds(out, digest) and _holds(zipped, digest):
        return zipped
    check_out(out)
    unfinished = out.with_name(out.name + ".part")
    for old in (unfinished, out):
        if old.exists():
            shutil.rmtree(old)
    unfinished.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(source, unfinished)
    unfinished.rename(out)
    return pack(out)


def accept(candidate: Path, baseline: Path) -> Manifest:
    """Make a copy of the bundle `candidate` the baseline at `baseline`: a folder, or a zip where that ends in `.zip`.

    The copy is made and verified beside the old baseline, then the two change places in one step, so that a kill at any
    moment leaves the old or the new one whole there, and a full disk the old one. (A kill that cannot be caught may
    also leave a folder `.NAME-…` beside it.) A link at `baseline` stays a link. Raises `InputError` where `candidate`
    is no whole bundle, and where `baseline` is something else than a bundle, or is `candidate` itself.
    """
    for path in (candidate, baseline):
        if str(path).startswith("git:"):
            raise InputError(f"--accept: {path} is a commit; name a built bundle, and a folder or zip as --baseline")
    place, source = Path(os.path.realpath(baseline)), Path(os.path.realpath(candidate))
    if place == source or place.is_relative_to(source) or source.is_relative_to(place):
        raise InputError(f"--accept: {candidate} and {baseline} are not two places; name another one as --baseline")
    digest = verify(candidate).digest
    zipped = place.suffix == ".zip" and not place.is_dir()
    (_check_zip if zipped else _check_folder)(place, "--baseline")
    if _holds(place, digest):
        return verify(place)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
            prefix=f".{place.name}-", dir=place.parent, ignore_cleanup_errors=True
        ) as temporary:
            fresh = Path(temporary, "fresh")
            with opened(candidate) as (folder, manifest):
                for name in (MANIFEST, *(file.path for file in manifest.files)):
                    (fresh / name).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(folder / name, fresh / name)
            verify(fresh)
            _swap(pack(fresh) if zipped else fresh, place)
    except OSError as error:
        raise InputError(
            f"--accept: cannot put the bundle at {baseline}: {error}; what was there before is there still"
        ) from None
    return manifest


def _swap(fresh: Path, place: Path) -> None:
    """Put the file or folder `fresh` at `place` in one step; a folder that was there is then where `fresh` was."""
    if not place.is_dir():
        os.replace(fresh, place)
        return
    libc = ctypes.CDLL(None, use_errno=True)
    # Linux's RENAME_EXCHANGE: two names change places. Two renames would leave a moment without a baseline.
    if not hasattr(libc, "renameat2") or libc.renameat2(_HERE, os.fsencode(fresh), _HERE, os.fsencode(place), 2):
        why = os.strerror(ctypes.get_errno())
        raise InputError(
            f"--accept: this system cannot exchange folders in one step at {place} ({why}); name a zip as --baseline"
        )


def _holds(path: Path, digest: str) -> bool:
    try:
        return verify(path).digest == digest
    except InputError:
        return False


def _zip_of(folder: Path) -> Path:
    return folder.with_name(folder.name + ".zip")


def verify(path: Path) -> Manifest:
    """The manifest of the bundle (folder or zip) at `path`, after every hash in it was checked.

    Raises `InputError`, which names the file, where a file was changed, is missing or is not in the manifest, for a
    link, an unsafe name, an edited manifest, an unknown format version, and where `path` is not a bundle.
    """
    with opened(path) as (_, manifest):
        return manifest


@contextmanager
def opened(path: Path) -> Generator[tuple[Path, Manifest]]:
    """The folder of the verified bundle at `path` and its manifest; a zip is unpacked while the context lasts."""
    if path.is_dir():
        yield path, _verified(path, path)
    elif zipfile.is_zipfile(path):
        with tempfile.TemporaryDirectory(prefix="edgekit-bundle-") as temporary:
            _unpack(path, Path(temporary))
            yield Path(temporary), _verified(Path(temporary), path)
    elif path.exists():
        raise InputError(f"{path}: is neither a bundle folder nor a whole zip file; copy it again, or build it again")
    else:
        raise InputError(f"{path}: there is no such bundle; `edgekit build` makes one")


def _text(data: dict[str, Any]) -> str:
    """The one way to write a manifest: sorted keys, and `digest` over the text of all other keys."""
    rest = {key: value for key, value in data.items() if key != "digest"}
    digest = hashlib.sha256(_json(rest).encode()).hexdigest()
    return _json({**rest, "digest": digest})


def _json(data: dict[str, Any]) -> str:
    return json.dumps(data, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def _parse(content: bytes, where: str) -> Manifest:
    """A manifest's bytes as a record, once they are what `write` writes and every path in them is safe."""
    try:
        text = content.decode()
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: is not a bundle's manifest: {error}") from None
    if not isinstance(data, dict) or "version" not in data or "digest" not in data:
        raise InputError(f"{where}: is not a bundle's manifest: it has no version or no digest")
    if data["version"] != VERSION:
        raise InputError(
            f"{where}: is of bundle format {data['version']!r}, and this edgekit reads format {VERSION}; "
            "use the edgekit that built it, or build it again"
        )
    if text != _text(data):  # not the record's own dump: a later edgekit may know more optional keys
        raise InputError(f"{where}: was edited after the build: its digest does not fit; build the bundle again")
    manifest = parse(Manifest, data, where)
    _check_paths(manifest, where)
    return manifest


def _check_paths(manifest: Manifest, where: str) -> None:
    """Refuse what could reach outside the folder, or what two file systems would read differently."""
    seen: set[str] = set()
    for file in manifest.files:
        odd = "\\" in file.path or ":" in file.path or not file.path.isprintable()
        if odd or any(part in ("", ".", "..") for part in file.path.split("/")):
            raise InputError(f"{where}: lists the unsafe name {file.path!r}; do not use this bundle")
        if file.path.casefold() in seen:
            raise InputError(f"{where}: lists {file.path!r} twice; do not use this bundle")
        seen.add(file.path.casefold())
    paths = {file.path for file in manifest.files}
    for path in (*(model.path for model in manifest.models), f"{manifest.encoder}/config.json", EXAMPLES):
        if path not in paths:
            raise InputError(f"{where}: needs {path!r}, which is not among its files; do not use this bundle")


def _verified(folder: Path, where: Path) -> Manifest:
    """The manifest in `folder` once the folder holds exactly what it says; messages speak of `where`."""
    if not (folder / MANIFEST).is_file():
        raise InputError(f"{where}: is not a bundle: it has no {MANIFEST}")
    found = _regular_files(folder, where)
    manifest = _parse((folder / MANIFEST).read_bytes(), f"{where}: {MANIFEST}")
    for file in manifest.files:
        if file.path not in found:
            raise InputError(f"{where}: {file.path}: is missing; copy the bundle again, or build it again")
        path = folder / file.path
        if path.stat().st_size != file.bytes or sha256(path) != file.sha256:
            raise InputError(
                f"{where}: {file.path}: was changed after the build; copy the bundle again, or build it again"
            )
    extra = sorted(found - {MANIFEST} - {file.path for file in manifest.files})
    if extra:
        raise InputError(f"{where}: {extra[0]}: is not in the manifest; remove it, or build the bundle again")
    return manifest


def _regular_files(folder: Path, where: Path) -> set[str]:
    """The path of every file below `folder`; links and whatever else is neither file nor folder are refused."""
    found: set[str] = set()
    for parent, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(parent, name)
            mode, shown = path.lstat().st_mode, path.relative_to(folder).as_posix()
            if stat.S_ISREG(mode):
                found.add(shown)
            elif not stat.S_ISDIR(mode):
                kind = "a link" if stat.S_ISLNK(mode) else "neither a file nor a folder"
                raise InputError(f"{where}: {shown}: is {kind}, which a bundle never holds; do not use this bundle")
    return found


def _unpack(path: Path, folder: Path) -> None:
    """Unpack the files that the manifest in the zip lists, and no byte more than it says, into the empty `folder`."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = _entries(archive, path)
            if entries[MANIFEST].file_size > _MANIFEST_LIMIT:
                raise InputError(
                    f"{path}: {MANIFEST}: has {entries[MANIFEST].file_size} bytes, too many for a manifest"
                )
            manifest = _parse(archive.read(entries[MANIFEST]), f"{path}: {MANIFEST}")
            sizes = {file.path: file.bytes for file in manifest.files}
            if sum(sizes.values()) > shutil.disk_usage(folder).free:
                raise InputError(f"{path}: unpacks to {sum(sizes.values())} bytes, more than {folder.parent} has free")
            for name, entry in entries.items():
                if name != MANIFEST and entry.file_size != sizes.get(name):
                    raise InputError(
                        f"{path}: {name}: has {entry.file_size} bytes, the manifest says "
                        f"{sizes.get(name, 'nothing of it')}; copy the bundle again, or build it again"
                    )
                target = folder / name
                target.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(entry) as source, target.open("xb") as sink:  # gives at most file_size bytes
                    shutil.copyfileobj(source, sink)
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise InputError(f"{path}: is a damaged zip: {error}; copy it again, or build it again") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be unpacked into {folder.parent}: {error}") from None


def _entries(archive: zipfile.ZipFile, path: Path) -> dict[str, zipfile.ZipInfo]:
    """The zip's entries by name: plain files only, each name once, the manifest among them."""
    entries: dict[str, zipfile.ZipInfo] = {}
    for entry in archive.infolist():
        if entry.filename in entries:
            raise InputError(f"{path}: {entry.filename}: stands twice in the zip; do not use this bundle")
        if stat.S_ISLNK(entry.external_attr >> 16):
            raise InputError(f"{path}: {entry.filename}: is a link, which a bundle never holds; do not use this bundle")
        if entry.flag_bits & 1 or entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise InputError(
                f"{path}: {entry.filename}: is encrypted or packed in an unusual way; build the bundle again"
            )
        if not entry.is_dir():
            entries[entry.filename] = entry
    if MANIFEST not in entries:
        raise InputError(f"{path}: is not a whole bundle: it has no {MANIFEST}; copy it again, or build it again")
    return entries
