"""Recorded devices (tests/golden/conditions) as real files, read by the real scripts in real shells; and this host."""

import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edgekit import devices, plugins
from edgekit.bench import conditions
from edgekit.bench.transports import Transport
from edgekit.errors import DeviceError
from edgekit.records import Preconditions, Use
from edgekit.results import Reading

GOLDEN = Path(__file__).parents[1] / "golden" / "conditions"
SHELLS = (("sh",), ("dash",), ("bash",), ("busybox", "sh"), ("mksh",))
FOLDERS = {"pixel": "/data/local/tmp", "galaxy": "/data/local/tmp", "pi4": "/home/pi", "jetson": "/home/user",
           "laptop": "/home", "vm": "/tmp"}  # fmt: skip


def lay(root: Path, recording: str) -> None:
    """A recording's files and tools below `root`; see the README beside the recordings."""
    for block in ("\n" + recording).split("\n--- ")[1:]:
        head, _, body = block.partition("\n")
        kind = next((kind for kind in ("unreadable ", "output of ", "bytes ") if head.startswith(kind)), "")
        name, _, arguments = head.removeprefix(kind).partition(" ")
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if kind == "unreadable ":
            file.mkdir()  # opens and then fails to be read, for root too
        elif kind == "bytes ":
            file.write_bytes(body.strip("\n").encode().replace(b"\\0", b"\0"))
        elif kind == "output of ":
            said = file.with_name(f"{file.name}.{arguments.replace('/', '_')}")
            said.write_text(body and body.rstrip("\n") + "\n", encoding="utf-8")
            file.write_text(
                f'#!/bin/sh\nf=$(echo "$*" | tr / _)\n[ -s "{file}.$f" ] || exit 1\ncat "{file}.$f"\n', encoding="utf-8"
            )
            file.chmod(0o755)
        else:
            file.write_text(body.rstrip("\n") + "\n", encoding="utf-8")


Told = Callable[..., str]


@pytest.fixture
def told(tmp_path: Path) -> Told:
    """`told("pixel", script, ...)`: what the script prints there, which must be the same in every shell."""

    def run(name: str, script: str, *arguments: str) -> str:
        root = tmp_path / name
        if not root.exists():
            lay(root, (GOLDEN / f"{name}.txt").read_text(encoding="utf-8"))
        running = {
            shell: subprocess.Popen(
                [*shell, "-c", script, "edgekit", str(root), *arguments],
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            )
            for shell in SHELLS
            if shutil.which(shell[0])
        }  # fmt: skip
        said = {shell: process.communicate(timeout=20) for shell, process in running.items()}
        assert not {shell: err for shell, (_, err) in said.items() if err}
        assert len({out for out, _ in said.values()}) == 1, said
        return said["sh",][0]

    return run


@pytest.fixture
def host() -> Iterator[Transport]:
    module, params = plugins.use("transports", Use(name="local"))
    with module.connect(params) as transport:
        yield transport


@pytest.mark.parametrize(
    ("name", "values"),
    [
        (
            "pixel",
            {"model": "Google Pixel 8", "os": "Android 14 (sdk 34)", "abi": "arm64-v8a", "libc": "bionic", "cores": 9,
             "ram_bytes": 7762468 * 1024, "free_bytes": 61597588 * 1024},
        ),
        ("galaxy", {"model": "samsung SM-S921B", "libc": "bionic", "cores": 2, "ram_bytes": None, "free_bytes": None}),
        (
            "pi4",
            {"model": "Raspberry Pi 4 Model B Rev 1.4", "os": "Raspbian GNU/Linux 12 (bookworm), Linux 6.1.21-v8+",
             "abi": "armv7l", "libc": "glibc 2.36", "cores": 4, "free_bytes": 20145988 * 1024},
        ),
        (
            "jetson",
            {"model": "NVIDIA Jetson Orin Nano Developer Kit", "abi": "aarch64", "libc": "glibc 2.35", "cores": 4,
             "max_clocks_hz": {0: 1_510_400_000}, "free_bytes": 75000000 * 1024},
        ),
        (
            "laptop",
            {"model": "LENOVO ThinkPad T14, 13th Gen Intel(R) Core(TM) i5-1340P", "os": "Fedora Linux 40, Linux 6.8.5",
             "abi": "x86_64", "libc": "glibc 2.39", "cores": 2, "max_clocks_hz": {}, "free_bytes": 50 * 1024},
        ),
        (
            "vm",
            {"model": "AMD EPYC", "os": "Alpine Linux v3.20, Linux 6.6.30-0-virt", "libc": "musl", "cores": 1,
             "ram_bytes": 1000000 * 1024, "free_bytes": None},
        ),
    ],
)  # fmt: skip
def test_facts(told: Told, name: str, values: dict[str, Any]) -> None:
    facts = conditions.parse_facts(told(name, conditions.FACTS, FOLDERS[name]))
    assert {key: getattr(facts, key) for key in values} == values


def test_big_cores(told: Told) -> None:
    pixel = conditions.parse_facts(told("pixel", conditions.FACTS, FOLDERS["pixel"]))
    assert pixel.max_clocks_hz == {
        **dict.fromkeys(range(4), 1_704_000_000), **dict.fromkeys(range(4, 8), 2_367_000_000), 8: 2_914_000_000
    }  # fmt: skip
    assert conditions.big_cores(pixel, 1) == (8,)
    assert conditions.big_cores(pixel, 2) == (4, 8)
    assert conditions.big_cores(pixel, 7) == (1, 2, 4, 5, 6, 7, 8)
    assert conditions.big_cores(pixel, 9) == tuple(range(9))
    assert conditions.big_cores(pixel, 10) is None
    # the first cluster is the quick one: not core 0 while it has others
    turned = pixel.model_copy(update={"cores": 4, "max_clocks_hz": {0: 2, 1: 2, 2: 1, 3: 1}})
    assert conditions.big_cores(turned, 1) == (1,)
    assert conditions.big_cores(turned, 2) == (0, 1)
    alike = conditions.parse_facts(told("pi4", conditions.FACTS, FOLDERS["pi4"]))
    assert len(alike.max_clocks_hz) == 4
    assert conditions.big_cores(alike, 1) is None
    for name in ("vm", "jetson"):  # no clocks, and clocks of one core only
        facts = conditions.parse_facts(told(name, conditions.FACTS, FOLDERS[name]))
        assert conditions.big_cores(facts, 1) is None


@pytest.mark.parametrize(
    ("name", "values"),
    [
        (
            "pixel",  # sysfs counts before dumpsys, which a test may have overridden
            {"temperatures_c": {"BIG": 38.3, "VIRTUAL-SKIN": 31.234, "battery": 28.7}, "battery_percent": 81,
             "charging": False, "clocks_hz": {0: 610_000_000, 8: 1_164_000_000},
             "governors": {0: "sched_pixel", 8: "sched_pixel"}},
        ),
        (
            "galaxy",
            {"temperatures_c": {"CPU0": 36.4, "BAT": 30.1}, "battery_percent": 37, "charging": True, "governors": {}},
        ),
        (
            "pi4",
            {"temperatures_c": {"cpu-thermal": 54.043}, "battery_percent": None, "charging": None,
             "clocks_hz": {0: 600_000_000}, "governors": {0: "ondemand"}},
        ),
        ("jetson", {"temperatures_c": {"cpu-thermal": 47.218, "tj-thermal": 48.906}, "charging": None}),
        (
            "laptop",
            {"temperatures_c": {"acpitz": 41, "acpitz (thermal_zone1)": 20, "coretemp": 52}, "battery_percent": 79,
             "charging": True},
        ),
        (
            "vm",
            {"temperatures_c": {}, "clocks_hz": {}, "governors": {}, "battery_percent": None, "charging": None,
             "load": None},
        ),
    ],
)  # fmt: skip
def test_reading(told: Told, name: str, values: dict[str, Any]) -> None:
    reading = conditions.parse_reading(told(name, conditions.READ), 7.5)
    assert reading.at_s == 7.5
    assert {key: getattr(reading, key) for key in values} == values


def test_load_is_the_busy_share_between_two_looks() -> None:
    def load(*stats: str) -> float | None:
        return conditions.parse_reading("".join(f"stat cpu {stat}\n" for stat in stats), 0).load

    # 150 busy (user, system, steal) and 50 idle or waiting for a disk
    assert load(" 100 0 100 100 100 0 0 0 0 0", " 200 0 130 130 120 0 0 20 9 9") == 0.75
    assert load(" 1 2 3 4", " 1 2 3 14") == 0
    assert load(" 1 2 3 4 5 6 7 8", " 1 2 3 4 5 6 7 8") is None  # no time went by
    assert load(" 1 2 3 4") is None
    assert load(" 1 2 x 4", " 1 2 3 4") is None


@pytest.mark.parametrize(
    ("raw", "degrees"),
    [(45123, 45.123), (452, 45.2), (45, 45.0), (-5000, -5.0), (0, None), (-274000, None), (-40000, None),
     (255000, None), (2**40, None)],
)  # fmt: skip
def test_degrees(raw: int, degrees: float | None) -> None:
    text = f"zone thermal_zone0 enabled cpu\ntemp thermal_zone0 {raw}\n"
    assert conditions.parse_reading(text, 0).temperatures_c == ({} if degrees is None else {"cpu": degrees})


def test_zones_that_are_all_switched_off_count() -> None:
    """A program there manages them, as Documentation/driver-api/thermal/sysfs-api.rst says of `disabled`."""
    text = "zone thermal_zone0 disabled cpu\ntemp thermal_zone0 45000\n"
    assert conditions.parse_reading(text, 0).temperatures_c == {"cpu": 45}


def test_overridden_battery_service_says_nothing() -> None:
    text = (
        "\ndumpsys\n  (UPDATES STOPPED -- use 'reset' to restart)\n  USB powered: false\n  level: 100\n  scale: 100\n"
    )
    reading = conditions.parse_reading(text, 0)
    assert (reading.battery_percent, reading.charging) == (None, None)
    without = conditions.parse_reading(text.replace("UPDATES", ""), 0)
    assert (without.battery_percent, without.charging) == (100, False)


@pytest.mark.parametrize(
    "text",
    ["", "\0\n", "zone\ntemp\ntemp x\ntop\ntop 1\nclock\nclock a b\nclock 1 -5\ngovernor 1\nbattery\nonline\nstat",
     "zone a b\nzone a enabled \ntemp a 99999999999999999999999\ndf 1 2 3\nram x kB\nonline 9-1\nallowed 5-",
     "top ² 5\nclock ² 5\nreading\nup x\nreading\nreading\nup 5 5\n", "x" * 100_000],
    ids=range(6),
)  # fmt: skip
def test_any_text_is_read(text: str) -> None:
    facts, reading = conditions.parse_facts(text), conditions.parse_reading(text, 1)
    assert facts.cores == 1 and facts.model == "unknown" and facts.ram_bytes is None
    assert reading == Reading(at_s=1)
    assert all(isinstance(one, Reading) for one in conditions.parse_watched(text, 0, 5))


def test_a_hostile_name_is_made_plain() -> None:
    text = "zone thermal_zone0 enabled \x1b[31mcpu\x07" + "y" * 500 + "\ntemp thermal_zone0 50000\n"
    (name,) = conditions.parse_reading(text, 0).temperatures_c
    assert name.isprintable() and len(name) <= 60


def test_the_watch_in_every_shell(told: Told) -> None:
    """Three looks and then the end, as the leash makes it."""
    script = conditions.WATCH.replace('sleep "$2"', 'n=$((n + 1)); [ "$n" = 3 ] && exit; sleep "$2"')
    text = told("pixel", script, "0.05")
    readings = conditions.parse_watched(text, 10, 5)
    assert [reading.at_s for reading in readings] == [10, 10, 10]  # the recorded uptime stands still
    assert {reading.battery_percent for reading in readings} == {81}
    assert readings[2].temperatures_c == {"BIG": 38.3, "VIRTUAL-SKIN": 31.234, "battery": 28.7}
    # without an uptime the period tells
    text = "\n".join(line for line in text.splitlines() if not line.startswith("up "))
    assert [reading.at_s for reading in conditions.parse_watched(text, 10, 5)] == [10, 15, 20]


@pytest.mark.skipif(not shutil.which("strace"), reason="strace is not installed")
def test_the_watch_starts_no_program_but_sleep(tmp_path: Path) -> None:
    lay(tmp_path / "pixel", (GOLDEN / "pixel.txt").read_text(encoding="utf-8"))
    script = conditions.WATCH.replace('sleep "$2"', '[ "$n" ] && exit; n=1; sleep "$2"')
    argv = ["strace", "-f", "-e", "trace=execve", "-o", str(tmp_path / "trace"), "sh", "-c", script, "x"]
    subprocess.run([*argv, str(tmp_path / "pixel"), "0.01"], capture_output=True, timeout=20)
    started = [line for line in (tmp_path / "trace").read_text().splitlines() if line.endswith("= 0")]
    assert len(started) == 2, started  # sh and one sleep


def test_this_host(host: Transport, tmp_path: Path) -> None:
    facts = conditions.facts(host, str(tmp_path))
    assert facts.cores >= 1 and facts.abi and "Linux" in facts.os
    assert facts.ram_bytes and facts.ram_bytes > 10**8
    free = shutil.disk_usage(tmp_path).free
    assert facts.free_bytes == pytest.approx(free, rel=0.2, abs=2e9)
    began = time.monotonic()
    reading = conditions.read(host, began)
    assert 1 <= reading.at_s < 15
    assert reading.load is not None and 0 <= reading.load <= 1
    with conditions.watch(host, began, 0.3) as during:
        assert during == []
        time.sleep(1.5)
    assert 2 <= len(during) <= 6
    times = [one.at_s for one in during]
    assert times == sorted(times) and times[0] >= reading.at_s and times[-1] <= time.monotonic() - began


def test_a_watch_ends_with_its_block_also_when_that_fails(host: Transport) -> None:
    before = threading.active_count()
    with pytest.raises(KeyError), conditions.watch(host, time.monotonic(), 60):
        time.sleep(0.3)
        raise KeyError
    assert threading.active_count() == before
    assert not _watching()


def _watching() -> list[str]:
    lines: list[str] = []
    for folder in Path("/proc").iterdir():
        try:
            line = (folder / "cmdline").read_bytes().decode(errors="replace")
        except OSError:
            continue
        if "edgekit-watch\0\x0060\0" in line and "printf %b" not in line:
            lines.append(line)
    return lines


READY = Reading(
    at_s=0, temperatures_c={"cpu-thermal": 40, "VIRTUAL-SKIN": 90, "battery": 30}, battery_percent=50, charging=False,
    governors={0: "schedutil", 4: "performance"}, load=0.1,
)  # fmt: skip


@pytest.mark.parametrize(
    ("wanted", "cpus", "words"),
    [
        ({}, None, ""),
        ({"max_temperature_c": 40, "min_battery_percent": 50, "charging": False, "max_load": 0.1}, None, ""),
        ({"max_temperature_c": 39}, None, "cpu-thermal at 40.0 °C, this benchmark needs 39 °C or less; let it cool"),
        ({"min_battery_percent": 60}, None, "battery at 50 %, this benchmark needs 60 %; charge it or lower "),
        ({"charging": True}, None, "it is not on external power, this benchmark needs it otherwise; plug it in"),
        ({"max_load": 0.05}, None, "10% of its cores are busy, this benchmark needs 5% or less; end what runs there"),
        ({"governor": "performance"}, (4,), ""),
        ({"governor": "performance"}, None, "governor schedutil on core 0, this benchmark needs performance; set it"),
    ],
)
def test_preconditions(wanted: dict[str, Any], cpus: tuple[int, ...] | None, words: str) -> None:
    found = conditions.missed(Preconditions(**wanted), READY, cpus)
    assert [can_come for _, can_come in found] == [True] * bool(words)
    if words:
        assert found[0][0].startswith(words)
        assert found[0][0].endswith(f"preconditions.{next(iter(wanted))}")


@pytest.mark.parametrize("key", ["max_temperature_c", "min_battery_percent", "charging", "governor", "max_load"])
def test_what_a_device_does_not_say_is_not_met(key: str) -> None:
    wanted = Preconditions.model_validate({key: {"charging": False, "governor": "performance"}.get(key, 1)})
    ((reason, can_come),) = conditions.missed(wanted, Reading(at_s=0))
    assert not can_come
    assert f"preconditions.{key}" in reason and "does not say" in reason


def test_waiting(host: Transport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "devices").mkdir()

    def wait(preconditions: str) -> Reading:
        (tmp_path / "devices" / "mine.toml").write_text(f'base = "host"\n[preconditions]\n{preconditions}')
        return conditions.wait_until_ready(devices.find("mine"), host, time.monotonic())

    assert wait("max_load = 1").load is not None
    assert capsys.readouterr().err == ""
    with pytest.raises(DeviceError) as refused:
        wait("max_load = 1\ngovernor = 'warp'\nwait_s = 600")
    assert str(refused.value).startswith("devices/mine.toml: not ready to be measured: ")
    busy = subprocess.Popen(["sh", "-c", "while :; do :; done"])
    try:
        with pytest.raises(DeviceError, match=r"after 2 s: .* of its cores are busy.*preconditions.max_load"):
            wait("max_load = 0.0001\nwait_s = 2")
    finally:
        busy.kill()
        busy.wait()
    assert capsys.readouterr().err.count("mine: waiting up to 2 s: ") == 1
