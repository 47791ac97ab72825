"""A real PostgreSQL server for tests: Debian's, in a folder of its own, on a free loopback port.

    with postgres.server() as url:
        history.add(url, entry)

It runs as `nobody` where we are root, which its programs refuse to be, and ends with the `with`, or with the thread
that started it.
"""

import contextlib
import os
import pwd
import re
import secrets
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import lab

PACKAGE = "postgresql"


def _bin() -> Path:
    """The folder of the newest server that Debian's package installed."""
    found = list(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not found:
        raise lab.Missing(f"PostgreSQL's server is not installed; its package is {PACKAGE}")
    return max(found, key=lambda path: int(re.sub(r"\D", "", path.parts[-3]) or 0)).parent


@contextlib.contextmanager
def server() -> Iterator[str]:
    """The URL, with user and password, of a server that runs until the `with` ends; nothing of it is left."""
    bin = _bin()
    # not in pytest's folders, which are closed to others
    with tempfile.TemporaryDirectory(prefix="edgekit-postgres-") as name:
        yield from _run(bin, Path(name))


def _run(bin: Path, folder: Path) -> Iterator[str]:
    port, password = lab.free_port(), secrets.token_hex(8)
    leash = [lab.program("setpriv", "util-linux"), "--pdeathsig", "KILL"]
    env = {"PATH": f"{bin}:/usr/bin:/bin", "LC_ALL": "C", "TZ": "UTC", lab.MARK: str(folder)}
    if os.geteuid() == 0:
        user = pwd.getpwnam("nobody")
        leash += [f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
        os.chown(folder, user.pw_uid, user.pw_gid)
    data, secret = folder / "data", folder / "password"
    secret.write_text(password)
    secret.chmod(0o644)
    subprocess.run(
        [*leash, bin / "initdb", "-D", data, "-U", "edgekit", "-A", "scram-sha-256", "--pwfile", secret, "-E", "UTF8",
         "--no-sync", "--no-instructions"],
        cwd=folder, env=env, check=True, capture_output=True, timeout=120,
    )  # fmt: skip
    options = {"port": port, "listen_addresses": "127.0.0.1", "unix_socket_directories": "", "fsync": "off"}
    argv = [*leash, bin / "postgres", "-D", data, *(f"--{name}={value}" for name, value in options.items())]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            argv, cwd=folder, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
    try:
        ready = [bin / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(port), "-t", "1"]

        def up() -> bool:
            if process.poll() is not None:
                raise RuntimeError(f"PostgreSQL ended: {(folder / 'log').read_text(errors='replace')[-2000:]}")
            return subprocess.run(ready, env=env, timeout=30).returncode == 0

        lab.wait_for("PostgreSQL", up, 60)
        yield f"postgresql://edgekit:{password}@127.0.0.1:{port}/postgres"
    finally:
        process.send_signal(signal.SIGINT)  # its fast shutdown: clients are sent away, children end
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(20)
