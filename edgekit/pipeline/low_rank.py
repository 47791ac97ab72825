"""Linears of low rank: two thin ones in the place of one, as `low_rank` of config.json says.

y = U (V x) + b,   V [rank, in],  U [out, rank]
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import nn


class LowRank(nn.Module):
    """Stands in the place of a linear layer."""

    def __init__(self, in_features: int, rank: int, out_features: int) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.v = nn.Linear(in_features, rank, bias=False)
        self.u = nn.Linear(rank, out_features)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., in] to [..., out]."""
        return self.u(self.v(x))


def build(model: nn.Module, layers: Iterable[Any], low_rank: Mapping[str, Any]) -> None:
    """Put random ones into `model`, whose `families.own_layers` are `layers`."""
    for owner, name, linear in list(linears(model, layers, low_rank)):
        setattr(owner, name, LowRank(linear.in_features, low_rank["rank"], linear.out_features))


def linears(
    model: nn.Module, layers: Iterable[Any], low_rank: Mapping[str, Any]
) -> Iterator[tuple[nn.Module, str, nn.Linear]]:
    """The linears that become two: the module that holds each, its name there, and itself.

    `low_rank`: `rank`; `parts`: `attention`, `feed_forward` or `all`. A linear that two of this rank would not be
    smaller than stays.
    """
    rank, parts = low_rank["rank"], low_rank["parts"]
    chosen: set[nn.Module] = set()
    for layer in layers:
        if parts != "feed_forward":
            chosen |= {layer.query, layer.key, layer.value, layer.output}
        if parts != "attention":
            chosen |= {linear for pair in layer.feed_forward for linear in pair}
    for owner in model.modules():
        for name, linear in owner.named_children():
            if linear in chosen and isinstance(linear, nn.Linear):
                one, other = linear.in_features, linear.out_features
                if rank * (one + other) < one * other:
                    yield owner, name, linear
