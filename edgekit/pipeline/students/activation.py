"""The model's own layers with a cheaper activation, and fewer of them where `layers` says so.

    student = { name = "activation", activation = "relu", layers = 3 }

GELU(x) = x Phi(x) costs an error function (or a tanh) for each neuron, ReLU(x) = max(0, x) nothing that shows. The two
agree for large |x|, so the weights stay and training with a teacher mends the difference (Sun et al., "MobileBERT",
2020, section 3.3, among its operational optimisations). It stays a stock model of its family.
"""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field
from transformers import PreTrainedModel

from edgekit.pipeline import families, models
from edgekit.records import Kind, Record


class Params(Record):
    """The activation, and the layers as in a step."""

    activation: Literal["relu", "gelu", "gelu_pytorch_tanh"] = "relu"
    layers: int | None = Field(default=None, ge=1)
    """As many as this; `None`: all."""
    start: Literal["bottom", "uniform", "alternate"] = "bottom"
    """Which of the model's layers these are."""


def refusal(params: Params, config: Mapping[str, Any]) -> str | None:
    """Why this model cannot have it; `None` where it can."""
    name = str(config.get("model_type"))
    if name not in families.FAMILIES:
        return f'the family "{name}" is not known; these are: {", ".join(families.FAMILIES)}'
    full: Any = families.full(config)
    if params.layers and params.layers > full.num_hidden_layers:
        return f"layers = {params.layers}, but the model has {full.num_hidden_layers}; ask for as many or fewer"
    if params.layers and families.FAMILIES[name].shared and full.num_hidden_groups > 1:
        return f"{name} with num_hidden_groups = {full.num_hidden_groups} cannot lose layers; leave out layers"
    if getattr(full, _key(name)) == params.activation and params.layers in (None, full.num_hidden_layers):
        return f'the model\'s activation is "{params.activation}" already; leave the student out'
    return None


def config(params: Params, config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The student's config.json."""
    made: Any = families.full(config)
    made.num_hidden_layers = params.layers or made.num_hidden_layers
    return {**made.to_dict(), _key(made.model_type): params.activation}


def build(params: Params, model: PreTrainedModel, kind: Kind) -> PreTrainedModel:
    """A copy of `model` with the activation, and fewer layers."""
    from edgekit.pipeline.distill import start

    before = model.config.num_hidden_layers
    kept = start(params.start, params.layers or before, before)
    fewer = families.with_layers(model, kept) if len(kept) < before else model
    values = {**fewer.config.to_dict(), _key(fewer.config.model_type): params.activation}
    student = models.new(families.full(values), kind)
    student.load_state_dict(fewer.state_dict())
    return student


def _key(family: str) -> str:
    return "activation" if family == "distilbert" else "hidden_act"
