"""Loading: the right head, whole weights or a clear refusal, and no unused pooler."""

import json
from collections.abc import Callable
from pathlib import Path

import families as tiny
import pytest
import torch

from edgekit.errors import InputError
from edgekit.pipeline import models

TASK = "text-classification"
LABELS = ("negative", "positive")


def edit(folder: Path, **values: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **values}))


def cut(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-300])


def pickle(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


BROKEN: dict[str, Callable[[Path], object]] = {
    "has no config.json, so it is not": lambda folder: (folder / "config.json").unlink(),
    "no model can be built from it: It looks like": lambda folder: (folder / "config.json").write_text("{oops"),
    "no model can be built from it: Validation error": lambda folder: edit(folder, num_attention_heads="x"),
    "does not recognize this architecture": lambda folder: edit(folder, model_type="best"),
    'the family "vit" has no model for text-classification': lambda folder: edit(folder, model_type="vit"),
    r"has no model.safetensors \(found: .*pytorch_model.bin.*\); pickled weights are never loaded": pickle,
    "the weights are not a whole safetensors file": cut,
    r"do not fit config.json: bert.encoder.layer.2.\S+ is missing and": lambda folder: edit(
        folder, num_hidden_layers=3
    ),
    r"do not fit config.json: bert.\S+ is \[48\], not \[50\] and 5 more": lambda f: edit(f, intermediate_size=50),
    "do not fit config.json: distilbert": lambda folder: edit(folder, model_type="distilbert"),
}


@pytest.mark.parametrize("says", BROKEN)
def test_a_broken_folder_is_refused(says: str, tmp_path: Path) -> None:
    BROKEN[says](tiny.make(tmp_path, "bert"))
    with pytest.raises(InputError, match=says) as raised:
        models.load(tmp_path, TASK)
    assert str(tmp_path) in str(raised.value) and "\n" not in str(raised.value)


def test_the_head_is_kept_for_the_same_number_of_labels_and_new_for_another(tmp_path: Path) -> None:
    folder = tiny.make(tmp_path, "bert", TASK, LABELS)
    stored = models.load(folder, TASK).classifier.weight
    assert torch.equal(models.load(folder, TASK, LABELS).classifier.weight, stored)
    renamed = models.load(folder, TASK, ("0", "1"))
    assert torch.equal(renamed.classifier.weight, stored)
    assert renamed.config.id2label == {0: "0", 1: "1"} and renamed.config.label2id == {"0": 0, "1": 1}
    with pytest.raises(InputError, match="no trained head"):
        models.load(folder, TASK, ("a", "b", "c"))
    wider = models.load(folder, TASK, ("a", "b", "c"), new_head=True)
    assert wider.classifier.weight.shape == (3, 32) and wider.config.num_labels == 3
    assert torch.equal(wider.bert.pooler.dense.weight, models.load(folder, TASK).bert.pooler.dense.weight)


def test_labels_in_another_order_are_refused(tmp_path: Path) -> None:
    folder = tiny.make(tmp_path, "bert", TASK, LABELS)
    with pytest.raises(InputError, match=r"\['negative', 'positive'\] and the task's \['positive', 'negative'\]"):
        models.load(folder, TASK, LABELS[::-1])


@pytest.mark.parametrize("family", tiny.TEXT_FAMILIES)
def test_an_embedder_has_no_pooler_and_is_the_same_from_disk(family: str, tmp_path: Path) -> None:
    model = models.load(tiny.make(tmp_path / "a", family, "sentence-embedding"), "sentence-embedding")
    assert not any("pooler" in name for name, _ in model.named_parameters())
    (tmp_path / "b").mkdir()
    models.save(model, tmp_path / "b")
    again = models.load(tmp_path / "b", "sentence-embedding")
    assert again.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(again.state_dict()[name], value) for name, value in model.state_dict().items())


def test_copy_processor_copies_tokenizer_files_and_no_weights(tmp_path: Path) -> None:
    source, out = tiny.make(tmp_path / "model", "bert"), tmp_path / "out"
    (source / "vocab.txt").write_text("[PAD]")
    out.mkdir()
    models.copy_processor(source, out)
    assert sorted(p.name for p in out.iterdir()) == ["tokenizer.json", "tokenizer_config.json", "vocab.txt"]
    assert (out / "tokenizer.json").read_bytes() == (source / "tokenizer.json").read_bytes()
