"""Each loss against a value worked out with NumPy alone, its gradient by finite differences, and its mask."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from edgekit import plugins
from edgekit.errors import InputError
from edgekit.pipeline.signals import Signals, uniform_map
from edgekit.records import Use

BATCH, LENGTH, WIDTH, HEADS, SIZE, LABELS = 2, 4, 6, 2, 3, 3
MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])


def signals(seed: int, layers: int, heads: int = HEADS, shape: tuple[int, ...] = (BATCH, LENGTH, LABELS)) -> Signals:
    generator = torch.Generator().manual_seed(seed)

    def random(*size: int) -> torch.Tensor:
        return torch.randn(*size, generator=generator, dtype=torch.float64)

    return Signals(
        outputs={"logits": random(*shape)},
        hidden={i: random(BATCH, LENGTH, WIDTH) for i in range(layers + 1)},
        queries={i: random(BATCH, heads, LENGTH, SIZE) for i in range(1, layers + 1)},
        keys={i: random(BATCH, heads, LENGTH, SIZE) for i in range(1, layers + 1)},
        values={i: random(BATCH, heads, LENGTH, SIZE) for i in range(1, layers + 1)},
        mask=MASK,
        depth=layers,
    )


def value(
    name: str, student: Signals, teacher: Signals, batch: dict[str, torch.Tensor] | None = None, **params: object
) -> torch.Tensor:
    loss, parsed = plugins.use("losses", Use.model_validate({"name": name, **params}))
    return loss.loss(parsed, student, teacher, batch or {})


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def test_kl_of_tokens() -> None:
    student, teacher = signals(0, 2), signals(1, 4)
    real = MASK.numpy().astype(bool)
    p, q = (softmax(s.outputs["logits"].numpy()[real] / 2) for s in (teacher, student))
    wanted = 4 * (p * np.log(p / q)).sum(-1).mean()
    assert value("kl", student, teacher, temperature=2).item() == pytest.approx(wanted, rel=1e-5)


def test_kl_of_rows_by_hand() -> None:
    student, teacher = signals(0, 2, shape=(1, 2)), signals(1, 4, shape=(1, 2))
    student.outputs["logits"][:] = torch.tensor([0.0, 0.0])
    teacher.outputs["logits"][:] = torch.log(torch.tensor([3.0, 1.0]))
    # teacher 3/4 and 1/4, student 1/2 each: 3/4 ln(3/2) + 1/4 ln(1/2)
    assert value("kl", student, teacher, temperature=1).item() == pytest.approx(0.75 * np.log(1.5) + 0.25 * np.log(0.5))


def test_kl_of_positions_gives_padding_no_probability() -> None:
    student, teacher = signals(0, 2, shape=(BATCH, LENGTH)), signals(1, 2, shape=(BATCH, LENGTH))
    for s in (student, teacher):
        s.outputs["start_logits"] = s.outputs.pop("logits")
    rows = []
    for row, n in enumerate((4, 2)):
        p, q = (softmax(s.outputs["start_logits"].numpy()[row, :n]) for s in (teacher, student))
        rows.append((p * np.log(p / q)).sum())
    assert value("kl", student, teacher, temperature=1).item() == pytest.approx(np.mean(rows), rel=1e-5)


def test_output_mse() -> None:
    student, teacher = signals(0, 2), signals(1, 4)
    real = MASK.numpy().astype(bool)
    difference = student.outputs["logits"].numpy()[real] - teacher.outputs["logits"].numpy()[real]
    assert value("output_mse", student, teacher).item() == pytest.approx((difference**2).mean(), rel=1e-5)


def test_hidden_mse_takes_the_uniform_map() -> None:
    student, teacher = signals(0, 2), signals(1, 4)
    real = MASK.numpy().astype(bool)
    wanted = sum(
        ((student.hidden[m].numpy()[real] - teacher.hidden[g].numpy()[real]) ** 2).mean()
        for m, g in ((0, 0), (1, 2), (2, 4))
    )
    assert value("hidden_mse", student, teacher).item() == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("student_heads", [HEADS, 1])
def test_attention_mse_before_the_softmax(student_heads: int) -> None:
    student, teacher = signals(0, 1, student_heads), signals(1, 3)

    def scores(s: Signals, layer: int) -> np.ndarray:
        found = np.einsum("bhld,bhmd->bhlm", s.queries[layer].numpy(), s.keys[layer].numpy()) / np.sqrt(SIZE)
        return found if student_heads == HEADS else found.mean(1, keepdims=True)

    square = (scores(student, 1) - scores(teacher, 3)) ** 2
    pairs = [square[0], square[1][:, :2, :2]]
    wanted = sum(p.sum() for p in pairs) / sum(p.size for p in pairs)
    assert value("attention_mse", student, teacher).item() == pytest.approx(wanted, rel=1e-5)


def test_cross_entropy_ignores_minus_100() -> None:
    student = signals(0, 1)
    truth = torch.tensor([[0, -100, 2, 1], [1, -100, -100, -100]])
    p = softmax(student.outputs["logits"].numpy())
    wanted = -np.mean([np.log(p[0, 0, 0]), np.log(p[0, 2, 2]), np.log(p[0, 3, 1]), np.log(p[1, 0, 1])])
    assert value("cross_entropy", student, student, {"labels": truth}).item() == pytest.approx(wanted, rel=1e-5)


def test_cross_entropy_without_labels_says_so() -> None:
    with pytest.raises(InputError, match="no labels"):
        value("cross_entropy", signals(0, 1), signals(1, 1))


@pytest.mark.parametrize("name", ["kl", "output_mse", "hidden_mse", "attention_mse"])
def test_the_same_model_costs_nothing_and_padding_never_counts(name: str) -> None:
    student, teacher = signals(0, 2), signals(0, 2)
    assert value(name, student, teacher).item() == pytest.approx(0, abs=1e-12)
    student = signals(1, 2)
    before = value(name, student, teacher).item()
    for tensor in (student.outputs["logits"], *student.hidden.values()):
        tensor[1, 2:] += 7
    for tensor in (*student.queries.values(), *student.keys.values()):
        tensor[1, :, 2:] += 7
    assert value(name, student, teacher).item() == pytest.approx(before)


@pytest.mark.parametrize(
    ("name", "part"),
    [("kl", lambda s: s.outputs["logits"]), ("output_mse", lambda s: s.outputs["logits"]),
     ("hidden_mse", lambda s: s.hidden[1]), ("attention_mse", lambda s: s.queries[1])],
)  # fmt: skip
def test_gradient_by_finite_differences(name: str, part: Callable[[Signals], torch.Tensor]) -> None:
    student, teacher = signals(0, 2), signals(1, 2)
    tensor = part(student).requires_grad_()
    (gradient,) = torch.autograd.grad(value(name, student, teacher), tensor)
    place = (0, 0, 1) if tensor.dim() == 3 else (0, 0, 1, 1)
    step = 1e-2  # losses are computed in float32
    with torch.no_grad():
        tensor[place] += step
        above = value(name, student, teacher).item()
        tensor[place] -= 2 * step
        below = value(name, student, teacher).item()
    assert gradient[place].item() == pytest.approx((above - below) / (2 * step), rel=1e-2, abs=1e-4)


@pytest.mark.parametrize(
    ("student", "teacher", "wanted"), [(3, 6, (2, 4, 6)), (4, 12, (3, 6, 9, 12)), (4, 6, (2, 3, 5, 6)), (2, 2, (1, 2))]
)
def test_uniform_map(student: int, teacher: int, wanted: tuple[int, ...]) -> None:
    assert uniform_map(student, teacher) == wanted
