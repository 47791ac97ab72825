"""The build as a whole, on a tiny model: its document, what is made anew after a change, kills, limits."""

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import families as tiny
import pytest

from edgekit import recipe as recipes
from edgekit import store
from edgekit.errors import NotGoodEnough
from edgekit.pipeline import build
from edgekit.store import Store

RECIPE = """
name = "tiny"
max_length = 32
[task]
name = "text_classification"
[data]
name = "files"
train = "train.jsonl"
dev = "dev.jsonl"
[[step]]
stage = "teach"
model = "teacher"
training = { epochs = 3, learning_rate = 1e-3, batch_size = 8 }
[[step]]
stage = "distill"
layers = 2
training = { epochs = 2, batch_size = 8 }
[step.method]
name = "kd"
losses = [{ name = "kl" }, { name = "my_losses.states" }]
[[step]]
stage = "prune"
heads = 2
neurons = 24
vocabulary = {}
training = { epochs = 1 }
[[step]]
stage = "export"
[[step]]
stage = "quantize"
must_be_faster = false
"""
TARGET = 'description = "a test"\nabi = "host"\nformats = ["onnx"]\nlengths = [16, 32]\n'
LOSS = "from edgekit.pipeline.losses.hidden_mse import Params, loss, reads\n"
WORDS = sorted({word for text in tiny.TEXTS for word in text.split()})


def project(folder: Path) -> Path:
    """A user's folder with a recipe, data, a teacher, a target and a loss of the user's own."""
    tiny.make(folder / "teacher", "bert", labels=["bad", "good"], num_hidden_layers=4)
    (folder / "recipe.toml").write_text(RECIPE)
    (folder / "target.toml").write_text(TARGET)
    (folder / "my_losses").mkdir()
    (folder / "my_losses" / "states.py").write_text(LOSS)
    rng = random.Random(0)
    for name, count in (("train", 200), ("dev", 60)):
        texts = [" ".join(rng.choices(WORDS, k=rng.randint(3, 12))) for _ in range(count)]
        rows = [{"text": text, "label": "good" if "good" in text or "the" in text else "bad"} for text in texts]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(project(tmp_path))
    monkeypatch.delitem(sys.modules, "my_losses", raising=False)  # another test's, of another folder
    store._source.cache_clear()
    return tmp_path


def edgekit(folder: Path, *args: str, start: str = "pass") -> subprocess.Popen[str]:
    """`edgekit ARGS...` in a process of its own, after the Python statements in `start`."""
    code = f"import sys; {start}; from edgekit.cli import main; main()"
    path = os.pathsep.join([str(folder), *sys.path])
    return subprocess.Popen(
        [sys.executable, "-c", code, *args], cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": path, "EDGEKIT_STORE": str(folder / "store")},
    )  # fmt: skip


BUILD = ("build", "recipe.toml", "--target", "target.toml", "--out", "out", "--json")


def finish(process: subprocess.Popen[str]) -> dict[str, object]:
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return json.loads(out)


def weights(folder: Path) -> dict[str, str]:
    """The sha256 of every model file in the store and the bundle, by what made it."""
    paths = [
        p for p in folder.rglob("*") if p.suffix in (".safetensors", ".onnx", ".tflite") and p.parent.name != "teacher"
    ]
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in paths if "work" not in p.parts
    }


def test_build_then_nothing_to_do(tmp_path: Path) -> None:
    folder = project(tmp_path)
    built = finish(edgekit(folder, *BUILD))
    names = ["teach", "distill", "prune", "teacher-onnx", "export-onnx", "quantize-onnx", "bundle"]
    stages = built["stages"]
    assert isinstance(stages, list)
    assert [stage["name"] for stage in stages] == names
    for stage in stages:
        assert {"name", "artifact", "parameters", "bytes", "score", "seconds", "cached"} <= stage.keys()
        assert not stage["cached"]
        assert 0 <= stage["score"] <= 1
    sizes = {stage["name"]: stage["bytes"] for stage in stages}
    assert sizes["prune"] < sizes["distill"] < sizes["teach"]
    assert sizes["quantize-onnx"] < sizes["export-onnx"]
    assert (folder / "out" / "manifest.json").is_file()
    assert (folder / "out.zip").is_file()
    before = weights(folder)
    again = finish(edgekit(folder, *BUILD))
    assert again["unchanged"] is True
    assert again["stages"] == [{**stage, "cached": True} for stage in stages]
    assert weights(folder) == before


def test_ten_kills_end_as_an_unbroken_build(tmp_path: Path) -> None:
    whole, killed = project(tmp_path / "whole"), tmp_path / "killed"
    shutil.copytree(whole, killed)  # making it twice would train two tokenizers, which differ
    often = "from edgekit.pipeline import training; training.CHECKPOINT_S = 0.1"
    start = time.monotonic()
    finish(edgekit(whole, *BUILD, start=often))
    lasts = time.monotonic() - start
    rng = random.Random(1)
    kills = 0
    while kills < 10:
        build_ = edgekit(killed, *BUILD, start=often)
        try:
            build_.wait(timeout=lasts * rng.uniform(0.3, 0.9))
        except subprocess.TimeoutExpired:
            build_.send_signal(signal.SIGKILL)
            kills += 1
            build_.communicate()
            continue
        break  # it got through between kills
    assert kills >= 1
    finish(edgekit(killed, *BUILD, start=often))
    assert weights(killed) == weights(whole)
    assert not list((killed / "store" / "work").iterdir())


def keys(folder: Path) -> dict[str, str]:
    recipe, base = recipes.find(folder / "recipe.toml")
    target = recipes.target(str(folder / "target.toml"))
    build._code.cache_clear()  # a user's next build is a new process
    return build.keys(recipe, target, base, build.plan(recipe, target))[0]


def changed(folder: Path, name: str, old: str, new: str) -> list[str]:
    """The artifacts that are made anew when `old` becomes `new` in a file."""
    before = keys(folder)
    path = folder / name
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))
    after = keys(folder)
    return [step for step in before if before[step] != after[step]]


AFTER_PRUNE = ["prune", "export-onnx", "quantize-onnx", "bundle"]
AFTER_DISTILL = ["distill", *AFTER_PRUNE]
ALL = ["teach", "distill", "prune", "teacher-onnx", "export-onnx", "quantize-onnx", "bundle"]


@pytest.mark.parametrize(
    ("name", "old", "new", "anew"),
    [
        ("recipe.toml", "neurons = 24", "neurons = 25", AFTER_PRUNE),
        ("recipe.toml", "epochs = 2", "epochs = 3", AFTER_DISTILL),
        ("recipe.toml", "max_length = 32", "max_length = 31", ALL),
        ("recipe.toml", "must_be_faster = false", "must_be_faster = true", ["quantize-onnx", "bundle"]),
        ("recipe.toml", "layers = 2", "layers = 2\nmax_drop = 0.9", ["bundle"]),  # the bundle holds the recipe
        ("target.toml", "a test", "the same test", ["bundle"]),
        ("target.toml", "[16, 32]", "[8, 32]", ["teacher-onnx", "export-onnx", "quantize-onnx", "bundle"]),
        ("train.jsonl", "good", "fine", ALL),
        ("dev.jsonl", "good", "fine", ALL),
        ("my_losses/states.py", "loss", "loss  # mine", AFTER_DISTILL),
        ("teacher/config.json", '"model_type"', '"x": 1, "model_type"', ALL),
    ],
)
def test_a_change_makes_exactly_what_depends_on_it(
    name: str, old: str, new: str, anew: Sequence[str], here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(here))
    assert changed(here, name, old, new) == list(anew)


def test_another_library_version_makes_what_uses_it(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(here))
    recipe, base = recipes.find(here / "recipe.toml")
    target = recipes.target(str(here / "target.toml"))
    _, versions = build.keys(recipe, target, base, build.plan(recipe, target))
    assert "accelerate" not in versions["quantize-onnx"]
    assert "onnxruntime" in versions["quantize-onnx"]
    assert "torch" in versions["teach"]
    assert "onnx" not in versions["teach"]


def test_a_score_that_falls_too_far_stops_and_names_the_stage(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(here))
    text = (here / "recipe.toml").read_text()
    # a student that barely trains, by losses that pull it nowhere, after a teacher that learnt
    text = text.replace(
        "layers = 2\ntraining = { epochs = 2,", "layers = 1\nmax_drop = 0.0\ntraining = { epochs = 0.1,"
    )
    text = text.replace("epochs = 3, learning_rate = 1e-3", "epochs = 20, learning_rate = 3e-3")
    (here / "recipe.toml").write_text(text)
    recipe, base = recipes.find(here / "recipe.toml")
    with pytest.raises(NotGoodEnough, match=r"^distill: accuracy fell from .* \(teach\) to .*max_drop = 0"):
        build.build(recipe, recipes.target("target.toml"), Store(here / "store"), here / "out", base)
    assert not (here / "out").exists()


def test_until(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(here))
    recipe, base = recipes.find(here / "recipe.toml")
    built = build.build(recipe, recipes.target("target.toml"), Store(here / "store"), here / "out", base, until="teach")
    assert [stage.name for stage in built.stages] == ["teach"]
    assert built.bundle is None
    assert not (here / "out").exists()


def test_plan_of_repeated_and_left_out_stages() -> None:
    recipe = recipes.Recipe.model_validate({
        "name": "x", "task": {"name": "text_classification"}, "data": {"name": "files"},
        "step": [
            {"stage": "teach", "model": "m"}, {"stage": "prune", "heads": 2}, {"stage": "distill", "layers": 1},
            {"stage": "prune", "neurons": 3}, {"stage": "export"},
        ],
    })  # fmt: skip
    planned = build.plan(recipe, recipes.target("android"))
    assert [(p.name, dict(p.parents)) for p in planned] == [
        ("teach", {}),
        ("prune", {"model": "teach", "teacher": "teach"}),
        ("distill", {"model": "prune", "teacher": "teach"}),
        ("prune-2", {"model": "distill", "teacher": "teach"}),
        ("teacher-onnx", {"model": "teach"}),
        ("export-tflite", {"model": "prune-2"}),
        ("export-onnx", {"model": "prune-2"}),
        ("bundle", {"model": "prune-2", "teacher": "teach", "baseline": "teacher-onnx",
                    "export:tflite": "export-tflite", "export:onnx": "export-onnx"}),
    ]  # fmt: skip
