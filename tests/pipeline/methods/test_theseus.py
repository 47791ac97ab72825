"""BERT-of-Theseus: which layers run, what learns, what is refused."""

import dataclasses
from pathlib import Path
from typing import Any

import families as tiny
import lessons
import numpy as np
import pytest
import torch
from torch import nn

from edgekit.errors import InputError
from edgekit.pipeline import families, models, training
from edgekit.pipeline.methods import Lesson, theseus
from edgekit.pipeline.signals import Speaker, Teacher
from edgekit.recipe import Training
from edgekit.records import Kind

CASES = [(family, kind) for family, kind in lessons.CASES if family != "albert"]


def task_loss(model: Any, given: Lesson) -> torch.Tensor:
    """The loss that the method trains with, of one plain model."""
    rows = lessons.batch(given)
    inputs = {name: rows[name] for name in models.input_names(model)}
    if given.kind == "question-answering":
        padding = rows["attention_mask"] == 0
        said = model(**inputs)
        ends = ((said.start_logits, rows["start_positions"]), (said.end_logits, rows["end_positions"]))
        own = [nn.functional.cross_entropy(z.masked_fill(padding, -1e9), truth) for z, truth in ends]
        return sum(own, torch.zeros(())) / 2
    if "labels" in rows:
        return model(**inputs, labels=rows["labels"]).loss
    mine = models.Exportable(model, given.kind).outputs(model(**inputs), inputs)["sentence_embedding"]
    return ((mine - given.teachers[0](rows).outputs["sentence_embedding"]) ** 2).mean()


def blocks(model: Any) -> nn.ModuleList:
    encoder, name = families.stack(model)
    return getattr(encoder, name)


def shifted(given: Lesson) -> Lesson:
    """The same, with layers of the student's that are not the teacher's any more."""
    with torch.no_grad():
        for parameter in blocks(given.student.model).parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return given


def mixture(given: Lesson, folder: Path, parts: dict[int, tuple[int, ...]], gone: list[bool]) -> Any:
    """The mixed model put together by hand: the teacher's layers, some with the weights of the student's."""
    layers = [i for part, own in parts.items() for i in ((own[0],) if gone[part] else own)]
    mixed = families.with_layers(models.load(folder, given.kind, lessons.labels(given.kind)), layers)
    for part in (part for part in parts if gone[part]):
        blocks(mixed)[layers.index(parts[part][0])].load_state_dict(blocks(given.student.model)[part].state_dict())
    return mixed


@pytest.mark.parametrize(("family", "kind"), CASES)
def test_replaced_layers_run_and_learn_and_nothing_else(family: str, kind: Kind, tmp_path: Path) -> None:
    given = shifted(lessons.lesson(tmp_path, family, kind))
    for probability in (1.0, 0.01):
        params = theseus.Params(probability=probability, growth=0)
        method = theseus.objective(params, given).eval()
        gone = theseus.replaced(params, 0.0, given.seed, 2)
        assert sum(gone) == (2 if probability == 1 else 1)
        found = method(**lessons.batch(given))
        mixed = mixture(given, tmp_path, {0: (0, 1), 1: (2, 3)}, gone)
        torch.testing.assert_close(found["loss"], task_loss(mixed, given))
        if probability == 1:
            torch.testing.assert_close(found["loss"], task_loss(given.student.model, given))
        found["loss"].backward()
        learnt = {id(p) for p in method.parameters() if p.grad is not None}
        right = [block for block, is_gone in zip(blocks(given.student.model), gone, strict=True) if is_gone]
        assert learnt == {id(p) for block in right for p in block.parameters()}
        assert len(blocks(given.student.model)) == 2
        method.zero_grad()


def test_unequal_parts(tmp_path: Path) -> None:
    given = shifted(lessons.lesson(tmp_path, layers=4, student=3))  # parts of 2, 1 and 1 layers
    params = theseus.Params(probability=0.5, growth=0)
    method = theseus.objective(params, given).eval()
    seen: set[tuple[bool, ...]] = set()
    for step in range(8):
        method.progress = step / 8
        gone = theseus.replaced(params, method.progress, given.seed, 3)
        mixed = mixture(given, tmp_path, {0: (0, 1), 1: (2,), 2: (3,)}, gone)
        torch.testing.assert_close(method(**lessons.batch(given))["loss"], task_loss(mixed, given))
        seen.add(tuple(gone))
    assert len(seen) > 3


def test_the_probability_is_constant_or_rises() -> None:
    def rate(params: theseus.Params, progress: float) -> float:
        return float(np.mean([theseus.replaced(params, progress, seed, 4) for seed in range(1000)]))

    def right(p: float) -> float:
        return p / (1 - (1 - p) ** 4)  # of four independent ones, given that there is one

    constant, curriculum = theseus.Params(probability=0.5, growth=0), theseus.Params(probability=0.2, growth=1.0)
    assert [rate(constant, t) for t in (0.0, 1.0)] == pytest.approx([right(0.5)] * 2, abs=0.03)
    assert [rate(curriculum, t) for t in (0.0, 0.4)] == pytest.approx([right(0.2), right(0.6)], abs=0.03)
    assert rate(curriculum, 0.8) == rate(curriculum, 1.0) == 1.0


def test_what_is_replaced_depends_on_seed_and_progress_only() -> None:
    params = theseus.Params(probability=0.5, growth=0)
    first = [theseus.replaced(params, step / 300, 0, 6) for step in range(300)]
    torch.rand(1)
    assert first == [theseus.replaced(params, step / 300, 0, 6) for step in range(300)]
    assert first != [theseus.replaced(params, step / 300, 1, 6) for step in range(300)]
    assert len({tuple(each) for each in first}) > 56  # of 2^6


def test_only_the_students_layers_learn(tmp_path: Path) -> None:
    given = lessons.lesson(tmp_path / "teacher")
    model = given.student.model
    with torch.no_grad():
        model.base_model.embeddings.word_embeddings.weight.mul_(2)  # of its own before: the teacher's stand in for it
    start = {name: parameter.detach().clone() for name, parameter in blocks(model).named_parameters()}
    method = theseus.objective(theseus.Params(), given)
    first = task_loss(model, given).item()
    plan = Training(epochs=20, learning_rate=3e-3, batch_size=4, precision="float32")
    training.train(method, given.features, plan, pad_id=0, seed=0, scratch=tmp_path / "scratch", what="x")
    teacher = models.load(tmp_path / "teacher", given.kind, lessons.LABELS)
    inside = {id(p) for p in blocks(model).parameters()}
    its = dict(teacher.named_parameters())
    around = [name for name, parameter in model.named_parameters() if id(parameter) not in inside]
    assert all(torch.equal(model.get_parameter(name), its[name]) for name in around)
    assert not any(torch.equal(start[name], parameter) for name, parameter in blocks(model).named_parameters())
    assert task_loss(model.eval(), given).item() < first / 2


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    params = theseus.Params()
    with pytest.raises(InputError, match='family "albert" has one set of weights for all layers'):
        theseus.objective(params, lessons.lesson(tmp_path / "albert", "albert"))
    given = lessons.lesson(tmp_path / "bert")
    other = Teacher(tiny.make(tmp_path / "wide", "bert", hidden_size=64), given.kind, lessons.LABELS)
    with pytest.raises(InputError, match="must fit between the teacher's embeddings and head"):
        theseus.objective(params, dataclasses.replace(given, teachers=(other,)))
    with pytest.raises(InputError, match="takes one teacher"):
        theseus.objective(params, dataclasses.replace(given, teachers=given.teachers * 2))
    deep = models.load(tiny.make(tmp_path / "deep", "bert", num_hidden_layers=5), given.kind, ("negative", "positive"))
    with pytest.raises(InputError, match="the student has 5 layers, the teacher 4"):
        theseus.objective(params, dataclasses.replace(given, student=Speaker(deep, given.kind)))
