"""TFLite (LiteRT), by litert-torch: one signature a length (`len_32`, ...), sharing one set of weights."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from edgekit.pipeline.models import Exportable
from edgekit.records import Record

SUFFIX = ".tflite"


class Params(Record):
    """Nothing to choose."""


def export(model: Exportable, example: Mapping[str, torch.Tensor], lengths: Sequence[int], path: Path) -> None:
    """Write one file with batch 1 and int32 (or float32) inputs; images get the one signature `serving_default`."""
    import litert_torch

    converter: Any = litert_torch
    if "pixel_values" in example:
        converter = converter.signature("serving_default", model, sample_kwargs=_like(example, 0))
    else:
        for length in lengths:
            converter = converter.signature(f"len_{length}", model, sample_kwargs=_like(example, length))
    converter.convert().export(str(path))


def _like(example: Mapping[str, torch.Tensor], length: int) -> dict[str, torch.Tensor]:
    """One row of what the model takes, of the given length; tracing looks at shapes and types only."""
    return {
        name: torch.ones(1, length, dtype=torch.int32) if tensor.ndim == 2 else tensor[:1].clone()
        for name, tensor in example.items()
    }
