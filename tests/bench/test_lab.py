"""The lab itself: each device is what it claims to be, before anything is concluded from it."""

import hashlib
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import lab
import pytest

pytestmark = pytest.mark.target


def call(*argv: object, input: str = "") -> "subprocess.CompletedProcess[str]":
    """Run a client with a limit on its time."""
    return subprocess.run([str(a) for a in argv], capture_output=True, text=True, input=input, timeout=30)


def test_ssh_runs_in_a_home_of_its_own(sshd: lab.Sshd) -> None:
    done = call("ssh", "-F", sshd.config, sshd.host, 'pwd; echo "$HOME"; echo wrong >&2; exit 7')
    assert done.returncode == 7
    assert done.stdout.split() == [str(sshd.home)] * 2
    assert done.stderr == "wrong\n"


def test_ssh_copies_by_sftp(sshd: lab.Sshd) -> None:
    assert call("scp", "-F", sshd.config, __file__, f"{sshd.host}:copy").returncode == 0
    assert (sshd.home / "copy").read_bytes() == Path(__file__).read_bytes()


def test_ssh_without_sftp_copies_by_the_old_protocol_only(sshd_without_sftp: lab.Sshd) -> None:
    box = sshd_without_sftp
    assert call("scp", "-F", box.config, __file__, f"{box.host}:copy").returncode != 0
    assert call("scp", "-O", "-F", box.config, __file__, f"{box.host}:copy").returncode == 0


@pytest.mark.parametrize(("mount", "why"), [("size=64k", "No space left"), ("ro", "Read-only")])
def test_ssh_without_room(mount: str, why: str, tmp_path: Path) -> None:
    try:
        with lab.sshd(tmp_path, mount=mount) as box:
            done = call("ssh", "-F", box.config, box.host, "head -c 200000 /dev/zero >big")
            assert done.returncode != 0
            assert why in done.stderr
            assert box.path("big").exists() == (mount != "ro")
            assert not (box.home / "big").exists()
    except lab.Missing as reason:
        pytest.skip(str(reason))


def test_ssh_through_a_gate(jumped_sshd: tuple[lab.Sshd, lab.Sshd]) -> None:
    inner, gate = jumped_sshd
    assert call("ssh", "-F", inner.config, inner.host, "pwd").stdout.strip() == str(inner.home)
    gate.kill()
    assert call("ssh", "-F", inner.config, inner.host, "pwd").returncode == 255


def test_a_changed_host_key_is_refused(sshd: lab.Sshd) -> None:
    sshd.change_host_key()
    done = call("ssh", "-F", sshd.config, sshd.host, "true")
    assert done.returncode == 255
    assert "REMOTE HOST IDENTIFICATION HAS CHANGED" in done.stderr


def test_a_command_outlives_its_link_and_is_seen(sshd: lab.Sshd) -> None:
    with subprocess.Popen(["ssh", "-F", sshd.config, sshd.host, "sleep 60"], stdin=subprocess.DEVNULL) as client:
        lab.wait_for("sleep to start", lambda: len(sshd.processes()) >= 1)
        sshd.stop()
        assert client.poll() is None
        sshd.cont()
        sshd.kill()
        assert client.wait(timeout=10) == 255
    assert sshd.processes()


Phones = Callable[..., lab.Adbd]


def test_adb_gives_streams_and_exit_code_of_an_android_shell(adb: lab.AdbServer, adbd: Phones) -> None:
    serial = adb.connect(adbd(properties={"ro.product.model": "Pixel 8"}))
    done = adb("-s", serial, "shell", "getprop ro.product.model; echo $KSH_VERSION; ls -d /data/local/tmp >&2; exit 7")
    assert done.returncode == 7
    assert done.stdout.startswith("Pixel 8\n@(#)MIRBSD KSH")
    assert done.stderr == "/data/local/tmp\n"
    assert "level: 83" in adb("-s", serial, "shell", "dumpsys battery").stdout
    assert adb("-s", serial, "shell", "cat /sys/class/power_supply/battery/status").stdout == "Discharging\n"
    assert adb("-s", serial, "shell", "python3").returncode == 127


def test_adb_copies_both_ways(adb: lab.AdbServer, adbd: Phones, tmp_path: Path) -> None:
    phone = adbd()
    serial = adb.connect(phone)
    assert adb("-s", serial, "push", __file__, "/data/local/tmp/a b").returncode == 0
    assert phone.path("/data/local/tmp/a b").read_bytes() == Path(__file__).read_bytes()
    assert adb("-s", serial, "pull", "/data/local/tmp/a b", str(tmp_path / "back")).returncode == 0
    assert (tmp_path / "back").read_bytes() == Path(__file__).read_bytes()


def test_a_phone_that_nobody_allowed(adb: lab.AdbServer, adbd: Phones) -> None:
    phone = adbd(secure=True)
    serial = adb.connect(phone, "unauthorized")
    assert "unauthorized" in adb("-s", serial, "shell", "true").stderr
    phone.authorize(adb.key)
    adb("disconnect", serial)
    assert adb("-s", adb.connect(phone), "shell", "true").returncode == 0


def test_a_phone_that_dies_in_mid_command(adb: lab.AdbServer, adbd: Phones) -> None:
    phone = adbd()
    argv = [str(adb.adb), "-s", adb.connect(phone), "shell", "sleep 60"]
    with subprocess.Popen(argv, stdin=subprocess.DEVNULL) as client:
        lab.wait_for("sleep to start", lambda: len(phone.processes()) >= 1)
        phone.stop()
        assert client.poll() is None
        phone.cont()
        phone.kill()
        # why the transport wants a nonce: adb 29 calls this a success
        assert client.wait(timeout=10) == (0 if "29" in adb("version").stdout else 255)
    lab.wait_for("adb to notice", lambda: adb.states()[phone.serial] == "offline")


@pytest.mark.parametrize(("mount", "why"), [("size=64k", "No space left"), ("ro", "Read-only")])
def test_a_phone_without_room(adb: lab.AdbServer, adbd: Phones, mount: str, why: str, tmp_path: Path) -> None:
    (tmp_path / "big").write_bytes(bytes(200_000))
    done = adb("-s", adb.connect(adbd(mount=mount)), "push", str(tmp_path / "big"), "/data/local/tmp/big")
    assert done.returncode == 1
    assert why in done.stdout + done.stderr


def test_twenty_phones(adb: lab.AdbServer, adbd: Phones) -> None:
    phones = [adbd(f"phone{number:02}") for number in range(20)]
    for phone in phones:
        adb.connect(phone)
    assert list(adb.states().values()) == ["device"] * 20
    serials = [adb("-s", phone.serial, "shell", "getprop ro.serialno").stdout.strip() for phone in phones]
    assert serials == [f"phone{number:02}" for number in range(20)]


def test_the_board_is_arm64_without_sftp(board: lab.Board) -> None:
    done = call("ssh", "-F", board.config, board.host, "uname -m; nproc; pwd; exit 5")
    assert (done.returncode, done.stdout.split()) == (5, ["aarch64", "2", "/home/board"])
    for old in ([], ["-O"]):  # neither SFTP nor scp is there: what is left is `cat`
        assert call("scp", *old, "-F", board.config, __file__, f"{board.host}:copy").returncode != 0
    done = call("ssh", "-F", board.config, board.host, "cat >copy; sha256sum copy; rm copy", input="text")
    assert done.stdout.split()[0] == hashlib.sha256(b"text").hexdigest()


def test_the_board_has_room_and_memory_limits(board: lab.Board) -> None:
    line = "df -k . | tail -n 1; cat /sys/fs/cgroup/cgroup.subtree_control; date +%Y"
    room, controllers, year = call("ssh", "-F", board.config, board.host, line).stdout.splitlines()
    assert int(room.split()[3]) > 60_000
    assert "memory" in controllers.split()
    assert int(year) > 2024


def test_the_board_by_adb(board: lab.Board, adb: lab.AdbServer, tmp_path: Path) -> None:
    serial = adb.connect(board)
    done = adb("-s", serial, "shell", "uname -m; exit 6")
    assert (done.returncode, done.stdout) == (6, "aarch64\n")
    assert adb("-s", serial, "push", __file__, "/data/local/tmp/copy").returncode == 0
    assert adb("-s", serial, "pull", "/data/local/tmp/copy", str(tmp_path / "back")).returncode == 0
    assert (tmp_path / "back").read_bytes() == Path(__file__).read_bytes()
    assert adb("-s", serial, "shell", "rm /data/local/tmp/copy").returncode == 0


@pytest.mark.parametrize("part", ["sshd", "adbd"])
def test_a_killed_test_leaves_no_server(part: str, tmp_path: Path) -> None:
    code = (
        f"import sys, time; sys.path.insert(0, {str(Path(lab.__file__).parent)!r}); import lab, pathlib\n"
        f"with lab.{part}(pathlib.Path({str(tmp_path)!r})) as box: print(box.port, flush=True); time.sleep(60)"
    )
    argv = [sys.executable, "-c", code]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as test:
        assert test.stdout and test.stderr
        if not (line := test.stdout.readline()):
            reason = test.stderr.read().splitlines()[-1]
            assert reason.startswith("lab.Missing: ")
            pytest.skip(reason)
        assert lab.listens(int(line))
        test.send_signal(signal.SIGKILL)
    lab.wait_for("the server to end", lambda: not lab.listens(int(line)))
