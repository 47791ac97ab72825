"""`edgekit build`: the stages, in order. The only wing that may import torch (and no module does on import of this).

A stage is one file with one function `run(step, job) -> Facts`: it reads the folders in `job.parents`, fills the
empty folder `job.out`, and returns the facts it measured. It never chooses a path, hashes, caches or prints; what
must outlive a kill (training checkpoints) goes to `job.scratch`.
"""

import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from edgekit import plugins, progress
from edgekit.corpora import Split, files
from edgekit.errors import InputError
from edgekit.pipeline import processes
from edgekit.recipe import Recipe, Step
from edgekit.records import Artifact, Format, Kind, Score, Target
from edgekit.store import key, sha256
from edgekit.tasks import Feature, Predict, Row

# What these say at import and while saving is nothing that a user could act on; it would bury our own lines.
for _chatty in ("torchao", "torch.utils._pytree"):
    logging.getLogger(_chatty).setLevel(logging.ERROR)
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
# Threads that spin while they wait made training four times slower wherever the machine had other work.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

ROWS = "rows.jsonl"
"""The file in which an augment step's artifact holds its rows."""


@dataclass(frozen=True)
class Made:
    """An artifact and the folder that holds its files."""

    artifact: Artifact
    folder: Path


@dataclass(frozen=True)
class Planned:
    """One artifact to make: the step that asks for it and the artifacts it is made from, by role."""

    name: str
    stage: str
    step: Step | None
    parents: Mapping[str, str] = field(default_factory=dict[str, str])
    format: Format | None = None
    task: str | None = None
    """The further task (a distill step's `also`) that it is of; `None`: the recipe's own."""


@dataclass(frozen=True)
class TaskData:
    """The recipe's task bound to its parameters, labels and examples: what stages train and score with.

    Labels and examples are read once, on first use.
    """

    recipe: Recipe
    base: Path
    shared: Path | None = None
    """A folder for what several stages and builds can use: the store's; `None`: nothing is kept."""
    further: Path | None = None
    """A file of more training rows, which an augment step made."""

    @cached_property
    def _task(self) -> tuple[Any, Any]:
        return plugins.use("tasks", self.recipe.task, "recipe")

    @cached_property
    def _corpus(self) -> tuple[Any, Any]:
        return plugins.use("corpora", self.recipe.data, "recipe")

    @property
    def kind(self) -> Kind:
        """The kind of model that the task needs."""
        return self._task[0].KIND

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the data and of what the task reads of it."""
        corpus, params = self._corpus
        more = {"further": sha256(self.further)} if self.further else {}
        return key({"data": corpus.fingerprint(params, self.base), "task": self.recipe.task.model_dump(), **more})

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """The label set, from the recipe or the training rows."""
        (task, params), (corpus, corpus_params) = self._task, self._corpus
        return task.labels(params, corpus.rows(corpus_params, "train", self.base))

    @cached_property
    def _further_tasks(self) -> dict[str, "TaskData"]:
        return {}

    def along(self, name: str) -> "TaskData":
        """The data of a further task (a distill step's `also`)."""
        if name not in self._further_tasks:
            self._further_tasks[name] = TaskData(self.recipe.along(name), self.base, self.shared)
        return self._further_tasks[name]

    def with_rows(self, folder: Path) -> "TaskData":
        """The same, and the rows that an augment step wrote to `folder` to train on."""
        return replace(self, further=folder / ROWS)

    def rows(self, split: Split) -> Iterator[Row]:
        """The rows of a split as a stream, `further` ones after those of the recipe's data."""
        corpus, params = self._corpus
        yield from corpus.rows(params, split, self.base)
        if self.further and split == "train":
            yield from files.rows(files.Params(train=str(self.further), dev=""), "train", self.base)

    @cached_property
    def _examples(self) -> dict[Split, list[Any]]:
        return {}

    def examples(self, split: Split) -> list[Any]:
        """All checked examples of a split; an empty split is an `InputError`."""
        if split not in self._examples:
            task, params = self._task
            with progress.bar(f"read {split} data"):
                found = task.examples(params, self.rows(split), self.labels, training=split == "train")
            if not found:
                raise InputError(f"recipe: data {self.recipe.data.name!r} has no rows in its {split} split; add some")
            self._examples[split] = found
        return self._examples[split]

    def features(self, split: Split, folder: Path, limit: int | None = None) -> list[Feature]:
        """A split, or `limit` examples from all over it, as the model in `folder` takes it, by the tokenizer or image
        processor there.
        """
        task, params = self._task
        examples = _spread(self.examples(split), limit)
        with progress.bar(f"encode {split} data"):
            return task.features(params, examples, self.labels, self.encoder(folder))

    def encoder(self, folder: Path) -> Any:
        """The task's encoder for the model in `folder`."""
        task, params = self._task
        return task.encoder(params, folder, self.recipe.max_length)

    def score(self, predict: Predict, folder: Path, limit: int | None = None) -> Score:
        """The score of a model (as `predict`) on the dev split, or on `limit` examples from all over it; of several
        processes at one stage, process 0 scores and tells the others."""
        return Score.model_validate(processes.agree(lambda: self._score(predict, folder, limit).model_dump()))

    def _score(self, predict: Predict, folder: Path, limit: int | None) -> Score:
        task, params = self._task
        examples = _spread(self.examples("dev"), limit)
        features = task.features(params, examples, self.labels, self.encoder(folder))
        with progress.bar("score"):
            return task.score(params, examples, self.labels, features, predict(features))


def _spread(examples: list[Any], limit: int | None) -> list[Any]:
    """`limit` examples at even distances: the first ones of a file sorted by label would be of one label."""
    if limit is None or limit >= len(examples):
        return examples
    return [examples[i * len(examples) // limit] for i in range(limit)]


@dataclass(frozen=True)
class Job:
    """What a stage works on. `parents` by role: `teacher` and `model` (a Hugging Face folder each), `export`."""

    recipe: Recipe
    target: Target
    data: TaskData
    parents: Mapping[str, Made]
    out: Path
    scratch: Path
    format: Format | None = None
    """Of export and quantize, which run once a format."""
    history: tuple[Artifact, ...] = ()
    """Every artifact of this build before this one, in order."""
    task: str | None = None
    """The further task that `recipe` and `data` are of; `None`: the recipe's own."""
