"""The kit for this host, built once a session, and libraries for other machines made with the same compiler."""

import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from edgekit.bench.runner import build as runner_build

HOST = {"x86_64": "linux-x86_64", "aarch64": "linux-arm64"}.get(platform.machine())


@pytest.fixture(scope="session")
def kit() -> Path:
    if sys.platform != "linux" or HOST is None:
        pytest.skip("the native runner runs on Linux, x86-64 or arm64")
    return runner_build.build(HOST)


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Compile a shared library for any machine: `library("aarch64-linux-gnu.2.17", "libx.so", "int x;")`."""
    made: dict[tuple[str, ...], Path] = {}

    def compile(triple: str, name: str, source: str) -> Path:
        if (triple, name, source) not in made:
            folder = tmp_path_factory.mktemp("library")
            (folder / "x.c").write_text(source)
            command = [sys.executable, "-m", "ziglang", "cc", "-target", triple, "-shared", "-fPIC", "-s", "x.c"]
            subprocess.run([*command, f"-Wl,-soname,{name}", "-o", name], cwd=folder, check=True, timeout=300)
            made[triple, name, source] = folder / name
        return made[triple, name, source]

    return compile
