"""Soft labels: the divergence of the student's predictions from the teacher's at a temperature.

    L = T^2 * mean over (tokens or rows) of KL( softmax(z_t / T_x) || softmax(z_s / T_x) )

Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015, section 2 (T^2 keeps the gradients' size).
T_x is T unless a temperature schedule says otherwise, see `_soft`.
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
    """A scalar, the mean over the model's outputs. Logits of one per row are [batch, labels], of one per token
    [batch, length, labels] (padding is left out), of positions [batch, length] (padding gets no probability)."""
    terms: list[Tensor] = []
    for each in compared("kl", params, student, teacher, batch):
        mine, its = each.log_probabilities()
        terms.append(torch.nn.functional.kl_div(mine, its, log_target=True, reduction="sum") / each.rows)
    return params.temperature**2 * torch.stack(terms).mean()
