"""Distill: a smaller student, trained by a method of `methods/` on what the teacher says."""

import contextlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from transformers import PreTrainedModel

from edgekit import plugins
from edgekit.errors import InputError
from edgekit.pipeline import Job, alignment, cache, families, joint, models, preflight, processes, weights
from edgekit.pipeline.methods import Further, Lesson
from edgekit.pipeline.signals import Speaker, Teacher, uniform_map
from edgekit.pipeline.training import Exam, train
from edgekit.recipe import Also, Distill, Pretrain, Training
from edgekit.records import Facts, Kind, Trained, Use
from edgekit.tasks import Feature


def run(step: Distill, job: Job) -> Facts:
    """Fill `job.out` with the student as a Hugging Face folder."""
    source = job.parents["model"].folder
    torch.manual_seed(job.recipe.seed)  # what is new in a student is initialised at random
    model = models.load(source, job.data.kind, job.data.labels)
    student, made = new_student(step, model, job)
    models.copy_processor(source, job.out)
    features = job.data.features("train", source)
    teachers = [job.parents["teacher"].folder, *(weights.locate(its, job.data.base) for its in weights.further(step))]
    pooler = joint.poolers(student)
    further = [_further(also, student, job) for also in step.also]
    trained, warnings = train_student(student, teachers, step.method, step.training, job, features, further)
    notes: list[str] = []
    for name, model in ((each.name, each.lesson.student.model) for each in further):
        joint.save(model, job.out / joint.HEADS / name)
        score = job.data.along(name).score(models.predictor(model, job.data.along(name).kind), job.out)
        notes.append(f"{name}: {score.metric} {score.value:.4f}")
    joint.set_poolers(student, pooler)
    models.save(student, job.out)
    return Facts(
        parameters=models.parameters(student),
        bytes=models.weight_bytes(job.out),
        score=job.data.score(models.predictor(student, job.data.kind), job.out),
        trained=trained,
        changed=f"{made}, {step.method.name}, {trained.examples} examples",
        notes=(*warnings, *notes),
    )


def new_student(step: Distill | Pretrain, model: PreTrainedModel, job: Job) -> tuple[PreTrainedModel, str]:
    """The student that a step asks for, made from the `model` before it, and a line on what it is."""
    if step.student:
        student = built(step.student, model, job.data.kind, f"recipe: step {step.stage}: student")
        return student, f"{step.student.name}: {models.parameters(student) / 1e6:.1f} M parameters"
    before = model.config.num_hidden_layers
    layers = step.layers or before
    if layers > before:
        raise InputError(f"recipe: step {step.stage}: layers = {layers}, but the model before it has {before}")
    kept = start(step.start, layers, before)
    student = families.with_layers(model, kept) if layers < before else model
    return student, f"layers {before} -> {layers} (from {', '.join(str(layer + 1) for layer in kept)})"


def built(use: Use, model: PreTrainedModel, kind: Kind, where: str) -> PreTrainedModel:
    """The student of `students/` that `use` names, made from `model`; `where` is the recipe's place of it. Raises
    `InputError` where there can be none."""
    made, params = plugins.use("students", use, where)
    if refused := made.refusal(params, model.config.to_dict()):
        raise InputError(f"{where}: {refused}")
    return made.build(params, model, kind)


def _further(also: Also, student: PreTrainedModel, job: Job) -> Further:
    """A further task of the student's layers: its model, its teacher, its features."""
    data, teacher = job.data.along(also.name), job.parents[f"teacher:{also.name}"].folder
    features = data.features("train", job.parents["model"].folder)
    model = joint.beside(student, data.kind, data.labels, teacher)
    its = teacher_of(teacher, replace(job, data=data), features)
    lesson = Lesson(Speaker(model, data.kind), (its,), features, data.kind, job.recipe.seed)
    return Further(also.name, lesson, also.losses)


def start(name: str, layers: int, before: int) -> tuple[int, ...]:
    """Which layers (from 0) of a model of `before` a student of `layers` starts from.

    `alternate` is the choice of the DistilBERT authors' own code, whose 6 of 12 layers are 0, 2, 4, 7, 9, 11.

    >>> start("alternate", 6, 12), start("uniform", 3, 6), start("bottom", 2, 6)
    ((0, 2, 4, 7, 9, 11), (1, 3, 5), (0, 1))
    """
    match name:
        case "bottom":
            return tuple(range(layers))
        case "uniform":
            return tuple(layer - 1 for layer in uniform_map(layers, before))
        case _:
            return tuple(round(i * (before - 1) / max(1, layers - 1)) for i in range(layers))


def train_student(
    student: PreTrainedModel,
    teachers: Sequence[Path],
    method: Use,
    training: Training,
    job: Job,
    features: Sequence[Feature],
    further: Sequence[Further] = (),
) -> tuple[Trained, tuple[str, ...]]:
    """Train `student` in place by a method from `methods/`; the folders `teachers` hold its teachers, and `further` are
    more tasks for its layers. Gives what it took, and the warnings of the preflight."""
    module, params = plugins.use("methods", method, f"recipe: step {method.name}")
    torch.manual_seed(job.recipe.seed)
    kind = job.data.kind
    its = tuple(teacher_of(folder, job, features) for folder in teachers)
    lesson = Lesson(Speaker(student, kind), its, features, kind, job.recipe.seed, tuple(further))
    every = joint.Joined([features, *(each.lesson.features for each in further)]) if further else features
    source = job.parents["model"].folder
    exam = Exam(student, lambda: job.data.score(models.predictor(student, kind), source))
    with contextlib.ExitStack() as stack:
        stack.enter_context(cache.keeping(its, features, job, training))
        for each in further:
            aside = replace(job, data=job.data.along(each.name))
            stack.enter_context(cache.keeping(each.lesson.teachers, each.lesson.features, aside, training))
        objective = module.objective(params, lesson)
        warnings = processes.agree(lambda: preflight.check(objective, lesson, every, training, job))
        trained = train(
            objective, every, training, pad_id=models.pad_id(student), seed=job.recipe.seed, scratch=job.scratch,
            what="train the student", exam=exam,
        )  # fmt: skip
    return trained, tuple(warnings)


def teacher_of(folder: Path, job: Job, features: Sequence[Feature]) -> Teacher:
    """The teacher in `folder`, which gets `features` in its own tokens where its tokenizer is not the student's."""
    own = None
    if not alignment.same_input(folder, job.parents["model"].folder):
        own = alignment.align(features, job.data.features("train", folder), job.data.kind, folder)
    return Teacher(folder, job.data.kind, job.data.labels, own)
