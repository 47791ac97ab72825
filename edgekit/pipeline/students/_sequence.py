"""What the students of `sequences` share: embeddings that start from the model's."""

from collections.abc import Mapping
from typing import Any

import torch
from pydantic import Field
from transformers import PreTrainedModel

from edgekit.pipeline import families, models, sequences
from edgekit.pipeline.students import _shape
from edgekit.records import Kind, Record


class Size(Record):
    """Layers of `width` features above embeddings of width `embedding`."""

    layers: int = Field(default=1, ge=1)
    width: int = Field(default=256, ge=2)
    """Of the states."""
    embedding: int | None = Field(default=None, ge=1)
    """Of the word embeddings, which start from the model's; `None`: as wide as the model's."""


def config(size: Size, values: Mapping[str, Any], cell: Any, sizes: tuple[int, ...] = ()) -> Mapping[str, Any]:
    """The student's config.json."""
    full: Any = families.full(values)
    return sequences.Config(
        cell=cell, vocab_size=full.vocab_size, embedding_size=size.embedding or full.hidden_size,
        hidden_size=size.width, num_hidden_layers=size.layers, sizes=sizes, pad_token_id=full.pad_token_id,
        id2label=values.get("id2label"), label2id=values.get("label2id"),
    ).to_dict()  # fmt: skip


@torch.no_grad()
def build(values: Mapping[str, Any], model: PreTrainedModel, kind: Kind) -> PreTrainedModel:
    """The model that the config.json `values` tells of, with `model`'s word embeddings."""
    student: Any = models.new(sequences.Config(**values), kind)
    _shape.start_words(student.get_input_embeddings(), model)
    return student
