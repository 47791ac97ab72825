"""Bundles that differ from a good one in one known way, for the gate to find. ONNX only: its graph can be edited."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from edgekit import bundle
from edgekit.bundle import MANIFEST, Manifest

WIDTH = 64


def copy(source: Path, out: Path) -> Path:
    """The bundle at `source`, to be changed."""
    shutil.copytree(source, out)
    return out


def signed(folder: Path) -> Path:
    """The bundle with a manifest that fits what is in it now, as a build would write it."""
    manifest = Manifest.model_validate_json((folder / MANIFEST).read_bytes())
    bundle.write(folder, manifest)
    return folder


def slower(source: Path, out: Path, rows: int, layers: int = 8) -> Path:
    """`layers` products of a [rows, 64] and a [64, 64] matrix more, which add 0 times their sum to the outputs: the
    answers are the same, the time is not, and the file grows by 16 kB."""
    folder = copy(source, out)
    path = folder / "onnx" / "model.onnx"
    model: Any = onnx.load(str(path))
    graph = model.graph
    weight = np.random.default_rng(0).normal(0, 0.1, (WIDTH, WIDTH)).astype(np.float32)
    constants = {
        "ballast_w": weight, "ballast_shape": np.array([rows, WIDTH], np.int64), "ballast_zero": np.float32(0),
    }  # fmt: skip
    graph.initializer.extend([numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()])
    (output,) = [one.name for one in graph.output]
    for node in graph.node:
        node.output[:] = [f"{name}_light" if name == output else name for name in node.output]
        node.input[:] = [f"{name}_light" if name == output else name for name in node.input]
    make = helper.make_node
    nodes = [
        make("ReduceMax", [f"{output}_light"], ["ballast_seed"], keepdims=0),
        make("Expand", ["ballast_seed", "ballast_shape"], ["ballast_0"]),
        *(make("MatMul", [f"ballast_{i}", "ballast_w"], [f"ballast_{i + 1}"]) for i in range(layers)),
        make("ReduceMax", [f"ballast_{layers}"], ["ballast_sum"], keepdims=0),
        make("Mul", ["ballast_sum", "ballast_zero"], ["ballast_nothing"]),
        make("Add", [f"{output}_light", "ballast_nothing"], [output]),
    ]
    graph.node.extend(nodes)
    onnx.save(model, str(path))
    return signed(folder)


def bigger(source: Path, out: Path, count: int) -> Path:
    """A constant of so many bytes that nothing reads."""
    folder = copy(source, out)
    path = folder / "onnx" / "model.onnx"
    model: Any = onnx.load(str(path))
    noise = np.random.default_rng(0).integers(0, 255, count, dtype=np.uint8)
    model.graph.initializer.append(numpy_helper.from_array(noise, "ballast"))
    onnx.save(model, str(path))
    return signed(folder)


def wrong(source: Path, out: Path) -> Path:
    """Its outputs with the other sign, so that it prefers what it should like least."""
    folder = copy(source, out)
    path = folder / "onnx" / "model.onnx"
    model: Any = onnx.load(str(path))
    (output,) = [one.name for one in model.graph.output]
    for node in model.graph.node:
        node.output[:] = [f"{name}_right" if name == output else name for name in node.output]
    model.graph.node.append(helper.make_node("Neg", [f"{output}_right"], [output]))
    onnx.save(model, str(path))
    return signed(folder)
