"""Several tasks into one student: a shared encoder, a head and a teacher for each task, a batch always of one task.

    p(task d) ~ |d|^tau                                the next batch is of task d with this probability
    L = sum over losses of weight * loss( student's head d, teacher d )

|d| is the number of training rows of task d: tau = 1 draws rows alike, wherever they are from; 0 draws tasks alike. The
layers train in every step, a head in its own task's only. TextBrewer's `MultiTaskDistiller` (Yang et al. 2020) does so;
the draw with |d|^tau is that of Stickland and Murray, "BERT and PALs", 2019, section 3.1 (their alpha).

The further tasks are a distill step's `also`. Each is taught with `losses` unless it has losses of its own.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from pydantic import Field
from torch import nn

from edgekit.errors import InputError
from edgekit.pipeline import joint
from edgekit.pipeline.methods import Lesson, kd
from edgekit.pipeline.training import layout
from edgekit.records import Record, Use

SEVERAL_TASKS = True
"""It needs the further tasks of a distill step, its `also`."""


class Params(Record):
    """`losses`: as of `kd`, for every task that has none of its own. `tau`: how much the number of rows counts."""

    losses: tuple[Use, ...] = Field(default=(Use(name="kl"),), min_length=1)
    tau: float = Field(default=1.0, ge=0, le=1)


class _Together(nn.Module):
    """Its own parts are the recipe's task (with the encoder) and what only the further tasks have: no weight twice."""

    def __init__(self, params: Params, lesson: Lesson) -> None:
        super().__init__()
        self.tau = params.tau
        lessons = {"": lesson, **{further.name: further.lesson for further in lesson.also}}
        own = {further.name: further.losses or params.losses for further in lesson.also}
        tasks = [
            kd.objective(kd.Params(losses=own.get(name, params.losses)), replace(each, also=()))
            for name, each in lessons.items()
        ]
        sizes = [len(each.features) for each in lessons.values()]
        self.names = tuple(lessons)
        self.starts = [sum(sizes[:number]) for number in range(len(sizes) + 1)]
        self.task, self._further = tasks[0], tuple(tasks[1:])
        self.heads = nn.ModuleList(nn.ModuleList(joint.head(each.student.model)) for each in self._further)
        self.projections = nn.ModuleList(each.projections for each in self._further)

    @property
    def student(self) -> Any:
        """The recipe's own task's."""
        return self.task.student

    @property
    def progress(self) -> float:
        """The share of the training that is done."""
        return self.task.progress

    @progress.setter
    def progress(self, share: float) -> None:
        for task in (self.task, *self._further):
            task.progress = share

    def train(self, mode: bool = True) -> "_Together":
        """All tasks' modules, also those that belong to no part of this one."""
        super().train(mode)
        for task in self._further:
            task.train(mode)
        return self

    def layout(self, lengths: Sequence[int], batch_size: int, epochs: float, seed: int) -> list[list[int]]:
        """The batches of a whole run, each of one task: each task's rows as `training.layout` has them, over and over,
        drawn by the tasks' sizes."""
        sizes = np.diff(self.starts)
        total = max(1, round(epochs * sum(-(-int(size) // batch_size) for size in sizes)))
        shares = sizes**self.tau / (sizes**self.tau).sum()
        drawn = np.random.default_rng(seed).choice(len(sizes), size=total, p=shares)
        batches: list[list[int]] = [[]] * total
        for number, (start, end) in enumerate(zip(self.starts, self.starts[1:], strict=False)):
            at = np.flatnonzero(drawn == number)
            if len(at):
                own = layout(lengths[start:end], batch_size, len(at) / -(-(end - start) // batch_size), seed + number)
                for place, batch in zip(at.tolist(), own, strict=True):
                    batches[place] = [start + row for row in batch]
        return batches

    def forward(self, **batch: Any) -> dict[str, Any]:
        """`loss` of the batch's task, and `terms` before their weights, with the task's name."""
        number = bisect_right(self.starts, int(batch["index"][0])) - 1
        task = (self.task, *self._further)[number]
        found = task(**{**batch, "index": batch["index"] - self.starts[number]})
        name = self.names[number]
        terms = {f"{name} {term}".strip(): value for term, value in found["terms"].items()}
        return {"loss": found["loss"], "terms": terms}


def objective(params: Params, lesson: Lesson) -> nn.Module:
    """The module that `training.train` trains. Raises `InputError` where there is one task only."""
    if not lesson.also:
        raise InputError("multi_task: there is one task only; name further ones in the distill step's also, or use kd")
    return _Together(params, lesson)
