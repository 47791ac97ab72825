"""Attention as probabilities: the cross-entropy of the student's with the teacher's, head by head.

    L = sum over pairs (m, g) of mean over heads and queries of - sum over keys of softmax(A_t[g]) log softmax(A_s[m])

TextBrewer 0.2.1's `attention_ce` (Yang et al., "TextBrewer", 2020). Padded keys get no probability here; TextBrewer
leaves that to the scores that it is given. Student and teacher need the same number of heads; `attention_ce_mean` does
not.
"""

from collections.abc import Mapping

from torch import Tensor

from edgekit.pipeline.losses._attention import Params, cross_entropy, over_pairs, reads, same_heads
from edgekit.pipeline.signals import Signals

__all__ = ["Params", "loss", "reads"]


def loss(params: Params, student: Signals, teacher: Signals, batch: Mapping[str, Tensor]) -> Tensor:
    """A scalar: the mean over heads and unpadded queries, summed over the pairs of layers."""

    def compared(mine: Tensor, its: Tensor) -> Tensor:
        same_heads("attention_ce", mine, its)
        return cross_entropy(mine, its, student.mask)

    return over_pairs("attention_ce", params, student, teacher, compared)
