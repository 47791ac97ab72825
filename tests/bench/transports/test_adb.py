"""adb with a real adbd and both clients: which device is meant, and a clear word for what keeps it from being used."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import lab
import pytest

from edgekit.bench.transports import adb as link
from edgekit.errors import DeviceError, InputError
from edgekit.records import parse

pytestmark = pytest.mark.target

NASTY = (
    "", "a b", "'", '"', "$(touch pwned)", "`touch pwned`", "x\ny", "-n", "--", "!!", "\\n", "a\\", "%s", "*", "~", "é",
    "\udcff", "\r", "$HOME",
)  # fmt: skip
LISTED = "List of devices attached\\n%s\\n\\n"


def params(lab_server: lab.AdbServer, /, **others: object) -> link.Params:
    return parse(link.Params, {"adb": str(lab_server.adb), **others}, "test")


def refusal(of: link.Params) -> str:
    with pytest.raises(DeviceError) as caught, link.connect(of):
        pass
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_command_there(adb: lab.AdbServer, adbd: Callable[..., lab.Adbd]) -> None:
    phone = adbd()
    with link.connect(params(adb, serial=phone.serial)) as transport:
        done = transport.run(["sh", "-c", "getprop ro.product.model; echo err >&2; exit 255"], 10)
        assert (done.code, done.stdout, done.stderr) == (255, b"Lab Phone\n", b"err\n")
    assert link.devices(params(adb)) == ((phone.serial, "device", "Lab_Phone"),)
    lab.wait_for("the session to end", lambda: not phone.processes())


def test_the_only_device_needs_no_name(
    adb: lab.AdbServer, adbd: Callable[..., lab.Adbd], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "no device is attached" in refusal(params(adb))
    one, two = adbd("one"), adbd("two")
    adb.connect(one)
    with link.connect(params(adb)) as transport:
        assert transport.run(["getprop", "ro.serialno"], 10).stdout == b"one\n"
    adb.connect(two)
    said = refusal(params(adb))
    assert "there are 2 devices and no serial is given" in said
    assert one.serial in said and two.serial in said
    monkeypatch.setenv("ANDROID_SERIAL", two.serial)
    with link.connect(params(adb)) as transport:
        assert transport.run(["getprop", "ro.serialno"], 10).stdout == b"two\n"


def test_hostile_arguments_and_paths(adb: lab.AdbServer, adbd: Callable[..., lab.Adbd], tmp_path: Path) -> None:
    phone = adbd()
    folder = phone.root / "data/local/tmp"
    with link.connect(params(adb, serial=phone.serial)) as transport:
        done = transport.run(["printf", "%s\\0", *NASTY], 10)
        assert done.stdout.split(b"\0")[:-1] == [os.fsencode(word) for word in NASTY]
        for word in NASTY[1:]:
            transport.push(os.fsencode(word), f"/data/local/tmp/{word}", 10)
            assert (folder / word).read_bytes() == os.fsencode(word)
            transport.pull(f"/data/local/tmp/{word}", tmp_path / "back", 10)
            assert (tmp_path / "back").read_bytes() == os.fsencode(word)
        data = os.urandom(3_000_000)
        transport.push(data, "/data/local/tmp/large", 20)
        transport.pull("/data/local/tmp/large", tmp_path / "back", 20)
        assert (tmp_path / "back").read_bytes() == data
    assert not (folder / "pwned").exists()


def test_it_does_not_know_this_host(adb: lab.AdbServer, adbd: Callable[..., lab.Adbd]) -> None:
    phone = adbd(secure=True)
    assert "unlock it and allow USB debugging there" in refusal(params(adb, serial=phone.serial))


def test_nothing_is_at_that_address(adb: lab.AdbServer) -> None:
    said = refusal(params(adb, serial=f"127.0.0.1:{lab.free_port()}"))
    assert "cannot be connected to" in said and "wireless debugging" in said


@pytest.mark.parametrize("serial", ["NOSUCH", "-x", "a b", "$(touch pwned)", "-H:5555", "x\n:1"])
def test_no_such_device(adb: lab.AdbServer, serial: str) -> None:
    assert "no such device is attached" in refusal(params(adb, serial=serial))


def test_a_server_elsewhere(adb: lab.AdbServer, adbd: Callable[..., lab.Adbd], monkeypatch: pytest.MonkeyPatch) -> None:
    phone = adbd()
    adb.connect(phone)
    for name in adb.env:
        monkeypatch.delenv(name)
    with link.connect(params(adb, server=f"localhost:{adb.port}")) as transport:
        assert transport.run(["echo", "here"], 10).stdout == b"here\n"
    with pytest.raises(DeviceError, match="there is no adb server"):
        link.devices(params(adb, server=f"127.0.0.1:{lab.free_port()}"))


@pytest.mark.parametrize("server", ["-x:1", "host", "a b:1", "host:x", "$(x):1"])
def test_addresses_that_are_none(server: str) -> None:
    with pytest.raises(InputError, match="must be host:port"):
        parse(link.Params, {"server": server}, "test")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("A1                     offline usb:1-2 transport_id:1", "offline"),
        ("A1                     no permissions (user in plugdev group); see [x] usb:1-2", "add the udev rules"),
        ("A1                     unauthorized usb:1-2", "allow USB debugging"),
        ("A1                     bootloader usb:1-2", "is in its bootloader"),
        ("A1                     rescue usb:1-2", "adb says 'rescue'"),
    ],
)
def test_states_that_no_lab_device_is_in(commands: Callable[..., Path], line: str, expected: str) -> None:
    commands(adb=f"printf '{LISTED % line}'")
    assert expected in refusal(link.Params())
    assert expected in refusal(link.Params(serial="A1"))


def test_what_adb_lists_is_read_as_it_is(commands: Callable[..., Path]) -> None:
    lines = (
        "my phone 1             device usb:1-2 product:x model:Pixel_8 device:y\\nA1  offline\\n10.0.0.2:5555 device"
    )
    commands(adb=f"echo '* daemon started successfully'; printf '{LISTED % lines}'")
    assert link.devices(link.Params()) == (
        ("my phone 1", "device", "Pixel_8"), ("A1", "offline", ""), ("10.0.0.2:5555", "device", "")
    )  # fmt: skip


def test_where_adb_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def place(folder: Path) -> None:
        folder.mkdir(parents=True)
        name = folder.name
        (folder / "adb").write_text(f"#!/bin/sh\nprintf '{LISTED % (name + '  device')}'\n")
        (folder / "adb").chmod(0o755)

    def found(**given: str) -> str:
        return link.devices(link.Params(**given))[0][0]

    for name in ("named", "path", "platform-tools"):
        place(tmp_path / name)
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    assert found() == "path"
    assert found(adb=str(tmp_path / "named" / "adb")) == "named"
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("ANDROID_HOME", str(tmp_path))
    assert found() == "platform-tools"
    with pytest.raises(InputError, match="is no program"):
        found(adb=str(tmp_path / "none"))


def test_the_adb_in_a_package_is_used_last(tmp_path: Path) -> None:
    """In a process of its own, with a package of that name that must not be imported."""
    binaries = tmp_path / "adbutils" / "binaries"
    binaries.mkdir(parents=True)
    (binaries.parent / "__init__.py").write_text("raise SystemExit('was imported')\n")
    (binaries / "adb").write_text(f"#!/bin/sh\nprintf '{LISTED % 'bundled  device'}'\n")
    (binaries / "adb").chmod(0o755)
    code = (
        f"import sys, os; sys.path.insert(0, {str(tmp_path)!r}); os.environ['PATH'] = {str(tmp_path)!r}\n"
        "from edgekit.bench.transports import adb; print(adb.devices(adb.Params()))"
    )
    root = Path(link.__file__).parents[3]
    env = {key: value for key, value in os.environ.items() if not key.startswith("ANDROID_")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=root, env=env)
    assert done.stdout.strip() == "(('bundled', 'device', ''),)", done.stderr


def test_no_adb_anywhere(tmp_path: Path) -> None:
    code = (
        f"import sys, os; os.environ['PATH'] = {str(tmp_path)!r}\n"
        "from edgekit.bench.transports import adb\n"
        "try: adb.devices(adb.Params())\nexcept Exception as e: print(type(e).__name__, e)"
    )
    (tmp_path / "adbutils.py").write_text("")  # a package without a binary, before the real one
    env = {key: value for key, value in os.environ.items() if not key.startswith("ANDROID_")}
    env["PYTHONPATH"] = os.pathsep.join([str(tmp_path), str(Path(link.__file__).parents[3])])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=env)
    assert done.stdout.startswith("InputError adb is neither on PATH"), done.stderr
