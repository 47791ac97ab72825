"""Training the rows of tokens that occur is training the whole table, and leaves a plain model behind."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import families as tiny
import lessons
import numpy as np
import pytest
import student_checks as students
import torch
from torch import nn

from edgekit import plugins
from edgekit.pipeline import encoded, models, occurring
from edgekit.pipeline.layout import layout
from edgekit.pipeline.training import Exam, train
from edgekit.recipe import Training
from edgekit.records import Kind, Score, Use
from edgekit.tasks import Feature

NEED_MORE = ("multi_task", "distilbert")
"""Further tasks; a teacher with the head of a masked language model, and what is said there of masked_lm."""
OCCUR = np.array([2, 3, 7, 11, 12, 20])


class Supervised(nn.Module):
    """A model and its own loss. The last `left_out` of the features are in no batch."""

    def __init__(self, model: Any, left_out: int = 0) -> None:
        super().__init__()
        self.model, self.left_out = model, left_out

    def layout(self, lengths: Sequence[int], batch_size: int, epochs: float, seed: int) -> Sequence[list[int]]:
        return layout(lengths[: len(lengths) - self.left_out], batch_size, epochs, seed)

    def forward(self, index: torch.Tensor, **batch: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": self.model(**batch).loss}


def feature(ids: np.ndarray, label: int) -> Feature:
    return Feature({"input_ids": ids, "attention_mask": np.ones(len(ids), int)}, 0, {"labels": np.array(label)})


def features() -> list[Feature]:
    rng = np.random.default_rng(0)
    return [feature(rng.choice(OCCUR, rng.integers(3, 9)), i % 2) for i in range(24)]


def trained(folder: Path, scratch: Path, rows: list[Feature], left_out: int = 0, **wanted: Any) -> Any:
    model: Any = models.load(folder, "text-classification", ("no", "yes"), new_head=True)
    torch.manual_seed(0)
    for parameter in model.classifier.parameters():
        nn.init.normal_(parameter)
    settings = Training(epochs=2, learning_rate=1e-2, batch_size=4, weight_decay=0.1, precision="float32", **wanted)

    def score() -> Score:
        """What is in the table in the middle of a training, and what the model makes of it, are one."""
        with torch.no_grad():
            tokens = torch.tensor([[2, 3, 5, 20]])
            found = model.get_input_embeddings()(tokens)
        assert torch.equal(found, model.get_input_embeddings().weight[tokens])
        return Score(metric="x", value=float(found.sum()), examples=1)

    train(
        Supervised(model, left_out), rows, settings, pad_id=0, seed=0, scratch=scratch, what="test",
        exam=Exam(model, score),
    )  # fmt: skip
    return model


def test_it_is_training_the_whole_table(tmp_path: Path) -> None:
    folder = tiny.make(tmp_path / "model", "bert")
    start: Any = models.load(folder, "text-classification", ("no", "yes"), new_head=True)
    before = start.get_input_embeddings()
    others = np.setdiff1d(np.arange(before.num_embeddings), OCCUR)
    every = feature(np.arange(before.num_embeddings), 0)  # now each token occurs, in a row that no batch has
    some = trained(folder, tmp_path / "some", features())
    whole = trained(folder, tmp_path / "whole", [*features(), every], left_out=1)
    assert [n for n, _ in some.named_parameters()] == [n for n, _ in whole.named_parameters()]
    assert all(parameter.requires_grad for parameter in some.parameters())
    for (name, mine), its in zip(some.state_dict().items(), whole.state_dict().values(), strict=True):
        if "word_embeddings" not in name:
            torch.testing.assert_close(mine, its, rtol=1e-4, atol=1e-6)
    mine, its = some.get_input_embeddings().weight, whole.get_input_embeddings().weight
    torch.testing.assert_close(mine[OCCUR], its[OCCUR], rtol=1e-4, atol=1e-6)
    assert (mine[OCCUR] - before.weight[OCCUR]).abs().max() > 1e-2
    assert torch.equal(mine[others], before.weight[others]), "weight decay is for what trains"
    assert (its[others].abs() <= before.weight[others].abs()).all() and not torch.equal(its[others], mine[others])


def test_the_best_weights_and_scores_on_the_way_are_of_the_whole_model(tmp_path: Path) -> None:
    folder = tiny.make(tmp_path / "model", "bert")
    model = trained(folder, tmp_path / "scratch", features(), evaluate=3, keep="best")
    assert "forward" not in vars(model.get_input_embeddings())
    models.save(model, tmp_path / "saved")
    again = models.load(tmp_path / "saved", "text-classification", ("no", "yes"))
    assert again.state_dict().keys() == model.state_dict().keys()


@pytest.mark.parametrize("name", [name for name in plugins.names("methods") if name not in NEED_MORE])
def test_the_table_trains_with_every_method(name: str, tmp_path: Path) -> None:
    given = lessons.lesson(tmp_path)
    use = Use.model_validate(
        {"name": name, **({"losses": [{"name": "kl"}]} if name in ("kd", "multi_teacher") else {})}
    )
    if name == "multi_teacher":
        given = replace(given, teachers=given.teachers * 2)
    method, params = plugins.use("methods", use)
    objective = method.objective(params, given)
    table: Any = given.student.model.get_input_embeddings()
    before = table.weight.detach().clone()
    settings = Training(epochs=1, learning_rate=1e-2, batch_size=4, precision="float32")
    train(objective, given.features, settings, pad_id=0, seed=0, scratch=tmp_path / "scratch", what="test")
    seen = np.unique(np.concatenate([row.inputs["input_ids"] for row in given.features]))
    moved = (table.weight - before).abs().amax(-1) > 1e-4
    if name == "theseus":  # its embeddings are the teacher's
        assert not moved.any()
    else:
        assert moved[seen].float().mean() > 0.9
    assert moved.sum() <= len(seen) or getattr(objective, "WHOLE_TABLE", False)


def test_frozen_tables_stay_frozen(tmp_path: Path) -> None:
    model = models.load(tiny.make(tmp_path / "model", "bert"), "text-classification", ("no", "yes"), new_head=True)
    model.requires_grad_(False)
    with occurring.only(Supervised(model), features()):
        assert not any(parameter.requires_grad for parameter in model.parameters())
    assert not any(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_ladder_has_no_table_that_trains(family: str, tmp_path: Path) -> None:
    kind: Kind = "image-classification" if family == "vit" else "text-classification"
    _, model = students.teacher(tmp_path / "model", family, kind)
    ladder = students.build("ladder", model, kind, reduction=4)
    trained = {name for name, parameter in ladder.named_parameters() if parameter.requires_grad}
    with occurring.only(Supervised(ladder), lessons.rows(kind)):
        assert {name for name, parameter in ladder.named_parameters() if parameter.requires_grad} == trained


def test_counts_of_a_list_and_from_disk(tmp_path: Path) -> None:
    rows = features()
    ids = np.concatenate([row.inputs["input_ids"] for row in rows])
    kept = encoded.stored(tmp_path, {"x": 1}, iter([rows]))
    assert isinstance(kept, encoded.Encoded)
    for found in (encoded.counts(rows), encoded.counts(kept)):
        assert found.tolist() == [int((ids == i).sum()) for i in range(21)]
