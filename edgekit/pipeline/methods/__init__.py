"""Methods: ways to train a student, one a file. A plugin holds a `Params` record and `objective`."""

from typing import Any, Protocol


class Method(Protocol):
    """What a module in this folder holds."""

    Params: type[Any]

    def objective(self, params: Any, student: Any, teacher: Any) -> Any:
        """A `torch.nn.Module` that maps a batch (dict of tensors) to the scalar loss, holding the student inside.

        `student` is the model to train and `teacher` the frozen one that gives signals.
        """
        ...
