"""Attention averaged over heads, as probabilities: any two numbers of heads can be compared.

    L = sum over pairs (m, g) of mean over queries of - sum over keys of softmax(B_t[g]) log softmax(B_s[m]),
    B = mean over heads of A,  A = q·k / sqrt(d)

TextBrewer 0.2.1's `attention_ce_mean` (Yang et al., "TextBrewer", 2020). Padded keys get no probability here;
TextBrewer leaves that to the scores that it is given.
"""

from collections.abc import Mapping

from torch import Tensor

from edgekit.pipeline.losses._attention import Params, cross_entropy, over_pairs, reads
from edgekit.pipeline.signals import Signals

__all__ = ["Params", "loss", "reads"]


def loss(params: Params, student: Signals, teacher: Signals, batch: Mapping[str, Tensor]) -> Tensor:
    """A scalar: the mean over unpadded queries, summed over the pairs of layers."""

    def compared(mine: Tensor, its: Tensor) -> Tensor:
        return cross_entropy(mine.mean(1, keepdim=True), its.mean(1, keepdim=True), student.mask)

    return over_pairs("attention_ce_mean", params, student, teacher, compared)
