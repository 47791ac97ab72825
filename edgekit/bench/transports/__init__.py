"""Transports: how to reach a device. The only place that starts remote commands.

A plugin opens a `Transport`, and that has three methods: `run`, `push` and `pull`; `hold` is `run` for a companion
that lasts. All of them take argument lists, never shell strings, and a deadline; a lost link is a `DeviceError`, a
command that fails is a `Done` with its code.

Every remote command runs on a leash, in a process group of its own: it is ended when its deadline passes and when our
end of its standard input closes, which happens even if this process is killed or the cable is pulled. What it printed
counts only between a nonce and the same nonce with the exit code: adb 29 returns 0 when the device dies in
mid-command, ssh's 255 may be either, and some login shells greet.

    greetings, NONCE, what argv printed, NONCE:exit code
"""

import hashlib
import math
import os
import re
import secrets
import selectors
import shlex
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from functools import lru_cache
from io import BufferedReader, BytesIO
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from edgekit.errors import DeviceError, InputError, printable

# `run` leads the group of the command, `guard` that of what ends it; for other users of the input (`fed`), only time
# does. A group is killed by its leader first, so that the leader cannot add to it in between, nor before it has one.
# `run`'s own shell may be gone too (adbd kills it with the link), or be stuck with output that nobody takes.
# Plain POSIX for dash, bash, mksh and busybox, but for setsid: without a terminal, `set -m` gives no groups in dash.
# `kill -KILL -123` is the one form that kills a group in all of them.
# The input passes to `guard` as 0, since mksh closes what stands above 2 in the programs that it starts.
_LEASH = r"""
exec 3<&0 </dev/null
printf '%s\n' "$nonce"
command -v setsid >/dev/null || { printf '\n%s:setsid\n' "$nonce"; exit; }
if [ "$fed" ]; then setsid "$@" <&3 3<&- & else setsid "$@" </dev/null 3<&- & fi
run=$!
setsid sh -c '
exec 3<&0
sleep "$2" & timer=$!
[ "$3" ] || { while read -r line; do :; done <&3; kill -KILL "$timer"; } &
exec 3<&-
wait "$timer"
kill -TERM "-$1" || kill "$1"
for second in 1 2 3; do kill -0 "-$1" && sleep 1; done
kill -KILL "$1"; kill -KILL "-$1"
kill -0 "$4" && sleep 2 && kill -KILL "$4"
kill -KILL 0
' edgekit "$run" "$seconds" "$fed" "$$" <&3 3<&- >/dev/null 2>&1 & guard=$!
exec 3<&-
wait "$run" 2>/dev/null; code=$?
trap '' PIPE
kill -KILL "-$run" 2>/dev/null
printf '\n%s:%d\n' "$nonce" "$code"
kill -KILL "$guard" 2>/dev/null; kill -KILL "-$guard" 2>/dev/null
"""
SHA256 = r"""
sha256() {
    for tool in sha256sum "busybox sha256sum" "toybox sha256sum" "shasum -a 256"; do
        command -v ${tool%% *} >/dev/null && $tool <"$1" 2>/dev/null && return
    done
    echo "nothing there computes a sha256; install coreutils or busybox" >&2
    return 1
}
"""
"""Shell code: `sha256 FILE` prints hex and a dash by whatever the device has."""
# A file appears whole or not at all: no reader sees a part of it, and what fails leaves none.
_RECEIVE = rf"""{SHA256}
umask 077; export LC_ALL=C
part=$1.part
drop() {{ rm -f "$part"; [ -z "$1" ] || echo "$1" >&2; exit 1; }}
trap drop TERM INT HUP
trap '' PIPE
cat >"$part" && found=$(sha256 "$part") || drop
[ "${{found%% *}}" = "$2" ] || drop "came with sha256 ${{found%% *}}, expected $2"
chmod 700 "$part" && mv -f "$part" "$1" || drop
"""
_GRACE_S = 7.0
"""How long after the remote deadline an answer is still awaited: the leash first asks, then kills."""
_POLL_S = 0.2
_MOST_BYTES = 512_000_000
"""More output than this is no answer of ours."""
_MOST_LINE = 120_000
"""Linux starts no program with an argument of 128 KiB, and the whole line is one of the remote shell's."""
_LONGEST_HOLD_S = 24 * 3600


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
            raise DeviceError(f"{what}: {_short(self.argv)} ended with {self.code}: {self.last_words()}")
        return self.stdout

    def last_words(self) -> str:
        """The last lines of stderr, or else stdout, on one line."""
        return last_words(self.stderr) or last_words(self.stdout) or "it printed nothing"


def last_words(printed: bytes) -> str:
    """The last lines of what a command printed, on one line, fit for a terminal; empty if it printed nothing."""
    lines = printed.decode(errors="replace").strip().splitlines()
    return printable(" / ".join(line.strip() for line in lines[-3:])[-500:])


_stopping = threading.Event()


def stop_all() -> None:
    """Let go of every leash, for Ctrl-C: what runs on a device ends by itself, and who waits for it gets a
    `DeviceError`, now and ever after. Transports opened later know nothing of it.
    """
    global _stopping
    stopped, _stopping = _stopping, threading.Event()
    stopped.set()


@dataclass(frozen=True)
class Transport:
    """An open way to one device."""

    name: str
    """For messages: `adb 8A1X0`, `ssh pi@board`, `this host`."""
    shell: tuple[str, ...]
    """The local command that runs the shell line appended to it on the device, its standard input and both outputs
    joined to ours."""
    lost: Callable[[int, bytes], str]
    """Why the link broke, from the local command's exit code and stderr, with its remedy."""
    stopping: threading.Event = field(default_factory=lambda: _stopping)
    """Set by `stop_all`."""

    def run(
        self,
        argv: Sequence[str],
        deadline_s: float,
        stop: threading.Event | None = None,
        feed: BinaryIO | None = None,
        sent: Callable[[int], None] = lambda sent_bytes: None,
    ) -> Done:
        """Run `argv` on the device and wait for its end. `stop`, once set, ends it early: SIGTERM, then SIGKILL.

        Its standard input is empty, or what `feed` has; `sent` hears the bytes so far. Where it goes beyond its
        deadline or the link breaks, that is a `DeviceError`.
        """
        nonce, line = self._leashed(argv, deadline_s, fed=feed is not None)
        what = f"{self.name}: {_short(argv)}"
        started = time.monotonic()
        stops = (self.stopping, *([stop] if stop else []))
        code, stdout, stderr = converse([*self.shell, line], what, deadline_s + _GRACE_S, stops, feed, sent)
        if self.stopping.is_set():
            raise DeviceError(f"{what}: was interrupted")
        done = self._done(argv, nonce, code, stdout, stderr)
        if time.monotonic() - started >= deadline_s and done.code in (137, 143):  # SIGKILL, SIGTERM
            raise DeviceError(f"{what}: did not end within {deadline_s:.0f} s and was stopped: {done.last_words()}")
        return done

    @contextmanager
    def hold(self, argv: Sequence[str], deadline_s: float) -> Generator[str]:
        """Run `argv` beside the `with` block, and end it after it. Gives the first line that it prints, for which it
        has `deadline_s`; it must print little else.
        """
        nonce, line = self._leashed(argv, _LONGEST_HOLD_S)
        what = f"{self.name}: {_short(argv)}"
        mark = re.compile(rb"%s\r?\n((?:\r?\n%s:)?[^\n]+)\n" % (nonce.encode(), nonce.encode()))
        with held([*self.shell, line], what, deadline_s, mark, self.lost, self.stopping) as first:
            said, ended, code = first.rpartition(f"{nonce}:")
            if ended and not said:
                raise DeviceError(f"{what}: {f'ended at once with {code}' if code.isdigit() else _NO_SETSID}")
            yield first

    def push(
        self,
        local: Path | bytes,
        remote: str,
        deadline_s: float,
        sent: Callable[[int], None] = lambda sent_bytes: None,
    ) -> None:
        """Copy the file `local`, or these bytes, to the absolute path `remote`, for this user alone and executable.

        A file there is replaced at one stroke, after the sha256 was compared on the device; a failure leaves nothing.
        """
        name = f"{len(local)} bytes" if isinstance(local, bytes) else str(local)
        what = f"{self.name}: cannot send {name} to {remote!r}"
        digest = hashlib.sha256(local).hexdigest() if isinstance(local, bytes) else digest_of(local)
        with BytesIO(local) if isinstance(local, bytes) else _opened(local) as feed:
            done = self.run(["sh", "-c", _RECEIVE, "edgekit-push", remote, digest], deadline_s, None, feed, sent)
        if done.code:
            raise DeviceError(f"{what}: {done.last_words()}{remedy(done.stderr)}")

    def pull(self, remote: str, local: Path, deadline_s: float) -> None:
        """Copy the file at the absolute path `remote` to `local`."""
        contents = self.run(["cat", remote], deadline_s).good(f"{self.name}: cannot fetch {remote!r}")
        try:
            local.write_bytes(contents)
        except OSError as error:
            raise InputError(f"{local}: cannot be written: {error.strerror}; name another file") from None

    def _leashed(self, argv: Sequence[str], seconds: float, fed: bool = False) -> tuple[str, str]:
        """A nonce, and the shell line that runs `argv` on a leash.

        The device's login shell may be csh or fish: what those read in other ways than sh stands as octal.
        """
        nonce = secrets.token_hex(8)
        values = f"nonce={nonce} seconds={math.ceil(seconds)} fed={'y' if fed else ''}; set -- {shlex.join(argv)}"
        raw = os.fsencode(values + _LEASH)
        script = re.sub(rb"[^ -~]|[\\'!]", lambda found: b"\\0%03o" % ord(found[0]), raw).decode()
        line = f"""exec sh -c 'eval "$(printf %b "$0")"' '{script}'"""
        if "\0" in values or len(line) > _MOST_LINE:
            found = "has a zero byte" if "\0" in values else f"takes {len(line)} bytes, over {_MOST_LINE}"
            raise InputError(f"{self.name}: {_short(argv)}: this command {found}; put its input into a file")
        return nonce, line

    def _done(self, argv: Sequence[str], nonce: str, code: int, stdout: bytes, stderr: bytes) -> Done:
        """What the leash said, or a `DeviceError` where it did not come to its last word."""
        what = f"{self.name}: {_short(argv)}"
        if nonce.encode() + b"\r\n" in stdout:  # an old adbd's terminal, which writes every line's end so
            stdout = stdout.replace(b"\r\n", b"\n")
        _, begun, rest = stdout.partition(b"%s\n" % nonce.encode())
        body, ended, word = rest.rpartition(b"\n%s:" % nonce.encode())
        word, whole, _ = word.partition(b"\n")
        if not (ended and whole):
            when = "after the command began" if begun else "before the command began"
            raise DeviceError(f"{what}: the link was lost {when}: {self.lost(code, stderr)}")
        if not word.isdigit():
            raise DeviceError(f"{what}: {_NO_SETSID}")
        return Done(tuple(argv), int(word), body, stderr)


_NO_SETSID = "there is no setsid there, without which no command can be stopped for certain; install util-linux"


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


def remedy(stderr: bytes) -> str:
    """What to do about a file system's complaint, as the end of a message; empty where it is none."""
    for said, advice in {
        b"No space left": "free some space there, or name a work folder on another disk: workdir",
        b"Disk quota exceeded": "free some space there, or name a work folder on another disk: workdir",
        b"Read-only file system": "name a work folder on a disk that can be written: workdir",
        b"Permission denied": "name a work folder that its user may write and run programs in: workdir",
    }.items():
        if said in stderr:
            return f"; {advice}"
    return ""


def digest_of(path: Path) -> str:
    """The sha256 of a local file in hex, computed once a version of it: 20 devices get the same files."""
    try:
        known = path.stat()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    return _digest(path, known.st_size, known.st_mtime_ns)


@lru_cache(maxsize=1000)
def _digest(path: Path, size: int, mtime_ns: int) -> str:
    with _opened(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _opened(path: Path) -> BufferedReader:
    try:
        return path.open("rb")
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None


def _short(argv: Sequence[str]) -> str:
    """A command for a message: a script of ours goes by its name, and all on one line."""
    shown = argv[3:4] if list(argv[:2]) == ["sh", "-c"] and len(argv) > 3 else argv
    return re.sub(r"\s+", " ", shlex.join(shown))[:120]


def converse(
    argv: Sequence[str],
    what: str,
    deadline_s: float,
    stops: Sequence[threading.Event] = (),
    feed: BinaryIO | None = None,
    sent: Callable[[int], None] = lambda sent_bytes: None,
) -> tuple[int, bytes, bytes]:
    """Run a local command; its exit code, stdout and stderr. Raises `DeviceError` naming `what` after `deadline_s`.

    Its standard input stays open to its end (with `feed`, to the end of that); when one of `stops` is set it is
    closed, and the command has a few seconds to end by itself.
    """
    with _started(argv) as process, selectors.DefaultSelector() as selector:
        return _Talk(process, selector, what, deadline_s).to_end(stops, feed, sent)


@contextmanager
def held(
    argv: Sequence[str],
    what: str,
    deadline_s: float,
    mark: re.Pattern[bytes],
    lost: Callable[[int, bytes], str],
    stopping: threading.Event,
    grace_s: float = _GRACE_S,
) -> Generator[str]:
    """A local command that lives as long as the `with` block: gives the first group of `mark` in its stdout, or
    raises `DeviceError` where that does not come within `deadline_s`. After the block its input is closed, and it has
    `grace_s` to end.
    """
    with _started(argv) as process, selectors.DefaultSelector() as selector:
        talk = _Talk(process, selector, what, deadline_s)
        try:
            yield talk.until(mark, lost, stopping)
        finally:
            talk.finish(grace_s)


@contextmanager
def _started(argv: Sequence[str]) -> Generator["subprocess.Popen[bytes]"]:
    """A local command, in a session of its own, so that a terminal's Ctrl-C meets only us; killed if need be."""
    pipe = subprocess.PIPE
    try:
        process = subprocess.Popen(argv, bufsize=0, stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True)
    except OSError as error:
        raise InputError(f"{argv[0]}: cannot be started: {error.strerror}; is it installed whole?") from None
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)  # with what it started for itself, such as a jump host's ssh
        for stream in (process.stdin, process.stdout, process.stderr):
            assert stream  # PIPE was asked for
            with suppress(OSError):
                stream.close()
        process.wait()


class _Talk:
    """What goes to and comes from one local command, up to a deadline."""

    def __init__(
        self, process: "subprocess.Popen[bytes]", selector: selectors.BaseSelector, what: str, deadline_s: float
    ) -> None:
        assert process.stdin and process.stdout and process.stderr  # PIPE was asked for
        self.process, self.what, self.deadline_s = process, what, deadline_s
        self.end = time.monotonic() + deadline_s
        self.input, self.out, self.err = process.stdin, bytearray(), bytearray()
        self.selector = selector
        self.selector.register(process.stdout, selectors.EVENT_READ, self.out)
        self.selector.register(process.stderr, selectors.EVENT_READ, self.err)

    def to_end(
        self, stops: Sequence[threading.Event], feed: BinaryIO | None, sent: Callable[[int], None]
    ) -> tuple[int, bytes, bytes]:
        feeder = self._feeder(feed, sent) if feed else None
        if feeder:
            os.set_blocking(self.input.fileno(), False)
            self.selector.register(self.input, selectors.EVENT_WRITE, feeder)
        while self._step():
            if not self.input.closed and any(stop.is_set() for stop in stops):
                self._close_input()
                self.end = min(self.end, time.monotonic() + _GRACE_S)
        return self.process.wait(), bytes(self.out), bytes(self.err)

    def until(self, mark: re.Pattern[bytes], lost: Callable[[int, bytes], str], stopping: threading.Event) -> str:
        while not (found := mark.search(self.out)):
            if stopping.is_set():
                raise DeviceError(f"{self.what}: was interrupted")
            if not self._step():
                raise DeviceError(f"{self.what}: {lost(self.process.wait(), bytes(self.err))}")
        return found[1].decode(errors="replace").strip()

    def finish(self, grace_s: float) -> None:
        """Close its input and let it end; what takes too long is killed by `_started`."""
        self._close_input()
        self.end = time.monotonic() + grace_s
        with suppress(DeviceError):
            while self._step():
                pass

    def _step(self) -> bool:
        """Pass on what there is; whether anything can still come."""
        left = self.end - time.monotonic()
        if left <= 0:
            raise DeviceError(
                f"{self.what}: no answer within {self.deadline_s:.0f} s; is the device hung, or the link slow? "
                "Try again, or restart the device"
            )
        reading = any(key.events == selectors.EVENT_READ for key in self.selector.get_map().values())
        if not reading:  # both outputs are closed; the command itself should follow
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(min(left, _POLL_S))
            return self.process.poll() is None
        ended = self.process.poll() is not None
        ready = self.selector.select(0 if ended else min(left, _POLL_S))
        for key, _ in ready:
            if key.events == selectors.EVENT_WRITE:
                if next(key.data, None) is None:
                    self._close_input()
                continue
            chunk = os.read(key.fd, 1 << 18)
            key.data.extend(chunk)
            if not chunk:
                self.selector.unregister(key.fileobj)
            if len(key.data) > _MOST_BYTES:
                raise DeviceError(f"{self.what}: printed over {_MOST_BYTES} bytes, which is no answer")
        return not ended or bool(ready)  # a child of it may hold its outputs open for longer

    def _feeder(self, feed: BinaryIO, sent: Callable[[int], None]) -> Generator[bool]:
        """Each step writes what the pipe takes; it ends with the feed, or with the command."""
        total = 0
        while chunk := feed.read(1 << 18):
            while chunk:
                try:
                    count = os.write(self.input.fileno(), chunk)
                except BlockingIOError:
                    count = 0
                except BrokenPipeError:
                    return
                chunk = chunk[count:]
                total += count
                sent(total)
                yield True

    def _close_input(self) -> None:
        if not self.input.closed:
            with suppress(KeyError):
                self.selector.unregister(self.input)
            with suppress(OSError):
                self.input.close()
