"""A narrower student: a stock BERT of any shape, or with `embedding` a stock ELECTRA encoder.

    student = { name = "bert", layers = 4, width = 312, heads = 12, neurons = 1200 }

is TinyBERT's 4-layer student (Jiao et al., "TinyBERT", 2020, section 4.2). Its layers start at random, so it needs a
pretrain step or many examples; its embeddings start from the model's (see `_shape`). In a small model they are most of
it: 9.5 of those 14.5 M parameters. `embedding = 128` makes the table [vocabulary, 128] with a projection to `width`
(Lan et al., "ALBERT", 2020, section 3.1), which stock BERT does not have and stock ELECTRA has.
"""

from collections.abc import Mapping
from typing import Any

from pydantic import Field
from transformers import BertConfig, ElectraConfig, PreTrainedModel

from edgekit.pipeline import families, models
from edgekit.pipeline.students import _shape
from edgekit.records import Kind


class Params(_shape.Shape):
    """The shape, and the width of the embeddings."""

    embedding: int | None = Field(default=None, ge=1)
    """Of the embeddings, with a projection behind them; `None`: the hidden states' own."""


def refusal(params: Params, config: Mapping[str, Any]) -> str | None:
    """Why no such student can be made; `None` where one can."""
    return _shape.refusal(params, config)


def config(params: Params, config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The student's config.json: a BERT's, or with `embedding` an ELECTRA's."""
    shape = _shape.shaped(params, config)
    if params.embedding:
        return ElectraConfig(**shape, embedding_size=params.embedding).to_dict()
    return BertConfig(**shape).to_dict()


def build(params: Params, model: PreTrainedModel, kind: Kind) -> PreTrainedModel:
    """A stock BERT or ELECTRA for `model`'s token ids and labels."""
    student = models.new(families.full(config(params, model.config.to_dict())), kind)
    if params.start == "svd":
        _shape.start_embeddings(student, model)
    return student
