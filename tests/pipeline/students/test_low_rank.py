"""Low-rank linears: the best of their rank, whole where that saves nothing, and through to files."""

from pathlib import Path
from typing import Any

import families as tiny
import numpy as np
import pytest
import student_checks as students
import torch

from edgekit.pipeline import families, models
from edgekit.pipeline.low_rank import LowRank
from edgekit.pipeline.signals import Speaker
from edgekit.recipe import Prune


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_every_family(family: str, tmp_path: Path) -> None:
    kind = "image-classification" if family == "vit" else "token-classification"
    _, model = students.teacher(tmp_path / "teacher", family, kind)
    student = students.build("low_rank", model, kind, rank=3)
    loaded = students.comes_back(student, kind, tmp_path / "student")
    assert models.parameters(loaded) < models.parameters(model)
    for mine, its in zip(families.own_layers(loaded), families.own_layers(model), strict=True):
        assert mine.heads == its.heads
        pairs = [(mine.query, its.query), (mine.output, its.output)]
        pairs += [
            pair for m, t in zip(mine.feed_forward, its.feed_forward, strict=True) for pair in zip(m, t, strict=True)
        ]
        for thin, linear in pairs:
            assert isinstance(thin, LowRank)
            weight = linear.weight.detach().numpy().astype(np.float64)
            u, s, vt = np.linalg.svd(weight)
            best = (u[:, :3] * s[:3]) @ vt[:3]
            np.testing.assert_allclose((thin.u.weight @ thin.v.weight).detach().numpy(), best, atol=1e-5)
            assert torch.equal(thin.u.bias, linear.bias)
    batch = {name: torch.from_numpy(array) for name, array in students.batch(loaded, kind).items()}
    assert Speaker(loaded, kind)(batch).scores(1).shape[1] == 4


def test_a_model_of_that_rank_stays_what_it_is(tmp_path: Path) -> None:
    _, model = students.teacher(tmp_path / "teacher")
    for layer in families.layers(model):
        for linear in layer.feed_forward[0]:
            thin = torch.randn(linear.out_features, 5) @ torch.randn(5, linear.in_features) / 30
            linear.weight = torch.nn.Parameter(thin)
    student = students.build("low_rank", model, rank=5, parts="feed_forward")
    assert isinstance(families.layers(student)[0].query, torch.nn.Linear)
    assert all(isinstance(linear, LowRank) for linear in families.layers(student)[0].feed_forward[0])
    batch = students.batch(model, "text-classification")
    mine, its = (models.runner(m, "text-classification")(batch)["logits"] for m in (student, model))
    np.testing.assert_allclose(mine, its, atol=1e-5)
    attention = students.build("low_rank", model, rank=4, parts="attention")
    assert isinstance(families.layers(attention)[0].query, LowRank)
    assert isinstance(families.layers(attention)[0].feed_forward[0].up, torch.nn.Linear)


def test_a_matrix_that_would_not_be_smaller_stays(tmp_path: Path) -> None:
    _, model = students.teacher(tmp_path / "teacher")
    student = students.build(
        "low_rank", model, rank=17
    )  # [32, 32] would have 1088 weights for 1024, [48, 32] 1360 for 1536
    layer = families.layers(student)[0]
    assert isinstance(layer.query, torch.nn.Linear)
    assert isinstance(layer.feed_forward[0].down, LowRank)
    students.comes_back(student, "text-classification", tmp_path / "student")


def test_linears_without_a_bias(tmp_path: Path) -> None:
    _, model = students.teacher(tmp_path / "teacher", "vit", "image-classification", qkv_bias=False)
    student = students.build("low_rank", model, "image-classification", rank=3)
    layer: Any = families.layers(student)[0]
    assert isinstance(layer.query, LowRank) and not layer.query.u.bias.any()
    students.comes_back(student, "image-classification", tmp_path / "student")


def test_after_pruned_heads_and_with_fewer_layers(tmp_path: Path) -> None:
    _, model = students.teacher(tmp_path / "teacher")
    families.keep_heads(model, [[0, 2], [1, 3]])
    student = students.build("low_rank", model, rank=3)
    students.comes_back(student, "text-classification", tmp_path / "student")
    students.comes_back(families.with_layers(student, [1]), "text-classification", tmp_path / "less")


def test_as_a_file(tmp_path: Path) -> None:
    _, model = students.teacher(tmp_path / "teacher", "albert")
    student = students.build("low_rank", model, rank=6)
    students.exports(student, "text-classification", tmp_path, int8=True)


def test_refusals(tmp_path: Path) -> None:
    config = models.configuration(tiny.make(tmp_path / "teacher", "bert")).to_dict()
    assert "rank = 20 makes nothing smaller; of a matrix [48, 32] it can be at most 19" in students.refusal(
        "low_rank", config, rank=20
    )
    after = students.config("low_rank", config, rank=4)
    assert "of low rank already" in students.refusal("low_rank", after, rank=2)
    assert "low-rank layers" in students.refusal("ladder", after)
    assert "cannot be pruned" in str(families.refusal(after, Prune(stage="prune", heads=2)))
