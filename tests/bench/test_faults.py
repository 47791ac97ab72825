"""What goes wrong on a device while it measures, for real: one clear message, the right code, nothing left there.

What goes wrong with the link is in transports/test_faults.py.
"""

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bundles
import lab
import pytest
import stub

from edgekit import bundle, devices
from edgekit.bench import bench as benches
from edgekit.bench import check
from edgekit.bench.measure import Wanted
from edgekit.records import Device
from edgekit.results import Failure

pytestmark = [pytest.mark.target, pytest.mark.usefixtures("kits")]
Phones = Callable[..., lab.Adbd]
BRIEF = Wanted(seconds=0.05)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A float TFLite bundle."""
    return bundles.make(tmp_path_factory.mktemp("tiny") / "b", formats=("tflite",))[0]


@pytest.fixture
def subject(tiny: Path) -> check.Subject:
    """Its model."""
    return check.subject(tiny, tiny, bundle.verify(tiny))


@pytest.fixture
def phone(adbd: Phones, tmp_path: Path) -> Any:
    """A phone by adb 36, with an adb server of its own, and the record that reaches it."""
    there = adbd()
    with lab.adb_server(tmp_path, lab.adb_client(36)) as server:
        old = {name: os.environ.get(name) for name in server.env}
        os.environ.update(server.env)
        device = devices.find(f"adb:{server.connect(there)}")
        # it runs programs of this machine, in a root that has no Python but the stub
        yield there, device.model_copy(update={"os": "linux", "abi": "host", "name": "phone", "budgets": ()})
        for name, value in old.items():
            os.environ.pop(name, None) if value is None else os.environ.__setitem__(name, value)


def failure(tiny: Path, device: Device, tmp_path: Path, wanted: Wanted = BRIEF) -> Failure:
    found = benches.bench(tiny, [device], wanted, tmp_path / "results")
    assert not found.results
    assert not list((tmp_path / "results").iterdir())
    return found.failures[0]


def clean(there: lab.Adbd) -> bool:
    """Nothing runs and nothing lies there but the uploads."""
    lab.wait_for("the device to be clean", lambda: there.processes() == [])
    return not there.path("/data/local/tmp/edgekit/run").exists()


def stubbed(device: Device) -> Device:
    return device.model_copy(update={"runner": "python"})


def test_the_stub_is_believed(phone: Any, tiny: Path, subject: check.Subject, tmp_path: Path) -> None:
    """What the tests below change is all that is wrong there."""
    there, device = phone
    stub.install(there.root, subject)
    found = benches.bench(tiny, [stubbed(device)], BRIEF, tmp_path / "results")
    assert [result.latency[0].p50_s for result in found.results] == [0.002], found.failures
    assert clean(there)


def test_wrong_outputs_are_never_a_fast_row(phone: Any, tiny: Path, subject: check.Subject, tmp_path: Path) -> None:
    there, device = phone
    stub.install(there.root, subject, {"times": -1.0})
    found = failure(tiny, stubbed(device), tmp_path)
    assert found.exit_code == 3
    for words in ("logits", "cosine -1.0000", "decisions flipped", "nothing was timed"):
        assert words in found.message
    assert clean(there)


@pytest.mark.parametrize(
    ("say", "words"),
    [
        ("head -c 300 {folder}/document", "one JSON document"),
        ("cat {folder}/document {folder}/document", "one JSON document"),
        ("echo garbage; cat {folder}/document", "one JSON document"),
        ("head -c 100000 /dev/urandom", "one JSON document"),
        ("sed s/2000000/NaN/ {folder}/document", "NaN"),
        ("sed s/2000000/-5/ {folder}/document", "-5"),
        ("echo '{{}}'", "build the runner again"),
        ("echo oops >&2; exit 9", "oops"),
        ("true", "said nothing"),
    ],
    ids=["truncated", "two", "garbage first", "binary", "NaN", "negative", "empty", "error", "silent"],
)
def test_what_no_runner_says(
    phone: Any, tiny: Path, subject: check.Subject, tmp_path: Path, say: str, words: str
) -> None:
    there, device = phone
    stub.install(there.root, subject, say=say)
    found = failure(tiny, stubbed(device), tmp_path)
    assert (found.exit_code, words in found.message) == (4, True), found.message
    assert clean(there)


@pytest.mark.parametrize(
    "before",
    [
        'echo x >"$outputs"; cat {folder}/document; exit 0',
        'head -c 40 {folder}/outputs-$signature >"$outputs"; cat {folder}/document; exit 0',
        "cat {folder}/document; exit 0",
    ],
    ids=["garbage", "truncated", "missing"],
)
def test_outputs_that_are_none(phone: Any, tiny: Path, subject: check.Subject, tmp_path: Path, before: str) -> None:
    there, device = phone
    stub.install(there.root, subject, before=before)
    found = failure(tiny, stubbed(device), tmp_path)
    assert found.exit_code == 4, found.message
    assert clean(there)


def test_no_python_there(phone: Any, tiny: Path, tmp_path: Path) -> None:
    there, device = phone
    found = failure(tiny, stubbed(device), tmp_path)
    assert found.exit_code == 4
    assert "could not be started" in found.message
    assert clean(there)


def test_a_device_of_another_abi(phone: Any, tiny: Path, tmp_path: Path) -> None:
    there, device = phone
    other = "arm64-v8a" if os.uname().machine == "x86_64" else "x86_64"
    found = failure(tiny, device.model_copy(update={"abi": other}), tmp_path)
    assert found.exit_code == 4
    assert other in found.message
    assert os.uname().machine in found.message
    assert clean(there)


def test_a_runner_that_is_killed(phone: Any, tiny: Path, tmp_path: Path) -> None:
    """As the kernel does when memory is short."""
    there, device = phone

    def timing() -> list[int]:
        return [
            pid
            for pid in there.processes()
            if line(pid).split(" ")[0].endswith("edgekit-runner") and "--repeat-s 30" in line(pid)
        ]

    def kill() -> None:
        lab.wait_for("the runner to time", lambda: bool(timing()), 60)
        for pid in timing():
            os.kill(pid, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    started = time.monotonic()
    found = failure(tiny, device, tmp_path, Wanted(seconds=30))
    killer.join()
    assert time.monotonic() - started < 29
    assert found.exit_code == 4
    assert "was killed" in found.message
    assert clean(there)


def test_a_runner_that_hangs_is_ended(phone: Any, tiny: Path, subject: check.Subject, tmp_path: Path) -> None:
    """It outlives neither its deadline nor the bench; here the link is let go of first, as by Ctrl-C."""
    from edgekit.bench import transports

    there, device = phone
    stub.install(there.root, subject, before='echo >"$outputs.begun"; while :; do sleep 1; done')
    timer = threading.Thread(
        target=lambda: (
            lab.wait_for("the stub", lambda: any("runner.py" in line(pid) for pid in there.processes()), 60),
            transports.stop_all(),
        )
    )
    timer.start()
    found = failure(tiny, stubbed(device), tmp_path)
    timer.join()
    assert found.exit_code == 4
    assert "interrupted" in found.message
    assert clean(there)


def line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(errors="replace").replace("\0", " ")
    except OSError:
        return ""
