"""Every family: a removed unit is one whose weights are zero, on disk as in memory, and again after that."""

import json
from pathlib import Path

import families as tiny
import pytest
import torch
import transformers
from transformers import PreTrainedModel

from edgekit.pipeline import families, models
from edgekit.recipe import Distill, Export, Prune

LABELS = ("negative", "positive")


def load(folder: Path, family: str) -> PreTrainedModel:
    return models.load(folder, "image-classification" if family == "vit" else "text-classification", LABELS)


def make(folder: Path, family: str, **config: object) -> PreTrainedModel:
    kind = "image-classification" if family == "vit" else "text-classification"
    return load(tiny.make(folder, family, kind, LABELS, **config), family)


@torch.no_grad()
def logits(model: PreTrainedModel) -> torch.Tensor:
    """On a batch with a padded row."""
    generator = torch.Generator().manual_seed(0)
    if model.config.model_type == "vit":
        return model(pixel_values=torch.randn(2, 3, 32, 32, generator=generator)).logits
    ids = torch.randint(5, 60, (2, 9), generator=generator)
    mask = torch.ones_like(ids)
    ids[1, 6:], mask[1, 6:] = model.config.pad_token_id, 0
    return model(input_ids=ids, attention_mask=mask).logits


def without(model: PreTrainedModel, heads: list[list[int]], neurons: list[int]) -> torch.Tensor:
    """The logits with all other heads' and neurons' outputs at zero; `model` is left as it was."""
    saved = {name: value.clone() for name, value in model.state_dict().items()}
    for layer, keep in zip(families.own_layers(model), heads, strict=True):
        size = layer.head_size
        for head in set(range(layer.heads)) - set(keep):
            layer.output.weight.data[:, head * size : (head + 1) * size] = 0
        for _, down in layer.feed_forward:
            down.weight.data[:, [n for n in range(down.in_features) if n not in neurons]] = 0
    found = logits(model)
    model.load_state_dict(saved)
    return found


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_pruned_twice_gives_what_zeroed_units_give(family: str, tmp_path: Path) -> None:
    model = make(tmp_path / "model", family)
    full, number = logits(model), len(families.own_layers(model))
    # MPNet's layers share a bias with one column a head, so they must keep the same heads
    first = [[0, 2, 3], [1, 2, 3]] if number == 2 and family != "mpnet" else [[0, 2, 3]] * number
    neurons = list(range(0, 48, 2))
    wanted = without(model, first, neurons)
    assert (wanted - full).abs().max() > 1e-2

    families.keep_heads(model, first)
    families.keep_neurons(model, [[neurons] * len(layer.feed_forward) for layer in families.own_layers(model)])
    assert torch.allclose(logits(model), wanted, atol=1e-5)
    models.save(model, tmp_path / "once")
    again = load(tmp_path / "once", family)
    assert torch.equal(logits(again), logits(model))
    assert {layer.heads for layer in families.own_layers(again)} == {3}

    wanted = without(again, [[0, 2]] * number, list(range(10)))
    families.keep_heads(again, [[0, 2]] * number)
    families.keep_neurons(again, [[range(10)] * len(layer.feed_forward) for layer in families.own_layers(again)])
    assert torch.allclose(logits(again), wanted, atol=1e-5)
    models.save(again, tmp_path / "twice")
    last = load(tmp_path / "twice", family)
    assert torch.equal(logits(last), logits(again))
    for layer in families.own_layers(last):
        assert [len(m.weight) for m in (layer.query, layer.key, layer.value)] == [2 * layer.head_size] * 3
        assert layer.output.weight.shape[1] == 2 * layer.head_size
        assert all(up.weight.shape[0] == down.weight.shape[1] == 10 for up, down in layer.feed_forward)
    assert sum(map(torch.numel, last.state_dict().values())) == sum(map(torch.numel, again.state_dict().values()))


def test_the_ids_in_pruned_heads_are_those_of_the_original_model(tmp_path: Path) -> None:
    model = make(tmp_path / "model", "bert")
    families.keep_heads(model, [[0, 2, 3], [1, 2, 3]])
    families.keep_heads(model, [[1, 2], [0, 1]])
    models.save(model, tmp_path / "pruned")
    config = json.loads((tmp_path / "pruned" / "config.json").read_text())
    assert (config["num_attention_heads"], config["pruned_heads"]) == (4, {"0": [0, 1], "1": [0, 3]})
    assert config["architectures"] == ["BertForSequenceClassification"]


def test_stock_transformers_loads_a_vit_without_heads(tmp_path: Path) -> None:
    model = make(tmp_path / "model", "vit")
    families.keep_heads(model, [[0, 2, 3]] * 2)
    models.save(model, tmp_path / "pruned")
    stock = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "pruned").eval()
    assert torch.equal(logits(stock), logits(model))


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_stock_transformers_loads_fewer_neurons_and_layers(family: str, tmp_path: Path) -> None:
    model = make(tmp_path / "model", family)
    families.keep_neurons(model, [[range(7, 20)] * len(layer.feed_forward) for layer in families.own_layers(model)])
    model = families.with_layers(model, [1])
    models.save(model, tmp_path / "pruned")
    name = "AutoModelForImageClassification" if family == "vit" else "AutoModelForSequenceClassification"
    stock, info = getattr(transformers, name).from_pretrained(tmp_path / "pruned", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    assert torch.equal(logits(stock.eval()), logits(model))


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_with_layers_copies_those_layers_and_the_rest(family: str, tmp_path: Path) -> None:
    number = "n_layers" if family == "distilbert" else "num_hidden_layers"
    model = make(tmp_path / "model", family, **{number: 4})
    student = families.with_layers(model, [1, 3])
    assert len(families.layers(student)) == 2 and len(families.layers(model)) == 4
    assert student.config.num_hidden_layers == 2 and model.config.num_hidden_layers == 4
    pairs = zip(families.layers(student), [families.layers(model)[i] for i in (1, 3)], strict=True)
    for mine, theirs in pairs:
        assert torch.equal(mine.value.weight, theirs.value.weight)
        assert mine.value.weight.data_ptr() != theirs.value.weight.data_ptr()
    assert torch.equal(logits(families.with_layers(model, range(4))), logits(model))
    models.save(student, tmp_path / "student")
    assert torch.equal(logits(load(tmp_path / "student", family)), logits(student))


def test_layers_keep_their_pruned_heads_when_others_go(tmp_path: Path) -> None:
    model = make(tmp_path / "model", "bert", num_hidden_layers=3)
    families.keep_heads(model, [[0, 1], [1, 2], [2, 3]])
    student = families.with_layers(model, [0, 2])
    assert student.config.pruned_heads == {"0": [2, 3], "1": [0, 1]}
    models.save(student, tmp_path / "student")
    assert torch.equal(logits(load(tmp_path / "student", "bert")), logits(student))


def test_albert_lists_its_layer_once_for_each_time_it_runs(tmp_path: Path) -> None:
    model = make(tmp_path / "model", "albert", num_hidden_layers=4, num_hidden_groups=2)
    first, second = families.own_layers(model)
    assert [layer.query for layer in families.layers(model)] == [first.query] * 2 + [second.query] * 2


def test_deberta_without_shared_keys_loses_its_position_projections_too(tmp_path: Path) -> None:
    model = make(tmp_path / "model", "deberta-v2", share_att_key=False)
    wanted = without(model, [[0, 2]] * 2, list(range(48)))
    families.keep_heads(model, [[0, 2]] * 2)
    assert torch.allclose(logits(model), wanted, atol=1e-5)
    assert [m.out_features for m in families.layers(model)[0].positions] == [16, 16]


BERT = {"model_type": "bert", "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}
ALBERT = {**BERT, "model_type": "albert"}


@pytest.mark.parametrize(
    ("config", "step", "says"),
    [
        (BERT, Prune(stage="prune", heads=12), "heads = 12 takes nothing away, the model has 12"),
        (BERT | {"pruned_heads": {str(i): [0] for i in range(6)}}, Prune(stage="prune", heads=11), "has 11"),
        (BERT, Prune(stage="prune", neurons=2000), "neurons = 2000 takes nothing away, the model has 1536"),
        (BERT, Prune(stage="prune", layers=6), "layers = 6 takes nothing away, the model has 6"),
        (BERT, Distill(stage="distill", layers=7), "layers = 7, but the model has 6"),
        ({"model_type": "distilbert", "n_heads": 3}, Prune(stage="prune", heads=3), "the model has 3"),
        ({"model_type": "vit"}, Prune(stage="prune", vocabulary={}), "vit has no vocabulary"),
        (ALBERT, Prune(stage="prune", layers=3), "the layers of albert share their weights"),
        (ALBERT | {"num_hidden_groups": 2}, Distill(stage="distill", layers=3), "num_hidden_groups = 2"),
        ({"model_type": "gpt2"}, Prune(stage="prune", heads=1), '"gpt2" is not known; these are: bert, electra'),
        (BERT | {"num_attention_heads": "many"}, Prune(stage="prune", heads=1), "config.json cannot be used"),
    ],
)  # fmt: skip
def test_refusal_says_what_cannot_be_done(config: dict[str, object], step: Prune | Distill, says: str) -> None:
    assert says in (families.refusal(config, step) or "")


def test_what_can_be_done_is_not_refused() -> None:
    assert families.refusal(BERT, Prune(stage="prune", heads=11, neurons=1535, layers=5, vocabulary={})) is None
    assert families.refusal(ALBERT, Distill(stage="distill", layers=3)) is None
    assert families.refusal({"model_type": "gpt2"}, Export(stage="export")) is None
