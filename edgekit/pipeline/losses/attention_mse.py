"""Attention: the student's scores before the softmax against the teacher's, layer by layer.

    L = sum over pairs (m, g) of mean over heads of MSE( A_s[m], A_t[g] ),  A = q·k / sqrt(d)

Jiao et al., "TinyBERT", 2020, equation 7; TextBrewer's `attention_mse`. Where pruning left the student fewer heads, the
mean over heads of both sides is compared, as there are no pairs of heads any more.
"""

from collections.abc import Mapping

from torch import Tensor

from edgekit.pipeline.losses._attention import Params, over_pairs, reads, squared
from edgekit.pipeline.signals import Signals

__all__ = ["Params", "loss", "reads"]


def loss(params: Params, student: Signals, teacher: Signals, batch: Mapping[str, Tensor]) -> Tensor:
    """A scalar: mean squares over heads and pairs of unpadded tokens, summed over the pairs of layers."""

    def compared(mine: Tensor, its: Tensor) -> Tensor:
        if mine.shape[1] != its.shape[1]:
            mine, its = mine.mean(1, keepdim=True), its.mean(1, keepdim=True)
        return squared(mine, its, student.mask)

    return over_pairs("attention_mse", params, student, teacher, compared)
