"""Quantizers: int8 after training, one file a format, named as in `Target.formats`.

A plugin holds an (often empty) `Params` record, `layers`, `calibrate` and `quantize`. That a file is quantized is not
left to the plugin's word: `layers` reads it back, and `edgekit.pipeline.quantize.check` looks at the types.
"""

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from edgekit.tasks import Arrays

Ranges = Mapping[str, tuple[float, float]]
"""The least and greatest value that an activation took in calibration, 0 included, by the name of its tensor."""


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

    def calibrate(self, source: Path, rows: Iterable[Arrays]) -> Ranges:
        """Run the float `source` on `rows`, one unpadded row ([1, length] inputs by name) at a time, and hold none.

        Raises `InputError` where there are no rows.
        """
        ...

    def quantize(
        self, source: Path, path: Path, ranges: Ranges | None = None, keep_float: Collection[str] = ()
    ) -> None:
        """Write the int8 model of the float `source` to `path`, leaving the layers in `keep_float` as they are.

        Activations are quantized by `ranges` (static), or without them as they come (dynamic). The same input gives
        the same bytes; nothing else is written.
        """
        ...
