"""Soft labels as TextBrewer has them: the cross-entropy of the student's predictions with the teacher's.

    L = mean over (tokens or rows) of  - sum over classes of softmax(z_t / T_x) * log softmax(z_s / T_x)

TextBrewer 0.2.1, `kd_loss_type = "ce"` (Yang et al., "TextBrewer", 2020). It differs from `kl` by the teacher's
entropy, which has no gradient, and by T^2, which TextBrewer leaves out: its gradient is that of `kl` divided by T^2. So
TextBrewer's kd_loss_weight w is `weight = w` here, or `weight = w / T^2` of `kl`. Of several outputs (the start and end
of an answer) TextBrewer takes the sum and this the mean: there it is `weight = 2 w`.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from edgekit.pipeline.losses._soft import Soft, compared
from edgekit.pipeline.signals import OUTPUTS_ONLY, Signals, Wanted


class Params(Soft):
    """What `_soft.Soft` has."""


def reads(params: Params, student: int, teacher: int) -> Wanted:
    """The teacher's outputs."""
    return OUTPUTS_ONLY


def loss(params: Params, student: Signals, teacher: Signals, batch: Mapping[str, Tensor]) -> Tensor:
    """A scalar, the mean over the model's outputs, whose shapes are those that `kl` takes."""
    terms: list[Tensor] = []
    for each in compared("soft_cross_entropy", params, student, teacher, batch):
        mine, its = each.log_probabilities()
        terms.append(-(its.exp() * mine).sum() / each.rows)
    return torch.stack(terms).mean()
