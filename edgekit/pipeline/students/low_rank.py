"""Low-rank linears: the model's own layers, each weight matrix two thin ones, started from its best approximation.

For W = S diag(s) T^T [out, in], the singular value decomposition with the greatest values first, and rank r

    U = S_r diag(s_r)^(1/2)  [out, r],    V = diag(s_r)^(1/2) T_r^T  [r, in],    W x = U (V x) + b approximately

which of all matrices of rank r differs least from W (Eckart and Young 1936); r (in + out) weights in place of in out.
Training with a teacher then brings back most of what was lost: Ben Noach and Goldberg, "Compressing Pre-trained
Language Models by Matrix Decomposition", 2020, sections 3.1 and 3.2.

    student = { name = "low_rank", rank = 96 }

It is no stock class: config.json says `low_rank`, and `models.load` builds it. Its layers cannot be pruned any more.
"""

import copy
from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import Field
from torch import nn
from transformers import PreTrainedModel

from edgekit.pipeline import families, low_rank
from edgekit.records import Kind, Record


class Params(Record):
    """How thin, and which matrices."""

    rank: int = Field(ge=1)
    """r: of every matrix, unless it would be no smaller."""
    parts: Literal["all", "attention", "feed_forward"] = "all"


def refusal(params: Params, config: Mapping[str, Any]) -> str | None:
    """Why this model's linears cannot be split; `None` where they can."""
    name = str(config.get("model_type"))
    if name not in families.FAMILIES:
        return f'the family "{name}" is not known; these are: {", ".join(families.FAMILIES)}'
    if config.get("low_rank"):
        return "its layers are of low rank already; start from the whole model"
    full: Any = families.full(config)
    attention = (families.width(full), families.width(full))
    feed_forward = (families.width(full), getattr(full, families.FAMILIES[name].neurons))
    sizes = {"all": (attention, feed_forward), "attention": (attention,), "feed_forward": (feed_forward,)}[params.parts]
    if all(params.rank * (one + other) >= one * other for one, other in sizes):
        one, other = sizes[-1]
        most = (one * other - 1) // (one + other)
        return f"rank = {params.rank} makes nothing smaller; of a matrix [{other}, {one}] it can be at most {most}"
    return None


def config(params: Params, config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The model's config.json with `low_rank`."""
    return {**config, "low_rank": {"rank": params.rank, "parts": params.parts}}


def build(params: Params, model: PreTrainedModel, kind: Kind) -> PreTrainedModel:
    """A copy of `model` with two linears in the place of each."""
    student = copy.deepcopy(model)
    made: Any = student.config
    made.low_rank = config(params, {})["low_rank"]
    for owner, name, linear in list(low_rank.linears(student, families.own_layers(student), made.low_rank)):
        setattr(owner, name, split(linear, params.rank))
    return student


@torch.no_grad()
def split(linear: nn.Linear, rank: int) -> low_rank.LowRank:
    """The best two linears of `rank` for one."""
    left, values, right = torch.linalg.svd(linear.weight.double(), full_matrices=False)
    root = values[:rank].sqrt()
    thin = low_rank.LowRank(linear.in_features, rank, linear.out_features)
    thin.u.weight.copy_(left[:, :rank] * root)
    thin.v.weight.copy_(root[:, None] * right[:rank])
    bias: Any = linear.bias  # some vision transformers have none
    thin.u.bias.copy_(torch.zeros(linear.out_features) if bias is None else bias)
    return thin
