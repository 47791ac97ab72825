"""Weight sharing across layers and factorised embeddings: a stock ALBERT with the model's tokenizer.

Lan, Chen, Goodman, Gimpel, Sharma and Soricut, "ALBERT: A Lite BERT for Self-supervised Learning of Language
Representations", 2020. One layer's weights are applied `layers` times (section 3.1, cross-layer parameter sharing),
and the embeddings are [vocabulary, E] [E, H] in place of [vocabulary, H] (factorised embedding parameterisation):

    student = { name = "albert", layers = 6, width = 312, heads = 12, neurons = 1200 }

The file is small, the latency is that of `layers` layers. `groups` layers have weights of their own, each group a run
of layers / groups neighbours.
"""

from collections.abc import Mapping
from typing import Any

from pydantic import Field
from transformers import AlbertConfig, PreTrainedModel

from edgekit.pipeline import families, models
from edgekit.pipeline.students import _shape
from edgekit.records import Kind


class Params(_shape.Shape):
    """The shape, the width of the embeddings, and how many layers have weights of their own."""

    embedding: int = Field(default=128, ge=1)
    groups: int = Field(default=1, ge=1)


def refusal(params: Params, config: Mapping[str, Any]) -> str | None:
    """Why no such student can be made; `None` where one can."""
    if params.layers % params.groups:
        return (
            f"layers = {params.layers} is not a multiple of groups = {params.groups}; groups have equally many layers"
        )
    return _shape.refusal(params, config)


def config(params: Params, config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The student's config.json."""
    shape = _shape.shaped(params, config)
    return AlbertConfig(
        **shape, embedding_size=params.embedding, num_hidden_groups=params.groups, inner_group_num=1,
        classifier_dropout_prob=shape["hidden_dropout_prob"],
    ).to_dict()  # fmt: skip


def build(params: Params, model: PreTrainedModel, kind: Kind) -> PreTrainedModel:
    """A stock ALBERT for `model`'s token ids and labels."""
    student = models.new(families.full(config(params, model.config.to_dict())), kind)
    if params.start == "svd":
        _shape.start_embeddings(student, model)
    return student
