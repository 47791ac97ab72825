"""The leash: what it gives back, and that nothing outlives it, in every shell that a device may have."""

import io
import os
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import lab
import pytest

from edgekit.bench import transports
from edgekit.bench.transports import Transport, local
from edgekit.errors import DeviceError, InputError

NASTY = (
    "", " ", "a b", "'", '"', "''", "$(touch pwned)", "`touch pwned`", "; touch pwned", "| touch pwned", "x\ny", "\n",
    "-n", "--", "-rf", "!x", "!!", "\\", "\\n", "\\\\", "\\0101", "a\\", "%s%d", "*", "~", "é√", "\udcff", "\t", "#",
    "\r", "&", "<>", "{a,b}", "$HOME", "${x}", "$(", "\x7f", "=", "a=b",
)  # fmt: skip
ECHO = "import os, sys; sys.stdout.buffer.write(b'\\0'.join(map(os.fsencode, sys.argv[1:])))"
MARK = "EDGEKIT_TEST_SHELL"
INNER = {"dash": (), "bash": (), "mksh": ("toybox",), "busybox": ("busybox",)}
"""Shells that may be a device's sh, and where its other commands come from then."""


def processes(mark: str) -> list[int]:
    """What still runs with this mark in its environment."""
    found: list[int] = []
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdecimal() and f"{MARK}={mark}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                found.append(int(folder.name))
        except OSError:
            continue
    return [pid for pid in found if pid != os.getpid()]


@pytest.fixture(params=INNER)
def host(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Transport]:
    """This host, its `sh` being another shell; nothing may be left running after the test."""
    shell = shutil.which(request.param)
    if shell is None:
        pytest.skip(f"{request.param} is not installed")
    folder = tmp_path / "bin"
    folder.mkdir()
    if request.param == "busybox":
        shutil.copy(shell, folder / "sh")
    else:
        (folder / "sh").symlink_to(shell)
    for box in INNER[request.param]:
        if not (multi := shutil.which(box)):
            pytest.skip(f"{box} is not installed")
        for name in ("printf", "kill", "sleep", "setsid", "cat", "chmod", "mv", "rm", "sha256sum"):
            (folder / name).symlink_to(multi)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.setenv(MARK, str(tmp_path))
    with local.connect(local.Params()) as transport:
        yield transport
    lab.wait_for("what was started to end", lambda: not processes(str(tmp_path)), 8)


def test_exit_code_and_both_streams(host: Transport) -> None:
    done = host.run(["sh", "-c", "echo out; echo err >&2; exit 7"], 10)
    assert (done.code, done.stdout, done.stderr) == (7, b"out\n", b"err\n")


def test_what_a_device_says_does_nothing_to_the_terminal(host: Transport) -> None:
    done = host.run(["sh", "-c", r"printf '\033]0;title\007 is \033[31mred\n' >&2; exit 3"], 10)
    assert done.last_words() == "?]0;title? is ?[31mred"


def test_a_command_that_fails_leaves_no_descriptor_open(host: Transport) -> None:
    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises(DeviceError):
        host.run(["sh", "-c", "exec sleep 60"], 0.1, feed=io.BytesIO(b"x" * 10_000_000))
    assert set(os.listdir("/proc/self/fd")) == before


def test_a_program_that_is_not_there(host: Transport) -> None:
    done = host.run(["no-such-program"], 10)
    assert done.code == 127
    assert "no-such-program" in done.last_words()


def test_every_byte_of_large_output(host: Transport) -> None:
    data = os.urandom(3_000_000) + b"\n\r\n"
    assert host.run(["cat"], 20, feed=io.BytesIO(data)).stdout == data


def test_hostile_arguments_arrive_as_they_are(host: Transport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = host.run([sys.executable, "-c", ECHO, *NASTY], 20)
    assert done.stdout.split(b"\0") == [os.fsencode(word) for word in NASTY]
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("login", ["fish", "tcsh"])
def test_login_shells_that_are_no_sh(login: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not shutil.which(login):
        pytest.skip(f"{login} is not installed")
    monkeypatch.chdir(tmp_path)
    done = Transport("x", (login, "-c"), _lost).run([sys.executable, "-c", ECHO, *NASTY], 20)
    assert done.stdout.split(b"\0") == [os.fsencode(word) for word in NASTY]
    assert not (tmp_path / "pwned").exists()


def test_a_command_ends_at_its_deadline(host: Transport) -> None:
    started = time.monotonic()
    with pytest.raises(DeviceError, match="did not end within 1 s and was stopped"):
        host.run(["sleep", "100"], 1)
    assert time.monotonic() - started < 5


def test_and_also_if_it_does_not_want_to(host: Transport) -> None:
    started = time.monotonic()
    with pytest.raises(DeviceError, match="did not end within 1 s"):
        host.run(["sh", "-c", "trap '' TERM; while :; do sleep 1; done"], 1)
    assert time.monotonic() - started < 8


def test_stop_ends_it_early_and_lets_it_clean_up(host: Transport, tmp_path: Path) -> None:
    stop, started = threading.Event(), tmp_path / "started"
    script = 'trap "echo cleaned; exit 3" TERM; : >"$1"; while :; do sleep 100 & wait $!; done'
    setter = threading.Thread(target=lambda: (lab.wait_for("it to start", started.exists), stop.set()))
    setter.start()
    done = host.run(["sh", "-c", script, "test", str(started)], 60, stop)
    setter.join()
    assert (done.code, done.stdout) == (3, b"cleaned\n")


def test_what_a_command_left_behind_ends_with_it(host: Transport) -> None:
    assert host.run(["sh", "-c", "sleep 100 & echo gone"], 20).stdout == b"gone\n"


def test_ends_that_come_too_early_are_not_lost(host: Transport) -> None:
    for after in range(12):
        stop = threading.Event()
        threading.Timer(after / 1000, stop.set).start()
        started = time.monotonic()
        assert host.run(["sleep", "100"], 60, stop).code in (137, 143)
        assert time.monotonic() - started < 5


def test_a_companion_lasts_as_long_as_its_block(host: Transport, tmp_path: Path) -> None:
    ended = tmp_path / "ended"
    script = 'trap ": >\\"$1\\"; exit" TERM; echo "here I am"; while :; do sleep 100 & wait $!; done'
    with host.hold(["sh", "-c", script, "test", str(ended)], 10) as first:
        assert first == "here I am"
        assert host.run(["echo", "beside"], 10).stdout == b"beside\n"
        assert not ended.exists()
    assert ended.exists()


def test_a_companion_that_does_not_begin(host: Transport) -> None:
    with pytest.raises(DeviceError, match="ended at once with 4"), host.hold(["sh", "-c", "exit 4"], 10):
        pass
    with pytest.raises(DeviceError, match="no answer within 1 s"), host.hold(["sleep", "100"], 1):
        pass


def test_a_file_there_and_back(host: Transport, tmp_path: Path) -> None:
    data, there = os.urandom(1_000_000), tmp_path / "a 'b' $(c)\nd"
    heard: list[int] = []
    (tmp_path / "local").write_bytes(data)
    host.push(tmp_path / "local", str(there), 20, heard.append)
    assert there.read_bytes() == data
    assert there.stat().st_mode & 0o777 == 0o700
    assert heard == sorted(heard)
    assert heard[-1] == len(data)
    host.pull(str(there), tmp_path / "back", 20)
    assert (tmp_path / "back").read_bytes() == data
    host.push(b"", str(there), 20)
    assert there.read_bytes() == b""


def test_a_push_that_is_interrupted_leaves_the_old_file(host: Transport, tmp_path: Path) -> None:
    there = tmp_path / "there"
    there.write_bytes(b"old")
    with (tmp_path / "big").open("wb") as file:
        file.truncate(100_000_000)

    def interrupt(sent: int) -> None:
        if sent > 1_000_000:
            transports.stop_all()

    with pytest.raises(DeviceError, match="interrupted"):
        host.push(tmp_path / "big", str(there), 60, interrupt)
    assert there.read_bytes() == b"old"
    assert not list(tmp_path.glob("*.part"))


def _lost(code: int, stderr: bytes) -> str:
    return f"code {code}"


def test_no_nonce_is_no_result() -> None:
    """adb 29 ends with 0 when the device dies."""
    with pytest.raises(DeviceError, match="the link was lost before the command began: code 0"):
        Transport("x", ("sh", "-c", "exit 0"), _lost).run(["true"], 5)
    cut = 'sh -c "$1" | head -c 30'
    with pytest.raises(DeviceError, match="the link was lost after the command began: code 0"):
        Transport("x", ("sh", "-c", cut, "x"), _lost).run(["echo", "y" * 100], 5)


def test_greetings_and_terminals_are_taken_off() -> None:
    noisy = 'echo Welcome; sh -c "$1"; echo Goodbye'
    assert Transport("x", ("sh", "-c", noisy, "x"), _lost).run(["printf", "a\nb"], 5).stdout == b"a\nb"
    terminal = 'sh -c "$1" | sed "s/$/\\r/"'  # as adbd before Android 7
    done = Transport("x", ("sh", "-c", terminal, "x"), _lost).run(["printf", "a\nb\n"], 5)
    assert (done.code, done.stdout) == (0, b"a\nb\n")


def test_a_device_without_setsid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("sh", "printf", "sleep"):
        (tmp_path / name).symlink_to(shutil.which(name) or name)
    monkeypatch.setenv("PATH", str(tmp_path))
    transport = Transport("x", ("sh", "-c"), _lost)
    with pytest.raises(DeviceError, match="there is no setsid there"):
        transport.run(["true"], 5)
    with pytest.raises(DeviceError, match="there is no setsid there"), transport.hold(["true"], 5):
        pass


def test_what_no_shell_line_can_say_is_refused() -> None:
    transport = Transport("x", ("sh", "-c"), _lost)
    with pytest.raises(InputError, match="put its input into a file"):
        transport.run(["echo", "x" * 200_000], 5)
    with pytest.raises(InputError, match="has a zero byte"):
        transport.run(["echo", "a\0b"], 5)
    assert transport.run(["echo", "x" * 100_000], 5).stdout == b"x" * 100_000 + b"\n"


def test_ctrl_c_lets_go_of_all_and_is_over_with_the_next_transport(tmp_path: Path) -> None:
    errors: list[DeviceError] = []
    started = [tmp_path / str(i) for i in range(4)]

    def wait(transport: Transport, file: Path) -> None:
        try:
            transport.run(["sh", "-c", ': >"$1"; exec sleep 100', "test", str(file)], 100)
        except DeviceError as error:
            errors.append(error)

    with local.connect(local.Params()) as transport:
        threads = [threading.Thread(target=wait, args=(transport, file)) for file in started]
        for thread in threads:
            thread.start()
        lab.wait_for("all to start", lambda: all(file.exists() for file in started))
        transports.stop_all()
        for thread in threads:
            thread.join(timeout=8)
        assert len(errors) == 4
        with pytest.raises(DeviceError, match="interrupted"):
            transport.run(["true"], 5)
    with local.connect(local.Params()) as transport:
        assert transport.run(["echo", "again"], 5).stdout == b"again\n"


def test_a_local_file_that_is_not_there(tmp_path: Path) -> None:
    with local.connect(local.Params()) as transport:
        with pytest.raises(InputError, match="cannot be read: No such file"):
            transport.push(tmp_path / "none", str(tmp_path / "x"), 5)
        with pytest.raises(DeviceError, match=r"cannot fetch .*No such file"):
            transport.pull(str(tmp_path / "none"), tmp_path / "x", 5)
        with pytest.raises(InputError, match="name another file"):
            transport.pull(__file__, tmp_path / "no" / "x", 5)
