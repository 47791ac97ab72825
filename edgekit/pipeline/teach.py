"""Teach: load the teacher, fine-tune it where the recipe says so, and score it."""

from typing import Any

import torch
from transformers import PreTrainedModel

from edgekit.errors import InputError
from edgekit.pipeline import Job, models, weights
from edgekit.pipeline.training import train
from edgekit.recipe import Teach
from edgekit.records import Facts


class _Supervised(torch.nn.Module):
    """The loss of the model's own head on the true labels."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, **batch: Any) -> dict[str, torch.Tensor]:
        wanted = {name: batch[name] for name in models.input_names(self.model)}
        labels = {name: batch[name] for name in ("labels", "start_positions", "end_positions") if name in batch}
        return {"loss": self.model(**wanted, **labels).loss}


def run(step: Teach, job: Job) -> Facts:
    """Fill `job.out` with the teacher as a Hugging Face folder with its tokenizer or image processor."""
    base = job.data.base
    weights.check(step, base)
    source = weights.locate(step, base)
    torch.manual_seed(job.recipe.seed)  # a new head is initialised at random
    model = models.load(source, job.data.kind, job.data.labels, new_head=step.training is not None)
    models.copy_processor(source, job.out)
    changed = "loaded"
    if step.training:
        features = job.data.features("train", job.out)
        if not features[0].labels:
            raise InputError(
                f"recipe: step teach: {job.recipe.task.name} has no labels to train on; remove its training"
            )
        train(
            _Supervised(model), features, step.training,
            pad_id=models.pad_id(model), seed=job.recipe.seed, scratch=job.scratch, what="train the teacher",
        )  # fmt: skip
        changed = f"fine-tuned, {step.training.epochs:g} epochs of {len(features)} sequences"
    models.save(model, job.out)
    return Facts(
        parameters=models.parameters(model),
        bytes=models.weight_bytes(job.out),
        score=job.data.score(models.predictor(model, job.data.kind), job.out),
        changed=changed,
    )
