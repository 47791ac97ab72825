"""Everything that can be checked before the first expensive step: extras, plugins, data, teacher, disk."""

import importlib.util
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgekit import plugins
from edgekit.errors import InputError
from edgekit.pipeline import Planned, TaskData, weights
from edgekit.recipe import Augment, Distill, Pretrain, Prune, Recipe, Step, Teach, Training
from edgekit.records import Target, Use
from edgekit.store import standing

_NEEDED = {
    "teach": ("torch", "transformers", "accelerate"),
    "distill": ("torch", "transformers", "accelerate"),
    "pretrain": ("torch", "transformers", "accelerate"),
    "augment": ("torch", "transformers"),
    "prune": ("torch", "transformers", "accelerate"),
    "extract": ("torch", "transformers"),
    "head": ("torch", "transformers"),
    "export-onnx": ("torch", "onnx", "onnxscript", "onnxruntime"),
    "export-tflite": ("torch", "litert_torch", "ai_edge_litert"),
    "quantize-onnx": ("onnx", "onnxruntime"),
    "quantize-tflite": ("ai_edge_quantizer", "ai_edge_litert"),
    "bundle": (),
}


def everything(
    recipe: Recipe, target: Target, base: Path, data: TaskData, missing: Sequence[Planned], store: Path
) -> None:
    """Raise one `InputError` for the first thing that would stop the build later."""
    _extras(missing)
    plugins.use("tasks", recipe.task, "recipe: task")
    if recipe.text:
        plugins.use("corpora", recipe.text.data, "recipe: text")
    for step in recipe.step:
        if isinstance(step, Teach | Pretrain | Distill | Prune) and step.training:
            _along(step.stage, step.training)
        match step:
            case Distill():
                _use("methods", step.method, "recipe: step distill: method")
                _teachers(step)
                for further in weights.further(step):
                    _further(recipe, further, base, data)
                _also(step, base, data)
            case Pretrain():
                from edgekit.pipeline import pretrain

                _use("methods", step.method, "recipe: step pretrain: method")
                pretrain.check(step, recipe, base, weights.locate(_teach(recipe), base))
            case Augment():
                from edgekit.pipeline import augment

                augment.check(recipe, base)
            case Prune():
                _use("criteria", step.criterion, "recipe: step prune: criterion")
                if step.training:
                    _use("methods", step.method, "recipe: step prune: method")
            case _:
                pass
    if data.kind == "sentence-embedding":
        _no_labels(recipe)
    teach = _teach(recipe)
    config = weights.check(teach, base)
    _family(recipe, target, config)
    _extract(recipe)
    _space(weights.locate(teach, base), len(missing), store)
    data.count()
    data.examples("dev")


def _teach(recipe: Recipe) -> Teach:
    teach = recipe.step[0]
    assert isinstance(teach, Teach)  # the recipe's own validator saw to it
    return teach


def _extras(missing: Sequence[Planned]) -> None:
    for step in missing:
        part = f"{step.stage}-{step.format}" if step.format else step.stage
        absent = [name for name in _NEEDED[part] if importlib.util.find_spec(name) is None]
        if absent:
            raise InputError(f"{step.name} needs {', '.join(absent)}: pip install 'edgekit[build]'")


def _along(stage: str, training: Training) -> None:
    """Check what a training does along the way."""
    if training.evaluate and stage == "pretrain":
        raise InputError("recipe: step pretrain: evaluate: the task's head is not trained yet; leave it out here")
    if training.callback:
        plugins.use("callbacks", training.callback, f"recipe: step {stage}: callback")


def _use(kind: str, use: Use, where: str) -> None:
    """Check a plugin's parameters, and those of the plugins that it names in them."""
    _, params = plugins.use(kind, use, where)
    for inner in plugins.KINDS:
        for nested in getattr(params, inner, ()):
            plugins.use(inner, nested, f"{where}.{inner}")


def _family(recipe: Recipe, target: Target, config: Mapping[str, Any]) -> None:
    """Refuse a family that a later step cannot take, by name."""
    from edgekit.pipeline import export, families

    teacher = config
    for step in recipe.step:
        refused = families.refusal(config, step)
        if isinstance(step, Teach | Pretrain | Distill) and step.student:
            student, params = plugins.use("students", step.student, f"recipe: step {step.stage}: student")
            refused = student.refusal(params, config)
            config = config if refused else student.config(params, config)
            teacher = config if isinstance(step, Teach) else teacher
        if refused is None and config["model_type"] == "edgekit-ladder":
            refused = _ladder(step)
        if refused is None and isinstance(step, Distill):
            _losses(step, config, teacher)
            method, params = plugins.use("methods", step.method, "recipe: step distill: method")
            refused = method.refusal(params, config) if hasattr(method, "refusal") else None
        if refused is None and step.stage == "export":
            refused = export.refusal(config, target.lengths, recipe.max_length)
        if refused:
            raise InputError(f"recipe: step {step.stage}: {refused}")


def _ladder(step: Step) -> str | None:
    """Why a ladder, whose backbone is frozen, cannot be trained by a step; `None` where it can."""
    from edgekit.pipeline import joint

    if isinstance(step, Pretrain):
        return "a ladder's hidden states are its frozen backbone's, so nothing in it would learn; take another student"
    return joint.LADDER if isinstance(step, Distill) and step.also else None


def _teachers(step: Distill) -> None:
    """Refuse a number of teachers that the method does not take."""
    name = step.method.name
    several = getattr(plugins.load("methods", name, "recipe: step distill: method"), "SEVERAL_TEACHERS", False)
    if step.teachers and not several:
        raise InputError(
            f"recipe: step distill: {name} takes one teacher, and teachers names more; take the method multi_teacher"
        )
    if several and not step.teachers:
        raise InputError(
            f"recipe: step distill: {name} takes two teachers or more; name further ones in teachers, or use kd"
        )


def _no_labels(recipe: Recipe) -> None:
    """Refuse what learns from labels, for a task that has none."""
    for step in recipe.step:
        if isinstance(step, Teach) and step.training:
            raise InputError(f"recipe: step teach: {recipe.task.name} has no labels to train on; remove its training")
        if not isinstance(step, Distill) and not (isinstance(step, Prune) and step.training):
            continue
        _, params = plugins.use("methods", step.method, f"recipe: step {step.stage}: method")
        for use in (step.method, *getattr(params, "losses", ())):
            values = use.model_dump()
            if (
                use.name in ("supervised", "cross_entropy")
                or values.get("probability_shift")
                or values.get("mask") == "labels"
            ):
                raise InputError(
                    f"recipe: step {step.stage}: {use.name} learns from labels, and {recipe.task.name} has none; take "
                    "output_mse, which compares with the teacher's embeddings, or losses on layers"
                )


def _losses(step: Distill, student: Mapping[str, Any], teacher: Mapping[str, Any]) -> None:
    """Refuse losses on layers that are not there and on attention that a student does not tell of, by the config.json
    of both."""
    from edgekit.pipeline import families

    def size(config: Mapping[str, Any], name: str) -> int:
        own = config["model_type"] == "edgekit-sequence"
        return config[name] if own else getattr(families.full(config), name)

    layers, width = "num_hidden_layers", "hidden_size"
    _, params = plugins.use("methods", step.method, "recipe: step distill: method")
    for use in getattr(params, "losses", ()):
        where = f"recipe: step distill: method: {use.name}"
        loss, its = plugins.use("losses", use, where)
        try:
            reads = loss.reads(its, step.layers or size(student, layers), size(teacher, layers))
        except InputError as error:
            raise InputError(f"{where}: {error}") from None
        family, parts = student["model_type"], {part for part, _ in reads}
        one = hasattr(its, "projection") and its.projection is None and size(student, width) != size(teacher, width)
        if one and "hidden" in parts:
            raise InputError(
                f"{where}: the student's states are {size(student, width)} wide, the teacher's "
                f'{size(teacher, width)}; give it projection = "auto"'
            )
        if family == "edgekit-ladder" and parts - {"outputs"}:
            raise InputError(f"{where}: reads layers, and a ladder's are its frozen backbone's; read outputs")
        if family not in families.FAMILIES and parts - {"outputs", "hidden"}:
            raise InputError(
                f'{where}: reads attention, and a student of the family "{family}" gives none; take losses that read '
                "outputs or hidden states"
            )


def _further(recipe: Recipe, further: Teach, base: Path, data: TaskData) -> None:
    """Refuse a further teacher that cannot teach this task's labels, lengths or tokens."""
    from edgekit.pipeline import alignment

    config, folder = weights.check(further, base), weights.locate(further, base)
    where = f'recipe: step distill: teachers: "{further.model}"'
    has = [label for _, label in sorted((int(i), label) for i, label in (config.get("id2label") or {}).items())]
    wanted = list(data.labels)
    if wanted and has and (len(has) != len(wanted) or (has != wanted and sorted(has) == sorted(wanted))):
        raise InputError(
            f"{where}: its labels are {has}, the task's {wanted}; take a teacher with the same labels in the same order"
        )
    if (most := alignment.longest(config)) is not None and most < recipe.max_length:
        raise InputError(f"{where}: reads {most} tokens, max_length is {recipe.max_length}; lower max_length")
    own = recipe.step[0]
    assert isinstance(own, Teach)  # the recipe's own validator saw to it
    if not alignment.same_input(folder, weights.locate(own, base)):
        alignment.check(data.kind, folder)


def _also(step: Distill, base: Path, data: TaskData) -> None:
    """Check the further tasks of a distill step: data, teachers, losses, and that the method trains several."""
    where = "recipe: step distill: also"
    several = getattr(plugins.load("methods", step.method.name, where), "SEVERAL_TASKS", False)
    if step.also and not several:
        raise InputError(f'{where}: the method {step.method.name} trains one task; take the method "multi_task"')
    if several and not step.also:
        raise InputError(f"{where}: {step.method.name} trains several tasks, and there is one; name further ones here")
    for also in step.also:
        weights.check(also.teach, base)
        for loss in also.losses:
            plugins.use("losses", loss, f"{where}: {also.name}: losses")
        further = data.along(also.name)
        further.count()
        further.examples("dev")


def _extract(recipe: Recipe) -> None:
    from edgekit.pipeline import extract

    extract.check(recipe.step)


def _space(teacher: Path, artifacts: int, store: Path) -> None:
    """Each artifact is about the teacher's size; a training checkpoint about three times that."""
    size = sum(p.stat().st_size for p in teacher.glob("*.safetensors"))
    needed = size * (artifacts + 3)
    free = shutil.disk_usage(standing(store)).free
    if free < needed:
        raise InputError(
            f"{store}: {free / 1e9:.1f} GB free, this build may need {needed / 1e9:.1f} GB; "
            "free some space or name another folder with --store"
        )
