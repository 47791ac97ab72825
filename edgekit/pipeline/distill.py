"""Distill: a student of fewer layers, initialised from the model before it, trained on what the teacher says."""

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import PreTrainedModel

from edgekit import plugins
from edgekit.errors import InputError
from edgekit.pipeline import Job, families, models
from edgekit.pipeline.signals import Speaker, uniform_map
from edgekit.pipeline.training import train
from edgekit.recipe import Distill, Training
from edgekit.records import Facts, Use
from edgekit.tasks import Feature


def run(step: Distill, job: Job) -> Facts:
    """Fill `job.out` with the student as a Hugging Face folder."""
    source = job.parents["model"].folder
    model = models.load(source, job.data.kind, job.data.labels)
    before = len(families.layers(model))
    layers = step.layers or before
    if layers > before:
        raise InputError(f"recipe: step distill: layers = {layers}, but the model before it has {before}")
    kept = range(layers) if step.start == "bottom" else [layer - 1 for layer in uniform_map(layers, before)]
    student = families.with_layers(model, kept) if layers < before else model
    models.copy_processor(source, job.out)
    train_student(
        student, job.parents["teacher"].folder, step.method, step.training, job, job.data.features("train", source)
    )
    models.save(student, job.out)
    from_layers = ", ".join(str(layer + 1) for layer in kept)
    return Facts(
        parameters=models.parameters(student),
        bytes=models.weight_bytes(job.out),
        score=job.data.score(models.predictor(student, job.data.kind), job.out),
        changed=f"layers {before} -> {layers} (from {from_layers}), {step.training.epochs:g} epochs",
    )


def train_student(
    student: PreTrainedModel, teacher: Path, method: Use, training: Training, job: Job, features: Sequence[Feature]
) -> None:
    """Train `student` in place by a method from `methods/`, with the model in the folder `teacher` as its teacher."""
    module, params = plugins.use("methods", method, f"recipe: step {method.name}")
    torch.manual_seed(job.recipe.seed)
    kind = job.data.kind
    wise = Speaker(models.load(teacher, kind, job.data.labels), kind)
    if torch.cuda.is_available():
        wise.cuda()
    train(
        module.objective(params, Speaker(student, kind), wise), features, training,
        pad_id=models.pad_id(student), seed=job.recipe.seed, scratch=job.scratch, what="train the student",
    )  # fmt: skip
