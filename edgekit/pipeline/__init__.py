"""`edgekit build`: the stages, in order. The only wing that may import torch (and no module does on import of this).

A stage is one file with one function `run(step, job) -> Facts`: it reads the folders in `job.parents`, fills the
empty folder `job.out`, and returns the facts it measured. It never chooses a path, hashes, caches or prints; what
must outlive a kill (training checkpoints) goes to `job.scratch`.
"""

import itertools
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from edgekit import plugins, progress
from edgekit.corpora import Split, files
from edgekit.errors import InputError
from edgekit.pipeline import encoded, processes
from edgekit.recipe import Recipe, Step
from edgekit.records import Artifact, Format, Kind, Score, Target
from edgekit.store import key, sha256, sources
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
_CHUNK = 1000
"""Rows that are checked and encoded at once."""
_READERS = ("tokenizer.json", "preprocessor_config.json")


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

    Rows to train on are a stream, checked and encoded a thousand at a time and kept on disk (see `encoded`). Those to
    score with are read once, on first use, and stay.
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
            with progress.bar(f"read {split} data"):
                self._examples[split] = [example for chunk in self._chunks(split) for example in chunk]
        return self._examples[split]

    def _chunks(self, split: Split) -> Iterator[list[Any]]:
        """All checked examples of a split, those of a thousand rows at a time."""
        task, params = self._task
        rows, found = self.rows(split), False
        for row in rows:
            some = itertools.chain([row], itertools.islice(rows, _CHUNK - 1))
            chunk = task.examples(params, some, self.labels, training=split == "train")
            found = found or bool(chunk)
            yield chunk
        if not found:
            raise InputError(f"recipe: data {self.recipe.data.name!r} has no rows in its {split} split; add some")

    def count(self) -> int:
        """The number of training examples, after every row was read and checked once."""
        return self._count

    @cached_property
    def _count(self) -> int:
        with progress.bar("read train data"):
            return sum(map(len, self._chunks("train")))

    def _some(self, split: Split, limit: int | None) -> list[Any]:
        """A split, or `limit` examples at even distances: the first ones of a file sorted by label would be of one."""
        if split == "dev" or limit is None:
            every = self.examples(split)
            return every if limit is None else [every[i] for i in spread(len(every), limit)]
        wanted, at, found = set(spread(self.count(), limit)), 0, list[Any]()
        for chunk in self._chunks(split):
            found += [example for i, example in enumerate(chunk, at) if i in wanted]
            at += len(chunk)
        return found

    def features(self, split: Split, folder: Path, limit: int | None = None) -> Sequence[Feature]:
        """A split, or `limit` examples from all over it, as the model in `folder` takes it, by the tokenizer or image
        processor there. Training text is read from disk, each feature when it is asked for.
        """
        task, params = self._task
        with progress.bar(f"encode {split} data"):
            if split == "train" and limit is None and self.shared is not None:
                return encoded.stored(self.shared / "encoded", self._identity(folder), self._encoded(folder))
            return task.features(params, self._some(split, limit), self.labels, self.encoder(folder))

    def _encoded(self, folder: Path) -> Iterator[list[Feature]]:
        """The training features of the examples of a thousand rows at a time."""
        task, params = self._task
        encoder, at = self.encoder(folder), 0
        for chunk in self._chunks("train"):
            found = task.features(params, chunk, self.labels, encoder)
            yield [replace(feature, example=at + feature.example) for feature in found]
            at += len(chunk)

    def _identity(self, folder: Path) -> dict[str, Any]:
        """What makes the training features for the model in `folder`."""
        reader = [sha256(path) for path in sorted(folder.glob("*.json")) if path.name in _READERS]
        source, versions = sources((encoded.__name__, *(module.__name__ for module, _ in (self._task, self._corpus))))
        code = {"source": source, "versions": versions, "max_length": self.recipe.max_length}
        return {"data": self.fingerprint, "labels": self.labels, "reader": reader, **code}

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
        examples = self._some("dev", limit)
        features = task.features(params, examples, self.labels, self.encoder(folder))
        with progress.bar("score"):
            return task.score(params, examples, self.labels, features, predict(features))


def spread(count: int, limit: int) -> Sequence[int]:
    """Up to `limit` of `count` indices, at even distances."""
    return range(count) if limit >= count else [i * count // limit for i in range(limit)]


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
