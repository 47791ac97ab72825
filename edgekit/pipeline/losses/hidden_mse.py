"""Hidden states: the student's embeddings and layers against the teacher's.

    L = sum over pairs (m, g) of MSE( H_s[m] W, H_t[g] ),  and with a map by name also of the embeddings (0, 0)

Jiao et al., "TinyBERT", 2020, equations 8 (hidden states), 9 (embeddings); W is there where the recipe asks for a
projection, and must be where the widths are unlike. For an own projection of the embeddings, as in the paper, write
the loss twice: once with `embeddings = false`, once with `layers = [[0, 0]]`.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from edgekit.pipeline.losses._params import Pair, Projected, mean_square, pairs, same_tokens, same_width
from edgekit.pipeline.signals import Signals, Wanted


class Params(Projected):
    """`embeddings`: with a map by name, the embeddings are compared too."""

    embeddings: bool = True


def _pairs(params: Params, student: int, teacher: int) -> tuple[Pair, ...]:
    by_name = isinstance(params.layers, str) and params.layers != "last" and params.embeddings
    return (*(((0, 0),) if by_name else ()), *pairs(params.layers, student, teacher, lowest=0))


def reads(params: Params, student: int, teacher: int) -> Wanted:
    """The teacher's hidden states of the pairs."""
    return frozenset(("hidden", its) for _, its in _pairs(params, student, teacher))


def loss(params: Params, student: Signals, teacher: Signals, batch: Mapping[str, Tensor]) -> Tensor:
    """A scalar: mean squares over unpadded tokens and dimensions, summed over the pairs."""
    real = student.mask.bool().unsqueeze(-1)
    terms: list[Tensor] = []
    for layer, its_layer in _pairs(params, student.depth, teacher.depth):
        mine, its = student.hidden[layer], teacher.hidden[its_layer]
        same_tokens("hidden_mse", mine, its)
        same_width("hidden_mse", mine, its)
        terms.append(mean_square(mine, its, real))
    return torch.stack(terms).sum()
