"""Targets and scripted commands for the tests of transports."""

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import lab
import pytest
import targets


@pytest.fixture(params=targets.KINDS)
def target(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[targets.Target]:
    """Every kind of real device in turn."""
    with contextlib.ExitStack() as stack:
        try:
            found, env = stack.enter_context(targets.target(request.param, tmp_path))
        except lab.Missing as reason:
            pytest.skip(str(reason))
        for name, value in env.items():
            monkeypatch.setenv(name, value)
        yield found


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """`commands(name="script")` puts scripts of these names on PATH, before all else."""
    folder = tmp_path / "commands"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")

    def write(**scripts: str) -> Path:
        for name, script in scripts.items():
            (folder / name).write_text(f"#!/bin/sh\n{script}\n")
            (folder / name).chmod(0o755)
        return folder

    return write
