"""Teach: load the teacher, fine-tune it where the recipe says so, and score it."""

import torch

from edgekit.errors import InputError
from edgekit.pipeline import Job, distill, models, weights
from edgekit.pipeline.methods import Lesson, supervised
from edgekit.pipeline.signals import Speaker
from edgekit.pipeline.training import Exam, train
from edgekit.recipe import Teach
from edgekit.records import Facts


def run(step: Teach, job: Job) -> Facts:
    """Fill `job.out` with the teacher as a Hugging Face folder with its tokenizer or image processor."""
    base = job.data.base
    weights.check(step, base)
    source = weights.locate(step, base)
    torch.manual_seed(job.recipe.seed)  # a new head is initialised at random
    model = models.load(source, job.data.kind, job.data.labels, new_head=step.training is not None)
    models.copy_processor(source, job.out)
    changed, trained = "loaded", None
    if step.training:
        features = job.data.features("train", job.out)
        if not features[0].labels:
            raise InputError(
                f"recipe: step teach: {job.recipe.task.name} has no labels to train on; remove its training"
            )
        if step.student:
            model = distill.built(step.student, model, job.data.kind, "recipe: step teach: student")
        kind = job.data.kind
        lesson = Lesson(Speaker(model, kind), (), features, kind, job.recipe.seed)
        trained = train(
            supervised.objective(supervised.Params(), lesson), features, step.training,
            pad_id=models.pad_id(model), seed=job.recipe.seed, scratch=job.scratch, what="train the teacher",
            exam=Exam(model, lambda: job.data.score(models.predictor(model, kind), job.out)),
        )  # fmt: skip
        changed = f"fine-tuned, {step.training.epochs:g} epochs of {len(features)} sequences"
    models.save(model, job.out)
    return Facts(
        parameters=models.parameters(model),
        bytes=models.weight_bytes(job.out),
        score=job.data.score(models.predictor(model, job.data.kind), job.out),
        trained=trained,
        changed=changed,
    )
