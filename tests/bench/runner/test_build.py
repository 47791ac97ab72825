"""Kits: cross-compiled for every target, libraries checked, and one clear message for everything that is missing."""

import os
import re
import struct
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import pytest
from tinymodels import HOST

from edgekit.bench.runner import build as builder
from edgekit.bench.runner.build import HERE, build, describe, find, read
from edgekit.errors import InputError
from edgekit.store import sha256

TRIPLE = {
    "linux-arm64": "aarch64-linux-gnu.2.17",
    "linux-armv7": "arm-linux-gnueabihf.2.17",
    "linux-x86_64": "x86_64-linux-gnu.2.17",
}
MACHINE = {"linux-arm64": (2, 183), "linux-armv7": (1, 40), "linux-x86_64": (2, 62)}
ORT = "#include <stdlib.h>\nvoid *OrtGetApiBase(void) { return malloc(1); }"
LITERT = "#include <stdlib.h>\nvoid *LiteRtCreateCompiledModel(void) { return malloc(1); }"
GLIBC = (
    "ld-linux-aarch64.so.1", "libc.so.6", "libm.so.6", "libdl.so.2", "libpthread.so.0", "librt.so.1", "libstdc++.so.6",
    "libgcc_s.so.1",
)  # fmt: skip

Compile = Callable[..., Path]


@pytest.fixture
def stubs(library: Compile) -> Callable[[str], list[Path]]:
    """Both libraries for a target, each with nothing in it but the symbol by which it is known."""
    return lambda target: [
        library(TRIPLE[target], "libonnxruntime.so", ORT),
        library(TRIPLE[target], "libLiteRt.so", LITERT),
    ]


@pytest.fixture
def sysroot(tmp_path: Path, library: Compile) -> Path:
    """A folder that has an arm64 glibc by name, and x86-64 files of the same names that are not to be taken."""
    arm = library(TRIPLE["linux-arm64"], "libonnxruntime.so", ORT).read_bytes()
    other = library(TRIPLE["linux-x86_64"], "libonnxruntime.so", ORT).read_bytes()
    for folder, data in (("lib/aarch64", arm), ("a/x86", other)):
        (tmp_path / "sysroot" / folder).mkdir(parents=True)
        for name in GLIBC:
            (tmp_path / "sysroot" / folder / name).write_bytes(data)
    return tmp_path / "sysroot"


@pytest.fixture
def ndk(tmp_path: Path) -> Path:
    """An NDK's folder whose clang is ziglang: there is no bionic to link with, all else is as with the real one."""
    clang = tmp_path / "ndk/toolchains/llvm/prebuilt/linux-x86_64/bin/clang"
    clang.parent.mkdir(parents=True)
    clang.write_text(
        "#!/bin/sh\n[ \"$2\" = --version ] && { echo 'Android clang version 18.0.1'; exit; }\n"
        '[ "$1" = --target=aarch64-linux-android21 ] || exit 9\nshift\n'
        f'exec {sys.executable} -m ziglang cc -target aarch64-linux-gnu.2.17 "$@"\n'
    )
    clang.chmod(0o755)
    return tmp_path / "ndk"


@pytest.mark.parametrize("target", list(TRIPLE))
def test_every_linux_target_is_compiled_for_its_machine_and_glibc_2_17(
    target: str, stubs: Callable[[str], list[Path]]
) -> None:
    folder = build(target, runtime_lib=stubs(target))
    kit = read(folder)
    runner = (folder / "edgekit-runner").read_bytes()
    assert (runner[4], struct.unpack_from("<H", runner, 18)[0]) == MACHINE[target]
    assert max(int(minor) for minor in re.findall(rb"GLIBC_2\.(\d+)", runner)) <= 17
    assert len(runner) < 100_000 and os.access(folder / "edgekit-runner", os.X_OK)
    assert kit.start == ("{dir}/edgekit-runner",) and kit.os == "linux" and kit.unverified is None
    assert kit.libraries == {"onnx": "libonnxruntime.so", "tflite": "libLiteRt.so"} and not kit.notes
    for file in kit.files:
        assert sha256(folder / file.path) == file.sha256 and (folder / file.path).stat().st_size == file.bytes
    assert {file.path for file in kit.files} == {path.name for path in folder.iterdir()} - {"kit.json"}


def test_a_second_build_returns_the_first_and_the_last_one_is_found(stubs: Callable[[str], list[Path]]) -> None:
    both = build("linux-armv7", runtime_lib=stubs("linux-armv7"))
    bare = build("linux-armv7")
    made = (both / "edgekit-runner").stat().st_mtime_ns
    assert find("linux-armv7") == bare != both
    assert build("linux-armv7", runtime_lib=stubs("linux-armv7")) == both == find("linux-armv7")
    assert (both / "edgekit-runner").stat().st_mtime_ns == made


def test_a_kit_that_lost_a_file_is_made_again_with_the_same_bytes(stubs: Callable[[str], list[Path]]) -> None:
    libraries = stubs("linux-armv7")
    folder = build("linux-armv7", runtime_lib=libraries)
    before = read(folder)
    (folder / "edgekit-runner").unlink()
    assert read(build("linux-armv7", runtime_lib=libraries)) == before


def test_a_kit_of_an_older_edgekit_is_passed_over() -> None:
    folder = build("linux-armv7")
    older = folder.with_name("linux-armv7-0123")
    older.mkdir()
    (older / "kit.json").write_text('{"what": "it was then"}')
    assert find("linux-armv7") == folder


def test_20_devices_that_ask_at_once_wait_for_one_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []

    def counted(*args: Any) -> None:
        made.append(str(args[-1]))
        compile_for(*args)

    compile_for = builder._compile
    monkeypatch.setattr(builder, "_compile", counted)
    with ThreadPoolExecutor(20) as pool:
        assert len(set(pool.map(find, ["linux-armv7"] * 20))) == 1
    assert made == ["linux-armv7"]


def test_armv7_has_no_wheel_and_says_what_to_do() -> None:
    text = describe(build("linux-armv7"))
    assert "--runtime-lib libLiteRt.so" in text and "Python runner with tflite-runtime" in text


def test_out_is_a_copy_and_nothing_else_is_overwritten(tmp_path: Path) -> None:
    out = build("linux-armv7", tmp_path / "kit")
    assert out == tmp_path / "kit" and read(out).target == "linux-armv7"
    assert build("linux-armv7", tmp_path / "kit") == out
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="is no runner's kit"):
        build("linux-armv7", tmp_path / "mine")
    assert (tmp_path / "mine/thesis.txt").read_text() == "years of work"


@pytest.mark.target
def test_the_pinned_libraries_are_the_installed_ones(kit: Path) -> None:
    assert read(kit).versions.keys() >= {"onnx", "tflite", "runner", "compiler"}
    assert {"libonnxruntime.so", "libLiteRt.so"} <= {file.path for file in read(kit).files}


@pytest.mark.target
def test_the_pinned_arm64_libraries_come_out_of_the_wheels() -> None:
    if HOST == "linux-arm64":
        pytest.skip("they are this host's own")
    try:
        folder = build("linux-arm64")
    except InputError as error:
        if "check the network" not in str(error):
            raise
        pytest.skip(f"no wheels to be had: {str(error)[-200:]}")
    assert read(folder).libraries.keys() == {"onnx", "tflite"}
    data = (folder / "libLiteRt.so").read_bytes()
    assert struct.unpack_from("<H", data, 18)[0] == 183


# Android


def test_android_with_an_ndk(ndk: Path, library: Compile) -> None:
    bionic = library(TRIPLE["linux-arm64"], "libonnxruntime.so", "int OrtGetApiBase = 1;", "-nostdlib")
    folder = build("android", ndk=ndk, runtime_lib=[bionic])
    kit = read(folder)
    assert kit.os == "android" and kit.start == ("{dir}/edgekit-runner",) and kit.unverified is None
    assert kit.libraries == {"onnx": "libonnxruntime.so"} and "--runtime-lib libLiteRt.so" in kit.notes[0]
    assert kit.versions["compiler"] == "Android clang version 18.0.1"
    assert find("android") == folder


def test_android_through_a_pushed_loader(sysroot: Path, stubs: Callable[[str], list[Path]]) -> None:
    folder = build("android", sysroot=sysroot, runtime_lib=stubs("linux-arm64"))
    kit = read(folder)
    assert kit.start == ("{dir}/ld-linux-aarch64.so.1", "--library-path", "{dir}", "{dir}/edgekit-runner")
    assert kit.unverified and "not been tried on a phone" in kit.unverified and kit.unverified in describe(folder)
    for name in GLIBC:
        assert struct.unpack_from("<H", (folder / name).read_bytes(), 18)[0] == 183


def test_android_says_what_it_needs(
    tmp_path: Path, sysroot: Path, ndk: Path, monkeypatch: pytest.MonkeyPatch, stubs: Callable[[str], list[Path]]
) -> None:
    with pytest.raises(InputError, match=r"--ndk FOLDER .* or --sysroot"):
        build("android")
    with pytest.raises(InputError, match=r"--ndk FOLDER .* or --sysroot"):
        build("android", ndk=ndk, sysroot=sysroot)
    with pytest.raises(InputError, match=r"has no toolchains/llvm"):
        build("android", ndk=tmp_path)
    (sysroot / "lib/aarch64/librt.so.1").unlink()
    with pytest.raises(InputError, match=r"no arm64 librt\.so\.1"):
        build("android", sysroot=sysroot)
    with pytest.raises(InputError, match=r"is linked with glibc; .*AAR"):
        build("android", ndk=ndk, runtime_lib=stubs("linux-arm64"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(InputError, match="edgekit runner build --target android"):
        find("android")


# What can be missing or unfit


def test_a_target_that_is_none() -> None:
    with pytest.raises(InputError, match='did you mean "linux-arm64"'):
        build("linux-arm46")
    with pytest.raises(InputError, match="are for android"):
        build("linux-arm64", ndk=Path("ndk"))


def test_a_library_that_does_not_fit(tmp_path: Path, stubs: Callable[[str], list[Path]], library: Compile) -> None:
    arm, x86 = stubs("linux-arm64"), stubs("linux-x86_64")
    with pytest.raises(InputError, match="is for x86_64, linux-arm64 needs arm64-v8a"):
        build("linux-arm64", runtime_lib=[x86[0]])
    with pytest.raises(InputError, match="two libraries for the same format"):
        build("linux-arm64", runtime_lib=[arm[0], arm[0]])
    with pytest.raises(InputError, match="cannot be read: No such file"):
        build("linux-arm64", runtime_lib=[tmp_path / "absent.so"])
    user = library(
        TRIPLE["linux-arm64"],
        "libuser.so",
        "extern void *OrtGetApiBase(void);\nvoid *f(void) { return OrtGetApiBase(); }",
    )
    with pytest.raises(InputError, match="has neither OrtGetApiBase nor LiteRtCreateCompiledModel"):
        build("linux-arm64", runtime_lib=[user])  # it needs the symbol and does not have it
    bionic = library(TRIPLE["linux-arm64"], "libLiteRt.so", "int LiteRtCreateCompiledModel = 1;", "-nostdlib")
    with pytest.raises(InputError, match="is not linked with glibc"):
        build("linux-arm64", runtime_lib=[bionic])
    whole = arm[0].read_bytes()
    for name, data in {"text": b"hello", "cut": whole[: len(whole) // 2], "empty": b"", "head": whole[:20]}.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(InputError, match="is no shared library"):
            build("linux-arm64", runtime_lib=[tmp_path / name])


def test_no_ziglang(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ziglang", None)
    with pytest.raises(InputError, match=r"pip install \"edgekit\[bench\]\""):
        build("linux-armv7")


def test_a_compiler_that_fails(ndk: Path, tmp_path: Path) -> None:
    clang = next(ndk.glob("toolchains/llvm/prebuilt/*/bin/clang"))
    clang.write_text(
        "#!/bin/sh\n[ \"$2\" = --version ] && exec echo clang\necho 'runner.c:1: no such luck' >&2\nexit 3\n"
    )
    with pytest.raises(InputError, match=r"compiling the runner for android: .* ended with 3: .*no such luck"):
        build("android", ndk=ndk)


def test_no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, stubs: Callable[[str], list[Path]]) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    other = "linux-x86_64" if HOST == "linux-arm64" else "linux-arm64"
    with pytest.raises(InputError, match=r"fetching ai-edge-litert==.*check the network.*--runtime-lib"):
        build(other, runtime_lib=stubs(other)[:1])
    assert not list((tmp_path / "edgekit/runners").iterdir())


@pytest.mark.skipif(HOST == "linux-arm64", reason="the arm64 wheel is the installed one here")
def test_a_wheel_that_is_another(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, stubs: Callable[[str], list[Path]]
) -> None:
    wheel = tmp_path / "wheels/onnxruntime-1.31.1-cp311-cp311-manylinux_2_28_aarch64.whl"
    wheel.parent.mkdir()
    with zipfile.ZipFile(wheel, "w") as archive:
        info = "onnxruntime-1.31.1.dist-info"
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: onnxruntime\nVersion: 1.31.1\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: cp311-cp311-manylinux_2_28_aarch64\n")
        archive.writestr("onnxruntime/capi/libonnxruntime.so.1.31.1", b"evil")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    with pytest.raises(InputError, match=f"has sha256 {sha256(wheel)}, expected .*; it was not used"):
        build("linux-arm64", runtime_lib=stubs("linux-arm64")[1:])
    assert not list((tmp_path / "cache/edgekit/runners").iterdir())


def test_a_cache_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(InputError, match=r"Not a directory; .*XDG_CACHE_HOME"):
        build("linux-armv7")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "none", str(disk)], capture_output=True).returncode:
        pytest.skip("mounting a small disk needs root")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.target
@pytest.mark.parametrize("target", [None, "linux-arm64"])  # this host's, whose libraries may be installed; and fetched
def test_a_full_disk(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch, kit: Path, target: Literal["linux-arm64"] | None
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(small_disk))
    (small_disk / "edgekit").mkdir()
    (small_disk / "edgekit/zig").symlink_to(kit.parent.parent / "zig")
    with pytest.raises(InputError, match=r"No space left on device; .*100 MB"):
        build(target or read(kit).target)
    assert not list((small_disk / "edgekit/runners").iterdir())


def test_a_folder_that_is_no_kit(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no runner's kit"):
        read(tmp_path)
    (tmp_path / "kit.json").write_text('{"target": "moon"}')
    with pytest.raises(InputError, match="is no runner's kit"):
        read(tmp_path)


def test_the_libraries_ask_for_the_glibc_that_is_written_down(kit: Path) -> None:
    """Wheels promise less than they need: LiteRT's for arm64 says 2.27 and asks for 2.34."""
    found = read(kit)
    pins = tomllib.loads((HERE / "libraries.toml").read_text())["library"]
    for pin in (pin for pin in pins if pin["target"] == found.target):
        data = (kit / found.libraries[pin["format"]]).read_bytes()
        assert max(int(minor) for minor in re.findall(rb"\0GLIBC_2\.(\d+)(?=[.\0])", data)) == int(pin["glibc"][2:])
