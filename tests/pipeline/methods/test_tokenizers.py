"""Teachers with another tokenizer than the student's: what is compared with what, word by word."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import families as tiny
import numpy as np
import pytest
import torch

from edgekit import plugins
from edgekit import recipe as recipes
from edgekit.errors import InputError
from edgekit.pipeline import Job, Made, Planned, TaskData, alignment, check, distill, models
from edgekit.pipeline.methods import Lesson
from edgekit.pipeline.signals import Speaker
from edgekit.recipe import Distill, Recipe
from edgekit.records import Artifact, Facts, Use
from edgekit.tasks import Feature, pad

TASKS: dict[str, dict[str, Any]] = {
    "text-classification": {"name": "text_classification", "labels": ("bad", "good")},
    "token-classification": {"name": "token_classification", "labels": ("long", "short")},
    "question-answering": {"name": "question_answering"},
    "sentence-embedding": {"name": "sentence_embedding"},
}


def rows(kind: str) -> list[dict[str, Any]]:
    match kind:
        case "text-classification":
            return [{"text": text, "label": "bad" if "bad" in text else "good"} for text in tiny.TEXTS]
        case "token-classification":
            words = [text.split() for text in tiny.TEXTS]
            return [{"tokens": w, "tags": ["short" if len(x) < 4 else "long" for x in w]} for w in words]
        case "question-answering":
            answers = [{"text": [text[:5]], "answer_start": [0]} for text in tiny.TEXTS]
            return [
                {"id": text, "context": text, "question": "who is it", "answers": answer}
                for text, answer in zip(tiny.TEXTS, answers, strict=True)
            ]
        case _:
            return [{"text_a": text, "text_b": text, "score": 1.0} for text in tiny.TEXTS]


def job(folder: Path, kind: str, family: str = "roberta", max_length: int = 48, **step: Any) -> Job:
    """A bert that teaches itself, with a further teacher of another family."""
    labels = TASKS[kind].get("labels", ("x", "y"))
    tiny.make(folder / "teacher", "bert", kind, labels)
    tiny.make(folder / "other", family, kind, labels, seed=1)
    for name in ("train", "dev"):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(kind)))
    recipe = Recipe.model_validate({
        "name": "x", "max_length": max_length, "task": TASKS[kind],
        "data": {"name": "files", "train": "train.jsonl", "dev": "dev.jsonl"},
        "step": [{"stage": "teach", "model": "teacher"}, {
            "stage": "distill", "teachers": ["other"], "training": {"epochs": 1, "batch_size": 4},
            "method": {"name": "multi_teacher", "losses": [{"name": "output_mse"}]}, **step,
        }],
    })  # fmt: skip
    artifact = Artifact(
        id="0" * 64, name="teach", stage="teach", parents=(), files=(), facts=Facts(bytes=1, changed=""), seconds=0,
        versions={},
    )  # fmt: skip
    made = Made(artifact, folder / "teacher")
    for name in ("out", "scratch"):
        (folder / name).mkdir()
    data = TaskData(recipe, folder)
    parents = {"model": made, "teacher": made}
    return Job(recipe, recipes.target("host"), data, parents, folder / "out", folder / "scratch")


def lesson(given: Job) -> Lesson:
    own = given.parents["model"].folder
    kind, features = given.data.kind, given.data.features("train", own)
    teachers = tuple(distill.teacher_of(folder, given, features) for folder in (own, own.parent / "other"))
    return Lesson(Speaker(models.load(own, kind, given.data.labels), kind), teachers, features, kind, 0)


def batch(found: Lesson, index: list[int]) -> dict[str, torch.Tensor]:
    arrays = pad([found.features[i] for i in index], models.pad_id(found.student.model))
    return {"index": torch.tensor(index), **{name: torch.from_numpy(array) for name, array in arrays.items()}}


def test_the_same_tokenizer_needs_no_features_of_its_own(tmp_path: Path) -> None:
    given = job(tmp_path, "text-classification", "bert")
    models.copy_processor(tmp_path / "teacher", tmp_path / "other")
    content = json.loads((tmp_path / "other" / "tokenizer.json").read_text())
    truncation = {"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0}
    (tmp_path / "other" / "tokenizer.json").write_text(json.dumps({**content, "truncation": truncation}))
    own, other = lesson(given).teachers
    assert own.features is None and other.features is None


@pytest.mark.parametrize("family", ["roberta", "albert", "deberta-v2", "mpnet"])
def test_one_output_a_row(family: str, tmp_path: Path) -> None:
    """What a teacher says in the student's batches is what it says of the texts by itself."""
    for kind in ("text-classification", "sentence-embedding"):
        given = job(tmp_path / kind, kind, family)
        found = lesson(given)
        _, other = found.teachers
        assert other.features is not None
        features = given.data.features("train", tmp_path / kind / "other")
        model = models.load(tmp_path / kind / "other", given.data.kind, given.data.labels)
        wanted = models.predictor(model, given.data.kind)(features)
        index = [3, 0, len(features) - 1]
        (output,) = other(batch(found, index)).outputs.values()
        for row, i in zip(output.numpy(), index, strict=True):
            assert np.allclose(row, next(iter(wanted[i].values())), atol=1e-5)


@pytest.mark.parametrize(("max_length", "several"), [(48, False), (12, True)])
def test_words(max_length: int, several: bool, tmp_path: Path) -> None:
    """Each labelled token of the student gets what the teacher says of that word, also across windows."""
    given = job(tmp_path, "token-classification", max_length=max_length)
    found = lesson(given)
    _, other = found.teachers
    theirs = given.data.features("train", tmp_path / "other")
    model = models.load(tmp_path / "other", given.data.kind, given.data.labels)
    said = models.predictor(model, given.data.kind)(theirs)
    words: dict[tuple[int, int], np.ndarray] = {}  # by example and word
    for feature, output in zip(theirs, said, strict=True):
        for word, at in zip(feature.extra["words"], feature.extra["positions"], strict=True):
            words[feature.example, int(word)] = output["logits"][at]
    assert (len(theirs) > len(tiny.TEXTS)) == several
    index = list(range(len(found.features)))[::-1]
    given_rows = batch(found, index)
    wisdom = other(given_rows)
    assert torch.equal(wisdom.mask.bool(), given_rows["labels"] != -100)
    for row, i in enumerate(index):
        feature = found.features[i]
        for word, at in zip(feature.extra["words"], feature.extra["positions"], strict=True):
            assert np.allclose(wisdom.outputs["logits"][row, at].numpy(), words[feature.example, int(word)], atol=1e-5)


def test_other_tokens_are_left_out_of_the_loss(tmp_path: Path) -> None:
    given = job(tmp_path, "token-classification")
    found = lesson(given)
    rows_ = batch(found, [0, 1, 2])
    method, params = plugins.use("methods", Use.model_validate({
        "name": "multi_teacher", "losses": [{"name": "output_mse"}], "weights": [0, 1],
    }))  # fmt: skip
    one = method.objective(params, found).eval()
    with torch.no_grad():
        z, mask = found.student(rows_).outputs["logits"], rows_["labels"] != -100
        wanted = ((z - found.teachers[1](rows_).outputs["logits"])[mask] ** 2).mean().item()
    assert one(**rows_)["loss"].item() == pytest.approx(wanted, rel=1e-5)
    # with the recipe's own teacher beside it, which speaks of all tokens: their mean where both speak, else its own
    both = method.objective(params.model_copy(update={"weights": (1.0, 3.0)}), found).eval()
    with torch.no_grad():
        own, other = (teacher(rows_).outputs["logits"] for teacher in found.teachers)
        target = torch.where(mask[..., None], 0.25 * own + 0.75 * other, own)
        real = rows_["attention_mask"].bool()
        wanted = ((z - target)[real] ** 2).mean().item()
    assert both(**rows_)["loss"].item() == pytest.approx(wanted, rel=1e-5)


def test_a_batch_without_a_common_word(tmp_path: Path) -> None:
    given = job(tmp_path, "token-classification")
    found = lesson(given)
    other = found.teachers[1]
    none = np.zeros(0, dtype=np.int64)
    other.alignment = replace(other.alignment, pairs=[type(p)(none, none, none) for p in other.alignment.pairs])
    for losses in ("kl", "output_mse", "soft_cross_entropy"):
        method, params = plugins.use("methods", Use.model_validate({
            "name": "multi_teacher", "losses": [{"name": losses}], "weights": [0, 1],
        }))  # fmt: skip
        loss = method.objective(params, found)(**batch(found, [0, 1]))["loss"]
        loss.backward()
        assert loss.item() == 0


def test_examples_that_do_not_pair_up() -> None:
    def feature(example: int, *labels: int) -> Feature:
        ids = np.arange(len(labels))
        return Feature({"input_ids": ids}, example, {"labels": np.array(labels)})

    mine = [feature(i, -100, 1, -100, 0) for i in range(10)]
    theirs = [feature(i, -100, 1, 0) for i in range(9)]
    found = alignment.align(mine, [*theirs, feature(9, 1)], "token-classification", Path("other"))
    assert found.pairs[0].mine.tolist() == [1, 3] and found.pairs[0].theirs.tolist() == [1, 2]
    assert len(found.pairs[9].mine) == 0  # one of ten is left out, two are too many
    with pytest.raises(InputError, match="2 of 10 examples have other labelled words"):
        alignment.align(mine, [*theirs[:8], feature(8, 1), feature(9, 1)], "token-classification", Path("other"))
    with pytest.raises(InputError, match="example 1 gives 2 rows for this teacher and 1 for the student"):
        alignment.align(mine[:1], [theirs[0], theirs[0]], "text-classification", Path("other"))


@pytest.mark.parametrize("kind", ["text-classification", "token-classification", "sentence-embedding"])
def test_a_distill_step(kind: str, tmp_path: Path) -> None:
    given = job(tmp_path, kind)
    step = given.recipe.step[1]
    assert isinstance(step, Distill)
    facts = distill.run(step, given)
    assert facts.score is not None
    assert (given.out / "model.safetensors").is_file()


def test_pkd_reads_whole_rows(tmp_path: Path) -> None:
    losses = [{"name": "pkd", "layers": [[1, 1]]}, {"name": "kl"}]
    given = job(tmp_path, "text-classification", method={"name": "multi_teacher", "losses": losses, "weights": [0, 1]})
    step = given.recipe.step[1]
    assert isinstance(step, Distill)
    assert distill.run(step, given).score is not None


@pytest.mark.parametrize(
    ("kind", "loss"), [("text-classification", "hidden_mse"), ("token-classification", "hidden_mse")]
)
def test_layers_are_not_compared_across_tokenizers(kind: str, loss: str, tmp_path: Path) -> None:
    method = {"name": "multi_teacher", "losses": [{"name": loss}], "weights": [0, 1]}
    given = job(tmp_path, kind, method=method)
    step = given.recipe.step[1]
    assert isinstance(step, Distill)
    with pytest.raises(InputError, match="tokenizer is not the student's"):
        distill.run(step, given)


def test_answers_are_not_compared_across_tokenizers(tmp_path: Path) -> None:
    given = job(tmp_path, "question-answering")
    with pytest.raises(InputError, match="answer positions in other tokens cannot be compared"):
        everything(given)


def everything(given: Job) -> None:
    planned = [Planned("teach", "teach", given.recipe.step[0])]
    check.everything(given.recipe, given.target, given.data.base, given.data, planned, given.out)


def test_what_is_checked_before_any_work(tmp_path: Path) -> None:
    given = job(tmp_path, "text-classification")
    everything(given)
    config = tmp_path / "other" / "config.json"
    values = json.loads(config.read_text())
    for labels in ({"0": "good", "1": "bad"}, {"0": "bad", "1": "good", "2": "so"}):
        config.write_text(json.dumps({**values, "id2label": labels}))
        with pytest.raises(InputError, match=r"teachers: \"other\": its labels are"):
            everything(given)
    config.write_text(json.dumps({**values, "max_position_embeddings": 40}))
    with pytest.raises(InputError, match="reads 38 tokens, max_length is 48"):
        everything(given)
