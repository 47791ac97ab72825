"""Sub-networks of one model, by width and depth: what DynaBERT trains together and an extract step takes out.

Of a model whose heads and neurons stand in order of importance (`families.rewire`), the sub-network of width w has the
first w of the heads and of the neurons in every layer, that of depth d the layers of `kept`. So each of its tensors is
the beginning of the model's own along every dimension, a view and no copy: a smaller width is computed with smaller
products, and gradients reach the shared weights.

Hou et al., "DynaBERT: Dynamic BERT with Adaptive Width and Depth", 2020, sections 2.1 and 2.2.
"""

import copy
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from transformers import PreTrainedModel

from edgekit.pipeline import families
from edgekit.pipeline.signals import Signals, Speaker
from edgekit.records import Kind


def kept(depth: float, layers: int) -> tuple[int, ...]:
    """Which layers (from 0) a sub-network of `depth` of `layers` layers has: evenly spread, the last one goes first.

    The paper's "every other" strategy drops layer d where mod(d + 1, 1 / depth) is 0 (section 2.2). Where 1 / depth is
    no whole number this is what the authors' code does: layer floor(i / depth) for i = 0, 1, ...

    >>> kept(0.5, 6), kept(0.75, 12), kept(0.75, 6)
    ((0, 2, 4), (0, 1, 2, 4, 5, 6, 8, 9, 10), (0, 1, 2, 4))
    """
    return tuple(math.floor(i / depth) for i in range(max(1, round(depth * layers))))


def share(width: float, units: int) -> int:
    """How many of `units` heads or neurons a sub-network of `width` has: rounded, and at least one.

    >>> share(0.25, 12), share(0.25, 1)
    (3, 1)
    """
    return max(1, round(width * units))


def take(model: PreTrainedModel, width: float, depth: float) -> PreTrainedModel:
    """A copy of `model` that has the first heads and neurons of some layers only: a plain, smaller model."""
    small = families.with_layers(model, kept(depth, model.config.num_hidden_layers))
    if width < 1:
        own = families.own_layers(small)
        families.keep_heads(small, [range(share(width, layer.heads)) for layer in own])
        networks = [[range(share(width, ff.up.out_features)) for ff in layer.feed_forward] for layer in own]
        families.keep_neurons(small, networks)
    return small


def grid(config: Mapping[str, Any]) -> dict[str, list[float]] | None:
    """The `widths` and `depths` that a model was trained for, from its config.json; `None`: for none."""
    return config.get("dynabert")


class SubNetwork:
    """A sub-network that computes with another model's weights; it has none of its own."""

    def __init__(self, whole: Speaker, kind: Kind, width: float, depth: float) -> None:
        blank = take(_without_weights(whole.model), width, depth)
        for module in blank.modules():
            if isinstance(module, nn.Embedding):
                module.sparse = True  # else each sub-network's gradient of a vocabulary is as large as the vocabulary
        self.speaker = Speaker(blank, kind)
        self.names = _names(whole, self.speaker, kept(depth, whole.depth))
        self.shapes = {name: parameter.shape for name, parameter in self.speaker.named_parameters()}

    def views(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The sub-network's parameters, by its own names, as views of the whole model's `weights` by theirs."""
        return {name: first(weights[self.names[name]], shape) for name, shape in self.shapes.items()}

    def speak(
        self, parameters: Mapping[str, Tensor], buffers: Mapping[str, Tensor], batch: Mapping[str, Tensor], train: bool
    ) -> Signals:
        """What it says of a padded batch with these `parameters`, from `views`, and the whole model's `buffers`.

        `train`: with dropout.
        """
        self.speaker.train(train)
        return functional_call(self.speaker, {**buffers, **parameters}, (batch,))


def first(whole: Tensor, shape: torch.Size) -> Tensor:
    """The beginning of `whole` along every dimension: a view of `shape`."""
    return whole[tuple(map(slice, shape))]


def _without_weights(model: PreTrainedModel) -> PreTrainedModel:
    """A copy whose parameters have shapes and no data."""
    empty = {id(p): nn.Parameter(torch.empty_like(p, device="meta"), requires_grad=False) for p in model.parameters()}
    return copy.deepcopy(model, empty)


def _names(whole: Speaker, part: Speaker, layers: tuple[int, ...]) -> dict[str, str]:
    """Each parameter's name in `part` to its name in `whole`: they differ by the layers' numbers."""
    if families.family(whole.model).shared:
        return {name: name for name, _ in part.named_parameters()}
    module, attribute = families.stack(whole.model)
    prefix = next(f"{name}.{attribute}." for name, its in whole.named_modules() if its is module)
    names: dict[str, str] = {}
    for name, _ in part.named_parameters():
        number, dot, rest = name.removeprefix(prefix).partition(".")
        names[name] = f"{prefix}{layers[int(number)]}{dot}{rest}" if name.startswith(prefix) else name
    return names
