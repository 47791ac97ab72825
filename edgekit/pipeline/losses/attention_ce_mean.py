"""Attention averaged over heads, as probabilities: any two numbers of heads can be compared.

    L = sum over pairs (m, g) of mean over queries of - sum over keys of softmax(B_t[g]) log softmax(B_s[m]),
    B = mean over heads of A,  A = q·k / sqrt(d)

TextBrewer 0.2.1's `attention_ce_mean` (Yang et al., "TextBrewer", 2020). Padded keys get no probability here;
TextBrewer leaves that to the scores that it is given.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from edgekit.pipeline.losses._attention import cross_entropy, scores
from edgekit.pipeline.losses._params import Matched, pairs
from edgekit.pipeline.signals import Signals, Wanted


class Params(Matched):
    """Which layers are compared."""


def reads(params: Params, student: int, teacher: int) -> Wanted:
    """The teacher's attention scores of the pairs."""
    return frozenset(("scores", its) for _, its in pairs(params.layers, student, teacher))


def loss(params: Params, student: Signals, teacher: Signals, batch: Mapping[str, Tensor]) -> Tensor:
    """A scalar: the mean over unpadded queries, summed over the pairs of layers."""
    terms: list[Tensor] = []
    for layer, its_layer in pairs(params.layers, student.depth, teacher.depth):
        mine, its = scores("attention_ce_mean", student, layer), scores("attention_ce_mean", teacher, its_layer)
        terms.append(cross_entropy(mine.mean(1, keepdim=True), its.mean(1, keepdim=True), student.mask))
    return torch.stack(terms).sum()
