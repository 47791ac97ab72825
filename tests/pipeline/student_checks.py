"""What every student must stand: built, run, saved, loaded again, exported and made int8, with the same outputs.

A helper of tests, in no test file.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import families as tiny
import numpy as np
import torch

from edgekit import infer, plugins, progress
from edgekit.pipeline import export, models
from edgekit.records import Kind, Use
from edgekit.tasks import Arrays, pad

LABELS = ("negative", "positive")


def teacher(folder: Path, family: str = "bert", kind: Kind = "text-classification", **config: Any) -> tuple[Path, Any]:
    """A tiny model of a family: its folder and itself."""
    tiny.make(folder, family, kind, LABELS, **config)
    return folder, models.load(folder, kind, labels(kind))


def labels(kind: Kind) -> Sequence[str]:
    """Of a kind that has any."""
    return LABELS if kind.endswith("-classification") else ()


def build(name: str, model: Any, kind: Kind = "text-classification", **params: Any) -> Any:
    """A student by its plugin, asked as the stages ask: refused, or built."""
    plugin, its = plugins.use("students", Use.model_validate({"name": name, **params}), "test")
    assert plugin.refusal(its, model.config.to_dict()) is None
    torch.manual_seed(0)
    return plugin.build(its, model, kind).eval()


def refusal(name: str, config: dict[str, Any], **params: Any) -> str:
    """Why a student cannot be made."""
    plugin, its = plugins.use("students", Use.model_validate({"name": name, **params}), "test")
    return str(plugin.refusal(its, config))


def batch(model: Any, kind: Kind, length: int = 12) -> Arrays:
    """Two rows, the second one padded."""
    return pad(export.made_up(models.Exportable(model, kind), 2, length), models.pad_id(model))


def comes_back(student: Any, kind: Kind, folder: Path) -> Any:
    """The student saved and loaded, which must say the same; its head's size and kind too."""
    folder.mkdir(exist_ok=True)
    models.save(student, folder)
    loaded = models.load(folder, kind, labels(kind))
    rows = batch(student, kind)
    before, after = models.runner(student.eval(), kind)(rows), models.runner(loaded, kind)(rows)
    for name, output in before.items():
        np.testing.assert_array_equal(output, after[name])
        assert np.isfinite(output).all()
    assert models.parameters(student) == models.parameters(loaded)
    return loaded


def exports(student: Any, kind: Kind, folder: Path, format: str = "onnx", int8: bool = False) -> Path:
    """Its file, which must say what torch says at several lengths; with `int8`, then all of it in int8."""
    folder.mkdir(exist_ok=True)
    model = models.Exportable(student, kind).eval()
    example = batch(student, kind, 24)
    path = folder / f"model.{format}"
    tensors = {name: torch.from_numpy(array) for name, array in example.items()}
    with progress.quiet():
        plugins.load("exporters", format).export(model, tensors, (12, 24), path)
    session = infer.open_model(path)
    export.check_inputs(session, model, example)
    export.check_outputs(session, model, (12, 24), export.made_up(model, 3, 19), 1e-4)
    if int8:
        quantizer = plugins.load("quantizers", format)
        quantizer.quantize(path, folder / f"int8.{format}")
        assert all(layer.dtype == "int8" for layer in quantizer.layers(folder / f"int8.{format}"))
        wanted, given = session(example), infer.open_model(folder / f"int8.{format}")(example)
        for name, output in wanted.items():
            assert not np.array_equal(output, given[name])
            assert np.abs(output - given[name]).max() < 0.1 * np.abs(output).max() + 0.05
    return path


def config(name: str, values: dict[str, Any], **params: Any) -> dict[str, Any]:
    """The student's config.json as its plugin foretells it."""
    plugin, its = plugins.use("students", Use.model_validate({"name": name, **params}), "test")
    return dict(plugin.config(its, values))
