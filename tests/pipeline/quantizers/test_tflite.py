import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from edgekit import infer, progress
from edgekit.errors import InputError
from edgekit.pipeline.quantizers import tflite as quantizer

MODES = ["dynamic", "static"]


class Small(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.model = torch.nn.Module()
        self.model.words = torch.nn.Embedding(900, 32)
        self.model.inner = torch.nn.Linear(32, 64)
        self.model.head = torch.nn.Linear(64, 3)
        with torch.no_grad():
            self.model.words.weight[7] *= 100  # one row's scale must not be another's
            self.model.inner.weight[5] /= 1000  # nor one channel's

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> dict[str, torch.Tensor]:
        inner = torch.nn.functional.gelu(self.model.inner(self.model.words(input_ids)))
        mask = attention_mask.unsqueeze(-1).to(inner.dtype)
        return {"logits": self.model.head((inner * mask).sum(1) / mask.sum(1))}


@pytest.fixture(scope="module")
def model() -> Small:
    return Small().eval()


@pytest.fixture(scope="module")
def source(model: Small, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model at two lengths."""
    import litert_torch

    path = tmp_path_factory.mktemp("float") / "model.tflite"
    converter = litert_torch
    for length in (8, 16):
        given = {name: torch.ones(1, length, dtype=torch.int32) for name in ("input_ids", "attention_mask")}
        converter = converter.signature(f"len_{length}", model, sample_kwargs=given)
    with progress.quiet():
        converter.convert().export(str(path))
    return path


def rows(count: int = 40) -> Iterator[dict[str, np.ndarray]]:
    """Rows of 3 to 16 tokens, none of them the one with the great embedding."""
    random = np.random.default_rng(1)
    for i in range(count):
        ids = random.integers(8, 900, (1, 3 + i % 14))
        yield {"input_ids": ids, "attention_mask": np.ones_like(ids)}


def ranges(source: Path, mode: str) -> quantizer.Ranges | None:
    return quantizer.calibrate(source, rows()) if mode == "static" else None


def weights(path: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Layer to int8 values and scales, read by the interpreter."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(path))
    found = {}
    for detail in interpreter.get_tensor_details():
        if detail["dtype"] == np.int8 and len(detail["quantization_parameters"]["scales"]) > 1:
            value = interpreter.get_tensor(detail["index"])
            found[value.shape] = value, detail["quantization_parameters"]["scales"]
    return found


@pytest.mark.parametrize("mode", MODES)
def test_weights_are_rounded_per_channel_and_rows_per_row(
    model: Small, source: Path, tmp_path: Path, mode: str
) -> None:
    quantizer.quantize(source, tmp_path / "int8.tflite", ranges(source, mode))
    found = weights(tmp_path / "int8.tflite")
    for module in (model.model.words, model.model.inner, model.model.head):
        weight = module.weight.detach().numpy()
        scale = abs(weight).max(1) / 127
        values, scales = found[weight.shape]
        np.testing.assert_allclose(scales, scale, rtol=1e-3)
        assert abs(values - np.round(weight / scale[:, None])).max() <= 1


@pytest.mark.parametrize("mode", MODES)
def test_every_length_answers_like_float_from_one_set_of_weights(source: Path, tmp_path: Path, mode: str) -> None:
    path = tmp_path / "int8.tflite"
    quantizer.quantize(source, path, ranges(source, mode))
    float_model, int8 = infer.open_model(source), infer.open_model(path)
    assert int8.inputs == float_model.inputs and int8.outputs == float_model.outputs
    for row in rows():
        expected = float_model(row)["logits"]
        np.testing.assert_allclose(int8(row)["logits"], expected, rtol=0, atol=0.05 * abs(expected).max() + 0.01)
    # `layers` counts each buffer once: a second set of weights would count twice
    assert sum(layer.elements for layer in quantizer.layers(path)) == 900 * 32 + 32 * 64 + 64 * 3


def test_padding_does_not_widen_a_range(source: Path) -> None:
    great = {"input_ids": np.array([[0, 1, 2]]), "attention_mask": np.array([[1, 1, 1]])}
    padded_only = quantizer.calibrate(source, [great])
    # token 0 is what fills up a row; given twice as long a row of it, nothing new is seen
    more = {"input_ids": np.array([[0, 1, 2, 0]]), "attention_mask": np.array([[1, 1, 1, 1]])}
    inner = [name for name in padded_only if "Linear_inner" in name]
    assert inner
    assert all(padded_only[name] == quantizer.calibrate(source, [more])[name] for name in inner)
    outlier = {"input_ids": np.array([[7, 1, 2]]), "attention_mask": np.array([[1, 1, 1]])}
    assert any(quantizer.calibrate(source, [outlier])[name] != padded_only[name] for name in inner)


def test_layers_are_named_by_module_before_and_after(source: Path, tmp_path: Path) -> None:
    assert quantizer.layers(source) == (
        ("words", "float32", 900 * 32),
        ("inner", "float32", 32 * 64),
        ("head", "float32", 64 * 3),
    )
    for mode in MODES:
        path = tmp_path / f"{mode}.tflite"
        quantizer.quantize(source, path, ranges(source, mode), keep_float=["inner"])
        after = quantizer.layers(path)
        assert [layer.name for layer in after if layer.dtype == "float32"] == ["inner"]
        assert sum(layer.elements for layer in after if layer.dtype == "int8") == 900 * 32 + 64 * 3


@pytest.mark.parametrize("mode", MODES)
def test_the_same_input_gives_the_same_bytes_and_no_other_file(source: Path, tmp_path: Path, mode: str) -> None:
    before = source.read_bytes()
    for name in ("a.tflite", "b.tflite"):
        quantizer.quantize(source, tmp_path / name, ranges(source, mode))
    assert (tmp_path / "a.tflite").read_bytes() == (tmp_path / "b.tflite").read_bytes()
    assert source.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 2 and len(list(source.parent.iterdir())) == 1


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
