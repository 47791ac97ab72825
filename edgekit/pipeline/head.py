"""Head: one further task's model, from a distill step that trained several tasks on one encoder."""

from edgekit.pipeline import Job, joint, models
from edgekit.recipe import Distill
from edgekit.records import Facts


def run(step: Distill, job: Job) -> Facts:
    """Fill `job.out` with the task's model as a Hugging Face folder with the shared student's tokenizer."""
    shared = job.parents["shared"].folder
    model = joint.combined(shared, job.task or "", job.data.kind)
    models.copy_processor(shared, job.out)
    models.save(model, job.out)
    return Facts(
        parameters=models.parameters(model),
        bytes=models.weight_bytes(job.out),
        score=job.data.score(models.predictor(model, job.data.kind), job.out),
        changed="the encoder of all tasks, and this task's head",
    )
