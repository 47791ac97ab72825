"""Knowledge distillation: the weighted sum of any losses between a student and one frozen teacher.

    L = sum over losses of weight(t) * loss(student, teacher),  t the share of the training that is done

With `kl`, `hidden_mse` and `attention_mse` it is TinyBERT's task distillation in one stage. A loss with a `projection`
compares W H_s with the teacher's states, W [teacher's width, student's width] learnt with the student and then dropped.
"""

from dataclasses import replace
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from edgekit import plugins
from edgekit.errors import InputError
from edgekit.pipeline.methods import Lesson
from edgekit.pipeline.signals import OUTPUTS_ONLY, Signals, Wanted
from edgekit.records import Kind, Record, Use


class Params(Record):
    """`losses`: each by name with its `weight` and parameters."""

    losses: tuple[Use, ...] = Field(min_length=1)


class Distillation(nn.Module):
    """The student trains; the teacher is held outside of the module's own parts, so no checkpoint stores it."""

    def __init__(self, params: Params, lesson: Lesson) -> None:
        super().__init__()
        if len(lesson.teachers) != 1:
            raise InputError(f"kd: takes one teacher, found {len(lesson.teachers)}; use the method multi_teacher")
        (teacher,) = self._teachers = lesson.teachers
        self.student = lesson.student
        self.progress = 0.0
        self._losses = [plugins.use("losses", use, "kd: losses") for use in params.losses]
        if teacher.features is not None:
            for loss, its in self._losses:
                _refuse_tokens(loss, loss.reads(its, self.student.depth, teacher.depth), lesson.kind)
        self.wanted = frozenset(
            part for loss, its in self._losses for part in loss.reads(its, self.student.depth, teacher.depth)
        )
        self.projections = nn.ModuleList(
            projection(getattr(its, "projection", None), self.student.width, teacher.width) for _, its in self._losses
        )

    def forward(self, **batch: Any) -> dict[str, Any]:
        """`loss`, and `terms` before their weights."""
        (teacher,) = self._teachers
        wisdom, said = teacher(batch, self.wanted), self.student(batch)
        terms: dict[str, Tensor] = {}
        total: list[Tensor] = []
        for number, ((loss, its), matrix) in enumerate(zip(self._losses, self.projections, strict=True), 1):
            term = loss.loss(its, projected(compared(said, wisdom), matrix), wisdom, batch)
            terms[f"{number} {loss.__name__.rpartition('.')[2]}"] = term
            total.append(weight(its.weight, its.schedule, self.progress) * term)
        return {"loss": torch.stack(total).sum(), "terms": terms}


def compared(said: Signals, wisdom: Signals) -> Signals:
    """`said` without the tokens of which a teacher with a tokenizer of its own says nothing."""
    return replace(said, mask=wisdom.mask) if wisdom.mask.shape == said.mask.shape else said


def projection(name: str | None, student: int, teacher: int) -> nn.Module:
    """The map from the student's width to the teacher's: nothing, linear, or linear and an activation; `auto` is
    linear where the widths are unlike."""
    if name is None or (name == "auto" and student == teacher):
        return nn.Identity()
    linear = nn.Linear(student, teacher)
    nn.init.normal_(linear.weight, std=0.02)
    nn.init.zeros_(linear.bias)
    return nn.Sequential(linear, {"relu": nn.ReLU(), "tanh": nn.Tanh()}.get(name, nn.Identity()))


def projected(said: Signals, matrix: nn.Module) -> Signals:
    """`said` with its hidden states through `matrix`, each when it is asked for."""
    return said if isinstance(matrix, nn.Identity) else replace(said, hidden=_Projected(said.hidden, matrix))


class _Projected(dict[int, Tensor]):
    """Hidden states through a projection, computed once for the layers that a loss reads and for no others."""

    def __init__(self, hidden: Any, matrix: nn.Module) -> None:
        super().__init__(hidden)
        self._matrix = matrix
        self._done: dict[int, Tensor] = {}

    def __getitem__(self, layer: int) -> Tensor:
        if layer not in self._done:
            self._done[layer] = self._matrix(super().__getitem__(layer))
        return self._done[layer]


def _refuse_tokens(loss: Any, reads: Wanted, kind: Kind) -> None:
    """Refuse a loss that compares tokens with a teacher that has tokens of its own."""
    name = loss.__name__.rpartition(".")[2]
    if kind == "token-classification" and reads <= OUTPUTS_ONLY:
        return  # at the words' first tokens
    if reads and kind in ("token-classification", "question-answering"):
        raise InputError(
            f"kd: {name} compares tokens in a {kind} task, and the teacher's tokenizer is not the student's; take a "
            "teacher with the student's tokenizer"
        )
    if reads - OUTPUTS_ONLY and not getattr(loss, "WHOLE_ROWS", False):
        raise InputError(
            f"kd: {name} compares tokens, and the teacher's tokenizer is not the student's; use losses that compare "
            "whole rows: kl, soft_cross_entropy, output_mse or pkd"
        )


def weight(weight: float, schedule: str, progress: float) -> float:
    """A loss's weight at `progress` (0 to 1) through the training."""
    return weight * {"constant": 1.0, "linear_decay": 1 - progress, "linear_growth": progress}[schedule]


def objective(params: Params, lesson: Lesson) -> Distillation:
    """The module that `training.train` trains: a batch by name to `{"loss": scalar}`."""
    return Distillation(params, lesson)
