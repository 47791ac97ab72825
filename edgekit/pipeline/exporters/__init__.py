"""Exporters: a torch model to a file format, one file a format, named as in `Target.formats`.

A plugin holds `SUFFIX` (the model file is `model` + `SUFFIX`), an (often empty) `Params` record and `export`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol


class Exporter(Protocol):
    """What a module in this folder holds."""

    SUFFIX: str
    Params: type[Any]

    def export(self, model: Any, example: Any, lengths: Sequence[int], path: Path) -> None:
        """Write `model` (a `pipeline.models.Exportable`, in eval mode) to `path` for the given lengths.

        `example` is a batch of named int64 or float32 torch tensors, two rows, the second one padded.
        """
        ...
