"""Several ladders in one file: each head says what its own ladder says, the backbone is there once."""

import json
import shutil
from pathlib import Path
from typing import Any

import families as tiny
import numpy as np
import onnx
import pytest
import student_checks as students
import torch

from edgekit import infer
from edgekit.errors import InputError
from edgekit.pipeline import export, models, together
from edgekit.pipeline.quantizers import onnx as quantizer
from edgekit.records import Format, Kind
from edgekit.tasks import pad

KINDS: dict[str, Kind] = {
    "sentiment": "text-classification",
    "names": "token-classification",
    "answers": "question-answering",
}
SHAPE: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 1}


def ladder(folder: Path, kind: Kind, backbone: Path, seed: int) -> Path:
    """As a teach step makes one: a new head on the backbone, and a side network that has learnt something."""
    torch.manual_seed(seed)
    model = models.load(backbone, kind, students.labels(kind), new_head=True)
    made: Any = students.build("ladder", model, kind, reduction=4)
    for weight in made.parameters():
        if weight.requires_grad:
            torch.nn.init.normal_(weight, std=0.3)
    folder.mkdir()
    models.save(made, folder)
    models.copy_processor(backbone, folder)
    return folder


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Path]:
    backbone = tiny.make(tmp_path / "backbone", "bert", "sentence-embedding", **SHAPE)
    return {name: ladder(tmp_path / name, kind, backbone, i) for i, (name, kind) in enumerate(KINDS.items())}


@pytest.mark.parametrize("format", ["onnx", "tflite"])
def test_each_head_says_what_its_ladder_says(format: Format, folders: dict[str, Path], tmp_path: Path) -> None:
    (file,) = together.write(folders, tmp_path / "out", (format,), (12,))
    session = infer.open_model(file)
    assert {tensor.name for tensor in session.outputs} == {
        "sentiment.logits", "names.logits", "answers.start_logits", "answers.end_logits"
    }  # fmt: skip
    alone = {name: models.load(folder, KINDS[name]) for name, folder in folders.items()}
    batch = pad(export.made_up(models.Exportable(alone["names"], "token-classification"), 1, 12), 0)
    given = session(batch)
    for name, model in alone.items():
        for output, wanted in models.runner(model, KINDS[name])(batch).items():
            np.testing.assert_allclose(given[f"{name}.{output}"], wanted, atol=1e-4)
    about = json.loads((tmp_path / "out" / "tasks.json").read_text())
    assert about["sentiment"] == {"kind": "text-classification", "labels": ["negative", "positive"]}
    assert (tmp_path / "out" / "tokenizer.json").is_file()
    if format == "onnx":  # the backbone is there once, and runs once
        graph = onnx.load(file).graph
        each = [models.parameters(model) for model in alone.values()]
        backbone = models.parameters(alone["names"].base_model.get_submodule("backbone"))
        assert sum(np.prod(tensor.dims) for tensor in graph.initializer) < 1.1 * (sum(each) - 2 * backbone)
        scopes = [note.value for node in graph.node if node.op_type == "MatMul" for note in node.metadata_props]
        assert sum("backbone" in scope for scope in scopes) == 8  # a layer's six weights, and its attention's two
        quantizer.quantize(file, tmp_path / "int8.onnx")
        assert all(layer.dtype == "int8" for layer in quantizer.layers(tmp_path / "int8.onnx"))


def test_ladders_on_other_backbones_are_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    other = tiny.make(tmp_path / "other", "bert", "sentence-embedding", seed=1, **SHAPE)
    moved = ladder(tmp_path / "moved", "text-classification", other, 0)
    with pytest.raises(InputError, match=r"moved: .* stands on another backbone than names"):
        together.write({"names": folders["names"], "moved": moved}, tmp_path / "out")
    words = shutil.copytree(folders["sentiment"], tmp_path / "words")
    (words / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match="words: its tokenizer is not that of names"):
        together.write({"names": folders["names"], "words": words}, tmp_path / "out")
    with pytest.raises(InputError, match=r"plain: .* holds no ladder"):
        together.write({"plain": other}, tmp_path / "out")
    with pytest.raises(InputError, match="none is named"):
        together.write({}, tmp_path / "out")
    assert not (tmp_path / "out").exists()
