"""Several processes: real ones that find each other over loopback, against one that works alone."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import families as tiny
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

ROOT = Path(__file__).parents[2]
LIMIT_S = 240
LABELS = ("bad", "good")
RECIPE = """
name = "x"
max_length = 32
[task]
name = "text_classification"
labels = ["bad", "good"]
[data]
name = "files"
train = "train.jsonl"
dev = "dev.jsonl"
[[step]]
stage = "teach"
model = "teacher"
[[step]]
stage = "distill"
layers = 2
method = { name = "kd", losses = LOSSES }
[step.training]
epochs = 5
batch_size = 6
learning_rate = 1e-3
precision = "float32"
evaluate = 30
callback = { name = "own.log" }
[[step]]
stage = "prune"
layers = 1
training = { epochs = 1, batch_size = 6, precision = "float32" }
"""
LOSSES = '[{ name = "kl" }, { name = "cross_entropy" }, { name = "hidden_mse" }]'
CALLBACK = """
from edgekit.records import Record
class Params(Record):
    pass
def at_checkpoint(params, model, curve):
    with open("steps", "a") as file:
        print(curve[-1].step, file=file)
"""
COMMAND = """
import os, signal
from edgekit import cli
from edgekit.pipeline import TaskData, processes, training
from edgekit.errors import InputError
training.CHECKPOINT_S = float(os.environ.get("CHECKPOINT_S", "30"))
if os.environ.get("RANK", "alone") == os.environ.get("BLIND"):
    def blind(*args, **kwargs):
        raise InputError("train.jsonl: there is no such file")
    TaskData.features = blind
cli.main()
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe, its data (61 rows: the last of the batches of 6 has one, fewer than there are processes), a teacher
    without dropout, and a pooler that some losses do not use."""
    folder = tmp_path_factory.mktemp("processes")
    off: dict[str, Any] = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    tiny.make(folder / "teacher", "bert", labels=LABELS, num_hidden_layers=4, **off)
    random = np.random.default_rng(0)
    words = [*" ".join(tiny.TEXTS).split(), *["bad"] * 6]
    texts = [" ".join(random.choice(words, size)) for size in random.integers(3, 14, 61)]
    rows = [{"text": text, "label": "bad" if "bad" in text else "good"} for text in texts]
    for name in ("train", "dev"):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "recipe.toml").write_text(RECIPE.replace("LOSSES", LOSSES))
    (folder / "wrong.toml").write_text(RECIPE.replace("LOSSES", '[{ name = "hidden_mse", layers = [[9, 9]] }]'))
    (folder / "command.py").write_text(COMMAND)
    (folder / "own").mkdir()
    (folder / "own" / "__init__.py").touch()
    (folder / "own" / "log.py").write_text(CALLBACK)
    return folder


@contextmanager
def started(
    folder: Path, store: str, launcher: Sequence[str] = (), recipe: str = "recipe", until: str = "distill",
    **env: str,
) -> Generator[subprocess.Popen[str]]:  # fmt: skip
    """`edgekit build` in a session of its own, all of which is gone after the block."""
    (folder / "tmp").mkdir(exist_ok=True)
    build = ["command.py", "build", f"{recipe}.toml", "--store", store, "--until", until, "--json"]
    own = {
        "PYTHONPATH": f"{ROOT}:{folder}", "TMPDIR": str(folder / "tmp"), "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "passive",
    }  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, *launcher, *build], cwd=folder, env={**os.environ, **own, **env}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        for pid in session(process.pid):
            os.kill(pid, signal.SIGKILL)
        process.communicate(timeout=30)


def session(leader: int) -> list[int]:
    """The processes of a session, by /proc."""
    found: list[int] = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            _, _, rest = stat.read_text().rpartition(")")
        except (FileNotFoundError, ProcessLookupError):
            continue
        state, _, _, its_session = rest.split()[:4]
        if int(its_session) == leader and state != "Z":
            found.append(int(stat.parent.name))
    return found


TORCHRUN = ("-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-addr", "127.0.0.1", "--master-port")


def torchrun() -> tuple[str, ...]:
    return (*TORCHRUN, str(free_port()))


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str


def done(process: subprocess.Popen[str]) -> Done:
    out, err = process.communicate(timeout=LIMIT_S)
    return Done(process.returncode, out, err)


def built(folder: Path, store: str, launcher: Sequence[str] = (), until: str = "distill") -> dict[str, Any]:
    with started(folder, store, launcher, until=until) as process:
        found = done(process)
    assert found.code == 0, found.err
    return json.loads(found.out)


def weights(folder: Path, store: str, stage: str = "distill") -> dict[str, torch.Tensor]:
    (student,) = (folder / store).glob(f"{stage}-*")
    return load_file(student / "model.safetensors")


def distance(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """The norm of the difference, as a share of the norm."""
    assert one.keys() == other.keys()
    away = sum(float((one[name] - other[name]).square().sum()) for name in one)
    return (away / sum(float(tensor.square().sum()) for tensor in other.values())) ** 0.5


@pytest.fixture(scope="module")
def alone(folder: Path) -> dict[str, Any]:
    return built(folder, "alone", until="prune")


def test_two_processes_give_what_one_gives(folder: Path, alone: dict[str, Any]) -> None:
    found = built(folder, "two", torchrun(), until="prune")
    teacher = load_file(folder / "teacher" / "model.safetensors")
    start = {n: teacher[n] for n in weights(folder, "alone")}
    assert distance(start, weights(folder, "alone")) > 0.02, "it learnt something"
    assert distance(weights(folder, "two"), weights(folder, "alone")) < 1e-3
    assert distance(weights(folder, "two", "prune"), weights(folder, "alone", "prune")) < 1e-3
    _, one, _ = alone["stages"]
    _, two, _ = found["stages"]
    assert two["score"] == pytest.approx(one["score"], abs=0.02)
    assert two["trained"]["examples"] == one["trained"]["examples"] == 305
    for here, there in zip(two["trained"]["curve"], one["trained"]["curve"], strict=True):
        assert here["step"] == there["step"] and here["score"] == pytest.approx(there["score"], abs=0.05)


def test_only_one_process_writes(folder: Path, alone: dict[str, Any]) -> None:
    """The stores of one and of two processes hold the same files, and nothing is left elsewhere."""
    if not (folder / "two").is_dir():
        built(folder, "two", torchrun(), until="prune")

    def names(store: str) -> set[str]:
        root = folder / store
        return {str(p.relative_to(root)) for p in root.rglob("*") if "signals" not in p.parts}

    assert names("two") == names("alone")
    assert [path.name for path in (folder / "tmp").iterdir() if path.name.startswith("edgekit")] == []


@pytest.mark.parametrize(("first", "then"), [(2, 1), pytest.param(1, 2, marks=pytest.mark.slow)])
def test_a_killed_run_goes_on_with_another_number_of_processes(
    first: int, then: int, folder: Path, alone: dict[str, Any]
) -> None:
    launchers = {1: (), 2: torchrun()}
    store, log = f"killed-{first}", folder / "steps"
    log.unlink(missing_ok=True)
    with started(folder, store, launchers[first], CHECKPOINT_S="0") as process:
        until = time.monotonic() + LIMIT_S
        while not (log.is_file() and len(log.read_text().split()) >= 8):
            assert process.poll() is None and time.monotonic() < until, process.communicate()[1]
            time.sleep(0.02)
        process.kill()  # torchrun itself, which has no time to stop its processes
        process.wait(timeout=30)
        until = time.monotonic() + 20
        while (left := session(process.pid)) and time.monotonic() < until:
            time.sleep(0.1)
        assert not left, "its processes end with it"
    assert not list(folder.glob(f"{store}/distill-*"))
    log.unlink()
    found = built(folder, store, launchers[then])
    assert int(log.read_text().split()[0]) > 8, "it went on, it did not begin anew"
    assert found["stages"][-1]["trained"]["curve"][0]["step"] < 4, "with what was known by then"
    assert distance(weights(folder, store), weights(folder, "alone")) < 1e-3


@contextmanager
def pair(folder: Path, store: str, recipe: str = "recipe", **env: str) -> Generator[list[subprocess.Popen[str]]]:
    """Two processes without a launcher, so that each one's exit code can be seen."""
    line = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), **env}
    with (
        started(folder, store, (), recipe, RANK="0", LOCAL_RANK="0", **line) as one,
        started(folder, store, (), recipe, RANK="1", LOCAL_RANK="1", **line) as other,
    ):
        yield [one, other]


def said(found: Sequence[Done]) -> list[str]:
    """Every line but those of progress."""
    lines = [line for each in found for line in each.err.splitlines()]
    return [line for line in lines if line.startswith("edgekit: ") or "Traceback" in line]


def test_an_error_of_all_is_said_once(folder: Path) -> None:
    with pair(folder, "wrong", "wrong") as both:
        found = [done(process) for process in both]
    (line,) = said(found)
    assert "layers: [9, 9] matches nothing" in line and "process 1" not in line
    assert [each.code for each in found] == [2, 2]


@pytest.mark.slow
def test_an_error_of_one_process_ends_all(folder: Path) -> None:
    with pair(folder, "blind", BLIND="1") as both:
        found = [done(process) for process in both]
    (line,) = said(found)
    assert line.startswith("edgekit: process 1 on ") and line.endswith("train.jsonl: there is no such file")
    assert [each.code for each in found] == [2, 2]


@pytest.mark.slow
def test_a_stopped_launcher_leaves_nothing(folder: Path) -> None:
    (folder / "steps").unlink(missing_ok=True)
    with started(folder, "stopped", torchrun(), CHECKPOINT_S="0") as process:
        until = time.monotonic() + LIMIT_S
        while not (folder / "steps").is_file():
            assert process.poll() is None and time.monotonic() < until, process.communicate()[1]
            time.sleep(0.02)
        assert list((folder / "tmp").glob("edgekit-*"))
        process.terminate()
        done(process)
        while len(session(process.pid)) and time.monotonic() < until:
            time.sleep(0.05)
    assert not list((folder / "tmp").glob("edgekit-*"))


@pytest.mark.slow
def test_a_process_that_is_lost(folder: Path) -> None:
    (folder / "steps").unlink(missing_ok=True)
    with pair(folder, "lost", CHECKPOINT_S="0") as both:
        until = time.monotonic() + LIMIT_S
        while not (folder / "steps").is_file():
            assert both[0].poll() is None and time.monotonic() < until, both[0].communicate()[1]
            time.sleep(0.02)
        both[1].kill()
        found = done(both[0])
    (line,) = said([found])
    assert "another process was lost in the middle of a training; run the same command again" in line
    assert found.code == 4
    assert list(folder.glob("lost/work/distill-*/scratch/checkpoint-*")), "it can go on"
