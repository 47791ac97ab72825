"""Neuron selectivity transfer: which tokens are alike, in the student and in the teacher, whatever their widths.

    L = sum over [[s1, s2], [t1, t2]] of MSE( G_s, G_t ),
    G_s = H_s[s1] H_s[s2]^T / width_s,  G_t = H_t[t1] H_t[t2]^T / width_t,  [tokens, tokens] each

Huang, Wang, "Like What You Like: Knowledge Distill via Neuron Selectivity Transfer", 2017: the squared maximum mean
discrepancy (MMD) of the neurons' patterns with the polynomial kernel (x^T y)^2 is the squared distance of these Gram
matrices. As in TextBrewer's `nst` (also called `mmd`) patterns are not brought to length 1. TextBrewer divides by the
width without a mask and by the padded length with one, which lets padding change the loss; here it is the width always.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from edgekit.pipeline.losses._params import Flowing, Flows, flows, mean_square, product, same_tokens
from edgekit.pipeline.signals import Signals, Wanted


class Params(Flowing):
    """`layers`: by default each layer with itself."""

    layers: Flows = "same"


def reads(params: Params, student: int, teacher: int) -> Wanted:
    """The teacher's hidden states of the pairs."""
    return frozenset(("hidden", its) for _, ends in flows(params.layers, student, teacher) for its in ends)


def loss(params: Params, student: Signals, teacher: Signals, batch: Mapping[str, Tensor]) -> Tensor:
    """A scalar, the mean over pairs of unpadded tokens, summed over the pairs of layers."""
    real = student.mask.bool()
    both = real[:, :, None] & real[:, None, :]
    terms: list[Tensor] = []
    for (s1, s2), (t1, t2) in flows(params.layers, student.depth, teacher.depth):
        mine, its = student.hidden[s1], teacher.hidden[t1]
        same_tokens("nst", mine, its)
        alike = product(mine, student.hidden[s2].transpose(1, 2)) / mine.shape[-1]
        wanted = product(its, teacher.hidden[t2].transpose(1, 2)) / its.shape[-1]
        terms.append(mean_square(alike, wanted, both))
    return torch.stack(terms).sum()
