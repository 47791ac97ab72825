"""Real devices for tests: OpenSSH servers, adbds and an ARM64 board, on loopback, each gone when its `with` ends.

    with lab.sshd(folder) as box:
        subprocess.run(["ssh", "-F", box.config, box.host, "uname"])

What a part starts ends with it, and also when this process is killed: the kernel ends it with the thread that started
it, so start parts from the main thread. Every process of a device carries `EDGEKIT_LAB_DEVICE=<its root>` in its
environment, and so does whatever a test starts on it: `processes()` says what is left running there.
A part that cannot be had here raises `Missing` with the reason; tests/bench/conftest.py makes that a skip.
"""

import contextlib
import getpass
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

MARK = "EDGEKIT_LAB_DEVICE"


class Missing(Exception):
    """A part of the lab that cannot be had here, and why."""


def program(name: str, package: str) -> str:
    """The path of a program, also where only root has it on PATH."""
    found = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if found is None:
        raise Missing(f"{name} is not installed; its package is {package}")
    return found


def free_port() -> int:
    """A TCP port on loopback that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(what: str, ready: Callable[[], bool], seconds: float = 15.0) -> None:
    """Wait until `ready` is true, or raise `TimeoutError`."""
    end = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > end:
            raise TimeoutError(f"lab: {what} took over {seconds:g} s")
        time.sleep(0.02)


def greets(port: int, start: bytes) -> bool:
    """Does what listens on this port begin with `start`?"""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=2) as link:
        return link.recv(len(start)) == start
    return False


def _start(argv: Sequence[str], log: Path, env: Mapping[str, str], cwd: Path | None = None) -> subprocess.Popen[bytes]:
    """Start a server that ends with this thread."""
    leash = [program("setpriv", "util-linux"), "--pdeathsig", "KILL"]
    with log.open("ab") as out:
        return subprocess.Popen(
            [*leash, *argv], stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=dict(env), cwd=cwd,
            start_new_session=True,
        )  # fmt: skip


def _marked(root: Path) -> list[int]:
    """The processes whose environment names `root` as their device."""
    mark = f"{MARK}={root}".encode()
    found: list[int] = []
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError):  # it ended while we looked, or is another user's
            if folder.name.isdecimal() and mark in (folder / "environ").read_bytes().split(b"\0"):
                found.append(int(folder.name))
    return found


def _descendants(pid: int) -> list[int]:
    """`pid` and the processes below it."""
    found = [pid]
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                found += _descendants(int(child))
    return found


def _signal(pids: list[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def _name(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return ""


def _sweep(root: Path) -> None:
    """End whatever is left of a device."""
    for _ in range(20):
        if not (left := _marked(root)):
            return
        _signal(left, signal.SIGKILL)
        time.sleep(0.02)


@dataclass
class Sshd:
    """A real OpenSSH server for this user on loopback. `ssh -F config host COMMAND` runs in its own `home`."""

    root: Path
    config: Path
    """An ssh_config that knows `host`: its address, key and known_hosts."""
    host: str
    port: int
    key: Path
    sftp: bool
    server: "subprocess.Popen[bytes] | None" = field(default=None, repr=False)

    @property
    def home(self) -> Path:
        """HOME and the working folder of what runs there."""
        return self.root / "home"

    @property
    def known_hosts(self) -> Path:
        """What the client believes of host keys."""
        return self.root / "known_hosts"

    @property
    def pid(self) -> int:
        """The listening server's."""
        assert self.server is not None
        return self.server.pid

    def processes(self) -> list[int]:
        """What runs on the device: commands of its sessions, and what outlived them. Not the server itself."""
        return [pid for pid in _marked(self.root) if not _name(pid).startswith("sshd")]

    def start(self) -> None:
        """Start listening, also again after `kill`."""
        env = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", MARK: str(self.root)}
        argv = [program("sshd", "openssh-server"), "-D", "-e", "-f", str(self.root / "sshd_config")]
        self.server = _start(argv, self.root / "sshd.log", env)
        wait_for(f"sshd on port {self.port}", lambda: greets(self.port, b"SSH-2.0") or self.server.poll() is not None)
        if self.server.poll() is not None:
            raise RuntimeError(f"lab: sshd ended at once: {(self.root / 'sshd.log').read_text()}")

    def kill(self) -> None:
        """The device is gone: no server, no open session. Commands there run on, as after a broken link."""
        assert self.server is not None
        _signal(self._servers(), signal.SIGKILL)
        self.server.wait(timeout=10)

    def stop(self) -> None:
        """The device hangs: nothing answers, nothing is closed."""
        _signal(self._servers(), signal.SIGSTOP)

    def cont(self) -> None:
        """It goes on after `stop`."""
        _signal(self._servers(), signal.SIGCONT)

    def change_host_key(self) -> None:
        """Come back with another host key, as a reinstalled device or an impostor does."""
        self.kill()
        _keygen(self.root / "host_key")
        self.start()

    def _servers(self) -> list[int]:
        return [pid for pid in _descendants(self.pid) if _name(pid).startswith("sshd")]


@contextlib.contextmanager
def sshd(folder: Path, *, sftp: bool = True, host: str = "box") -> Iterator[Sshd]:
    """A server under `folder`; without `sftp` it is like a board's dropbear: no subsystem, so sftp and scp fail."""
    root = folder.resolve() / host
    (root / "home").mkdir(parents=True)
    root.chmod(0o700)
    box = Sshd(root, root / "ssh_config", host, free_port(), root / "id", sftp)
    _keygen(box.key)
    _keygen(root / "host_key")
    shutil.copy(f"{box.key}.pub", root / "authorized_keys")
    # sshd goes to the user's own home whatever HOME says
    enter = root / "enter"
    enter.write_text(f'#!/bin/sh\ncd {box.home} || exit 1\nexec sh -c "${{SSH_ORIGINAL_COMMAND:-exec sh}}"\n')
    enter.chmod(0o700)
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # sshd refuses to start as root without it
    server = [
        f"ListenAddress 127.0.0.1:{box.port}", f"HostKey {root}/host_key", f"AuthorizedKeysFile {root}/authorized_keys",
        f"PidFile {root}/pid", "UsePAM no", "StrictModes no", "PermitRootLogin yes", "PasswordAuthentication no",
        "KbdInteractiveAuthentication no", "MaxStartups 200", "MaxSessions 200", "PrintMotd no", "PrintLastLog no",
        f"SetEnv HOME={box.home} {MARK}={root}", f"ForceCommand exec {enter}",
    ]  # fmt: skip
    if sftp:
        server += [f"Subsystem sftp {_sftp_server()}"]
    (root / "sshd_config").write_text("\n".join(server) + "\n")
    key_type, key = (root / "host_key.pub").read_text().split()[:2]
    box.known_hosts.write_text(f"[127.0.0.1]:{box.port} {key_type} {key}\n")
    _write_client(box)
    try:
        box.start()
        yield box
    finally:
        if box.server is not None and box.server.poll() is None:
            box.kill()
        _sweep(root)


@contextlib.contextmanager
def jumped_sshd(folder: Path) -> Iterator[tuple[Sshd, Sshd]]:
    """Two servers, inner and gate: the inner one's `config` reaches it through the gate (ProxyJump)."""
    with sshd(folder, host="gate") as gate, sshd(folder, host="inner") as inner:
        _write_client(inner, gate)
        yield inner, gate


def _write_client(box: Sshd, gate: Sshd | None = None) -> None:
    lines: list[str] = []
    for one in (box, gate) if gate else (box,):
        lines += [
            f"Host {one.host}", "  HostName 127.0.0.1", f"  Port {one.port}", f"  User {getpass.getuser()}",
            f"  IdentityFile {one.key}", "  IdentitiesOnly yes", "  IdentityAgent none",
            f"  UserKnownHostsFile {one.known_hosts}", "  GlobalKnownHostsFile none", "  StrictHostKeyChecking yes",
        ]  # fmt: skip
        if one is box and gate:
            lines += [f"  ProxyJump {gate.host}"]
    box.config.write_text("\n".join(lines) + "\n")


def _sftp_server() -> str:
    for path in ("/usr/lib/openssh/sftp-server", "/usr/libexec/openssh/sftp-server", "/usr/lib/ssh/sftp-server"):
        if Path(path).exists():
            return path
    raise Missing("OpenSSH's sftp-server is not installed; its package is openssh-sftp-server")


def _keygen(path: Path) -> None:
    path.unlink(missing_ok=True)
    argv = [program("ssh-keygen", "openssh-client"), "-q", "-t", "ed25519", "-N", "", "-C", "lab", "-f", str(path)]
    subprocess.run(argv, check=True, stdin=subprocess.DEVNULL, capture_output=True, timeout=30)
