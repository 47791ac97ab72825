"""Direction of the hidden states: one minus the cosine of the student's and the teacher's, token by token.

    L = sum over pairs (m, g) of mean over tokens of ( 1 - cos( H_s[m] W, H_t[g] ) )

Sanh et al., "DistilBERT, a distilled version of BERT: smaller, faster, cheaper and lighter", 2019, section 3 (its
L_cos, of the last layers, beside the soft targets and the masked language model); TextBrewer's `cos`.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from edgekit.pipeline.losses._params import Layers, Projected, over_tokens, pairs, same_tokens, same_width
from edgekit.pipeline.signals import Signals, Wanted


class Params(Projected):
    """Which layers are compared: the last ones unless others are given."""

    layers: Layers = "last"


def reads(params: Params, student: int, teacher: int) -> Wanted:
    """The teacher's hidden states of the pairs."""
    return frozenset(("hidden", its) for _, its in pairs(params.layers, student, teacher, lowest=0))


def loss(params: Params, student: Signals, teacher: Signals, batch: Mapping[str, Tensor]) -> Tensor:
    """A scalar, the mean over unpadded tokens, summed over the pairs."""
    terms: list[Tensor] = []
    for layer, its_layer in pairs(params.layers, student.depth, teacher.depth, lowest=0):
        mine, its = student.hidden[layer], teacher.hidden[its_layer]
        same_tokens("cosine", mine, its)
        same_width("cosine", mine, its)
        cosines = torch.nn.functional.cosine_similarity(mine.float(), its.float(), dim=-1)
        terms.append(over_tokens(1 - cosines, student.mask))
    return torch.stack(terms).sum()
