"""The model's own layers with another activation: the same weights, ReLU in every layer, and fewer layers."""

from pathlib import Path

import families as tiny
import pytest
import student_checks as students
import torch

from edgekit.pipeline import families


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_every_family_computes_with_relu(family: str, tmp_path: Path) -> None:
    kind = "image-classification" if family == "vit" else "sentence-embedding"
    act = "activation" if family == "distilbert" else "hidden_act"
    _, model = students.teacher(tmp_path / "teacher", family, kind, **{act: "gelu"})
    student = students.build("activation", model, kind)
    loaded = students.comes_back(student, kind, tmp_path / "student")
    assert getattr(loaded.config, act) == "relu"
    assert loaded.config.model_type == family
    for name, weight in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weight)
    seen: list[torch.Tensor] = []
    for layer in families.own_layers(loaded):
        for pair in layer.feed_forward:
            pair.down.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    with torch.no_grad():
        batch = {name: torch.from_numpy(array) for name, array in students.batch(loaded, kind).items()}
        loaded(**batch)
    assert seen and all((given >= 0).all() for given in seen)


def test_with_fewer_layers_and_pruned_heads(tmp_path: Path) -> None:
    _, model = students.teacher(tmp_path / "teacher", num_hidden_layers=3)
    families.keep_heads(model, [[0], [1, 2], [3]])
    student = students.build("activation", model, layers=2, start="alternate")
    assert [layer.heads for layer in families.layers(student)] == [1, 1]
    assert torch.equal(families.layers(student)[1].query.weight, families.layers(model)[2].query.weight)
    students.comes_back(student, "text-classification", tmp_path / "student")


def test_refusals() -> None:
    bert = {"model_type": "bert", "hidden_act": "relu", "num_hidden_layers": 2}
    assert 'activation is "relu" already' in students.refusal("activation", bert)
    assert "the model has 2" in students.refusal("activation", bert, layers=3)
    after = students.config("activation", bert, layers=1)
    assert after["num_hidden_layers"] == 1 and after["hidden_act"] == "relu"
