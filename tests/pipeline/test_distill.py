"""Distill: a smaller, loadable student that starts from the teacher's layers and moves towards what it says."""

import json
from pathlib import Path

import families as tiny
import numpy as np
import pytest
import torch

from edgekit import recipe as recipes
from edgekit.errors import InputError
from edgekit.pipeline import Job, Made, TaskData, distill, families, models, teach
from edgekit.recipe import Distill, Recipe, Teach
from edgekit.records import Artifact, Facts

LABELS = ("bad", "good")


def job(folder: Path, layers: int = 4, **step: object) -> tuple[Distill, Job]:
    teacher = tiny.make(folder / "teacher", "bert", labels=LABELS, num_hidden_layers=layers)
    rows = [{"text": text, "label": "bad" if "bad" in text else "good"} for text in tiny.TEXTS] * 8
    for name in ("train", "dev"):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    wanted = {"stage": "distill", "layers": 2, "training": {"epochs": 0.01}, **step}
    recipe = Recipe.model_validate({
        "name": "x", "max_length": 32, "task": {"name": "text_classification", "labels": LABELS},
        "data": {"name": "files", "train": "train.jsonl", "dev": "dev.jsonl"},
        "step": [{"stage": "teach", "model": "teacher"}, wanted],
    })  # fmt: skip
    artifact = Artifact(
        id="0" * 64, name="teach", stage="teach", parents=(), files=(), facts=Facts(bytes=1, changed=""), seconds=0,
        versions={},
    )  # fmt: skip
    made = Made(artifact, teacher)
    for name in ("out", "scratch"):
        (folder / name).mkdir()
    data = TaskData(recipe, folder)
    parents = {"model": made, "teacher": made}
    found = recipe.step[1]
    assert isinstance(found, Distill)
    return found, Job(recipe, recipes.target("host"), data, parents, folder / "out", folder / "scratch")


@pytest.mark.parametrize(("start", "layers"), [("bottom", (0, 1)), ("uniform", (1, 3))])
def test_the_student_starts_from_the_teachers_layers(start: str, layers: tuple[int, ...], tmp_path: Path) -> None:
    step, work = job(tmp_path, start=start, training={"epochs": 0.01, "learning_rate": 1e-12})
    facts = distill.run(step, work)
    teacher = models.load(tmp_path / "teacher", "text-classification", LABELS)
    student = models.load(work.out, "text-classification", LABELS)
    assert len(families.layers(student)) == 2
    for mine, its in zip(families.layers(student), [families.layers(teacher)[i] for i in layers], strict=True):
        assert torch.allclose(mine.query.weight, its.query.weight, atol=1e-6)
    assert facts.parameters == models.parameters(student) < models.parameters(teacher)
    assert facts.bytes == (work.out / "model.safetensors").stat().st_size
    assert (work.out / "tokenizer.json").is_file()


def test_training_moves_the_student_towards_the_teacher(tmp_path: Path) -> None:
    step, work = job(tmp_path, training={"epochs": 40, "learning_rate": 3e-3, "batch_size": 8, "precision": "float32"})
    features = work.data.features("dev", tmp_path / "teacher")

    def distance(folder: Path) -> float:
        one, other = (
            models.predictor(models.load(f, "text-classification", LABELS), "text-classification")(features)
            for f in (folder, tmp_path / "teacher")
        )
        return float(np.mean([np.abs(a["logits"] - b["logits"]).mean() for a, b in zip(one, other, strict=True)]))

    (tmp_path / "start").mkdir()
    whole = models.load(tmp_path / "teacher", "text-classification", LABELS)
    models.save(families.with_layers(whole, [0, 1]), tmp_path / "start")
    distill.run(step, work)
    assert distance(work.out) < 0.5 * distance(tmp_path / "start")


def test_more_layers_than_the_model_has(tmp_path: Path) -> None:
    step, work = job(tmp_path, layers=2)
    with pytest.raises(InputError, match="layers = 3, but the model before it has 2"):
        distill.run(step.model_copy(update={"layers": 3}), work)


def test_a_teacher_without_training_needs_a_head_for_the_task(tmp_path: Path) -> None:
    _, work = job(tmp_path)
    config = json.loads((tmp_path / "teacher" / "config.json").read_text())
    del config["id2label"], config["label2id"]
    whole = models.load(tmp_path / "teacher", "text-classification", LABELS)
    models.save(whole.base_model, tmp_path / "teacher")
    with pytest.raises(InputError, match="no trained head"):
        teach.run(Teach(stage="teach", model="teacher"), work)
