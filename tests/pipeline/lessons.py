"""Lessons for tests of methods: a tiny teacher of any family and kind, a student of its layers, and rows.

A helper of tests, in no test file.
"""

from pathlib import Path

import families as tiny
import numpy as np
import torch

from edgekit.pipeline import families, models
from edgekit.pipeline.methods import Lesson
from edgekit.pipeline.signals import Speaker, Teacher
from edgekit.records import Kind
from edgekit.tasks import Feature, pad

LABELS = ("bad", "good")
CASES: tuple[tuple[str, Kind], ...] = (
    *((family, "text-classification") for family in tiny.TEXT_FAMILIES),
    ("bert", "token-classification"), ("mpnet", "token-classification"), ("distilbert", "question-answering"),
    ("deberta-v2", "question-answering"), ("bert", "sentence-embedding"), ("roberta", "sentence-embedding"),
    ("vit", "image-classification"),
)  # fmt: skip
"""Every family, and every kind."""


def lesson(
    folder: Path,
    family: str = "bert",
    kind: Kind = "text-classification",
    layers: int = 4,
    student: int = 2,
    seed: int = 0,
) -> Lesson:
    """A teacher of `layers` layers, a student of its first `student`, and twelve rows of lengths 4 to 8."""
    depth = {"n_layers" if family == "distilbert" else "num_hidden_layers": layers}
    teacher = Teacher(tiny.make(folder, family, kind, LABELS, **depth), kind, labels(kind))
    model = families.with_layers(models.load(folder, kind, labels(kind)), range(student))
    return Lesson(Speaker(model, kind), (teacher,), rows(kind), kind, seed)


def labels(kind: Kind) -> tuple[str, ...]:
    """The labels that the model of a kind is loaded with."""
    return LABELS if kind.endswith("classification") else ()


def rows(kind: Kind) -> list[Feature]:
    """Made-up rows with labels."""
    random = np.random.default_rng(0)
    found: list[Feature] = []
    for i in range(12):
        n = int(random.integers(4, 9))
        ids = {"input_ids": random.integers(5, 40, n), "attention_mask": np.ones(n, dtype=np.int64)}
        truth = {
            "token-classification": {"labels": random.integers(0, 2, n)},
            "question-answering": {"start_positions": np.int64(1), "end_positions": np.int64(2)},
            "sentence-embedding": {},
        }.get(kind, {"labels": np.int64(i % 2)})
        inputs = (
            {"pixel_values": random.normal(size=(3, 32, 32)).astype(np.float32)}
            if kind == "image-classification"
            else {**ids, "token_type_ids": np.zeros(n, dtype=np.int64)}
        )
        found.append(Feature(inputs, i, truth))
    return found


def batch(given: Lesson, number: int = 12) -> dict[str, torch.Tensor]:
    """The first rows as one padded batch."""
    padded = pad(given.features[:number], models.pad_id(given.student.model))
    return {"index": torch.arange(number), **{name: torch.from_numpy(np.asarray(a)) for name, a in padded.items()}}
