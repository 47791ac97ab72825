"""Several tasks, one encoder: a student's layers with a head for each task, each taught by its task's own teacher.

    own task      embeddings - layers -+- head          model.safetensors, config.json
    "entities"                         +- head          heads/entities/: the head alone, and its config.json
    "topics"                           +- head          heads/topics/

All models are the student's family; a head (and the pooler before it, where the family has one) begins as that of its
task's teacher where family and width are the same, else at random. `combined` puts a head and the encoder together
again, as a plain model of its own that is exported and bundled like any other.
"""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any, overload

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from edgekit.errors import InputError
from edgekit.pipeline import models
from edgekit.records import Kind
from edgekit.tasks import Feature

HEADS = "heads"
_WEIGHTS = "head.safetensors"


def beside(student: PreTrainedModel, kind: Kind, labels: Sequence[str], teacher: Path) -> PreTrainedModel:
    """A model of `kind` around the very layers of `student`, with a head of its own for `labels`."""
    config = copy.deepcopy(student.config)
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: i for i, label in enumerate(labels)}
    model = models.new(config, kind)
    its = models.load(teacher, kind, labels)
    if (its.config.model_type, its.config.hidden_size) == (config.model_type, config.hidden_size):
        head, theirs = state(model), its.state_dict()
        same = {name: theirs[name] for name in head if name in theirs and theirs[name].shape == head[name].shape}
        model.load_state_dict(same, strict=False)
    for name, child in student.base_model.named_children():
        if name != "pooler" and hasattr(model.base_model, name):
            setattr(model.base_model, name, child)
    return model


def head(model: PreTrainedModel) -> list[torch.nn.Module]:
    """The modules of a model that are its head: all but the encoder."""
    base: Any = model.base_model
    pooler = getattr(base, "pooler", None)
    own = [] if base is model else [child for child in model.children() if child is not base]
    return own if pooler is None else [*own, pooler]


def state(model: PreTrainedModel) -> dict[str, Tensor]:
    """The tensors of a model's head, by their names in it."""
    mine = {id(tensor) for module in head(model) for tensor in module.state_dict(keep_vars=True).values()}
    return {name: t.detach() for name, t in model.state_dict(keep_vars=True).items() if id(t) in mine}


def save(model: PreTrainedModel, folder: Path) -> None:
    """Write a head: its tensors, and the whole model's config.json."""
    folder.mkdir(parents=True)
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    save_file({name: t.contiguous().clone() for name, t in state(model).items()}, folder / _WEIGHTS)


def combined(folder: Path, name: str, kind: Kind) -> PreTrainedModel:
    """The model of the head `name` on the encoder of the model in `folder`, in eval mode."""
    own = folder / HEADS / name
    model = models.new(models.configuration(own), kind)
    prefix = f"{model.base_model_prefix}."
    encoder = {k.removeprefix(prefix): t for path in folder.glob("*.safetensors") for k, t in load_file(path).items()}
    found = {**encoder, **{k.removeprefix(prefix): t for k, t in load_file(own / _WEIGHTS).items()}}
    wanted = model.state_dict()
    absent = [k for k in wanted if k.removeprefix(prefix) not in found]
    if absent:
        raise InputError(f"{own}: the model before it has no {absent[0]}, so this is no head of it; build it again")
    model.load_state_dict({k: found[k.removeprefix(prefix)] for k in wanted})
    return model


class Joined(Sequence[Feature]):
    """Several sequences of features as one, without a copy."""

    def __init__(self, parts: Sequence[Sequence[Feature]]) -> None:
        self._parts = parts

    def __len__(self) -> int:
        return sum(map(len, self._parts))

    @overload
    def __getitem__(self, index: int) -> Feature: ...
    @overload
    def __getitem__(self, index: slice) -> list[Feature]: ...
    def __getitem__(self, index: int | slice) -> Feature | list[Feature]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        for part in self._parts:
            if 0 <= index < len(part):
                return part[index]
            index -= len(part)
        raise IndexError(index)
