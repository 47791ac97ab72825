"""Callbacks: what is done with a model each time it was scored in the middle of its training, one a file.

A plugin holds a `Params` record and `at_checkpoint`. The recipe's training says how often that is:

    training = { epochs = 4, evaluate = 8, callback = { name = "early_stopping", patience = 2 } }
"""

from collections.abc import Sequence
from typing import Any, Protocol


class Callback(Protocol):
    """What a module in this folder holds."""

    Params: type[Any]

    def at_checkpoint(self, params: Any, model: Any, curve: Sequence[Any]) -> bool:
        """Whether the training ends here. It must leave the `model`, a `PreTrainedModel` in eval mode, as it is.

        `curve`: a `records.Point` for each time so far, the last of now. A run that was killed and goes on calls again
        for those after its last checkpoint, so what is decided should follow from `curve` alone.
        """
        ...
