"""Extract: take one sub-network out of a model that the method `dynabert` trained, as a plain, smaller model.

Hou et al., "DynaBERT: Dynamic BERT with Adaptive Width and Depth", 2020: one training, then a model for every budget.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from transformers import PreTrainedModel

from edgekit import plugins
from edgekit.errors import InputError
from edgekit.pipeline import Job, families, models, subnetworks
from edgekit.recipe import Distill, Extract, Step
from edgekit.records import Facts


def run(step: Extract, job: Job) -> Facts:
    """Fill `job.out` with the sub-network as a Hugging Face folder with its tokenizer or image processor."""
    source, kind = job.parents["model"].folder, job.data.kind
    model = models.load(source, kind, job.data.labels)
    grid = subnetworks.grid(model.config.to_dict())
    if grid is None:
        raise InputError(
            f"recipe: step extract: {job.parents['model'].artifact.name} has no sub-networks; put a distill step with "
            '[step.method] name = "dynabert" right before it'
        )
    if refused := refusal(step, grid["widths"], grid["depths"]):
        raise InputError(f"recipe: step extract: {refused}")
    small = subnetworks.take(model, step.width, step.depth)
    models.copy_processor(source, job.out)
    models.save(small, job.out)
    made = models.load(job.out, kind, job.data.labels)
    before, after = _sizes(model), _sizes(made)
    changes = [f"{name} {before[name]} -> {after[name]}" for name in before if before[name] != after[name]]
    return Facts(
        parameters=models.parameters(made),
        bytes=models.weight_bytes(job.out),
        score=job.data.score(models.predictor(made, kind), job.out),
        changed=f"width {step.width:g}, depth {step.depth:g}: {', '.join(changes) or 'the whole model'}",
    )


def refusal(step: Extract, widths: Sequence[float], depths: Sequence[float]) -> str | None:
    """Why a model that was trained for these has no such sub-network, and what would work; `None` where it has."""
    if step.width in widths and step.depth in depths:
        return None
    return (
        f"width = {step.width:g}, depth = {step.depth:g} was not trained; these were: "
        f"width {', '.join(f'{width:g}' for width in sorted(widths))} with "
        f"depth {', '.join(f'{depth:g}' for depth in sorted(depths))}"
    )


def check(steps: Sequence[Step]) -> None:
    """Raise `InputError`, before any work, for a sub-network that a recipe's steps will not have trained."""
    widths: tuple[float, ...] = ()
    for before, step in pairwise(steps):
        if isinstance(before, Distill) and before.method.name == "dynabert":
            method, params = plugins.use("methods", before.method, "recipe: step distill: method")
            widths = params.widths or widths or method.WIDTHS
            if isinstance(step, Extract) and (refused := refusal(step, widths, params.depths)):
                raise InputError(f"recipe: step extract: {refused}")


def _sizes(model: PreTrainedModel) -> Mapping[str, Any]:
    layers = families.own_layers(model)
    return {
        "layers": model.config.num_hidden_layers,
        "heads": max(layer.heads for layer in layers),
        "neurons": layers[0].feed_forward[0].up.out_features,
    }
