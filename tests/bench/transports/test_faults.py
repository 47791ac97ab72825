"""Every fault of a link, with real servers: one clear message within the deadline, and nothing left on the device."""

import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import lab
import pytest
from targets import Target

from edgekit.bench import deploy, transports
from edgekit.bench.transports import adb as link
from edgekit.errors import DeviceError

pytestmark = pytest.mark.target


@contextmanager
def within(seconds: float, *said: str) -> Iterator[None]:
    """One `DeviceError` of one line in that time, saying one of `said`."""
    started = time.monotonic()
    with pytest.raises(DeviceError) as caught:
        yield
    assert time.monotonic() - started < seconds
    assert "\n" not in str(caught.value)
    assert any(words in str(caught.value) for words in said), caught.value


@contextmanager
def when(ready: Callable[[], object], act: Callable[[], object]) -> Iterator[None]:
    """Do something from beside as soon as it is time."""

    def wait() -> None:
        lab.wait_for("the moment", lambda: bool(ready()))
        act()

    beside = threading.Thread(target=wait)
    beside.start()
    yield
    beside.join()


def sparse(path: Path, size: int) -> Path:
    with path.open("wb") as file:
        file.truncate(size)
    return path


def test_gone_before(target: Target) -> None:
    target.box.kill()
    with within(20, "is sshd running there", "cannot be connected to"), target.connect():
        pass


def test_gone_between(target: Target) -> None:
    with within(25, "the link was lost before the command began"), target.connect() as transport:
        target.box.kill()
        transport.run(["true"], 10)


def test_gone_during_run(target: Target) -> None:
    with (
        within(25, "the link was lost after the command began"),
        target.connect() as transport,
        when((target.files / "began").exists, target.box.kill),
    ):
        transport.run(["sh", "-c", ': >"$1"; exec sleep 100', "test", f"{target.folder}/began"], 60)
    target.wait_until_empty()


def test_gone_during_push(target: Target, tmp_path: Path) -> None:
    big = sparse(tmp_path / "big", 500_000_000)
    with (
        within(40, "the link was lost"),
        target.connect() as transport,
        when(lambda: list(target.files.glob("*.part")), target.box.kill),
    ):
        transport.push(big, f"{target.folder}/big", 30)
    target.wait_until_empty()
    assert not (target.files / "big").exists()


def test_gone_during_pull(target: Target, tmp_path: Path) -> None:
    sparse(target.files / "big", 500_000_000)
    with (
        within(40, "the link was lost"),
        target.connect() as transport,
        when(target.box.processes, lambda: (time.sleep(0.2), target.box.kill())),
    ):
        transport.pull(f"{target.folder}/big", tmp_path / "back", 30)
    assert not (tmp_path / "back").exists()
    target.wait_until_empty()


def test_hung_during_run(target: Target) -> None:
    """The device ends the command by itself at its deadline, while nothing comes through."""
    try:
        with (
            within(30, "no answer within"),
            target.connect() as transport,
            when((target.files / "began").exists, target.box.stop),
        ):
            transport.run(["sh", "-c", ': >"$1"; exec sleep 100', "test", f"{target.folder}/began"], 2)
        lab.wait_for("sleep to end", lambda: b"sleep" not in names(target), 5)
    finally:
        target.box.cont()
    target.wait_until_empty()


def names(target: Target) -> bytes:
    """What runs there."""
    found = b""
    for pid in target.box.processes():
        try:
            found += Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            continue
    return found


def test_the_link_lost_during_a_bench_leaves_no_work_folder(target: Target) -> None:
    with within(40, "the link was lost"), target.connect() as transport, deploy.opened(transport, f"{target.folder}/w"):
        assert (target.files / "w/run").is_dir()
        with when(lambda: b"4321" in names(target), target.box.kill):
            transport.run(["sleep", "4321"], 60)
    target.wait_until_empty()


BENCH = """
with connect() as transport, deploy.opened(transport, folder + "/w") as place:
    transport.push(b"input", place.folder + "/input", 10)
    print("ready", flush=True)
    transport.run(["sleep", "4321"], 300)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=["ctrl-c", "term", "kill"])
def test_the_end_of_this_process_is_the_end_of_all(target: Target, number: signal.Signals) -> None:
    with target.start(BENCH) as bench:
        assert bench.stdout
        assert bench.stdout.readline() == "ready\n"
        lab.wait_for("the command to run", lambda: b"4321" in names(target))
        assert (target.files / "w/run/input").read_bytes() == b"input"
        started = time.monotonic()
        bench.send_signal(number)
        bench.wait(timeout=20)
    target.wait_until_empty(10)
    assert time.monotonic() - started < 20


def test_stop_all_ends_all_threads(target: Target) -> None:
    said: list[str] = []

    def bench() -> None:
        try:
            with target.connect() as transport, deploy.opened(transport, f"{target.folder}/w"):
                transport.run(["sleep", "4321"], 300)
        except DeviceError as error:
            said.append(str(error))

    thread = threading.Thread(target=bench)
    thread.start()
    lab.wait_for("the command to run", lambda: b"4321" in names(target))
    transports.stop_all()
    thread.join(timeout=20)
    assert len(said) == 1
    assert "interrupted" in said[0]
    target.wait_until_empty()
    with target.connect() as transport, deploy.opened(transport, f"{target.folder}/w") as place:
        assert transport.run(["ls", place.folder], 10).stdout == b""


def test_a_keeper_that_was_killed_is_swept(target: Target) -> None:
    workdir = f"{target.folder}/w"
    with target.connect() as transport:
        with deploy.opened(transport, workdir) as place:
            transport.push(b"", f"{place.folder}/left", 10)
            keeper = next(pid for pid in target.box.processes() if is_keeper(pid))
            subprocess.run(["kill", "-KILL", str(keeper)], check=True)
        assert (target.files / "w/run/left").exists()
        with deploy.opened(transport, workdir) as place:
            assert transport.run(["ls", place.folder], 10).stdout == b""
    target.wait_until_empty()


def is_keeper(pid: int) -> bool:
    """The shell itself, not the leash that holds it, whose first argument is another."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return len(words) > 3 and words[3] == b"edgekit-keeper"


def test_two_at_once_is_one_too_many(target: Target) -> None:
    workdir = f"{target.folder}/w"
    with target.connect() as transport, deploy.opened(transport, workdir) as place:
        with within(10, "another edgekit works there"), target.connect() as second, deploy.opened(second, workdir):
            pass
        assert transport.run(["ls", place.folder], 10).code == 0


@pytest.fixture
def phone(adb: lab.AdbServer, adbd: Callable[..., lab.Adbd]) -> Callable[[str], link.Params]:
    """`phone(mount)`: a phone whose /data/local/tmp is such a file system."""

    def start(mount: str) -> link.Params:
        return link.Params(serial=adbd(mount=mount).serial, adb=str(adb.adb))

    return start


def test_no_space(phone: Callable[[str], link.Params], tmp_path: Path) -> None:
    big = sparse(tmp_path / "big", 8_000_000)
    with link.connect(phone("size=4m")) as transport, within(20, "No space left on device; free some space there"):
        with deploy.opened(transport, "/data/local/tmp/w") as place:
            place.put({"model": big})
        left = transport.run(["find", "/data/local/tmp", "-size", "+8"], 10)
        assert (left.code, left.stdout) == (0, b"")
        transport.run(["sh", "-c", "cat /dev/zero >/data/local/tmp/full"], 20)
        with within(20, "No space left"), deploy.opened(transport, "/data/local/tmp/w"):
            pass


def test_read_only(phone: Callable[[str], link.Params]) -> None:
    with (
        link.connect(phone("ro")) as transport,
        within(10, "Read-only file system; name a work folder on a disk that can be written"),
    ):
        with deploy.opened(transport, "/data/local/tmp/w"):
            pass
        with within(10, "Read-only file system"):
            transport.push(b"x", "/data/local/tmp/x", 10)


def test_no_programs_may_run_there(phone: Callable[[str], link.Params]) -> None:
    with link.connect(phone("noexec")) as transport, within(10, "name a work folder on a disk without noexec"):
        with deploy.opened(transport, "/data/local/tmp/w"):
            pass
        assert transport.run(["ls", "-A", "/data/local/tmp/w"], 10).stdout.split() == [b".edgekit", b"cache"]
