"""Systems: ways of the field to train a student, each a file of steps that stand in for a recipe's own.

    # pipeline/recipes/methods/two_stages.toml
    title = "a student trained on hidden states first, on logits after"
    source = "who, what, when, which section"

    [[step]]
    stage = "distill"
    sized = true                                    # this step makes the student: as large as the recipe's own
    training = { share = 0.75 }                     # of the recipe's budget
    method = { name = "kd", losses = [{ name = "hidden_mse" }] }

    [[step]]
    stage = "distill"
    training = { share = 0.25, learning_rate = 3e-5 }   # all else as in the recipe
    method = { name = "kd", losses = [{ name = "kl" }] }

A budget is counted in examples that the student sees: the epochs or examples of the recipe's pretrain and distill
steps added up, an epoch being one of the task's own rows, whatever they are spent on. So two systems with the same
recipe are given the same, and can be compared.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from edgekit import plugins, tables
from edgekit.devices import toml
from edgekit.errors import InputError, nearest, printable
from edgekit.recipe import Augment, Distill, Extract, Pretrain, Prune, Recipe, Training
from edgekit.records import Record, parse

_SIZE = ("layers", "start", "student")
_TRAINED = ("pretrain", "distill")
_PREDICTIONS, _EMBEDDING = ("kl", "soft_cross_entropy", "cross_entropy"), {"name": "output_mse"}
_INIT = {"layers": 3, "epochs": 2.0, "learning_rate": 2e-4}
"""What a recipe that is written out begins with."""


class Step(Record):
    """One step of a system: what its file says, less what is taken from a recipe."""

    values: dict[str, Any]
    sized: bool
    """It makes the student, of the size that the recipe says where `values` does not."""
    share: float | None
    """Of the recipe's budget; `None` where the step trains nothing."""

    @property
    def stage(self) -> str:
        """The stage that the step is of."""
        return self.values["stage"]


class System(Record):
    """A way to train a student."""

    name: str
    title: str
    source: str
    step: tuple[Step, ...]
    text: str
    """The file itself, comments and all."""


class _Written(Record):
    """A file's keys, the steps without what no recipe has."""

    title: str = Field(min_length=1)
    source: str = Field(min_length=1)
    step: tuple[
        Annotated[Pretrain | Augment | Distill | Prune | Extract, Field(discriminator="stage")], ...
    ] = Field(min_length=1)  # fmt: skip


def shipped() -> dict[str, Path]:
    """The files of the systems that come with edgekit, by name."""
    folder = Path(__file__).parent / "pipeline" / "recipes" / "methods"
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def names() -> tuple[str, ...]:
    """The systems that come with edgekit, in order."""
    return tuple(shipped())


def find(name: str, option: str = "--method") -> System:
    """The system called `name`, or the one in the TOML file at that path. Raises `InputError` with the nearest name."""
    known = shipped()
    if name.endswith(".toml"):
        if not Path(name).is_file():
            raise InputError(f"{option}: there is no file {name}; name a TOML file, or one of `edgekit methods`")
        return read(Path(name))
    if name not in known:
        raise InputError(f'{option}: no method is called "{name}"; {nearest(name, known)}')
    return read(known[name])


def read(path: Path) -> System:
    """The system in a TOML file. Raises `InputError` naming file and key for what is wrong in it."""
    values = toml(path)
    raw = values.get("step", [])
    if not isinstance(raw, list) or not all(isinstance(one, dict) for one in raw):
        raise InputError(f'{path}: key "step" must be tables, each under its own [[step]]')
    steps = tuple(_step(one, f'{path}: key "step.{number}"') for number, one in enumerate(raw))
    found = parse(_Written, {**values, "step": [step.values for step in steps]}, path)
    whole = sum(step.share or 0 for step in steps)
    if not math.isclose(whole, 1, abs_tol=1e-3):
        raise InputError(f'{path}: the shares of all steps must add up to 1, found {whole:g}; see "training.share"')
    return System(
        name=path.stem, title=found.title, source=found.source, step=steps, text=path.read_text(encoding="utf-8")
    )


def _step(raw: Mapping[str, Any], where: str) -> Step:
    values = dict(raw)
    stage, sized, share = values.get("stage"), values.pop("sized", False), None
    if not isinstance(sized, bool) or (sized and stage in ("augment", "prune", "extract")):
        raise InputError(f"{where}: sized = true is for a pretrain or distill step that makes the student")
    if stage in _TRAINED:
        training = values.get("training")
        training = dict(training) if isinstance(training, dict) else {}
        share = training.pop("share", None)
        if not isinstance(share, int | float) or not 0 < share <= 1:
            raise InputError(f"{where}: training.share is the part of the budget for this step, above 0 and up to 1")
        if own := {"epochs", "examples"} & training.keys():
            raise InputError(f"{where}: training.{own.pop()} is the recipe's to say; give training.share alone")
        values["training"] = training
    return Step(values=values, sized=sized, share=share)


def apply(recipe: Recipe, system: System, rows: Callable[[], int]) -> Recipe:
    """`recipe` with its student trained by `system`: the system's steps stand where the recipe's own stood.

    Steps between teach and export are replaced, but prune steps after the last distill step stay, unless the system
    prunes itself or makes a student of another kind. The student is as large as the last pretrain or distill step that
    says so makes it. Learning rate, batch size and what else the recipe says of its distill training hold where the
    system says nothing; for a task without labels it is `without_labels`. `rows` counts the training examples; it is
    asked only where a budget in epochs is to be spent on other data than the task's. Raises `InputError` for a recipe
    without a distill step or without the plain text that the system needs, and for one that says what the system would
    drop.
    """
    where = f'method "{system.name}": recipe {recipe.name}'
    task, _ = plugins.use("tasks", recipe.task, "recipe: task")
    if task.KIND == "sentence-embedding":
        system = without_labels(system)
    own = [step for step in recipe.step if isinstance(step, Pretrain | Distill)]
    distills = [step for step in own if isinstance(step, Distill)]
    if not distills:
        raise InputError(f"{where} has no distill step, which says how large the student is and how long it is trained")
    if recipe.text is None and any(step.stage == "pretrain" for step in system.step):
        raise InputError(
            f"{where} names no plain text, and this method trains on some before the task; add a table [text] with "
            'data = { name = "files", ... } or another corpus, and the column that holds the text'
        )
    if lost := _lost(recipe, distills, system):
        raise InputError(
            f"{where} has {' and '.join(lost)}, which its steps would drop; take that out of the recipe, or write it "
            "into a method file of your own (`edgekit methods NAME` prints one to start from)"
        )
    size = next((step for step in reversed(own) if step.layers or step.student), distills[0])
    training = (size if isinstance(size, Distill) else distills[0]).training
    unit, budget = _budget(own, system, rows)
    steps = [_filled(step, size, training, unit, budget, where) for step in system.step]
    _bound(steps)
    steps[-1].setdefault("max_drop", distills[-1].max_drop)
    parts = [step.model_dump() for step in recipe.step]
    exports = [part for part in parts if part["stage"] in ("export", "quantize")]
    values = {**recipe.model_dump(), "step": [parts[0], *steps, *_prunes(recipe, system), *exports]}
    return parse(Recipe, values, where)


def without_labels(system: System) -> System:
    """The system for a task without labels: where it learns from predictions and labels, the student's embedding learns
    the mean square distance from the teacher's. One that learns from labels alone stays as it is, and is refused."""
    if all(step.values.get("method", {}).get("name") == "supervised" for step in system.step):
        return system

    def taught(step: Step) -> Step:
        method = step.values.get("method", {})
        if method.get("name") == "supervised":
            return step.model_copy(update={"values": {**step.values, "method": {"name": "kd", "losses": [_EMBEDDING]}}})
        losses = [loss for loss in method.get("losses", ()) if loss["name"] not in _PREDICTIONS]
        if len(losses) == len(method.get("losses", ())):
            return step
        return step.model_copy(
            update={"values": {**step.values, "method": {**method, "losses": [*losses, _EMBEDDING]}}}
        )

    return system.model_copy(update={"step": tuple(map(taught, system.step))})


def _lost(recipe: Recipe, distills: Sequence[Distill], system: System) -> list[str]:
    """What makes the recipe's student or teaches it, and has no place among the system's steps."""
    mine = {step.stage for step in recipe.step if isinstance(step, Extract)}
    mine |= {key for key in ("teachers", "also") if any(getattr(step, key) for step in distills)}
    theirs = {step.stage for step in system.step}.union(*(step.values for step in system.step))
    return [{"extract": "an extract step"}.get(key, f'"{key}" in a distill step') for key in sorted(mine - theirs)]


def _budget(own: Sequence[Pretrain | Distill], system: System, rows: Callable[[], int]) -> tuple[str, float]:
    """The budget of a recipe's `own` steps: as epochs where all of it goes to the task's own data, else examples."""
    elsewhere = any(step.stage in ("pretrain", "augment") for step in system.step)
    if not elsewhere and not any(step.training.examples for step in own):
        return "epochs", sum(step.training.epochs for step in own)
    count = 0 if all(step.training.examples for step in own) else rows()
    return "examples", sum(step.training.examples or step.training.epochs * count for step in own)


def _filled(
    step: Step, size: Pretrain | Distill, training: Training, unit: str, budget: float, where: str
) -> dict[str, Any]:
    """The step as a recipe says it, with the size of the recipe's step that makes the student, and its `training`."""
    values = dict(step.values)
    if step.sized:
        mine = size.model_dump(include=set(_SIZE), exclude_defaults=True)
        if "student" in values:
            mine = {}
        elif "layers" in values:
            mine.pop("student", None)
        values = {**mine, **values}
        if step.stage == "pretrain" and "layers" not in values and "student" not in values:
            raise InputError(f"{where}: this method makes the student before the task; add layers to the distill step")
    if step.share is not None:
        amount = step.share * budget
        shared = {unit: max(1, round(amount)) if unit == "examples" else round(amount, 6)}
        along = {"evaluate", "keep", "callback"} if step.stage == "pretrain" else set[str]()  # there is no score yet
        theirs = training.model_dump(exclude={"epochs", "examples", *along})
        values["training"] = {**theirs, **values["training"], **shared}
    return values


def _bound(steps: Sequence[dict[str, Any]]) -> None:
    """No more rows are augmented than give as many new ones as the longest training after it sees."""
    for number, step in enumerate(steps):
        if step["stage"] == "augment":
            seen = max((later["training"]["examples"] for later in steps[number:] if "training" in later), default=1)
            step.setdefault("rows", math.ceil(seen / Augment.model_validate(step).copies))


def _prunes(recipe: Recipe, system: System) -> list[dict[str, Any]]:
    """The recipe's prune steps after its last distill step, where they suit the system's student."""
    if any(step.stage in ("prune", "extract") or "student" in step.values for step in system.step):
        return []
    last = max(number for number, step in enumerate(recipe.step) if isinstance(step, Distill))
    return [step.model_dump() for step in recipe.step[last:] if isinstance(step, Prune)]


def written_out(system: System) -> str:
    """The system's steps as TOML for a recipe to start from, with its comments: sizes and shares are numbers in it.

    Raises `InputError` where they are not tables of their own, whose text can be copied.
    """
    head, *chunks = re.split(r"^(?=[ \t]*\[\[[ \t]*step[ \t]*\]\])", system.text, flags=re.MULTILINE)
    if len(chunks) != len(system.step):
        raise InputError(
            f'method "{system.name}": its {len(system.step)} steps are copied with their comments, and there are '
            f"{len(chunks)} lines [[step]] to begin with; write each step under its own"
        )
    comments = [line for line in head.splitlines() if line.startswith("#")]
    about = [f"# {system.name}: {system.title}", f"# ({system.source})", *comments]
    parts = [_numbers(chunk, step) for chunk, step in zip(chunks, system.step, strict=True)]
    return "\n".join(about) + "\n" + "".join(parts)


def _numbers(chunk: str, step: Step) -> str:
    lines: list[str] = []
    for line in chunk.splitlines():
        said, sign, comment = line.partition("#")
        if re.match(r"\s*sized\s*=", said):
            if not {"student", "layers"} & step.values.keys():
                lines.append(f"layers = {_INIT['layers']}".ljust(32) + (sign + comment or "# of the student"))
            continue
        if step.share is not None and (found := re.search(r"\bshare\s*=\s*[\d.eE+-]+", said)):
            numbers = [f"epochs = {step.share * _INIT['epochs']:g}"]
            if "learning_rate" not in step.values["training"]:
                numbers.append(f"learning_rate = {_INIT['learning_rate']:g}")
            inline = "{" in said[: found.start()]
            said = said[: found.start()] + (", " if inline else "\n").join(numbers) + said[found.end() :]
        lines.append(said + sign + comment)
    return "\n".join(lines) + "\n"


def lines(every: Iterable[System]) -> str:
    """The systems as a table for a terminal, at most 80 columns."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name, width in (("method", 11), ("what it does", 34), ("source", 29)):
        table.add_column(name, width=width, overflow="fold")
    for one in every:
        table.add_row(*map(printable, (one.name, one.title, one.source)))
    return tables.drawn(table, 80)
