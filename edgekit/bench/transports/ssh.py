"""Boards and servers by SSH, through the OpenSSH client: the user's own ssh_config, keys, agent and jump hosts count.

One connection serves all commands: a foreground master that lasts as long as our end of its input. The others find it
through a socket in a private folder and connect nowhere themselves. Host keys are as strict as the user has them, and
nothing is ever asked. Files go through the shell, so that boards without SFTP are no case of their own.
"""

import re
import secrets
import shutil
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from pydantic import Field, field_validator

from edgekit.bench import transports
from edgekit.bench.transports import Transport, last_words
from edgekit.errors import InputError
from edgekit.records import Record

WORKDIR = "~/.cache/edgekit"
_CONNECT_S = 10
_LONGEST_SOCKET = 80
"""A socket's path has about 104 bytes, and ssh adds some while it makes one."""

_SWEPT = '"$@"; code=$?; rm -rf "$0"; exit "$code"'
"""Runs a command and then removes the folder, also when this process was killed."""


class Params(Record):
    """Where the device is. `host` is what stands after `ssh`: `pi@192.168.1.7`, or a name in the ssh_config."""

    host: str
    port: int | None = Field(default=None, ge=1, le=65535)
    config: str | None = None
    """Another ssh_config than the user's own."""

    @field_validator("host")
    @classmethod
    def _plain(cls, host: str) -> str:
        # ssh_config may pass the name to a shell (ProxyCommand, Match exec), so no name with a shell's signs gets there
        if not re.fullmatch(r"[A-Za-z0-9_\[][A-Za-z0-9_.@:%/\[\]+~-]*", host):
            raise ValueError("must be a host as after `ssh`, in letters, digits and . _ @ : % - [ ]")
        return host


@contextmanager
def connect(params: Params) -> Generator[Transport]:
    """An open connection to `params.host`; see `transports.Link`."""
    ssh = shutil.which("ssh")
    if ssh is None:
        raise InputError("ssh is not on PATH; install the OpenSSH client")
    config = None if params.config is None else Path(params.config).expanduser()
    if config and not config.is_file():
        raise InputError(f'link "ssh": config: there is no file {config}; name an ssh_config')
    name = f"ssh {params.host}"

    def lost(code: int, stderr: bytes) -> str:
        return _why(params, code, stderr)

    folder = tempfile.mkdtemp(prefix="edgekit-", dir=_short_folder())
    try:
        socket = f"ControlPath={folder}/s"
        given = [*(["-F", str(config)] if config else []), *(["-p", str(params.port)] if params.port else [])]
        master = [
            "sh", "-c", _SWEPT, folder, ssh, *given, "-T", "-x", "-a", "-o", socket,
            *_options("ControlMaster=yes", "ControlPersist=no", "ServerAliveInterval=5", "ServerAliveCountMax=6"),
            *_options("BatchMode=yes", f"ConnectTimeout={_CONNECT_S}", "ConnectionAttempts=1", "LogLevel=ERROR"),
            *_options("ClearAllForwardings=yes", "RemoteCommand=none", "PermitLocalCommand=no"),
        ]  # fmt: skip
        nonce = secrets.token_hex(8)
        waiting = f"exec sh -c 'echo {nonce}; exec cat >/dev/null'"
        mark = re.compile(rb"(%s)\r?\n" % nonce.encode())
        # the master gone, a client would connect by itself: a command that fails keeps it from that
        client = [
            ssh,
            "-F",
            "none",
            "-T",
            *_options("ControlMaster=no", socket, "ProxyCommand=false", "LogLevel=ERROR"),
        ]
        opened = Transport(name, (*client, "--", params.host), _broken)
        limit = _CONNECT_S + 10.0
        # all else has ended when it is closed, so that it is not waited for: the device may be gone
        with transports.held([*master, "--", params.host, waiting], name, limit, mark, lost, opened.stopping, 0):
            yield opened
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _options(*options: str) -> list[str]:
    return [word for option in options for word in ("-o", option)]


def _short_folder() -> str | None:
    """Where a socket's path is short enough: the system's folder for temporary files, or else `/tmp`."""
    return None if len(tempfile.gettempdir()) < _LONGEST_SOCKET - 20 else "/tmp"


_REASONS = {
    "remote host identification has changed": (
        "its host key is not the one known here: it was reinstalled, or something else answers for it; "
        "make sure which, then remove the old key: ssh-keygen -R {host}"
    ),
    "host key verification failed": (
        "its host key is not known here; connect once by hand, compare the fingerprint, say yes: ssh {host}"
    ),
    "host key is known": (
        "its host key is not known here; connect once by hand, compare the fingerprint, say yes: ssh {host}"
    ),
    "permission denied": (
        "it takes none of this user's keys, and no password can be asked here; "
        "give it a key (ssh-copy-id {host}), or load yours (ssh-add)"
    ),
    "too many authentication failures": "it was offered too many keys; name the right one in ssh_config: IdentityFile",
    "could not resolve hostname": "no such host name is known; is it spelled right, and is the device in this network?",
    "connection refused": "nothing there takes SSH; is sshd running there, and the port right?",
    "no route to host": "the network knows no way to it; is it on, and in this network?",
    "network is unreachable": "the network knows no way to it; is this host connected?",
    "timed out": "it does not answer; is it on, and does a firewall let SSH pass?",
    "connection closed": "it closed the connection; see what its sshd logs",
    "connection reset": "it closed the connection; see what its sshd logs",
}


def _why(params: Params, code: int, stderr: bytes) -> str:
    """Why ssh failed, as it says and as it helps."""
    said = stderr.decode(errors="replace").lower()
    words = last_words(stderr)
    for sign, reason in _REASONS.items():
        if sign in said:
            return f"{reason.format(host=params.host)} ({words})"
    return f"ssh ended with {code}: {words or 'it said nothing'}; try it by hand: ssh {params.host}"


def _broken(code: int, stderr: bytes) -> str:
    """Why a command had no end. What stands in stderr may be the command's own words."""
    words = last_words(stderr)
    return f"ssh ended with {code}{f' ({words})' if words else ''}; is the device still on, and its network up?"
