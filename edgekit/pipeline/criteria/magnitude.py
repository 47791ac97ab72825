"""Magnitude: units with small weights matter little. Needs no data.

The score of a unit is the L2 norm of all its weights: the rows of the projections into it and the columns of the
projection out of it. Han et al. 2015, "Learning both Weights and Connections for Efficient Neural Networks", for
single weights; Li et al. 2017, "Pruning Filters for Efficient ConvNets", for whole units.

>>> up, down = torch.tensor([[3.0], [0.0]]), torch.tensor([[4.0, 1.0]])
>>> _norm(2, [up], down)
tensor([5., 1.])
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize
from transformers import PreTrainedModel

from edgekit.pipeline import families
from edgekit.records import Record


class Params(Record):
    """Nothing to choose."""


def scores(params: Params, model: PreTrainedModel, batches: Iterable[Any], loss: Any) -> Mapping[str, Tensor]:
    """See `Criterion`; biases are left out, `batches` and `loss` are not used."""
    found: dict[str, Tensor] = {}
    for i, layer in enumerate(families.own_layers(model)):
        into = [linear.weight for linear in (layer.query, layer.key, layer.value)]
        found[f"heads.{i}"] = _norm(layer.heads, into, layer.output.weight)
        for k, (up, down) in enumerate(layer.feed_forward):
            found[f"neurons.{i}.{k}"] = _norm(up.out_features, [up.weight], down.weight)
    return {key: normalize(value, dim=0) for key, value in found.items()}


@torch.no_grad()
def _norm(units: int, into: Sequence[Tensor], out: Tensor) -> Tensor:
    """The L2 norm of each unit's equal share of rows of `into` and of columns of `out`: [units]."""
    squares = [weight.square().sum(1).view(units, -1).sum(1) for weight in (*into, out.T)]
    return torch.stack(squares).sum(0).sqrt()
