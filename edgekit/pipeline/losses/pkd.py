"""Patient knowledge distillation: the first token's states of several layers, each brought to length 1.

    L = sum over j of mean over rows of || h_s[j] / ||h_s[j]|| - h_t[I(j)] / ||h_t[I(j)]|| ||^2,  j = 1 .. M - 1

Sun et al., "Patient Knowledge Distillation for BERT Model Compression", 2019, section 3.3 and equation 7 (a sum over
the rows there). h is the state of the first token, [CLS]; the student's last layer M is left out, as its output meets
the teacher's in the soft labels. PKD-skip: I(j) = j N / M, so 2, 4, 6, 8, 10 for 6 layers of 12. PKD-last: the layers
just before the teacher's last, so 7, 8, 9, 10, 11.
"""

from collections.abc import Mapping
from typing import Annotated, Literal

import torch
from torch import Tensor

from edgekit.errors import InputError
from edgekit.pipeline.losses._params import Pair, Pairs, Projection, Weighted, either, pairs, same_width
from edgekit.pipeline.signals import Signals, Wanted

WHOLE_ROWS = True
"""It compares rows and not tokens (`losses`)."""


class Params(Weighted):
    """`layers`: PKD-`skip`, PKD-`last`, or pairs `[[student's, teacher's], ...]` from 1, 0 for the embeddings.
    `projection`: a learnt map of the student's states to the teacher's width, one for all pairs."""

    layers: Annotated[
        Literal["skip", "last"] | Pairs,
        either('take "skip", "last", or pairs, [[student\'s layer, teacher\'s], ...]'),
    ] = "skip"
    projection: Projection | None = None


def _pairs(params: Params, student: int, teacher: int) -> tuple[Pair, ...]:
    if not isinstance(params.layers, str):
        return pairs(params.layers, student, teacher, lowest=0)
    if student < 2:
        raise InputError(
            f'pkd: layers = "{params.layers}" leaves the last layer out, and the student has only {student}; give it '
            "more layers, or this loss pairs of layers"
        )
    return pairs("uniform" if params.layers == "skip" else "top", student, teacher)[:-1]


def reads(params: Params, student: int, teacher: int) -> Wanted:
    """The teacher's hidden states of the pairs."""
    return frozenset(("hidden", its) for _, its in _pairs(params, student, teacher))


def loss(params: Params, student: Signals, teacher: Signals, batch: Mapping[str, Tensor]) -> Tensor:
    """A scalar, the mean over rows of squared distances, 0 to 4 each, summed over the pairs."""
    terms: list[Tensor] = []
    for layer, its_layer in _pairs(params, student.depth, teacher.depth):
        mine, its = student.hidden[layer][:, 0].float(), teacher.hidden[its_layer][:, 0].float()
        same_width("pkd", mine, its)
        mine, its = (torch.nn.functional.normalize(each, dim=-1) for each in (mine, its))
        terms.append((mine - its).square().sum(-1).mean())
    return torch.stack(terms).sum()
