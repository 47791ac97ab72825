"""The lab's devices as fixtures; what cannot be had here skips the test with its reason. See tests/lab/lab.py."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lab
import pytest


@contextlib.contextmanager
def _or_skip() -> Iterator[None]:
    try:
        yield
    except lab.Missing as reason:
        pytest.skip(str(reason))


@pytest.fixture
def sshd(tmp_path: Path) -> Iterator[lab.Sshd]:
    """A real OpenSSH server on loopback."""
    with _or_skip(), lab.sshd(tmp_path) as box:
        yield box


@pytest.fixture
def sshd_without_sftp(tmp_path: Path) -> Iterator[lab.Sshd]:
    """One that has no sftp subsystem, as dropbear and busybox boards."""
    with _or_skip(), lab.sshd(tmp_path, sftp=False) as box:
        yield box


@pytest.fixture
def jumped_sshd(tmp_path: Path) -> Iterator[tuple[lab.Sshd, lab.Sshd]]:
    """Two of them: the first is reached through the second."""
    with _or_skip(), lab.jumped_sshd(tmp_path) as boxes:
        yield boxes


@pytest.fixture(params=[29, 36], ids=["adb29", "adb36"])
def adb(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[lab.AdbServer]:
    """Each adb client with a server of its own, which any adb in this process now asks too."""
    with _or_skip(), lab.adb_server(tmp_path, lab.adb_client(request.param)) as server:
        for name, value in server.env.items():
            monkeypatch.setenv(name, value)
        yield server


@pytest.fixture
def adbd(tmp_path: Path) -> Iterator[Callable[..., lab.Adbd]]:
    """`adbd(name, ...)` starts a real adbd that looks like a phone; see `lab.adbd`."""
    with contextlib.ExitStack() as phones:

        def start(name: str = "phone", **options: Any) -> lab.Adbd:
            with _or_skip():
                return phones.enter_context(lab.adbd(tmp_path / "phones", name, **options))

        yield start


@pytest.fixture(scope="session")
def board(tmp_path_factory: pytest.TempPathFactory) -> Iterator[lab.Board]:
    """The ARM64 board, booted once for all tests: leave nothing on it."""
    with _or_skip(), lab.board(tmp_path_factory.mktemp("lab")) as device:
        yield device
