"""Ladder side-tuning: the frozen model with a small side network that learns in its place (see `ladders`).

    [[step]]
    stage = "teach"
    model = "models/teacher"
    training = { learning_rate = 1e-3 }
    student = { name = "ladder", reduction = 8 }

Training needs a fraction of fine-tuning's memory, the file is the model's and the side network's. In a distill step the
ladder learns from the teacher what the model before it does not know; it is no smaller.

The side network starts as a structurally pruned copy of the backbone (Sung, Cho and Bansal 2022, section 3.3): of
every weight the rows and columns of the most important dimensions, heads' units and neurons. Importance is the sum of
squared weights (Li et al. 2017; the paper finds Fisher information equal to it). The same dimensions of
the residual stream are kept in all layers, and the ladder's rungs start as their selection, so that at the start each
side layer does a part of what its backbone layer does, on the same states.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn
from transformers import PreTrainedModel

from edgekit.pipeline import families, ladders, models
from edgekit.pipeline.families import Layer
from edgekit.records import Kind, Record


class Params(Record):
    """The side network's size."""

    reduction: int = Field(default=8, ge=1)
    """r: it is so many times narrower than the model."""
    every: int = Field(default=1, ge=1)
    """It has a layer for every so many of the model's."""


def refusal(params: Params, config: Mapping[str, Any]) -> str | None:
    """Why this model can have no such ladder; `None` where it can."""
    name = str(config.get("model_type"))
    if name not in families.FAMILIES:
        return f'a ladder cannot stand beside the family "{name}"; it can beside {", ".join(families.FAMILIES)}'
    if config.get("low_rank"):
        return "a ladder cannot stand beside a model with low-rank layers; put it beside the whole model"
    full = families.full(config)
    if full.hidden_size % params.reduction:
        return f"reduction = {params.reduction} does not divide the model's width, {full.hidden_size}"
    if full.num_hidden_layers % params.every:
        return f"every = {params.every} does not divide the model's layers, {full.num_hidden_layers}"
    return None


def config(params: Params, config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The ladder's config.json."""
    labels: dict[str, Any] = {name: config.get(name) for name in ("id2label", "label2id")}
    made = ladders.Config(backbone=config, reduction=params.reduction, every=params.every, **labels)
    return made.to_dict()


def build(params: Params, model: PreTrainedModel, kind: Kind) -> PreTrainedModel:
    """A ladder beside `model`, whose head it takes over; only the ladder and the head are to be trained."""
    values: dict[str, Any] = {**config(params, model.config.to_dict()), "kind": kind}
    ladder: Any = models.new(ladders.Config(**values), kind)
    rails = ladder.base_model
    # the very tensors, since they will not change: a second copy would cost what the ladder is to save
    rails.backbone.load_state_dict(_without(model.base_model, "pooler."), assign=True)
    if rails.pooler is not None:
        rails.pooler.load_state_dict(model.base_model.get_submodule("pooler").state_dict())
    if ladder.task is not rails:
        head = _without(model, f"{model.base_model_prefix}.")
        ladder.task.load_state_dict(head, strict=False)
    _start(rails, params.every)
    return ladder


def _without(model: nn.Module, prefix: str) -> dict[str, Tensor]:
    return {name: value for name, value in model.state_dict().items() if not name.startswith(prefix)}


@torch.no_grad()
def _start(rails: ladders.Rails, every: int) -> None:
    """Set the side network to a pruned copy of the backbone, and the rungs to the selection of its dimensions."""
    side, backbone = rails.side, rails.backbone
    mine, its = families.own_layers(side), families.own_layers(backbone)
    if not families.family(backbone).shared:
        its = its[every - 1 :: every]
    width = rails.up.in_features
    inside = its[0].query.in_features == rails.up.out_features  # MobileBERT's layers work on a part of each state
    dims = _best(sum(_read(layer) + _written(layer) for layer in its), width) if inside else list(range(width))
    select = torch.eye(rails.up.out_features)[dims]
    for down in rails.down:
        _set(down, select)
    _set(rails.up, select.T)
    if not inside:
        return
    scores = [_units(layer) for layer in its]  # [heads, head size] each
    if families.family(backbone).head_bias:  # all layers share it, so they keep the same heads
        scores = [torch.stack(scores).sum(0)] * len(its)
    heads = [_best(score.sum(1), mine[0].heads) for score in scores]
    done: set[nn.Module] = set()
    for small, big, score, kept in zip(mine, its, scores, heads, strict=True):
        units = [head * big.head_size + i for head in kept for i in _best(score[head], small.head_size)]
        axes = _axes(small, big, dims, units)
        modules = dict(big.module.named_modules())
        for path, module in small.module.named_modules():
            _copy(module, modules[path], *axes.get(module, (dims, dims)))
            done.add(module)
    outside = dict(backbone.named_modules())
    for path, module in side.named_modules():
        if module not in done and path in outside:
            bias = path == families.family(backbone).head_bias
            _copy(module, outside[path], dims, heads[0] if bias else dims)


def _axes(small: Layer, big: Layer, dims: Sequence[int], units: Sequence[int]) -> dict[nn.Module, Any]:
    """Which rows and columns of a backbone layer's linears are those of the side layer's."""
    axes: dict[nn.Module, Any] = {small.output: (dims, units)}
    axes |= dict.fromkeys((small.query, small.key, small.value, *small.positions), (units, dims))
    for mine, its in zip(small.feed_forward, big.feed_forward, strict=True):
        score = its.up.weight.square().sum(1) + its.down.weight.square().sum(0)
        neurons = _best(score, mine.up.out_features)
        axes |= {mine.up: (neurons, dims), mine.down: (dims, neurons)}
    return axes


def _read(layer: Layer) -> Tensor:
    """How much a layer reads from each dimension."""
    linears = (layer.query, layer.key, layer.value, *(pair.up for pair in layer.feed_forward))
    return sum((linear.weight.square().sum(0) for linear in linears), torch.zeros(()))


def _written(layer: Layer) -> Tensor:
    """How much it writes to each."""
    linears = (layer.output, *(pair.down for pair in layer.feed_forward))
    return sum((linear.weight.square().sum(1) for linear in linears), torch.zeros(()))


def _units(layer: Layer) -> Tensor:
    """The importance of each head's units, [heads, head size]."""
    inner = sum((each.weight.square().sum(1) for each in (layer.query, layer.key, layer.value)), torch.zeros(()))
    return (inner + layer.output.weight.square().sum(0)).view(layer.heads, layer.head_size)


def _best(scores: Any, count: int) -> list[int]:
    return sorted(scores.topk(count).indices.tolist())


def _copy(small: nn.Module, big: nn.Module, rows: Sequence[int], columns: Sequence[int]) -> None:
    """Set a module's own weights to rows and columns of another's; embeddings keep all their rows."""
    for name, weight in small.named_parameters(recurse=False):
        its = getattr(big, name)
        kept = its if isinstance(small, nn.Embedding) else its[rows]
        kept = kept[:, columns] if its.ndim == 2 else kept
        if kept.shape == weight.shape:
            weight.copy_(kept)


def _set(linear: Any, weight: Tensor) -> None:
    linear.weight.copy_(weight)
    linear.bias.zero_()
