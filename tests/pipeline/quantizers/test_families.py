"""Every family's file becomes int8 in both formats, is int8 by its tensors, and still says what the float one does."""

from pathlib import Path

import families as tiny
import numpy as np
import pytest
import torch

from edgekit import infer, plugins
from edgekit.pipeline import models
from edgekit.pipeline.export import made_up
from edgekit.tasks import pad


@pytest.mark.parametrize("format", ["onnx", "tflite"])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_int8_of_every_family(family: str, format: str, tmp_path: Path) -> None:
    kind = "image-classification" if family == "vit" else "text-classification"
    folder = tiny.make(tmp_path / "teacher", family, kind)
    model = models.Exportable(models.load(folder, kind, ("negative", "positive")), kind).eval()
    batch = pad(made_up(model, 2, 16), models.pad_id(model.model))
    source, path = tmp_path / f"float.{format}", tmp_path / f"int8.{format}"
    tensors = {name: torch.from_numpy(array) for name, array in batch.items()}
    plugins.load("exporters", format).export(model, tensors, (16,), source)
    quantizer = plugins.load("quantizers", format)
    quantizer.quantize(source, path)
    layers = quantizer.layers(path)
    assert layers
    assert all(layer.dtype == "int8" for layer in layers)
    wanted, given = (infer.open_model(file)(batch)["logits"] for file in (source, path))
    assert not np.array_equal(wanted, given)
    assert np.abs(wanted - given).max() < 0.1 * np.abs(wanted).max() + 0.05


@pytest.mark.parametrize("mode", ["dynamic", "static"])
def test_attention_with_one_head_stays_float(mode: str, tmp_path: Path) -> None:
    """Its products of two activations are fully connected operators without weights."""
    folder = tiny.make(tmp_path / "teacher", "bert", num_attention_heads=1)
    model = models.Exportable(
        models.load(folder, "text-classification", ("negative", "positive")), "text-classification"
    )
    batch = pad(made_up(model.eval(), 2, 16), models.pad_id(model.model))
    source, path = tmp_path / "float.tflite", tmp_path / "int8.tflite"
    tensors = {name: torch.from_numpy(array) for name, array in batch.items()}
    plugins.load("exporters", "tflite").export(model, tensors, (16,), source)
    quantizer = plugins.load("quantizers", "tflite")
    rows = [{name: array[i : i + 1] for name, array in batch.items()} for i in range(2)]
    quantizer.quantize(source, path, quantizer.calibrate(source, rows) if mode == "static" else None)
    assert {layer.dtype for layer in quantizer.layers(path)} == {"int8"}
    wanted, given = (infer.open_model(file)(batch)["logits"] for file in (source, path))
    assert np.abs(wanted - given).max() < 0.2 * np.abs(wanted).max() + 0.1
