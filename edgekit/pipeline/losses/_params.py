"""What the parameters of several losses share: a weight, and which layers are compared."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, ValidationError, WrapValidator
from pydantic_core import PydanticCustomError

from edgekit.errors import InputError
from edgekit.pipeline.signals import uniform_map
from edgekit.records import Record


def either(message: str) -> WrapValidator:
    """One line for a value that is none of several kinds, in place of one for each kind."""

    def check(value: Any, handler: Any) -> Any:
        try:
            return handler(value)
        except ValidationError:
            raise PydanticCustomError("either", "{message}", {"message": message}) from None

    return WrapValidator(check)


Pair = tuple[int, int]
Pairs = Annotated[tuple[Pair, ...], Field(min_length=1)]
Layers = Annotated[
    Literal["uniform", "top", "bottom", "last"] | Pairs,
    either('take "uniform", "top", "bottom", "last", or pairs, [[student\'s layer, teacher\'s], ...]'),
]
Flow = tuple[Pair, Pair]
"""[[s1, s2], [t1, t2]]: two of the student's layers and the two of the teacher's that they are held against."""
Flows = Annotated[
    Literal["consecutive", "same"] | Annotated[tuple[Flow, ...], Field(min_length=1)],
    either('take "consecutive", "same", or pairs of pairs, [[[student\'s, its next], [teacher\'s, its next]], ...]'),
]
Projection = Literal["auto", "linear", "relu", "tanh"]
"""A linear map, alone or with an activation; `auto`: a linear one, where the widths are unlike, else none."""


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

    projection: Projection | None = None


class Flowing(Weighted):
    """`layers`: `[[[s1, s2], [t1, t2]], ...]`, two of the student's layers and the two of the teacher's that they are
    held against, 0 for the embeddings; or by TinyBERT's uniform map g, `consecutive`, from each of the student's layers
    to the next, [[m - 1, m], [g(m - 1), g(m)]], or `same`, each layer with itself, [[m, m], [g(m), g(m)]]."""

    layers: Flows


def pairs(layers: Layers, student: int, teacher: int, lowest: int = 1) -> tuple[Pair, ...]:
    """(student's, teacher's) layers, from 1, of models of `student` and `teacher` layers.

    Jiao et al. 2020, section 4.4: uniform g(m) = m N / M, top g(m) = m + N - M, bottom g(m) = m. `lowest` is 0 where
    the embeddings can be compared too. Raises `InputError` for a layer that does not exist, and for none at all.

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
            for pair in layers:
                _exists(pair, student, teacher, lowest)
            return layers


def flows(layers: Flows, student: int, teacher: int) -> tuple[Flow, ...]:
    """The pairs of layers of a `Flowing` loss, of models of `student` and `teacher` layers.

    Raises `InputError` for a layer that does not exist.

    >>> flows("consecutive", 2, 6)
    (((0, 1), (0, 3)), ((1, 2), (3, 6)))
    """
    if isinstance(layers, str):
        matched = ((0, 0), *pairs("uniform", student, teacher))
        ends = zip(matched[1:] if layers == "same" else matched, matched[1:], strict=layers == "same")
        return tuple(((s1, s2), (t1, t2)) for (s1, t1), (s2, t2) in ends)
    for (s1, s2), (t1, t2) in layers:
        _exists((s1, t1), student, teacher, 0)
        _exists((s2, t2), student, teacher, 0)
    return layers


def _exists(pair: Pair, student: int, teacher: int, lowest: int) -> None:
    mine, its = pair
    if not (lowest <= mine <= student and lowest <= its <= teacher):
        raise InputError(
            f"layers: [{mine}, {its}] matches nothing: the student has layers {lowest} to {student}, the "
            f"teacher {lowest} to {teacher}"
        )


def same_tokens(name: str, mine: torch.Tensor, its: torch.Tensor, dimension: int = 1) -> None:
    """Refuse states of unlike tokens: those of a teacher that reads a text in tokens of its own."""
    if mine.shape[dimension] != its.shape[dimension]:
        raise InputError(
            f"{name}: the student's rows have {mine.shape[dimension]} tokens, the teacher's "
            f"{its.shape[dimension]}: they have unlike tokenizers; compare whole rows, with kl, output_mse or pkd"
        )


def same_width(name: str, mine: torch.Tensor, its: torch.Tensor) -> None:
    """Refuse states of unlike width."""
    if mine.shape[-1] != its.shape[-1]:
        raise InputError(
            f"{name}: the student's states are {mine.shape[-1]} wide, the teacher's {its.shape[-1]}; give this loss "
            'projection = "auto"'
        )


def over_tokens(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The mean of `values` [batch, length] over unpadded tokens, with no copy of the states that they came from."""
    real = mask.bool()
    return values.masked_fill(~real, 0).sum() / real.sum().clamp(min=1)


def product(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """`one @ other` in float32, whatever they are and whether or not autocast is on."""
    with torch.autocast(one.device.type, enabled=False):
        return one.float() @ other.float()


def dot(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """The sum of all products of two tensors of one shape, in float32 and with no tensor of the products."""
    with torch.autocast(one.device.type, enabled=False):
        return torch.dot(one.flatten(), other.flatten())


def mean_square(mine: torch.Tensor, its: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
    """The mean of (mine - its)^2 where `keep` (which may have dimensions of size 1) is true."""
    difference = (mine.float() - its.float()).mul_(keep.float())  # much quicker than masked_fill
    return dot(difference, difference) / (keep.sum().clamp(min=1) * (difference.numel() / keep.numel()))


TRUTH: Mapping[str, str] = {"logits": "labels", "start_logits": "start_positions", "end_logits": "end_positions"}
"""Which labels of a batch an output is held against."""
POSITIONS = frozenset({"start_logits", "end_logits"})
"""Outputs that are one distribution over the positions of a row, [batch, length]."""
