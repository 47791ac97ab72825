"""Knowledge distillation: the weights of its losses, its projections, and every loss for every family and kind."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import families as tiny
import pytest
import torch
from lessons import CASES, LABELS, batch, lesson

from edgekit import plugins
from edgekit.errors import InputError
from edgekit.pipeline import models
from edgekit.pipeline.losses._params import Weighted
from edgekit.pipeline.methods import Lesson
from edgekit.pipeline.methods.kd import weight
from edgekit.pipeline.signals import Speaker
from edgekit.records import Kind, Use

EVERY = tuple(name for name in plugins.names("losses") if name != "cross_entropy")


def objective(given: Lesson, losses: list[dict[str, Any]]) -> Any:
    method, params = plugins.use("methods", Use(name="kd", losses=losses))
    return method.objective(params, given)


@pytest.mark.parametrize(
    ("schedule", "wanted"), [("constant", (3, 3, 3)), ("linear_decay", (3, 1.5, 0)), ("linear_growth", (0, 1.5, 3))]
)
def test_the_weight_of_a_loss_follows_its_schedule(schedule: Any, wanted: tuple[float, ...], tmp_path: Path) -> None:
    its = Weighted(weight=3, schedule=schedule)
    assert tuple(weight(its.weight, its.schedule, progress) for progress in (0, 0.5, 1)) == wanted
    given = lesson(tmp_path)
    taught = objective(given, [{"name": "kl", "weight": 3, "schedule": schedule}, {"name": "hidden_mse"}]).eval()
    for progress, its_weight in zip((0, 0.5, 1), wanted, strict=True):
        taught.progress = progress
        said = taught(**batch(given))
        assert said["loss"].item() == pytest.approx(
            its_weight * said["terms"]["1 kl"].item() + said["terms"]["2 hidden_mse"].item()
        )


@pytest.mark.parametrize(("family", "kind"), CASES)
def test_every_loss_of_every_family_and_kind(family: str, kind: Kind, tmp_path: Path) -> None:
    """All at once: finite, with gradients, and the same where the batch is padded further."""
    given = lesson(tmp_path, family, kind)
    hard = [] if kind == "sentence-embedding" else [{"name": "cross_entropy"}]
    taught = objective(given, [*({"name": name} for name in EVERY), *hard]).eval()
    rows = batch(given)
    said = taught(**rows)
    said["loss"].backward()
    assert len(said["terms"]) == len(EVERY) + len(hard)
    assert all(term.isfinite() and term > 0 for term in said["terms"].values()), said["terms"]
    gradients = [p.grad for p in given.student.model.parameters() if p.grad is not None]
    assert gradients and all(g.isfinite().all() for g in gradients)
    if kind == "image-classification":
        return
    further = {}
    for name, tensor in rows.items():
        fill = models.pad_id(given.student.model) if name == "input_ids" else -100 if name == "labels" else 0
        further[name] = torch.nn.functional.pad(tensor, (0, 5), value=fill) if tensor.dim() == 2 else tensor
    with torch.no_grad():
        padded = taught(**further)["terms"]
    for name, term in said["terms"].items():
        assert padded[name].item() == pytest.approx(term.item(), rel=1e-3), name


def narrower(folder: Path) -> Lesson:
    """A student of width 24 with 3 heads beside a teacher of width 32 with 4."""
    given = lesson(folder / "teacher")
    tiny.make(folder / "student", "bert", labels=LABELS, hidden_size=24, num_attention_heads=3)
    return replace(given, student=Speaker(models.load(folder / "student", given.kind, LABELS), given.kind))


def test_projections_where_they_are_needed(tmp_path: Path) -> None:
    hidden = [{"name": name, "projection": "auto"} for name in ("hidden_mse", "cosine", "pkd", "fsp")]
    alike = lesson(tmp_path / "alike")
    assert not list(objective(alike, hidden).projections.parameters())
    given = narrower(tmp_path)
    taught = objective(given, [*hidden, {"name": "nst"}, {"name": "hidden_mse", "projection": "tanh"}]).eval()
    assert [tuple(p.shape) for p in taught.projections.parameters()] == [(32, 24), (32,)] * 5
    said = taught(**batch(given))
    said["loss"].backward()
    assert all(term.isfinite() for term in said["terms"].values())
    assert all(p.grad is not None and p.grad.any() for p in taught.projections.parameters())
    with pytest.raises(InputError, match=r'hidden_mse: the student\'s states are 24 wide, .* projection = "auto"'):
        objective(given, [{"name": "hidden_mse"}])(**batch(given))


def test_a_projection_is_computed_once_a_layer(tmp_path: Path) -> None:
    given = narrower(tmp_path)
    taught = objective(given, [{"name": "hidden_mse", "projection": "linear", "layers": [[1, 2], [1, 3], [1, 4]]}])
    calls: list[torch.Tensor] = []
    taught.projections[0].register_forward_hook(lambda module, inputs, output: calls.append(output))
    taught(**batch(given))
    assert len(calls) == 1


def test_unlike_heads(tmp_path: Path) -> None:
    given = narrower(tmp_path)
    works = ("attention_mse", "attention_mse_sum", "attention_ce_mean", "minilmv2")
    said = objective(given, [{"name": name} for name in works])(**batch(given))
    assert all(term.isfinite() for term in said["terms"].values())
    for name in ("attention_ce", "minilm"):
        with pytest.raises(InputError, match=f"{name}: the student has 3 heads in this layer, the teacher 4"):
            objective(given, [{"name": name}])(**batch(given))


def test_the_teacher_is_asked_for_what_the_losses_read(tmp_path: Path) -> None:
    given = lesson(tmp_path)
    assert objective(given, [{"name": "kl"}, {"name": "pkd"}, {"name": "minilm"}]).wanted == {
        ("outputs", 0), ("hidden", 2), ("scores", 4), ("values", 4),
    }  # fmt: skip


@pytest.mark.parametrize(
    "loss",
    [{"name": "hidden_mse", "layers": [[1, 5]]}, {"name": "attention_mse", "layers": [[3, 1]]},
     {"name": "minilmv2", "teacher_layer": 5}],
)  # fmt: skip
def test_layers_that_match_nothing_are_refused_before_training(loss: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"matches nothing: the student has layers|does not exist: the teacher has 4"):
        objective(lesson(tmp_path), [loss])


@pytest.mark.parametrize(
    ("kind", "loss", "said"),
    [("text-classification", "kl", None), ("text-classification", "pkd", None),
     ("text-classification", "hidden_mse", "compares tokens, .* use losses that compare whole rows: kl"),
     ("sentence-embedding", "attention_mse", "compares tokens, .* use losses that compare whole rows: kl"),
     ("token-classification", "kl", None),
     ("token-classification", "hidden_mse", "compares tokens in a token-classification task"),
     ("question-answering", "kl", "compares tokens in a question-answering task"),
     ("question-answering", "cross_entropy", None)],
)  # fmt: skip
def test_a_teacher_with_tokens_of_its_own(kind: Kind, loss: str, said: str | None, tmp_path: Path) -> None:
    given = lesson(tmp_path, kind=kind)
    given.teachers[0].alignment = SimpleNamespace(features=given.features)
    if said is None:
        assert objective(given, [{"name": loss}])
    else:
        with pytest.raises(InputError, match=f"kd: {loss} {said}"):
            objective(given, [{"name": loss}])


def test_one_teacher(tmp_path: Path) -> None:
    given = lesson(tmp_path)
    with pytest.raises(InputError, match="kd: takes one teacher, found 2; use the method multi_teacher"):
        objective(replace(given, teachers=given.teachers * 2), [{"name": "kl"}])
