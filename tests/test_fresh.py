"""Functions called in a process of their own: what comes back, and that none is left behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edgekit import fresh
from edgekit.errors import InputError


def test_it_is_another_process_and_its_answer_comes_back() -> None:
    assert fresh.call(os.getpid) not in (os.getpid(), os.getppid())
    assert fresh.call(divmod, 17, 5) == (3, 2)


def test_stdout_belongs_to_the_result(capfd: pytest.CaptureFixture[str]) -> None:
    fresh.call(print, "said by a library", flush=True)
    out, err = capfd.readouterr()
    assert (out, err) == ("", "said by a library\n")


def test_what_a_user_can_act_on_is_raised_here(tmp_path: Path) -> None:
    from edgekit import recipe

    with pytest.raises(InputError, match="there is no such file"):
        fresh.call(recipe.read, tmp_path / "none.toml")


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import os; os.kill(os.getpid(), 9)", "killed by SIGKILL; where memory ran out"),
        ("import os; os._exit(7)", "ended with exit code 7"),
        ("1 / 0", "ended with exit code 1; what it said stands above"),
    ],
)
def test_a_process_that_ends_without_an_answer(code: str, said: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(fresh.Stopped, match=said):
        fresh.call(exec, code)
    assert ("ZeroDivisionError" in capfd.readouterr().err) == (code == "1 / 0")


SLEEPS = """
import signal; signal.signal(signal.SIGINT, signal.default_int_handler)
from edgekit import fresh
there = "import os, sys, time; print(os.getpid(), file=sys.stderr, flush=True); time.sleep(60)"
if __name__ == "__main__": fresh.call(exec, there)
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_it_does_not_outlive_its_parent(how: signal.Signals) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", SLEEPS], stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert parent.stderr is not None
    child = int(parent.stderr.readline())
    parent.send_signal(how)
    parent.wait(30)
    late = time.monotonic() + 20
    while _runs(child):
        assert time.monotonic() < late, "the child is still there"
        time.sleep(0.05)
    parent.stderr.close()


def _runs(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
