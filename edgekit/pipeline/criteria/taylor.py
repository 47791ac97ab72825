"""First-order Taylor: how much the loss would change, to first order, if a unit's output were 0, on data.

With a mask ξ on a unit's output a (ξ = 1: there, ξ = 0: gone), removal changes the loss by about -∂L/∂ξ = -aᵀ ∂L/∂a.
The score is the mean of its absolute value over examples x:

    I = E_x | aᵀ ∂L(x)/∂a |

Michel et al. 2019, "Are Sixteen Heads Really Better than One?", equations 2 and 3, for heads; Molchanov et al. 2017,
"Pruning Convolutional Neural Networks for Resource Efficient Inference", equation 7, for neurons, and for dividing
by the L2 norm of each layer's scores. Where ALBERT applies one unit in every layer, ξ masks it in all of them.
"""

from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import normalize
from transformers import PreTrainedModel

from edgekit.pipeline import families
from edgekit.records import Record

Loss = Callable[[PreTrainedModel, Mapping[str, Tensor]], Tensor]


class Params(Record):
    """How much data the scores rest on."""

    batches: int = Field(default=32, ge=1)


def scores(
    params: Params, model: PreTrainedModel, batches: Iterable[Mapping[str, Tensor]], loss: Loss
) -> Mapping[str, Tensor]:
    """See `Criterion`; the loss is a mean over the batch, whose examples must not influence each other."""
    units: dict[str, tuple[nn.Linear, int]] = {}  # what a unit puts out is what the next projection takes in
    for i, layer in enumerate(families.own_layers(model)):
        units[f"heads.{i}"] = layer.output, layer.heads
        units |= {f"neurons.{i}.{k}": (down, down.in_features) for k, (_, down) in enumerate(layer.feed_forward)}
    taken: dict[nn.Module, list[Tensor]] = {linear: [] for linear, _ in units.values()}

    def take(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        taken[module].append(inputs[0])

    handles = [module.register_forward_pre_hook(take) for module in taken]
    totals = {key: torch.zeros(number) for key, (_, number) in units.items()}
    try:
        for batch in islice(batches, params.batches):
            value = loss(model, batch)
            outputs = [a for calls in taken.values() for a in calls]
            gradients = dict(zip(map(id, outputs), torch.autograd.grad(value, outputs), strict=True))
            for key, (linear, number) in units.items():
                masks = torch.stack([_mask_gradient(a, gradients[id(a)], number) for a in taken[linear]]).sum(0)
                totals[key] += len(masks) * masks.abs().sum(0)  # a mean loss holds 1 / len(masks) of each example's
                taken[linear].clear()
    finally:
        for handle in handles:
            handle.remove()
    return {key: normalize(total, dim=0) for key, total in totals.items()}


def _mask_gradient(a: Tensor, gradient: Tensor, units: int) -> Tensor:
    """∂L/∂ξ = aᵀ ∂L/∂a of each example: [batch, length, units * size] twice -> [batch, units]."""
    batch = a.shape[0]
    return (a * gradient).detach().reshape(batch, -1, units, a.shape[-1] // units).sum((1, 3))
