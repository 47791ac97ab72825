"""A ladder: what it computes by an independent formula, what trains, what is kept in memory, and through to files."""

import json
from pathlib import Path
from typing import Any

import families as tiny
import numpy as np
import pytest
import student_checks as students
import torch

from edgekit import plugins
from edgekit import recipe as recipes
from edgekit.pipeline import build, families, models
from edgekit.pipeline.signals import Speaker
from edgekit.recipe import Recipe
from edgekit.records import Kind
from edgekit.store import Store

KINDS: dict[str, Kind] = {
    "bert": "text-classification",
    "distilbert": "question-answering",
    "electra": "text-classification",
    "roberta": "sentence-embedding",
    "albert": "text-classification",
    "mobilebert": "token-classification",
    "mpnet": "sentence-embedding",
    "deberta-v2": "token-classification",
    "vit": "image-classification",
}


def tensors(model: Any, kind: Kind = "text-classification") -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(array) for name, array in students.batch(model, kind).items()}


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_ladder_beside_every_family(family: str, tmp_path: Path) -> None:
    kind = KINDS[family]
    _, model = students.teacher(tmp_path / "teacher", family, kind)
    ladder = students.build("ladder", model, kind, reduction=4)
    loaded = students.comes_back(ladder, kind, tmp_path / "ladder")
    for each in (ladder, loaded):
        training = {name for name, weight in each.named_parameters() if weight.requires_grad}
        assert training
        assert not any("backbone" in name for name in training)
        assert {n for n, _ in each.named_parameters() if "backbone" not in n} - training <= {
            n for n, _ in each.named_parameters() if "patch_embeddings" in n
        }
    batch = tensors(loaded, kind)
    theirs = Speaker(model, kind).eval()(batch)
    for speaker in (Speaker(loaded, kind).train(), Speaker(loaded, kind).eval()):
        mine = speaker(batch)
        assert mine.depth == 2 and list(mine.hidden) == [0, 1, 2]
        for layer, states in theirs.hidden.items():  # of the backbone, without dropout, without a graph
            torch.testing.assert_close(mine.hidden[layer], states)
            assert not mine.hidden[layer].requires_grad
        assert all(output.requires_grad for output in mine.outputs.values())


def test_it_computes_what_the_paper_says(tmp_path: Path) -> None:
    _, model = students.teacher(tmp_path / "teacher", num_hidden_layers=4)
    ladder = students.build("ladder", model, reduction=4, every=2)
    torch.nn.init.normal_(ladder.base_model.gates, std=0.1)
    batch = tensors(ladder)
    with torch.no_grad():
        given = ladder(**batch).logits
        states = model(**batch, output_hidden_states=True).hidden_states
        rails, head = ladder.base_model, ladder.task
        mask = (1.0 - batch["attention_mask"][:, None, None].float()) * -1e9
        mu = 1 / (1 + torch.exp(-rails.gates / 0.1))
        state = rails.down[0](states[0])
        for i, layer in enumerate(rails.side.encoder.layer):
            mixed = mu[i] * state + (1 - mu[i]) * rails.down[i + 1](states[2 * (i + 1)])
            hooks = layer._forward_pre_hooks.copy()
            layer._forward_pre_hooks.clear()
            state = layer(mixed, mask)
            layer._forward_pre_hooks.update(hooks)
        wanted = head.classifier(rails.pooler(rails.up(state)))
    torch.testing.assert_close(given, wanted)
    assert len(rails.side.encoder.layer) == 2


def test_it_starts_as_the_most_important_part_of_the_backbone(tmp_path: Path) -> None:
    _, model = students.teacher(tmp_path / "teacher", num_hidden_layers=1)
    big = families.layers(model)[0]
    w = {
        n: m.weight.detach().numpy() for n, m in (("q", big.query), ("k", big.key), ("v", big.value), ("o", big.output))
    }
    up, down = (m.weight.detach().numpy() for m in big.feed_forward[0])
    read = sum((w[n] ** 2).sum(0) for n in "qkv") + (up**2).sum(0)
    dims = np.sort(np.argsort(read + (w["o"] ** 2).sum(1) + (down**2).sum(1))[-8:])
    units = sum((w[n] ** 2).sum(1) for n in "qkv") + (w["o"] ** 2).sum(0)
    head = int(np.argmax(units.reshape(4, 8).sum(1)))
    units = np.arange(head * 8, head * 8 + 8)
    neurons = np.sort(np.argsort((up**2).sum(1) + (down**2).sum(0))[-12:])
    rails = students.build("ladder", model, reduction=4).base_model
    small = families.layers(rails.side)[0]
    assert small.heads == 1
    for mine, wanted in (
        (small.query, w["q"][np.ix_(units, dims)]),
        (small.output, w["o"][np.ix_(dims, units)]),
        (small.feed_forward[0].up, up[np.ix_(neurons, dims)]),
        (small.feed_forward[0].down, down[np.ix_(dims, neurons)]),
        (rails.down[1], np.eye(32)[dims]),
        (rails.up, np.eye(32)[:, dims]),
    ):
        np.testing.assert_array_equal(mine.weight.detach().numpy(), wanted.astype(np.float32))
    norm = rails.side.encoder.layer[0].output.LayerNorm
    np.testing.assert_array_equal(norm.weight.detach().numpy(), big.module.output.LayerNorm.weight.detach()[dims])  # type: ignore[union-attr, index]


def test_training_moves_the_side_and_the_head_only_and_learns(tmp_path: Path) -> None:
    _, model = students.teacher(tmp_path / "teacher")
    ladder = students.build("ladder", model, reduction=4).train()
    before = {name: weight.detach().clone() for name, weight in ladder.named_parameters()}
    optimizer = torch.optim.AdamW([p for p in ladder.parameters() if p.requires_grad], lr=1e-2)
    batch, labels = tensors(ladder), torch.tensor([1, 0])
    first = last = float("nan")
    for step in range(20):
        loss = ladder(**batch, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        first, last = (loss.item() if step == 0 else first), loss.item()
    assert last < 0.5 * first
    for name, weight in ladder.named_parameters():
        assert weight.requires_grad != torch.equal(weight, before[name]), name


def test_the_backbone_keeps_no_activations(tmp_path: Path) -> None:
    """What autograd keeps between forward and backward, in bytes: far less than of the model itself."""
    _, model = students.teacher(tmp_path / "teacher", num_hidden_layers=4)
    ladder = students.build("ladder", model, reduction=8)
    kept: dict[str, int] = {}
    for name, each in (("model", model), ("ladder", ladder)):
        seen: dict[int, int] = {}

        def note(tensor: torch.Tensor, seen: dict[int, int] = seen) -> torch.Tensor:
            seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            loss = each.train()(**tensors(each), labels=torch.tensor([0, 1])).loss
        weights = {weight.untyped_storage().data_ptr() for weight in each.parameters()}
        kept[name] = sum(size for pointer, size in seen.items() if pointer not in weights)
        loss.backward()
    assert kept["ladder"] < 0.4 * kept["model"]


@pytest.mark.parametrize(
    ("family", "format"),
    [
        ("bert", "onnx"),
        pytest.param("deberta-v2", "onnx", marks=pytest.mark.slow),
        ("vit", "onnx"),
        ("mpnet", "tflite"),
    ],
)
def test_a_ladder_as_a_file(family: str, format: str, tmp_path: Path) -> None:
    kind = KINDS[family]
    _, model = students.teacher(tmp_path / "teacher", family, kind, num_hidden_layers=1)
    path = students.exports(students.build("ladder", model, kind, reduction=4), kind, tmp_path, format, int8=True)
    names = [layer.name for layer in plugins.load("quantizers", format).layers(path)]
    assert any("backbone" in name and name.endswith(("query", "q", "query_proj", "q_proj")) for name in names)


def test_taught_by_the_stages_it_is_a_teacher_too(tmp_path: Path) -> None:
    """Teach trains the ladder of a model without a head; a distill step then learns from it."""
    rows = [{"text": text, "label": "bad" if "bad" in text else "good"} for text in tiny.TEXTS] * 8
    for split in ("train", "dev"):
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tiny.make(tmp_path / "model", "bert", "sentence-embedding")
    training = {"epochs": 2, "learning_rate": 1e-2, "batch_size": 8, "precision": "float32"}
    student = {"name": "ladder", "reduction": 4}
    recipe = Recipe.model_validate({
        "name": "x", "max_length": 32, "task": {"name": "text_classification", "labels": ("bad", "good")},
        "data": {"name": "files", "train": "train.jsonl", "dev": "dev.jsonl"},
        "step": [
            {"stage": "teach", "model": "model", "training": training, "student": student},
            {"stage": "distill", "student": {"name": "bert", "layers": 1, "width": 16, "heads": 2},
             "method": {"name": "kd", "losses": [{"name": "kl"}, {"name": "hidden_mse", "projection": "linear"}]},
             "training": training},
        ],
    })  # fmt: skip
    built = build.build(recipe, recipes.target("host"), Store(tmp_path / "store"), tmp_path / "out", tmp_path)
    taught, distilled = built.stages
    assert taught.score is not None
    assert distilled.parameters and taught.parameters and distilled.parameters < taught.parameters
    folder = next(path.parent for path in (tmp_path / "store").glob("**/config.json") if "ladder" in path.read_text())
    ladder: Any = models.load(folder, "text-classification", ("bad", "good"))
    plain = models.load(tmp_path / "model", "sentence-embedding")
    weights = dict(plain.named_parameters())
    for name, weight in ladder.base_model.backbone.named_parameters():
        assert torch.equal(weight, weights[name])


def test_a_ladder_in_half_precision_is_finite(tmp_path: Path) -> None:
    _, model = students.teacher(tmp_path / "teacher")
    ladder = students.build("ladder", model, reduction=4).train()
    with torch.autocast("cpu", torch.bfloat16):
        loss = ladder(**tensors(ladder), labels=torch.tensor([0, 1])).loss
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in ladder.parameters() if p.grad is not None)


def test_refusals(tmp_path: Path) -> None:
    folder = tiny.make(tmp_path / "teacher", "bert")
    config = models.configuration(folder).to_dict()
    assert "reduction = 5 does not divide the model's width, 32" in students.refusal("ladder", config, reduction=5)
    assert "every = 3 does not divide the model's layers, 2" in students.refusal("ladder", config, every=3)
    assert 'beside the family "gpt2"' in students.refusal("ladder", {"model_type": "gpt2"})
