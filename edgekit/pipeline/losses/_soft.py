"""What the losses on outputs share: which distributions count, the teacher's mistakes, and the temperature of each.

A model's output is a table of distributions, one a row of a batch (text or image classification, an embedding), one a
token, or for answers one over the positions of a row. A loss takes a step of those that count, [n, classes].

Probability shift: where the teacher's most likely label is not the true one, the two probabilities change places, so
that it teaches no mistake. (TextBrewer; Wen et al.'s "knowledge adjustment" by probability shift.)

Dynamic temperature. Wen, Lai, Qian, "Preparing Lessons: Improve Knowledge Distillation with Better Supervision", 2019
(arXiv 1911.07471), section "Dynamic temperature distillation": hard examples get a lower temperature, so sharper
labels,

    T_x = T + beta * (mean of w - w_x)
    flsw (focal-loss style):            w_x = (1 - cos(z_s, z_t))^gamma
    cwsm (confidence-weighted, by the student's greatest probability):  w_x = 1 / max softmax(z_s)

with the two small constants of TextBrewer against a division by 0. Neither source says what to do where T_x falls to 0
or below; here it stops at a tenth of T.
"""

from collections.abc import Iterator, Mapping
from typing import Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from edgekit.errors import InputError
from edgekit.pipeline.losses._params import POSITIONS, TRUTH, Weighted, same_tokens
from edgekit.pipeline.signals import Signals


class Soft(Weighted):
    """`temperature` of both models, `temperature_schedule` how it differs from one distribution to another, by `beta`
    and (flsw only) `gamma`. `probability_shift`: the teacher's greatest probability goes to the true label.
    `mask`: `unpadded` tokens count, or only those with `labels` other than -100 (rows likewise)."""

    temperature: float = Field(default=2.0, gt=0, allow_inf_nan=False)
    temperature_schedule: Literal["constant", "flsw", "cwsm"] = "constant"
    beta: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    gamma: float = Field(default=2.0, gt=0, allow_inf_nan=False)
    probability_shift: bool = False
    mask: Literal["unpadded", "labels"] = "unpadded"


class Compared(NamedTuple):
    """One output of both models: the logits that count, [n, classes] in float32, and the temperature of each, [n, 1].

    `possible`: [n, classes], which classes there are; `None`: all.
    """

    student: Tensor
    teacher: Tensor
    temperature: Tensor
    possible: Tensor | None

    def log_probabilities(self) -> tuple[Tensor, Tensor]:
        """log softmax(z_s / T) and log softmax(z_t / T), [n, classes]."""
        mine, its = (_only(z / self.temperature, self.possible) for z in (self.student, self.teacher))
        return mine.log_softmax(-1), its.log_softmax(-1)

    @property
    def rows(self) -> int:
        """n, at least 1, to divide by."""
        return max(1, len(self.student))


def compared(
    name: str, params: Soft, student: Signals, teacher: Signals, batch: Mapping[str, Tensor]
) -> Iterator[Compared]:
    """What the loss `name` compares, one a output of the model. Raises `InputError` where labels are needed and there
    are none, or the two models' outputs have unlike shapes."""
    real = student.mask.bool()
    for output, given in student.outputs.items():
        mine, its = given, teacher.outputs[output]
        if mine.shape != its.shape:
            _refuse(name, output, mine, its)
        truth = _truth(name, params, batch, output)
        possible = real if output in POSITIONS else None
        counts = [real] if mine.dim() == 3 else []  # a distribution for each token
        if params.mask == "labels" and truth is not None:
            counts.append(truth != -100)
        if counts:
            keep = counts[0] if len(counts) == 1 else counts[0] & counts[1]
            chosen = keep.flatten().nonzero().squeeze(-1)
            mine, its = _take(mine, keep, chosen), _take(its, keep, chosen)
            truth = None if truth is None else _take(truth, keep, chosen)
            possible = None if possible is None else _take(possible, keep, chosen)
        mine, its = mine.float(), its.detach().float()
        if params.probability_shift and truth is not None:
            its = shifted(_only(its, possible), truth)  # nor is padding a mistake of the teacher's
        yield Compared(mine, its, temperatures(params, mine.detach(), its, possible), possible)


def _take(each: Tensor, keep: Tensor, chosen: Tensor) -> Tensor:
    return each.flatten(0, keep.dim() - 1).index_select(0, chosen)


def shifted(teacher: Tensor, truth: Tensor) -> Tensor:
    """`teacher` [n, classes] with its greatest logit and that of `truth` [n] in each other's place; a label below 0
    leaves a row as it is."""
    top = teacher.max(-1, keepdim=True)
    place = torch.where(truth < 0, top.indices.squeeze(-1), truth).unsqueeze(-1)
    return teacher.scatter(-1, top.indices, teacher.gather(-1, place)).scatter(-1, place, top.values)


@torch.no_grad()
def temperatures(params: Soft, student: Tensor, teacher: Tensor, possible: Tensor | None = None) -> Tensor:
    """The temperature of each distribution, [n, 1] (or [1, 1] where it is constant), of logits [n, classes]."""
    base = params.temperature
    match params.temperature_schedule:
        case "constant":
            return student.new_full((1, 1), base)
        case "flsw":
            mine, its = (z if possible is None else z.masked_fill(~possible, 0) for z in (student, teacher))
            mine, its = (z / (z.norm(dim=-1, keepdim=True) + 1e-4) for z in (mine, its))
            # rounding may take a cosine above 1, and a negative number has no fractional power
            w = (1 - (mine * its).sum(-1, keepdim=True)).clamp(min=0) ** params.gamma
        case "cwsm":
            w = 1 / (_only(student, possible).softmax(-1).amax(-1, keepdim=True) + 1e-3)
    return (base + params.beta * (w.mean() - w)).clamp(min=base / 10)


def _only(logits: Tensor, possible: Tensor | None) -> Tensor:
    return logits if possible is None else logits.masked_fill(~possible, torch.finfo(logits.dtype).min)


def _truth(name: str, params: Soft, batch: Mapping[str, Tensor], output: str) -> Tensor | None:
    if not params.probability_shift and params.mask != "labels":
        return None
    found = batch.get(TRUTH.get(output, ""))
    if found is None:
        asked = "probability_shift = true" if params.probability_shift else 'mask = "labels"'
        raise InputError(f"{name}: {asked} needs labels, and these rows have none; leave it out")
    return found


def _refuse(name: str, output: str, mine: Tensor, its: Tensor) -> None:
    if mine.dim() == its.dim() and mine.shape[0] == its.shape[0] and (mine.dim() == 3 or output in POSITIONS):
        same_tokens(name, mine, its)
    raise InputError(
        f"{name}: the student's {output} have the shape {[*mine.shape]}, the teacher's {[*its.shape]}; their "
        "labels, or the width of their embeddings, must be the same"
    )
