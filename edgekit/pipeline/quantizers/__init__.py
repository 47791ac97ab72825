"""Quantizers: int8 after training, one file a format, named as in `Target.formats`.

A plugin holds a `Params` record, `quantize`, `layers` and `check`.
"""

from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any, Literal, Protocol

from edgekit.tasks import Arrays

Calibration = Callable[[], Iterable[Arrays]]
"""Gives the calibration batches anew at each call: model inputs by name, so that nothing holds them all."""


class Quantizer(Protocol):
    """What a module in this folder holds."""

    Params: type[Any]

    def layers(self, source: Path) -> tuple[str, ...]:
        """The names of what can be quantized on its own, in graph order, embeddings included."""
        ...

    def quantize(
        self,
        source: Path,
        path: Path,
        mode: Literal["dynamic", "static"],
        calibration: Calibration,
        keep_float: Collection[str] = (),
    ) -> None:
        """Write the int8 model of the float `source` to `path`, leaving the layers in `keep_float` as they are."""
        ...

    def check(self, source: Path, path: Path, keep_float: Collection[str] = ()) -> None:
        """Raise `NotGoodEnough` unless `path` is quantized: int8 weights by type, and fewer bytes than `source`."""
        ...
