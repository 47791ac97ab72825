import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from edgekit import infer
from edgekit.errors import InputError, NotGoodEnough
from edgekit.pipeline.quantizers import onnx as quantizer

RANDOM = np.random.default_rng(0)
TABLE = RANDOM.normal(size=(40, 16)).astype(np.float32)
TABLE[7] *= 100  # one row's scale must not be another's
WEIGHT = RANDOM.normal(size=(16, 12)).astype(np.float32)
WEIGHT[:, 3] /= 1000  # one column's scale must not be another's
WEIGHT[:, 5] = 0
HEAD = RANDOM.normal(size=(4, 12)).astype(np.float32)
BIAS = np.array([1, -2, 3, 4], dtype=np.float32)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """logits = mean over tokens of (TABLE[ids] @ WEIGHT), @ HEAD.T + BIAS"""
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["embedded"], "embedding"),
        helper.make_node("MatMul", ["embedded", "weight"], ["wide"], "linear"),
        helper.make_node("ReduceMean", ["wide"], ["pooled"], "pool", axes=[1], keepdims=0),
        helper.make_node("Gemm", ["pooled", "head", "bias"], ["logits"], "head", transB=1),
    ]
    constants = {"table": TABLE, "weight": WEIGHT, "head": HEAD, "bias": BIAS}
    graph = helper.make_graph(
        nodes,
        "hand",
        [helper.make_tensor_value_info("input_ids", onnx.TensorProto.INT64, ["batch", "length"])],
        [helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["batch", 4])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    return path


def rows(count: int = 50) -> Iterator[dict[str, np.ndarray]]:
    """Rows of 3 to 10 tokens, none of them the one with the great embedding."""
    random = np.random.default_rng(1)
    for i in range(count):
        yield {"input_ids": random.integers(8, 40, (1, 3 + i % 8))}


def constants(path: Path) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}


@pytest.mark.parametrize("mode", ["dynamic", "static"])
def test_weights_are_rounded_per_channel_and_rows_per_row(source: Path, tmp_path: Path, mode: str) -> None:
    ranges = quantizer.calibrate(source, rows()) if mode == "static" else None
    quantizer.quantize(source, tmp_path / "int8.onnx", ranges)
    float_values, values = constants(source), constants(tmp_path / "int8.onnx")
    for name, weight, axis, most in (
        ("weight", float_values["weight"], 0, 63),
        ("head_transposed", HEAD.T, 0, 63),
        ("table", TABLE, 1, 127),
    ):
        scale = abs(weight).max(axis) / most
        scale[scale == 0] = 1
        by_hand = np.round(weight / np.expand_dims(scale, axis))
        assert values[f"{name}_int8"].dtype == np.int8
        assert abs(values[f"{name}_int8"] - by_hand).max() <= 1
        np.testing.assert_allclose(values[f"{name}_scale"], scale, rtol=1e-6)
    assert not {"table", "weight", "head"} & set(values)


@pytest.mark.parametrize("mode", ["dynamic", "static"])
def test_the_int8_model_answers_like_the_float_one_at_any_length(source: Path, tmp_path: Path, mode: str) -> None:
    ranges = quantizer.calibrate(source, rows()) if mode == "static" else None
    quantizer.quantize(source, tmp_path / "int8.onnx", ranges)
    float_model, int8 = infer.open_model(source), infer.open_model(tmp_path / "int8.onnx")
    assert int8.inputs == float_model.inputs and int8.outputs == float_model.outputs
    for row in rows():
        feeds = {"input_ids": np.repeat(row["input_ids"], 2, axis=0)}
        expected = float_model(feeds)["logits"]
        np.testing.assert_allclose(int8(feeds)["logits"], expected, rtol=0, atol=0.3)  # of values up to 10


def test_static_activations_use_the_calibrated_range_with_an_exact_zero(source: Path, tmp_path: Path) -> None:
    ranges = quantizer.calibrate(source, rows())
    seen = np.concatenate([TABLE[row["input_ids"][0]].ravel() for row in rows()])
    assert ranges["embedded"] == pytest.approx((seen.min(), seen.max()))
    quantizer.quantize(source, tmp_path / "int8.onnx", ranges)
    values = constants(tmp_path / "int8.onnx")
    scale, zero = values["embedded_uint8_scale"], values["embedded_uint8_zero"]
    assert scale == pytest.approx((seen.max() - seen.min()) / 255)
    assert zero.dtype == np.uint8 and int(zero) == round(-seen.min() / scale)


def test_layers_are_found_in_graph_order_before_and_after(source: Path, tmp_path: Path) -> None:
    assert quantizer.layers(source) == (
        ("embedding", "float32", 640),
        ("linear", "float32", 192),
        ("head", "float32", 48),
    )
    quantizer.quantize(source, tmp_path / "int8.onnx", keep_float=["linear"])
    after = quantizer.layers(tmp_path / "int8.onnx")
    assert [layer.name for layer in after if layer.dtype == "float32"] == ["linear"]
    assert sum(layer.elements for layer in after if layer.dtype == "int8") == 640 + 48
    np.testing.assert_array_equal(constants(tmp_path / "int8.onnx")["weight"], constants(source)["weight"])


def _graph(nodes: list[onnx.NodeProto], size: int, path: Path, **constants: np.ndarray) -> Path:
    """A model of one input x [batch, 16] and one output y [batch, size]."""
    graph = helper.make_graph(
        nodes,
        "hand",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["batch", 16])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["batch", size])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


@pytest.mark.parametrize("mode", ["dynamic", "static"])
@pytest.mark.parametrize("perm", [{"perm": [1, 0]}, {}])
def test_weights_shared_through_a_transpose_are_quantized_once(tmp_path: Path, mode: str, perm: dict[str, Any]) -> None:
    square = np.random.default_rng(2).normal(size=(16, 16)).astype(np.float32) / 4
    nodes = [
        helper.make_node("Transpose", ["w"], ["turned"], "turn", **perm),
        helper.make_node("MatMul", ["x", "turned"], ["a"], "first"),
        helper.make_node("MatMul", ["a", "turned"], ["b"], "second"),
        helper.make_node("MatMul", ["b", "turned"], ["y"], "third"),
    ]
    path, quantized = _graph(nodes, 16, tmp_path / "m.onnx", w=square), tmp_path / "q.onnx"
    inputs = [{"x": np.random.default_rng(i).normal(size=(1, 16)).astype(np.float32)} for i in range(50)]
    assert [(layer.dtype, layer.elements) for layer in quantizer.layers(path)] == [("float32", 256)] * 3
    quantizer.quantize(path, quantized, quantizer.calibrate(path, inputs) if mode == "static" else None)
    assert [layer.dtype for layer in quantizer.layers(quantized)] == ["int8"] * 3
    values = constants(quantized)
    assert [name for name, value in values.items() if value.shape == (16, 16)] == ["turned_int8"]
    scale = abs(square).max(1) / 63  # one for each output
    np.testing.assert_allclose(values["turned_scale"], scale, rtol=1e-6)
    assert abs(values["turned_int8"] - np.round(square / scale[:, None]).T).max() <= 1
    for row in inputs[:5]:
        expected = row["x"] @ square.T @ square.T @ square.T
        np.testing.assert_allclose(infer.open_model(quantized)(row)["y"], expected, rtol=0, atol=0.1)
    quantizer.quantize(path, quantized, keep_float=["second"])
    assert [layer.dtype for layer in quantizer.layers(quantized)] == ["int8", "float32", "int8"]


def test_weights_that_would_stay_float_unseen_are_an_error(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Identity", ["weight"], ["same"], "same"),  # as no exporter writes it
        helper.make_node("MatMul", ["x", "same"], ["y"], "linear"),
    ]
    path = _graph(nodes, 12, tmp_path / "m.onnx", weight=WEIGHT)
    with pytest.raises(NotGoodEnough, match="768 bytes of weights would stay float32, weight among them"):
        quantizer.quantize(path, tmp_path / "q.onnx")
    assert not (tmp_path / "q.onnx").exists()
    quantizer.quantize(path, tmp_path / "q.onnx", keep_float=["linear"])


def test_a_matrix_that_is_added_may_stay_float(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "weight"], ["wide"], "linear"),
        helper.make_node("Add", ["wide", "positions"], ["y"], "add"),
    ]
    path = _graph(nodes, 12, tmp_path / "m.onnx", weight=WEIGHT, positions=WEIGHT)
    quantizer.quantize(path, tmp_path / "q.onnx")
    assert "positions" in constants(tmp_path / "q.onnx")


def test_a_shared_activation_is_quantized_once(tmp_path: Path) -> None:
    nodes = [helper.make_node("MatMul", ["x", f"w{i}"], [f"y{i}"], f"linear{i}") for i in range(3)]
    graph = helper.make_graph(
        nodes,
        "shared",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["batch", 16])],
        [helper.make_tensor_value_info(f"y{i}", onnx.TensorProto.FLOAT, ["batch", 12]) for i in range(3)],
        [numpy_helper.from_array(WEIGHT * (i + 1), f"w{i}") for i in range(3)],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "m.onnx")
    quantizer.quantize(tmp_path / "m.onnx", tmp_path / "q.onnx")
    operators = [node.op_type for node in onnx.load(tmp_path / "q.onnx").graph.node]
    assert operators.count("DynamicQuantizeLinear") == 1 and operators.count("MatMulInteger") == 3


@pytest.mark.parametrize("mode", ["dynamic", "static"])
def test_the_same_input_gives_the_same_bytes_and_no_other_file(source: Path, tmp_path: Path, mode: str) -> None:
    before = source.read_bytes()
    for name in ("a.onnx", "b.onnx"):
        ranges = quantizer.calibrate(source, rows()) if mode == "static" else None
        quantizer.quantize(source, tmp_path / name, ranges)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    assert source.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.onnx", "b.onnx", "model.onnx"]


class Row(dict[str, np.ndarray]):
    """A row that a weak set can hold."""

    def __hash__(self) -> int:  # type: ignore[override]
        return id(self)


def test_calibration_holds_one_row_at_a_time(source: Path) -> None:
    alive: weakref.WeakSet[Row] = weakref.WeakSet()
    most = 0

    def stream() -> Iterator[Row]:
        nonlocal most
        for row in rows(20):
            given = Row(row)
            alive.add(given)
            most = max(most, len(alive))
            yield given
            del given

    quantizer.calibrate(source, stream())
    assert most <= 2


def test_calibration_without_rows_is_refused(source: Path) -> None:
    with pytest.raises(InputError, match="needs rows to calibrate on"):
        quantizer.calibrate(source, [])
