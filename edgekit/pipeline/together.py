"""Several ladders on one frozen backbone as one model with a head for each task.

    write({"sentiment": FOLDER, "names": FOLDER}, OUT, formats=("onnx", "tflite"), lengths=(32, 128))

Ladders that were taught beside the same model (`students/ladder`) share its weights to the last bit, which is checked,
so a file needs them once, and a device runs them once for all tasks. Outputs bear the task's name: `sentiment.logits`,
`names.logits`. OUT holds `model.onnx` or `model.tflite`, the tokenizer, and `tasks.json` with each task's kind and
labels.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edgekit import infer, plugins, progress
from edgekit.errors import InputError, NotGoodEnough
from edgekit.pipeline import export, ladders, models
from edgekit.records import Format
from edgekit.tasks import pad


class Together(nn.Module):
    """What exporters take (see `models.Exportable`): the inputs of one ladder, the outputs of all by task."""

    def __init__(self, tasks: Mapping[str, models.Exportable]) -> None:
        """`tasks` by name; their backbones are equal, and become one."""
        super().__init__()
        first = next(iter(tasks.values()))
        self.model = first.model
        self.input_names = first.input_names
        self.output_names = tuple(f"{name}.{output}" for name, task in tasks.items() for output in task.output_names)
        self.backbone = _Once(_rails(first).backbone)
        for task in tasks.values():
            _rails(task).backbone = self.backbone
        self.names = tuple(tasks)
        self.tasks = nn.ModuleList(tasks.values())

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Outputs by `output_names`."""
        self.backbone.said.clear()
        found: dict[str, Tensor] = {}
        for name, task in zip(self.names, self.tasks, strict=True):
            outputs = task(input_ids, attention_mask, token_type_ids, pixel_values)
            found |= {f"{name}.{output}": tensor for output, tensor in outputs.items()}
        self.backbone.said.clear()
        return found


class _Once(nn.Module):
    """A backbone that all ladders of one pass ask the same: it runs for the first and repeats itself for the others."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.said = _Said()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if not hasattr(self.said, "states"):
            self.said.states = self.backbone(*args, **kwargs)
        return self.said.states


class _Said:
    """Holds what was said in one pass; no part of the module, so that an exporter does not see a state in it."""

    def clear(self) -> None:
        """Forget it."""
        self.__dict__.clear()

    states: Any


def write(
    folders: Mapping[str, Path],
    out: Path,
    formats: Sequence[Format] = ("onnx",),
    lengths: Sequence[int] = (32, 64, 128),
    tolerance: float = 1e-3,
) -> tuple[Path, ...]:
    """Write one model of the ladders in `folders`, by task, to `out`; gives its files, one a format.

    Raises `InputError` where a folder holds no ladder, or one on another backbone or with another tokenizer, and
    `NotGoodEnough` where an output differs from its own ladder's by more than `tolerance`.
    """
    tasks = {name: _task(name, folder) for name, folder in folders.items()}
    _same(tasks, folders)
    first = next(iter(tasks.values()))
    batches = [pad(export.made_up(first, 3, length), models.pad_id(first.model)) for length in lengths]
    wanted = [_outputs(tasks, batch) for batch in batches]
    model = Together(tasks).eval()
    out.mkdir(parents=True, exist_ok=True)
    files = tuple(out / f"model.{format}" for format in formats)
    for format, file in zip(formats, files, strict=True):
        example = {name: torch.from_numpy(array) for name, array in batches[-1].items()}
        with progress.bar(f"export {format}"), progress.quiet():
            plugins.load("exporters", format).export(model, example, lengths, file)
        _check(file, batches, wanted, tolerance)
    models.copy_processor(next(iter(folders.values())), out)
    labels = {
        name: [label for _, label in sorted((task.model.config.id2label or {}).items())] for name, task in tasks.items()
    }
    about = {name: {"kind": task.kind, "labels": labels[name]} for name, task in tasks.items()}
    (out / "tasks.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    return files


def _task(name: str, folder: Path) -> models.Exportable:
    config = models.configuration(folder) if (folder / "config.json").is_file() else None
    if not isinstance(config, ladders.Config):
        raise InputError(f'{name}: {folder} holds no ladder; teach one with student = {{ name = "ladder" }}')
    return models.Exportable(models.load(folder, config.kind), config.kind).eval()


def _rails(task: models.Exportable) -> Any:
    return task.model.base_model


def _same(tasks: Mapping[str, models.Exportable], folders: Mapping[str, Path]) -> None:
    """Refuse ladders that do not stand on one backbone, or read other tokens."""
    if not tasks:
        raise InputError("several ladders: none is named; name a folder for each task")
    first = next(iter(tasks))
    marks = {name: _mark(_rails(task).backbone) for name, task in tasks.items()}
    words = {name: _read(folder / "tokenizer.json") for name, folder in folders.items()}
    for name in tasks:
        if marks[name] != marks[first]:
            raise InputError(
                f"{name}: {folders[name]} stands on another backbone than {first} ({folders[first]}): their weights "
                "differ; teach both from the same model"
            )
        if words[name] != words[first]:
            raise InputError(f"{name}: its tokenizer is not that of {first}; teach both from the same model")


def _mark(backbone: nn.Module) -> str:
    """The sha256 of all weights, by name."""
    digest = hashlib.sha256()
    for name, weight in sorted(backbone.state_dict().items()):
        digest.update(f"{name} {tuple(weight.shape)}".encode() + weight.contiguous().numpy().tobytes())
    return digest.hexdigest()


def _read(path: Path) -> bytes:
    return path.read_bytes() if path.is_file() else b""


@torch.inference_mode()
def _outputs(tasks: Mapping[str, models.Exportable], batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What each ladder says by itself."""
    given = {name: torch.from_numpy(array) for name, array in batch.items()}
    return {
        f"{name}.{output}": tensor.numpy() for name, task in tasks.items() for output, tensor in task(**given).items()
    }


def _check(file: Path, batches: Sequence[Any], wanted: Sequence[Mapping[str, np.ndarray]], tolerance: float) -> None:
    """Hold the file against each ladder, on the real tokens of each row."""
    session = infer.open_model(file)
    for batch, expected in zip(batches, wanted, strict=True):
        rows = len(next(iter(batch.values())))
        for row in range(rows):
            one = {name: array[row : row + 1] for name, array in batch.items()}
            given = session(one)
            real = int(one["attention_mask"].sum()) if "attention_mask" in one else 0
            for name, output in expected.items():
                mine, its = given[name][0], output[row]
                if mine.ndim and real and mine.shape[:1] == one["attention_mask"].shape[1:]:
                    mine, its = mine[:real], its[:real]
                if not (diff := float(np.abs(mine - its).max())) <= tolerance:
                    raise NotGoodEnough(f"{file.name}: {name} differs from its own ladder's by {diff:.3g}")
