"""Pretrain: train on the recipe's plain text, before the task.

    base ──masked_lm──> language model ──┬─ teaches the students of later pretrain steps (DistilBERT, TinyBERT)
                                         └─ fills the gaps for an augment step
    base or language model ──fewer layers, or a plugin of `students/`──> student ──any method──> model of later steps

A step with neither `layers` nor `student` makes the language model, any other a student. The base is the recipe's
teacher before its fine-tuning. What is written is a model of the recipe's task with a head that nothing has trained,
and beside it the masked-LM head where the method has one.
"""

from itertools import islice
from pathlib import Path

import torch
from transformers import PreTrainedModel

from edgekit import plugins
from edgekit.errors import InputError
from edgekit.pipeline import Job, distill, language, models, preflight, processes, text, weights
from edgekit.pipeline.methods import Lesson
from edgekit.pipeline.signals import Speaker, Teacher
from edgekit.pipeline.training import train
from edgekit.recipe import Pretrain, Recipe, Teach
from edgekit.records import Facts

_SCORED = 256
"""Sequences of the dev split on which masked-LM accuracy is measured."""
_MANY = 100
"""Layers, in place of a number that is not known yet."""


def run(step: Pretrain, job: Job) -> Facts:
    """Fill `job.out` with the trained model as a Hugging Face folder."""
    kind, labels = job.data.kind, job.data.labels
    source = _source(job)
    torch.manual_seed(job.recipe.seed)  # the task's head, and what is new in a student, start at random
    check(step, job.recipe, job.data.base, source)
    model = models.load(source, kind, labels, new_head=True)
    features = text.stored(job.recipe, job.data.base, source, job.data.shared)
    teacher = job.scratch / "teacher"  # the base has no head for the task, and a teacher is loaded with one
    teacher.mkdir(exist_ok=True)
    _write(model, source, teacher)
    student, made = distill.new_student(step, model, job)
    _freeze_head(student)
    method, params = plugins.use("methods", step.method, "recipe: step pretrain: method")
    lesson = Lesson(Speaker(student, kind), (Teacher(teacher, kind, labels),), features, kind, job.recipe.seed)
    objective = method.objective(params, lesson)
    warnings = processes.agree(lambda: preflight.check(objective, lesson, features, step.training, job))
    trained = train(
        objective, features, step.training,
        pad_id=models.pad_id(student), seed=job.recipe.seed, scratch=job.scratch, what="pretrain",
    )  # fmt: skip
    student.requires_grad_(True)
    models.save(student, job.out)
    size = models.weight_bytes(job.out)
    models.copy_processor(source, job.out)
    return Facts(
        parameters=models.parameters(student),
        bytes=size,
        trained=trained,
        changed=f"{made}, {step.method.name}, {trained.examples} sequences of text",
        notes=(*warnings, *_language(getattr(objective, "head", None), student, job)),
    )


def check(step: Pretrain, recipe: Recipe, base: Path, folder: Path) -> None:
    """Raise `InputError` where the text, or the task and the tokenizer of the model in `folder`, or the method's losses
    allow no such step; before any work."""
    task, _ = plugins.use("tasks", recipe.task, "recipe: task")
    if task.KIND == "image-classification":
        raise InputError(f"recipe: step pretrain: is for text, and {recipe.task.name} is of images; leave the step out")
    for split in ("train", "dev"):  # a language model is scored on the latter
        next(text.features(recipe, base, folder, split))
    if step.method.name in ("masked_lm", "distilbert", "electra"):
        language.Tokens.of(folder)
    if (
        step.method.name == "distilbert"
        and not (folder / language.FILE).is_file()
        and not _language_before(step, recipe)
    ):
        raise InputError(
            "recipe: step pretrain: distilbert learns from the teacher's masked-LM head, and it has none; put a "
            "pretrain step with the method masked_lm and neither layers nor student before this one"
        )
    _, params = plugins.use("methods", step.method, "recipe: step pretrain: method")
    for use in getattr(params, "losses", ()):
        loss, its = plugins.use("losses", use, "recipe: step pretrain: method")
        reads = loss.reads(its, _MANY, _MANY)
        if not reads or any(part == "outputs" for part, _ in reads):
            raise InputError(
                f"recipe: step pretrain: the loss {use.name} compares the outputs of the task's head, which nothing "
                "has trained yet; compare hidden states or attention here, and outputs in a distill step"
            )


def _language_before(step: Pretrain, recipe: Recipe) -> bool:
    """Whether a step before this one trains the teacher's own masked-LM head."""
    before = recipe.step[: recipe.step.index(step)]
    return any(
        isinstance(each, Pretrain) and each.method.name == "masked_lm" and not (each.layers or each.student)
        for each in before
    )


def _source(job: Job) -> Path:
    """The folder of the language model, or of the teacher before its fine-tuning."""
    if "language" in job.parents:
        return job.parents["language"].folder
    teach = job.recipe.step[0]
    assert isinstance(teach, Teach)  # the recipe's own validator saw to it
    weights.check(teach, job.data.base)
    return weights.locate(teach, job.data.base)


def _write(model: PreTrainedModel, source: Path, folder: Path) -> None:
    models.save(model, folder)
    models.copy_processor(source, folder)
    if (source / language.FILE).is_file():
        language.save(language.load(source, model), folder)


def _freeze_head(student: PreTrainedModel) -> None:
    """The task's head and a pooler take no part: several processes would wait for their gradients."""
    inner = student.base_model
    if inner is student:  # no head, or a model that is not built around an encoder
        return
    student.requires_grad_(False)
    inner.requires_grad_(True)
    pooler = getattr(inner, "pooler", None)
    if isinstance(pooler, torch.nn.Module):
        pooler.requires_grad_(False)


def _language(head: language.Head | None, student: PreTrainedModel, job: Job) -> tuple[str, ...]:
    """Write the masked-LM head, if there is one, and say how good it is."""
    if head is None:
        return ()
    language.save(head, job.out)
    features = list(islice(text.features(job.recipe, job.data.base, job.out, "dev"), _SCORED))
    found = language.accuracy(student, head, features, language.Tokens.of(job.out))
    return (f"finds {found:.1%} of masked tokens in {len(features)} sequences of the dev text",)
