"""BERT-of-Theseus: the student's layers take the places of the teacher's while the whole goes on working.

The teacher's layers are cut into as many parts as the student has layers. For each batch every part is replaced by the
student's layer with probability p, independently, and the mixed model learns the task alone:

    y_i+1 = r_i scc_i(y_i) + (1 - r_i) prd_i(y_i),   r_i ~ Bernoulli(p)
    p = min(1, growth * t + probability),            t the share of the training that is done

Only the student's layers (scc) learn. The teacher's layers (prd), and its embeddings and head, which the student takes
over, are frozen. Then the student is fine-tuned alone by a second distill step, with the method `supervised` or `kd`.

Xu et al., "BERT-of-Theseus: Compressing BERT by Progressive Module Replacing", 2020: section 3.1 for the modules, 3.2
for replacing and fine-tuning, 3.3 for p: constant with `growth = 0` (0.5 in the paper), or the curriculum; from where
its p is 1 the student learns alone. Where the student's layers do not divide the teacher's, part i ends with TinyBERT's
g(i), rounded up: six layers in four parts are 2, 1, 2, 1. Rows without labels (sentence embeddings) learn the mean
squared error to the teacher's outputs in the task's place. A batch in which nothing is replaced would teach nothing, so
its parts are drawn again. The draw depends on the seed and t alone: a run that goes on from a checkpoint, or on several
processes, replaces the same.
"""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from transformers import PreTrainedModel

from edgekit.errors import InputError
from edgekit.pipeline import families, models
from edgekit.pipeline.losses import cross_entropy
from edgekit.pipeline.losses._params import TRUTH
from edgekit.pipeline.methods import Lesson
from edgekit.pipeline.signals import Speaker, uniform_map
from edgekit.records import Record


class Params(Record):
    """The probability that a part is replaced, over the training."""

    probability: float = Field(default=0.3, ge=0.01, le=1)
    """At the start: b in the paper."""
    growth: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    """By how much it grows over the whole training, up to 1: k in the paper times the number of steps."""


class _Theseus(nn.Module):
    """The predecessor is held outside of the module's own parts, so no checkpoint stores it, and it runs without
    dropout."""

    def __init__(self, params: Params, lesson: Lesson, predecessor: PreTrainedModel) -> None:
        super().__init__()
        self.student: Speaker = lesson.student
        self.progress = 0.0
        self._params, self._seed, self._teachers = params, lesson.seed, lesson.teachers
        self._predecessor = (_layers(predecessor).requires_grad_(False),)
        self._parts = parts(len(_layers(self.student.model)), len(_layers(predecessor)))

    def forward(self, **batch: Any) -> dict[str, Any]:
        """`loss`, and `terms`."""
        student, own = self.student.model, _layers(self.student.model)
        before = self._predecessor[0].to(student.device)
        gone = replaced(self._params, self.progress, self._seed, len(self._parts))
        mixed: list[nn.Module] = []
        for layer, part, is_gone in zip(own, self._parts, gone, strict=True):
            mixed += [layer] if is_gone else [before[i] for i in part]
        encoder, name = families.stack(student)
        setattr(encoder, name, nn.ModuleList(mixed))
        try:
            loss = self._loss(student, batch)
        finally:
            setattr(encoder, name, own)
        return {"loss": loss, "terms": {"task": loss.detach()}}

    def _loss(self, mixed: PreTrainedModel, batch: Mapping[str, Tensor]) -> Tensor:
        inputs = {name: batch[name] for name in models.input_names(mixed)}
        outputs = self.student.exportable.outputs(mixed(**inputs), inputs)
        if any(name in batch for name in TRUTH.values()):
            return cross_entropy.of_outputs(outputs, batch.get("attention_mask"), batch)
        its = self._teachers[0](batch).outputs
        return torch.stack([nn.functional.mse_loss(outputs[name].float(), its[name].float()) for name in its]).mean()


def parts(student: int, teacher: int) -> tuple[range, ...]:
    """The teacher's layers (from 0) that each of the student's layers stands for.

    >>> parts(3, 6), [len(part) for part in parts(4, 6)]
    ((range(0, 2), range(2, 4), range(4, 6)), [2, 1, 2, 1])
    """
    ends = (0, *uniform_map(student, teacher))
    return tuple(range(start, end) for start, end in pairwise(ends))


def replaced(params: Params, progress: float, seed: int, number: int) -> list[bool]:
    """Which of `number` parts the student's layers stand in for at `progress`, 0 to 1, through the training.

    Each with probability p; a draw of none is drawn again.
    """
    probability = min(1.0, params.growth * progress + params.probability)
    random = np.random.default_rng((seed, int(progress * 2**52)))
    while not (gone := random.random(number) < probability).any():
        pass
    return gone.tolist()


def refusal(params: Params, config: Mapping[str, Any]) -> str | None:
    """Why a model with this config.json has no layers to replace, and what would work; `None` where it has."""
    name = str(config.get("model_type"))
    known = [each for each, family in families.FAMILIES.items() if not family.shared]
    if name in known:
        return None
    why = "has one set of weights for all layers" if name in families.FAMILIES else "is not known"
    return f'theseus: the family "{name}" {why}, so no layer can be replaced; these can: {", ".join(known)}'


def objective(params: Params, lesson: Lesson) -> nn.Module:
    """The module that `training.train` trains. The student gets the teacher's embeddings and head, frozen. Raises
    `InputError` where `refusal` says why, and for a student and a teacher that do not fit together."""
    student = lesson.student.model
    if refused := refusal(params, student.config.to_dict()):
        raise InputError(refused)
    if len(lesson.teachers) != 1 or lesson.teachers[0].alignment:
        raise InputError(
            "theseus: takes one teacher, the model whose layers are replaced, with the student's tokenizer"
        )
    (teacher,) = lesson.teachers
    predecessor = models.load(teacher.folder, teacher.kind, teacher.labels)
    mine, its = _around(student), _around(predecessor)
    unlike = [name for name in sorted(mine.keys() | its.keys()) if _shape(mine, name) != _shape(its, name)]
    if unlike or student.config.model_type != predecessor.config.model_type:
        found = f"{unlike[0]}: {_shape(mine, unlike[0])} and {_shape(its, unlike[0])}" if unlike else "another family"
        raise InputError(
            "theseus: the student's layers must fit between the teacher's embeddings and head, but these are unlike "
            f"({found}); take a student with fewer of the teacher's own layers: layers = ..., without student"
        )
    if len(_layers(student)) > len(_layers(predecessor)):
        raise InputError(
            f"theseus: the student has {len(_layers(student))} layers, the teacher {len(_layers(predecessor))}; ask "
            "for as many or fewer"
        )
    with torch.no_grad():
        for name, parameter in mine.items():
            parameter.copy_(its[name]).requires_grad_(False)
    return _Theseus(params, lesson, predecessor)


def _layers(model: PreTrainedModel) -> nn.ModuleList:
    encoder, name = families.stack(model)
    return getattr(encoder, name)


def _around(model: PreTrainedModel) -> dict[str, nn.Parameter]:
    """The parameters that belong to no layer."""
    inside = {id(parameter) for parameter in _layers(model).parameters()}
    return {name: parameter for name, parameter in model.named_parameters() if id(parameter) not in inside}


def _shape(parameters: Mapping[str, Tensor], name: str) -> list[int] | None:
    return [*parameters[name].shape] if name in parameters else None
