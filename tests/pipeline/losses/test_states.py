"""Losses on hidden states, attention and relations, each against a value worked out with NumPy alone, row by row."""

import numpy as np
import pytest
from said import HEADS, LENGTHS, REAL, WIDTH, scores, signals, softmax, value

from edgekit import plugins
from edgekit.errors import InputError
from edgekit.pipeline.signals import Signals
from edgekit.records import Use


def hidden(said: Signals, layer: int) -> np.ndarray:
    return said.hidden[layer].numpy()


def rows(said: Signals, layer: int) -> list[np.ndarray]:
    """The unpadded states of each row, [tokens, width]."""
    return [hidden(said, layer)[row, :n] for row, n in enumerate(LENGTHS)]


def test_hidden_mse_takes_the_uniform_map() -> None:
    student, teacher = signals(0, 2), signals(1, 4)
    wanted = sum(
        ((hidden(student, m)[REAL] - hidden(teacher, g)[REAL]) ** 2).mean() for m, g in ((0, 0), (1, 2), (2, 4))
    )
    assert value("hidden_mse", student, teacher).item() == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize(("layers", "pairs"), [({}, [(2, 4)]), ({"layers": [[0, 0], [1, 3]]}, [(0, 0), (1, 3)])])
def test_cosine(layers: dict[str, object], pairs: list[tuple[int, int]]) -> None:
    student, teacher = signals(0, 2), signals(1, 4)
    wanted = 0.0
    for m, g in pairs:
        each = zip(hidden(student, m)[REAL], hidden(teacher, g)[REAL], strict=True)
        wanted += np.mean([1 - s @ t / np.sqrt(s @ s) / np.sqrt(t @ t) for s, t in each])
    assert value("cosine", student, teacher, **layers).item() == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize(
    ("layers", "student", "teacher", "wanted"),
    [("skip", 6, 12, (2, 4, 6, 8, 10)), ("last", 6, 12, (7, 8, 9, 10, 11)),  # the paper's own examples
     ("skip", 3, 6, (2, 4)), ("last", 3, 6, (4, 5)), ("skip", 3, 12, (4, 8)), ("last", 3, 12, (10, 11))],
)  # fmt: skip
def test_which_layers_patient_distillation_reads(
    layers: str, student: int, teacher: int, wanted: tuple[int, ...]
) -> None:
    pkd, params = plugins.use("losses", Use(name="pkd", layers=layers))
    assert pkd.reads(params, student, teacher) == {("hidden", layer) for layer in wanted}


@pytest.mark.parametrize(
    ("layers", "pairs"), [("skip", [(1, 2), (2, 4)]), ("last", [(1, 4), (2, 5)]), ([[3, 6]], [(3, 6)])]
)
def test_pkd(layers: object, pairs: list[tuple[int, int]]) -> None:
    student, teacher = signals(0, 3), signals(1, 6)
    wanted = 0.0
    for m, g in pairs:
        for row in range(2):
            s, t = hidden(student, m)[row, 0], hidden(teacher, g)[row, 0]
            wanted += ((s / np.linalg.norm(s) - t / np.linalg.norm(t)) ** 2).sum() / 2
    assert value("pkd", student, teacher, layers=layers).item() == pytest.approx(wanted, rel=1e-5)


def test_pkd_needs_a_layer_to_compare() -> None:
    with pytest.raises(InputError, match='pkd: layers = "skip" leaves the last layer out, and the student has only 1'):
        value("pkd", signals(0, 1), signals(1, 4))
    with pytest.raises(InputError, match="the student has 3 layers, the teacher only 2"):
        value("pkd", signals(0, 3), signals(1, 2), layers="last")


FLOWS = [({"layers": "consecutive"}, [((0, 1), (0, 2)), ((1, 2), (2, 4))]),
         ({"layers": "same"}, [((1, 1), (2, 2)), ((2, 2), (4, 4))]),
         ({"layers": [[[0, 2], [1, 3]]]}, [((0, 2), (1, 3))])]  # fmt: skip


@pytest.mark.parametrize(("layers", "pairs"), [*FLOWS, ({}, FLOWS[0][1])])
def test_fsp(layers: dict[str, object], pairs: list[tuple[tuple[int, int], tuple[int, int]]]) -> None:
    student, teacher = signals(0, 2), signals(1, 4)
    wanted = 0.0
    for (s1, s2), (t1, t2) in pairs:
        for row, n in enumerate(LENGTHS):
            mine = rows(student, s1)[row].T @ rows(student, s2)[row] / n
            its = rows(teacher, t1)[row].T @ rows(teacher, t2)[row] / n
            wanted += ((mine - its) ** 2).mean() / 2
    assert value("fsp", student, teacher, **layers).item() == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize(("layers", "pairs"), [*FLOWS, ({}, FLOWS[1][1])])
def test_nst_takes_unlike_widths(
    layers: dict[str, object], pairs: list[tuple[tuple[int, int], tuple[int, int]]]
) -> None:
    student, teacher = signals(0, 2, width=5), signals(1, 4)
    wanted = 0.0
    for (s1, s2), (t1, t2) in pairs:
        square = []
        for row in range(2):
            mine = rows(student, s1)[row] @ rows(student, s2)[row].T / 5
            its = rows(teacher, t1)[row] @ rows(teacher, t2)[row].T / WIDTH
            square += [*((mine - its) ** 2).flatten()]
        wanted += np.mean(square)
    assert value("nst", student, teacher, **layers).item() == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("name", ["attention_mse", "attention_mse_sum"])
@pytest.mark.parametrize("heads", [HEADS, 1])
def test_attention_mse_before_the_softmax(name: str, heads: int) -> None:
    student, teacher = signals(0, 2, heads), signals(1, 4)
    wanted = 0.0
    for m, g in ((1, 2), (2, 4)):
        mine, its = scores(student, m), scores(teacher, g)
        if name == "attention_mse_sum":
            mine, its = mine.sum(1, keepdims=True), its.sum(1, keepdims=True)
        elif heads != HEADS:
            mine, its = mine.mean(1, keepdims=True), its.mean(1, keepdims=True)
        square = [(mine - its)[row, :, :n, :n] ** 2 for row, n in enumerate(LENGTHS)]
        wanted += sum(s.sum() for s in square) / sum(s.size for s in square)
    assert value(name, student, teacher).item() == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize(
    ("name", "heads"), [("attention_ce", HEADS), ("attention_ce_mean", HEADS), ("attention_ce_mean", 1)]
)
def test_attention_ce(name: str, heads: int) -> None:
    student, teacher = signals(0, 2, heads), signals(1, 4)
    wanted = 0.0
    for m, g in ((1, 2), (2, 4)):
        mine, its = scores(student, m), scores(teacher, g)
        if name == "attention_ce_mean":
            mine, its = mine.mean(1, keepdims=True), its.mean(1, keepdims=True)
        each = []
        for row, n in enumerate(LENGTHS):
            p, q = softmax(its[row, :, :n, :n]), softmax(mine[row, :, :n, :n])
            each += [*(-(p * np.log(q)).sum(-1)).flatten()]
        wanted += np.mean(each)
    assert value(name, student, teacher).item() == pytest.approx(wanted, rel=1e-5)


def divergence(mine: np.ndarray, its: np.ndarray) -> float:
    """The mean over rows, heads and unpadded queries of the KL of softmaxes, of scores [batch, heads, L, L]."""
    total = []
    for row, n in enumerate(LENGTHS):
        p, q = softmax(its[row, :, :n, :n]), softmax(mine[row, :, :n, :n])
        total.append((p * np.log(p / q)).sum() / (n * len(p)))
    return float(np.mean(total))


def relation(projected: np.ndarray) -> np.ndarray:
    return np.einsum("bhld,bhmd->bhlm", projected, projected) / np.sqrt(projected.shape[-1])


def test_minilm_takes_any_width() -> None:
    student, teacher = signals(0, 2, size=5), signals(1, 4)
    wanted = divergence(scores(student, 2), scores(teacher, 4))
    wanted += divergence(relation(student.values[2].numpy()), relation(teacher.values[4].numpy()))
    assert value("minilm", student, teacher).item() == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize(("options", "layer", "relation_heads"),
    [({"relation_heads": 3}, 4, 3), ({"relation_heads": 4, "teacher_layer": 3}, 3, 4), ({}, 4, 1)],
)  # fmt: skip
def test_minilmv2_takes_any_heads_and_widths(options: dict[str, object], layer: int, relation_heads: int) -> None:
    student, teacher = signals(0, 2, heads=3, size=4), signals(1, 4, heads=4, size=6)

    def cut(projected: np.ndarray) -> np.ndarray:
        _, heads, _, size = projected.shape
        side_by_side = np.stack([np.concatenate([p[h] for h in range(heads)], -1) for p in projected])
        step = heads * size // relation_heads
        return np.stack([side_by_side[..., i * step : (i + 1) * step] for i in range(relation_heads)], 1)

    wanted = sum(
        divergence(
            relation(cut(getattr(student, part)[2].numpy())), relation(cut(getattr(teacher, part)[layer].numpy()))
        )
        for part in ("queries", "keys", "values")
    )
    assert value("minilmv2", student, teacher, **options).item() == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize(
    ("student", "teacher", "wanted"), [(384, 768, 48), (384, 384, 48), (312, 384, 24), (32, 48, 4), (7, 9, 1)]
)
def test_how_many_relation_heads(student: int, teacher: int, wanted: int) -> None:
    assert plugins.load("losses", "minilmv2")._heads(None, student, teacher) == wanted


def test_minilmv2_says_what_would_fit() -> None:
    with pytest.raises(InputError, match=r"relation_heads = 4: .* 6 wide, .* 6, which can both be cut into 1, 2, 3, 6"):
        value("minilmv2", signals(0, 2), signals(1, 4), relation_heads=4)
    with pytest.raises(InputError, match="teacher_layer = 5 does not exist: the teacher has 4 layers"):
        value("minilmv2", signals(0, 2), signals(1, 4), teacher_layer=5)


@pytest.mark.parametrize("name", ["attention_ce", "minilm"])
def test_unlike_heads_are_refused_with_what_works(name: str) -> None:
    with pytest.raises(
        InputError, match=f"{name}: the student has 1 heads .* the teacher {HEADS}, .*attention_ce_mean"
    ):
        value(name, signals(0, 2, heads=1), signals(1, 4))


@pytest.mark.parametrize("name", ["hidden_mse", "cosine", "pkd", "fsp"])
def test_unlike_widths_are_refused_with_what_works(name: str) -> None:
    with pytest.raises(
        InputError, match=f'{name}: the student\'s states are 5 wide, .* {WIDTH}; .*projection = "auto"'
    ):
        value(name, signals(0, 2, width=5), signals(1, 4))


@pytest.mark.parametrize("name", ["attention_mse", "attention_mse_sum", "attention_ce", "attention_ce_mean", "minilm",
                                  "minilmv2"])  # fmt: skip
def test_a_model_without_attention_is_refused(name: str) -> None:
    student = signals(0, 2)
    for part in (student.queries, student.keys, student.values):
        part.clear()  # type: ignore[attr-defined]
    with pytest.raises(InputError, match=f"{name}: one of the models has no attention that can be read"):
        value(name, student, signals(1, 4))


def test_scores_that_were_kept_are_taken() -> None:
    student, teacher = signals(0, 2), signals(1, 4)
    before = value("attention_mse", student, teacher).item()
    kept = {layer: teacher.scores(layer) for layer in (2, 4)}
    without = Signals(teacher.outputs, {}, {}, {}, {}, teacher.mask, 4, kept)
    assert value("attention_mse", student, without).item() == pytest.approx(before)
