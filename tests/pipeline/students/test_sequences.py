"""BiGRU and convolutions: by independent formulas, padding never counts, and through to files."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import student_checks as students
import torch

from edgekit import infer
from edgekit.errors import InputError
from edgekit.pipeline import models
from edgekit.pipeline.signals import Speaker
from edgekit.records import Kind

KINDS: tuple[Kind, ...] = ("text-classification", "token-classification", "question-answering", "sentence-embedding")
SIZES: dict[str, dict[str, Any]] = {
    "bigru": {"layers": 2, "width": 12, "embedding": 10},
    "cnn": {"layers": 2, "width": 14, "sizes": [2, 3, 5], "embedding": 10},
}


def made(folder: Path, name: str, kind: Kind = "token-classification", family: str = "bert") -> Any:
    _, model = students.teacher(folder / "teacher", family, kind)
    return students.build(name, model, kind, **SIZES[name])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", SIZES)
def test_every_kind_comes_back_and_teaches(name: str, kind: Kind, tmp_path: Path) -> None:
    student = made(tmp_path, name, kind, "mpnet")
    loaded = students.comes_back(student, kind, tmp_path / "student")
    batch = {n: torch.from_numpy(array) for n, array in students.batch(loaded, kind).items()}
    said = Speaker(loaded, kind)(batch)
    assert said.depth == 2
    assert [said.hidden[i].shape[-1] for i in range(3)] == [10, SIZES[name]["width"], SIZES[name]["width"]]
    assert models.input_names(loaded) == ("input_ids", "attention_mask")
    with pytest.raises(InputError, match='reads attention, and a model of the family "edgekit-sequence" gives none'):
        said.scores(1)
    for output in said.outputs.values():
        output.sum().backward(retain_graph=True)


@pytest.mark.parametrize("kind", KINDS[:2])
@pytest.mark.parametrize("name", SIZES)
def test_padding_never_counts(name: str, kind: Kind, tmp_path: Path) -> None:
    """Rows alone, and in a batch with any tokens as padding; also as whole hidden states."""
    student = made(tmp_path, name, kind)
    random = torch.Generator().manual_seed(0)
    rows = [torch.randint(1, 60, (size,), generator=random) for size in (9, 1, 4, 9)]
    ids = torch.randint(1, 60, (4, 13), generator=random)
    mask = torch.zeros(4, 13, dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, : len(row)], mask[i, : len(row)] = row, 1
    with torch.no_grad():
        together = student(input_ids=ids, attention_mask=mask)
        for i, row in enumerate(rows):
            alone = student(input_ids=row[None], attention_mask=torch.ones(1, len(row), dtype=torch.long))
            where = np.s_[i] if kind == "text-classification" else np.s_[i, : len(row)]
            torch.testing.assert_close(together.logits[where], alone.logits[0])
            for mine, its in zip(together.hidden_states, alone.hidden_states, strict=True):
                torch.testing.assert_close(mine[i, : len(row)], its[0])


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def gru(x: np.ndarray, cell: torch.nn.GRU) -> np.ndarray:
    """Cho et al. 2014 as torch states it: gates r, z, n."""
    w, r, b, c = (
        getattr(cell, f"{name}_l0").detach().numpy().astype(np.float64)
        for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    )
    h = np.zeros(r.shape[1])
    states = []
    for step in x:
        mine, its = np.split(w @ step + b, 3), np.split(r @ h + c, 3)
        reset, update = sigmoid(mine[0] + its[0]), sigmoid(mine[1] + its[1])
        h = (1 - update) * np.tanh(mine[2] + reset * its[2]) + update * h
        states.append(h)
    return np.array(states)


def test_a_bigru_by_hand(tmp_path: Path) -> None:
    student = made(tmp_path, "bigru")
    ids = torch.tensor([[5, 9, 7, 3]])
    with torch.no_grad():
        states = student(input_ids=ids, attention_mask=torch.ones_like(ids)).hidden_states
    x = states[0][0].numpy().astype(np.float64)
    layer = student.body.layers[0]
    wanted = np.concatenate([gru(x, layer.forwards), gru(x[::-1], layer.backwards)[::-1]], axis=1)
    np.testing.assert_allclose(states[1][0].numpy(), wanted, atol=1e-5)


def test_convolutions_by_torchs_own(tmp_path: Path) -> None:
    student = made(tmp_path, "cnn")
    ids = torch.tensor([[5, 9, 7, 3, 4, 8]])
    with torch.no_grad():
        states = student(input_ids=ids, attention_mask=torch.ones_like(ids)).hidden_states
        layer = student.body.layers[0]
        found = []
        for size, linear in zip(layer.sizes, layer.filters, strict=True):
            weight = linear.weight.view(len(linear.weight), size, -1).transpose(1, 2)  # [out, in, size]
            padded = torch.nn.functional.pad(states[0].transpose(1, 2), ((size - 1) // 2, size // 2))
            found.append(torch.nn.functional.conv1d(padded, weight, linear.bias))
        wanted = torch.cat(found, 1).transpose(1, 2).relu()
    torch.testing.assert_close(states[1], wanted)
    assert [len(linear.weight) for linear in layer.filters] == [5, 5, 4]


@pytest.mark.parametrize("name", SIZES)
def test_embeddings_start_from_the_models(name: str, tmp_path: Path) -> None:
    _, model = students.teacher(tmp_path / "teacher", "electra", "token-classification")
    table = model.electra.embeddings.word_embeddings.weight @ model.electra.embeddings_project.weight.T
    wide = students.build(name, model, "token-classification", width=12)
    torch.testing.assert_close(wide.get_input_embeddings().weight, table)
    narrow = students.build(name, model, "token-classification", width=12, embedding=16).get_input_embeddings().weight
    torch.testing.assert_close(narrow @ narrow.T, table @ table.T, atol=1e-4, rtol=1e-4)  # its rank is 16


@pytest.mark.parametrize("name", SIZES)
def test_it_learns(name: str, tmp_path: Path) -> None:
    student = made(tmp_path, name, "text-classification").train()
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-2)
    batch = {n: torch.from_numpy(a) for n, a in students.batch(student, "text-classification").items()}
    losses = []
    for _ in range(30):
        loss = student(**batch, labels=torch.tensor([1, 0])).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]


@pytest.mark.parametrize("kind", KINDS[:2])
@pytest.mark.parametrize("name", SIZES)
def test_as_onnx(name: str, kind: Kind, tmp_path: Path) -> None:
    """Big enough that torch's exporter leaves the weights of the recurrence as they are."""
    _, model = students.teacher(tmp_path / "teacher", "bert", kind)
    student = students.build(name, model, kind, width=120, layers=2, embedding=16)
    path = students.exports(student, kind, tmp_path, int8=True)
    (logits,) = infer.open_model(path).outputs
    assert logits.shape == ((-1, 2) if kind == "text-classification" else (-1, -1, 2))
    int8 = onnx.load(tmp_path / "int8.onnx").graph.initializer
    left = sum(np.prod(t.dims) for t in int8 if t.data_type == onnx.TensorProto.FLOAT)
    assert left < 0.05 * models.parameters(student)


@pytest.mark.parametrize("name", ["cnn", pytest.param("bigru", marks=pytest.mark.slow)])
def test_as_tflite(name: str, tmp_path: Path) -> None:
    kind: Kind = "token-classification"
    students.exports(made(tmp_path, name, kind), kind, tmp_path, "tflite", int8=True)


def test_refusals() -> None:
    bert = {"model_type": "bert"}
    assert "width = 7 is odd" in students.refusal("bigru", bert, width=7)
    assert "less than the 3 sizes" in students.refusal("cnn", bert, width=2)
    for name in SIZES:
        assert "has no vocabulary" in students.refusal(name, {"model_type": "vit"})
