"""Prune: take whole layers, heads, feed-forward neurons and vocabulary rows out of a model, then recover.

Layers go first, so that heads and neurons are scored in the model that they stay in: one after the other, each time
the one without which the model's outputs change least (greedy layer pruning, Peer et al. 2022, with the change of
the outputs for the score, so that it needs no labels). Then go the heads and neurons with the lowest scores in each
layer; then the student recovers with the teacher; the vocabulary goes last, because until then the teacher and the
student must read the same ids.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from transformers import PreTrainedModel

from edgekit import plugins, progress
from edgekit.errors import InputError, NotGoodEnough
from edgekit.pipeline import Job, families, importance, models, vocabulary
from edgekit.pipeline.distill import train_student
from edgekit.recipe import Prune
from edgekit.records import Facts
from edgekit.tasks import Feature

PROBES = 64
"""Examples on which the outputs without a layer are compared."""


def run(step: Prune, job: Job) -> Facts:
    """Fill `job.out` with the smaller model as a Hugging Face folder with its tokenizer or image processor."""
    source, kind = job.parents["model"].folder, job.data.kind
    model = models.load(source, kind, job.data.labels)
    if refused := families.refusal(model.config.to_dict(), step):
        raise InputError(f"recipe: step prune: {refused}")
    features = job.data.features("train", source)
    tokens = vocabulary.kept(source, model.config, features, step.vocabulary.min_count) if step.vocabulary else []
    before = _sizes(model)
    student = _without_units(_without_layers(model, step, job, features), step, job, features)
    trained, warnings = None, ()
    if step.training:
        teachers = [job.parents["teacher"].folder]
        trained, warnings = train_student(student, teachers, step.method, step.training, job, features)
    models.copy_processor(source, job.out)
    if tokens:
        vocabulary.cut(student, job.out, tokens)
    models.save(student, job.out)
    made = models.load(job.out, kind, job.data.labels)
    _check_smaller(before, made, step)
    return Facts(
        parameters=models.parameters(made),
        bytes=models.weight_bytes(job.out),
        score=job.data.score(models.predictor(made, kind), job.out),
        trained=trained,
        changed=_changed(before, _sizes(made), step),
        notes=warnings,
    )


def _without_layers(model: PreTrainedModel, step: Prune, job: Job, features: Sequence[Feature]) -> PreTrainedModel:
    if step.layers is None:
        return model
    probes = [features[i] for i in importance.shuffled(features, job.recipe.seed)[:PROBES]]

    def outputs(model: PreTrainedModel) -> list[np.ndarray]:
        return [array for found in models.predictor(model, job.data.kind)(probes) for array in found.values()]

    full = outputs(model)

    def change(keep: Sequence[int]) -> float:
        pairs = zip(full, outputs(families.with_layers(model, keep)), strict=True)
        return sum(float(np.square(before - after).mean()) for before, after in pairs)

    keep = list(range(model.config.num_hidden_layers))
    tried, total = 0, sum(range(step.layers + 1, len(keep) + 1))
    with progress.bar("prune: layers", total) as show:
        while len(keep) > step.layers:
            keep = min(([k for k in keep if k != layer] for layer in keep), key=change)
            tried += len(keep) + 1
            show(tried)
    return families.with_layers(model, keep)


def _without_units(model: PreTrainedModel, step: Prune, job: Job, features: Sequence[Feature]) -> PreTrainedModel:
    """`model` without the heads and neurons that the criterion scores lowest, in place."""
    if step.heads is None and step.neurons is None:
        return model
    criterion, params = plugins.use("criteria", step.criterion, "recipe: step prune: criterion")
    heads, neurons = importance.scores(criterion, params, model, features, job.data.kind, job.recipe.seed)
    if step.heads is not None:
        families.keep_heads(model, [importance.order(each)[: step.heads] for each in heads])
    if step.neurons is not None:
        best = [[importance.order(each)[: step.neurons] for each in networks] for networks in neurons]
        families.keep_neurons(model, best)
    return model


def _sizes(model: PreTrainedModel) -> dict[str, int]:
    """What a prune step can make fewer, by the recipe's names."""
    layers = families.own_layers(model)
    sizes = {
        "layers": model.config.num_hidden_layers,
        "heads": max(layer.heads for layer in layers),
        "neurons": layers[0].feed_forward[0].up.out_features,
        "parameters": models.parameters(model),
    }
    return {**sizes, "vocabulary": model.config.vocab_size} if families.family(model).vocabulary else sizes


def _check_smaller(before: Mapping[str, int], model: PreTrainedModel, step: Prune) -> None:
    """Refuse a model in which something that the step prunes is no smaller."""
    after = _sizes(model)
    asked = [name for name in ("layers", "heads", "neurons", "vocabulary") if getattr(step, name) is not None]
    same = [f"{name} {before[name]}" for name in (*asked, "parameters") if after[name] >= before[name]]
    if same:
        raise NotGoodEnough(
            f"prune: the model did not get smaller: still {', '.join(same)}; ask for less, or leave it out"
        )


def _changed(before: Mapping[str, int], after: Mapping[str, int], step: Prune) -> str:
    """`heads 12 -> 8, neurons 1536 -> 1024`."""
    parts = [
        f"{name} {before[name]} -> {after[name]}"
        for name in before
        if name != "parameters" and before[name] != after[name]
    ]
    return ", ".join(parts) + (f", {step.training.epochs:g} epochs" if step.training else "")
