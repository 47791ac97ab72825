"""The kit for this host, built once a session, and libraries for other machines made with the same compiler."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tinymodels import HOST

from edgekit.bench.runner import build as runner_build


@pytest.fixture(scope="session")
def kit() -> Path:
    if sys.platform != "linux" or HOST is None:
        pytest.skip("the native runner runs on Linux, x86-64 or arm64")
    return runner_build.build(HOST)


@pytest.fixture(scope="session")
def zig_cache() -> Path:
    """What the compiler keeps, from one test to the next: its C library for each target takes seconds to make."""
    folder = Path(os.environ["XDG_CACHE_HOME"], "edgekit", "zig")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(autouse=True)
def home_with_zig_cache(edgekit_home: Path, zig_cache: Path) -> None:
    (edgekit_home / "cache" / "edgekit").mkdir(parents=True)
    (edgekit_home / "cache" / "edgekit" / "zig").symlink_to(zig_cache)


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory, zig_cache: Path) -> Callable[..., Path]:
    """Compile a shared library for any machine: `library("aarch64-linux-gnu.2.17", "libx.so", "int x;")`; one that
    needs no C library with "-nostdlib" behind."""
    made: dict[tuple[str, ...], Path] = {}

    def compile(*given: str) -> Path:
        if given not in made:
            triple, name, source, *more = given
            folder = tmp_path_factory.mktemp("library")
            (folder / "x.c").write_text(source)
            command = [sys.executable, "-m", "ziglang", "cc", "-target", triple, "-shared", "-fPIC", "-s", "x.c"]
            command += [*more, f"-Wl,-soname,{name}", "-o", name]
            environment = {**os.environ, "ZIG_GLOBAL_CACHE_DIR": str(zig_cache), "ZIG_LOCAL_CACHE_DIR": str(zig_cache)}
            subprocess.run(command, cwd=folder, env=environment, check=True, timeout=300)
            made[given] = folder / name
        return made[given]

    return compile
