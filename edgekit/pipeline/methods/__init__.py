"""Methods: ways to train a student, one a file. A plugin holds a `Params` record and `objective`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from edgekit.records import Kind, Use
from edgekit.tasks import Feature


@dataclass(frozen=True)
class Lesson:
    """What a method teaches with. `student` is a `signals.Speaker` and `teachers` are `signals.Teacher`s, the recipe's
    own first; none where the teacher itself is trained."""

    student: Any
    teachers: tuple[Any, ...]
    features: Sequence[Feature]
    """What it will be trained on, in the student's tokens."""
    kind: Kind
    seed: int
    also: "tuple[Further, ...]" = ()
    """Further tasks for the same layers."""


@dataclass(frozen=True)
class Further:
    """A further task: its `lesson`, whose student has the same layers and another head, and the losses it wants."""

    name: str
    lesson: Lesson
    losses: tuple[Use, ...]


class Method(Protocol):
    """What a module in this folder holds."""

    Params: type[Any]

    def objective(self, params: Any, lesson: Lesson) -> Any:
        """A `torch.nn.Module` that holds the student and maps a batch (tensors by name) to `{"loss": scalar}`.

        It may also give `terms`, each part of the loss by name before its weight, with its gradient: the preflight
        compares those. A batch has, beside the model's inputs and labels, `index`: which of the features its rows are.
        An attribute `progress`, where it has one, is set before each step to the share of the training that is done,
        0 to 1. `WHOLE_TABLE = True` says that it reads the weights of word embeddings and does not only look tokens up:
        all of their rows are then trained, see `occurring`. What must outlive a kill is in parameters and buffers.
        """
        ...
