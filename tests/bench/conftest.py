"""The lab's devices as fixtures; what cannot be had here skips the test with its reason. See tests/lab/lab.py."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

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
