"""Importance: what a criterion of `criteria/` says of every head and neuron of a model, on training batches."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from edgekit import progress
from edgekit.pipeline import families, models
from edgekit.pipeline.losses import cross_entropy
from edgekit.pipeline.losses._params import TRUTH
from edgekit.records import Kind
from edgekit.tasks import Feature, pad

BATCH = 16
"""Examples in a batch that a criterion scores on."""


def scores(
    criterion: Any, params: Any, model: PreTrainedModel, features: Sequence[Feature], kind: Kind, seed: int
) -> tuple[list[Tensor], list[list[Tensor]]]:
    """The scores of heads `[layer]` and of neurons `[layer][network]`, 1-D tensors, by `families.own_layers`.

    Where the family has a bias shared by all layers (MPNet), each layer has the sum of all layers' scores of heads, so
    that they agree. `criterion` is a module of `criteria/`, `params` its `Params`.
    """
    with progress.bar("scores of heads and neurons"):
        found: Mapping[str, Tensor] = criterion.scores(
            params, model, _batches(features, models.pad_id(model), seed), _loss(kind, seed)
        )
    layers = families.own_layers(model)
    heads = [found[f"heads.{i}"] for i in range(len(layers))]
    if families.family(model).head_bias:
        heads = [torch.stack(heads).sum(0)] * len(layers)
    neurons = [[found[f"neurons.{i}.{k}"] for k in range(len(layer.feed_forward))] for i, layer in enumerate(layers)]
    return heads, neurons


def order(scores: Tensor) -> list[int]:
    """The indices from the highest score to the lowest; the first of equals first."""
    return torch.sort(scores, descending=True, stable=True).indices.tolist()


def shuffled(features: Sequence[Feature], seed: int) -> np.ndarray:
    """The indices of `features` in a random order."""
    return np.random.default_rng(seed).permutation(len(features))


def _batches(features: Sequence[Feature], pad_id: int, seed: int) -> Iterator[Mapping[str, Tensor]]:
    shown = shuffled(features, seed)
    for start in range(0, len(shown), BATCH):
        batch = pad([features[i] for i in shown[start : start + BATCH]], pad_id)
        yield {name: torch.from_numpy(array) for name, array in batch.items()}


def _loss(kind: Kind, seed: int) -> Callable[[PreTrainedModel, Mapping[str, Tensor]], Tensor]:
    """What a criterion measures a unit's removal by: the task's loss, or without labels the change of the outputs.

    The latter is the outputs' projection on a random direction v for each example: by first order it moves by
    vᵀ J for a removal that moves the outputs by J, and E |vᵀ J| = sqrt(2 / pi) |J| for normal v.
    """
    random = torch.Generator().manual_seed(seed)

    def loss(model: PreTrainedModel, batch: Mapping[str, Tensor]) -> Tensor:
        inputs = {name: batch[name] for name in models.input_names(model)}
        outputs = models.Exportable(model, kind).outputs(model(**inputs), inputs)
        if any(name in batch for name in TRUTH.values()):
            return cross_entropy.of_outputs(outputs, batch.get("attention_mask"), batch)
        moves = [(output * torch.randn(output.shape, generator=random)).sum() for output in outputs.values()]
        return torch.stack(moves).sum() / len(next(iter(outputs.values())))

    return loss
