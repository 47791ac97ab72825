"""Hard labels: the cross-entropy of the student's predictions with the truth."""

from collections.abc import Mapping

import torch
from torch import Tensor

from edgekit.errors import InputError
from edgekit.pipeline.losses._params import TRUTH, Weighted
from edgekit.pipeline.signals import Signals, Wanted


class Params(Weighted):
    """No options."""


def reads(params: Params, student: int, teacher: int) -> Wanted:
    """Nothing."""
    return frozenset()


def loss(params: Params, student: Signals, teacher: Signals, batch: Mapping[str, Tensor]) -> Tensor:
    """A scalar, the mean over outputs and over rows or labelled tokens (a label of -100 is left out)."""
    terms: list[Tensor] = []
    for name, given in student.outputs.items():
        logits = given
        truth = batch.get(TRUTH.get(name, ""))
        if truth is None:
            raise InputError("cross_entropy: these rows have no labels; leave this loss out")
        if logits.shape == student.mask.shape:  # one distribution over the positions
            logits = logits.masked_fill(student.mask == 0, torch.finfo(logits.dtype).min)
        terms.append(
            torch.nn.functional.cross_entropy(logits.float().flatten(0, -2), truth.flatten(), ignore_index=-100)
        )
    return torch.stack(terms).mean()
