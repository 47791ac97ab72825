"""Tiny bundles, made by the real export and bundle stages from the models of `families.py`.

A helper of tests, in no test file.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import families
import numpy as np

from edgekit import store
from edgekit.pipeline import Job, Made, TaskData, bundle, export, quantize
from edgekit.recipe import Export, Quantize, Recipe
from edgekit.records import Artifact, Budget, Facts, Format, Target, parse

LABELS = {
    "text-classification": ("negative", "positive"),
    "token-classification": ("O", "COMMA", "PERIOD", "QUESTION"),
    "image-classification": ("cat", "dog"),
}
TASKS = {
    "text-classification": {"name": "text_classification"},
    "token-classification": {"name": "punctuation"},
    "question-answering": {"name": "question_answering"},
    "sentence-embedding": {"name": "sentence_embedding"},
    "image-classification": {"name": "image_classification"},
}


def rows(kind: str, folder: Path) -> list[dict[str, Any]]:
    """Two rows of data for a task of `kind`; images are written to `folder`."""
    if kind == "text-classification":
        return [{"text": "a good film", "label": "positive"}, {"text": "a bad film", "label": "negative"}]
    if kind == "token-classification":
        words = [text.replace(",", "").split()[:6] for text in families.TEXTS[:2]]
        return [{"tokens": w, "tags": ["O", "COMMA", "O", "QUESTION", "O", "PERIOD"]} for w in words]
    if kind == "question-answering":
        answers = {"text": ["the fox"], "answer_start": [0]}
        row = {"id": "1", "question": "who wrote", "context": "the fox jumps over the dog", "answers": answers}
        return [row, {**row, "id": "2"}]
    if kind == "sentence-embedding":
        pairs = ((families.TEXTS[0], families.TEXTS[0]), families.TEXTS[1:3])
        return [{"text_a": a, "text_b": b, "score": i} for i, (a, b) in enumerate(pairs)]
    from PIL import Image

    for i, name in enumerate(LABELS[kind]):
        pixels = np.random.default_rng(i).integers(0, 255, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{name}.png")
    return [{"image": f"{name}.png", "label": name} for name in LABELS[kind]]


def make(
    base: Path,
    family: str = "bert",
    kind: str = "text-classification",
    formats: Sequence[Format] = ("onnx", "tflite"),
    budgets: Sequence[Budget] = (),
    lengths: tuple[int, ...] = (16, 32),
) -> tuple[Path, Facts]:
    """The folder of a bundle below `base`, and what the bundle stage said of it."""
    job = prepared(base, family, kind, formats, budgets, lengths)
    facts = bundle.run(None, job)
    return job.out / "bundle", facts


def make_int8(base: Path) -> Path:
    """The folder of an int8 bundle of both formats below `base`."""
    job = prepared(base)
    parents = dict(job.parents)
    for format in job.target.formats:
        out = base / f"int8-{format}"
        out.mkdir()
        step = Quantize(stage="quantize", max_drop=None, must_be_faster=False)
        work = replace(job, parents={**parents, "export": parents[f"export:{format}"]}, out=out, format=format)
        parents[f"quantize:{format}"] = made(f"quantize-{format}", "quantize", out, quantize.run(step, work))
    bundle.run(None, replace(job, parents=parents))
    return job.out / "bundle"


def prepared(
    base: Path,
    family: str = "bert",
    kind: str = "text-classification",
    formats: Sequence[Format] = ("onnx", "tflite"),
    budgets: Sequence[Budget] = (),
    lengths: tuple[int, ...] = (16, 32),
) -> Job:
    """What the bundle stage works on, with everything before it made."""
    (base / "data").mkdir(parents=True)
    lines = "".join(json.dumps(row) + "\n" for row in rows(kind, base / "data"))
    for split in ("train", "dev"):
        (base / "data" / f"{split}.jsonl").write_text(lines)
    labels = LABELS.get(kind, ())
    model = families.make(base / "model", family, kind, labels)
    values: dict[str, Any] = {
        "name": "tiny", "max_length": lengths[-1], "task": TASKS[kind],
        "data": {"name": "files", "train": "data/train.jsonl", "dev": "data/dev.jsonl"},
        "step": [{"stage": "teach", "model": "model"}, {"stage": "export"}],
    }  # fmt: skip
    recipe = parse(Recipe, values, "recipe")
    target = Target(
        name="here", description="a test", abi="host", formats=tuple(formats), lengths=lengths, budgets=tuple(budgets)
    )
    data = TaskData(recipe, base)
    facts = Facts(parameters=1000, bytes=4000, changed="loaded")
    parents = {role: made("teach", "teach", model, facts) for role in ("teacher", "model")}
    for format in formats:
        out = base / f"export-{format}"
        out.mkdir()
        found = export.run(Export(stage="export"), Job(recipe, target, data, parents, out, base / "scratch", format))
        parents[f"export:{format}"] = made(f"export-{format}", "export", out, found)
    out = base / "out"
    out.mkdir()
    history = tuple(dict.fromkeys(parent.artifact.name for parent in parents.values()))
    artifacts = {parent.artifact.name: parent.artifact for parent in parents.values()}
    return Job(recipe, target, data, parents, out, base / "scratch", None, tuple(artifacts[name] for name in history))


def made(name: str, stage: str, folder: Path, facts: Facts) -> Made:
    """`folder` as the store would give it."""
    artifact = Artifact(
        id=store.key({"name": name}), name=name, stage=stage, parents=(), files=store.files_in(folder), facts=facts,
        seconds=1.0, versions={"python": "3"},
    )  # fmt: skip
    return Made(artifact, folder)
