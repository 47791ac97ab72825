"""Tiny model files made by hand: one layer y = x @ W, in both formats, and the two empty models that ship."""

import platform

import flatbuffers
import numpy as np
import onnx
from ai_edge_litert import schema_py_generated as schema
from onnx import TensorProto, helper, numpy_helper

HOST = {"x86_64": "linux-x86_64", "aarch64": "linux-arm64"}.get(platform.machine())
"""The native runner's target that is this machine."""


def onnx_empty() -> bytes:
    """y = x for one float: the smallest graph that ONNX Runtime runs."""
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "empty", value[:1], value[1:])
    return _saved(graph)


def onnx_linear(weights: np.ndarray) -> bytes:
    """`output` [n, out] = `input` [n, in] @ weights, n dynamic; and `total` int64 [1] = `count` + 1."""
    rows, columns = weights.shape
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["input", "w"], ["output"]), helper.make_node("Add", ["count", "one"], ["total"])],
        "linear",
        [
            helper.make_tensor_value_info("input", TensorProto.FLOAT, ["n", rows]),
            helper.make_tensor_value_info("count", TensorProto.INT64, [1]),
        ],
        [
            helper.make_tensor_value_info("output", TensorProto.FLOAT, ["n", columns]),
            helper.make_tensor_value_info("total", TensorProto.INT64, [1]),
        ],
        [numpy_helper.from_array(weights, "w"), numpy_helper.from_array(np.array([1], np.int64), "one")],
    )
    return _saved(graph)


def _saved(graph: onnx.GraphProto) -> bytes:
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8, producer_name="edgekit")
    onnx.checker.check_model(model)
    return model.SerializeToString(deterministic=True)


def tflite_empty() -> bytes:
    """y = x + x for one float, signature `empty`: an operation that XNNPACK takes over, as it does a model's."""
    return _tflite({"empty": _subgraph("x", "y", [1], [1], [0, 0], 0)}, schema.BuiltinOperator.ADD, [b""])


def tflite_linear(weights: np.ndarray, lengths: tuple[int, ...] = (1, 3)) -> bytes:
    """`output` [length, out] = `input` [length, in] @ weights, with one signature `len_N` for each length."""
    rows, columns = weights.shape
    graphs = {
        f"len_{length}": _subgraph("input", "output", [length, rows], [length, columns], [0, 2, -1], 1, [columns, rows])
        for length in lengths
    }
    data = np.ascontiguousarray(weights.T, "<f4").tobytes()
    return _tflite(graphs, schema.BuiltinOperator.FULLY_CONNECTED, [b"", data])


def _subgraph(
    source: str, result: str, taken: list[int], given: list[int], inputs: list[int], buffer: int,
    weights: list[int] | None = None,
) -> tuple[schema.SubGraphT, str, str]:  # fmt: skip
    shapes = [(source, taken, 0), (result, given, 0), *([("w", weights, buffer)] if weights else [])]
    graph = schema.SubGraphT()
    graph.tensors = []
    for name, shape, place in shapes:
        tensor = schema.TensorT()
        tensor.name, tensor.shape, tensor.buffer, tensor.type = name, shape, place, schema.TensorType.FLOAT32
        graph.tensors.append(tensor)
    operator = schema.OperatorT()
    operator.inputs, operator.outputs = inputs, [1]
    if weights:
        operator.builtinOptionsType = schema.BuiltinOptions.FullyConnectedOptions
        operator.builtinOptions = schema.FullyConnectedOptionsT()
    else:
        operator.builtinOptionsType = schema.BuiltinOptions.AddOptions
        operator.builtinOptions = schema.AddOptionsT()
    graph.inputs, graph.outputs, graph.operators = [0], [1], [operator]
    return graph, source, result


def _tflite(graphs: dict[str, tuple[schema.SubGraphT, str, str]], code: int, buffers: list[bytes]) -> bytes:
    model = schema.ModelT()
    model.version = 3
    operator = schema.OperatorCodeT()
    operator.builtinCode = operator.deprecatedBuiltinCode = code
    operator.version = 1
    model.operatorCodes = [operator]
    model.subgraphs = [graph for graph, _, _ in graphs.values()]
    model.buffers = []
    for data in buffers:
        buffer = schema.BufferT()
        buffer.data = np.frombuffer(data, np.uint8) if data else None
        model.buffers.append(buffer)
    model.signatureDefs = []
    for index, (key, (_, source, result)) in enumerate(graphs.items()):
        signature = schema.SignatureDefT()
        signature.signatureKey, signature.subgraphIndex = key, index
        signature.inputs, signature.outputs = [_named(source, 0)], [_named(result, 1)]
        model.signatureDefs.append(signature)
    builder = flatbuffers.Builder(256)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def _named(name: str, index: int) -> schema.TensorMapT:
    found = schema.TensorMapT()
    found.name, found.tensorIndex = name, index
    return found
