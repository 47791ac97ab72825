"""Android devices by adb, through the adb binary: USB, TCP, and devices at another host's adb server.

    link = { name = "adb", serial = "8A1X0" }               # no serial: the only device there is
    link = { name = "adb", serial = "192.168.1.9:5555" }    # is connected to, if it is not yet
    link = { name = "adb", server = "lab-host:5037" }       # that host's devices

The binary is the one named, or on PATH, or in the Android SDK, or in the adbutils package. It needs Android 7 or newer
there: what is older ties no command to our end of its input.
"""

import importlib.util
import os
import re
import shutil
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from pydantic import field_validator

from edgekit.bench.transports import Transport, converse, last_words
from edgekit.errors import DeviceError, InputError
from edgekit.records import Record

WORKDIR = "/data/local/tmp/edgekit"
_ANSWER_S = 20.0
"""For adb itself, which may have to start its server."""
_SETTLE_S = 3.0
_ADDRESS = re.compile(r"[A-Za-z0-9_.%:-]*[A-Za-z0-9]:\d{1,5}|\[[0-9A-Fa-f:.%]+\]:\d{1,5}")
_LINE = re.compile(
    r"(?P<serial>\S.*?)\s+(?P<state>device|offline|unauthorized|authorizing|connecting|no permissions|recovery|"
    r"sideload|rescue|bootloader|fastboot|host|detached|unknown)(?=\s|$)(?P<rest>.*)"
)
"""A line of `adb devices -l`; spaces are in serials too."""


class Params(Record):
    """Which device. `ANDROID_SERIAL` and `ANDROID_ADB_SERVER_PORT` count as they do for adb."""

    serial: str | None = None
    """As `adb devices` shows it; `None`: the only one there is."""
    server: str | None = None
    """An adb server elsewhere, `host:port`."""
    adb: str | None = None
    """The path of the binary; `None`: searched for."""

    @field_validator("server")
    @classmethod
    def _address(cls, server: str | None) -> str | None:
        if server is not None and (server.startswith("-") or not _ADDRESS.fullmatch(server)):
            raise ValueError("must be host:port")
        return server


@contextmanager
def connect(params: Params) -> Generator[Transport]:
    """The device's shell; see `transports.Link`."""
    adb = _adb(params)
    serial = _ready(adb, params)
    yield Transport(f"adb {_shown(serial)}", (*adb, "-s", serial, "shell"), _why)


def devices(params: Params) -> tuple[tuple[str, str, str], ...]:
    """Every device that the adb server knows: serial, state (`device` is good), and model, empty if unknown.

    Raises `InputError` where there is no adb, `DeviceError` where its server does not answer.
    """
    return _devices(_adb(params))


def _adb(params: Params) -> tuple[str, ...]:
    """How adb is started, with the server that it is to ask."""
    path = params.adb or shutil.which("adb")
    if params.adb and not shutil.which(params.adb):
        raise InputError(f"adb: {params.adb} is no program; name the adb binary, or leave it to be found")
    if path is None:
        places = [
            Path(sdk) / "platform-tools" for key in ("ANDROID_HOME", "ANDROID_SDK_ROOT") if (sdk := os.environ.get(key))
        ]
        package = importlib.util.find_spec("adbutils")  # not imported: its wheel holds the binary
        places += [Path(folder) / "binaries" for folder in (package and package.submodule_search_locations) or ()]
        path = shutil.which("adb", path=os.pathsep.join(map(str, places))) if places else None
    if path is None:
        raise InputError(
            "adb is neither on PATH, nor below ANDROID_HOME, nor in a package: install Android's platform-tools, "
            'or pip install "edgekit[adb]", or name it: --adb'
        )
    if params.server is None:
        return (path,)
    host, _, port = params.server.rpartition(":")
    return (path, "-H", host.strip("[]"), "-P", port)


def _devices(adb: tuple[str, ...]) -> tuple[tuple[str, str, str], ...]:
    code, stdout, stderr = converse([*adb, "devices", "-l"], "adb devices", _ANSWER_S)
    if code:
        raise DeviceError(f"adb devices: {_why(code, stderr)}")
    _, _, listed = stdout.decode(errors="replace").partition("List of devices attached")
    found = (_LINE.fullmatch(line.strip()) for line in listed.splitlines())
    return tuple((line["serial"], line["state"], _model(line["rest"])) for line in found if line)


def _model(rest: str) -> str:
    found = re.search(r"\bmodel:(\S+)", rest)
    return found[1] if found else ""


def _ready(adb: tuple[str, ...], params: Params) -> str:
    """The serial of the device that is meant, which is listed and in order."""
    serial = params.serial or os.environ.get("ANDROID_SERIAL")
    listed = _devices(adb)
    if serial is None:
        if len(listed) > 1:
            shown = ", ".join(f"{name} ({model or state})" for name, state, model in listed)
            raise DeviceError(f"adb: there are {len(listed)} devices and no serial is given; name one of {shown}")
        if not listed:
            raise DeviceError(
                "adb: no device is attached; plug one in with USB debugging on, or name its address as the serial"
            )
        serial = listed[0][0]
    states = {name: state for name, state, _ in listed}
    if serial not in states and _ADDRESS.fullmatch(serial) and not serial.startswith("-"):
        states = _connected(adb, serial)
    state = states.get(serial, "absent")
    if state != "device":
        others = ", ".join(states) or "no other"
        remedy = _STATES.get(state, f"adb says {state!r}; let it start up, then try again").format(others=others)
        raise DeviceError(f"adb {_shown(serial)}: {remedy}")
    return serial


def _shown(serial: str) -> str:
    return serial if serial.isprintable() and " " not in serial else repr(serial)


_STATES = {
    "absent": "no such device is attached; plug it in, or look at the serial (there is {others})",
    "offline": "is attached but does not answer (offline); plug it in again, restart it, or: adb reconnect offline",
    "unauthorized": "does not know this host (unauthorized); unlock it and allow USB debugging there",
    "authorizing": "does not know this host yet (authorizing); unlock it and allow USB debugging there",
    "no permissions": (
        "this user may not open its USB device (no permissions); "
        "add the udev rules (package android-sdk-platform-tools-common) and plug it in again"
    ),
    "recovery": "is in recovery; start Android there",
    "sideload": "is in sideload; start Android there",
    "bootloader": "is in its bootloader; start Android there",
    "fastboot": "is in its bootloader; start Android there",
}


def _connected(adb: tuple[str, ...], address: str) -> dict[str, str]:
    """The states after `adb connect`, once they settle. adb returns 0 whether or not that succeeds."""
    code, stdout, stderr = converse([*adb, "connect", address], f"adb connect {address}", _ANSWER_S)
    said = last_words(stdout) or last_words(stderr) or f"adb ended with {code}"
    end = time.monotonic() + _SETTLE_S
    while True:
        states = {name: state for name, state, _ in _devices(adb)}
        if address not in states:
            raise DeviceError(
                f"adb {address}: cannot be connected to ({said}); is it on, in this network, and its adb "
                "listening there (wireless debugging, or adb tcpip 5555)?"
            )
        if states[address] in ("device", "unauthorized") or time.monotonic() > end:
            return states
        time.sleep(0.2)


def _why(code: int, stderr: bytes) -> str:
    """Why adb failed, as it says (`error: closed`, `adb: no devices`) and as it helps; the command spoke there too."""
    own = b"\n".join(line for line in stderr.splitlines() if line.startswith((b"error:", b"adb:", b"adb.exe:", b"* ")))
    said, words = own.decode(errors="replace").lower(), last_words(own)
    for sign, reason in {
        "not found": "the device is gone; plug it in again",
        "no devices": "the device is gone; plug it in again",
        "offline": "the device does not answer (offline); plug it in again or restart it",
        "unauthorized": "the device does not allow this host; unlock it and allow USB debugging there",
        "cannot connect to daemon": "there is no adb server; see its address and port, or start it: adb start-server",
        "failed to start daemon": "adb's server cannot be started; see whether its port is taken",
    }.items():
        if sign in said:
            return f"{reason} ({words})"
    return f"adb ended with {code} ({words or 'it said nothing'}); is the device still attached and on?"
