"""Hard labels: the cross-entropy of the student's predictions with the truth."""

from collections.abc import Mapping

import torch
from torch import Tensor

from edgekit.errors import InputError
from edgekit.pipeline.losses._params import POSITIONS, TRUTH, Weighted
from edgekit.pipeline.signals import Signals, Wanted


class Params(Weighted):
    """No options."""


def reads(params: Params, student: int, teacher: int) -> Wanted:
    """Nothing."""
    return frozenset()


def loss(params: Params, student: Signals, teacher: Signals, batch: Mapping[str, Tensor]) -> Tensor:
    """A scalar, the mean over outputs and over rows or labelled tokens (a label of -100 is left out)."""
    return of_outputs(student.outputs, student.mask, batch)


def of_outputs(outputs: Mapping[str, Tensor], mask: Tensor | None, batch: Mapping[str, Tensor]) -> Tensor:
    """The same of a model's outputs by name; `mask` [batch, length] is 1 where a token is real, `None` for images."""
    terms: list[Tensor] = []
    for name, given in outputs.items():
        truth = batch.get(TRUTH.get(name, ""))
        if truth is None:
            raise InputError("cross_entropy: these rows have no labels; leave this loss out")
        logits = given
        if mask is not None and name in POSITIONS:  # padding gets no probability
            logits = logits.masked_fill(mask == 0, torch.finfo(logits.dtype).min)
        labelled = (truth.flatten() != -100).nonzero().squeeze(-1)
        chosen = logits.flatten(0, -2).index_select(0, labelled).float()
        each = torch.nn.functional.cross_entropy(chosen, truth.flatten()[labelled], reduction="sum")
        terms.append(each / max(1, len(labelled)))  # a batch may have no label at all
    return torch.stack(terms).mean()
