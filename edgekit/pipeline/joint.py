"""Several tasks, one encoder: a student's layers with a head for each task, each taught by its task's own teacher.

    own task      embeddings - layers -+- head          model.safetensors, config.json
    "entities"                         +- head          heads/entities/: the head alone, and its config.json
    "topics"                           +- head          heads/topics/

All models are the student's family and have the very same encoder, with one pooler where the family has it. A head
begins as that of its task's teacher where family and width are the same, else at random. `combined` puts a head and
the encoder together again, as a plain model of its own that is exported and bundled like any other.
"""

import copy
from collections.abc import Mapping, Sequence
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
LADDER = (
    "a ladder has its own backbone and head, and no encoder that several heads could stand on; teach a ladder for each "
    "task and join them with edgekit.pipeline.together.write, or take another student"
)


def beside(student: PreTrainedModel, kind: Kind, labels: Sequence[str], teacher: Path) -> PreTrainedModel:
    """A model of `kind` around the very encoder of `student`, with a head of its own for `labels`.

    Where the head needs a pooler and the encoder has none, it gets one, see `poolers`.
    """
    if student.config.model_type == "edgekit-ladder":
        raise InputError(LADDER)
    if kind == "sentence-embedding":
        base: Any = student.base_model
        return base
    config = copy.deepcopy(student.config)
    names = labels or ("start", "end")  # answers have two outputs and no labels
    config.id2label = dict(enumerate(names))
    config.label2id = {label: i for i, label in enumerate(names)}
    model = models.new(config, kind)
    its = models.load(teacher, kind, labels)
    if (its.config.model_type, its.config.hidden_size) == (config.model_type, config.hidden_size):
        mine, theirs = state(model), its.state_dict()
        same = {name: theirs[name] for name in mine if name in theirs and theirs[name].shape == mine[name].shape}
        model.load_state_dict(same, strict=False)
    new = poolers(model)
    setattr(model, model.base_model_prefix, student.base_model)
    if new.get("pooler") and not poolers(student)["pooler"]:
        set_poolers(student, new)
    return model


def poolers(model: PreTrainedModel) -> dict[str, Any]:
    """The modules of an encoder's pooler, by name; `None` where it could have one and has none."""
    names = ("pooler", "pooler_activation")  # ALBERT's is two
    return {name: getattr(model.base_model, name) for name in names if hasattr(model.base_model, name)}


def set_poolers(model: PreTrainedModel, modules: Mapping[str, Any]) -> None:
    """Give an encoder the pooler that `poolers` gave, or take it away."""
    for name, module in modules.items():
        setattr(model.base_model, name, module)


def head(model: PreTrainedModel) -> list[torch.nn.Module]:
    """The modules of a model that stand on its encoder."""
    return [] if model.base_model is model else [child for child in model.children() if child is not model.base_model]


def state(model: PreTrainedModel) -> dict[str, Tensor]:
    """The tensors of a model's head and pooler, by their names in it."""
    own = [] if model.base_model is model else [*head(model), *filter(None, poolers(model).values())]
    mine = {id(tensor) for module in own for tensor in module.state_dict(keep_vars=True).values()}
    return {name: t.detach() for name, t in model.state_dict(keep_vars=True).items() if id(t) in mine}


def save(model: PreTrainedModel, folder: Path) -> None:
    """Write a head: its tensors with the pooler's, and the whole model's config.json."""
    folder.mkdir(parents=True)
    config = copy.deepcopy(model.config)
    config.architectures = [type(model).__name__]
    config.save_pretrained(folder)
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
