"""What the bytes of a model file are spent on: embeddings, each layer's attention and feed-forward, the head, the rest.

Both formats name some of their constants and operators by the torch module that they came from:

    model.bert.encoder.layer.3.attention.self.query.bias        ONNX: a constant's name, or metadata of an operator
    …Exportable/…BertEncoder_encoder/…BertLayer_3/…;7           TFLite: the name of a constant or of an output

A constant belongs to the part that its own name says; one called `val_45` or `arith.constant22` to that of the first
operator that uses it. An operator without a module's path (ONNX whose metadata is lost) belongs where its named
constants do, else where the first operator behind it does that is known: `MatMul(x, val_45)` feeds an
`Add(..., query.bias)`.

The first number in a path is the layer's (`layer.3`, `layers.3`, `h.3`, `blocks.3`); ALBERT's groups of shared layers
are so many layers. A norm belongs to the half of the layer it stands in; what comes before the layers and is looked up
or projected is `embeddings`; a pooler, a classifier and the norm behind the last layer are `head`. `other` is the
graph, its names and metadata, whole numbers (shapes, positions), single numbers, tables that the exporter computed,
and whatever these rules do not reach, such as a head without a bias in ONNX without metadata.

A weight that is used twice counts once, one that the converter wrote twice counts twice: LiteRT's folds the scale of
a norm into the linear layers behind it, and so all rounds of ALBERT's layer but the first have another query, key and
value. Each signature of an int8 TFLite has its own copy of all scales and zero points.
"""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from edgekit.errors import InputError
from edgekit.records import Part

EMBEDDINGS, HEAD, OTHER = "embeddings", "head", "other"
_EMBEDDINGS = re.compile(r"embed|_token\b|relative_attention_bias|encoder\.LayerNorm")
_HEAD = re.compile(r"pool|classif|qa_outputs|head|dense|proj|norm", re.IGNORECASE)
_ATTENTION = re.compile(r"(\d+\.|albert_layers\.)*(\w*att|bottleneck|sa_layer_norm|layernorm_before|norm1|ln_1)")
_MODULES = "pkg.torch.onnx.name_scopes"
_LAST = {EMBEDDINGS: 0, HEAD: 2, OTHER: 3}
"""Ranks of the parts' order; layers stand between, at 1."""


class _Constant(NamedTuple):
    """Bytes of a weight with its scales, and the part that its own name says."""

    bytes: int
    part: str | None


class _Node(NamedTuple):
    """An operator; `part` is what its path of modules says, `None` where it has no path."""

    inputs: Sequence[Hashable]
    outputs: Sequence[Hashable]
    part: str | None


def parts(path: Path) -> tuple[Part, ...]:
    """The bytes of a `.onnx` or `.tflite` file by part, in the model's order, `other` last.

    They sum up to the size of the file, with the files of weights beside an ONNX. Raises `InputError` for what is
    neither or damaged, and `ModuleNotFoundError` where the format's library is missing.
    """
    constants, nodes, size = (_read_onnx if path.suffix == ".onnx" else _read_tflite)(path)
    spent = _spent(constants, nodes)
    spent[OTHER] = size - sum(count for name, count in spent.items() if name != OTHER)
    return tuple(Part(name=name, bytes=spent[name]) for name in sorted(spent, key=_order) if spent[name])


def _order(name: str) -> tuple[int, int, str]:
    number = re.search(r"\d+", name)
    return _LAST.get(name, 1), int(number.group()) if number else 0, name


def _spent(constants: Mapping[Hashable, _Constant], nodes: Sequence[_Node]) -> Counter[str]:
    """Bytes of the weights by part; `nodes` in the order they run."""
    users: dict[Hashable, list[int]] = defaultdict(list)
    for number, node in enumerate(nodes):
        for name in node.inputs:
            users[name].append(number)
    known = [node.part for node in nodes]
    for number, node in reversed(list(enumerate(nodes))):
        if node.part is None:
            named = [constants[name].part for name in node.inputs if name in constants]
            known[number] = _first([*named, *(known[user] for name in node.outputs for user in users[name])])
    spent: Counter[str] = Counter()
    for name, constant in constants.items():
        spent[constant.part or _first(known[user] for user in users[name]) or OTHER] += constant.bytes
    return spent


def _first(found: Iterable[str | None]) -> str | None:
    return next((part for part in found if part not in (None, OTHER)), None)


def _part(module: str) -> str:
    """The part that a path of modules, `bert.encoder.layer.3.attention.self`, stands for."""
    number = re.search(r"(?:^|\.)(\d+)(?:\.|$)", module)
    before = module[: number.start()] if number else module
    if _EMBEDDINGS.search(before):
        return EMBEDDINGS
    if _HEAD.search(before):
        return HEAD
    if number is None or number.end() == len(module):
        return OTHER
    half = "attention" if _ATTENTION.match(module, number.end()) else "feed-forward"
    return f"layer {number.group(1)} {half}"


def read_onnx(path: Path) -> Any:
    """The `ModelProto` in a file, without weights that lie beside it; `InputError` where it is none."""
    import onnx
    from google.protobuf.message import DecodeError

    try:
        return onnx.load(str(path), load_external_data=False)
    except DecodeError as error:
        raise InputError(f"{path}: is not an ONNX file: {error}") from None


def _read_onnx(path: Path) -> tuple[dict[Hashable, _Constant], list[_Node], int]:
    """The weights by name, the operators, and the size of the file with those beside it."""
    from onnx import TensorProto

    graph = read_onnx(path).graph
    constants: dict[Hashable, _Constant] = {}
    beside: set[str] = set()
    for tensor in graph.initializer:
        outside = {entry.key: entry.value for entry in tensor.external_data}
        beside |= {outside["location"]} if outside else set()
        if tensor.data_type not in (TensorProto.INT64, TensorProto.BOOL) and math.prod(tensor.dims) > 1:
            count = int(outside.get("length", 0)) or len(tensor.raw_data) or tensor.ByteSize()
            constants[tensor.name] = _Constant(count, _part(tensor.name) if "." in tensor.name else None)
    nodes = [_Node(node.input, node.output, _onnx_part(node)) for node in graph.node]
    for name in beside:
        if not (path.parent / name).is_file() or "/" in name:
            raise InputError(f"{path}: its weights are to lie beside it in {name!r}, which is no file there")
    return constants, nodes, sum(file.stat().st_size for file in (path, *(path.parent / name for name in beside)))


def _onnx_part(node: Any) -> str | None:
    """By the modules that torch's exporter notes, outermost first, or the name `/bert/layer.0/...` of the older one."""
    for note in node.metadata_props:
        if note.key == _MODULES:
            modules = re.findall(r"'([^']*)'", note.value)[:-1]  # the last is the operator
            return _part(modules[-1] if modules else "")
    return _part(node.name.strip("/").replace("/", ".")) if node.name.startswith("/") else None


def read_tflite(path: Path) -> Any:
    """The `ModelT` in a file, whose arrays are views of its bytes; `InputError` where it is none."""
    import struct

    from ai_edge_litert import schema_py_generated

    schema: Any = schema_py_generated
    content = path.read_bytes()
    if content[4:8] != b"TFL3":
        raise InputError(f"{path}: is not a TFLite file")
    try:
        return schema.ModelT.InitFromPackedBuf(content, 0)
    except (struct.error, IndexError, TypeError, ValueError) as error:
        raise InputError(f"{path}: is a damaged TFLite file: {error}") from None


def buffer_bytes(buffer: Any) -> int:
    """Of a TFLite buffer, inside the flatbuffer or behind it."""
    inside = len(buffer.data) if buffer.data is not None else 0
    return inside or (buffer.size if buffer.offset > 1 else 0)


def _read_tflite(path: Path) -> tuple[dict[Hashable, _Constant], list[_Node], int]:
    """The weights by number of their buffer, which signatures share, the operators of all signatures, and the size."""
    from ai_edge_litert.schema_py_generated import TensorType

    model = read_tflite(path)
    whole = {TensorType.INT32, TensorType.INT64, TensorType.BOOL, TensorType.STRING}
    constants: dict[Hashable, _Constant] = {}
    nodes: list[_Node] = []
    seen: set[int] = set()
    for number, graph in enumerate(model.subgraphs):
        names: dict[int, Hashable] = {}
        for index, tensor in enumerate(graph.tensors):
            count, scales = buffer_bytes(model.buffers[tensor.buffer]), _scales(tensor)
            names[index] = tensor.buffer if count else (number, index)
            if not count or math.prod(tensor.shape if tensor.shape is not None else ()) < 2:
                continue
            if tensor.type not in whole or scales:  # an int8 layer has an int32 bias
                before = constants.get(tensor.buffer, _Constant(count, None))
                added = sum(size for place, size in scales.items() if place not in seen)
                seen |= scales.keys()
                part = _first([before.part, _tflite_part(tensor)])
                constants[tensor.buffer] = _Constant(before.bytes + added, part)
        for operator in graph.operators:
            inputs, outputs = (
                [index for index in (side if side is not None else ()) if index >= 0]  # -1: an optional one left out
                for side in (operator.inputs, operator.outputs)
            )
            part = _tflite_part(graph.tensors[outputs[0]]) if outputs else None
            nodes.append(_Node([names[i] for i in inputs], [names[i] for i in outputs], part))
    return constants, nodes, path.stat().st_size


def _scales(tensor: Any) -> dict[int, int]:
    """Bytes of a tensor's scales and zero points by where they stand, as each signature may have its own."""
    given = tensor.quantization
    arrays = [] if given is None else [given.scale, given.zeroPoint]
    return {array.__array_interface__["data"][0]: array.nbytes for array in arrays if array is not None}


def _tflite_part(tensor: Any) -> str | None:
    """The names of fused operators are joined by ";;", that of the last one tells: the others were drawn into it."""
    found = [_part(_module(name)) for name in (tensor.name or b"").decode().split(";;") if "/" in name]
    return _first(reversed(found)) or (OTHER if found else None)


def _module(name: str) -> str:
    """`bert.encoder.0` of "edgekit.…Exportable/…BertModel_bert/…BertEncoder_encoder/…BertLayer_0;3"."""
    steps = name.partition(";")[0].split("/")[1:]
    return ".".join(step.rpartition(".")[2].partition("_")[2] for step in steps)
