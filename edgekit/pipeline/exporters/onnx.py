"""ONNX, with dynamic batch and length, by torch's dynamo exporter.

Fusing the graph beforehand (onnxruntime's transformer optimizer) bought no time against what ONNX Runtime does on
loading, so the graph is left in standard operators, which every runtime and quantizer takes.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from edgekit.pipeline.models import Exportable
from edgekit.records import Record

SUFFIX = ".onnx"
_OPSET, _IR = 18, 8  # ONNX 1.13 of 2022; onnxruntime 1.14 and newer
_MODULE = "pkg.torch.onnx.name_scopes"  # which module a node came from; a quantizer names its layers by it


class Params(Record):
    """Nothing to choose."""


def export(model: Exportable, example: Mapping[str, torch.Tensor], lengths: Sequence[int], path: Path) -> None:
    """Write one file for all lengths, weights inside (beside it where they exceed protobuf's 2 GB)."""
    own = getattr(model.model, "onnx_operators", dict[Any, Any])  # of a family that is edgekit's own
    names = {2: {0: "batch", 1: "length"}, 4: {0: "batch"}}
    program = torch.onnx.export(
        model,
        # one tensor object given for two inputs is silently merged into one
        kwargs={name: tensor.clone() for name, tensor in example.items()},
        input_names=list(example),
        output_names=list(model.output_names),
        dynamic_shapes={name: names[tensor.ndim] for name, tensor in example.items()},
        opset_version=_OPSET,
        custom_translation_table=own(),
        dynamo=True,
        verbose=False,
    )
    assert program is not None  # dynamo gives one
    for node in program.model.graph.all_nodes():
        module = node.metadata_props.get(_MODULE, "")
        node.metadata_props.clear()  # stack traces, with the paths of this machine
        if module:
            node.metadata_props[_MODULE] = module
    program.model.ir_version = _IR
    program.save(path)
