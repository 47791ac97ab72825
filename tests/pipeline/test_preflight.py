"""Preflight: what it finds in a training that cannot work or will hardly work, and that it leaves no trace."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import families as tiny
import numpy as np
import pytest
import torch
from torch import nn

from edgekit import plugins
from edgekit import recipe as recipes
from edgekit.errors import InputError
from edgekit.pipeline import Job, Made, TaskData, models, preflight, training
from edgekit.pipeline.methods import Lesson
from edgekit.pipeline.signals import Speaker, Teacher
from edgekit.recipe import Recipe, Training
from edgekit.records import Artifact, Facts, Kind, Score, Use
from edgekit.tasks import Feature

LABELS = ("bad", "good")
WANTED = Training(learning_rate=1e-3, batch_size=4, precision="float32")


def features(kind: Kind = "text-classification", rows: int = 24) -> list[Feature]:
    random = np.random.default_rng(0)
    found: list[Feature] = []
    for example in range(rows):
        length = int(random.integers(4, 12))
        labels: dict[str, np.ndarray] = {"labels": np.array(0 if example % 3 else 1)}
        if kind == "token-classification":
            labels = {"labels": np.array([-100, *random.integers(0, 2, length - 2), -100])}
        if kind == "question-answering":
            labels = {"start_positions": np.array(1), "end_positions": np.array(2)}
        inputs = {"input_ids": random.integers(5, 60, length), "attention_mask": np.ones(length, int)}
        found.append(Feature({**inputs, "token_type_ids": np.zeros(length, int)}, example, labels))
    return found


def lesson(folder: Path, kind: Kind = "text-classification") -> Lesson:
    labels = LABELS if "classification" in kind else ()
    its = tiny.make(folder / "teacher", "bert", kind, LABELS, num_hidden_layers=3)
    mine = tiny.make(folder / "student", "bert", kind, LABELS, seed=1)
    teacher = Teacher(its, kind, labels)
    return Lesson(Speaker(models.load(mine, kind, labels), kind), (teacher,), features(kind), kind, 0)


def kd(lesson: Lesson, *losses: dict[str, Any]) -> Any:
    method, params = plugins.use("methods", Use.model_validate({"name": "kd", "losses": losses}))
    return method.objective(params, lesson)


def test_a_good_training_has_no_warnings(tmp_path: Path) -> None:
    given = lesson(tmp_path)
    objective = kd(given, {"name": "kl"}, {"name": "cross_entropy"})
    assert preflight.batch(objective, given, given.features, WANTED) == []


def test_a_term_whose_gradient_drowns_another(tmp_path: Path) -> None:
    given = lesson(tmp_path)
    objective = kd(given, {"name": "kl", "weight": 2.0}, {"name": "hidden_mse", "weight": 5e5})
    (found,) = preflight.batch(objective, given, given.features, WANTED)
    assert found.startswith("2 hidden_mse's gradient is ") and "times that of 1 kl" in found
    proposed = float(found.partition("set weight = ")[2].split()[0])
    again = kd(given, {"name": "kl", "weight": 2.0}, {"name": "hidden_mse", "weight": proposed})
    assert preflight.batch(again, given, given.features, WANTED) == []


def test_gradients_are_those_of_the_weighted_terms() -> None:
    """L = 3 a.w + 0.5 |w|^2 at w = (1, 2), a = (2, 0): norms 3 * 2 = 6 and 0.5 * 2 |w| = sqrt(5)."""
    given = _Toy(lambda w: {"line": 2 * w[0], "square": (w**2).sum()}, {"line": 3.0, "square": 0.5})
    told = given()
    by_term = torch.autograd.grad(told["loss"], list(told["terms"].values()), retain_graph=True)
    assert [weight.item() for weight in by_term] == [3.0, 0.5]
    assert preflight.norm(told["terms"]["line"], [given.w]) == pytest.approx(2)
    assert preflight.norm(told["terms"]["square"], [given.w]) == pytest.approx(2 * 5**0.5)


class _Toy(nn.Module):
    """A student of two weights, (1, 2)."""

    def __init__(self, terms: Any, weights: dict[str, float]) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([1.0, 2.0]))
        self.terms, self.weights = terms, weights

    def forward(self, **batch: Any) -> dict[str, Any]:
        terms = self.terms(self.w)
        return {"loss": torch.stack([self.weights[n] * t for n, t in terms.items()]).sum(), "terms": terms}


def toy(folder: Path, terms: Any, weights: dict[str, float], **wanted: Any) -> list[str]:
    objective: Any = _Toy(terms, weights)
    objective.model = lesson(folder).student.model
    given = replace(lesson(folder), student=objective, teachers=())
    return preflight.batch(objective, given, given.features, WANTED.model_copy(update=wanted))


def test_a_term_without_a_gradient(tmp_path: Path) -> None:
    (found,) = toy(tmp_path, lambda w: {"one": (w**2).sum(), "two": w.sum() * 0 + 3}, {"one": 1.0, "two": 1.0})
    assert found.startswith("two is 3 and has no gradient in the student; leave it out")


def test_a_loss_that_is_no_number(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="two is nan on the first rows"):
        toy(tmp_path, lambda w: {"one": w.sum(), "two": w.sum() * float("nan")}, {"one": 1.0, "two": 1.0})


def test_a_loss_that_nothing_can_change(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no gradient in any weight of the student"):
        toy(tmp_path, lambda w: {"one": w.detach().sum()}, {"one": 1.0})


def test_one_batch_that_cannot_be_learnt(tmp_path: Path) -> None:
    """It starts a thousandth beside the minimum, and AdamW's first steps are as long as the learning rate."""
    goal = torch.tensor([1.001, 2.001])
    (found,) = toy(tmp_path, lambda w: {"one": ((w - goal) ** 2).sum()}, {"one": 1.0}, learning_rate=0.99)
    assert "steps on the same few rows took their loss from" in found and "lower learning_rate = 0.99" in found


@pytest.mark.parametrize(
    "method", [{"name": "kd"}, {"name": "theseus"}, {"name": "dynabert", "widths": (1.0, 0.5), "depths": (1.0,)}]
)
def test_the_training_after_it_is_the_same(method: dict[str, Any], tmp_path: Path) -> None:
    """Weights, buffers, attributes, generators; and what the teacher kept is kept for nobody."""

    def objective() -> tuple[Any, Lesson]:
        torch.manual_seed(3)
        given = lesson(tmp_path)
        if method["name"] == "kd":
            return kd(given, {"name": "kl"}, {"name": "hidden_mse", "projection": "linear"}), given
        module, params = plugins.use("methods", Use.model_validate(method))
        return module.objective(params, given), given

    def trained(name: str, *, before: bool) -> dict[str, torch.Tensor]:
        found, given = objective()
        drawn = torch.get_rng_state()
        if before:
            preflight.batch(found, given, given.features, WANTED)
            assert "speaker" not in vars(given.teachers[0])
        assert torch.equal(drawn, torch.get_rng_state())
        training.train(
            found, given.features, WANTED, pad_id=0, seed=0, scratch=tmp_path / name, what="test"
        )  # fmt: skip
        return found.state_dict()

    with_it, without = trained("with", before=True), trained("without", before=False)
    assert with_it.keys() == without.keys()
    for name, tensor in without.items():
        assert torch.equal(tensor, with_it[name]), name


def test_rows_that_do_not_fit_the_student(tmp_path: Path) -> None:
    given = lesson(tmp_path)
    preflight.inputs(given)
    good = given.features[0]
    label = replace(good, labels={"labels": np.array(2)})
    with pytest.raises(InputError, match="training row 1: label 2, the student knows those below 2"):
        preflight.inputs(replace(given, features=[label]))
    unknown = replace(good, inputs={**good.inputs, "input_ids": good.inputs["input_ids"] + 10_000})
    with pytest.raises(InputError, match=r"token id 100\d\d, the student knows those below"):
        preflight.inputs(replace(given, features=[unknown]))
    short = replace(good, inputs={**good.inputs, "attention_mask": good.inputs["attention_mask"][1:]})
    with pytest.raises(InputError, match="its parts are of unlike lengths"):
        preflight.inputs(replace(given, features=[short]))


@pytest.mark.parametrize(
    "kind", ["text-classification", "token-classification", "question-answering", "sentence-embedding"]
)
def test_a_guess_is_what_the_labels_say(kind: Kind, tmp_path: Path) -> None:
    """Two of three rows have label 0; a guess has the shapes of a model's outputs and knows no more."""
    given = lesson(tmp_path, kind)
    outputs = preflight.guess(given)(given.features[:2])
    for feature, output in zip(given.features, outputs, strict=False):
        length = len(feature.inputs["input_ids"])
        match kind:
            case "text-classification":
                share = np.exp(output["logits"])
                assert share == pytest.approx([(16 + 1) / 26, (8 + 1) / 26])
            case "token-classification":
                assert output["logits"].shape == (length, 2)
            case "question-answering":
                assert output["start_logits"].shape == output["end_logits"].shape == (length,)
            case _:
                assert output["sentence_embedding"].shape == (32,)


def job(folder: Path, score: float) -> Job:
    """A teacher of that accuracy; three of four dev rows are good."""
    rows = [{"text": text, "label": "good" if i % 4 else "bad"} for i, text in enumerate(tiny.TEXTS * 4)]
    for name in ("train", "dev"):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = Recipe.model_validate({
        "name": "x", "max_length": 32, "task": {"name": "text_classification", "labels": LABELS},
        "data": {"name": "files", "train": "train.jsonl", "dev": "dev.jsonl"},
        "step": [{"stage": "teach", "model": "teacher"}],
    })  # fmt: skip
    facts = Facts(bytes=1, changed="", score=Score(metric="accuracy", value=score, examples=28))
    artifact = Artifact(
        id="0" * 64, name="teach", stage="teach", parents=(), files=(), facts=facts, seconds=0, versions={}
    )
    made = {"teacher": Made(artifact, folder / "teacher"), "model": Made(artifact, folder / "teacher")}
    return Job(recipe, recipes.target("host"), TaskData(recipe, folder), made, folder / "out", folder / "scratch")


@pytest.mark.parametrize(("score", "warned"), [(0.76, True), (0.5, True), (0.8, False)])
def test_a_teacher_no_better_than_chance(score: float, warned: bool, tmp_path: Path) -> None:
    given = lesson(tmp_path)
    work = job(tmp_path, score)
    given = replace(given, features=work.data.features("train", tmp_path / "teacher"))
    found = preflight.teacher(given, work)
    assert len(found) == warned
    if warned:
        assert f"the teacher's accuracy is {score:.3f}, a guess from how often each label is gives 0.750" in found[0]


def test_only_a_long_training_is_tried(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given, work = lesson(tmp_path), job(tmp_path, 0.5)
    given = replace(given, features=work.data.features("train", tmp_path / "teacher"))
    objective = kd(given, {"name": "kl"}, {"name": "hidden_mse", "weight": 5e5})
    assert preflight.check(objective, given, given.features, WANTED, work) == ()
    long = WANTED.model_copy(update={"epochs": 40.0})
    teacher, terms = preflight.check(objective, given, given.features, long, work)
    assert "accuracy" in teacher and "gradient" in terms
    assert capsys.readouterr().err.count("warning: ") == 2
