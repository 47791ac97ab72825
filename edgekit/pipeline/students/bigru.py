"""A bidirectional GRU above word embeddings: a student of another kind (see `sequences`).

    student = { name = "bigru", width = 256, embedding = 128 }

Tang, Lu, Liu, Mou, Vechtomova and Lin, "Distilling Task-Specific Knowledge from BERT into Simple Neural Networks",
2019, teach a BiLSTM by the teacher's logits on many augmented examples; TextBrewer (Yang et al. 2020, section 4) a
BiGRU. The embeddings start from the model's, the rest at random. It has no attention: losses on outputs and hidden
states can teach it. In TFLite its recurrence is unrolled for each length, so converting takes minutes (two for one
layer of length 128); in int8 ONNX it is smaller but no faster, since there the recurrence is computed in float, so set
`must_be_faster = false` in the quantize step.
"""

from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedModel

from edgekit.pipeline.students import _sequence, _shape
from edgekit.records import Kind


class Params(_sequence.Size):
    """The size; half of `width` is each direction's."""


def refusal(params: Params, config: Mapping[str, Any]) -> str | None:
    """Why no such student can be made; `None` where one can."""
    if params.width % 2:
        return f"width = {params.width} is odd; each direction has half of it"
    return _shape.unread(config)


def config(params: Params, config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The student's config.json."""
    return _sequence.config(params, config, "gru")


def build(params: Params, model: PreTrainedModel, kind: Kind) -> PreTrainedModel:
    """A BiGRU for `model`'s token ids and labels."""
    return _sequence.build(config(params, model.config.to_dict()), model, kind)
