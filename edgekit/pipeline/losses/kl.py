"""Soft labels: the divergence of the student's predictions from the teacher's at a temperature.

    L = T^2 * mean over (tokens or rows) of KL( softmax(z_t / T) || softmax(z_s / T) )

Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015, section 2 (T^2 keeps the gradients' size).
"""

from collections.abc import Mapping

import torch
from pydantic import Field
from torch import Tensor

from edgekit.pipeline.losses._params import Weighted
from edgekit.pipeline.signals import OUTPUTS_ONLY, Signals, Wanted


class Params(Weighted):
    """`temperature` of both softmaxes."""

    temperature: float = Field(default=2.0, gt=0)


def reads(params: Params, student: int, teacher: int) -> Wanted:
    """The teacher's outputs."""
    return OUTPUTS_ONLY


def loss(params: Params, student: Signals, teacher: Signals, batch: Mapping[str, Tensor]) -> Tensor:
    """A scalar, the mean over the model's outputs. Logits of one per row are [batch, labels], of one per token
    [batch, length, labels] (padding is left out), of positions [batch, length] (padding gets no probability)."""
    return torch.stack([
        _divergence(student.outputs[name].float(), teacher.outputs[name].float(), student.mask, params.temperature)
        for name in student.outputs
    ]).mean()  # fmt: skip


def _divergence(student: Tensor, teacher: Tensor, mask: Tensor, temperature: float) -> Tensor:
    real = mask.bool()
    if student.dim() == 3:  # a distribution for each token
        student, teacher = student[real], teacher[real]
    elif student.shape == mask.shape:  # one distribution over the positions
        student, teacher = (z.masked_fill(~real, torch.finfo(z.dtype).min) for z in (student, teacher))
    log_p_student = torch.log_softmax(student / temperature, dim=-1)
    log_p_teacher = torch.log_softmax(teacher / temperature, dim=-1)
    return temperature**2 * torch.nn.functional.kl_div(
        log_p_student, log_p_teacher, log_target=True, reduction="batchmean"
    )
