"""What can be known of a training before hours are spent on it: a batch of a few rows says most of it.

    inputs       ids that the student has no embedding for, labels that its head has no output for, unlike lengths
    loss         not a number on the first batch, or one that no part of the student can change
    terms        a term whose gradient |weight * d term / d student| is far above another's, or nothing
    over-fitted  `STEPS` steps on the same rows that do not lower their loss
    teacher      a score like that of a model that knows how often each label is, and has seen no input

What cannot work is an `InputError`; what will hardly work is a warning that says what to change. Weights, buffers and
random generators are put back, so the training that follows is the very one that it would have been.
"""

import math
import random
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edgekit import progress
from edgekit.errors import InputError
from edgekit.pipeline import Job, models, spread, training
from edgekit.pipeline.methods import Lesson
from edgekit.recipe import Training
from edgekit.tasks import OUTPUTS, Arrays, Feature, Predict, pad

LONG = 200
"""Steps from which a training is worth the seconds that the batch takes."""
STEPS = 15
"""Steps on one batch."""
ROWS = 8
"""Rows of that batch."""
UNLIKE = 100.0
"""How many times one term's gradient may be another's."""
_LOOK = 500
"""Rows whose inputs are looked at, and dev examples that chance is scored on."""
_MARGIN = 0.02
"""How much better than chance a teacher's score should be."""


def check(
    objective: torch.nn.Module, lesson: Lesson, features: Sequence[Feature], wanted: Training, job: Job
) -> tuple[str, ...]:
    """Warnings on a training of `objective` on `features` as `wanted`, each said on stderr too.

    Raises `InputError` for what cannot work. The batch and the teacher are tried where the training is long.
    """
    inputs(lesson)
    found: list[str] = []
    if training.steps(wanted, len(features)) > LONG:
        with progress.bar("preflight"):
            found = [*teacher(lesson, job), *batch(objective, lesson, features, wanted)]
    for line in found:
        progress.say(f"warning: {line}")
    return tuple(found)


def inputs(lesson: Lesson) -> None:
    """Raise `InputError` for the first of some rows that does not fit the student."""
    config = lesson.student.model.config
    for i in spread(len(lesson.features), _LOOK):
        feature = lesson.features[i]
        sizes = {name: len(array) for name, array in feature.inputs.items() if array.ndim == 1}
        sizes |= {name: len(array) for name, array in feature.labels.items() if array.ndim == 1}
        where = f"training row {i + 1}"
        if len(set(sizes.values())) > 1:
            raise InputError(f"{where}: its parts are of unlike lengths, {sizes}; a task must give them one length")
        _below(where, "token id", feature.inputs.get("input_ids"), getattr(config, "vocab_size", None))
        if lesson.kind.endswith("classification"):
            _below(where, "label", feature.labels.get("labels"), config.num_labels)


def _below(where: str, what: str, found: np.ndarray | None, limit: int | None) -> None:
    if found is not None and limit is not None and found.max() >= limit:
        raise InputError(
            f"{where}: {what} {found.max()}, the student knows those below {limit}; is the tokenizer (or label set) "
            "that of the model?"
        )


def teacher(lesson: Lesson, job: Job) -> list[str]:
    """A warning where the recipe's teacher is no better than chance."""
    made = job.parents.get("teacher")
    if made is None or not lesson.teachers or (score := made.artifact.facts.score) is None:
        return []
    chance = job.data.score(guess(lesson), made.folder, _LOOK).value
    if score.value >= chance + _MARGIN:
        return []
    return [
        f"the teacher's {score.metric} is {score.value:.3f}, a guess from how often each label is gives {chance:.3f}; "
        "there is little to learn from it: give the teach step a training, or look at its labels and data"
    ]


def guess(lesson: Lesson) -> Predict:
    """Predictions from no more than how often each label is in the training rows."""
    size = lesson.student.width if lesson.kind == "sentence-embedding" else lesson.student.model.config.num_labels
    counts = np.ones(size)
    if lesson.kind.endswith("classification"):
        for i in spread(len(lesson.features), _LOOK):
            labels = np.atleast_1d(lesson.features[i].labels.get("labels", np.array(-100)))
            counts += np.bincount(labels[labels >= 0].astype(np.int64), minlength=size)
    logits = np.log(counts / counts.sum()).astype(np.float32)

    def outputs(feature: Feature) -> Arrays:
        length = len(next(iter(feature.inputs.values())))
        match lesson.kind:
            case "token-classification":
                return {"logits": np.tile(logits, (length, 1))}
            case "question-answering":
                return {name: np.zeros(length, np.float32) for name in OUTPUTS[lesson.kind]}
            case _:
                return {OUTPUTS[lesson.kind][0]: logits}

    return lambda features: [outputs(feature) for feature in features]


def batch(objective: Any, lesson: Lesson, features: Sequence[Feature], wanted: Training) -> list[str]:
    """Warnings from a few rows: their loss, its terms, and whether training on them lowers it."""
    first = training.planned(objective, features, wanted.model_copy(update={"examples": 1}), lesson.seed)[0]
    rows = first[:ROWS]
    padded = pad([features[i] for i in rows], models.pad_id(lesson.student.model))
    cuda = torch.cuda.is_available()
    device = torch.device("cuda" if cuda else "cpu")
    given = {name: torch.from_numpy(array).to(device) for name, array in padded.items()}
    given["index"] = torch.tensor(rows)
    with _untouched(objective, lesson, device):
        if hasattr(objective, "progress"):
            objective.progress = 0.5  # weights that rise or fall are on their way
        objective.train()

        def told() -> Mapping[str, Any]:
            torch.manual_seed(lesson.seed)  # the same dropout each time
            with torch.autocast(device.type, torch.bfloat16, enabled=training.wants_bf16(wanted, cuda)):
                return objective(**given)

        return [*_terms(told(), lesson), *_overfit(told, objective, wanted)]


def _terms(told: Mapping[str, Any], lesson: Lesson) -> list[str]:
    """Warnings on the terms of the loss, by the weighted norms of their gradients in the student."""
    values = {"loss": told["loss"], **told.get("terms", {})}
    wrong = [name for name, term in values.items() if not bool(torch.isfinite(term))]
    if wrong:
        raise InputError(
            f"preflight: {wrong[-1]} is {values[wrong[-1]].item()} on the first rows; look at the data, the teacher "
            'and the parameters of this loss, or train in precision = "float32"'
        )
    learnt = [p for p in lesson.student.parameters() if p.requires_grad]
    if not values["loss"].requires_grad or not norm(values["loss"], learnt):
        raise InputError("preflight: the loss has no gradient in any weight of the student; nothing would be learnt")
    terms = {name: term for name, term in told.get("terms", {}).items() if term.requires_grad}
    if not terms:
        return []
    by_term: Any = torch.autograd.grad(values["loss"], list(terms.values()), retain_graph=True, allow_unused=True)
    weights = {name: float(w) for name, w in zip(terms, by_term, strict=True) if w is not None}
    norms = {name: abs(weights[name]) * norm(terms[name], learnt) for name in weights}
    idle = [
        f"{name} is {terms[name].item():.3g} and has no gradient in the student; leave it out, or compare other layers"
        for name, norm in norms.items()
        if norm == 0
    ]
    some = {name: norm for name, norm in norms.items() if norm > 0}
    if not some:
        return idle
    large, small = max(some, key=lambda name: some[name]), min(some, key=lambda name: some[name])
    times = some[large] / some[small]
    if times <= UNLIKE:
        return idle
    return [
        *idle,
        f"{large}'s gradient is {times:.0f} times that of {small} ({some[large]:.3g} and {some[small]:.3g} in the "
        f"student's weights); set weight = {_round(weights[large] / times)} on {large} to make them alike",
    ]


def norm(scalar: Tensor, weights: Sequence[Tensor]) -> float:
    """The length of the gradient of `scalar` in all of `weights`."""
    found: Any = torch.autograd.grad(scalar, weights, retain_graph=True, allow_unused=True)
    return math.sqrt(sum(float(gradient.float().square().sum()) for gradient in found if gradient is not None))


def _round(weight: float) -> str:
    """To one digit, as a person writes it."""
    return f"{float(f'{weight:.0e}'):g}"


def _overfit(told: Any, objective: torch.nn.Module, wanted: Training) -> list[str]:
    """A warning where some steps on one batch do not lower its loss."""
    learnt = [p for p in objective.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learnt, lr=wanted.learning_rate, weight_decay=0.0)
    first = told()["loss"].item()
    for _ in range(STEPS):
        optimizer.zero_grad()
        told()["loss"].backward()
        torch.nn.utils.clip_grad_norm_(learnt, 1.0)
        optimizer.step()
    last = told()["loss"].item()
    if last < first:
        return []
    return [
        f"{STEPS} steps on the same few rows took their loss from {first:.4g} to {last:.4g}; lower learning_rate = "
        f"{wanted.learning_rate:g}, or look for labels that contradict the teacher"
    ]


@contextmanager
def _untouched(objective: torch.nn.Module, lesson: Lesson, device: torch.device) -> Generator[None]:
    """Put back what a try changes: weights, buffers, plain attributes, generators, and what the teachers keep.

    In the block the teachers speak live: signals kept of this batch could differ in their last bit from those of the
    training's, which pads it otherwise.
    """
    tensors = [*objective.parameters(), *objective.buffers()]
    before = [tensor.detach().cpu().clone() for tensor in tensors]
    plain = [
        (module, {name: value for name, value in vars(module).items() if isinstance(value, bool | int | float)})
        for module in objective.modules()
    ]
    drawn = random.getstate(), np.random.get_state(), torch.get_rng_state()
    on_gpu = torch.cuda.get_rng_state_all() if device.type == "cuda" else []
    teachers = [its for each in (lesson, *(further.lesson for further in lesson.also)) for its in each.teachers]
    kept = [(each, each.kept, "speaker" in vars(each)) for each in teachers]
    for each in teachers:
        each.kept = None
    objective.to(device)
    try:
        yield
    finally:
        objective.to("cpu").zero_grad()
        with torch.no_grad():
            for tensor, value in zip([*objective.parameters(), *objective.buffers()], before, strict=True):
                tensor.copy_(value)
        for module, values in plain:
            vars(module).update(values)
        random.setstate(drawn[0])
        np.random.set_state(drawn[1])
        torch.set_rng_state(drawn[2])
        if on_gpu:
            torch.cuda.set_rng_state_all(on_gpu)
        for each, words, loaded in kept:
            each.kept = words
            if not loaded:
                vars(each).pop("speaker", None)  # with everything kept it need not be in memory
