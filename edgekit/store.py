"""The store: artifacts on disk, one folder each, named by a hash of what made them.

    .edgekit/
      distill-3f1c…/        an artifact: its files, and manifest.json
      work/distill-9ab4…/   one being made: out/ and scratch/ (training checkpoints), both gone when it is done
      locks/                one lock a key, so that two builds at once make each artifact once

A folder gets its final name by one rename after its manifest is written, so what has a name is complete. A killed
build leaves only `work/`, and the next one goes on from the scratch folder in it.
"""

import ast
import errno
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

import edgekit
from edgekit.errors import EdgekitError, InputError
from edgekit.records import Artifact, Facts, File, parse

MANIFEST = "manifest.json"


def sha256(path: Path) -> str:
    """The sha256 of a file's contents, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def files_in(folder: Path) -> tuple[File, ...]:
    """Every file below `folder` but the manifest, in order of path, hashed."""
    paths = sorted(p for p in folder.rglob("*") if p.is_file() and p != folder / MANIFEST)
    return tuple(File(path=p.relative_to(folder).as_posix(), bytes=p.stat().st_size, sha256=sha256(p)) for p in paths)


def key(ingredients: Mapping[str, Any]) -> str:
    """The sha256 (hex) of what makes an artifact, as canonical JSON."""
    return hashlib.sha256(json.dumps(ingredients, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def sources(modules: Iterable[str]) -> tuple[str, dict[str, str]]:
    """What code stands behind `modules`: a sha256 over their source and the versions of the libraries it uses.

    The closure follows every import that stays within the module's own top-level package, also those inside
    functions; all other imports but the standard library's count by their installed version.
    """
    found: dict[str, Path] = {}
    foreign: set[str] = set()
    todo = list(modules)
    while todo:
        module = todo.pop()
        if module in found or (path := _source(module)) is None:
            continue
        found[module] = path
        for imported in _imports(path):
            package = imported.partition(".")[0]
            if package in (module.partition(".")[0], "edgekit"):
                todo.append(imported)
            else:
                foreign.add(package)
    digest = hashlib.sha256()
    for module in sorted(found):
        digest.update(f"{module}:{sha256(found[module])}\n".encode())
    versions = {name: _version(name) for name in sorted(foreign - sys.stdlib_module_names)}
    versions["python"] = f"{sys.version_info.major}.{sys.version_info.minor}"
    return digest.hexdigest(), versions


@cache
def _source(module: str) -> Path | None:
    """The file of a module, or `None` where the name is not one (a function imported from a module, say)."""
    if module.split(".", maxsplit=1)[0] == "edgekit":
        base = Path(edgekit.__file__).parent.joinpath(*module.split(".")[1:])
        return next((p for p in (base.with_suffix(".py"), base / "__init__.py") if p.is_file()), None)
    try:
        spec = importlib.util.find_spec(module)
    except ModuleNotFoundError:
        return None
    return Path(spec.origin) if spec and spec.origin and spec.origin.endswith(".py") else None


@cache
def _imports(path: Path) -> tuple[str, ...]:
    """Every name that a source file imports; `from a import b` gives both `a` and `a.b`, as b may be a module."""
    names: list[str] = []
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return tuple(names)


@cache
def _version(name: str) -> str:
    distribution = {"sklearn": "scikit-learn", "PIL": "pillow"}.get(name, name)
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def standing(path: Path) -> Path:
    """`path`, or the nearest folder above it that there is."""
    path = path.absolute()
    return next(each for each in (path, *path.parents) if os.path.lexists(each))


class Store:
    """Artifacts in one folder. Safe for several builds at once and against kills at any moment."""

    def __init__(self, root: Path) -> None:
        """`root` is made with the first artifact; an `InputError` says here already where that cannot be done."""
        self.root = root
        at = standing(root)
        if not (at.is_dir() and os.access(at, os.W_OK | os.X_OK)):
            raise InputError(f"--store: cannot make the folder {root}: {at} is not a writable folder; name another")

    def folder(self, name: str, id: str) -> Path:
        """Where the artifact stands, or will."""
        return self.root / f"{name}-{id[:16]}"

    def find(self, name: str, id: str) -> Artifact | None:
        """The artifact, if it is complete: its manifest stands and every file has its size."""
        folder = self.folder(name, id)
        if not (folder / MANIFEST).is_file():
            return None
        artifact = parse(Artifact, json.loads((folder / MANIFEST).read_text()), folder / MANIFEST)
        for file in artifact.files:
            path = folder / file.path
            if not path.is_file() or path.stat().st_size != file.bytes:
                raise InputError(f"{path}: changed since it was made; remove the folder {folder} to make it again")
        return artifact

    def make(
        self,
        name: str,
        stage: str,
        id: str,
        parents: tuple[str, ...],
        versions: dict[str, str],
        work: Callable[[Path, Path], Facts],
        waiting: Callable[[], None],
    ) -> tuple[Artifact, bool]:
        """The artifact, and whether it was there already.

        `work(out, scratch)` fills the empty folder `out`; `scratch` keeps what an earlier, killed attempt at the
        same key left. `waiting` is called once if another process is making it now.
        """
        locks = self.root / "locks"
        try:
            locks.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"--store: cannot make the folder {locks}: {error.strerror}; name another") from None
        lock = FileLock(locks / f"{id[:16]}.lock")
        try:
            held = lock.acquire(timeout=0.05)
        except Timeout:
            waiting()
            held = lock.acquire()
        with held:
            if found := self.find(name, id):
                return found, True
            return self._make(name, stage, id, parents, versions, work), False

    def _make(
        self,
        name: str,
        stage: str,
        id: str,
        parents: tuple[str, ...],
        versions: dict[str, str],
        work: Callable[[Path, Path], Facts],
    ) -> Artifact:
        desk = self.root / "work" / f"{name}-{id[:16]}"
        out, scratch = desk / "out", desk / "scratch"
        try:
            shutil.rmtree(out, ignore_errors=True)
            for folder in (out, scratch):
                folder.mkdir(parents=True, exist_ok=True)
            start = time.monotonic()
            facts = work(out, scratch)
            artifact = Artifact(
                id=id, name=name, stage=stage, parents=parents, files=files_in(out), facts=facts,
                seconds=round(time.monotonic() - start, 3), versions=versions,
            )  # fmt: skip
            (out / MANIFEST).write_text(artifact.model_dump_json(indent=1))
            out.rename(self.folder(name, id))
        except EdgekitError:
            shutil.rmtree(out, ignore_errors=True)
            raise
        except Exception as error:  # a full disk shows itself in many libraries' own exceptions
            free = shutil.disk_usage(self.root).free
            if not _is_full_disk(error, free):
                raise
            shutil.rmtree(out, ignore_errors=True)
            raise InputError(
                f"{name}: the disk that holds {self.root} is full ({free / 1e6:.0f} MB free); free some space or "
                "name another store with --store, then run the same command again to go on"
            ) from error
        shutil.rmtree(desk, ignore_errors=True)
        return artifact


def _is_full_disk(error: BaseException, free: int) -> bool:
    """Torch, safetensors and ONNX report a failed write in words of their own; a full disk is what they share."""
    said = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    return said or "No space left" in str(error) or free < 1_000_000
