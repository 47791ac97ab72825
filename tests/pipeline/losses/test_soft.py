"""Losses on outputs, each against a value worked out with NumPy alone, row by row."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from said import BATCH, LABELS, LENGTH, LENGTHS, REAL, signals, softmax, value

from edgekit import plugins
from edgekit.errors import InputError
from edgekit.records import Use

SOFT = ("kl", "soft_cross_entropy", "output_mse")
TRUTH = torch.tensor([[0, -100, 2, 1], [1, -100, -100, -100]])


def by_hand(name: str, student: np.ndarray, teacher: np.ndarray, temperature: np.ndarray, base: float) -> float:
    """Of logits [n, classes] and temperatures [n]."""
    total = []
    for s, t, tau in zip(student, teacher, temperature, strict=True):
        p, q = softmax(t / tau), softmax(s / tau)
        match name:
            case "kl":
                total.append(base**2 * (p * np.log(p / q)).sum())
            case "soft_cross_entropy":
                total.append(-(p * np.log(q)).sum())
            case _:
                total.append((((s - t) / tau) ** 2).mean())
    return float(np.mean(total))


def temperatures(schedule: str, student: np.ndarray, teacher: np.ndarray, base: float, beta: float, gamma: float):
    if schedule == "constant":
        return np.full(len(student), base)
    if schedule == "flsw":
        cosine = [
            s @ t / (np.sqrt(s @ s) + 1e-4) / (np.sqrt(t @ t) + 1e-4) for s, t in zip(student, teacher, strict=True)
        ]
        w = (1 - np.array(cosine)) ** gamma
    else:
        w = 1 / (softmax(student).max(-1) + 1e-3)
    return base + (w.mean() - w) * beta


@pytest.mark.parametrize("name", SOFT)
@pytest.mark.parametrize("schedule", ["constant", "flsw", "cwsm"])
def test_of_tokens(name: str, schedule: str) -> None:
    student, teacher = signals(0, 2), signals(1, 4)
    mine, its = (s.outputs["logits"].numpy()[REAL] for s in (student, teacher))
    tau = temperatures(schedule, mine, its, 3, 0.5, 1.5)
    found = value(
        name, student, teacher, temperature=3, temperature_schedule=schedule, beta=0.5,
        **({"gamma": 1.5} if schedule == "flsw" else {}),
    )  # fmt: skip
    assert found.item() == pytest.approx(by_hand(name, mine, its, tau, 3), rel=1e-5)
    assert schedule == "constant" or np.ptp(tau) > 0.1


@pytest.mark.parametrize("name", SOFT)
@pytest.mark.parametrize("schedule", ["constant", "flsw", "cwsm"])
def test_of_rows_even_where_there_are_as_many_labels_as_tokens(name: str, schedule: str) -> None:
    student, teacher = (signals(seed, 2, shape=(BATCH, LENGTH)) for seed in (0, 1))
    mine, its = (s.outputs["logits"].numpy() for s in (student, teacher))
    tau = temperatures(schedule, mine, its, 3, 0.5, 2)
    found = value(name, student, teacher, temperature=3, temperature_schedule=schedule, beta=0.5)
    assert found.item() == pytest.approx(by_hand(name, mine, its, tau, 3), rel=1e-5)


@pytest.mark.parametrize("name", ["kl", "soft_cross_entropy"])
@pytest.mark.parametrize("schedule", ["constant", "flsw", "cwsm"])
def test_of_positions_gives_padding_no_probability(name: str, schedule: str) -> None:
    student, teacher = (signals(seed, 2, shape=(BATCH, LENGTH), output="start_logits") for seed in (0, 1))
    mine, its = (
        [s.outputs["start_logits"].numpy()[row, :n] for row, n in enumerate(LENGTHS)] for s in (student, teacher)
    )
    if schedule == "constant":
        tau = np.full(2, 2.0)
    else:  # each row's own w, then the mean over rows
        w = [2.0 - temperatures(schedule, s[None], t[None], 2, 0, 2)[0] for s, t in zip(mine, its, strict=True)]
        alone = [
            1 / (softmax(s).max() + 1e-3) if schedule == "cwsm"
            else (1 - s @ t / (np.sqrt(s @ s) + 1e-4) / (np.sqrt(t @ t) + 1e-4)) ** 2
            for s, t in zip(mine, its, strict=True)
        ]  # fmt: skip
        assert w == [0, 0]  # with beta = 0 the temperature stays
        tau = 2 + (np.mean(alone) - np.array(alone)) * 0.5
    rows = [by_hand(name, s[None], t[None], np.array([k]), 2) for s, t, k in zip(mine, its, tau, strict=True)]
    found = value(name, student, teacher, temperature=2, temperature_schedule=schedule, beta=0.5)
    assert found.item() == pytest.approx(np.mean(rows), rel=1e-5)


def test_output_mse_of_positions_and_of_embeddings() -> None:
    student, teacher = (signals(seed, 2, shape=(BATCH, LENGTH), output="end_logits") for seed in (0, 1))
    difference = (student.outputs["end_logits"] - teacher.outputs["end_logits"]).numpy()
    assert value("output_mse", student, teacher).item() == pytest.approx((difference[REAL] ** 2).mean(), rel=1e-5)
    student, teacher = (signals(seed, 2, shape=(BATCH, 5), output="sentence_embedding") for seed in (0, 1))
    difference = (student.outputs["sentence_embedding"] - teacher.outputs["sentence_embedding"]).numpy()
    assert value("output_mse", student, teacher).item() == pytest.approx((difference**2).mean(), rel=1e-5)


def test_several_outputs_are_averaged() -> None:
    alone = []
    for output in ("start_logits", "end_logits"):
        student, teacher = (signals(seed, 2, shape=(BATCH, LENGTH), output=output) for seed in (len(output), 1))
        alone.append((student.outputs, teacher.outputs, value("kl", student, teacher).item()))
    student, teacher = signals(0, 2), signals(1, 2)
    both = [dict(alone[0][side]) | dict(alone[1][side]) for side in (0, 1)]
    for said, outputs in zip((student, teacher), both, strict=True):
        said.outputs.clear()  # type: ignore[attr-defined]
        said.outputs.update(outputs)  # type: ignore[attr-defined]
    assert value("kl", student, teacher).item() == pytest.approx((alone[0][2] + alone[1][2]) / 2)


def test_kl_of_rows_by_hand() -> None:
    student, teacher = signals(0, 2, shape=(1, 2)), signals(1, 4, shape=(1, 2))
    student.outputs["logits"][:] = torch.tensor([0.0, 0.0])
    teacher.outputs["logits"][:] = torch.log(torch.tensor([3.0, 1.0]))
    # teacher 3/4 and 1/4, student 1/2 each: 3/4 ln(3/2) + 1/4 ln(1/2); the cross-entropy is ln 2 whatever the teacher
    assert value("kl", student, teacher, temperature=1).item() == pytest.approx(0.75 * np.log(1.5) + 0.25 * np.log(0.5))
    assert value("soft_cross_entropy", student, teacher, temperature=1).item() == pytest.approx(np.log(2))


@pytest.mark.parametrize("name", SOFT)
def test_probability_shift_gives_the_truth_the_greatest_logit(name: str) -> None:
    student, teacher = signals(0, 2), signals(1, 4)
    its = teacher.outputs["logits"].numpy().copy()
    before = its.copy()
    moved = 0
    for row, position in np.argwhere(REAL):
        label = int(TRUTH[row, position])
        if label >= 0:
            logits, top = its[row, position], its[row, position].argmax()
            moved += top != label
            logits[top], logits[label] = logits[label], logits[top]
            assert logits.argmax() == label
    assert moved
    mine = student.outputs["logits"].numpy()[REAL]
    wanted = by_hand(name, mine, its[REAL], np.full(len(mine), 2.0), 2)
    found = value(name, student, teacher, {"labels": TRUTH}, temperature=2, probability_shift=True)
    assert found.item() == pytest.approx(wanted, rel=1e-5)
    assert np.array_equal(teacher.outputs["logits"].numpy(), before)  # a teacher's words may be kept, and asked again


@pytest.mark.parametrize("name", SOFT)
def test_probability_shift_of_an_answer_leaves_padding_alone(name: str) -> None:
    """What is kept on disk has 0 for padding, and a model any number: with negative logits either could be greatest."""
    found, mask = list[float](), torch.tensor([[1, 1, 1, 1, 0, 0]])
    for padding in (0.0, 9.0, -9.0):
        student, teacher = (
            replace(signals(0, 2), outputs={"start_logits": torch.tensor([[*z, padding, padding]])}, mask=mask)
            for z in ([-2.0, -1, -4, -3], [-5.0, -1, -3, -4])
        )
        batch = {"start_positions": torch.tensor([2])}
        found.append(value(name, student, teacher, batch, temperature=1, probability_shift=True).item())
    swapped = by_hand(name, np.array([[-2.0, -1, -4, -3]]), np.array([[-5.0, -3, -1, -4]]), np.ones(1), 1)
    assert found == pytest.approx([swapped] * 3, rel=1e-5)


@pytest.mark.parametrize("name", SOFT)
def test_only_labelled_tokens_count_where_asked(name: str) -> None:
    student, teacher = signals(0, 2), signals(1, 4)
    labelled = (TRUTH != -100).numpy()
    mine, its = (s.outputs["logits"].numpy()[labelled] for s in (student, teacher))
    wanted = by_hand(name, mine, its, np.full(len(mine), 2.0), 2)
    found = value(name, student, teacher, {"labels": TRUTH}, temperature=2, mask="labels")
    assert found.item() == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("name", (*SOFT, "cross_entropy"))
def test_a_batch_without_a_labelled_token_costs_nothing(name: str) -> None:
    student = signals(0, 2)
    logits = student.outputs["logits"].requires_grad_()
    options = {} if name == "cross_entropy" else {"mask": "labels"}
    found = value(name, student, signals(1, 2), {"labels": torch.full_like(TRUTH, -100)}, **options)
    found.backward()
    assert found.item() == 0
    assert logits.grad is not None and not logits.grad.any()


@pytest.mark.parametrize("name", SOFT)
@pytest.mark.parametrize(
    ("option", "said"), [({"mask": "labels"}, 'mask = "labels"'), ({"probability_shift": True}, "shift")]
)
def test_needs_labels(name: str, option: dict[str, object], said: str) -> None:
    with pytest.raises(InputError, match=f"{name}: .*{said}.*these rows have none"):
        value(name, signals(0, 2), signals(1, 2), **option)


@pytest.mark.parametrize("schedule", ["flsw", "cwsm"])
def test_no_temperature_falls_to_nothing(schedule: str) -> None:
    student, teacher = signals(0, 2, shape=(8, LABELS)), signals(1, 2, shape=(8, LABELS))
    _, params = plugins.use("losses", Use(name="kl", temperature=1, temperature_schedule=schedule, beta=50))
    soft = plugins.load("losses", "kl").compared
    (each,) = soft("kl", params, student, teacher, {})
    assert each.temperature.min() == pytest.approx(0.1)
    assert value("kl", student, teacher, temperature=1, temperature_schedule=schedule, beta=50).isfinite()


def test_unlike_outputs_are_refused() -> None:
    with pytest.raises(InputError, match=r"logits have the shape \[2, 3\], the teacher's \[2, 5\]; their labels"):
        value("kl", signals(0, 2, shape=(BATCH, 3)), signals(1, 2, shape=(BATCH, 5)))
    with pytest.raises(
        InputError, match="the student's rows have 4 tokens, the teacher's 6: they have unlike tokenizers"
    ):
        value("kl", signals(0, 2), signals(1, 2, shape=(BATCH, 6, LABELS)))


def test_cross_entropy_ignores_minus_100() -> None:
    student = signals(0, 1)
    p = softmax(student.outputs["logits"].numpy())
    wanted = -np.mean([np.log(p[0, 0, 0]), np.log(p[0, 2, 2]), np.log(p[0, 3, 1]), np.log(p[1, 0, 1])])
    assert value("cross_entropy", student, student, {"labels": TRUTH}).item() == pytest.approx(wanted, rel=1e-5)


def test_cross_entropy_of_positions_and_rows() -> None:
    student = signals(0, 1, shape=(BATCH, LENGTH), output="start_logits")
    z = student.outputs["start_logits"].numpy()
    wanted = -np.mean([np.log(softmax(z[0])[2]), np.log(softmax(z[1, :2])[1])])
    found = value("cross_entropy", student, student, {"start_positions": torch.tensor([2, 1])})
    assert found.item() == pytest.approx(wanted, rel=1e-5)
    student = signals(0, 1, shape=(BATCH, LENGTH))  # as many labels as tokens
    wanted = -np.mean(
        [np.log(softmax(student.outputs["logits"].numpy())[row, label]) for row, label in ((0, 3), (1, 3))]
    )
    found = value("cross_entropy", student, student, {"labels": torch.tensor([3, 3])})
    assert found.item() == pytest.approx(wanted, rel=1e-5)


def test_cross_entropy_without_labels_says_so() -> None:
    with pytest.raises(InputError, match="no labels"):
        value("cross_entropy", signals(0, 1), signals(1, 1))
