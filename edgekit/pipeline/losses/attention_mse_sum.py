"""Attention summed over heads: any two numbers of heads can be compared.

    L = sum over pairs (m, g) of MSE( sum over heads of A_s[m], sum over heads of A_t[g] ),  A = q·k / sqrt(d)

TextBrewer 0.2.1's `attention_mse_sum` (Yang et al., "TextBrewer", 2020). With unlike numbers of heads the student's are
asked to be as much larger as they are fewer; `attention_mse` then compares the means.
"""

from collections.abc import Mapping

from torch import Tensor

from edgekit.pipeline.losses._attention import Params, over_pairs, reads, squared
from edgekit.pipeline.signals import Signals

__all__ = ["Params", "loss", "reads"]


def loss(params: Params, student: Signals, teacher: Signals, batch: Mapping[str, Tensor]) -> Tensor:
    """A scalar: mean squares over pairs of unpadded tokens, summed over the pairs of layers."""

    def compared(mine: Tensor, its: Tensor) -> Tensor:
        return squared(mine.sum(1, keepdim=True), its.sum(1, keepdim=True), student.mask)

    return over_pairs("attention_mse_sum", params, student, teacher, compared)
