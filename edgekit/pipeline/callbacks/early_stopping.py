"""Early stopping: the training ends when the score on the dev split has not risen for some time.

    0.81  0.84  0.86  0.85  0.86     patience = 2: two scores in a row that are not above the best before them

Prechelt, "Early Stopping - But When?", 1998, class UP. With `keep = "best"` the step gives the model of the best score.
"""

from collections.abc import Sequence

from pydantic import Field

from edgekit.records import Point, Record


class Params(Record):
    """`patience`: how many scores in a row may fail to rise."""

    patience: int = Field(default=2, ge=1)


def at_checkpoint(params: Params, model: object, curve: Sequence[Point]) -> bool:
    """Whether the last `patience` scores are no higher than the best one before them.

    >>> curve = [Point(step=i, examples=i, score=score) for i, score in enumerate((0.8, 0.9, 0.85, 0.9))]
    >>> at_checkpoint(Params(patience=2), None, curve), at_checkpoint(Params(patience=3), None, curve)
    (True, False)
    """
    before = [point.score for point in curve[: -params.patience]]
    return bool(before) and max(point.score for point in curve[-params.patience :]) <= max(before)
