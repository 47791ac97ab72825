"""Losses: how far the student is from the teacher on one batch, one distillation loss a file.

A plugin holds a `Params` record (with `weight` and `schedule`, see `_params`), `reads` and `loss`. A loss on hidden
states also has `projection` among its `Params`: the method then hands it the student's states in the teacher's width.
One on hidden states or attention that compares whole rows, and not token with token, says `WHOLE_ROWS = True`: it then
takes a teacher with another tokenizer. Private modules hold what several share: `_params` which layers, `_soft` what of
the outputs, `_attention` scores and relations.
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
