"""Losses: how far the student is from the teacher on one batch, one distillation loss a file.

A plugin holds a `Params` record and `loss`; a loss with learned parts (projections) also holds `module`.
"""

from typing import Any, Protocol


class Loss(Protocol):
    """What a module in this folder holds."""

    Params: type[Any]

    def loss(self, params: Any, student: Any, teacher: Any, batch: Any) -> Any:
        """A scalar tensor. `student` and `teacher` are `pipeline.signals.Signals` of the same batch."""
        ...
