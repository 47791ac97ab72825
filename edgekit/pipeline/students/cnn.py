"""Convolutions above word embeddings: a student of another kind, and the fastest (see `sequences`).

    student = { name = "cnn", width = 300, sizes = [3, 4, 5], embedding = 128 }

is Kim, "Convolutional Neural Networks for Sentence Classification", 2014, section 2: filters of 3, 4 and 5 words,
ReLU, the greatest value over time, dropout, a linear head; `layers` such layers keep the length, so tokens can be
classified too. The embeddings start from the model's, the rest at random. It has no attention: losses on outputs and
hidden states can teach it.
"""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field
from transformers import PreTrainedModel

from edgekit.pipeline.students import _sequence, _shape
from edgekit.records import Kind


class Params(_sequence.Size):
    """The size, and the filters'."""

    sizes: tuple[Annotated[int, Field(ge=1, le=32)], ...] = Field(default=(3, 4, 5), min_length=1)
    """How many tokens each kind of filter sees; `width` is shared out among them."""


def refusal(params: Params, config: Mapping[str, Any]) -> str | None:
    """Why no such student can be made; `None` where one can."""
    if params.width < len(params.sizes):
        return f"width = {params.width} is less than the {len(params.sizes)} sizes of filters it is shared out among"
    return _shape.unread(config)


def config(params: Params, config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The student's config.json."""
    return _sequence.config(params, config, "convolution", params.sizes)


def build(params: Params, model: PreTrainedModel, kind: Kind) -> PreTrainedModel:
    """Convolutions for `model`'s token ids and labels."""
    return _sequence.build(config(params, model.config.to_dict()), model, kind)
