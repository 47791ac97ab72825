"""Hidden states: the student's embeddings and layers against the teacher's, by the uniform layer map.

    L = sum over m = 0..M of MSE( H_s[m], H_t[g(m)] ),  g(0) = 0

Jiao et al., "TinyBERT", 2020, equations 8 (hidden states), 9 (embeddings); widths are equal, so no projection.
"""

from collections.abc import Mapping

import torch
from pydantic import Field
from torch import Tensor

from edgekit.errors import InputError
from edgekit.pipeline.signals import Signals, uniform_map
from edgekit.records import Record


class Params(Record):
    """No options."""

    weight: float = Field(default=1.0, gt=0)


def loss(params: Params, student: Signals, teacher: Signals, batch: Mapping[str, Tensor]) -> Tensor:
    """A scalar: mean squares over unpadded tokens and dimensions, summed over the student's layers."""
    layers = (0, *uniform_map(len(student.hidden) - 1, len(teacher.hidden) - 1))
    real = student.mask.bool()
    terms: list[Tensor] = []
    for mine, its in zip(student.hidden, (teacher.hidden[layer] for layer in layers), strict=True):
        if mine.shape != its.shape:
            raise InputError(
                f"hidden_mse: the student's states are {mine.shape[-1]} wide, the teacher's {its.shape[-1]}"
            )
        terms.append(torch.nn.functional.mse_loss(mine[real].float(), its[real].float()))
    return torch.stack(terms).sum()
