"""Attention: the student's scores before the softmax against the teacher's, layer by layer.

    L = sum over pairs (m, g) of mean over heads of MSE( A_s[m], A_t[g] ),  A = q·k / sqrt(d)

Jiao et al., "TinyBERT", 2020, equation 7; TextBrewer's `attention_mse`. Where pruning left the student fewer heads, the
mean over heads of both sides is compared, as there are no pairs of heads any more.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from edgekit.pipeline.losses._attention import scores, squared
from edgekit.pipeline.losses._params import Matched, pairs
from edgekit.pipeline.signals import Signals, Wanted


class Params(Matched):
    """Which layers are compared."""


def reads(params: Params, student: int, teacher: int) -> Wanted:
    """The teacher's attention scores of the pairs."""
    return frozenset(("scores", its) for _, its in pairs(params.layers, student, teacher))


def loss(params: Params, student: Signals, teacher: Signals, batch: Mapping[str, Tensor]) -> Tensor:
    """A scalar: mean squares over heads and pairs of unpadded tokens, summed over the pairs of layers."""
    terms: list[Tensor] = []
    for layer, its_layer in pairs(params.layers, student.depth, teacher.depth):
        mine, its = scores("attention_mse", student, layer), scores("attention_mse", teacher, its_layer)
        if mine.shape[1] != its.shape[1]:
            mine, its = mine.mean(1, keepdim=True), its.mean(1, keepdim=True)
        terms.append(squared(mine, its, student.mask))
    return torch.stack(terms).sum()
