"""ELECTRA: the samples' distribution, what counts as replaced, tied embeddings, every text family."""

from collections import Counter
from pathlib import Path

import families as tiny
import numpy as np
import pytest
import torch

from edgekit.pipeline import language, models
from edgekit.pipeline.methods import Lesson, electra
from edgekit.pipeline.signals import Speaker, Teacher
from edgekit.tasks import Feature

LABELS = ("negative", "positive")
KIND = "text-classification"


def objective(folder: Path, **params: object) -> torch.nn.Module:
    student = Speaker(models.load(folder, KIND, LABELS), KIND)
    one = Feature({"input_ids": np.zeros(2, np.int64)}, 0)
    lesson = Lesson(student, (Teacher(folder, KIND, LABELS),), [one], KIND, 0)
    return electra.objective(electra.Params.model_validate(params), lesson)


def batch(folder: Path, length: int = 16, real: int = 16) -> dict[str, torch.Tensor]:
    torch.manual_seed(3)
    size = language.words(models.load(folder, KIND, LABELS)).num_embeddings
    ids = torch.randint(8, size, (4, length))
    mask = torch.zeros(4, length, dtype=torch.long)
    mask[:, :real] = 1
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": 0 * ids, "index": torch.arange(4)}


def test_samples_follow_the_softmax_and_let_no_gradient_through() -> None:
    torch.manual_seed(0)
    chances = torch.tensor([0.5, 0.3, 0.15, 0.05])
    logits = chances.log().repeat(20000, 1).requires_grad_()
    drawn = electra.sample(logits)
    assert not drawn.requires_grad
    found = Counter(drawn.tolist())
    assert all(abs(found[i] / 20000 - float(p)) < 0.015 for i, p in enumerate(chances))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_detection_by_numpy(dtype: torch.dtype) -> None:
    found = torch.tensor([[2.0, -1.0, 0.5], [3.0, 100.0, -100.0]], dtype=dtype)
    replaced = torch.tensor([[True, False, False], [False, False, True]])
    real = torch.tensor([[1, 1, 1], [1, 0, 0]])
    p = 1 / (1 + np.exp(-np.array([2.0, -1.0, 0.5, 3.0])))
    wanted = -np.log(np.where([True, False, False, False], p, 1 - p)).mean()
    assert float(electra.detection(found, replaced, real)) == pytest.approx(wanted, rel=1e-4)


def test_a_true_sample_counts_as_true(tmp_path: Path) -> None:
    found = objective(tiny.make(tmp_path, "bert")).eval()
    given = batch(tmp_path)
    generator = found.generator
    truths: list[torch.Tensor] = []

    class Knows(torch.nn.Module):  # a generator that is always right
        def forward(self, ids: torch.Tensor, real: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
            assert (ids[chosen] == 4).all() and torch.equal(ids[~chosen], given["input_ids"][~chosen])
            truths.append(chosen)
            return 1e4 * torch.nn.functional.one_hot(given["input_ids"][chosen], generator.head.bias.shape[0]).float()

    found.generator = Knows()
    terms = found(**given)["terms"]
    states = found.student(given)
    logits = found.detector(states.hidden[states.depth]).squeeze(-1)
    assert terms["replaced"].item() == pytest.approx(
        float(torch.nn.functional.softplus(logits.detach()).mean()), rel=1e-4
    )
    assert terms["masked"].item() == pytest.approx(0, abs=1e-6)
    assert truths[0].sum(1).eq(round(0.15 * 16)).all()


@pytest.mark.parametrize("family", tiny.TEXT_FAMILIES)
def test_every_text_family_learns(family: str, tmp_path: Path) -> None:
    found = objective(tiny.make(tmp_path, family)).eval()
    given = batch(tmp_path, length=18, real=15)
    optimizer = torch.optim.Adam(found.parameters(), 3e-3)
    losses: list[float] = []
    for _ in range(15):
        torch.manual_seed(0)
        out = found(**given)
        optimizer.zero_grad()
        out["loss"].backward()
        optimizer.step()
        losses.append(float(out["loss"].detach()))
    assert np.isfinite(losses).all()
    assert losses[-1] < 0.9 * losses[0]


def test_the_embeddings_are_the_students_and_learn_from_both(tmp_path: Path) -> None:
    found = objective(tiny.make(tmp_path, "bert"), generator=0.5, layers=1)
    names = {name for name, _ in found.named_parameters()}
    assert not [name for name in names if "generator" in name and "embeddings" in name]
    assert found.generator.head.dense.in_features == 16 and len(found.generator.encoder.layers) == 1
    given = batch(tmp_path)
    chosen = language.choose(given["input_ids"], given["attention_mask"], found.tokens.special, 0.15)
    loss = found.generator(given["input_ids"], given["attention_mask"], chosen).logsumexp(-1).sum()
    loss.backward()
    inner = found.student.model.base_model.embeddings
    assert inner.word_embeddings.weight.grad is not None and inner.position_embeddings.weight.grad is not None
    assert found.student.model.base_model.encoder.layer[0].attention.self.query.weight.grad is None


def test_the_generators_padding_changes_nothing(tmp_path: Path) -> None:
    generator = objective(tiny.make(tmp_path, "deberta-v2")).eval().generator
    assert generator.positions is not None  # deberta's embeddings know no places
    ids = torch.randint(8, 60, (1, 9))
    chosen = torch.zeros(1, 9, dtype=torch.bool)
    chosen[0, 4] = True
    pad = torch.nn.functional.pad
    short = generator(ids, torch.ones(1, 9), chosen)
    long = generator(pad(ids, (0, 5)), pad(torch.ones(1, 9), (0, 5)), pad(chosen, (0, 5)))
    assert torch.allclose(short, long, atol=1e-5)
