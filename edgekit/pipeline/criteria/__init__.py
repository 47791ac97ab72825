"""Criteria: how much a head or a feed-forward neuron matters. A plugin holds a `Params` record and `scores`."""

from collections.abc import Iterable, Mapping
from typing import Any, Protocol


class Criterion(Protocol):
    """What a module in this folder holds."""

    Params: type[Any]

    def scores(self, params: Any, model: Any, batches: Iterable[Any], loss: Any) -> Mapping[str, Any]:
        """The importance of every prunable unit, a 1-D tensor [heads] or [neurons] for each group of them.

        Keys are `heads.{layer}` and `neurons.{layer}.{network}`, by `families.own_layers` and its feed-forward
        networks (one a layer but in MobileBERT); a higher score matters more, and the scores of a group have length 1,
        so that groups can be added up. `batches` are dicts of torch tensors with labels where the task has them, `loss`
        maps (model, batch) to the scalar whose change on removal is estimated. `model` comes and leaves in eval mode.
        """
        ...
