"""What every loss keeps to: gradients by finite differences, padding never counts, float32 of whatever comes in."""

from dataclasses import replace

import pytest
import torch
from said import MASK, mapped, signals, value

from edgekit import plugins
from edgekit.errors import InputError
from edgekit.pipeline.losses._params import flows, pairs
from edgekit.pipeline.signals import Signals, uniform_map
from edgekit.records import Use

LABELS = {"labels": torch.tensor([[0, -100, 2, 1], [1, 2, -100, -100]])}
TAKES = {  # by loss, the parts of the student that it reads
    "kl": ("outputs",), "soft_cross_entropy": ("outputs",), "output_mse": ("outputs",), "cross_entropy": ("outputs",),
    "hidden_mse": ("hidden",), "cosine": ("hidden",), "pkd": ("hidden",), "fsp": ("hidden",), "nst": ("hidden",),
    "attention_mse": ("queries", "keys"), "attention_mse_sum": ("queries", "keys"), "attention_ce": ("queries", "keys"),
    "attention_ce_mean": ("queries", "keys"), "minilm": ("queries", "keys", "values"),
    "minilmv2": ("queries", "keys", "values"),
}  # fmt: skip
OPTIONS: dict[str, dict[str, object]] = {
    "soft_cross_entropy": {"temperature_schedule": "cwsm", "probability_shift": True},
    "output_mse": {"temperature": 2.0},
    "minilmv2": {"relation_heads": 3},
    "nst": {"layers": "consecutive"},
}
ALIKE_COSTS = {"soft_cross_entropy", "cross_entropy", "attention_ce", "attention_ce_mean"}  # cross-entropies


def of(name: str, student: Signals, teacher: Signals) -> torch.Tensor:
    return value(name, student, teacher, LABELS, **OPTIONS.get(name, {}))


def test_every_shipped_loss_is_here() -> None:
    assert set(TAKES) == set(plugins.names("losses"))


@pytest.mark.parametrize("name", TAKES)
def test_the_same_model_costs_nothing(name: str) -> None:
    found = value(name, signals(0, 2), signals(0, 2), LABELS).item()
    assert found == pytest.approx(0, abs=1e-6) or name in ALIKE_COSTS
    assert found < value(name, signals(1, 2), signals(0, 2), LABELS).item() or name == "cross_entropy"


def leaves(said: Signals, name: str) -> dict[tuple[str, object], torch.Tensor]:
    return {(part, key): t.requires_grad_() for part in TAKES[name] for key, t in getattr(said, part).items()}


@pytest.mark.parametrize("name", TAKES)
@pytest.mark.parametrize("by", [7.0, 1e4])
def test_padding_changes_neither_value_nor_gradient(name: str, by: float) -> None:
    def shifted(said: Signals) -> Signals:
        moved = mapped(said, torch.clone)
        for part in ("outputs", "hidden", "queries", "keys", "values"):
            for tensor in getattr(moved, part).values():
                (tensor if part in ("outputs", "hidden") else tensor.transpose(1, 2))[1, 2:] += by
        return moved

    found = []
    for change in (lambda said: said, shifted):
        student, teacher = change(signals(0, 2)), change(signals(1, 2))
        loss = of(name, student, teacher)
        parts = leaves(student, name)
        loss = of(name, student, teacher)
        gradients = torch.autograd.grad(loss, list(parts.values()), allow_unused=True)
        found.append((loss.item(), dict(zip(parts, gradients, strict=True))))
    (before, its), (after, moved) = found
    assert after == pytest.approx(before, rel=1e-6)
    for key, gradient in its.items():
        if gradient is None:
            assert moved[key] is None
            continue
        assert moved[key] is not None
        assert torch.allclose(gradient, moved[key], rtol=1e-5, atol=1e-7), key
        padded = gradient[1, 2:] if key[0] in ("outputs", "hidden") else gradient[1, :, 2:]
        assert not padded.any(), key


@pytest.mark.parametrize("name", TAKES)
def test_gradient_by_finite_differences(name: str) -> None:
    """Along a random direction of everything that the loss reads of the student."""
    student, teacher = signals(0, 2), signals(1, 2)
    parts = leaves(student, name)
    gradients = torch.autograd.grad(of(name, student, teacher), list(parts.values()), allow_unused=True)
    generator = torch.Generator().manual_seed(3)
    for (key, tensor), gradient in zip(parts.items(), gradients, strict=True):
        if gradient is None:  # a layer that this loss does not read
            continue
        assert gradient.any() or key == ("values", 1)
        direction = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
        step = 3e-3  # losses are computed in float32
        along = []
        for sign in (1, -1):
            with torch.no_grad():
                tensor += sign * step * direction
                along.append(fixed_temperature(name, student, teacher, sign * step * direction, key))
                tensor -= sign * step * direction
        slope = (along[0] - along[1]) / (2 * step)
        assert (gradient * direction).sum().item() == pytest.approx(slope, rel=2e-2, abs=2e-3), key


def fixed_temperature(name: str, student: Signals, teacher: Signals, moved: torch.Tensor, key: object) -> float:
    """The loss, with the temperatures that a schedule gives before the move: no gradient goes through them."""
    if name != "soft_cross_entropy":
        return of(name, student, teacher).item()
    module, params = plugins.use("losses", Use.model_validate({"name": name, **OPTIONS[name]}))
    before = replace(student, outputs={"logits": student.outputs["logits"] - moved})
    (then,), (now,) = (list(module.compared(name, params, said, teacher, LABELS)) for said in (before, student))
    mine, its = now._replace(temperature=then.temperature).log_probabilities()
    return (-(its.exp() * mine).sum() / now.rows).item()


@pytest.mark.parametrize("name", TAKES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("autocast", [False, True])
def test_half_precision(name: str, dtype: torch.dtype, autocast: bool) -> None:
    """Float32 and nothing else is computed with what comes in, inside autocast too, and large values stay finite."""
    halves = [mapped(signals(seed, 2), lambda t: t.to(dtype)) for seed in (0, 1)]
    exact = of(name, *(mapped(said, torch.Tensor.double) for said in halves))
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found = of(name, *halves)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(exact.item(), rel=1e-5)
    student, teacher = (mapped(signals(seed, 2), lambda t: (t * 1.5e4).to(dtype)) for seed in (0, 1))
    parts = leaves(student, name)
    large = of(name, student, teacher)
    large.backward()
    assert large.isfinite()
    if dtype == torch.bfloat16:  # a gradient of float16 values may be beyond float16
        assert all(t.grad is None or t.grad.isfinite().all() for t in parts.values())


@pytest.mark.parametrize("name", TAKES)
def test_twice_the_same(name: str) -> None:
    assert of(name, signals(0, 2), signals(1, 2)).item() == of(name, signals(0, 2), signals(1, 2)).item()


@pytest.mark.parametrize("name", sorted(set(TAKES) - {"cross_entropy"}))
def test_a_loss_reads_what_it_says(name: str) -> None:
    """A teacher of nothing but what `reads` names is enough."""
    loss, params = plugins.use("losses", Use.model_validate({"name": name, **OPTIONS.get(name, {})}))
    wanted = loss.reads(params, 2, 4)
    assert wanted
    teacher = signals(1, 4)
    only = {
        part: {layer: tensor for layer, tensor in getattr(teacher, part).items() if (part, layer) in wanted}
        for part in ("hidden", "queries", "keys", "values")
    }
    kept = {layer: teacher.scores(layer) for part, layer in wanted if part == "scores"}
    bare = Signals(outputs=teacher.outputs if ("outputs", 0) in wanted else {}, **only, mask=MASK, depth=4, kept=kept)
    student = signals(0, 2)
    assert of(name, student, bare).item() == pytest.approx(of(name, student, teacher).item())


@pytest.mark.parametrize("name", ["hidden_mse", "cosine", "pkd", "attention_mse", "attention_mse_sum", "attention_ce",
                                  "attention_ce_mean", "fsp", "nst"])  # fmt: skip
def test_layers_that_match_nothing_are_refused(name: str) -> None:
    loss, params = plugins.use(
        "losses", Use(name=name, layers=[[[1, 3], [2, 4]]] if name in ("fsp", "nst") else [[3, 4]])
    )
    with pytest.raises(
        InputError, match=r"layers: \[3, 4\] matches nothing: the student has layers [01] to 2, the teacher"
    ):
        loss.reads(params, 2, 4)
    for nothing in ([], "topp", [[1]]):
        with pytest.raises(InputError, match=r'key "layers": take ".*", or pairs'):
            plugins.use("losses", Use(name=name, layers=nothing))


@pytest.mark.parametrize(
    ("layers", "wanted"),
    [("uniform", ((1, 2), (2, 4), (3, 6))), ("top", ((1, 4), (2, 5), (3, 6))), ("bottom", ((1, 1), (2, 2), (3, 3))),
     ("last", ((3, 6),)), (((0, 0), (3, 1)), ((0, 0), (3, 1)))],
)  # fmt: skip
def test_layer_maps(layers: object, wanted: tuple[tuple[int, int], ...]) -> None:
    assert pairs(layers, 3, 6, lowest=0) == wanted  # type: ignore[arg-type]


def test_flows() -> None:
    assert flows("consecutive", 3, 6) == (((0, 1), (0, 2)), ((1, 2), (2, 4)), ((2, 3), (4, 6)))
    assert flows("same", 2, 2) == (((1, 1), (1, 1)), ((2, 2), (2, 2)))


@pytest.mark.parametrize(
    ("student", "teacher", "wanted"), [(3, 6, (2, 4, 6)), (4, 12, (3, 6, 9, 12)), (4, 6, (2, 3, 5, 6)), (2, 2, (1, 2))]
)
def test_uniform_map(student: int, teacher: int, wanted: tuple[int, ...]) -> None:
    assert uniform_map(student, teacher) == wanted
