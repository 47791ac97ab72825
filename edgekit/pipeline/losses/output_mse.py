"""Mean squared error of the model's outputs themselves: logits, or sentence embeddings (which have no labels).

    L = mean over (tokens or rows) and classes of ( (z_s - z_t) / T_x )^2

Ba and Caruana, "Do Deep Nets Really Need to be Deep?", 2014, equation 1 (regression on logits, T = 1). With another
temperature it is TextBrewer 0.2.1's `kd_loss_type = "mse"`; of several outputs that takes the sum, and this the mean.
"""

from collections.abc import Mapping

import torch
from pydantic import Field
from torch import Tensor

from edgekit.pipeline.losses._soft import Soft, compared
from edgekit.pipeline.signals import OUTPUTS_ONLY, Signals, Wanted


class Params(Soft):
    """What `_soft.Soft` has, with a temperature of 1 unless another is given."""

    temperature: float = Field(default=1.0, gt=0, allow_inf_nan=False)


def reads(params: Params, student: int, teacher: int) -> Wanted:
    """The teacher's outputs."""
    return OUTPUTS_ONLY


def loss(params: Params, student: Signals, teacher: Signals, batch: Mapping[str, Tensor]) -> Tensor:
    """A scalar, the mean over outputs, rows, unpadded tokens (of an answer: positions) and dimensions."""
    terms: list[Tensor] = []
    for each in compared("output_mse", params, student, teacher, batch):
        square = ((each.student - each.teacher) / each.temperature) ** 2
        if each.possible is None:
            terms.append(square.sum() / max(1, square.numel()))
        else:
            terms.append(square.masked_fill(~each.possible, 0).sum() / each.possible.sum())
    return torch.stack(terms).mean()
