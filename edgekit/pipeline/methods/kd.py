"""Knowledge distillation: the weighted sum of any losses between a student and one frozen teacher.

    L = sum over losses of weight * loss(student, teacher)

With `kl`, `hidden_mse` and `attention_mse` it is TinyBERT's task distillation in one stage.
"""

from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from edgekit import plugins
from edgekit.pipeline.signals import Speaker
from edgekit.records import Record, Use


class Params(Record):
    """`losses`: each by name with its `weight` and parameters."""

    losses: tuple[Use, ...] = Field(min_length=1)


class _Distillation(torch.nn.Module):
    """The student trains; the teacher is held outside of the module's own parts, so no checkpoint stores it."""

    def __init__(self, params: Params, student: Speaker, teacher: Speaker) -> None:
        super().__init__()
        self.student = student
        self._teacher = (teacher,)
        self._losses = [plugins.use("losses", use, "kd: losses") for use in params.losses]

    def forward(self, **batch: Any) -> dict[str, Tensor]:
        (teacher,) = self._teacher
        with torch.no_grad():
            wisdom = teacher(batch)
        said = self.student(batch)
        terms = [params.weight * loss.loss(params, said, wisdom, batch) for loss, params in self._losses]
        return {"loss": torch.stack(terms).sum()}


def objective(params: Params, student: Speaker, teacher: Speaker) -> torch.nn.Module:
    """The module that `training.train` trains: a batch by name to `{"loss": scalar}`."""
    teacher.eval().requires_grad_(False)
    return _Distillation(params, student, teacher)
