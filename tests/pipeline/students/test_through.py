"""Every student from a recipe through to an int8 bundle, in small."""

import json
from pathlib import Path
from typing import Any

import families as tiny
import pytest

from edgekit import bundle, plugins
from edgekit import recipe as recipes
from edgekit.pipeline import build
from edgekit.recipe import Recipe
from edgekit.store import Store

SHAPE: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 256}
STUDENTS: dict[str, dict[str, Any]] = {
    "bert": {"layers": 1, "width": 16, "heads": 2, "embedding": 8},
    "albert": {"layers": 2, "width": 96, "heads": 2, "embedding": 8},
    "low_rank": {"rank": 4},
    "activation": {"layers": 1},
    "ladder": {"reduction": 4},
    "bigru": {"width": 16},
    "cnn": {"width": 96},
}


def test_the_list_is_whole() -> None:
    assert set(STUDENTS) == set(plugins.names("students"))


@pytest.mark.slow
@pytest.mark.parametrize("name", STUDENTS)
def test_to_an_int8_bundle(name: str, tmp_path: Path) -> None:
    rows = [{"text": text, "label": "bad" if "bad" in text else "good"} for text in tiny.TEXTS] * 8
    for split in ("train", "dev"):
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tiny.make(tmp_path / "model", "bert", labels=("bad", "good"), hidden_act="gelu", **SHAPE)
    recipe = Recipe.model_validate({
        "name": "x", "max_length": 32, "task": {"name": "text_classification", "labels": ("bad", "good")},
        "data": {"name": "files", "train": "train.jsonl", "dev": "dev.jsonl"},
        "step": [
            {"stage": "teach", "model": "model"},
            {"stage": "distill", "student": {"name": name, **STUDENTS[name]},
             "method": {"name": "kd", "losses": [{"name": "kl"}]}, "training": {"epochs": 1}},
            {"stage": "export"},
            {"stage": "quantize", "must_be_faster": False, "max_drop": None},
        ],
    })  # fmt: skip
    target = recipes.target("host").model_copy(update={"formats": ("onnx",), "lengths": (32,)})
    built = build.build(recipe, target, Store(tmp_path / "store"), tmp_path / "out", tmp_path)
    assert built.bundle
    (model,) = bundle.verify(Path(built.bundle)).models
    quantizer = plugins.load("quantizers", "onnx")
    assert all(layer.dtype == "int8" for layer in quantizer.layers(Path(built.bundle) / model.path))
