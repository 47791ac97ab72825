"""Attention: the student's scores before the softmax against the teacher's, by the uniform layer map.

    L = sum over m = 1..M of mean over heads of MSE( A_s[m], A_t[g(m)] ),  A = q·k / sqrt(d)

Jiao et al., "TinyBERT", 2020, equation 7. Where pruning left the student fewer heads, the mean over heads of both
sides is compared, as there are no pairs of heads any more.
"""

from collections.abc import Mapping

import torch
from pydantic import Field
from torch import Tensor

from edgekit.pipeline.signals import Signals, uniform_map
from edgekit.records import Record


class Params(Record):
    """No options."""

    weight: float = Field(default=1.0, gt=0)


def loss(params: Params, student: Signals, teacher: Signals, batch: Mapping[str, Tensor]) -> Tensor:
    """A scalar: mean squares over heads and pairs of unpadded tokens, summed over the student's layers."""
    real = student.mask.bool()
    pairs = (real[:, None, :, None] & real[:, None, None, :]).float()
    terms: list[Tensor] = []
    for layer, its_layer in enumerate(uniform_map(len(student.queries), len(teacher.queries))):
        mine, its = student.scores(layer).float(), teacher.scores(its_layer - 1).float()
        if mine.shape[1] != its.shape[1]:
            mine, its = mine.mean(1, keepdim=True), its.mean(1, keepdim=True)
        terms.append(((mine - its) ** 2 * pairs).sum() / (pairs.sum() * mine.shape[1]))
    return torch.stack(terms).sum()
