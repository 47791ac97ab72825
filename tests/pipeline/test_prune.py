"""The prune stage: what it takes away, what it leaves as it was, what it refuses."""

import dataclasses
import json
from itertools import pairwise
from pathlib import Path

import families as tiny
import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer

from edgekit.errors import InputError, NotGoodEnough
from edgekit.pipeline import Job, Made, TaskData, families, models, prune
from edgekit.recipe import Prune, Recipe
from edgekit.records import Artifact, Facts, Target

LABELS = ("negative", "positive")
TASKS = {
    "text-classification": {"name": "text_classification"},
    "sentence-embedding": {"name": "sentence_embedding"},
    "image-classification": {"name": "image_classification"},
}


def job_for(tmp_path: Path, family: str = "bert", kind: str = "text-classification", **config: object) -> Job:
    """A job with a tiny model that is its own teacher, and eight rows of data."""
    folder = tiny.make(tmp_path / "model", family, kind, LABELS, **config)
    if kind == "image-classification":
        rng = np.random.default_rng(0)
        for i in range(8):
            Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(tmp_path / f"{i}.png")
        train = dev = [{"image": f"{i}.png", "label": LABELS[i % 2]} for i in range(8)]
    elif kind == "sentence-embedding":
        train = [{"text": text} for text in tiny.TEXTS]
        dev = [{"text_a": a, "text_b": b, "score": i} for i, (a, b) in enumerate(pairwise(tiny.TEXTS))]
    else:
        train = dev = [{"text": text, "label": LABELS[i % 2]} for i, text in enumerate(tiny.TEXTS[:4] * 2)]
    for name, rows in (("train", train), ("dev", dev)):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    recipe = Recipe.model_validate(
        {
            "name": "tiny",
            "task": TASKS[kind],
            "data": {"name": "files", "train": "train.jsonl", "dev": "dev.jsonl"},
            "step": [{"stage": "teach", "model": "model"}],
            "max_length": 16,
        }
    )
    target = Target(name="host", description="", abi="host", formats=("onnx",), lengths=(16,))
    return next_job(Job(recipe, target, TaskData(recipe, tmp_path), {"teacher": made(folder)}, folder, folder))


def made(folder: Path) -> Made:
    facts = Facts(bytes=0, changed="")
    return Made(
        Artifact(id="x", name="x", stage="x", parents=(), files=(), facts=facts, seconds=0, versions={}), folder
    )


def next_job(job: Job) -> Job:
    """A job that works on what `job` wrote."""
    out, scratch = job.out.with_name(job.out.name + "-pruned"), job.out.with_name(job.out.name + "-scratch")
    out.mkdir()
    scratch.mkdir()
    return Job(job.recipe, job.target, job.data, {**job.parents, "model": made(job.out)}, out, scratch)


def outputs(job: Job, folder: Path) -> list[np.ndarray]:
    """What the model in `folder` says of the training rows."""
    model = models.load(folder, job.data.kind, job.data.labels)
    found = models.predictor(model, job.data.kind)(job.data.features("train", folder))
    return [array for one in found for array in one.values()]


def zero_units(folder: Path, job: Job, head: int, neurons: slice) -> None:
    """Make a head and some neurons of every layer do nothing."""
    model = models.load(folder, job.data.kind, job.data.labels)
    for layer in families.own_layers(model):
        units = slice(head * layer.head_size, (head + 1) * layer.head_size)
        for linear in (layer.query, layer.key, layer.value):
            linear.weight.data[units] = 0
        layer.output.weight.data[:, units] = 0
        for up, down in layer.feed_forward:
            up.weight.data[neurons] = 0
            down.weight.data[:, neurons] = 0
    models.save(model, folder)


@pytest.mark.parametrize("criterion", ["magnitude", "taylor"])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_units_that_do_nothing_go_and_the_outputs_stay(family: str, criterion: str, tmp_path: Path) -> None:
    kind = "image-classification" if family == "vit" else "text-classification"
    job = job_for(tmp_path, family, kind)
    source = job.parents["model"].folder
    zero_units(source, job, head=2, neurons=slice(4, 44))
    rows = {} if family == "vit" else {"vocabulary": {}}
    # MobileBERT's activation is ReLU, so a neuron may do nothing on this data by itself
    step = Prune.model_validate({"stage": "prune", "criterion": {"name": criterion}, "heads": 3, "neurons": 8, **rows})
    facts = prune.run(step, job)
    for before, after in zip(outputs(job, source), outputs(job, job.out), strict=True):
        np.testing.assert_allclose(after, before, atol=1e-5)
    smaller = models.load(job.out, job.data.kind, LABELS)
    assert facts.parameters == sum(p.numel() for p in smaller.parameters())
    assert facts.bytes == (job.out / "model.safetensors").stat().st_size < (source / "model.safetensors").stat().st_size
    assert facts.score is not None and facts.score == job.data.score(models.predictor(smaller, kind), job.out)
    assert facts.changed.startswith("heads 4 -> 3, neurons 48 -> 8" + ("" if family == "vit" else ", vocabulary "))


def test_the_vocabulary_is_that_of_the_training_rows(tmp_path: Path) -> None:
    job = job_for(tmp_path)
    facts = prune.run(Prune.model_validate({"stage": "prune", "vocabulary": {}}), job)
    vocabulary = Tokenizer.from_file(str(job.out / "tokenizer.json")).get_vocab()
    assert "film" in vocabulary and "citizens" not in vocabulary and "z" in vocabulary
    assert facts.changed == f"vocabulary 160 -> {len(vocabulary)}"


@pytest.mark.parametrize("family", sorted(set(tiny.FAMILIES) - {"albert"}))
def test_layers_that_do_nothing_go_first(family: str, tmp_path: Path) -> None:
    kind = "image-classification" if family == "vit" else "text-classification"
    job = job_for(tmp_path, family, kind, **{"n_layers" if family == "distilbert" else "num_hidden_layers": 4})
    source = job.parents["model"].folder
    model = models.load(source, kind, LABELS)
    # the first and third are made to change their input little: what they add is nearly nothing
    for layer in (families.layers(model)[i] for i in (0, 2)):
        for linear in (layer.output, *(ff.down for ff in layer.feed_forward)):
            linear.weight.data *= 1e-3
            linear.bias.data *= 1e-3
    if family == "mobilebert":  # whose layers add through a projection of their own, without a normalisation
        for i in (0, 2):
            model.base_model.encoder.layer[i].output.bottleneck.dense.weight.data *= 1e-3
    models.save(model, source)
    facts = prune.run(Prune.model_validate({"stage": "prune", "layers": 2}), job)
    left = models.load(job.out, job.data.kind, LABELS)
    assert facts.changed == "layers 4 -> 2"
    for mine, theirs in zip(families.layers(left), (families.layers(model)[i] for i in (1, 3)), strict=True):
        assert torch.equal(mine.query.weight, theirs.query.weight)


def test_pruned_again_and_again(tmp_path: Path) -> None:
    first = job_for(tmp_path, num_hidden_layers=3)
    prune.run(Prune.model_validate({"stage": "prune", "heads": 3, "neurons": 40}), first)
    second = next_job(first)
    facts = prune.run(Prune.model_validate({"stage": "prune", "heads": 1, "layers": 2, "vocabulary": {}}), second)
    assert facts.changed.startswith("layers 3 -> 2, heads 3 -> 1, vocabulary 160 -> ")
    left = models.load(second.out, second.data.kind, LABELS)
    assert [layer.heads for layer in families.layers(left)] == [1, 1]
    assert left.config.intermediate_size == 40


def test_without_labels_units_are_scored_by_the_change_of_the_outputs(tmp_path: Path) -> None:
    """The teacher itself has no loss against itself; the criterion must still find what does nothing."""
    job = job_for(tmp_path, kind="sentence-embedding")
    source = job.parents["model"].folder
    zero_units(source, job, head=1, neurons=slice(0, 30))
    prune.run(Prune.model_validate({"stage": "prune", "heads": 3, "neurons": 18}), job)
    for before, after in zip(outputs(job, source), outputs(job, job.out), strict=True):
        np.testing.assert_allclose(after, before, atol=1e-5)


def test_recovery_trains_what_is_left_with_the_teacher(tmp_path: Path) -> None:
    job = job_for(tmp_path)
    training = {"epochs": 20, "learning_rate": 3e-3, "batch_size": 8, "precision": "float32"}
    step = {"stage": "prune", "heads": 1, "neurons": 4}
    prune.run(Prune.model_validate(step), job)
    trained = dataclasses.replace(next_job(job), parents=job.parents)  # from the same model
    method = {"name": "kd", "losses": [{"name": "output_mse"}]}
    facts = prune.run(Prune.model_validate({**step, "method": method, "training": training}), trained)
    assert facts.changed == "heads 4 -> 1, neurons 48 -> 4, 20 epochs"

    def distance(folder: Path) -> float:
        pairs = zip(outputs(job, tmp_path / "model"), outputs(job, folder), strict=True)
        return sum(float(np.square(a - b).sum()) for a, b in pairs)

    assert distance(trained.out) < distance(job.out) / 2


def test_refused_before_work(tmp_path: Path) -> None:
    job = job_for(tmp_path)
    with pytest.raises(InputError, match="recipe: step prune: heads = 4 takes nothing away, the model has 4"):
        prune.run(Prune.model_validate({"stage": "prune", "heads": 4}), job)
    assert not list(job.out.iterdir())


def test_a_vocabulary_that_is_used_whole_is_not_smaller(tmp_path: Path) -> None:
    job = job_for(tmp_path)
    prune.run(Prune.model_validate({"stage": "prune", "vocabulary": {}}), job)
    with pytest.raises(NotGoodEnough, match="did not get smaller: still vocabulary"):
        prune.run(Prune.model_validate({"stage": "prune", "vocabulary": {}}), next_job(job))
