"""A narrower BERT or ELECTRA: its shape, its embeddings by hand, and through to files."""

import json
from pathlib import Path
from typing import Any

import families as tiny
import numpy as np
import pytest
import student_checks as students
import torch

from edgekit.pipeline.signals import Speaker
from edgekit.records import Kind

SHAPE: dict[str, Any] = {"layers": 2, "width": 12, "heads": 3, "neurons": 20}
KINDS: tuple[Kind, ...] = ("text-classification", "token-classification", "question-answering", "sentence-embedding")


@pytest.mark.parametrize("family", tiny.TEXT_FAMILIES)
def test_a_narrow_student_of_every_family(family: str, tmp_path: Path) -> None:
    kind = KINDS[tiny.TEXT_FAMILIES.index(family) % len(KINDS)]
    folder, model = students.teacher(tmp_path / "teacher", family, kind)
    student = students.build("bert", model, kind, **SHAPE)
    loaded = students.comes_back(student, kind, tmp_path / "student")
    config = json.loads((tmp_path / "student" / "config.json").read_text())
    before = json.loads((folder / "config.json").read_text())
    assert config["model_type"] == "bert"
    assert config["vocab_size"] == before["vocab_size"] and config["pad_token_id"] == before["pad_token_id"]
    assert config["max_position_embeddings"] == 64  # those that can be used, also where the first are not
    shape = ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size")
    assert [config[name] for name in shape] == list(SHAPE.values())
    assert loaded.config.id2label == model.config.id2label
    said = Speaker(loaded, kind)({n: torch.from_numpy(a) for n, a in students.batch(loaded, kind).items()})
    assert said.depth == 2 and said.hidden[2].shape == (2, 12, 12) and said.scores(1).shape == (2, 3, 12, 12)


def test_embeddings_are_the_best_of_their_rank(tmp_path: Path) -> None:
    _, model = students.teacher(tmp_path / "teacher")
    table = model.bert.embeddings.word_embeddings.weight.detach().numpy().astype(np.float64)
    student = students.build("bert", model, **SHAPE).bert.embeddings
    u, s, vt = np.linalg.svd(table, full_matrices=False)
    best = (u[:, :12] * s[:12]) @ vt[:12]
    mine = student.word_embeddings.weight.detach().numpy()
    turn = np.linalg.lstsq(mine, table, rcond=None)[0]
    np.testing.assert_allclose(mine @ turn, best, atol=1e-5)
    np.testing.assert_allclose(mine @ mine.T, best @ best.T, atol=1e-4)  # products between tokens
    positions = model.bert.embeddings.position_embeddings.weight.detach().numpy()
    np.testing.assert_allclose(student.position_embeddings.weight.detach().numpy(), positions @ turn.T, atol=1e-5)


def test_wide_enough_embeddings_are_copied(tmp_path: Path) -> None:
    _, model = students.teacher(tmp_path / "teacher", "roberta")
    student = students.build("bert", model, layers=1, width=40, heads=4).base_model.embeddings
    its = model.base_model.embeddings
    assert torch.equal(student.word_embeddings.weight[:, :32], its.word_embeddings.weight)
    assert torch.equal(student.position_embeddings.weight[:, :32], its.position_embeddings.weight[2:])  # pad id + 1
    assert student.word_embeddings.weight[:, 32:].abs().sum() > 0


def test_factorised_embeddings_are_those_behind_the_projection(tmp_path: Path) -> None:
    _, model = students.teacher(tmp_path / "teacher", "electra")
    table = model.electra.embeddings.word_embeddings.weight @ model.electra.embeddings_project.weight.T
    student = students.build("bert", model, layers=1, width=32, heads=4).base_model.embeddings
    assert torch.allclose(student.word_embeddings.weight, table, atol=1e-6)


def test_with_embedding_it_is_a_stock_electra(tmp_path: Path) -> None:
    _, model = students.teacher(tmp_path / "teacher")
    student = students.build("bert", model, **SHAPE, embedding=6)
    assert student.config.model_type == "electra" and student.electra.embeddings.word_embeddings.weight.shape[1] == 6
    students.comes_back(student, "text-classification", tmp_path / "student")


def test_random_start_and_activation(tmp_path: Path) -> None:
    _, model = students.teacher(tmp_path / "teacher")
    random = students.build("bert", model, **SHAPE, start="random", activation="relu")
    assert random.config.hidden_act == "relu"
    mine = random.bert.embeddings.word_embeddings.weight.detach()
    assert mine.std() == pytest.approx(0.02, rel=0.2)  # the model's has .2


@pytest.mark.parametrize("format", ["onnx", "tflite"])
def test_a_narrow_student_as_a_file(format: str, tmp_path: Path) -> None:
    _, model = students.teacher(tmp_path / "teacher", "mpnet")
    student = students.build("bert", model, **SHAPE, activation="relu")
    students.exports(student, "text-classification", tmp_path, format, int8=True)


def test_refusals() -> None:
    assert "multiple of heads" in students.refusal("bert", {"model_type": "bert"}, **SHAPE | {"heads": 5})
    assert "has no vocabulary" in students.refusal("bert", {"model_type": "vit"}, **SHAPE)
