"""DynaBERT: rewiring, the losses and gradients of all sub-networks, its steps, what is refused."""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import families as tiny
import lessons
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.func import functional_call

from edgekit.errors import InputError
from edgekit.pipeline import families, importance, models, subnetworks, training
from edgekit.pipeline.criteria import taylor
from edgekit.pipeline.methods import Lesson, dynabert
from edgekit.pipeline.signals import Speaker, Teacher
from edgekit.recipe import Training
from edgekit.records import Kind

WIDTHS = (1.0, 0.75, 0.5, 0.25)
PAIRS = {
    1.0: ((0, 0), (1, 1), (2, 2), (3, 3), (4, 4)),
    0.75: ((0, 0), (1, 1), (2, 2), (3, 4)),
    0.5: ((0, 0), (1, 2), (2, 4)),
}
"""Of four layers: which states are compared, by depth; with 3 of 4 layers the last goes, with 2 of 4 every other."""
KEPT = {1.0: (0, 1, 2, 3), 0.75: (0, 1, 2), 0.5: (0, 2)}


def lesson(folder: Path, family: str = "bert", kind: Kind = "text-classification") -> Lesson:
    """A student as deep as its teacher, and not quite it."""
    given = lessons.lesson(folder, family, kind, student=4)
    with torch.no_grad():
        for parameter in given.student.model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return given


class Run(nn.Module):
    def __init__(self, model: Any, kind: Kind) -> None:
        super().__init__()
        self.exportable = models.Exportable(model, kind)

    def forward(self, batch: Mapping[str, Tensor]) -> Any:
        return self.exportable.with_hidden(*(batch[name] for name in self.exportable.input_names))


def masked(given: Lesson, weights: Mapping[str, Tensor], width: float, depth: float) -> Any:
    """What the sub-network says, by weights of 0 in place of what it lacks, and the list of layers cut short."""
    model = given.student.model
    shapes = {name: p.shape for name, p in subnetworks.take(model, width, 1.0).named_parameters()}
    zeroed: dict[str, Tensor] = {}
    for name, weight in weights.items():
        mask = torch.zeros_like(weight)
        mask[tuple(slice(size) for size in shapes[name.removeprefix("exportable.model.")])] = 1
        zeroed[name] = weight * mask
    if families.family(model).shared:
        whole, model.config.num_hidden_layers = model.config.num_hidden_layers, len(KEPT[depth])
        said = functional_call(Run(model, given.kind), zeroed, (lessons.batch(given),))
        model.config.num_hidden_layers = whole
        return said
    encoder, name = families.stack(model)
    own = getattr(encoder, name)
    prefix = next(n for n, module in given.student.named_modules() if module is own)
    moved = {n: w for n, w in zeroed.items() if not n.startswith(prefix)}
    for new, old in enumerate(KEPT[depth]):
        moved |= {
            re.sub(rf"^{prefix}\.{old}\.", f"{prefix}.{new}.", n): w
            for n, w in zeroed.items()
            if n.startswith(f"{prefix}.{old}.")
        }
    setattr(encoder, name, nn.ModuleList(own[i] for i in range(len(KEPT[depth]))))
    said = functional_call(Run(model, given.kind), moved, (lessons.batch(given),))
    setattr(encoder, name, own)
    return said


def expected(params: dynabert.Params, said: Any, its: Any, given: Lesson, depth: float) -> Tensor:
    """The loss of one sub-network, written down anew."""
    rows = lessons.batch(given)
    (outputs, hidden), (their_outputs, their_hidden) = said, its
    soft = -(their_outputs["logits"].softmax(-1) * outputs["logits"].log_softmax(-1)).sum(-1).mean()
    real = rows["attention_mask"].bool() if "attention_mask" in rows else slice(None)
    states = [((hidden[m][real] - their_hidden[g][real]) ** 2).mean() for m, g in PAIRS[depth]]
    hard = torch.nn.functional.cross_entropy(outputs["logits"], rows["labels"])
    return params.logits * soft + params.hidden * torch.stack(states).sum() + params.labels * hard


@pytest.mark.parametrize(
    ("family", "second"),
    [*((family, False) for family in tiny.FAMILIES), ("bert", True), ("albert", True), ("vit", True)],
)
def test_loss_and_gradients_are_the_sum_over_sub_networks(family: str, second: bool, tmp_path: Path) -> None:
    given = lesson(tmp_path, family, "image-classification" if family == "vit" else "text-classification")
    params = dynabert.Params(logits=0.7, hidden=0.3, labels=0.5)
    method = dynabert.objective(params, given)
    if second:  # the same student, its grid known: its weights now are the teacher, and then it moves on
        method = dynabert.objective(params, given)
        before = {name: p.detach().clone() for name, p in given.student.named_parameters()}
        with torch.no_grad():
            for parameter in given.student.parameters():
                parameter.add_(0.02 * torch.randn_like(parameter))
    weights = dict(given.student.eval().named_parameters())
    total: list[Tensor] = []
    for width in WIDTHS:
        with torch.no_grad():
            if second:
                its = masked(given, before, width, 1.0)
            else:
                its = Run(given.teachers[0].speaker.model, given.kind)(lessons.batch(given))
        for depth in (1.0, 0.75, 0.5):
            total.append(expected(params, masked(given, weights, width, depth), its, given, depth))
    right = torch.stack(total).sum()
    gradients = torch.autograd.grad(right, list(weights.values()), allow_unused=True)
    found = method.eval()(**lessons.batch(given))
    (2 * found["loss"]).backward()
    torch.testing.assert_close(found["loss"], right)
    for (name, weight), gradient in zip(weights.items(), gradients, strict=True):
        assert (weight.grad is None) == (gradient is None), name
        if gradient is not None and weight.grad is not None:
            scale = gradient.abs().max().clamp(min=0.05)  # that of a key's bias is 0 but for rounding
            torch.testing.assert_close(weight.grad / 2 / scale, gradient / scale, atol=2e-4, rtol=0, msg=name)


@pytest.mark.parametrize(("family", "kind"), lessons.CASES)
def test_rewiring_sorts_and_changes_nothing(family: str, kind: Kind, tmp_path: Path) -> None:
    given = lesson(tmp_path, family, kind)
    model = given.student.model
    before = models.predictor(model, kind)(given.features)
    method = dynabert.objective(dynabert.Params(), given)
    for was, now in zip(before, models.predictor(model, kind)(given.features), strict=True):
        for name in was:
            assert abs(was[name] - now[name]).max() < 1e-5
    heads, neurons = importance.scores(taylor, taylor.Params(), model, given.features, kind, given.seed)
    for scores in (*heads, *(each for networks in neurons for each in networks)):
        assert bool((scores.diff() < 1e-5).all())
    found = method.train()(**lessons.batch(given))
    found["loss"].backward()
    assert torch.isfinite(found["loss"]) and set(found["terms"]) == {"logits", "hidden"}
    assert all(torch.isfinite(p.grad).all() for p in method.parameters() if p.grad is not None)
    models.save(model, tmp_path / "saved")
    loaded = models.load(tmp_path / "saved", kind, lessons.labels(kind))
    assert subnetworks.grid(loaded.config.to_dict()) == {"widths": [0.25, 0.5, 0.75, 1.0], "depths": [0.5, 0.75, 1.0]}


def test_a_second_step_starts_from_the_first_ones_grid(tmp_path: Path) -> None:
    given = lesson(tmp_path)
    dynabert.objective(dynabert.Params(widths=(0.5, 1.0), depths=(1.0,)), given)
    kept = given.student.model.state_dict()
    kept = {name: tensor.clone() for name, tensor in kept.items()}
    method = dynabert.objective(dynabert.Params(depths=(0.5, 1.0)), dataclasses.replace(given, teachers=()))
    assert all(torch.equal(kept[name], tensor) for name, tensor in given.student.model.state_dict().items())
    assert given.student.model.config.dynabert == {"widths": [0.5, 1.0], "depths": [0.5, 1.0]}
    with torch.no_grad():
        terms = method.eval()(**lessons.batch(given))["terms"]
    assert terms["hidden"] > 0
    same = dynabert.objective(dynabert.Params(depths=(1.0,)), given).eval()
    assert same(**lessons.batch(given))["terms"]["hidden"] == 0  # nothing has moved yet
    with pytest.raises(InputError, match=r"widths = \[0.25, 1.0\], but the step before trained \[0.5, 1.0\]"):
        dynabert.objective(dynabert.Params(widths=(0.25, 1.0)), given)


def test_half_precision(tmp_path: Path) -> None:
    given = lesson(tmp_path)
    method = dynabert.objective(dynabert.Params(), given)
    exact = method.eval()(**lessons.batch(given))["loss"]
    with torch.autocast("cpu", torch.bfloat16):
        found = method(**lessons.batch(given))["loss"]
    found.backward()
    assert found.item() == pytest.approx(exact.item(), rel=0.05)
    assert all(torch.isfinite(p.grad).all() for p in method.parameters() if p.grad is not None)


def test_training_brings_every_sub_network_nearer(tmp_path: Path) -> None:
    given = lesson(tmp_path / "teacher")
    method = dynabert.objective(dynabert.Params(widths=(0.5, 1.0), depths=(0.5, 1.0)), given)

    def far(width: float, depth: float) -> float:
        small = subnetworks.take(given.student.model, width, depth).eval()
        mine, its = Speaker(small, given.kind)(lessons.batch(given)), given.teachers[0](lessons.batch(given))
        return (mine.outputs["logits"] - its.outputs["logits"]).square().mean().item()

    grid = [(width, depth) for width in (0.5, 1.0) for depth in (0.5, 1.0)]
    start = {cell: far(*cell) for cell in grid}
    plan = Training(epochs=10, learning_rate=3e-3, batch_size=6, precision="float32")
    training.train(method, given.features, plan, pad_id=0, seed=0, scratch=tmp_path / "scratch", what="x")
    end = {cell: far(*cell) for cell in grid}
    assert all(end[cell] < start[cell] / 2 for cell in grid if cell != (1.0, 1.0))  # which began near


def test_what_cannot_be_is_refused(tmp_path: Path) -> None:
    for wrong in ({"widths": [0.5]}, {"depths": [1.0, 1.0]}, {"widths": [1.0, 0.0]}, {"logits": 0, "hidden": 0}):
        with pytest.raises(ValidationError):
            dynabert.Params.model_validate(wrong)
    given = lesson(tmp_path / "teacher")
    with pytest.raises(InputError, match="takes one teacher, found 2"):
        dynabert.objective(dynabert.Params(), dataclasses.replace(given, teachers=given.teachers * 2))
    wide = Teacher(tiny.make(tmp_path / "wide", "bert", hidden_size=64), given.kind, ("negative", "positive"))
    with pytest.raises(InputError, match="32 wide, the teacher's 64; take hidden = 0"):
        dynabert.objective(dynabert.Params(), dataclasses.replace(given, teachers=(wide,)))
    rows = [dataclasses.replace(feature, labels={}) for feature in given.features]
    with pytest.raises(InputError, match="labels = 1, but these rows have no labels"):
        dynabert.objective(dynabert.Params(labels=1), dataclasses.replace(given, features=rows))
    groups = {"model_type": "albert", "num_hidden_groups": 2}
    assert "take depths = [1.0]" in (dynabert.refusal(dynabert.Params(), groups) or "")
    assert dynabert.refusal(dynabert.Params(depths=(1.0,)), groups) is None
    assert "not known" in (dynabert.refusal(dynabert.Params(), {"model_type": "t5"}) or "")
