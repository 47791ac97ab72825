"""Attention as probabilities: the cross-entropy of the student's with the teacher's, head by head.

    L = sum over pairs (m, g) of mean over heads and queries of - sum over keys of softmax(A_t[g]) log softmax(A_s[m])

TextBrewer 0.2.1's `attention_ce` (Yang et al., "TextBrewer", 2020). Padded keys get no probability here; TextBrewer
leaves that to the scores that it is given. Student and teacher need the same number of heads; `attention_ce_mean` does
not.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from edgekit.pipeline.losses._attention import cross_entropy, same_heads, scores
from edgekit.pipeline.losses._params import Matched, pairs
from edgekit.pipeline.signals import Signals, Wanted


class Params(Matched):
    """Which layers are compared."""


def reads(params: Params, student: int, teacher: int) -> Wanted:
    """The teacher's attention scores of the pairs."""
    return frozenset(("scores", its) for _, its in pairs(params.layers, student, teacher))


def loss(params: Params, student: Signals, teacher: Signals, batch: Mapping[str, Tensor]) -> Tensor:
    """A scalar: the mean over heads and unpadded queries, summed over the pairs of layers."""
    terms: list[Tensor] = []
    for layer, its_layer in pairs(params.layers, student.depth, teacher.depth):
        mine, its = scores("attention_ce", student, layer), scores("attention_ce", teacher, its_layer)
        same_heads("attention_ce", mine, its)
        terms.append(cross_entropy(mine, its, student.mask))
    return torch.stack(terms).sum()
