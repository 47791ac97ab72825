"""Flow of the solution procedure: how the dimensions of one layer go with those of another, as a Gram matrix.

    L = sum over [[s1, s2], [t1, t2]] of MSE( G_s, G_t ),
    G_s = (H_s[s1] W)^T (H_s[s2] W) / n,  G_t = H_t[t1]^T H_t[t2] / n,  [width, width] each, n the tokens of a row

Yim et al., "A Gift from Knowledge Distillation: Fast Optimization, Network Minimization and Transfer Learning", 2017,
equations 1 and 2, with tokens in the place of pixels and, as in TextBrewer's `fsp`, the mean over the matrix where the
paper has the sum.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from edgekit.pipeline.losses._params import Flowing, Flows, Projection, flows, product, same_tokens, same_width
from edgekit.pipeline.signals import Signals, Wanted


class Params(Flowing):
    """`layers`: by default from each layer to the next. `projection`: W, a learnt map of the student's states to the
    teacher's width."""

    layers: Flows = "consecutive"
    projection: Projection | None = None


def reads(params: Params, student: int, teacher: int) -> Wanted:
    """The teacher's hidden states of the pairs."""
    return frozenset(("hidden", its) for _, ends in flows(params.layers, student, teacher) for its in ends)


def loss(params: Params, student: Signals, teacher: Signals, batch: Mapping[str, Tensor]) -> Tensor:
    """A scalar, the mean over rows and both dimensions of the Gram matrix, summed over the pairs."""
    real = student.mask.unsqueeze(-1).float()
    share = real / real.sum(1, keepdim=True).clamp(min=1)  # 1 / n where a token is real, else 0
    terms: list[Tensor] = []
    for (s1, s2), (t1, t2) in flows(params.layers, student.depth, teacher.depth):
        (mine, mine_next), (its, its_next) = (
            (student.hidden[s1], student.hidden[s2]),
            (teacher.hidden[t1], teacher.hidden[t2]),
        )
        same_tokens("fsp", mine, its)
        same_width("fsp", mine, its)
        flow = product(mine.transpose(1, 2), share * mine_next.float())
        terms.append(torch.nn.functional.mse_loss(flow, product(its.transpose(1, 2), share * its_next.float())))
    return torch.stack(terms).sum()
