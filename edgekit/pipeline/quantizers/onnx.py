"""int8 ONNX in standard operators: weights per channel, embeddings per row, activations per tensor.

For a linear layer y = x W with W [in, out], each column has its own scale (symmetric; Jacob et al. 2018, section 2):

    scale[o] = max |W[:, o]| / 63         W8 = round(W / scale)        y = (x8 W8) * scale_x * scale

63 and not 127, since x86 without VNNI adds two products of x8 (0 to 255) and W8 in 16 bits: 2 * 255 * 63 fits, and with
127 up to a fifth of a random product was wrong on such a host. So all CPUs give the same integers. On an SST-2
classifier the lost bit costs nothing that shows (error of the logits .122 for .126, static .133 for .128).

x8 is unsigned with a zero point. Its range is that of the tensor at hand (`dynamic`: DynamicQuantizeLinear and
MatMulInteger) or the one seen in calibration (`static`: QuantizeLinear and DequantizeLinear before a MatMul).
ONNX Runtime fuses either into one integer kernel that gives floats, so outputs, normalisations and residual sums
are not rounded: rounding them is what ruins a static transformer. An embedding looks up int8 rows and multiplies
each by its scale. A convolution (a ViT's patches) and a GRU store int8 and compute in float.

Weights that several layers share (ALBERT's) are quantized once, for all of them. torch's exporter leaves large ones as
the module has them with a Transpose behind, or of a GRU a Split and a Concat; what comes of those is taken as a
constant here. What is then still a float matrix, and was not to be, is an error: a form of layer that this module
overlooks.

The graph is edited here rather than by `onnxruntime.quantization`, which fails in shape inference on the Gemm of
torch's exporter, gives a whole embedding one scale, and leaves files behind when it fails.
"""

import ast
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.errors import InputError, NotGoodEnough
from edgekit.pipeline.quantizers import Layer, Ranges
from edgekit.records import Record
from edgekit.tasks import Arrays

_LINEAR, _LOOKED_UP = 63, 127  # the greatest int8 of a weight that is multiplied, and of one that is not
_WEIGHT = {  # which inputs of a node they are
    "MatMul": (1,), "MatMulInteger": (1,), "Gemm": (1,), "Conv": (1,), "Gather": (0,), "GRU": (1, 2),
}  # fmt: skip
_ARRANGED = ("Transpose", "Split", "Slice", "Concat", "Unsqueeze")  # done here where all that they take is constant
_SAME = ("Transpose", "Reshape", "Identity", "Cast", "Unsqueeze", "Squeeze")  # what gives the weights that it takes


class Params(Record):
    """Nothing to choose."""


def layers(path: Path) -> tuple[Layer, ...]:
    """Every MatMul, Gemm, Gather and Conv with constant weights, named by the torch module that it came from."""
    import onnx

    model = _read(path)
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    # a static layer takes its weight through a DequantizeLinear
    weights |= {n.output[0]: weights[n.input[0]] for n in model.graph.node if n.input and n.input[0] in weights
                and n.op_type == "DequantizeLinear"}  # fmt: skip
    found: dict[str, Layer] = {}
    counted: set[tuple[str, str]] = set()
    for node in model.graph.node:
        for weight in _weights(node, weights):
            name = _layer(node)
            if (name, weight.name) in counted:
                continue
            dtype = "int8" if weight.data_type == onnx.TensorProto.INT8 else "float32"
            counted.add((name, weight.name))
            before = found[name].elements if name in found else 0
            found[name] = Layer(name, dtype, before + int(np.prod(weight.dims)))
    return tuple(found.values())


def _read(path: Path) -> Any:
    """The model, with what only arranges constants done: the result is a constant with the name of the output."""
    import onnx
    from onnx.reference import ReferenceEvaluator

    model = onnx.load(path)
    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    arranged = 0
    for node in list(graph.node):
        if node.op_type in _ARRANGED and all(name in constants for name in node.input):
            given = {name: onnx.numpy_helper.to_array(constants[name]) for name in node.input}
            values: Any = ReferenceEvaluator(node).run(None, given)
            for name, value in zip(node.output, values, strict=True):
                constants[name] = onnx.numpy_helper.from_array(np.ascontiguousarray(value), name)
            graph.node.remove(node)
            arranged += 1
    if arranged:
        used = {name for node in graph.node for name in node.input} | {output.name for output in graph.output}
        del graph.initializer[:]
        graph.initializer.extend(tensor for name, tensor in constants.items() if name in used)
    return model


def calibrate(source: Path, rows: Iterable[Arrays]) -> Ranges:
    """The ranges of what goes into each linear layer.

    On an SST-2 classifier, clipping to percentiles, to the least squared error or smoothing (SmoothQuant) gave no
    better accuracy than the plain least and greatest value, and far worse when a little too bold.
    """
    import onnx
    import onnxruntime

    model = _read(source)
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    linear = [n for n in model.graph.node if n.op_type in ("MatMul", "Gemm") and _weights(n, weights)]
    names = list(dict.fromkeys(node.input[0] for node in linear))
    del model.graph.output[:]
    model.graph.output.extend(onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, None) for n in names)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    wanted = [given.name for given in session.get_inputs()]
    ranges: dict[str, tuple[float, float]] = {}
    for row in rows:
        values: list[Any] = list(session.run(names, {name: row[name] for name in wanted}))
        for name, value in zip(names, values, strict=True):
            low, high = ranges.get(name, (0.0, 0.0))
            ranges[name] = min(low, float(value.min())), max(high, float(value.max()))
    if names and not ranges:
        raise InputError("static quantization needs rows to calibrate on, found none; give train rows or dynamic")
    return ranges


def quantize(source: Path, path: Path, ranges: Ranges | None = None, keep_float: Collection[str] = ()) -> None:
    """Write the int8 model; see the module. Raises `NotGoodEnough` where a weight stays float that was not to."""
    import onnx

    model = _read(source)
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    chosen = {
        i: [onnx.numpy_helper.to_array(weight) for weight in found]
        for i, node in enumerate(model.graph.node)
        if _layer(node) not in keep_float and (found := _weights(node, weights))
    }
    rewrite: dict[str, Any] = {
        "MatMul": _Edit.linear, "Gemm": _Edit.linear, "Gather": _Edit.embedding, "Conv": _Edit.convolution,
        "GRU": _Edit.recurrence,
    }  # fmt: skip
    edit = _Edit(ranges)
    for i, node in enumerate(model.graph.node):
        if i in chosen:
            edit.origin = node
            rewrite[node.op_type](edit, node, *chosen[i])
        else:
            edit.nodes.append(node)
    _check(edit.nodes, weights, keep_float)
    used = {name for node in edit.nodes for name in node.input}
    constants = [*(tensor for tensor in model.graph.initializer if tensor.name in used), *edit.constants.values()]
    del model.graph.node[:], model.graph.initializer[:]
    model.graph.node.extend(edit.nodes)
    model.graph.initializer.extend(constants)
    onnx.save(model, path)


def _check(nodes: Iterable[Any], weights: Mapping[str, Any], keep_float: Collection[str]) -> None:
    """Raise `NotGoodEnough` where a layer of `nodes` that is not to stay float multiplies by a float matrix.

    A matrix that is added (a ViT's positions) or normalised (DeBERTa-v2's) is no layer's weight.
    """
    import onnx

    float_type = onnx.TensorProto.FLOAT
    matrix = {name: name for name, w in weights.items() if w.data_type == float_type and len(w.dims) == 2}
    left: dict[str, int] = {}
    for node in nodes:
        if node.op_type in _SAME and node.input[0] in matrix:
            matrix[node.output[0]] = matrix[node.input[0]]
        for place in _WEIGHT.get(node.op_type, ()):
            if _layer(node) not in keep_float and (name := matrix.get(node.input[place])):
                left[name] = int(np.prod(weights[name].dims)) * 4
    if left:
        raise NotGoodEnough(
            f"{sum(left.values()):,} bytes of weights would stay float32, {', '.join(list(left)[:3])} among them: they "
            "are used in a way that this quantizer does not know; leave the quantize step out"
        )


class _Edit:
    """The nodes and constants of the int8 graph as it grows. `ranges` of activations by name make it static."""

    def __init__(self, ranges: Ranges | None) -> None:
        self.ranges = ranges
        self.nodes: list[Any] = []
        self.constants: dict[str, Any] = {}
        self.activations: dict[str, tuple[str, ...]] = {}
        self.origin: Any = None
        """The float node that is being replaced: what replaces it bears its layer's name."""

    def node(self, op: str, inputs: list[str], outputs: list[str], **attributes: Any) -> str:
        """Append a node and give its first output."""
        import onnx

        made = onnx.helper.make_node(op, inputs, outputs, name=f"{outputs[0]}_{op}", **attributes)
        made.metadata_props.extend(self.origin.metadata_props)
        self.nodes.append(made)
        return outputs[0]

    def constant(self, name: str, value: np.ndarray | np.generic) -> str:
        import onnx

        self.constants[name] = onnx.numpy_helper.from_array(np.array(value, order="C"), name)
        return name

    def weight(self, name: str, value: np.ndarray, axis: int, most: int) -> tuple[str, str]:
        """The names of the int8 tensor and of its scales along `axis`; made once where layers share it."""
        if f"{name}_int8" in self.constants:
            return f"{name}_int8", f"{name}_scale"
        others = tuple(i for i in range(value.ndim) if i != axis)
        greatest = np.abs(value).max(axis=others, keepdims=True)
        scale = np.where(greatest > 0, greatest / most, 1).astype(np.float32)
        rounded = np.rint(value / scale).astype(np.int8)
        return self.constant(f"{name}_int8", rounded), self.constant(f"{name}_scale", scale.reshape(-1))

    def activation(self, name: str) -> tuple[str, ...]:
        """`name` quantized, once for all its consumers: (x8, scale, zero point), or static (float again,)."""
        if name not in self.activations:
            x8, scale, zero = f"{name}_uint8", f"{name}_uint8_scale", f"{name}_uint8_zero"
            if self.ranges is None:
                self.node("DynamicQuantizeLinear", [name], [x8, scale, zero])
                self.activations[name] = (x8, scale, zero)
            else:
                low, high = self.ranges[name]
                step = np.float32((high - low) / 255 or 1)
                given = [self.constant(scale, step), self.constant(zero, np.uint8(round(-low / step)))]
                self.node("QuantizeLinear", [name, *given], [x8])
                self.activations[name] = (self.node("DequantizeLinear", [x8, *given], [f"{name}_rounded"]),)
        return self.activations[name]

    def linear(self, node: Any, weight: np.ndarray) -> None:
        """A MatMul, or a Gemm as MatMul and Add."""
        import onnx

        output, name = node.output[0], node.input[1]
        if node.op_type == "Gemm" and _attribute(node, "transB", 0):
            weight, name = weight.T, f"{name}_transposed"
        w8, w_scale = self.weight(name, weight, axis=1, most=_LINEAR)
        x = self.activation(node.input[0])
        bias = list(node.input[2:])
        product = f"{output}_product" if bias else output
        if self.ranges is None:
            whole = self.node("MatMulInteger", [x[0], w8, x[2]], [f"{output}_int32"])
            whole = self.node("Cast", [whole], [f"{output}_whole"], to=onnx.TensorProto.FLOAT)
            scale = self.node("Mul", [x[1], w_scale], [f"{output}_scale"])
            self.node("Mul", [whole, scale], [product])
        else:
            w = self.node("DequantizeLinear", [w8, w_scale], [f"{output}_weight"], axis=1)
            self.node("MatMul", [x[0], w], [product])
        if bias:
            self.node("Add", [product, *bias], [output])

    def embedding(self, node: Any, weight: np.ndarray) -> None:
        import onnx

        output, (name, ids) = node.output[0], node.input
        rows, scale = self.weight(name, weight, axis=0, most=_LOOKED_UP)
        found = self.node("Gather", [rows, ids], [f"{output}_int8"])
        found = self.node("Cast", [found], [f"{output}_whole"], to=onnx.TensorProto.FLOAT)
        scales = self.node("Gather", [scale, ids], [f"{output}_scale"])
        last = self.constant("last_axis", np.array([-1], dtype=np.int64))
        scales = self.node("Unsqueeze", [scales, last], [f"{output}_scales"])
        self.node("Mul", [found, scales], [output])

    def recurrence(self, node: Any, inner: np.ndarray, own: np.ndarray) -> None:
        """A GRU: what multiplies its input, and its state; [directions, 3 * features, width] each."""
        for place, weight in ((1, inner), (2, own)):
            name = node.input[place]
            w8, scale = self.weight(name, weight, axis=1, most=_LOOKED_UP)
            node.input[place] = self.node("DequantizeLinear", [w8, scale], [f"{name}_again"], axis=1)
        self.nodes.append(node)

    def convolution(self, node: Any, weight: np.ndarray) -> None:
        w8, scale = self.weight(node.input[1], weight, axis=0, most=_LOOKED_UP)
        node.input[1] = self.node("DequantizeLinear", [w8, scale], [f"{node.output[0]}_weight"], axis=0)
        self.nodes.append(node)


def _weights(node: Any, weights: Mapping[str, Any]) -> list[Any]:
    """The constant weights of a node that is a layer, of those given by name; none for any other node."""
    import onnx

    found: list[Any] = [weights.get(node.input[place]) for place in _WEIGHT.get(node.op_type, ())]
    if any(w is None or w.data_type not in (onnx.TensorProto.FLOAT, onnx.TensorProto.INT8) for w in found):
        return []
    plain = {
        "Gemm": _attribute(node, "transA", 0) == 0 and _attribute(node, "alpha", 1) == _attribute(node, "beta", 1) == 1,
        "Gather": _attribute(node, "axis", 0) == 0,
    }
    rank = 3 if node.op_type in ("Conv", "GRU") else 2
    right_rank = all(len(w.dims) == rank or (node.op_type == "Conv" and len(w.dims) > rank) for w in found)
    return found if right_rank and plain.get(node.op_type, True) else []


def _attribute(node: Any, name: str, default: float) -> float:
    import onnx

    return next((onnx.helper.get_attribute_value(a) for a in node.attribute if a.name == name), default)


def _layer(node: Any) -> str:
    """`bert.encoder.layer.0.attention.self.query`, which torch's exporter notes at each node; else the node's name."""
    for note in node.metadata_props:
        if note.key == "pkg.torch.onnx.name_scopes":
            # "['', 'model', 'model.bert', ..., 'linear_3']": the wrapper, the modules from outer to inner, the operator
            module = ast.literal_eval(note.value)[-2]
            if module:
                return module.partition(".")[2] or module
    return node.name or node.output[0]
