"""Criteria: how much a head or a feed-forward neuron matters. A plugin holds a `Params` record and `scores`."""

from collections.abc import Iterable, Mapping
from typing import Any, Protocol


class Criterion(Protocol):
    """What a module in this folder holds."""

    Params: type[Any]

    def scores(self, params: Any, model: Any, batches: Iterable[Any], loss: Any) -> Mapping[str, Any]:
        """The importance of every prunable unit: per layer a 1-D tensor of scores for heads and one for neurons.

        Keys are `heads.{layer}` and `neurons.{layer}`; a higher score matters more. `batches` are dicts of torch
        tensors with labels, `loss` maps (model, batch) to the scalar whose rise on removal is estimated.
        """
        ...
