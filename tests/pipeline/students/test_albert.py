"""A stock ALBERT: layers that share weights, factorised embeddings, one int8 copy of what is shared."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import student_checks as students

from edgekit.pipeline import models

SHAPE: dict[str, Any] = {"layers": 4, "width": 96, "heads": 4, "neurons": 200, "embedding": 16}


def test_layers_share_their_weights(tmp_path: Path) -> None:
    _, model = students.teacher(tmp_path / "teacher", "roberta", "token-classification")
    student = students.build("albert", model, "token-classification", **SHAPE)
    assert models.parameters(student) == models.parameters(
        students.build("albert", model, "token-classification", **SHAPE | {"layers": 2})
    )
    two = students.build("albert", model, "token-classification", **SHAPE | {"groups": 2})
    layer = 4 * 96 * 96 + 4 * 96 + 2 * 96 * 200 + 200 + 96 + 4 * 96  # attention, feed-forward, two normalisations
    assert models.parameters(two) - models.parameters(student) == layer
    table = student.albert.embeddings.word_embeddings.weight.detach().numpy()
    its = model.roberta.embeddings.word_embeddings.weight.detach().numpy()
    singular = np.linalg.svd(its, compute_uv=False)[:16]
    np.testing.assert_allclose(np.linalg.norm(table, axis=0), singular, rtol=1e-4)
    assert student.albert.embeddings.position_embeddings.weight.shape[0] == 64
    students.comes_back(student, "token-classification", tmp_path / "student")
    students.comes_back(two, "token-classification", tmp_path / "two")


def test_what_is_shared_is_once_in_the_int8_file(tmp_path: Path) -> None:
    """Big enough that torch's exporter leaves the shared weights behind a Transpose, as in real models."""
    _, model = students.teacher(tmp_path / "teacher")
    student = students.build("albert", model, **SHAPE)
    path = students.exports(student, "text-classification", tmp_path, int8=True)
    assert any(node.op_type == "Transpose" and ".weight" in node.input[0] for node in onnx.load(path).graph.node)
    constants = onnx.load(tmp_path / "int8.onnx").graph.initializer
    assert sum(np.prod(tensor.dims) for tensor in constants) < 1.1 * models.parameters(student)


def test_refusals() -> None:
    bert = {"model_type": "bert"}
    assert "not a multiple of groups = 3" in students.refusal("albert", bert, **SHAPE | {"groups": 3})
    assert "not a multiple of heads" in students.refusal("albert", bert, **SHAPE | {"heads": 7})
