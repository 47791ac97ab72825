"""SSH to a real server: one connection, the user's configuration, and a clear word for what keeps it from being."""

import os
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import lab
import pytest

from edgekit.bench.transports import ssh
from edgekit.errors import DeviceError, InputError
from edgekit.records import parse

pytestmark = pytest.mark.target

NASTY = (
    "", "a b", "'", '"', "$(touch pwned)", "`touch pwned`", "x\ny", "-n", "--", "!!", "\\n", "a\\", "%s", "*", "~", "é",
    "\udcff", "\r", "$HOME",
)  # fmt: skip


def params(box: lab.Sshd, **others: object) -> ssh.Params:
    return parse(ssh.Params, {"host": box.host, "config": str(box.config), **others}, "test")


def refusal(box: lab.Sshd) -> str:
    """Why it cannot be connected to, within the time for that."""
    started = time.monotonic()
    with pytest.raises(DeviceError) as caught, ssh.connect(params(box)):
        pass
    assert time.monotonic() - started < 25
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_command_there(sshd: lab.Sshd) -> None:
    with ssh.connect(params(sshd)) as transport:
        done = transport.run(["sh", "-c", "pwd; echo err >&2; exit 255"], 10)
        assert (done.code, done.stdout, done.stderr) == (255, f"{sshd.home}\n".encode(), b"err\n")
        assert transport.name == "ssh box"
    lab.wait_for("the session to end", lambda: not sshd.processes())


def test_one_connection_serves_all_and_leaves_nothing_here(sshd: lab.Sshd) -> None:
    server = sshd.root / "sshd_config"
    server.write_text(server.read_text() + "LogLevel VERBOSE\n")
    sshd.kill()
    sshd.start()
    with ssh.connect(params(sshd)) as transport:
        for _ in range(3):
            transport.run(["true"], 10)
        folder = next(Path(word.partition("=")[2]).parent for word in transport.shell if "ControlPath=" in word)
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert not folder.exists()
    assert (sshd.root / "sshd.log").read_text().count("Accepted publickey") == 1


def test_nothing_is_left_here_by_a_killed_process(sshd: lab.Sshd) -> None:
    code = (
        "import sys, time\nfrom edgekit.bench.transports import ssh\n"
        "with ssh.connect(ssh.Params(host=sys.argv[1], config=sys.argv[2])) as transport:\n"
        "    print(next(w for w in transport.shell if 'ControlPath=' in w), flush=True); time.sleep(60)\n"
    )
    argv = [sys.executable, "-c", code, sshd.host, str(sshd.config)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, cwd=Path(ssh.__file__).parents[3]) as process:
        assert process.stdout
        folder = Path(process.stdout.readline().strip().partition("=")[2]).parent
        assert folder.is_dir()
        process.kill()
    lab.wait_for("its folder to go", lambda: not folder.exists())
    lab.wait_for("the session to end", lambda: not sshd.processes())


def test_hostile_arguments_and_paths(sshd: lab.Sshd, tmp_path: Path) -> None:
    with ssh.connect(params(sshd)) as transport:
        done = transport.run(["printf", "%s\\0", *NASTY], 10)
        assert done.stdout.split(b"\0")[:-1] == [os.fsencode(word) for word in NASTY]
        for word in NASTY[1:]:
            if "/" in word:
                continue
            transport.push(word.encode(errors="surrogateescape"), f"{sshd.home}/{word}", 10)
            assert (sshd.home / word).read_bytes() == os.fsencode(word)
            transport.pull(f"{sshd.home}/{word}", tmp_path / "back", 10)
            assert (tmp_path / "back").read_bytes() == os.fsencode(word)
    assert not (sshd.home / "pwned").exists()


def test_a_board_without_sftp(sshd_without_sftp: lab.Sshd, tmp_path: Path) -> None:
    data = os.urandom(2_000_000)
    with ssh.connect(params(sshd_without_sftp)) as transport:
        transport.push(data, f"{sshd_without_sftp.home}/x", 20)
        transport.pull(f"{sshd_without_sftp.home}/x", tmp_path / "x", 20)
    assert (tmp_path / "x").read_bytes() == data


def test_through_a_gate(jumped_sshd: tuple[lab.Sshd, lab.Sshd]) -> None:
    inner, gate = jumped_sshd
    with ssh.connect(params(inner)) as transport:
        assert transport.run(["pwd"], 10).stdout == f"{inner.home}\n".encode()
        gate.kill()
        with pytest.raises(DeviceError, match=r"the link was lost .*is the device still on"):
            transport.run(["pwd"], 10)
    assert "ssh inner" in refusal(inner)


def test_what_the_users_configuration_says_of_sharing_does_not_disturb(sshd: lab.Sshd, tmp_path: Path) -> None:
    with sshd.config.open("a") as config:
        config.write(f"  ControlMaster auto\n  ControlPath {tmp_path}/theirs\n  ControlPersist 60\n")
        config.write(f"  LocalForward {lab.free_port()} 127.0.0.1:9\n  RemoteCommand false\n  RequestTTY force\n")
    with ssh.connect(params(sshd)) as transport:
        assert transport.run(["printf", "a\nb\n"], 10).stdout == b"a\nb\n"
    assert not (tmp_path / "theirs").exists()


def test_its_key_is_another(sshd: lab.Sshd) -> None:
    sshd.change_host_key()
    assert "host key is not the one known here" in refusal(sshd)


def test_its_key_is_unknown(sshd: lab.Sshd) -> None:
    sshd.known_hosts.write_text("")
    assert "host key is not known here; connect once by hand" in refusal(sshd)
    sshd.config.write_text(sshd.config.read_text().replace("StrictHostKeyChecking yes", "StrictHostKeyChecking ask"))
    assert "host key is not known here; connect once by hand" in refusal(sshd)
    assert not sshd.known_hosts.read_text()


def test_it_does_not_take_our_key(sshd: lab.Sshd) -> None:
    (sshd.root / "authorized_keys").write_text("")
    assert "it takes none of this user's keys" in refusal(sshd)


def test_nothing_listens_there(sshd: lab.Sshd) -> None:
    sshd.kill()
    assert "is sshd running there" in refusal(sshd)


def test_it_hangs(sshd: lab.Sshd) -> None:
    sshd.stop()
    assert "it does not answer" in refusal(sshd)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("ssh: Could not resolve hostname nosuch: Name or service not known", "no such host name is known"),
        ("ssh: connect to host h port 22: No route to host", "the network knows no way to it"),
        ("something new", "ssh ended with 255: something new; try it by hand: ssh board"),
    ],
)
def test_what_cannot_be_had_on_loopback(commands: Callable[..., Path], said: str, expected: str) -> None:
    commands(ssh=f"echo '{said}' >&2; exit 255")
    with pytest.raises(DeviceError, match=expected), ssh.connect(ssh.Params(host="board")):
        pass


def test_no_ssh_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match="install the OpenSSH client"), ssh.connect(ssh.Params(host="board")):
        pass


def test_no_such_configuration(tmp_path: Path) -> None:
    link = ssh.Params(host="board", config=str(tmp_path / "none"))
    with pytest.raises(InputError, match="there is no file"), ssh.connect(link):
        pass


@pytest.mark.parametrize(
    "host", ["", "-oProxyCommand=touch pwned", "a b", "a\nb", "$(touch pwned)", "a;b", "`x`", "a'b"]
)
def test_names_that_are_no_hosts_are_refused(host: str) -> None:
    with pytest.raises(InputError, match="must be a host as after `ssh`"):
        parse(ssh.Params, {"host": host}, "test")


@pytest.mark.parametrize("host", ["pi@192.168.1.7", "board_2.local", "ssh://pi@board:2222", "fe80::1%eth0", "[::1]"])
def test_names_that_are(host: str) -> None:
    assert parse(ssh.Params, {"host": host}, "test").host == host
