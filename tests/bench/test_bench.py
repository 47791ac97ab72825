"""`edgekit bench` as a user meets it: a tiny bundle, the native runner, real targets."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import bundles
import lab
import pytest

from edgekit import devices
from edgekit.bench import bench as benches
from edgekit.bench import measure
from edgekit.bench.measure import Wanted
from edgekit.errors import InputError
from edgekit.records import Budget, Device, Preconditions, Use
from edgekit.results import Benched, RunResult

pytestmark = [pytest.mark.target, pytest.mark.usefixtures("kits")]
BRIEF = Wanted(seconds=0.05)
RUNNERS = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgekit" / "runners"


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of both formats; its data stands in `data/` two folders up."""
    return bundles.make(tmp_path_factory.mktemp("tiny") / "b")[0]


def host(tmp_path: Path, **values: Any) -> Device:
    return devices.find("host").model_copy(update={"workdir": str(tmp_path / "work"), **values})


def bench(tiny: Path, device: Device, tmp_path: Path, wanted: Wanted = BRIEF) -> RunResult:
    found = benches.bench(tiny, [device], wanted, tmp_path / "results")
    assert not found.failures, found.failures
    (result,) = found.results
    path = tmp_path / "results" / benches.file_name(result)
    assert RunResult.model_validate_json(path.read_bytes()) == result
    return result


@pytest.mark.parametrize("format", ["tflite", "onnx"])
@pytest.mark.parametrize("runner", ["native", "python"])
def test_this_host(tiny: Path, tmp_path: Path, format: Any, runner: Any) -> None:
    wanted = Wanted(format=format, seconds=0.05, runner=runner)
    result = bench(tiny, host(tmp_path), tmp_path, wanted)
    assert [row.length for row in result.latency] == [16, 32]
    for row in result.latency:
        assert len(row.samples_s) >= 20
        assert sum(row.samples_s) >= 0.03  # of 0.05 s, less what lies between calls of 20 us on a busy machine
        assert (
            min(row.samples_s) <= row.p50_interval.low <= row.p50_s <= row.p50_interval.high <= row.p90_s <= row.p99_s
        )
    assert [check.output for check in result.checks] == ["logits"]
    assert all(check.passed and check.examples == 4 and check.cosine_min > 0.999999 for check in result.checks)
    memory = result.memory
    assert memory and memory.floor_bytes and memory.model_bytes
    assert memory.peak_rss_bytes == memory.floor_bytes + memory.model_bytes == memory.phases[-1].hwm_bytes
    assert [phase.name for phase in memory.phases] == ["start", "library", "loaded", "first_run", "warm", "end"]
    if runner == "native":
        assert memory.python_peak_rss_bytes and memory.python_peak_rss_bytes > memory.peak_rss_bytes + 5_000_000
    assert (result.runner, result.workload.format) == (runner, format)
    assert result.model_sha256 and result.runtime.split()[0] in ("litert", "onnxruntime")
    assert not (tmp_path / "work" / "run").exists()


@pytest.mark.parametrize("a_process", [1, 1000])
def test_the_score_is_the_hosts(
    tiny: Path, tmp_path: Path, recwarn: pytest.WarningsRecorder, monkeypatch: pytest.MonkeyPatch, a_process: int
) -> None:
    """Two examples, scored here and there, in a process each and in one."""
    monkeypatch.setattr(measure, "_MOST_EXAMPLES", a_process)
    result = bench(tiny, host(tmp_path), tmp_path, Wanted(seconds=0.05, score=True, base=tiny.parents[1]))
    (model,) = [m for m in benches.bundle.verify(tiny).models if m.path == result.model]
    assert result.score and result.score_interval and model.score
    assert result.score.value == model.score.value
    assert 0 <= result.score_interval.low <= result.score.value <= result.score_interval.high <= 1
    assert not [warning for warning in recwarn if "single label" in str(warning.message)]


def test_a_real_memory_limit(tiny: Path, tmp_path: Path) -> None:
    wide = bench(tiny, host(tmp_path), tmp_path, Wanted(seconds=0.05, memory_limit=400_000_000))
    assert wide.memory and wide.memory.limit and wide.memory.limit.survived
    narrow = benches.bench(tiny, [host(tmp_path)], Wanted(seconds=0.05, memory_limit=2_000_000), tmp_path / "results")
    (result,) = narrow.results
    assert result.memory and result.memory.limit
    assert not result.memory.limit.survived
    assert result.memory.limit.said
    assert benches.exit_code(narrow) == 3


@pytest.mark.parametrize(("limit", "required", "code"), [(1e9, True, 0), (1000, True, 3), (1000, False, 0)])
def test_budgets(tiny: Path, tmp_path: Path, limit: float, required: bool, code: int) -> None:
    budgets = (
        Budget(metric="peak_rss_bytes", limit=limit, required=required),
        Budget(metric="score", limit=0.5, required=required),
    )
    found = benches.bench(tiny, [host(tmp_path, budgets=budgets)], BRIEF, tmp_path / "results")
    peak, score = found.results[0].budgets
    assert (peak.kept, score.kept, score.observed) == (limit == 1e9, None, None)
    assert peak.headroom == pytest.approx(limit - found.results[0].memory.peak_rss_bytes)  # type: ignore[union-attr]
    assert benches.exit_code(found) == code


def test_one_that_fails_does_not_spoil_the_others(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "ssh_config").write_text("Host gone\n HostName 127.0.0.1\n")
    link = Use.model_validate(
        {"name": "ssh", "host": "gone", "port": lab.free_port(), "config": str(tmp_path / "ssh_config")}
    )
    others = [
        devices.find("host").model_copy(update={"name": "a-gone", "link": link}),
        host(tmp_path, name="b-host"),
        host(
            tmp_path,
            name="c-hot",
            workdir=str(tmp_path / "c"),
            preconditions=Preconditions(min_battery_percent=100, wait_s=0),
        ),
    ]
    found = benches.bench(tiny, others[::-1], BRIEF, tmp_path / "results")
    assert [result.device for result in found.results] == ["b-host"]
    assert [(failure.device, failure.exit_code) for failure in found.failures] == [("a-gone", 4), ("c-hot", 4)]
    assert "refused" in found.failures[0].message
    assert "battery" in found.failures[1].message
    assert benches.exit_code(found) == 4


def test_what_is_refused_before_any_device_is_touched(tiny: Path, tmp_path: Path) -> None:
    for wanted, words in (
        (Wanted(lengths=(33,)), "--length 33"),
        (Wanted(format="tflite", lengths=(17,)), "one TFLite"),
        (Wanted(score=True), "scoring: .* does not exist.*--base"),
    ):
        with pytest.raises(InputError, match=words):
            benches.bench(tiny, [host(tmp_path)], wanted, tmp_path / "results")
    with pytest.raises(InputError, match="given twice"):
        benches.bench(tiny, [host(tmp_path)] * 2, BRIEF, tmp_path / "results")
    with pytest.raises(InputError, match="a b and a:b: their results would be one file"):
        benches.bench(tiny, [host(tmp_path, name=name) for name in ("a b", "a:b")], BRIEF, tmp_path / "results")
    with pytest.raises(InputError, match="--sustained: 12h at most"):
        benches.bench(tiny, [host(tmp_path)], Wanted(sustained_s=50_000), tmp_path / "results")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="--out"):
        benches.bench(tiny, [host(tmp_path)], BRIEF, tmp_path / "file" / "results")
    assert not (tmp_path / "work").exists()


def test_a_meter_is_looked_up_before_minutes_are_spent(tiny: Path, tmp_path: Path) -> None:
    found = benches.bench(tiny, [host(tmp_path, meter=Use(name="rapll"))], BRIEF, tmp_path / "results")
    (failure,) = found.failures
    assert failure.exit_code == 2
    assert 'did you mean "rapl"' in failure.message
    assert not (tmp_path / "work").exists()


def test_a_python_that_is_not_there(tiny: Path, tmp_path: Path) -> None:
    device = host(tmp_path, runner="python", python="/no/python3")
    (failure,) = benches.bench(tiny, [device], BRIEF, tmp_path / "results").failures
    assert "name it in the device's record: python" in failure.message
    assert "/no/python3" in failure.message


def test_what_was_measured_is_shown_even_where_it_cannot_be_written(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "results"
    (out / f"{benches.bundle.verify(tiny).name}-host-tflite.json").mkdir(parents=True)
    found = benches.bench(tiny, [host(tmp_path)], Wanted(format="tflite", seconds=0.05), out)
    assert [result.device for result in found.results] == ["host"]
    assert [(failure.device, failure.exit_code) for failure in found.failures] == [("host", 2)]
    assert "cannot be written" in found.failures[0].message
    assert not list(out.glob("*.part"))
    assert benches.exit_code(found) == 2


def cli(*argv: object, cwd: Path, **options: Any) -> "subprocess.CompletedProcess[str]":
    words = [sys.executable, "-m", "edgekit", *map(str, argv)]
    return subprocess.run(words, cwd=cwd, capture_output=True, text=True, timeout=300, **options)


def test_the_command(tiny: Path, tmp_path: Path) -> None:
    """Table and JSON, without a bundle or device named."""
    (tmp_path / "bundles").mkdir()
    (tmp_path / "bundles" / "tiny").symlink_to(tiny)
    done = cli("bench", "--seconds", "0.05", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = Benched.model_validate(json.loads(done.stdout))
    assert [result.device for result in found.results] == ["host"]
    done = cli("bench", "--seconds", "0.05", "--length", "16", "--memory-limit", "1MB", cwd=tmp_path)
    assert done.returncode == 3
    assert max(map(len, done.stdout.splitlines())) <= 80
    for words in ("p50 ms", "cosine 1.0", "runtime floor", "Python process", "DID NOT SURVIVE", "results"):
        assert words in done.stdout
    assert cli("bench", "--device", "hots", cwd=tmp_path).returncode == 2
    assert 'did you mean "host"' in cli("bench", "--device", "hots", cwd=tmp_path).stderr
    assert cli("bench", "--memory-limit", "30XB", cwd=tmp_path).returncode == 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_leaves_nothing(tiny: Path, tmp_path: Path, number: signal.Signals) -> None:
    (tmp_path / "d.toml").write_text(f'base = "host"\nworkdir = "{tmp_path}/work"\n')
    packed = shutil.make_archive(str(tmp_path / "tiny"), "zip", tiny)
    (tmp_path / "temporary").mkdir()
    argv = [sys.executable, "-m", "edgekit", "bench", packed, "--device", "d.toml", "--seconds", "60"]
    env = {**os.environ, "TMPDIR": str(tmp_path / "temporary")}
    with subprocess.Popen(argv, cwd=tmp_path, env=env, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        for line in process.stderr:
            if "timing" in line:
                break
        time.sleep(0.5)
        running = [pid for pid in _runners() if str(tmp_path) in _line(pid)]
        assert len(running) == 1
        process.send_signal(number)
        assert process.wait(timeout=15) == 130
        assert "stopped" in process.stderr.read()
    assert not [pid for pid in running if Path(f"/proc/{pid}").exists() and "edgekit" in _line(pid)]
    assert not (tmp_path / "work" / "run").exists()
    assert not list((tmp_path / "temporary").glob("edgekit-*"))


def _runners() -> list[int]:
    return [int(p.name) for p in Path("/proc").iterdir() if p.name.isdigit() and "edgekit-runner" in _line(int(p.name))]


def _line(pid: int) -> str:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return ""
    return " ".join(word.decode(errors="replace") for word in words) if words[0].endswith(b"edgekit-runner") else ""
