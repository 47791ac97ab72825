"""Mean squared error of the model's outputs themselves: logits, or sentence embeddings (which have no labels).

Ba and Caruana, "Do Deep Nets Really Need to be Deep?", 2014, equation 1 (regression on logits).
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from edgekit.pipeline.losses._params import Weighted
from edgekit.pipeline.signals import OUTPUTS_ONLY, Signals, Wanted


class Params(Weighted):
    """No options."""


def reads(params: Params, student: int, teacher: int) -> Wanted:
    """The teacher's outputs."""
    return OUTPUTS_ONLY


def loss(params: Params, student: Signals, teacher: Signals, batch: Mapping[str, Tensor]) -> Tensor:
    """A scalar, the mean over outputs, rows, unpadded tokens and dimensions."""
    terms: list[Tensor] = []
    for name, given in student.outputs.items():
        square = (given.float() - teacher.outputs[name].float()) ** 2
        per_token = square.dim() >= 2 and square.shape[:2] == student.mask.shape and (
            square.dim() == 3 or name.endswith("_logits")
        )  # fmt: skip
        terms.append((square[student.mask.bool()] if per_token else square).mean())
    return torch.stack(terms).mean()
