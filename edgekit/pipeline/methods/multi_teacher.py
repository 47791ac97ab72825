"""Several teachers of the same task and labels: the student learns from the outputs of all of them.

    average:  L = sum over losses of w * loss( z_s, sum_k a_k z_k )          one target, the mean of the logits
    each:     L = sum over losses of w * sum_k a_k loss( z_s, z_k )          a term a teacher

with the teachers' weights a_k scaled to the sum 1. The mean of the logits is TextBrewer's (Yang et al. 2020,
`MultiTeacherDistiller`), which multiplies the teachers' probabilities: one that is sure wins. You, Xu, Xu, Tao,
"Learning from Multiple Teacher Networks", 2017, section 3.1 average the softened probabilities; as the divergence from
a mixture has the gradient of the mixed divergences, that is `average = false` with the loss `kl`.

The recipe's own teacher comes first, then the step's `teachers` in their order, of any family, width and tokenizer;
several are compared by their outputs only. One of weight 0 is not asked: with `weights = [0, 1]` the student learns
from the other teacher alone, which is then the method `kd` with all of its losses. Where a teacher has another
tokenizer, it has nothing to say of some tokens (see `alignment`): these are left out.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from edgekit import plugins
from edgekit.errors import InputError
from edgekit.pipeline.methods import Lesson, kd
from edgekit.pipeline.signals import OUTPUTS_ONLY, Signals
from edgekit.records import Record, Use

_DEFAULT = (Use(name="kl"),)


SEVERAL_TEACHERS = True


class Params(Record):
    """`losses`: on outputs, each by name with its `weight` and parameters. `weights`: one a teacher, the recipe's own
    first; `None`: all alike. `average`: of the teachers' outputs, before the losses; else each loss has a term a
    teacher."""

    losses: tuple[Use, ...] = Field(default=_DEFAULT, min_length=1)
    weights: tuple[float, ...] | None = None
    average: bool = True

    @field_validator("weights")
    @classmethod
    def _some(cls, weights: tuple[float, ...] | None) -> tuple[float, ...] | None:
        if weights is not None and (min(weights, default=0) < 0 or not 0 < sum(weights) < float("inf")):
            raise ValueError("weights are 0 or more, and at least one is more")
        return weights


class _Distillation(nn.Module):
    """The student trains; the teachers are held outside of the module's own parts, so no checkpoint stores them."""

    def __init__(self, params: Params, lesson: Lesson, teachers: Sequence[tuple[float, Any]]) -> None:
        super().__init__()
        self.student = lesson.student
        self.progress = 0.0
        self._average = params.average
        self._per_token = lesson.kind == "token-classification"
        self._teachers = teachers
        self._losses = [plugins.use("losses", use, "multi_teacher: losses") for use in params.losses]
        for use, (loss, its) in zip(params.losses, self._losses, strict=True):
            for _, teacher in self._teachers:
                if loss.reads(its, self.student.depth, teacher.depth) - OUTPUTS_ONLY:
                    raise InputError(
                        f"multi_teacher: {use.name} compares layers, several teachers are compared by their outputs "
                        "only; leave it out, or ask one teacher, by weights with a single number above 0"
                    )

    def forward(self, **batch: Any) -> dict[str, Any]:
        """`loss`, and `terms` before their weights."""
        heard = [(share, teacher(batch, OUTPUTS_ONLY)) for share, teacher in self._teachers]
        if self._average:
            heard = [(1.0, _mean(heard, self._per_token))]
        said = self.student(batch)
        terms: dict[str, Tensor] = {}
        total: list[Tensor] = []
        for number, (loss, its) in enumerate(self._losses, 1):
            asks = loss.reads(its, self.student.depth, heard[0][1].depth)
            term = self._term(loss, its, said, heard if asks else [(1.0, heard[0][1])], batch)
            terms[f"{number} {loss.__name__.rpartition('.')[2]}"] = term
            total.append(kd.weight(its.weight, its.schedule, self.progress) * term)
        return {"loss": torch.stack(total).sum(), "terms": terms}

    def _term(self, loss: Any, its: Any, said: Signals, heard: Sequence[tuple[float, Signals]], batch: Any) -> Tensor:
        return torch.stack([
            share * loss.loss(its, kd.compared(said, teacher), teacher, batch) for share, teacher in heard
        ]).sum()  # fmt: skip


def _asked(params: Params, lesson: Lesson) -> tuple[tuple[float, Any], ...]:
    """The teachers that are asked, each with its share."""
    count = len(lesson.teachers)
    if count < 2:
        raise InputError(
            f"multi_teacher: takes two teachers or more, found {count}; name further ones in a distill step's "
            "teachers, or use the method kd"
        )
    weights = params.weights or (1.0,) * count
    if len(weights) != count:
        raise InputError(
            f"multi_teacher: weights has {len(weights)} numbers, there are {count} teachers, the recipe's own first; "
            "give one a teacher"
        )
    asked = [(each / sum(weights), teacher) for each, teacher in zip(weights, lesson.teachers, strict=True) if each]
    if lesson.kind == "sentence-embedding":
        widths = {teacher.width for _, teacher in asked} | {lesson.student.width}
        if len(widths) > 1:
            raise InputError(
                "multi_teacher: the embeddings of the student and its teachers have the widths "
                f"{', '.join(map(str, sorted(widths)))}; take teachers and a student of one width"
            )
    return tuple(asked)


def _mean(heard: Sequence[tuple[float, Signals]], per_token: bool) -> Signals:
    """One teacher whose outputs are the weighted mean; of a token, of those that speak of it."""
    first = heard[0][1]
    if not per_token:
        means = {
            name: torch.stack([a * said.outputs[name].float() for a, said in heard]).sum(0) for name in first.outputs
        }
        return replace(first, outputs=means)
    shares = torch.stack([share * said.mask for share, said in heard])[..., None]
    logits = torch.stack([said.outputs["logits"].float() for _, said in heard])
    logits = (shares * logits).sum(0) / shares.sum(0).clamp(min=1e-9)
    return replace(first, outputs={"logits": logits}, mask=(shares[..., 0].sum(0) > 0).to(first.mask.dtype))


def objective(params: Params, lesson: Lesson) -> nn.Module:
    """The module that `training.train` trains. Raises `InputError` for fewer than two teachers, and for losses on
    layers where more than one is asked."""
    asked = _asked(params, lesson)
    if len(asked) == 1:
        return kd.objective(kd.Params(losses=params.losses), replace(lesson, teachers=(asked[0][1],)))
    return _Distillation(params, lesson, asked)
