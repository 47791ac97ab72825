"""Real targets: an ARM64 board in qemu by SSH and by ADB, a phone-like adbd with both clients, a server
behind a gate."""

import gzip
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bundles
import lab
import mutants
import pytest
import stub

from edgekit import bundle, devices, gating
from edgekit.bench import bench as benches
from edgekit.bench import check, sidebyside
from edgekit.bench.measure import Wanted
from edgekit.bench.runner import build as runner_build
from edgekit.records import Device, Use
from edgekit.results import Benched, RunResult

pytestmark = [pytest.mark.target, pytest.mark.usefixtures("kits")]
Phones = Callable[..., lab.Adbd]
BRIEF = Wanted(seconds=0.05)
EITHER = pytest.mark.parametrize("format", ["tflite", "onnx"])


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An int8 bundle of both formats."""
    return bundles.make_int8(tmp_path_factory.mktemp("tiny") / "b")


def only(found: Benched) -> RunResult:
    assert not found.failures, found.failures
    return found.results[0]


def phone(serial: str, **values: object) -> Device:
    """The lab's phone runs programs of this machine."""
    found = devices.find(f"adb:{serial}")
    return found.model_copy(update={"os": "linux", "abi": "host", "name": "phone", "budgets": (), **values})


def same_as_here(tiny: Path, tmp_path: Path, format: Any, **values: object) -> None:
    device = devices.find("linux-arm64").model_copy(update={"name": "board", **values})
    result = only(benches.bench(tiny, [device], Wanted(format=format, seconds=0.05), tmp_path))
    assert (result.facts.abi, result.facts.cores, result.runner) == ("aarch64", 2, "native")
    assert all(one.passed and one.cosine_min > 0.99 for one in result.checks)
    assert result.memory and result.memory.floor_bytes
    assert 3_000_000 < result.memory.floor_bytes <= result.memory.peak_rss_bytes < 80_000_000


@EITHER
def test_the_board_by_ssh_computes_what_this_host_does(
    board: lab.Board, tiny: Path, tmp_path: Path, format: Any
) -> None:
    link = Use.model_validate({"name": "ssh", "host": board.host, "config": str(board.config)})
    same_as_here(tiny, tmp_path, format, link=link)


@EITHER
def test_the_board_by_adb_computes_what_this_host_does(
    board: lab.Board, adb: lab.AdbServer, tiny: Path, tmp_path: Path, format: Any
) -> None:
    link = Use.model_validate({"name": "adb", "serial": adb.connect(board)})
    same_as_here(tiny, tmp_path, format, link=link, workdir="/data/local/tmp/edgekit")


def test_android_without_an_ndk_starts_through_its_own_loader(
    board: lab.Board, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The board stands in for a phone: it gets the runner with a glibc of its own, here out of its image."""
    image = lab.made("board", "make") / "initramfs"
    with gzip.open(image) as packed:
        argv = [lab.program("cpio", "cpio"), "-id", "--quiet", "--no-absolute-filenames", "lib/*", "lib/*/*"]
        subprocess.run(argv, input=packed.read(), cwd=tmp_path, check=True, timeout=60)
    runner_build.build("android", sysroot=tmp_path / "lib")
    with lab.adb_server(tmp_path, lab.adb_client(36)) as server:
        for name, value in server.env.items():
            monkeypatch.setenv(name, value)
        device = devices.find(f"adb:{server.connect(board)}")
        result = only(benches.bench(tiny, [device], Wanted(format="tflite", seconds=0.05), tmp_path))
    assert (result.runner, result.facts.abi) == ("native", "aarch64")
    assert "not been tried on a phone" in str(result.unverified)


@EITHER
def test_a_phone_by_both_adb_clients(adb: lab.AdbServer, adbd: Phones, tiny: Path, tmp_path: Path, format: Any) -> None:
    there = adbd()
    device = phone(adb.connect(there))
    result = only(benches.bench(tiny, [device], Wanted(format=format, seconds=0.05), tmp_path))
    assert result.facts.model.endswith("Lab Phone")
    assert all(one.passed for one in result.checks)
    assert result.cpus == ((os.cpu_count() or 1) - 1,)  # the big core, by its top frequency
    assert result.readings[0].battery_percent == 83
    assert there.processes() == []
    left = {path.name for path in there.path("/data/local/tmp/edgekit").iterdir()}
    assert left == {".edgekit", "cache"}


def test_a_server_behind_a_gate(jumped_sshd: tuple[lab.Sshd, lab.Sshd], tiny: Path, tmp_path: Path) -> None:
    box = jumped_sshd[0]
    link = Use.model_validate({"name": "ssh", "host": box.host, "config": str(box.config)})
    device = devices.find("host").model_copy(update={"name": "box", "link": link})
    result = only(benches.bench(tiny, [device], BRIEF, tmp_path))
    assert all(one.passed and one.max_abs_diff < 1e-4 for one in result.checks)
    assert box.processes() == []


def test_twenty_devices_come_in_order_and_one_lost_spoils_none(
    adbd: Phones, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the measuring stubbed out; how long it takes beside one is benchmarks/fleet.py's question."""
    subject = check.subject(tiny, tiny, bundle.verify(tiny), "tflite")
    with lab.adb_server(tmp_path, lab.adb_client(36)) as server:
        for name, value in server.env.items():
            monkeypatch.setenv(name, value)
        phones = [adbd(f"phone-{i:02}") for i in range(20)]
        for there in phones:
            stub.install(there.root, subject)
        fleet = [phone(server.connect(there), name=there.root.name, runner="python") for there in phones]
        phones[7].kill()
        found = benches.bench(tiny, fleet[::-1], Wanted(format="tflite", seconds=0.01), tmp_path / "results")
    names = [f"phone-{i:02}" for i in range(20)]
    assert [result.device for result in found.results] == [name for name in names if name != "phone-07"]
    assert [failure.device for failure in found.failures] == ["phone-07"]
    assert found.failures[0].exit_code == 4
    assert len(list((tmp_path / "results").iterdir())) == 19


def test_a_gate_on_a_phone_and_a_server_at_once(
    adbd: Phones, sshd: lab.Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each measures both bundles in pairs and finds the bigger one; nothing is left running."""
    for name, value in (("TURNS", 2), ("TIMED_S", 0.02), ("WARMUP_S", 0.01)):
        monkeypatch.setattr(sidebyside, name, value)
    good = bundles.make(tmp_path / "made", formats=("onnx",))[0]
    bigger = mutants.bigger(good, tmp_path / "bigger", 20_000)
    with lab.adb_server(tmp_path, lab.adb_client(36)) as server:
        for name, value in server.env.items():
            monkeypatch.setenv(name, value)
        there = adbd()
        link = Use.model_validate({"name": "ssh", "host": sshd.host, "config": str(sshd.config)})
        box = devices.find("host").model_copy(update={"name": "box", "link": link})
        found = gating.gate(bigger, good, [phone(server.connect(there)), box], Wanted(lengths=(32,)))
        assert found.failures == ()
        assert found.answer == "REGRESSION"
        sizes = {check.device: check.answer for check in found.checks if check.metric == "size_bytes"}
        assert sizes == {"box": "REGRESSION", "phone": "REGRESSION"}
        pairs = {check.device: check.pairs for check in found.checks if check.metric == "latency_s"}
        assert set(pairs) == set(sizes) and all(count in range(7, 16) for count in pairs.values())
        assert there.processes() == [] and sshd.processes() == []
