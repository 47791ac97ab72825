"""The list of devices and the doctor: good, broken and unreachable records; this host, a real phone, a board."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lab
import pytest

from edgekit import devices, tables
from edgekit.bench import doctor, placed
from edgekit.errors import InputError
from edgekit.records import Device, Use
from edgekit.results import DeviceFacts, Doctor, Finding, State


@pytest.fixture(autouse=True)
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's folder of records; the working folder has none. Nothing here finds an adb unless a test has one."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bin").mkdir()
    for program in ("sh", "setsid", "sleep", "kill", "ssh", "sha256sum", "true"):
        for folder in os.environ["PATH"].split(os.pathsep):
            if Path(folder, program).exists():
                (tmp_path / "bin" / program).symlink_to(Path(folder, program))
                break
    folder = tmp_path / "config" / "edgekit" / "devices"
    folder.mkdir(parents=True)
    return folder


def without_adb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setitem(sys.modules, "adbutils", None)  # its wheel holds an adb
    for name in ("ANDROID_HOME", "ANDROID_SDK_ROOT"):
        monkeypatch.delenv(name, raising=False)


def said(found: Doctor) -> dict[str, Finding]:
    return {finding.what: finding for finding in found.findings}


def test_the_list_without_adb(own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_adb(tmp_path, monkeypatch)
    (own / "broken.toml").write_text('base = "andriod"')
    (own / "zz.toml").write_text('base = "host"\ndescription = "me again"\n')
    states = doctor.states()
    found = {state.name: state for state in states}
    assert list(found) == sorted(found)
    assert (found["zz"].description, found["zz"].link) == ("me again", "local")
    assert found["zz"].state in ("ready", "incomplete")  # without a compiler or a kit
    assert found["broken"].state == "broken record"
    assert 'did you mean "android"' in found["broken"].missing[0]
    assert found["rpi-5"].state == "no link"
    assert 'base = "rpi-5"' in found["rpi-5"].missing[0]
    assert found["android"].state == "not reachable"
    assert "adb is neither on PATH" in found["android"].missing[0]
    assert "edgekit runner build --target android" in found["android"].missing[1]
    text = tables.devices(states)
    assert max(map(len, text.splitlines())) <= 80 + len(str(own))  # a path is not broken


def test_a_phone_and_a_broken_record_of_the_users_for_android(
    own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_adb(tmp_path, monkeypatch)
    (own / "android.toml").write_text("abi = ")
    (tmp_path / "bin" / "adb").write_text("#!/bin/sh\necho 'List of devices attached'\necho 'S1 device'\n")
    (tmp_path / "bin" / "adb").chmod(0o755)
    found = {state.name: state for state in doctor.states()}
    assert {name: found[name].state for name in ("android", "adb:S1")} == dict.fromkeys(
        ("android", "adb:S1"), "broken record"
    )
    assert found["host"].state in ("ready", "incomplete")


def test_what_does_not_answer_is_not_awaited(own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that takes connections and says nothing."""
    without_adb(tmp_path, monkeypatch)
    monkeypatch.setattr(doctor, "_PATIENCE_S", 1.5)
    with lab.socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        link = f'link = {{ name = "ssh", host = "127.0.0.1", port = {silent.getsockname()[1]} }}'
        (own / "silent.toml").write_text(f'base = "linux-arm64"\n{link}\n')
        began = doctor.time.monotonic()
        found = {state.name: state for state in doctor.states()}
        assert doctor.time.monotonic() - began < 6
    assert found["silent"].state == "not reachable"
    assert "no answer within" in found["silent"].missing[0]
    assert found["host"].state in ("ready", "incomplete")


def test_this_host(tmp_path: Path) -> None:
    host = devices.find("host").model_copy(update={"workdir": str(tmp_path / "work")})
    found = doctor.doctor(host)
    findings = said(found)
    assert found.good, found
    assert findings["link"].verdict == "good"
    assert str(tmp_path / "work") in findings["work folder"].found
    assert findings["ABI"].found == os.uname().machine
    assert findings["cores"].found.startswith(f"{len(os.sched_getaffinity(0))}: ")
    assert findings["Python"].found.startswith(sys.version.split()[0])
    assert findings["memory limit"].verdict in ("good", "note")
    assert not (tmp_path / "work" / "run").exists()
    assert not list(Path("/sys/fs/cgroup").glob("edgekit-*")) and not list(
        Path("/sys/fs/cgroup/memory").glob("edgekit-*")
    )
    text = tables.doctor(found)
    assert text.endswith("host: ready to bench")


def test_what_is_bad_has_a_remedy(tmp_path: Path) -> None:
    (tmp_path / "full").write_text("")
    values: dict[str, Any] = {
        "abi": "armeabi-v7a", "runner": "python", "formats": ["tflite"], "workdir": str(tmp_path / "work"),
        "preconditions": {"min_battery_percent": 100, "max_load": 1}, "runtime": {"threads": 4096},
    }  # fmt: skip
    host = devices.find("host").model_dump()
    found = doctor.doctor(Device.model_validate({**host, **values}))
    bad = {finding.what: finding for finding in found.findings if finding.verdict == "bad"}
    assert not found.good
    assert {"ABI", "threads"} <= set(bad)
    assert all(finding.remedy for finding in bad.values())
    assert "the record says armeabi-v7a" in bad["ABI"].found
    text = tables.doctor(found)
    assert text.endswith(f"{len(bad)} to mend before a bench")
    assert max(map(len, text.splitlines())) <= 80
    nowhere = doctor.doctor(devices.find("host").model_copy(update={"workdir": f"{tmp_path}/full/work"}))
    assert not nowhere.good
    assert said(nowhere)["work folder"].verdict == "bad"


def test_the_python_of_the_record_is_the_one_that_counts(tmp_path: Path) -> None:
    values = {"workdir": str(tmp_path / "work"), "runner": "python", "python": str(tmp_path / "venv" / "python")}
    found = said(doctor.doctor(devices.find("host").model_copy(update=values)))["Python"]
    assert (found.verdict, found.found) == ("bad", f"no {tmp_path}/venv/python")


def test_a_32_bit_record_on_a_64_bit_system_is_as_good_for_the_doctor_as_for_a_bench() -> None:
    record = devices.find("linux-armv7")
    facts = DeviceFacts(model="m", os="Linux", abi="aarch64", libc=None, cores=4, ram_bytes=None, free_bytes=None)
    assert placed.same_abi(record, facts)
    assert not placed.same_abi(record, facts.model_copy(update={"abi": "x86_64"}))
    assert not placed.same_abi(devices.find("linux-arm64"), facts.model_copy(update={"abi": "armv7l"}))


def test_each_record_has_its_runner() -> None:
    shipped = {name: placed.kit_target(devices.find(name)) for name in ("pixel-8", "rpi-5", "linux-armv7")}
    assert shipped == {"pixel-8": "android", "rpi-5": "linux-arm64", "linux-armv7": "linux-armv7"}
    with pytest.raises(InputError, match="no native runner for Android on x86_64"):
        placed.kit_target(devices.find("android").model_copy(update={"abi": "x86_64"}))


def test_a_link_that_fails_is_a_finding() -> None:
    link = Use.model_validate({"name": "ssh", "host": "127.0.0.1", "port": lab.free_port()})
    found = doctor.doctor(devices.find("linux-arm64").model_copy(update={"link": link}))
    assert not found.good
    assert "refused" in said(found)["link"].found
    unlinked = doctor.doctor(devices.find("rpi-5"))
    assert said(unlinked)["link"].verdict == "bad"
    assert 'base = "rpi-5"' in said(unlinked)["link"].found


def test_the_commands(tmp_path: Path) -> None:
    """Exit code 4 where something is bad; one JSON document."""

    def cli(*argv: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, "-m", "edgekit", *argv], cwd=tmp_path, capture_output=True, text=True, timeout=60
        )

    (tmp_path / "d.toml").write_text(f'base = "host"\nworkdir = "{tmp_path}/work"\n')
    good = cli("devices", "doctor", "d.toml", "--json")
    assert good.returncode == 0, good.stderr
    assert Doctor.model_validate(json.loads(good.stdout)).good
    bad = cli("devices", "doctor", "rpi-5")
    assert (bad.returncode, bad.stderr) == (4, "")
    assert cli("devices", "doctor", "rpi5").returncode == 2


@pytest.mark.target
def test_a_phone(adb: lab.AdbServer, adbd: Callable[..., lab.Adbd], own: Path) -> None:
    phone, other = adbd("phone"), adbd("other one", properties={"ro.product.model": "Two"})
    serials = adb.connect(phone), adb.connect(other)
    (own / "mine.toml").write_text(
        f'base = "android"\nlink = {{ name = "adb", serial = "{serials[0]}" }}\n'
        f'abi = "{"x86_64" if lab._abi() == "x86_64" else "arm64-v8a"}"\nrunner = "python"\n'
        "[preconditions]\nmin_battery_percent = 90\nwait_s = 0\n"
    )
    found = {state.name: state for state in doctor.states()}
    assert found["mine"].state == "ready"
    assert f"adb:{serials[0]}" not in found  # a record names it
    assert found[f"adb:{serials[1]}"].state in ("ready", "incomplete")
    assert found["android"].state == "not reachable"
    assert "2 devices" in found["android"].missing[0]
    findings = said(doctor.doctor(devices.find("mine")))
    assert findings["link"].found == f"adb {serials[0]}"
    assert findings["model"].found == "Edgekit Lab Phone, Android 14 (sdk 34)"
    assert findings["ABI"].verdict == "good"
    assert (findings["Python"].verdict, findings["Python"].found) == ("bad", "no python3")
    assert findings["preconditions"].found == "battery at 83 %, this benchmark needs 90 %"
    assert findings["preconditions"].remedy == "charge it or lower preconditions.min_battery_percent"
    assert "BIG at 36.1 °C" in findings["temperature"].found
    assert findings["power, load"].found.startswith("battery at 83 %, not on external power")
    assert findings["energy: battery"].verdict == "good"
    cores = len(os.sched_getaffinity(0))
    if cores == os.cpu_count() and cores > 1:
        assert findings["measured on"].found == f"1 thread, pinned to {cores - 1}"
        assert "up to 2.85 GHz" in findings["cores"].found


@pytest.mark.target
def test_a_board(sshd: lab.Sshd) -> None:
    link = Use.model_validate({"name": "ssh", "host": sshd.host, "config": str(sshd.config)})
    board = devices.find("linux-arm64").model_copy(
        update={"link": link, "abi": "x86_64" if os.uname().machine == "x86_64" else "arm64-v8a"}
    )
    findings = said(doctor.doctor(board))
    assert findings["link"].verdict == "good"
    assert findings["work folder"].verdict == "good"
    assert findings["libc for tflite"].verdict == "good"
    assert not list(sshd.home.rglob("run"))


def test_tables_make_text_plain() -> None:
    state = State(name="a\x1b[2J", description="b\nc", link=None, state="no link", missing=(("d" * 30 + " ") * 5,))
    finding = Finding(what="model", found="x\x07" + " word" * 40, verdict="note", remedy="do\rit")
    for text in (tables.devices([state]), tables.doctor(Doctor(device="d", good=True, findings=(finding,)))):
        assert all(line.isprintable() and len(line) <= 80 for line in text.splitlines())
