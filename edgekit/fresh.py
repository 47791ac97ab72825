"""A function called in a process of its own: its memory is its own too, and Ctrl-C ends it at once.

    facts = call(train, recipe, store)          # `train` is a module's function, what it takes and gives is plain data

The process is started anew (`spawn`), not forked, so it holds nothing of what this one has loaded.
"""

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import ParamSpec, TypeVar

from edgekit.errors import EdgekitError

_P = ParamSpec("_P")
_T = TypeVar("_T")


class Stopped(EdgekitError):
    """The process ended without an answer: it was killed, or told of a bug on stderr."""


def call(function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
    """What `function` gives, called in another process, whose stdout is this one's stderr.

    An `EdgekitError` there is raised here as well; `Stopped` says how a process ended that gave nothing. However this
    one ends, the other does not outlive it.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(sender, function, args, kwargs))
    process.start()
    sender.close()
    try:
        good, answer = receiver.recv()
    except EOFError:
        process.join()
        raise Stopped(_ended(process.exitcode)) from None
    finally:
        process.kill()
        process.join()
        receiver.close()
    if not good:
        raise answer
    return answer


def _child(sender: Connection, function: Callable[..., object], args: tuple[object], kwargs: dict[str, object]) -> None:
    for one in (signal.SIGINT, signal.SIGTERM):
        signal.signal(one, signal.SIG_DFL)  # the store is safe against kills, and the parent says what there is to say
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.dup2(2, 1)
    try:
        answer = True, function(*args, **kwargs)
    except EdgekitError as error:
        answer = False, error
    sys.stdout.flush()
    sender.send(answer)


def _end_with_parent() -> None:
    """Wait until the parent is gone, killed perhaps, then end."""
    if parent := multiprocessing.parent_process():
        parent.join()
        os._exit(1)


def _ended(code: int | None) -> str:
    if code is not None and code < 0:
        return (
            f"its process was killed by {signal.Signals(-code).name}; where memory ran out, lower batch_size or "
            "max_length, or give it more"
        )
    return f"its process ended with exit code {code}; what it said stands above"
