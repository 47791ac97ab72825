"""Bars on a real terminal."""

import pty
import subprocess
import sys

import pytest

from edgekit import progress

SHOW = """
import threading
from edgekit import progress

def work(name):
    with progress.bar(name, 2) as done:
        both.wait()
        done(1)
        with progress.bar("inner " + name, 1):
            both.wait()

both = threading.Barrier(2)
threads = [threading.Thread(target=work, args=(name,)) for name in ("one", "two")]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
with progress.bar("after", 1):
    pass
"""


def test_a_line_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    progress.say("a\nb\x1b[2J: failed")
    assert capsys.readouterr().err == "a / b?[2J: failed\n"


def test_one_bar_at_a_time_whoever_asks() -> None:
    ours, theirs = pty.openpty()
    with open(ours, "rb", buffering=0) as terminal:
        with open(theirs, "wb") as stderr:
            subprocess.run([sys.executable, "-c", SHOW], stderr=stderr, timeout=30, check=True)
        shown = terminal.read(100_000)
    assert b"after" in shown and b"inner" not in shown
    assert (b"one" in shown) != (b"two" in shown)
