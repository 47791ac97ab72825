"""Hard labels: the cross-entropy of the student's predictions with the truth."""

from collections.abc import Mapping

import torch
from pydantic import Field
from torch import Tensor

from edgekit.errors import InputError
from edgekit.pipeline.signals import Signals
from edgekit.records import Record

_TRUTH = {"logits": "labels", "start_logits": "start_positions", "end_logits": "end_positions"}


class Params(Record):
    """No options."""

    weight: float = Field(default=1.0, gt=0)


def loss(params: Params, student: Signals, teacher: Signals, batch: Mapping[str, Tensor]) -> Tensor:
    """A scalar, the mean over outputs and over rows or labelled tokens (a label of -100 is left out)."""
    terms: list[Tensor] = []
    for name, given in student.outputs.items():
        logits = given
        truth = batch.get(_TRUTH.get(name, ""))
        if truth is None:
            raise InputError("cross_entropy: these rows have no labels; leave this loss out")
        if logits.shape == student.mask.shape:  # one distribution over the positions
            logits = logits.masked_fill(student.mask == 0, torch.finfo(logits.dtype).min)
        terms.append(
            torch.nn.functional.cross_entropy(logits.float().flatten(0, -2), truth.flatten(), ignore_index=-100)
        )
    return torch.stack(terms).mean()
