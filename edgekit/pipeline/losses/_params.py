"""What the parameters of several losses share: a weight, and which layers are compared."""

from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import Field

from edgekit.errors import InputError
from edgekit.pipeline.signals import uniform_map
from edgekit.records import Record

Layers = Literal["uniform", "top", "bottom", "last"] | tuple[tuple[int, int], ...]


class Weighted(Record):
    """`weight` of a loss in the sum; `schedule`: it stays, falls linearly to 0, or rises linearly from 0."""

    weight: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    schedule: Literal["constant", "linear_decay", "linear_growth"] = "constant"


class Matched(Weighted):
    """`layers`: the pairs that are compared, `[[student's, teacher's], ...]`, 0 for the embeddings and then from 1, or
    a map: TinyBERT's uniform one, the teacher's top or bottom layers, or the last layer of each."""

    layers: Layers = "uniform"


class Projected(Matched):
    """`projection`: a learnt map of the student's states to the teacher's width, one for all pairs of this loss."""

    projection: Literal["linear", "relu", "tanh"] | None = None


def pairs(layers: Layers, student: int, teacher: int, lowest: int = 1) -> tuple[tuple[int, int], ...]:
    """(student's, teacher's) layers, from 1, of models of `student` and `teacher` layers.

    Jiao et al. 2020, section 4.4: uniform g(m) = m N / M, top g(m) = m + N - M, bottom g(m) = m. `lowest` is 0 where
    the embeddings can be compared too. Raises `InputError` for a layer that does not exist.

    >>> pairs("uniform", 3, 6), pairs("top", 2, 6), pairs("last", 3, 6)
    (((1, 2), (2, 4), (3, 6)), ((1, 5), (2, 6)), ((3, 6),))
    """
    match layers:
        case "uniform":
            return tuple(enumerate(uniform_map(student, teacher), 1))
        case "last":
            return ((student, teacher),)
        case "top" | "bottom":
            if student > teacher:
                raise InputError(f'layers = "{layers}": the student has {student} layers, the teacher only {teacher}')
            return tuple((m, m + (teacher - student if layers == "top" else 0)) for m in range(1, student + 1))
        case _:
            for mine, its in layers:
                if not (lowest <= mine <= student and lowest <= its <= teacher):
                    raise InputError(
                        f"layers: [{mine}, {its}] matches nothing: the student has layers {lowest} to {student}, the "
                        f"teacher {lowest} to {teacher}"
                    )
            return layers


def same_width(name: str, mine: torch.Tensor, its: torch.Tensor) -> None:
    """Refuse states of unlike width."""
    if mine.shape[-1] != its.shape[-1]:
        raise InputError(
            f"{name}: the student's states are {mine.shape[-1]} wide, the teacher's {its.shape[-1]}; give this loss "
            'projection = "linear"'
        )


TRUTH: Mapping[str, str] = {"logits": "labels", "start_logits": "start_positions", "end_logits": "end_positions"}
"""Which labels of a batch an output is held against."""
