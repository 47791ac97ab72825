"""Supervised training: hard labels alone, with no teacher.

    L = cross-entropy of the model's predictions with the labels, the mean over rows or labelled tokens

What a teach step trains with, and the "no distillation" that every other method is held against.
"""

from typing import Any

from torch import Tensor, nn

from edgekit.errors import InputError
from edgekit.pipeline.losses import cross_entropy
from edgekit.pipeline.methods import Lesson
from edgekit.records import Record


class Params(Record):
    """No options."""


class _Supervised(nn.Module):
    def __init__(self, lesson: Lesson) -> None:
        super().__init__()
        self.student = lesson.student

    def forward(self, **batch: Any) -> dict[str, Tensor]:
        said = self.student(batch)
        return {"loss": cross_entropy.of_outputs(said.outputs, said.mask, batch)}


def objective(params: Params, lesson: Lesson) -> nn.Module:
    """The module that `training.train` trains. Raises `InputError` where the rows have no labels."""
    if not lesson.features[0].labels:
        raise InputError("supervised: these rows have no labels to train on; use another method, or no training")
    return _Supervised(lesson)
