"""What can go wrong for a user, each kind with its exit code.

A message says what was attempted, what was found and what to do, and names the file and key. `cli` catches
`EdgekitError` once; anything else is a bug and keeps its traceback.
"""

from collections.abc import Iterable
from difflib import get_close_matches


class EdgekitError(Exception):
    """A failure that the user can act on."""

    exit_code = 1


class InputError(EdgekitError):
    """The recipe, the flags, a model or the data cannot be used as given (exit code 2)."""

    exit_code = 2


class NotGoodEnough(EdgekitError):
    """The work was done and the result misses what was asked: a score, a budget, parity (exit code 3)."""

    exit_code = 3


class DeviceError(EdgekitError):
    """A device or the link to it failed; trying again may help (exit code 4)."""

    exit_code = 4


def printable(text: str) -> str:
    """Text that came from a device or a file, on one line and without a terminal's control codes."""
    return "".join(c if c.isprintable() else "?" for c in " / ".join(text.splitlines()))


def nearest(name: str, known: Iterable[str]) -> str:
    """The half sentence that helps after a typo: `did you mean "kl"?`, or the list of what exists."""
    known = sorted(known)
    close = get_close_matches(name, known, n=1)
    return f'did you mean "{close[0]}"?' if close else f"there is: {', '.join(known) or 'nothing'}"
