"""Quantizers: int8 after training, one file a format, named as in `Target.formats`.

A plugin holds an (often empty) `Params` record, `layers` and `quantize`. That a file is quantized is not left to the
plugin's word: `layers` reads it back, and `edgekit.pipeline.quantize.check` looks at the types.
"""

from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

from edgekit.tasks import Arrays

Calibration = Callable[[], Iterable[Arrays]]
"""Gives the calibration rows anew at each call, one unpadded row ([1, length] inputs by name) at a time, so that
nothing holds them all and no padding widens a range."""


class Layer(NamedTuple):
    """A linear layer, an embedding or a convolution, and how its weights are stored."""

    name: str
    dtype: str
    """`float32` or `int8`."""
    elements: int


class Quantizer(Protocol):
    """What a module in this folder holds."""

    Params: type[Any]

    def layers(self, path: Path) -> tuple[Layer, ...]:
        """Everything in a model file that can be quantized on its own, in graph order, embeddings included.

        What is float in the result of `quantize` has the name that it has in the source.
        """
        ...

    def quantize(
        self,
        source: Path,
        path: Path,
        mode: Literal["dynamic", "static"],
        calibration: Calibration,
        keep_float: Collection[str] = (),
    ) -> None:
        """Write the int8 model of the float `source` to `path`, leaving the layers in `keep_float` as they are.

        Only `static` asks for the calibration. The same input gives the same bytes; nothing else is written.
        """
        ...
