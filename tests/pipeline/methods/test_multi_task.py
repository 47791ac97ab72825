"""Several tasks into one student: shared layers, a head a task, batches by the tasks' sizes, a bundle a task."""

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import families as tiny
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from edgekit import bundle, plugins
from edgekit import recipe as recipes
from edgekit.errors import InputError
from edgekit.pipeline import build, joint, models
from edgekit.pipeline.methods import Further, Lesson
from edgekit.pipeline.signals import Speaker, Teacher
from edgekit.records import Kind, Use
from edgekit.store import Store
from edgekit.tasks import Feature

LABELS = ("bad", "good")
TAGS = ("long", "short", "so")
KINDS: tuple[Kind, ...] = ("text-classification", "token-classification", "question-answering", "sentence-embedding")
RECIPE = """
name = "tiny"
max_length = 32
[task]
name = "text_classification"
[data]
name = "files"
train = "train.jsonl"
dev = "dev.jsonl"
[[step]]
stage = "teach"
model = "teacher"
training = { epochs = 1, learning_rate = 1e-3, batch_size = 8 }
[[step]]
stage = "distill"
layers = 2
training = { epochs = 2, batch_size = 8 }
method = { name = "multi_task", losses = [{ name = "kl" }, { name = "hidden_mse" }] }
[[step.also]]
name = "words"
task = { name = "token_classification" }
data = { name = "files", train = "words.jsonl", dev = "words.jsonl" }
model = "teacher"
training = { epochs = 1, learning_rate = 1e-3, batch_size = 8 }
losses = [{ name = "kl" }, { name = "cross_entropy" }]
[[step]]
stage = "export"
[[step]]
stage = "quantize"
must_be_faster = false
max_drop = 1.0
"""
TARGET = 'description = "a test"\nabi = "host"\nformats = ["onnx"]\nlengths = [16, 32]\n'


def lesson(
    folder: Path, own: Kind, others: dict[str, Kind], family: str = "bert", sizes: tuple[int, ...] = ()
) -> Lesson:
    """A student of two layers whose further tasks' teachers are of the family, three layers deep."""
    depth = "n_layers" if family == "distilbert" else "num_hidden_layers"

    def labels(kind: Kind) -> tuple[str, ...]:
        return {"text-classification": LABELS, "token-classification": TAGS}.get(kind, ())

    def teacher(kind: Kind, seed: int) -> Path:
        return tiny.make(folder / f"{kind}{seed}", family, kind, labels(kind) or LABELS, seed, **{depth: 3})

    def features(number: int) -> list[Feature]:
        return [Feature({}, i) for i in range(sizes[number] if sizes else 4)]

    small = tiny.make(folder / "student", family, own, labels(own) or LABELS, 9, **{depth: 2})
    student = models.load(small, own, labels(own))
    further: list[Further] = []
    for number, (name, kind) in enumerate(others.items(), 1):
        its = teacher(kind, number)
        model = joint.beside(student, kind, labels(kind), its)
        lesson = Lesson(Speaker(model, kind), (Teacher(its, kind, labels(kind)),), features(number), kind, 0)
        further.append(Further(name, lesson, (Use(name="output_mse"),)))
    mine = (Teacher(teacher(own, 0), own, labels(own)),)
    return Lesson(Speaker(student, own), mine, features(0), own, 0, tuple(further))


def batch(model: Any, start: int) -> dict[str, torch.Tensor]:
    mask = torch.tensor([[1] * 7, [1] * 5 + [0] * 2])
    ids = (torch.arange(14).view(2, 7) + 5) * mask + (1 - mask) * models.pad_id(model)
    return {"index": start + torch.arange(2), "input_ids": ids, "attention_mask": mask, "token_type_ids": 0 * mask}


def objective(given: Lesson, **params: object) -> Any:
    method, parsed = plugins.use("methods", Use.model_validate({"name": "multi_task", **params}))
    return method.objective(parsed, given)


@pytest.mark.parametrize("family", tiny.TEXT_FAMILIES)
def test_every_family_and_kind(family: str, tmp_path: Path) -> None:
    """The layers learn from every task, a head from its own alone; the checkpoint holds no weight twice."""
    for own in ("text-classification", "sentence-embedding"):
        others = {kind.split("-")[0]: kind for kind in KINDS if kind != own}
        given = lesson(tmp_path / own, own, others, family)
        found = objective(given, losses=[{"name": "output_mse"}]).train()
        parts = [given, *(further.lesson for further in given.also)]
        assert len({id(part.student.layers[0].query) for part in parts}) == 1
        for number in range(len(parts)):
            found.zero_grad()
            found(**batch(given.student.model, 4 * number))["loss"].backward()
            assert given.student.layers[0].query.weight.grad.abs().sum() > 0
            for other, each in enumerate(parts):
                grads = [p.grad for module in joint.head(each.student.model) for p in module.parameters()]
                used = any(grad is not None and grad.abs().sum() > 0 for grad in grads)
                assert used == (other == number and bool(grads))
        tensors = [t.data_ptr() for t in found.state_dict().values() if t.numel()]
        trained = {id(p) for part in parts for p in part.student.model.parameters()}
        assert trained <= {id(p) for p in found.parameters()}
        assert family == "albert" or len(set(tensors)) == len(tensors)


def test_the_loss_is_that_of_the_batchs_task(tmp_path: Path) -> None:
    given = lesson(tmp_path, "text-classification", {"words": "token-classification"}, sizes=(6, 4))
    found = objective(given, losses=[{"name": "output_mse"}]).eval()
    rows = batch(given.student.model, 0)
    for start, part, name in ((0, given, "1 output_mse"), (6, given.also[0].lesson, "words 1 output_mse")):
        with torch.no_grad():
            result = found(**{**rows, "index": rows["index"] + start})
            mine, its = part.student(rows).outputs["logits"], part.teachers[0](rows).outputs["logits"]
        square = (mine - its) ** 2
        wanted = square[rows["attention_mask"].bool()].mean() if start else square.mean()
        assert result["loss"].item() == pytest.approx(wanted.item(), rel=1e-5)
        assert list(result["terms"]) == [name]


@pytest.mark.parametrize(("tau", "share"), [(1.0, 0.9), (0.0, 0.5), (0.5, 0.75)])
def test_batches_by_the_tasks_sizes(tau: float, share: float, tmp_path: Path) -> None:
    """900 rows and 100: 9 to 1 at tau 1, as many at 0, and 30 to 10 at a half."""
    given = lesson(tmp_path, "text-classification", {"words": "token-classification"}, sizes=(900, 100))
    found = objective(given, tau=tau)
    lengths = np.random.default_rng(0).integers(3, 30, 1000).tolist()
    batches = found.layout(lengths, 10, 20.0, seed=3)
    assert len(batches) == 2000
    own = [max(rows) < 900 for rows in batches]
    assert all((min(rows) >= 900) != mine for rows, mine in zip(batches, own, strict=True))
    assert np.mean(own) == pytest.approx(share, abs=0.03)
    assert batches == found.layout(lengths, 10, 20.0, seed=3) != found.layout(lengths, 10, 20.0, seed=4)
    seen = np.bincount([row for rows in batches for row in rows], minlength=1000)
    for part in (seen[:900], seen[900:]):  # over and over, each row as often as the others
        assert part.max() - part.min() <= 1


def test_a_head_begins_as_its_teachers(tmp_path: Path) -> None:
    student = models.load(tiny.make(tmp_path / "a", "bert", labels=LABELS), "text-classification", LABELS)
    teacher = tiny.make(tmp_path / "b", "bert", "token-classification", TAGS, seed=1)
    its = models.load(teacher, "token-classification", TAGS)
    model = joint.beside(student, "token-classification", TAGS, teacher)
    assert torch.equal(model.classifier.weight, its.classifier.weight)
    assert model.bert is student.bert
    assert model.config.id2label == dict(enumerate(TAGS)) and student.config.id2label == dict(enumerate(LABELS))
    other = tiny.make(tmp_path / "c", "roberta", "token-classification", TAGS)
    assert joint.beside(student, "token-classification", TAGS, other).classifier.weight.shape == (3, 32)


@pytest.mark.parametrize("family", tiny.TEXT_FAMILIES)
def test_a_head_and_the_encoder_make_the_model_again(family: str, tmp_path: Path) -> None:
    for own, kind in (
        ("text-classification", "token-classification"), ("sentence-embedding", "text-classification"),
        ("question-answering", "sentence-embedding"),
    ):  # fmt: skip
        given = lesson(tmp_path / own, own, {"x": kind}, family)
        model = given.also[0].lesson.student.model
        rows = batch(model, 0)
        with torch.no_grad():
            wanted = Speaker(model.eval(), kind)(rows).outputs
        joint.save(model, tmp_path / own / joint.HEADS / "x")
        if own != "text-classification":  # what distill does: the model of this task is saved as it was
            joint.set_poolers(given.student.model, dict.fromkeys(joint.poolers(given.student.model)))
        models.save(given.student.model, tmp_path / own)
        models.load(tmp_path / own, own, given.teachers[0].labels)
        again = joint.combined(tmp_path / own, "x", kind)
        with torch.no_grad():
            for name, output in Speaker(again, kind)(rows).outputs.items():
                assert torch.allclose(wanted[name], output, atol=1e-6)
        weights = load_file(tmp_path / own / joint.HEADS / "x" / "head.safetensors")
        assert sum(t.numel() for t in weights.values()) < 0.2 * models.parameters(model)


def test_one_task_is_not_several(tmp_path: Path) -> None:
    given = lesson(tmp_path, "text-classification", {"words": "token-classification"})
    with pytest.raises(InputError, match="there is one task only"):
        objective(replace(given, also=()))


def project(folder: Path) -> Path:
    tiny.make(folder / "teacher", "bert", labels=LABELS, num_hidden_layers=3)
    (folder / "recipe.toml").write_text(RECIPE)
    (folder / "target.toml").write_text(TARGET)
    rng = random.Random(0)
    words = sorted({word for text in tiny.TEXTS for word in text.split()})
    for name, count in (("train", 60), ("dev", 20), ("words", 30)):
        texts = [rng.choices(words, k=rng.randint(3, 12)) for _ in range(count)]
        rows: list[dict[str, Any]] = [
            {"text": " ".join(text), "label": "good" if "the" in text else "bad"} for text in texts
        ]
        if name == "words":
            rows = [{"tokens": text, "tags": ["short" if len(w) < 4 else "long" for w in text]} for text in texts]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_a_model_a_task_from_one_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project(tmp_path))
    recipe, target = recipes.read(Path("recipe.toml")), recipes.target("target.toml")
    names = [planned.name for planned in build.plan(recipe, target)]
    assert names == ["teach", "teach-words", "distill", "teacher-onnx", "export-onnx", "quantize-onnx", "bundle"]
    own = build.build(recipe, target, Store(Path(".edgekit")), Path("own"), Path(), until="distill")
    assert any(note.startswith("words: micro_f1 ") for note in own.stages[-1].notes)
    words = recipe.model_copy(update={"deliver": "words"})
    names = [planned.name for planned in build.plan(words, target)]
    assert names[3:] == ["head-words", "teacher-onnx", "export-onnx", "quantize-onnx", "bundle"]
    other = build.build(words, target, Store(Path(".edgekit")), Path("words"), Path(), until="head")
    assert {row.name: row.cached for row in other.stages} == {
        "teach": True, "teach-words": True, "distill": True, "head-words": False,
    }  # fmt: skip
    (shared,), (head,) = (
        list(Path(".edgekit").glob(f"{name}-*/model.safetensors")) for name in ("distill", "head-words")
    )
    layer = "bert.encoder.layer.1.output.dense.weight"
    assert torch.equal(load_file(shared)[layer], load_file(head)[layer])
    (note,) = own.stages[-1].notes
    assert note.endswith(f"{other.stages[-1].score:.4f}")


@pytest.mark.slow
def test_a_bundle_a_task_from_one_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project(tmp_path))
    recipe, target = recipes.read(Path("recipe.toml")), recipes.target("target.toml")
    build.build(recipe, target, Store(Path(".edgekit")), Path("own"), Path())
    words = recipe.model_copy(update={"deliver": "words"})
    build.build(words, target, Store(Path(".edgekit")), Path("words"), Path())
    with bundle.opened(Path("own")) as (_, one), bundle.opened(Path("words")) as (_, two):
        assert (one.kind, two.kind) == ("text-classification", "token-classification")
        assert (one.name, two.name) == ("tiny", "tiny-words")
        assert two.labels == ("long", "short")


def test_what_is_refused_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project(tmp_path))
    target = recipes.target("target.toml")
    for old, new, said in (
        ('name = "multi_task"', 'name = "kd"', 'the method kd trains one task; take the method "multi_task"'),
        ("words.jsonl", "nothing.jsonl", "nothing.jsonl"),
        ("[[step]]\nstage = \"export\"", '[[step.also]]\nname = "words"\ntask = { name = "punctuation" }\n'
         'data = { name = "sotu" }\nmodel = "teacher"\n[[step]]\nstage = "export"', "each further task once"),
        ("[task]", 'deliver = "tags"\n[task]', 'deliver = "tags" is none of the further tasks: words'),
    ):  # fmt: skip
        Path("recipe.toml").write_text(RECIPE.replace(old, new, 1))
        with pytest.raises(InputError, match=said):
            build.build(recipes.read(Path("recipe.toml")), target, Store(Path(".edgekit")), Path("out"), Path())
