"""Masked-LM and DistilBERT: what is masked, what is learnt, and their losses by independent formulas."""

import json
from pathlib import Path

import families as tiny
import numpy as np
import pytest
import torch

from edgekit.errors import InputError
from edgekit.pipeline import language, models
from edgekit.pipeline.methods import Lesson, distilbert, masked_lm
from edgekit.pipeline.signals import Speaker, Teacher
from edgekit.tasks import Feature, pad

LABELS = ("negative", "positive")


def features(folder: Path, lengths: tuple[int, ...] = (12, 7)) -> list[Feature]:
    config = json.loads((folder / "config.json").read_text())
    rng = np.random.default_rng(0)
    found: list[Feature] = []
    for length in lengths:
        ids = rng.integers(8, config["vocab_size"], length)
        ids[0], ids[-1] = config["bos_token_id"], config["eos_token_id"]
        ones = np.ones_like(ids)
        found.append(Feature({"input_ids": ids, "attention_mask": ones, "token_type_ids": 0 * ones}, len(found)))
    return found


def batch_of(model: Speaker, given: list[Feature], length: int | None = None) -> dict[str, torch.Tensor]:
    padded = pad(given, models.pad_id(model.model), length)
    return {"index": torch.arange(len(given)), **{name: torch.from_numpy(array) for name, array in padded.items()}}


def lesson(folder: Path, teacher: Path | None = None) -> Lesson:
    student = Speaker(models.load(folder, "text-classification", LABELS), "text-classification")
    teachers = (Teacher(teacher or folder, "text-classification", LABELS),)
    return Lesson(student, teachers, features(folder), "text-classification", 0)


def with_head(folder: Path) -> Path:
    torch.manual_seed(1)
    model = models.load(folder, "text-classification", LABELS)
    language.save(language.new_head(model), folder)
    return folder


def test_choose_takes_the_share_of_real_ordinary_tokens() -> None:
    ids = torch.randint(5, 100, (64, 40))
    ids[:, 0], ids[:, 39] = 2, 3
    real = torch.ones(64, 40)
    real[32:, 20:] = 0
    torch.manual_seed(0)
    chosen = language.choose(ids, real, (0, 1, 2, 3, 4), 0.15)
    assert chosen[:32].sum(1).eq(round(38 * 0.15)).all()
    assert chosen[32:].sum(1).eq(round(19 * 0.15)).all()
    assert not chosen[:, 0].any() and not chosen[:, 39].any() and not chosen[32:, 20:].any()
    assert not torch.equal(chosen, language.choose(ids, real, (0, 1, 2, 3, 4), 0.15))  # drawn anew
    assert chosen[:, 1:39].any(0).all()  # anywhere
    only = torch.full((1, 3), 2)
    assert not language.choose(only, torch.ones(1, 3), (2,), 0.15).any()


def test_hide_is_80_10_10() -> None:
    torch.manual_seed(0)
    ids, chosen = torch.full((200, 200), 7), torch.zeros(200, 200, dtype=torch.bool)
    chosen[:, :100] = True
    hidden = language.hide(ids, chosen, mask=4, vocabulary=1000)
    assert torch.equal(hidden[:, 100:], ids[:, 100:])
    part = hidden[:, :100]
    assert abs(float((part == 4).float().mean()) - 0.8) < 0.01
    assert abs(float((part == 7).float().mean()) - 0.1) < 0.01


def test_the_heads_logits_by_numpy(tmp_path: Path) -> None:
    model = models.load(tiny.make(tmp_path, "electra"), "text-classification", LABELS)
    head, states = language.new_head(model), torch.randn(3, 32)
    table = language.words(model).weight.detach().numpy()
    assert table.shape[1] == 16  # narrower than the model
    with torch.no_grad():
        head.bias.normal_()
        head.norm.weight.normal_()
    weight = {name: value.detach().numpy() for name, value in head.state_dict().items()}
    dense = states.numpy() @ weight["dense.weight"].T + weight["dense.bias"]
    erf = np.vectorize(__import__("math").erf)
    active = dense * 0.5 * (1 + erf(dense / np.sqrt(2)))
    normed = (active - active.mean(-1, keepdims=True)) / active.std(-1, keepdims=True)
    wanted = (normed * weight["norm.weight"] + weight["norm.bias"]) @ table.T + weight["bias"]
    assert np.allclose(head(states, torch.from_numpy(table)).detach().numpy(), wanted, atol=1e-4)


@pytest.mark.parametrize("family", tiny.TEXT_FAMILIES)
def test_every_text_family_learns(family: str, tmp_path: Path) -> None:
    objective = masked_lm.objective(masked_lm.Params(), lesson(tiny.make(tmp_path, family))).eval()
    given = batch_of(objective.student, features(tmp_path))
    optimizer = torch.optim.Adam(objective.parameters(), 3e-3)
    losses: list[float] = []
    for _ in range(20):
        torch.manual_seed(0)  # the same tokens each time: they must be learnt
        loss = objective(**given)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert np.isfinite(losses).all()
    assert losses[-1] < 0.7 * losses[0]


def test_padding_changes_nothing(tmp_path: Path) -> None:
    objective = masked_lm.objective(masked_lm.Params(share=0.99), lesson(tiny.make(tmp_path, "bert"))).eval()
    given = features(tmp_path, (9,))
    torch.manual_seed(0)
    ids = batch_of(objective.student, given)["input_ids"]
    hidden = torch.where(language.choose(ids, torch.ones_like(ids), objective.tokens.special, 0.99), 4, ids)
    short, long = (
        objective.student({**batch_of(objective.student, given, length), "input_ids": padded}).hidden[2][:, :9]
        for length, padded in ((9, hidden), (20, torch.nn.functional.pad(hidden, (0, 11))))
    )
    assert torch.allclose(short, long, atol=1e-5)


def test_images_are_refused(tmp_path: Path) -> None:
    model = models.load(tiny.make(tmp_path, "vit", "image-classification"), "image-classification", LABELS)
    with pytest.raises(InputError, match="language models are for text"):
        language.words(model)


def test_a_tokenizer_without_a_mask(tmp_path: Path) -> None:
    tiny.make(tmp_path, "bert")
    assert language.Tokens.of(tmp_path) == language.Tokens(mask=4, special=(0, 1, 2, 3, 4))
    text = (tmp_path / "tokenizer.json").read_text().replace("[MASK]", "[HIDE]")
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(InputError, match="has no mask token"):
        language.Tokens.of(tmp_path)


def test_a_head_is_saved_and_loaded(tmp_path: Path) -> None:
    model = models.load(with_head(tiny.make(tmp_path, "bert")), "text-classification", LABELS)
    assert torch.equal(language.load(tmp_path, model).dense.weight, language.new_head(model, tmp_path).dense.weight)
    other = models.load(tiny.make(tmp_path / "other", "bert", hidden_size=16), "text-classification", LABELS)
    language.save(language.new_head(other), tmp_path)
    with pytest.raises(InputError, match="does not fit"):
        language.load(tmp_path, model)
    (tmp_path / language.FILE).write_bytes(b"pickle")
    with pytest.raises(InputError, match="not a whole safetensors file"):
        language.load(tmp_path, model)
    (tmp_path / language.FILE).unlink()
    with pytest.raises(InputError, match="has no masked-LM head"):
        language.load(tmp_path, model)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_distilberts_losses_by_numpy(dtype: torch.dtype) -> None:
    rng = np.random.default_rng(0)
    mine, its = (torch.tensor(rng.normal(size=(5, 11)), dtype=dtype) for _ in range(2))
    logs = [a - np.log(np.exp(a).sum(-1, keepdims=True)) for a in (x.double().numpy() / 3 for x in (its, mine))]
    wanted = 9 * (np.exp(logs[0]) * (logs[0] - logs[1])).sum(-1).mean()
    assert float(distilbert.soft(mine, its, 3.0)) == pytest.approx(wanted, rel=1e-4)
    assert float(distilbert.soft(mine[:0], its[:0], 3.0)) == 0
    states = [torch.tensor(rng.normal(size=(2, 4, 6)), dtype=dtype) for _ in range(2)]
    a, b = (x.double().numpy()[0] for x in states)
    wanted = (1 - (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)).mean()
    real = torch.tensor([[1, 1, 1, 1], [0, 0, 0, 0]])
    assert float(distilbert.cosine(states[0], states[1], real)) == pytest.approx(wanted, rel=1e-4)


def test_distilbert_is_nothing_but_masked_lm_for_the_teacher_itself(tmp_path: Path) -> None:
    folder = with_head(tiny.make(tmp_path, "bert", num_hidden_layers=4))
    objective = distilbert.objective(distilbert.Params(), lesson(folder)).eval()
    found = objective(**batch_of(Speaker(models.load(folder, "text-classification"), "text-classification"),
                                 features(folder)))  # fmt: skip
    assert found["terms"]["soft"].item() == pytest.approx(0, abs=1e-5)
    assert found["terms"]["cosine"].item() == pytest.approx(0, abs=1e-5)
    assert found["loss"].item() == pytest.approx(2 * found["terms"]["masked"].item(), rel=1e-4)
    inside = [name for name, _ in objective.named_parameters()]
    assert all(name.startswith(("student.", "head.")) for name in inside)  # no teacher among them


def test_distilbert_asks_for_a_head_and_takes_a_student_of_any_width(tmp_path: Path) -> None:
    teacher = tiny.make(tmp_path / "teacher", "bert")
    with pytest.raises(InputError, match="has no masked-LM head"):
        distilbert.objective(distilbert.Params(), lesson(teacher))
    narrow = tiny.make(tmp_path / "narrow", "bert", hidden_size=16)
    found = distilbert.objective(distilbert.Params(), lesson(narrow, with_head(teacher)))
    speaker = Speaker(models.load(narrow, "text-classification"), "text-classification")
    out = found(**batch_of(speaker, features(narrow)))
    assert found.projection[0].weight.shape == (32, 16)
    assert set(out["terms"]) == {"soft", "masked", "cosine"} and bool(torch.isfinite(out["loss"]))
