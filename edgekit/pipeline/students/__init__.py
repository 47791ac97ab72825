"""Students: architectures to train in place of the model's own layers, one a file.

A plugin holds a `Params` record, `refusal`, `config` and `build`. What it builds is a `PreTrainedModel` that
`models.save` writes and `models.load` builds again from its config.json.
"""

from collections.abc import Mapping
from typing import Any, Protocol


class Student(Protocol):
    """What a module in this folder holds."""

    Params: type[Any]

    def refusal(self, params: Any, config: Mapping[str, Any]) -> str | None:
        """Why no such student can be made of a model with this config.json, and what would work; `None` where one can.

        Asked before any work, with the teacher's.
        """
        ...

    def config(self, params: Any, config: Mapping[str, Any]) -> Mapping[str, Any]:
        """The student's config.json where the model's is `config`: what later steps are checked against."""
        ...

    def build(self, params: Any, model: Any, kind: Any) -> Any:
        """A new model with the head of `kind` and `model`'s labels, which reads the same token ids as `model`."""
        ...
