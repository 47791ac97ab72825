"""Progress on stderr: bars for what lasts, one line for what happens. Silent bars where stderr is no terminal."""

import os
import sys
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager, redirect_stderr, redirect_stdout

from edgekit.errors import printable

_showing = threading.Lock()


def say(line: str) -> None:
    """One line on stderr, whatever a device's name or words hold."""
    print(printable(line), file=sys.stderr, flush=True)


@contextmanager
def bar(what: str, total: int | None = None) -> Generator[Callable[[int], None]]:
    """A bar (a spinner where `total` is not known); call what it gives with the steps done so far.

    One is shown at a time: inside another one, or beside another thread's, this shows nothing.
    """
    if not sys.stderr.isatty() or not _showing.acquire(blocking=False):
        yield lambda done: None
        return
    try:
        with _bar(what, total) as show:
            yield show
    finally:
        _showing.release()


@contextmanager
def _bar(what: str, total: int | None) -> Generator[Callable[[int], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

    columns = (
        (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        if total
        else (TextColumn("{task.description}"), SpinnerColumn())
    )
    with (
        os.fdopen(os.dup(2), "w") as own,  # `quiet` does not silence a copy
        Progress(*columns, console=Console(file=own), transient=True) as shown,
    ):
        task = shown.add_task(what, total=total)
        yield lambda done: shown.update(task, completed=done)


@contextmanager
def quiet() -> Generator[None]:
    """Drop what libraries print to stdout and stderr, C++ ones too, for which there is no other switch."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = os.dup(1), os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
        with redirect_stdout(sys.__stdout__), redirect_stderr(sys.__stderr__):  # where another stands in for them
            yield
            sys.stdout.flush()
            sys.stderr.flush()
    finally:
        for number, copy in zip((1, 2), kept, strict=True):
            os.dup2(copy, number)
            os.close(copy)
        os.close(nowhere)
