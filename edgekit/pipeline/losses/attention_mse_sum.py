"""Attention summed over heads: any two numbers of heads can be compared.

    L = sum over pairs (m, g) of MSE( sum over heads of A_s[m], sum over heads of A_t[g] ),  A = q·k / sqrt(d)

TextBrewer 0.2.1's `attention_mse_sum` (Yang et al., "TextBrewer", 2020). With unlike numbers of heads the student's are
asked to be as much larger as they are fewer; `attention_mse` then compares the means.
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
    """A scalar: mean squares over pairs of unpadded tokens, summed over the pairs of layers."""
    terms: list[Tensor] = []
    for layer, its_layer in pairs(params.layers, student.depth, teacher.depth):
        mine, its = scores("attention_mse_sum", student, layer), scores("attention_mse_sum", teacher, its_layer)
        terms.append(squared(mine.sum(1, keepdim=True), its.sum(1, keepdim=True), student.mask))
    return torch.stack(terms).sum()
