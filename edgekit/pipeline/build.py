"""`edgekit build`: the closed list of stages, what a recipe asks of them, and the loop that makes each artifact once.

    for step in plan(recipe, target): artifact = store.make(step, ...)

Importing this imports no torch, so an unchanged build answers at once; a stage's module is imported when it runs.
"""

import contextlib
import importlib
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from edgekit import bundle, plugins, progress
from edgekit.errors import InputError, NotGoodEnough, nearest
from edgekit.pipeline import Job, Made, Planned, TaskData, check, processes, weights
from edgekit.recipe import Augment, Distill, Export, Extract, Pretrain, Prune, Quantize, Recipe, Teach
from edgekit.records import Artifact, Built, Facts, StageRow, Target, Use
from edgekit.store import Store, key, sha256, sources

BASELINE = "teacher-onnx"
"""The teacher's float32 ONNX: what the bundle's size and speed are compared with."""


def plan(recipe: Recipe, target: Target) -> tuple[Planned, ...]:
    """Every artifact that the recipe asks for on this target, parents first; the names are unique.

    A stage that stands several times is numbered: `prune`, `prune-2`. Export and quantize give one artifact a
    format, `export-onnx`; the bundle comes last and takes the best there is of each format.
    """
    planned: list[Planned] = []
    count: dict[str, int] = {}
    model, teacher, task = "", "teach", None
    data: dict[str, str] = {}
    language: dict[str, str] = {}
    final: dict[str, str] = {}
    for step in recipe.step:
        count[step.stage] = count.get(step.stage, 0) + 1
        name = step.stage if count[step.stage] == 1 else f"{step.stage}-{count[step.stage]}"
        match step:
            case Teach():
                planned.append(Planned(name, "teach", step))
                model = name
            case Pretrain():
                planned.append(Planned(name, "pretrain", step, language))
                if step.student or step.layers:
                    model = name
                else:
                    language = {"language": name}
            case Augment():
                planned.append(Planned(name, "augment", step, {"model": "teach", **language}))
                data = {"augment": name}
            case Distill() | Prune():
                also = [each.name for each in step.also] if isinstance(step, Distill) else []
                if isinstance(step, Distill):
                    planned += [Planned(f"teach-{a.name}", "teach", a.teach, task=a.name) for a in step.also]
                parents = {"model": model, "teacher": teacher, **data, **{f"teacher:{a}": f"teach-{a}" for a in also}}
                planned.append(Planned(name, step.stage, step, parents, task=task))
                model = name
                if recipe.deliver in also:
                    task, teacher, data = recipe.deliver, f"teach-{recipe.deliver}", {}
                    planned.append(Planned(f"head-{task}", "head", step, {"model": teacher, "shared": name}, task=task))
                    model = f"head-{task}"
            case Extract():
                planned.append(Planned(name, "extract", step, {"model": model}, task=task))
                model = name
            case Export():
                if model != teacher:
                    planned.append(Planned(BASELINE, "export", step, {"model": teacher}, "onnx", task))
                for format in target.formats:
                    planned.append(Planned(f"{name}-{format}", "export", step, {"model": model}, format, task))
                    final[f"export:{format}"] = f"{name}-{format}"
            case Quantize():
                for format in target.formats:
                    parents = {"model": model, "export": final[f"export:{format}"]}
                    planned.append(Planned(f"{name}-{format}", "quantize", step, parents, format, task))
                    final[f"quantize:{format}"] = f"{name}-{format}"
    if final:
        baseline = {"baseline": BASELINE} if any(p.name == BASELINE for p in planned) else {}
        parents = {"model": model, "teacher": teacher, **baseline, **final}
        planned.append(Planned("bundle", "bundle", None, parents, task=task))
    return tuple(planned)


def build(
    recipe: Recipe,
    target: Target,
    store: Store,
    out: Path,
    base: Path,
    until: str | None = None,
    done: Callable[[StageRow], None] = lambda row: None,
) -> Built:
    """Make what is not there yet, in order, and write the bundle to the folder `out` and its zip beside it.

    `base` is the folder that the recipe's relative paths are meant from; `until` names the last artifact (or
    stage) to make; `done` is told of each artifact. Raises `NotGoodEnough`, naming the stage, where the score
    fell by more than the recipe allows.
    """
    planned = _cut(plan(recipe, target), until)
    data = TaskData(recipe, base, store.root)
    ids, versions = keys(recipe, target, base, planned)
    bundle.check_out(out)
    missing = [p for p in planned if store.find(p.name, ids[p.name]) is None]
    if missing:
        check.everything(recipe, target, base, data, missing, store.root)
    made: dict[str, Made] = {}
    rows: list[StageRow] = []
    for step in planned:
        parents = tuple(ids[name] for name in step.parents.values())
        artifact, cached = store.make(
            step.name, step.stage, ids[step.name], parents, versions[step.name],
            work=lambda o, s, step=step: run_stage(step, ids[step.name], recipe, target, data, made, o, s),
            waiting=lambda step=step: progress.say(f"{step.name}: another build is making it; waiting for that"),
        )  # fmt: skip
        made[step.name] = Made(artifact, store.folder(step.name, artifact.id))
        rows.append(_row(artifact, cached))
        done(rows[-1])
        _keep_score(step, artifact, made)
    has_bundle = planned[-1].stage == "bundle"
    zip = bundle.place(made["bundle"].folder, out) if has_bundle else None
    return Built(
        recipe=recipe.name, target=target.name, bundle=str(out) if has_bundle else None,
        zip=str(zip) if zip else None, unchanged=not missing, stages=tuple(rows),
    )  # fmt: skip


def run_stage(
    step: Planned, id: str, recipe: Recipe, target: Target, data: TaskData, made: Mapping[str, Made], out: Path,
    scratch: Path,
) -> Facts:  # fmt: skip
    """Run the stage that makes the artifact `id`; every process runs those that train (see `processes`)."""
    parents = {role: made[name] for role, name in step.parents.items()}
    history = tuple(m.artifact for m in made.values())
    training = getattr(step.step, "training", None)
    if training is not None and training.seed is not None:
        recipe = recipe.model_copy(update={"seed": training.seed})  # so no stage has to ask which one counts
    if step.task:
        recipe, data = recipe.along(step.task), data.along(step.task)
    if "augment" in parents:
        data = data.with_rows(parents["augment"].folder)
    job = Job(recipe, target, data, parents, out, scratch, step.format, history, step.task)
    progress.say(f"{step.name} …")
    trains = isinstance(step.step, Teach | Pretrain | Distill | Prune) and step.step.training is not None
    with processes.together(step, id, target, data, made) if trains else contextlib.nullcontext():
        return importlib.import_module(f"edgekit.pipeline.{step.stage}").run(step.step, job)


def _cut(planned: tuple[Planned, ...], until: str | None) -> tuple[Planned, ...]:
    """`planned` up to and with the last artifact called `until`, or made by the stage of that name."""
    if until is None:
        return planned
    last = [i for i, p in enumerate(planned) if until in (p.name, p.stage)]
    if not last:
        known = {p.name for p in planned} | {p.stage for p in planned}
        raise InputError(f'--until: this recipe makes no "{until}"; {nearest(until, known)}')
    return planned[: last[-1] + 1]


def keys(
    recipe: Recipe, target: Target, base: Path, planned: tuple[Planned, ...]
) -> tuple[dict[str, str], dict[str, dict[str, str]]]:
    """Each artifact's key, the hash of all that makes it, and the library versions among that."""
    common = {task: _common(recipe.along(task) if task else recipe, base) for task in {p.task for p in planned}}
    ids: dict[str, str] = {}
    versions: dict[str, dict[str, str]] = {}
    for step in planned:
        its = recipe.along(step.task) if step.task else recipe
        source, versions[step.name] = _code(tuple(_modules(its, step)))
        ingredients: dict[str, Any] = {
            **common[step.task],
            "stage": step.stage,
            "step": _wanted(step),
            "format": step.format,
            "parents": {role: ids[name] for role, name in step.parents.items()},
            "source": source,
            "versions": versions[step.name],
        }
        if isinstance(step.step, Teach | Pretrain):
            ingredients["weights"] = weights.fingerprint(
                step.step if isinstance(step.step, Teach) else _teach(recipe), base
            )
        if isinstance(step.step, Pretrain) and recipe.text:
            text, params = plugins.use("corpora", recipe.text.data, "recipe: text")
            ingredients["text"] = (text.fingerprint(params, base), recipe.text.column)
        if isinstance(step.step, Distill):
            ingredients["teachers"] = [weights.fingerprint(each, base) for each in weights.further(step.step)]
        if isinstance(step.step, Augment) and recipe.text and recipe.text.vectors:
            ingredients["vectors"] = sha256(weights.vectors(recipe.text.vectors, base))
        if step.stage in ("export", "quantize"):
            ingredients["target"] = {"lengths": target.lengths, "runtime": target.runtime.model_dump()}
        if step.stage == "bundle":
            samples = importlib.import_module("edgekit.pipeline.bundle").samples_fingerprint()
            ingredients |= {"target": target.model_dump(), "recipe": recipe.model_dump(), "samples": samples}
        ids[step.name] = key(ingredients)
    return ids, versions


def _common(recipe: Recipe, base: Path) -> dict[str, Any]:
    """What every artifact of a task is made from."""
    corpus, params = plugins.use("corpora", recipe.data, "recipe: data")
    return {
        "task": recipe.task.model_dump(),
        "data": corpus.fingerprint(params, base),
        "seed": recipe.seed,
        "max_length": recipe.max_length,
    }


def _teach(recipe: Recipe) -> Teach:
    teach = recipe.step[0]
    assert isinstance(teach, Teach)  # the recipe's own validator saw to it
    return teach


def _wanted(step: Planned) -> dict[str, Any] | None:
    """What the recipe says of a step, less the limit that is held against the result without changing it."""
    if step.step is None:
        return None
    return step.step.model_dump(exclude=None if isinstance(step.step, Quantize) else {"max_drop"})


@cache
def _code(modules: tuple[str, ...]) -> tuple[str, dict[str, str]]:
    return sources(modules)


def _modules(recipe: Recipe, step: Planned) -> Iterator[str]:
    """The stage's module and those of every plugin that it will load."""
    yield f"edgekit.pipeline.{step.stage}"
    yield plugins.module_name("tasks", recipe.task.name, "recipe: task")
    yield plugins.module_name("corpora", recipe.data.name, "recipe: data")
    where = f"recipe: step {step.name}"
    if isinstance(step.step, Teach | Pretrain | Distill) and step.step.student:
        yield plugins.module_name("students", step.step.student.name, where)
    if isinstance(step.step, Teach | Pretrain | Distill | Prune) and step.step.training and step.step.training.callback:
        yield plugins.module_name("callbacks", step.step.training.callback.name, where)
    match step.step:
        case Distill():
            yield from _used("methods", step.step.method, where)
            for also in step.step.also:
                yield plugins.module_name("tasks", also.task.name, where)
                yield plugins.module_name("corpora", also.data.name, where)
                yield from (plugins.module_name("losses", loss.name, where) for loss in also.losses)
        case Pretrain():
            yield from _used("methods", step.step.method, where)
            if recipe.text:
                yield plugins.module_name("corpora", recipe.text.data.name, "recipe: text")
        case Prune():
            yield from _used("criteria", step.step.criterion, where)
            if step.step.training:
                yield from _used("methods", step.step.method, where)
        case Export():
            yield f"edgekit.pipeline.exporters.{step.format}"
        case Quantize():
            yield f"edgekit.pipeline.quantizers.{step.format}"
        case _:
            pass


def _used(kind: str, use: Use, where: str) -> Iterator[str]:
    """The module of a plugin, and of those named in its parameters under a kind's name (`losses = [...]`)."""
    yield plugins.module_name(kind, use.name, where)
    for inner in plugins.KINDS:
        for nested in use.params.get(inner, ()):
            if isinstance(nested, Mapping) and isinstance(name := nested.get("name"), str):
                yield plugins.module_name(inner, name, where)


def _row(artifact: Artifact, cached: bool) -> StageRow:
    facts = artifact.facts
    return StageRow(
        name=artifact.name, artifact=artifact.id, parameters=facts.parameters, bytes=facts.bytes,
        score=facts.score.value if facts.score else None, metrics=facts.score, latency_s=facts.latency_s,
        seconds=artifact.seconds, cached=cached, changed=facts.changed, trained=facts.trained,
        against_teacher=facts.against_teacher, refused=facts.refused, notes=facts.notes,
    )  # fmt: skip


def _keep_score(step: Planned, artifact: Artifact, made: Mapping[str, Made]) -> None:
    """Stop where the score fell, against what this was made from, by more than the step allows. Where that has no score
    (a student that knows nothing of the task yet), the last one before it that has counts."""
    allowed = step.step.max_drop if step.step else None
    now = artifact.facts.score
    parent = step.parents.get("export") or step.parents.get("model")
    if allowed is None or parent is None or now is None:
        return
    scored = [one.artifact for one in made.values() if one.artifact.facts.score and one.artifact != artifact]
    before = made[parent].artifact if made[parent].artifact.facts.score else next(reversed(scored), None)
    was = before.facts.score if before else None
    if before is None or was is None:
        return
    if was.value - now.value > allowed:
        raise NotGoodEnough(
            f"{artifact.name}: {now.metric} fell from {was.value:.4f} ({before.name}) to {now.value:.4f}, by more than "
            f"max_drop = {allowed}; train longer, take less away, or raise max_drop of this step"
        )
