"""Pretrain: packed text, a language model with its head, students by every method for text, what is refused."""

import json
import re
from pathlib import Path
from typing import Any

import families as tiny
import numpy as np
import pytest
import torch

from edgekit import recipe as recipes
from edgekit import systems
from edgekit.errors import InputError
from edgekit.pipeline import Job, Made, TaskData, build, language, models, pretrain, text
from edgekit.pipeline.encoded import Encoded
from edgekit.recipe import Pretrain, Recipe
from edgekit.records import Artifact, Facts
from edgekit.store import Store

LABELS = ("bad", "good")
HIDDEN = {"name": "hidden_mse", "layers": "uniform", "projection": "linear"}


def recipe_in(folder: Path, step: dict[str, Any], column: str = "text", kind: str = "text_classification") -> Recipe:
    rows = [{"text": each, "label": "bad" if "bad" in each else "good"} for each in tiny.TEXTS]
    plain = [{"text": each, "words": each.split()} for each in tiny.TEXTS * 4]
    for name, its in (("task", rows), ("plain", plain)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in its))
    files = {"name": "files", "train": "task.jsonl", "dev": "task.jsonl"}
    return Recipe.model_validate({
        "name": "x", "max_length": 16, "task": {"name": kind, "labels": LABELS} if "class" in kind else {"name": kind},
        "data": files, "text": {"data": {**files, "train": "plain.jsonl", "dev": "plain.jsonl"}, "column": column},
        "step": [{"stage": "teach", "model": "base"}, step],
    })  # fmt: skip


def run(folder: Path, step: dict[str, Any], language_model: Path | None = None, kind: str = "text_classification",
        ) -> tuple[Facts, Path]:  # fmt: skip
    out = folder / f"out{len(list(folder.glob('out*')))}"
    wanted = {"stage": "pretrain", "training": {"epochs": 0.01, "precision": "float32"}, **step}
    recipe = recipe_in(folder, wanted, kind=kind)
    found = recipe.step[1]
    assert isinstance(found, Pretrain)
    artifact = Artifact(
        id="0" * 64, name="pretrain", stage="pretrain", parents=(), files=(), facts=Facts(bytes=1, changed=""),
        seconds=0, versions={},
    )  # fmt: skip
    parents = {"language": Made(artifact, language_model)} if language_model else {}
    scratch = out.with_name(f"scratch-{out.name}")
    out.mkdir()
    scratch.mkdir()
    job = Job(recipe, recipes.target("host"), TaskData(recipe, folder, folder / "shared"), parents, out, scratch)
    return pretrain.run(found, job), out


def test_text_is_packed_without_a_gap(tmp_path: Path) -> None:
    folder = tiny.make(tmp_path / "base", "bert")
    found = list(text.features(recipe_in(tmp_path, {"stage": "pretrain"}), tmp_path, folder))
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    rows = [tokenizer.encode(each, add_special_tokens=False).ids for each in tiny.TEXTS * 4]
    inside = np.concatenate([feature.inputs["input_ids"][1:-1] for feature in found])
    assert inside[inside != 3].tolist() == [id for ids in rows for id in ids]
    assert inside[: len(rows[0]) + 2].tolist() == [*rows[0], 3, rows[1][0]]
    assert {len(feature.inputs["input_ids"]) for feature in found[:-1]} == {16}
    assert all(f.inputs["input_ids"][0] == 2 and f.inputs["input_ids"][-1] == 3 for f in found)
    assert [feature.example for feature in found] == list(range(len(found)))
    stored = text.stored(recipe_in(tmp_path, {"stage": "pretrain"}), tmp_path, folder, tmp_path / "shared")
    assert isinstance(stored, Encoded) and len(stored) == len(found)
    for kept, own in zip(stored, found, strict=True):
        assert kept.inputs.keys() == own.inputs.keys() and kept.example == own.example
        assert all(np.array_equal(kept.inputs[name], own.inputs[name]) for name in own.inputs)


@pytest.mark.parametrize("family", tiny.TEXT_FAMILIES)
def test_words_are_text_as_well(family: str, tmp_path: Path) -> None:
    folder = tiny.make(tmp_path / "base", family)
    step = {"stage": "pretrain"}
    both = [
        [feature.inputs["input_ids"].tolist() for feature in text.features(recipe, tmp_path, folder)]
        for recipe in (recipe_in(tmp_path, step), recipe_in(tmp_path, step, "words"))
    ]
    assert both[0] == both[1]


def test_bad_text_is_named(tmp_path: Path) -> None:
    folder = tiny.make(tmp_path / "base", "bert")
    with pytest.raises(InputError, match=r'plain.jsonl: row 1: there is no column "words_"; .*words'):
        next(text.features(recipe_in(tmp_path, {"stage": "pretrain"}, "words_"), tmp_path, folder))
    recipe = recipe_in(tmp_path, {"stage": "pretrain"})
    (tmp_path / "plain.jsonl").write_text('{"text": 7}\n')
    with pytest.raises(InputError, match='column "text" must hold a text or a list of words, found 7'):
        next(text.features(recipe, tmp_path, folder))
    (tmp_path / "plain.jsonl").write_text('{"text": ""}\n{"text": " "}\n')
    with pytest.raises(InputError, match="its train split holds no text"):
        next(text.features(recipe, tmp_path, folder))


def test_a_language_model_then_its_distilbert(tmp_path: Path) -> None:
    tiny.make(tmp_path / "base", "bert", num_hidden_layers=4, initializer_range=0.05)
    facts, folder = run(tmp_path, {"training": {"learning_rate": 1e-3}})
    assert facts.score is None and facts.trained is not None and "masked_lm" in facts.changed
    assert re.fullmatch(r"finds [\d.]+% of masked tokens in \d+ sequences of the dev text", facts.notes[0])
    model = models.load(folder, "text-classification", LABELS)
    assert facts.parameters == models.parameters(model)
    assert facts.bytes == (folder / "model.safetensors").stat().st_size
    head = language.load(folder, model)
    assert (folder / "tokenizer.json").is_file()

    step = {"layers": 2, "start": "alternate", "method": {"name": "distilbert"}}
    facts, out = run(tmp_path, {**step, "training": {"epochs": 0.01, "learning_rate": 1e-12}}, folder)
    student = models.load(out, "text-classification", LABELS)
    assert student.config.num_hidden_layers == 2
    for mine, its in ((0, 0), (1, 3)):
        a, b = (m.base_model.encoder.layer[i].output.dense.weight for m, i in ((student, mine), (model, its)))
        assert torch.allclose(a, b, atol=1e-6)
    assert torch.allclose(language.load(out, student).dense.weight, head.dense.weight, atol=1e-6)


@pytest.mark.parametrize(
    "method",
    [
        {"name": "masked_lm"},
        {"name": "electra"},
        {"name": "kd", "losses": [HIDDEN, {"name": "attention_mse"}]},
    ],
    ids=["masked_lm", "electra", "kd"],
)
@pytest.mark.parametrize("kind", ["text_classification", "token_classification", "question_answering",
                                  "sentence_embedding"])  # fmt: skip
def test_a_student_for_every_kind(method: dict[str, Any], kind: str, tmp_path: Path) -> None:
    tiny.make(tmp_path / "base", "bert", "sentence-embedding")  # weights without any head
    before = models.load(tmp_path / "base", "sentence-embedding").get_input_embeddings()
    facts, out = run(tmp_path, {"layers": 1, "method": method, "training": {"learning_rate": 1e-2}}, kind=kind)
    made = models.load(out, kind.replace("_", "-"), LABELS if kind.endswith("classification") else ())  # type: ignore[arg-type]
    assert made.config.num_hidden_layers == 1 and models.parameters(made) == facts.parameters
    assert not torch.equal(made.get_input_embeddings().weight, before.weight)
    assert (out / language.FILE).is_file() == (method["name"] == "masked_lm")


def test_losses_on_the_heads_outputs_are_refused(tmp_path: Path) -> None:
    tiny.make(tmp_path / "base", "bert")
    for name in ("kl", "cross_entropy"):
        with pytest.raises(InputError, match=f"the loss {name} compares the outputs"):
            run(tmp_path, {"layers": 1, "method": {"name": "kd", "losses": [{"name": name}]}})


def test_images_are_refused(tmp_path: Path) -> None:
    tiny.make(tmp_path / "base", "vit", "image-classification", LABELS)
    with pytest.raises(InputError, match="is for text, and image_classification is of images"):
        run(tmp_path, {}, kind="image_classification")


def test_tinybert_from_its_snippet(tmp_path: Path) -> None:
    """Through the build: language model, general distillation, augmentation, both stages on the task."""
    tiny.make(tmp_path / "base", "bert", "text-classification", LABELS, num_hidden_layers=3)
    recipe = recipe_in(tmp_path, {"stage": "distill", "layers": 2, "training": {"examples": 64, "batch_size": 8}})
    recipe = systems.apply(recipe, systems.find("tinybert"), lambda: 7)
    planned = {step.name: step for step in build.plan(recipe, recipes.target("host"))}
    assert planned["augment"].parents == {"model": "teach", "language": "pretrain"}
    assert planned["distill"].parents == {"model": "pretrain-2", "teacher": "teach", "augment": "augment"}
    found = build.build(recipe, recipes.target("host"), Store(tmp_path / "store"), tmp_path / "out", tmp_path)
    rows = {row.name: row for row in found.stages}
    made = int(rows["augment"].changed.split()[0])
    assert made > 7 and rows["distill-2"].score is not None
    again = build.build(recipe, recipes.target("host"), Store(tmp_path / "store"), tmp_path / "out", tmp_path)
    assert all(row.cached for row in again.stages)
