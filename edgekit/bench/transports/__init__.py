"""Transports: how to reach a device. The only place that starts remote commands.

A plugin opens a `Transport`, and that has three methods: `run`, `push` and `pull`. All of them take argument lists,
never shell strings, and a deadline; a lost link is a `DeviceError`, a command that fails is a `Done` with its code.

Every remote command runs on a leash, in a process group of its own: it is ended when its deadline passes and when our
end of its standard input closes, which happens even if this process is killed. What it printed counts only if a
nonce and the exit code follow: adb 29 returns 0 when the device dies in mid-command, ssh's 255 may be either.

    sh -c LEASH edgekit NONCE SECONDS argv...      ->      what argv printed, then "NONCE:exit code"
"""

import os
import secrets
import selectors
import shlex
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from edgekit.errors import DeviceError

_LEASH = """\
nonce=$1 seconds=$2; shift 2
exec 3<&0
setsid "$@" </dev/null 3<&- & run=$!
setsid sh -c 'cat >/dev/null; kill -TERM -'"$run"'; sleep 2; kill -KILL -'"$run" <&3 >/dev/null 2>&1 & leash=$!
setsid sh -c 'sleep '"$seconds"'; kill -TERM -'"$run"'; sleep 2; kill -KILL -'"$run" 3<&- >/dev/null 2>&1 & timer=$!
wait "$run"; code=$?
kill -KILL -"$leash" -"$timer" 2>/dev/null
printf '\\n%s:%d\\n' "$nonce" "$code"
"""
_GRACE_S = 8.0
"""How long after the remote deadline an answer is still awaited: the leash first asks, then kills."""
_MOST_BYTES = 512_000_000
"""More output than this is no answer of ours."""


@dataclass(frozen=True)
class Done:
    """A command that ran to its end on the device."""

    argv: tuple[str, ...]
    code: int
    stdout: bytes
    stderr: bytes

    def good(self, what: str) -> bytes:
        """Its stdout, or a `DeviceError` with `what` was attempted, the exit code and the last lines of stderr."""
        if self.code:
            raise DeviceError(f"{what}: {shlex.join(self.argv)[:200]} ended with {self.code}: {self.last_words()}")
        return self.stdout

    def last_words(self) -> str:
        """The last lines of stderr, or else stdout, on one line."""
        lines = (self.stderr.strip() or self.stdout.strip()).decode(errors="replace").splitlines()
        return " / ".join(line.strip() for line in lines[-3:])[-500:] or "it printed nothing"


@dataclass(frozen=True)
class Transport:
    """An open way to one device."""

    name: str
    """For messages: `adb 8A1X0`, `ssh pi@board`, `this host`."""
    shell: tuple[str, ...]
    """The local command that runs the shell line appended to it on the device."""
    lost: Callable[[int, bytes], str]
    """Why the link broke, from the local command's exit code and stderr, with its remedy."""
    send: Callable[[Path, str, float, Callable[[int], None]], None]
    """`push` without its checks: local file, remote path, deadline in seconds, progress in bytes."""
    fetch: Callable[[str, Path, float], None]

    def run(self, argv: Sequence[str], deadline_s: float, stop: threading.Event | None = None) -> Done:
        """Run `argv` on the device and wait for its end. `stop`, once set, ends it early: SIGTERM, then SIGKILL.

        Raises `DeviceError` when the link breaks or nothing ends within `deadline_s`.
        """
        nonce = secrets.token_hex(8)
        line = shlex.join(["sh", "-c", _LEASH, "edgekit", nonce, f"{deadline_s:.0f}", *argv])
        what = f"{self.name}: {shlex.join(argv)[:120]}"
        started = time.monotonic()
        code, stdout, stderr = converse([*self.shell, line], what, deadline_s + _GRACE_S, stop)
        body, mark, exit_code = stdout.rstrip().rpartition(f"\n{nonce}:".encode())
        if not mark or not exit_code.isdigit():
            raise DeviceError(f"{what}: the link was lost before an answer came: {self.lost(code, stderr)}")
        done = Done(tuple(argv), int(exit_code), body, stderr)
        if time.monotonic() - started >= deadline_s and done.code in (124, 137, 143):
            raise DeviceError(f"{what}: did not end within {deadline_s:.0f} s and was stopped: {done.last_words()}")
        return done

    def push(self, local: Path, remote: str, deadline_s: float, sent: Callable[[int], None] = lambda n: None) -> None:
        """Copy the file `local` to the absolute path `remote`; `sent` hears the bytes so far."""
        self.send(local.absolute(), remote, deadline_s, sent)

    def pull(self, remote: str, local: Path, deadline_s: float) -> None:
        """Copy the file at the absolute path `remote` to `local`."""
        self.fetch(remote, local.absolute(), deadline_s)


class Link(Protocol):
    """What a module in this folder holds. `params` is its own `Params`: what a device record says under `[link]`."""

    Params: type[Any]
    WORKDIR: str
    """Where edgekit works on such a device unless the record says otherwise; `~/` at its start is the home there."""

    def connect(self, params: Any) -> AbstractContextManager[Transport]:
        """An open transport. Raises `DeviceError` where the device cannot be reached: absent, unauthorized, unknown
        host key, two devices and no serial; `InputError` where the local command (adb, ssh) is missing.
        """
        ...


_stopping = threading.Event()


def stop_all() -> None:
    """Let go of every leash, for Ctrl-C: remote commands end by themselves. What is waiting gets a `DeviceError`."""
    _stopping.set()


def converse(
    argv: Sequence[str], what: str, deadline_s: float, stop: threading.Event | None = None
) -> tuple[int, bytes, bytes]:
    """Run a local command with its standard input held open; its exit code, stdout and stderr.

    After `stop` is set its input is closed, and it has a few seconds to end by itself. Raises `DeviceError` naming
    `what` after `deadline_s`. The command is in a session of its own, so a terminal's Ctrl-C meets only us.
    """
    end = time.monotonic() + deadline_s
    collected: dict[int, bytearray] = {}
    with subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    ) as process, selectors.DefaultSelector() as selector:  # fmt: skip
        assert process.stdin and process.stdout and process.stderr  # PIPE was asked for
        out, err = process.stdout.fileno(), process.stderr.fileno()
        for number in (out, err):
            collected[number] = bytearray()
            selector.register(number, selectors.EVENT_READ)
        try:
            while selector.get_map():
                if not process.stdin.closed and (_stopping.is_set() or (stop and stop.is_set())):
                    process.stdin.close()
                    end = min(end, time.monotonic() + _GRACE_S)
                left = end - time.monotonic()
                if left <= 0:
                    raise DeviceError(f"{what}: no answer within {deadline_s:.0f} s; is it hung, or the link slow?")
                for key, _ in selector.select(min(left, 0.1)):
                    chunk = os.read(key.fd, 1 << 16)
                    collected[key.fd] += chunk
                    if not chunk:
                        selector.unregister(key.fd)
                    if len(collected[key.fd]) > _MOST_BYTES:
                        raise DeviceError(f"{what}: printed over {_MOST_BYTES} bytes, which is no answer")
                if process.poll() is not None and not selector.select(0):
                    break  # a child of it may hold its stdout open for longer
            code = process.wait(timeout=max(end - time.monotonic(), 0.1))
        except subprocess.TimeoutExpired:
            raise DeviceError(f"{what}: closed its output but did not end within {deadline_s:.0f} s") from None
        finally:
            if process.poll() is None:
                process.kill()
    return code, bytes(collected[out]), bytes(collected[err])
