"""BERT-EMD: the transport by hand and against its dual, the whole loss against NumPy, the layers' shares."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import families as tiny
import numpy as np
import pytest
import torch
from scipy.optimize import linprog

from edgekit import plugins
from edgekit.errors import InputError
from edgekit.pipeline import models
from edgekit.pipeline.methods import Lesson, emd
from edgekit.pipeline.signals import Speaker, Teacher
from edgekit.records import Kind, Use
from edgekit.tasks import Feature

LABELS = ("bad", "good")


def lesson(folder: Path, family: str = "bert", kind: Kind = "text-classification", **student: int) -> Lesson:
    labels = LABELS if kind.endswith("classification") else ()
    depth = "n_layers" if family == "distilbert" else "num_hidden_layers"
    teacher = Teacher(tiny.make(folder / "teacher", family, kind, LABELS, 0, **{depth: 3}), kind, labels)
    small = tiny.make(folder / "student", family, kind, LABELS, 1, **{depth: 2, **student})
    return Lesson(Speaker(models.load(small, kind, labels), kind), (teacher,), [Feature({}, 0)], kind, seed=0)


def batch(model: Any, kind: Kind = "text-classification", extra: int = 0) -> dict[str, torch.Tensor]:
    if kind == "image-classification":
        return {"index": torch.arange(2), "pixel_values": torch.linspace(-1, 1, 2 * 3 * 32 * 32).view(2, 3, 32, 32)}
    mask = torch.tensor([[1] * 7 + [0] * extra, [1] * 5 + [0] * (2 + extra)])
    ids = (torch.arange(mask.numel()).view(mask.shape) % 50 + 5) * mask + (1 - mask) * models.pad_id(model)
    if extra:
        ids[:, :7] = batch(model)["input_ids"]
    return {"index": torch.arange(2), "input_ids": ids, "attention_mask": mask, "token_type_ids": 0 * mask}


def objective(given: Lesson, **params: object) -> Any:
    method, parsed = plugins.use("methods", Use.model_validate({"name": "emd", **params}))
    return method.objective(parsed, given)


def test_flow_of_two_and_two_by_hand() -> None:
    # each layer has a cheap counterpart; a quarter of the first's share must go the dear way
    found = emd.flow(np.array([[1.0, 4.0], [6.0, 2.0]]), np.array([0.75, 0.25]), np.array([0.5, 0.5]))
    assert np.allclose(found, [[0.5, 0.25], [0.0, 0.25]])


def test_flow_of_two_and_three_by_hand() -> None:
    # the middle column costs the first row 1 more than the second, the outer ones cost their own row nothing
    found = emd.flow(np.array([[0.0, 3.0, 9.0], [9.0, 2.0, 0.0]]), np.array([0.5, 0.5]), np.array([0.25, 0.5, 0.25]))
    assert np.allclose(found, [[0.25, 0.25, 0.0], [0.0, 0.25, 0.25]])


@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e6])
@pytest.mark.parametrize(("n", "m"), [(1, 4), (2, 3), (3, 6), (6, 12), (5, 2)])
def test_flow_is_optimal(n: int, m: int, scale: float) -> None:
    """It transports what it must, and costs what the dual problem says that it must at least cost."""
    rng = np.random.default_rng(n * m)
    distances, u, v = scale * rng.random((n, m)), rng.dirichlet(np.ones(n)), rng.dirichlet(np.ones(m))
    found = emd.flow(distances, u, v)
    assert (found >= 0).all()
    assert np.allclose(found.sum(1), u, atol=1e-7)
    assert np.allclose(found.sum(0), v, atol=1e-7)
    prices = np.concatenate([np.kron(np.eye(n), np.ones((m, 1))), np.tile(np.eye(m), (n, 1))], axis=1)
    dual = linprog(-np.concatenate([u, v]), A_ub=prices, b_ub=distances.ravel() / scale, bounds=(None, None))
    assert (found * distances).sum() == pytest.approx(-dual.fun * scale, rel=1e-6)


def test_shares_by_cost() -> None:
    # units cost 2, 4 and 4: inverse costs 1/2, 1/4, 1/4
    costs, shares = np.array([1.0, 1.0, 1.0]), np.array([0.5, 0.25, 0.25])
    assert np.allclose(emd.attended(costs, shares, None), [0.5, 0.25, 0.25])
    e = np.exp(np.array([5.0, 2.5, 2.5]) / 10)
    assert np.allclose(emd.attended(costs, shares, 10), e / e.sum())
    free = emd.attended(np.array([0.0, 1.0]), np.array([0.5, 0.5]), None)
    assert free[0] > 0.99 and np.isfinite(free).all() and free.sum() == pytest.approx(1)
    assert np.array_equal(emd.attended(np.zeros(2), np.array([0.5, 0.5]), None), [0.5, 0.5])


def test_the_loss_against_numpy(tmp_path: Path) -> None:
    given = lesson(tmp_path)
    rows = batch(given.student.model)
    with torch.no_grad():
        said, wisdom = given.student.eval()(rows), given.teachers[0].speak(rows)
    real = rows["attention_mask"].numpy().astype(bool)
    both = real[:, None, :, None] & real[:, None, None, :]

    def states(signals: Any) -> list[np.ndarray]:
        return [signals.hidden[i].numpy()[real] for i in range(1, signals.depth + 1)]

    def scores(signals: Any) -> list[np.ndarray]:
        every = [signals.scores(i).numpy() for i in range(1, signals.depth + 1)]
        return [each[np.broadcast_to(both, each.shape)] for each in every]

    found = objective(given, attention=0.5, hidden=2, embeddings=3, losses=[{"name": "output_mse"}]).train()
    given.student.eval()  # no dropout
    result = found(**rows)
    total, shares = 0.0, []
    for part, of in ((0.5, scores), (2, states)):
        d = np.array([[((s - t) ** 2).mean() for t in of(wisdom)] for s in of(said)])
        moved = emd.flow(d, np.full(2, 1 / 2), np.full(3, 1 / 3))
        total += part * (moved * d).sum()
        unit = (moved * d).sum(1) / (1 / 2), (moved * d).sum(0) / (1 / 3)
        shares.append([(1 / c) / (1 / c).sum() for c in unit])
    total += 3 * ((said.hidden[0].numpy()[real] - wisdom.hidden[0].numpy()[real]) ** 2).mean()
    total += ((said.outputs["logits"] - wisdom.outputs["logits"]) ** 2).mean().item()
    assert result["loss"].item() == pytest.approx(total, rel=1e-4)
    assert set(result["terms"]) == {"attention", "hidden", "embeddings", "1 output_mse"}
    for kept, by_attention, by_hidden in zip((found.mine, found.its), *shares, strict=True):
        assert np.allclose(kept.numpy(), (by_attention + by_hidden) / 2, rtol=1e-3)


def test_the_gradient_by_finite_differences(tmp_path: Path) -> None:
    given = lesson(tmp_path)
    rows = batch(given.student.model)
    found = objective(given, attention=1, hidden=1, embeddings=1, losses=[]).eval()
    weight = given.student.layers[0].query.weight
    found(**rows)["loss"].backward()
    slope = weight.grad[3, 4].item()
    values = []
    for step in (1e-2, -2e-2):
        with torch.no_grad():
            weight[3, 4] += step
            values.append(found(**rows)["loss"].item())
    assert slope == pytest.approx((values[0] - values[1]) / 2e-2, rel=2e-2, abs=1e-4)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_every_family(family: str, tmp_path: Path) -> None:
    kinds: tuple[Kind, ...] = ("text-classification", "token-classification", "question-answering")
    for kind in ("image-classification",) if family == "vit" else kinds:
        given = lesson(tmp_path / kind, family, kind)
        found = objective(given).train()
        result = found(**batch(given.student.model, kind))
        result["loss"].backward()
        assert torch.isfinite(result["loss"])
        assert not any(name.startswith("_teacher") for name in found.state_dict())


def test_padding_never_counts(tmp_path: Path) -> None:
    given = lesson(tmp_path)
    found = objective(given, attention=1, hidden=1, embeddings=1).eval()
    loss = [found(**batch(given.student.model, extra=extra))["loss"].item() for extra in (0, 4)]
    assert loss[0] == pytest.approx(loss[1], rel=1e-4)


def test_fewer_heads_and_a_narrower_student(tmp_path: Path) -> None:
    given = lesson(tmp_path, hidden_size=24, num_attention_heads=2)
    with pytest.raises(InputError, match="24 wide, the teacher's 32"):
        objective(given, projection=None)
    found = objective(given).train()
    found(**batch(given.student.model))["loss"].backward()
    assert found.projection[0].weight.shape == (32, 24)
    assert found.projection[0].weight.grad.abs().sum() > 0


def test_the_shares_are_kept_in_checkpoints(tmp_path: Path) -> None:
    given = lesson(tmp_path)
    found, rows = objective(given).train(), batch(given.student.model)
    for _ in range(3):
        found(**rows)
    kept = found.state_dict()
    assert kept["mine"].sum().item() == kept["its"].sum().item() == pytest.approx(1)
    assert not torch.allclose(kept["its"], torch.full((3,), 1 / 3, dtype=torch.float64))
    again = objective(given)
    again.load_state_dict(kept)
    assert torch.equal(again.its, found.its)


def test_the_shares_stay_where_they_are_asked_to(tmp_path: Path) -> None:
    given = lesson(tmp_path)
    rows = batch(given.student.model)
    for found in (objective(given, cost_attention=False).train(), objective(given).eval()):
        found(**rows)
        assert torch.equal(found.mine, torch.full((2,), 1 / 2, dtype=torch.float64))


def test_half_precision(tmp_path: Path) -> None:
    given = lesson(tmp_path)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.isfinite(objective(given)(**batch(given.student.model))["loss"])


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"losses": [{"name": "hidden_mse"}]}, "hidden_mse compares layers"),
        ({"attention": 0, "hidden": 0, "embeddings": 0, "losses": []}, "nothing is compared"),
        ({"attention": -1}, "attention"),
    ],
)
def test_what_is_refused(params: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=said):
        objective(lesson(tmp_path), **params)


def test_two_teachers(tmp_path: Path) -> None:
    given = lesson(tmp_path)
    with pytest.raises(InputError, match="takes one teacher, found 2"):
        objective(replace(given, teachers=given.teachers * 2))
