"""Several teachers against NumPy, for every family and kind; what is refused."""

import json
from pathlib import Path
from typing import Any

import families as tiny
import numpy as np
import pytest
import torch

from edgekit import plugins
from edgekit import recipe as recipes
from edgekit.errors import InputError
from edgekit.pipeline import Job, Made, TaskData, distill, models
from edgekit.pipeline.methods import Lesson
from edgekit.pipeline.signals import Speaker, Teacher
from edgekit.recipe import Distill, Recipe
from edgekit.records import Artifact, Facts, Kind, Use
from edgekit.tasks import Feature

LABELS = ("bad", "good")
KINDS: tuple[Kind, ...] = ("text-classification", "token-classification", "question-answering", "sentence-embedding")


def lesson(folder: Path, family: str = "bert", kind: Kind = "text-classification", teachers: int = 2) -> Lesson:
    labels = LABELS if kind.endswith("classification") else ()
    found = tuple(
        Teacher(tiny.make(folder / f"{seed}", family, kind, LABELS, seed), kind, labels) for seed in range(teachers)
    )
    student = models.load(tiny.make(folder / "student", family, kind, LABELS, seed=9), kind, labels)
    return Lesson(Speaker(student, kind), found, [Feature({}, 0)], kind, seed=0)


def batch(model: Any, kind: Kind) -> dict[str, torch.Tensor]:
    if kind == "image-classification":
        torch.manual_seed(0)
        return {"index": torch.arange(2), "pixel_values": torch.randn(2, 3, 32, 32), "labels": torch.tensor([0, 1])}
    mask = torch.tensor([[1] * 7, [1] * 5 + [0] * 2])
    ids = (torch.arange(14).view(2, 7) + 5) * mask + (1 - mask) * models.pad_id(model)
    found = {"index": torch.arange(2), "input_ids": ids, "attention_mask": mask, "token_type_ids": 0 * mask}
    match kind:
        case "text-classification":
            return {**found, "labels": torch.tensor([0, 1])}
        case "token-classification":
            return {**found, "labels": torch.where(mask == 1, ids % 2, -100)}
        case "question-answering":
            return {**found, "start_positions": torch.tensor([1, 2]), "end_positions": torch.tensor([3, 3])}
        case _:
            return found


def objective(given: Lesson, **params: object) -> Any:
    method, parsed = plugins.use("methods", Use.model_validate({"name": "multi_teacher", **params}))
    return method.objective(parsed, given)


def logits(given: Lesson, rows: dict[str, torch.Tensor]) -> tuple[np.ndarray, list[np.ndarray]]:
    with torch.no_grad():
        student = given.student.eval()(rows).outputs["logits"].numpy()
    return student, [teacher(rows).outputs["logits"].numpy() for teacher in given.teachers]


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_every_family_and_kind(family: str, tmp_path: Path) -> None:
    for kind in ("image-classification",) if family == "vit" else KINDS:
        given = lesson(tmp_path / kind, family, kind)
        names = ["output_mse"] if kind == "sentence-embedding" else ["kl", "output_mse", "cross_entropy"]
        rows = batch(given.student.model, kind)
        for average in (True, False):
            found = objective(given, losses=[{"name": name} for name in names], average=average).train()
            said = found(**rows)
            said["loss"].backward()
            assert torch.isfinite(said["loss"])
            assert len(said["terms"]) == len(names)
            assert not any("teacher" in name for name, _ in found.named_parameters())
        assert all(not p.requires_grad for teacher in given.teachers for p in teacher.speaker.parameters())


def test_the_mean_of_the_logits(tmp_path: Path) -> None:
    given = lesson(tmp_path, teachers=3)
    rows = batch(given.student.model, "text-classification")
    z, theirs = logits(given, rows)
    mean = 0.5 * theirs[0] + 0.125 * theirs[1] + 0.375 * theirs[2]
    found = objective(given, losses=[{"name": "output_mse", "weight": 3.0}], weights=[4, 1, 3]).eval()
    assert found(**rows)["loss"].item() == pytest.approx(3 * ((z - mean) ** 2).mean(), rel=1e-5)
    p, q = softmax(mean / 2), softmax(z / 2)
    found = objective(given, losses=[{"name": "kl", "temperature": 2}], weights=[4, 1, 3]).eval()
    assert found(**rows)["loss"].item() == pytest.approx(4 * (p * np.log(p / q)).sum(-1).mean(), rel=1e-4)


def test_a_term_a_teacher(tmp_path: Path) -> None:
    given = lesson(tmp_path)
    rows = batch(given.student.model, "text-classification")
    z, theirs = logits(given, rows)
    wanted = 0.25 * ((z - theirs[0]) ** 2).mean() + 0.75 * ((z - theirs[1]) ** 2).mean()
    found = objective(given, losses=[{"name": "output_mse"}], weights=[1, 3], average=False).eval()
    assert found(**rows)["loss"].item() == pytest.approx(wanted, rel=1e-5)


def test_a_term_a_teacher_has_the_gradient_of_averaged_probabilities(tmp_path: Path) -> None:
    """You et al. 2017: d/dz_s of KL(mean of p_k || softmax z_s) is softmax(z_s) - mean of p_k, a row's share each."""
    given = lesson(tmp_path)
    rows = batch(given.student.model, "text-classification")
    z, theirs = logits(given, rows)
    found = objective(given, losses=[{"name": "kl", "temperature": 1}], average=False).eval()
    bias = given.student.model.classifier.bias
    found(**rows)["loss"].backward()
    wanted = (softmax(z) - (softmax(theirs[0]) + softmax(theirs[1])) / 2).mean(0)
    assert np.allclose(bias.grad.numpy(), wanted, atol=1e-6)


def test_labels_count_once(tmp_path: Path) -> None:
    given = lesson(tmp_path)
    rows = batch(given.student.model, "text-classification")
    z, _ = logits(given, rows)
    wanted = -np.log(softmax(z)[[0, 1], rows["labels"].numpy()]).mean()
    for average in (True, False):
        found = objective(given, losses=[{"name": "cross_entropy"}], average=average).eval()
        assert found(**rows)["loss"].item() == pytest.approx(wanted, rel=1e-5)


def test_padding_never_counts(tmp_path: Path) -> None:
    given = lesson(tmp_path, kind="token-classification")
    rows = batch(given.student.model, "token-classification")
    longer = {
        name: value if value.dim() == 1 else torch.nn.functional.pad(value, (0, 3)) for name, value in rows.items()
    }
    longer["labels"][:, 7:] = -100
    for average in (True, False):
        found = objective(given, losses=[{"name": "kl"}, {"name": "output_mse"}], average=average).eval()
        assert found(**longer)["loss"].item() == pytest.approx(found(**rows)["loss"].item(), rel=1e-4)


def test_a_teacher_of_weight_0_is_not_asked(tmp_path: Path) -> None:
    given = lesson(tmp_path)
    rows = batch(given.student.model, "text-classification")
    found = objective(given, losses=[{"name": "output_mse"}], weights=[0, 1]).eval()
    loss = found(**rows)["loss"].item()
    assert "speaker" not in vars(given.teachers[0])  # it was never loaded
    z, theirs = logits(given, rows)
    assert loss == pytest.approx(((z - theirs[1]) ** 2).mean(), rel=1e-5)


def test_half_precision(tmp_path: Path) -> None:
    given = lesson(tmp_path)
    rows = batch(given.student.model, "text-classification")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.isfinite(objective(given)(**rows)["loss"])


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"weights": [1.0]}, "weights has 1 numbers, there are 2 teachers"),
        ({"weights": [0.0, 0.0]}, "at least one is more"),
        ({"weights": [-1.0, 2.0]}, "0 or more"),
        ({"losses": [{"name": "hidden_mse"}]}, "hidden_mse compares layers"),
        ({"losses": [{"name": "attention_mse"}]}, "attention_mse compares layers"),
    ],
)
def test_what_is_refused(params: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=said):
        objective(lesson(tmp_path), **params)


def test_one_teacher_is_not_several(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="two teachers or more, found 1"):
        objective(lesson(tmp_path, teachers=1))


def test_embeddings_of_unlike_width(tmp_path: Path) -> None:
    given = lesson(tmp_path, kind="sentence-embedding")
    wide = tiny.make(tmp_path / "wide", "bert", "sentence-embedding", hidden_size=48)
    teachers = (given.teachers[0], Teacher(wide, "sentence-embedding", ()))
    with pytest.raises(InputError, match="widths 32, 48"):
        objective(Lesson(given.student, teachers, given.features, given.kind, 0))


def test_a_distill_step_with_further_teachers(tmp_path: Path) -> None:
    """The student comes nearer to the mean of both teachers."""
    for seed, name in enumerate(("teacher", "other")):
        tiny.make(tmp_path / name, "bert", labels=LABELS, seed=seed)
    models.copy_processor(tmp_path / "teacher", tmp_path / "other")
    rows = [{"text": text, "label": "bad" if "bad" in text else "good"} for text in tiny.TEXTS] * 8
    for name in ("train", "dev"):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = Recipe.model_validate({
        "name": "x", "max_length": 32, "task": {"name": "text_classification", "labels": LABELS},
        "data": {"name": "files", "train": "train.jsonl", "dev": "dev.jsonl"},
        "step": [{"stage": "teach", "model": "teacher"}, {
            "stage": "distill", "layers": 1, "teachers": ["other"],
            "method": {"name": "multi_teacher", "losses": [{"name": "output_mse"}]},
            "training": {"epochs": 20, "learning_rate": 5e-3, "batch_size": 8, "precision": "float32"},
        }],
    })  # fmt: skip
    artifact = Artifact(
        id="0" * 64, name="teach", stage="teach", parents=(), files=(), facts=Facts(bytes=1, changed=""), seconds=0,
        versions={},
    )  # fmt: skip
    made = Made(artifact, tmp_path / "teacher")
    for name in ("out", "scratch"):
        (tmp_path / name).mkdir()
    step = recipe.step[1]
    assert isinstance(step, Distill)
    data = TaskData(recipe, tmp_path)
    parents = {"model": made, "teacher": made}
    job = Job(recipe, recipes.target("host"), data, parents, tmp_path / "out", tmp_path / "scratch")
    features = data.features("dev", tmp_path / "teacher")

    def said(folder: Path) -> np.ndarray:
        model = models.load(folder, "text-classification", LABELS)
        return np.stack([each["logits"] for each in models.predictor(model, "text-classification")(features)])

    distill.run(step, job)
    target = (said(tmp_path / "teacher") + said(tmp_path / "other")) / 2
    off = np.abs(said(tmp_path / "out") - target).mean()
    assert off < 0.7 * np.abs(said(tmp_path / "teacher") - target).mean()
