"""Criteria against values worked out by hand, and Taylor's against finite differences in every family."""

from collections.abc import Mapping
from pathlib import Path

import families as tiny
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from edgekit.pipeline import families, models
from edgekit.pipeline.criteria import magnitude, taylor


def make(folder: Path, family: str, **config: object) -> PreTrainedModel:
    kind = "image-classification" if family == "vit" else "text-classification"
    return models.load(tiny.make(folder, family, kind, **config), kind)


def batch_for(model: PreTrainedModel) -> dict[str, Tensor]:
    """Three examples, one of them padded."""
    generator = torch.Generator().manual_seed(1)
    labels = torch.tensor([0, 1, 1])
    if model.config.model_type == "vit":
        return {"pixel_values": torch.randn(3, 3, 32, 32, generator=generator, dtype=model.dtype), "labels": labels}
    ids = torch.randint(5, 60, (3, 7), generator=generator)
    mask = torch.ones_like(ids)
    ids[1, 4:], mask[1, 4:] = model.config.pad_token_id, 0
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def loss(model: PreTrainedModel, batch: Mapping[str, Tensor]) -> Tensor:
    return model(**batch).loss


def test_magnitude_is_the_norm_of_a_units_weights(tmp_path: Path) -> None:
    model = make(tmp_path, "bert")
    layer = families.own_layers(model)[1]
    for linear in (layer.query, layer.key, layer.value, layer.output, *layer.feed_forward[0]):
        linear.weight.data.zero_()
    layer.query.weight.data[0, 0] = 2.0  # heads of 8: row 0 is head 0, row 17 head 2, column 31 head 3
    layer.key.weight.data[17, 5] = 3.0
    layer.value.weight.data[3, 3] = 1.0
    layer.output.weight.data[4, 31] = 6.0
    layer.output.weight.data[9, 1] = 2.0
    layer.feed_forward[0].up.weight.data[0, 0] = 3.0
    layer.feed_forward[0].down.weight.data[0, :2] = torch.tensor([4.0, 12.0])
    scores = magnitude.scores(magnitude.Params(), model, [], None)
    # head 0: sqrt(4 + 1 + 4) = 3, head 2: 3, head 3: 6; together sqrt(9 + 9 + 36)
    assert torch.allclose(scores["heads.1"], torch.tensor([3.0, 0.0, 3.0, 6.0]) / 54**0.5)
    assert torch.allclose(scores["neurons.1.0"][:3], torch.tensor([5.0, 12.0, 0.0]) / 13)
    assert set(scores) == {"heads.0", "heads.1", "neurons.0.0", "neurons.1.0"}


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_taylor_is_the_mean_change_of_the_loss_by_finite_differences(family: str, tmp_path: Path) -> None:
    model = make(tmp_path, family).double()
    batch = batch_for(model)
    scores = taylor.scores(taylor.Params(), model, [batch], loss)
    for i, layer in enumerate(families.own_layers(model)):
        outputs = {f"heads.{i}": (layer.output, layer.heads)}
        outputs |= {f"neurons.{i}.{k}": (ff.down, ff.down.in_features) for k, ff in enumerate(layer.feed_forward)}
        for key, (linear, units) in outputs.items():
            slopes = torch.tensor([mean_slope(model, batch, linear, units, unit) for unit in range(min(units, 6))])
            some = scores[key][: len(slopes)]
            assert torch.allclose(some / some.sum(), slopes / slopes.sum(), atol=1e-3), key
            assert scores[key].norm() == pytest.approx(1)


@torch.no_grad()
def mean_slope(
    model: PreTrainedModel, batch: dict[str, Tensor], linear: torch.nn.Linear, units: int, unit: int
) -> float:
    """E |dL/dξ| over the examples, one at a time; scaling a unit's output by ξ scales the columns that read it."""
    size = linear.in_features // units
    columns = linear.weight.data[:, unit * size : (unit + 1) * size]
    saved, step, total = columns.clone(), 1e-3, 0.0
    for row in range(len(batch["labels"])):
        example = {name: value[row : row + 1] for name, value in batch.items()}
        values = []
        for mask in (1 + step, 1 - step):
            columns.copy_(saved * mask)
            values.append(loss(model, example).item())
        total += abs(values[0] - values[1]) / (2 * step)
    columns.copy_(saved)
    return total / len(batch["labels"])


def test_taylor_takes_only_the_batches_it_is_given_and_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    model = make(tmp_path, "bert")
    batch = batch_for(model)
    before = loss(model, batch).item()
    used: list[int] = []

    def batches():
        for i in range(10):
            used.append(i)
            yield batch

    scores = taylor.scores(taylor.Params(batches=3), model, batches(), loss)
    assert used == [0, 1, 2]
    assert torch.allclose(scores["heads.0"], taylor.scores(taylor.Params(), model, [batch], loss)["heads.0"], atol=1e-6)
    assert loss(model, batch).item() == before
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("criterion", [magnitude, taylor])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_units_that_do_nothing_score_zero(family: str, criterion: object, tmp_path: Path) -> None:
    model = make(tmp_path, family)
    for layer in families.own_layers(model):
        size = layer.head_size
        for linear in (layer.query, layer.key, layer.value):
            linear.weight.data[size : 2 * size] = 0
        layer.output.weight.data[:, size : 2 * size] = 0
        for up, down in layer.feed_forward:
            up.weight.data[5] = 0
            down.weight.data[:, 5] = 0
    scores = criterion.scores(criterion.Params(), model, [batch_for(model)], loss)  # type: ignore[attr-defined]
    for i, layer in enumerate(families.own_layers(model)):
        assert scores[f"heads.{i}"][1] == 0 and (scores[f"heads.{i}"] > 0).sum() == 3
        assert all(scores[f"neurons.{i}.{k}"][5] == 0 for k in range(len(layer.feed_forward)))
