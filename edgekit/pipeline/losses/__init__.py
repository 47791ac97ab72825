"""Losses: how far the student is from the teacher on one batch, one distillation loss a file.

A plugin holds a `Params` record (with `weight` and `schedule`, see `_params`), `reads` and `loss`. A loss on hidden
states also has `projection` among its `Params`: the method then hands it the student's states in the teacher's width.
"""

from typing import Any, Protocol


class Loss(Protocol):
    """What a module in this folder holds."""

    Params: type[Any]

    def reads(self, params: Any, student: int, teacher: int) -> Any:
        """The `signals.Wanted` that it reads of a teacher of `teacher` layers for a student of `student` layers.

        Raises `InputError` where its layers do not exist.
        """
        ...

    def loss(self, params: Any, student: Any, teacher: Any, batch: Any) -> Any:
        """A scalar tensor in float32. `student` and `teacher` are `pipeline.signals.Signals` of the same batch."""
        ...
