"""This host, reached like any other device: the same leash, deadlines and private work folder."""

import shutil
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

from edgekit.bench.transports import Transport
from edgekit.errors import DeviceError
from edgekit.records import Record

WORKDIR = "~/.cache/edgekit/work"


class Params(Record):
    """Nothing to say: there is one host."""


@contextmanager
def connect(params: Params) -> Generator[Transport]:
    """This host's shell and files."""
    yield Transport("this host", ("sh", "-c"), _lost, _send, _fetch)


def _lost(code: int, stderr: bytes) -> str:
    return f"its shell ended with {code}: {stderr.decode(errors='replace').strip()[-300:] or 'it printed nothing'}"


def _send(local: Path, remote: str, deadline_s: float, sent: Callable[[int], None]) -> None:
    _copy(local, Path(remote))
    sent(local.stat().st_size)


def _fetch(remote: str, local: Path, deadline_s: float) -> None:
    _copy(Path(remote), local)


def _copy(source: Path, target: Path) -> None:
    try:
        shutil.copyfile(source, target)
    except OSError as error:
        raise DeviceError(f"this host: cannot copy {source} to {target}: {error.strerror}") from None
