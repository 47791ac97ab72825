"""int8 TFLite by ai-edge-quantizer: weights per channel, embeddings per row, shared by all signatures as before.

`dynamic`: each kernel quantizes its activations itself, one scale a token, and gives floats. `static`: linear layers
take and give int8 by ranges seen in calibration; everything between them stays float, since rounding a transformer's
normalisations and residual sums makes it useless (cosine to float .15 to .39 on MiniLM, against .95 this way).

The library calibrates each signature by itself and needs data for all of them. But they are one model at several
lengths: here a row runs through the smallest signature that takes it, and all share the ranges. So they keep sharing
one int8 bias too.
"""

import re
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgekit import progress
from edgekit.errors import InputError
from edgekit.pipeline.quantizers import Layer, Ranges
from edgekit.records import Record
from edgekit.tasks import Arrays

_KINDS = ("FULLY_CONNECTED", "EMBEDDING_LOOKUP", "CONV_2D", "BATCH_MATMUL")


class Params(Record):
    """Nothing to choose."""


def layers(path: Path) -> tuple[Layer, ...]:
    """Every operator with constant weights, named by its torch module as litert-torch notes it."""
    found: dict[str, Layer] = {}
    seen: set[int] = set()
    for _, tensors, op, _ in _operators(_read(path)):
        weight, name = tensors[op.inputs[1]], _layer(tensors, op)
        if weight.buffer not in seen:
            seen.add(weight.buffer)
            before = found[name].elements if name in found else 0
            found[name] = Layer(name, _dtypes()[weight.type], before + int(np.prod(weight.shape)))
    return tuple(found.values())


def calibrate(source: Path, rows: Iterable[Arrays]) -> Ranges:
    """The ranges of what goes in and out of each linear layer, the same ones for all signatures."""
    from ai_edge_litert.interpreter import Interpreter

    model = _read(source)
    linear: dict[int, list[Any]] = {}
    for number, _, op, kind in _operators(model):
        if kind == "FULLY_CONNECTED":
            linear.setdefault(number, []).append(op)
    with progress.quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # keeping all tensors is for debugging, it says
        interpreter = Interpreter(str(source), experimental_preserve_all_tensors=True)
        signatures = _signatures(interpreter, model)
    seen: dict[tuple[int, int], tuple[float, float]] = {}
    for row in rows:
        given = max((array.shape[1] for array in row.values() if array.ndim == 2), default=0)
        length = next((length for length in signatures if length >= given), max(signatures))
        runner, number = signatures[length]
        runner(**_fit(row, runner.get_input_details(), length))
        for n, op in enumerate(linear[number]):
            for side, index in enumerate((op.inputs[0], op.outputs[0])):
                value = interpreter.get_tensor(index, number)
                if length and value.ndim > 1 and value.shape[-2] == length:
                    value = value[..., :given, :]
                low, high = seen.get((n, side), (0.0, 0.0))
                seen[n, side] = min(low, float(value.min())), max(high, float(value.max()))
    if linear and not seen:
        raise InputError("static quantization needs rows to calibrate on, found none; give train rows or dynamic")
    return {
        _name(model.subgraphs[number].tensors[index]): seen[n, side]
        for number, ops in linear.items()
        for n, op in enumerate(ops)
        for side, index in enumerate((op.inputs[0], op.outputs[0]))
    }


def quantize(source: Path, path: Path, ranges: Ranges | None = None, keep_float: Collection[str] = ()) -> None:
    """Write the int8 model; see the module."""
    from ai_edge_quantizer.algorithm_manager import AlgorithmName
    from ai_edge_quantizer.qtyping import TFLOperationName
    from ai_edge_quantizer.quantizer import Quantizer

    quantizer = Quantizer(str(source))
    for kind in _KINDS:
        name = TFLOperationName(kind)
        if ranges is not None and kind == "FULLY_CONNECTED":
            quantizer.add_static_config(".*", name, activation_num_bits=8, weight_num_bits=8)
        else:
            quantizer.add_dynamic_config(".*", name, num_bits=8)
    for scope in _in_float(_read(source), keep_float):
        quantizer.update_quantization_recipe(
            scope, TFLOperationName.ALL_SUPPORTED, algorithm_key=AlgorithmName.NO_QUANTIZE
        )
    # the library's form of a range
    known = {n: {"min": np.array([[low]]), "max": np.array([[high]])} for n, (low, high) in (ranges or {}).items()}
    with progress.quiet():  # a bar, and a warning for each weight that signatures share
        result = quantizer.quantize(known or None, enable_progress_report=False)
    path.write_bytes(result.quantized_model or b"")


def _in_float(model: Any, keep_float: Collection[str]) -> list[str]:
    """What stays float, as patterns of scopes: the names of an operator's outputs, each with a semicolon behind it.

    Beside the layers asked for, the products of two activations that the library would take for layers: attention with
    one head is written so.
    """
    kept = [(tensors, op) for _, tensors, op, _ in _operators(model) if _layer(tensors, op) in keep_float]
    kept += [(tensors, op) for _, tensors, op, kind in _operators(model, constant=False) if kind == "FULLY_CONNECTED"]
    return [f"^{re.escape(_name(tensors[op.outputs[0]]))};" for tensors, op in kept]


def _read(path: Path) -> Any:
    from ai_edge_litert.tools import flatbuffer_utils

    return flatbuffer_utils.read_model(str(path))


def _operators(model: Any, constant: bool = True) -> Iterator[tuple[int, Any, Any, str]]:
    """(subgraph, its tensors, operator, kind) of every operator with (or without) constant weights, in graph order."""
    from ai_edge_litert.schema_py_generated import BuiltinOperator

    codes = {getattr(BuiltinOperator, kind): kind for kind in _KINDS}
    for number, graph in enumerate(model.subgraphs):
        for op in graph.operators:
            kind = codes.get(model.operatorCodes[op.opcodeIndex].builtinCode)
            if kind:
                weight = graph.tensors[op.inputs[1]]
                buffer = model.buffers[weight.buffer]
                has_data = bool(buffer.data is not None and len(buffer.data)) or buffer.offset > 1
                if has_data == constant and weight.type in _dtypes():
                    yield number, graph.tensors, op, kind


def _dtypes() -> dict[int, str]:
    from ai_edge_litert.schema_py_generated import TensorType

    return {TensorType.FLOAT32: "float32", TensorType.INT8: "int8"}


def _name(tensor: Any) -> str:
    return tensor.name.decode()


def _layer(tensors: Any, op: Any) -> str:
    """`bert.encoder.0.attention.self.query`, from the path of modules in a tensor's name; else that name.

    Names of fused operators are joined by ";;"; the one sought ends in a module that has weights.
    """
    for joined in (_name(tensors[op.outputs[0]]), _name(tensors[op.inputs[1]])):
        for part in joined.split(";;"):
            if re.search(r"/torch\.nn\.modules\.(linear|sparse|conv)\.[^/]*$", part):
                # "edgekit.…Exportable/…BertModel_model/…BertEncoder_encoder/…BertLayer_0;3"
                names = [step.rpartition(".")[2].partition("_")[2] for step in part.partition(";")[0].split("/")[1:]]
                return ".".join(names[1:] or names)
    return _name(tensors[op.outputs[0]])


def _signatures(interpreter: Any, model: Any) -> dict[int, tuple[Any, int]]:
    """Length (0 for images) to the signature's runner and subgraph, ascending."""
    found: dict[int, tuple[Any, int]] = {}
    for signature in model.signatureDefs:
        runner = interpreter.get_signature_runner(signature.signatureKey.decode())
        shapes = [details["shape"] for details in runner.get_input_details().values()]
        found[max((int(shape[1]) for shape in shapes if len(shape) == 2), default=0)] = runner, signature.subgraphIndex
    return dict(sorted(found.items()))


def _fit(row: Mapping[str, np.ndarray], details: Mapping[str, Any], length: int) -> dict[str, np.ndarray]:
    """One row as a signature takes it: its types, its length."""
    fitted = {name: row[name].astype(details[name]["dtype"]) for name in details}
    for name, array in fitted.items():
        if array.ndim == 2:
            cut = array[:, :length]
            fitted[name] = np.pad(cut, ((0, 0), (0, length - cut.shape[1])))
    return fitted
