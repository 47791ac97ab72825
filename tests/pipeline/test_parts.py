"""What a file's bytes are spent on, against the torch model's own parameters, summed up by its modules."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import families as tiny
import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper

from edgekit import plugins, progress
from edgekit.errors import InputError
from edgekit.pipeline import families, models
from edgekit.pipeline.export import made_up
from edgekit.pipeline.parts import parts
from edgekit.records import Kind
from edgekit.tasks import pad

KINDS: dict[str, Kind] = {
    "bert": "token-classification",
    "distilbert": "question-answering",
    "electra": "text-classification",
    "roberta": "text-classification",
    "albert": "question-answering",
    "mobilebert": "text-classification",
    "mpnet": "sentence-embedding",
    "deberta-v2": "text-classification",
    "vit": "image-classification",
}
TWO = ("bert", "albert")
"""Exported with two layers, or ALBERT's one in two rounds; of the others one says it all."""
ATTENTION = {
    "distilbert": ("attention.", "sa_layer_norm."),
    "mobilebert": ("attention.", "bottleneck."),
    "vit": ("attention.", "layernorm_before."),
}
"""What the first half of a layer is called, where it is not just `attention`."""
FLOAT_TABLES = ("position_embeddings", "rel_embeddings", "cls_token")
"""Tables that are not always looked up by row, and are then left in float by the quantizers."""
LENGTH, HIDDEN, NEURONS = 64, 32, 48
NORM = 2 * 4 * HIDDEN  # bytes of a layer norm


def by_hand(model: Any, size: Callable[[str, torch.Tensor], int]) -> Counter[str]:
    """Bytes of the model's parameters by part, from its modules."""
    family = model.config.model_type
    base = "" if model.base_model is model else f"{model.base_model_prefix}."
    found: Counter[str] = Counter()
    for name, parameter in model.named_parameters():
        inside = name.removeprefix(base)
        head = not name.startswith(base) or inside.startswith(("pooler.", "layernorm."))
        part = "head" if head else "embeddings"
        for i in range(2):
            layer = families.FAMILIES[family].layers.replace("*", str(i), 1).replace("*", "0") + "."
            if not head and inside.startswith(layer):
                first = inside.removeprefix(layer).startswith(ATTENTION.get(family, ("attention.",)))
                part = f"layer {i} " + ("attention" if first else "feed-forward")
        found[part] += size(name, parameter)
    return found


def int8(a_row: int) -> Callable[[str, torch.Tensor], int]:
    """A matrix takes one byte a weight and `a_row` bytes a row; vectors stay float32."""
    return lambda _, weight: weight.numel() + a_row * weight.shape[0] if weight.ndim > 1 else 4 * weight.numel()


def copies(family: str, format: str, linear: Callable[[int, int], int]) -> Counter[str]:
    """Bytes that are in the file more often than in torch; `linear(in, out)` is one layer's, without its bias.

    LiteRT's converter folds the scale of a norm into the linear layers behind it: the second round of ALBERT has its
    own query, key and value, and DeBERTa's position keys and queries are not those of the text. torch's ONNX exporter
    transposes matrices as small as these anew for each round (larger ones when they are run).
    """
    square = linear(HIDDEN, HIDDEN) + 4 * HIDDEN
    return Counter(
        {
            ("albert", "onnx"): {"layer 0 feed-forward": linear(HIDDEN, NEURONS) + linear(NEURONS, HIDDEN)},
            ("albert", "tflite"): {"layer 0 attention": 3 * square},
            ("deberta-v2", "tflite"): {"layer 0 attention": 2 * square},
        }.get((family, format), {})
    )


def written(folder: Path, family: str, format: str, lengths: tuple[int, ...] = (LENGTH,)) -> tuple[Any, Path, Path]:
    """A model with no two weights alike, which would be stored once, and its files, float32 and int8."""
    kind = KINDS[family]
    layers = {} if family in TWO else {"n_layers" if family == "distilbert" else "num_hidden_layers": 1}
    model = models.load(tiny.make(folder / "model", family, kind, **layers), kind)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    exportable = models.Exportable(model, kind).eval()
    batch = pad(made_up(exportable, 2, LENGTH), models.pad_id(model))
    path, small = folder / f"model.{format}", folder / f"small.{format}"
    with progress.quiet():
        tensors = {name: torch.from_numpy(array) for name, array in batch.items()}
        plugins.load("exporters", format).export(exportable, tensors, lengths, path)
        plugins.load("quantizers", format).quantize(path, small)
    return model, path, small


def spent(path: Path) -> Counter[str]:
    """The parts of a file as numbers by name, less `other`."""
    found = parts(path)
    assert sum(part.bytes for part in found) == path.stat().st_size
    assert found[-1].name == "other"
    assert all(part.bytes > 0 for part in found)
    return Counter({part.name: part.bytes for part in found[:-1]})


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_onnx_of_every_family_to_the_byte(family: str, tmp_path: Path) -> None:
    model, path, small = written(tmp_path, family, "onnx")
    wanted = by_hand(model, lambda _, weight: 4 * weight.numel())
    assert spent(path) == wanted + copies(family, "onnx", lambda i, o: 4 * i * o)
    assert list(spent(path)) == sorted(spent(path), key=lambda name: (name == "head", name != "embeddings", name))

    found, wanted = spent(small), by_hand(model, int8(4)) + copies(family, "onnx", lambda i, o: i * o + 4 * o)
    check_embeddings(model, found, wanted)
    assert found == wanted

    for file in (path, small):  # the same from the constants' names and the graph alone
        stripped = onnx.load(file)
        for node in stripped.graph.node:
            del node.metadata_props[:]
        onnx.save(stripped, tmp_path / "stripped.onnx")
        assert spent(tmp_path / "stripped.onnx") == spent(file)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_tflite_of_every_family_but_for_folded_norms(family: str, tmp_path: Path) -> None:
    """A norm may be gone: it was folded into the linear layers behind it. All else is to the byte."""
    model, path, small = written(tmp_path, family, "tflite")
    found = spent(path)
    wanted = by_hand(model, lambda _, weight: 4 * weight.numel()) + copies(family, "tflite", lambda i, o: 4 * i * o)
    assert found.keys() == wanted.keys()
    for name, count in wanted.items():
        assert found[name] in (count, count - NORM // 2, count - NORM), name
    assert found["head"] == wanted["head"]

    scaled = spent(small)  # a scale of 4 and a zero point of 8 bytes a row
    wanted = by_hand(model, int8(12)) + copies(family, "tflite", lambda i, o: i * o + 12 * o)
    check_embeddings(model, scaled, wanted)
    assert scaled.keys() == wanted.keys()
    for name, count in wanted.items():
        assert scaled[name] in (count, count - NORM // 2, count - NORM), name


def check_embeddings(model: Any, found: Counter[str], wanted: Counter[str]) -> None:
    """Hold the int8 embeddings between all tables int8 and some float, and take them out of both counts."""
    tables = [weight for name, weight in model.named_parameters() if any(table in name for table in FLOAT_TABLES)]
    low, count = wanted.pop("embeddings"), found.pop("embeddings")
    # less a norm, and a scale that stands alone, as that of RoBERTa's one token type, is no weight
    assert low - NORM - 12 <= count <= low + sum(3 * table.numel() for table in tables)


def test_signatures_share_weights_and_have_their_own_scales(tmp_path: Path) -> None:
    model, _, small = written(tmp_path, "distilbert", "tflite", (LENGTH // 2, LENGTH))
    found, wanted = spent(small), by_hand(model, int8(2 * 12))
    assert found["layer 0 attention"] == wanted["layer 0 attention"]
    assert found["layer 0 feed-forward"] == wanted["layer 0 feed-forward"] - NORM  # it went into the head


def small_graph(**beside: Any) -> Any:
    """x -> MatMul(w) -> Add(bias of a query) -> MatMul(v) -> y, named as torch names them."""
    weights = [
        numpy_helper.from_array(np.ones((4, 4), np.float32), "val_1"),
        numpy_helper.from_array(np.ones(4, np.float32), "bert.encoder.layer.10.attention.self.query.bias"),
        numpy_helper.from_array(np.ones((4, 2), np.float32), "val_2"),
        numpy_helper.from_array(np.ones(3, np.int64), "bert.embeddings.position_ids"),
    ]
    nodes = [
        helper.make_node("MatMul", ["x", "val_1"], ["a"]),
        helper.make_node("Add", ["a", "bert.encoder.layer.10.attention.self.query.bias"], ["b"]),
        helper.make_node("MatMul", ["b", "val_2"], ["y"], **beside),
    ]
    values = [helper.make_tensor_value_info(name, 1, [1, n]) for name, n in (("x", 4), ("y", 2))]
    return helper.make_model(helper.make_graph(nodes, "g", values[:1], values[1:], weights))


def test_what_nothing_names_is_other(tmp_path: Path) -> None:
    onnx.save(small_graph(), tmp_path / "model.onnx")
    assert spent(tmp_path / "model.onnx") == {"layer 10 attention": 64 + 16}


def test_names_of_the_older_exporter(tmp_path: Path) -> None:
    onnx.save(small_graph(name="/classifier/MatMul"), tmp_path / "model.onnx")
    assert spent(tmp_path / "model.onnx") == {"layer 10 attention": 64 + 16, "head": 32}


def test_weights_beside_the_file_count(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(small_graph(), path, save_as_external_data=True, location="model.onnx.data", size_threshold=0)
    found = parts(path)
    assert sum(part.bytes for part in found) == sum(file.stat().st_size for file in tmp_path.iterdir())
    assert found[0].model_dump() == {"name": "layer 10 attention", "bytes": 64 + 16}
    (tmp_path / "model.onnx.data").unlink()
    with pytest.raises(InputError, match=r"model\.onnx: its weights are to lie beside it in 'model\.onnx\.data'"):
        parts(path)


@pytest.mark.parametrize("name", ["model.onnx", "model.tflite"])
def test_file_that_is_none(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\xff" * 100)
    with pytest.raises(InputError, match=r"is not an? "):
        parts(tmp_path / name)
