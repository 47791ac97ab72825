"""What inspect says, against sums done by hand."""

import json
import subprocess
import sys
from pathlib import Path

import bundles
import families
import numpy as np
import onnx
import pytest
import student_checks as students
from onnx import helper, numpy_helper

from edgekit.errors import InputError
from edgekit.pipeline import models
from edgekit.pipeline.inspect import Inspection, Module, inspect, lines
from edgekit.pipeline.quantizers import tflite as quantizer
from edgekit.records import Kind

HIDDEN, NEURONS, LAYERS = 32, 48, 2


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = families.make(tmp_path_factory.mktemp("bert") / "bert", "bert")
    (folder / "model.safetensors").unlink()  # config.json is all that is read
    return folder


def parameters_by_hand(vocabulary: int) -> tuple[int, int]:
    """BERT's parameters with a two-label head, and those of its embedding tables."""
    tables = (vocabulary + 64 + 2) * HIDDEN
    dense = HIDDEN * HIDDEN + HIDDEN
    layer = 4 * dense + 2 * HIDDEN * NEURONS + NEURONS + HIDDEN + 2 * 2 * HIDDEN
    return tables + 2 * HIDDEN + LAYERS * layer + dense + 2 * HIDDEN + 2, tables


def test_parameters_tree_and_bytes(bert: Path) -> None:
    vocabulary = json.loads((bert / "config.json").read_text())["vocab_size"]
    total, tables = parameters_by_hand(vocabulary)
    found = inspect(str(bert), 32)
    assert (found.family, found.parameters, found.embedding_parameters) == ("bert", total, tables)
    assert found.tree is not None
    words = descend(found.tree, "bert", "embeddings", "word_embeddings")
    assert (words.parameters, words.share) == (vocabulary * HIDDEN, vocabulary * HIDDEN / total)
    assert all(node.parameters >= sum(c.parameters for c in node.children) for node in walk(found.tree))
    whole = {row.precision: (row.bytes, row.embedding_bytes) for row in found.weights}
    assert whole["float32"] == (4 * total, 4 * tables)
    assert whole["float16"] == (2 * total, 2 * tables)
    small_tables = tables + 4 * (vocabulary + 64 + 2)  # a scale a row
    assert whole["int8"][1] == small_tables
    assert whole["int8, embeddings float32"][0] == whole["int8"][0] - small_tables + 4 * tables


def descend(module: Module, *names: str) -> Module:
    for name in names:
        module = next(child for child in module.children if child.name == name)
    return module


def walk(module: Module) -> list[Module]:
    return [module, *(node for child in module.children for node in walk(child))]


def test_flops_are_two_a_multiply_add(bert: Path) -> None:
    length = 24
    dense = 4 * HIDDEN * HIDDEN + 2 * HIDDEN * NEURONS
    attention = 2 * length * length * HIDDEN  # scores, and their product with the values
    head = HIDDEN * HIDDEN + 2 * HIDDEN  # pooler and classifier see one token
    found = inspect(str(bert), length)
    assert found.flops == 2 * (LAYERS * (length * dense + attention) + head)
    assert found.operators["bmm"] == 2 * LAYERS


def test_candidates_are_floor_and_weights_twice(bert: Path) -> None:
    found = inspect(str(bert), 32)
    int8 = next(row.bytes for row in found.weights if row.precision == "int8")
    candidate = next(c for c in found.candidates if (c.format, c.precision) == ("tflite", "int8"))
    assert (candidate.bytes, candidate.predicted_peak_rss_bytes) == (int8, 9_000_000 + 2 * int8)
    assert [(c.format, c.precision) for c in found.candidates] == [
        ("onnx", "float32"), ("onnx", "int8"), ("tflite", "float32"), ("tflite", "int8"),
    ]  # fmt: skip


@pytest.mark.parametrize("family", families.FAMILIES)
def test_every_family(tmp_path: Path, family: str) -> None:
    import torch
    from transformers import AutoModel

    kind = "image-classification" if family == "vit" else "sentence-embedding"
    folder = families.make(tmp_path / family, family, kind)
    found = inspect(str(folder), 16)
    if family != "vit":
        with torch.no_grad():
            assert found.parameters == sum(p.numel() for p in AutoModel.from_pretrained(folder).parameters())
    assert found.flops is not None and found.flops > 0
    assert all(len(line) <= 80 for line in lines(found).splitlines() if str(folder) not in line)


def test_albert_counts_its_shared_layer_once(tmp_path: Path) -> None:
    two = inspect(str(families.make(tmp_path / "2", "albert")), 16)
    four = inspect(str(families.make(tmp_path / "4", "albert", num_hidden_layers=4)), 16)
    assert two.parameters == four.parameters
    assert two.flops is not None and four.flops is not None and four.flops > 1.9 * two.flops


def test_lines_fold_layers_that_are_alike(bert: Path) -> None:
    shown = lines(inspect(str(bert), 32))
    assert "0-1 " in shown and "2 x BertLayer" in shown
    assert "FLOPs at 32 tokens" in shown


def test_onnx_file_is_counted(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    weights = [
        numpy_helper.from_array(np.zeros((4, 8), np.int8), "w"),
        numpy_helper.from_array(np.zeros(3, np.float32), "b"),
    ]
    nodes = [helper.make_node("Relu", ["x"], ["y"]), helper.make_node("Relu", ["y"], ["z"])]
    value = helper.make_tensor_value_info("x", 1, [1])
    out = helper.make_tensor_value_info("z", 1, [1])
    onnx.save(helper.make_model(helper.make_graph(nodes, "g", [value], [out], weights)), str(path))
    found = inspect(str(path))
    assert (found.operators, found.constant_bytes) == ({"Relu": 2}, {"int8": 32, "float32": 12})
    (candidate,) = found.candidates
    size = path.stat().st_size
    assert (candidate.precision, candidate.bytes) == ("int8", size)
    assert candidate.predicted_peak_rss_bytes == 30_000_000 + 2 * size
    assert Inspection.model_validate_json(found.model_dump_json()) == found


def test_onnx_needs_no_torch(tmp_path: Path) -> None:
    test_onnx_file_is_counted(tmp_path)
    code = (
        "import sys; from edgekit.pipeline.inspect import inspect, lines; lines(inspect(sys.argv[1]));"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "model.onnx")], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout.strip()) == (0, "False"), done.stderr


@pytest.mark.parametrize("name", ["model.onnx", "model.tflite"])
def test_file_that_is_none(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="no such model file"):
        inspect(str(tmp_path / name))
    (tmp_path / name).write_bytes(b"\xff" * 100)
    with pytest.raises(InputError, match="is not a"):
        inspect(str(tmp_path / name))


def test_damaged_tflite(tmp_path: Path) -> None:
    (tmp_path / "model.tflite").write_bytes(b"\xff\xff\xff\x7fTFL3" + b"\xff" * 100)
    with pytest.raises(InputError, match="damaged TFLite"):
        inspect(str(tmp_path / "model.tflite"))


def test_folder_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no such model folder or bundle"):
        inspect(str(tmp_path / "absent"))
    with pytest.raises(InputError, match="neither a model folder"):
        inspect(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "nosuch"}')
    with pytest.raises(InputError, match="no model can be built"):
        inspect(str(tmp_path))


def test_length_beyond_the_model(bert: Path) -> None:
    with pytest.raises(InputError, match=r"--length: 65 tokens, and .* takes at most 64"):
        inspect(str(bert), 65)


def test_weights_that_stand_behind_the_flatbuffer_are_counted(tmp_path: Path) -> None:
    folder, _ = bundles.make(tmp_path / "b", "bert", formats=("tflite",))
    path = tmp_path / "model.tflite"
    quantizer.quantize(folder / "tflite" / "model.tflite", path)
    found = inspect(str(path))
    weights = sum(layer.elements for layer in quantizer.layers(path))
    assert found.constant_bytes["int8"] >= weights > 0
    assert found.candidates[0].precision == "int8"
    assert sum(part.bytes for part in found.parts) == path.stat().st_size
    whole = inspect(str(folder))
    assert [sum(part.bytes for part in model.parts) for model in whole.models] == [whole.candidates[0].bytes]
    rows = [line.split() for line in lines(whole).splitlines()]
    assert ["bytes", "of", "size", "share"] in rows
    assert any(row[:3] == ["layer", "1", "feed-forward"] and row[-1].endswith("%") for row in rows)


@pytest.mark.parametrize("name", ["bigru", "cnn", "ladder"])
@pytest.mark.parametrize("kind", ["token-classification", "sentence-embedding"])
def test_families_of_our_own(name: str, kind: Kind, tmp_path: Path) -> None:
    _, model = students.teacher(tmp_path / "teacher", "bert", kind)
    student = students.build(name, model, kind)
    models.save(student, tmp_path / "student")
    (tmp_path / "student" / "model.safetensors").unlink()  # config.json is all that is read
    found = inspect(str(tmp_path / "student"), 32)
    assert found.parameters == sum(weight.numel() for weight in student.parameters())
    assert found.family == student.config.model_type and found.flops is None


def test_a_class_that_is_no_model_is_not_built(bert: Path, tmp_path: Path) -> None:
    config = json.loads((bert / "config.json").read_text())
    for family, name in (("bert", "Trainer"), ("edgekit-sequence", "Trainer")):
        (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": family, "architectures": [name]}))
        if family == "bert":
            assert inspect(str(tmp_path), 32).tree.kind == "BertModel"
        else:
            with pytest.raises(InputError, match='no model of the family "edgekit-sequence" is called "Trainer"'):
                inspect(str(tmp_path), 32)
