"""Every way to train a student that ships, on a little of a real task, from the recipe to an int8 bundle."""

import gzip
import json
from itertools import islice
from pathlib import Path

import families as tiny
import pytest

from edgekit import bundle, compare, systems
from edgekit import recipe as recipes
from edgekit.pipeline import build
from edgekit.store import Store

RECIPE = """
name = "small"
max_length = 32
[task]
name = "text_classification"
[data]
name = "files"
train = "train.jsonl"
dev = "dev.jsonl"
[text]
data = { name = "files", train = "train.jsonl", dev = "dev.jsonl" }
[[step]]
stage = "teach"
model = "teacher"
training = { epochs = 1, learning_rate = 1e-3, batch_size = 16 }
[[step]]
stage = "distill"
layers = 2
training = { examples = 96, batch_size = 16 }
[[step]]
stage = "export"
[[step]]
stage = "quantize"
must_be_faster = false
max_drop = 1.0
"""
TARGET = 'description = "a test"\nabi = "host"\nformats = ["onnx"]\nlengths = [32]\n'


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, data_dir: Path) -> Path:
    """A recipe on some of SST-2, with a teacher of 4 layers, whose store all methods share."""
    folder = tmp_path_factory.mktemp("every")
    tiny.make(folder / "teacher", "bert", labels=["0", "1"], num_hidden_layers=4, hidden_size=96, intermediate_size=384)
    (folder / "recipe.toml").write_text(RECIPE)
    (folder / "target.toml").write_text(TARGET)
    for split in ("train", "dev"):
        with gzip.open(data_dir / "sst2" / f"{split}.jsonl.gz", "rt", encoding="utf-8") as lines:
            (folder / f"{split}.jsonl").write_text("".join(islice(lines, 64)), encoding="utf-8")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", systems.names())
def test_from_the_recipe_to_an_int8_bundle(name: str, project: Path) -> None:
    recipe = compare.with_method(recipes.read(project / "recipe.toml"), name, project)
    steps = [step.model_copy(update={"max_drop": None}) for step in recipe.step[:-2]]
    recipe = recipe.model_copy(update={"step": (*steps, *recipe.step[-2:])})
    target = recipes.target(str(project / "target.toml"))
    out = project / "bundles" / name
    built = build.build(recipe, target, Store(project / "store"), out, project)
    assert {row.name.split("-")[0] for row in built.stages} >= {step.stage for step in recipe.step} | {"bundle"}
    trained = [row for row in built.stages if row.name.startswith(("pretrain", "distill"))]
    assert all(row.trained and row.trained.examples > 0 for row in trained)
    manifest = bundle.verify(out)
    (model,) = manifest.models
    exported, quantized = (
        next(row for row in built.stages if row.name == f"{stage}-onnx") for stage in ("export", "quantize")
    )
    assert quantized.bytes < 0.75 * exported.bytes
    assert quantized.metrics and quantized.metrics.examples == 64
    assert json.loads((out / "manifest.json").read_text())["recipe"]["name"] == "small"
    assert model.format == "onnx"
