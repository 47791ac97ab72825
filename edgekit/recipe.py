"""A recipe: one TOML file that says what to build, read and checked before any work.

A recipe names a task, its data, and the steps in order. Any step can be left out or repeated:

    name = "sentiment"
    [task]
    name = "text_classification"
    text = "text"
    label = "label"
    [data]
    name = "files"
    train = "train.jsonl"
    dev = "dev.jsonl"
    [[step]]
    stage = "teach"
    model = "models/teacher"
    [[step]]
    stage = "export"
    [[step]]
    stage = "quantize"
"""

from itertools import pairwise
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from edgekit import devices
from edgekit.devices import toml
from edgekit.records import Gate, Record, Target, Use, parse


class Training(Record):
    """How long and how a model is trained. Lengths are in tokens, `epochs` may be a fraction."""

    epochs: float = Field(default=1.0, gt=0, le=1000, allow_inf_nan=False)
    examples: int | None = Field(default=None, ge=1)
    """How many examples are shown, repeated ones counted each time, in place of `epochs`."""
    learning_rate: float = Field(default=1e-4, gt=0, lt=1, allow_inf_nan=False)
    batch_size: int = Field(default=32, ge=1)
    warmup: float = Field(default=0.06, ge=0, lt=1)
    """The share of the steps in which the learning rate rises."""
    weight_decay: float = Field(default=0.01, ge=0)
    precision: Literal["auto", "bf16", "float32"] = "auto"
    """`auto`: bf16 where the processor (AMX, AMD's AVX-512 BF16, 64-bit ARM) or GPU gains by it; else float32."""
    cache_gb: float = Field(default=8.0, ge=0, allow_inf_nan=False)
    """How much disk the teacher's kept signals may take; where they would take more, the teacher runs in every step."""
    seed: int | None = Field(default=None, ge=0)
    """Of this training alone; `None`: the recipe's."""
    evaluate: int = Field(default=0, ge=0, le=100)
    """How many times along the training, the last one at its end, the model is scored on the dev split."""
    keep: Literal["last", "best"] = "last"
    """Which of the scored models the step gives; `best`: the first of those with the highest score."""
    callback: Use | None = None
    """A plugin of `callbacks/`, or a module of your own, that gets the model each time it was scored."""

    @model_validator(mode="after")
    def _scored(self) -> "Training":
        if not self.evaluate and (self.keep == "best" or self.callback):
            raise ValueError('keep = "best" and callback rest on scores along the training; set evaluate, say to 4')
        return self


_KD = Use.model_validate({"name": "kd", "losses": [{"name": "kl"}, {"name": "hidden_mse"}, {"name": "attention_mse"}]})
"""TinyBERT's losses: what a distill or prune step trains with unless the recipe says otherwise."""


class _Step(Record):
    max_drop: float | None = Field(default=None, ge=0, le=1)
    """How much the headline score may fall, against the last scored step before, before the build stops."""


class Teach(_Step):
    """Load the teacher, fine-tune it where `training` is given, and score it."""

    stage: Literal["teach"]
    model: str
    """A folder, a hub name, or `package:NAME/FOLDER`, a folder inside an installed Python package."""
    sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    """Of the weights file; checked before loading."""
    revision: str | None = None
    """Of a hub name: a branch, tag or commit."""
    training: Training | None = None
    student: Use | None = None
    """What is trained in the model's place, by a plugin of `students/`: a ladder beside it, say."""

    @model_validator(mode="after")
    def _trained(self) -> "Teach":
        if self.student is not None and self.training is None:
            raise ValueError("student is what is trained, and nothing is trained here; add training, or leave it out")
        return self


class _Smaller(_Step):
    """The student of a step: fewer of the model's own layers, or another architecture."""

    layers: int | None = Field(default=None, ge=1)
    """Of the student; `None`: as many as the model has."""
    start: Literal["bottom", "uniform", "alternate"] = "bottom"
    """Which of the model's layers the student starts from: the first ones, whose work does not rest on the layers that
    go, those of TinyBERT's uniform map, or DistilBERT's alternate ones, the first and the last among them."""
    student: Use | None = None
    """Another architecture, by a plugin of `students/`, in place of `layers` and `start`."""

    @model_validator(mode="after")
    def _one_student(self) -> "_Smaller":
        if self.student is not None and self.layers is not None:
            raise ValueError("student and layers both say what the student is like; leave one of them out")
        return self


class Pretrain(_Smaller):
    """Train on the recipe's plain text, before the task: a student, or with neither `layers` nor `student` the
    teacher's own language model, which later pretrain and augment steps use."""

    stage: Literal["pretrain"]
    method: Use = Use(name="masked_lm")
    training: Training = Training()


class Augment(_Step):
    """More training examples by replacing words (Jiao et al., "TinyBERT", 2020, algorithm 1)."""

    stage: Literal["augment"]
    copies: int = Field(default=20, ge=1)
    """N_a: how many new examples are made from one; equal ones are dropped."""
    replace: float = Field(default=0.4, gt=0, le=1)
    """p_t: the probability that a word is replaced."""
    candidates: int = Field(default=15, ge=1)
    """K: how many candidates a word has."""
    rows: int | None = Field(default=None, ge=1)
    """How many training rows are copied, at even distances; `None`: all. With a large corpus the language model is
    asked for hours about copies that no training comes to see."""


class Also(Record):
    """A further task for the student of a distill step, which gets a head for it; its teacher is loaded, or made, as
    by a teach step."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]*$", max_length=40)
    task: Use
    data: Use
    model: str
    sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    training: Training | None = None
    losses: tuple[Use, ...] = ()
    """In place of the method's."""
    max_length: int | None = Field(default=None, ge=8)
    """Of this task's sequences; `None`: the recipe's."""

    @property
    def teach(self) -> Teach:
        """The step that makes the teacher."""
        return Teach(stage="teach", model=self.model, sha256=self.sha256, training=self.training)


class Distill(_Smaller):
    """Train a smaller student on what the teacher says."""

    stage: Literal["distill"]
    teachers: tuple[str, ...] = ()
    """Folders of further teachers of the same task and labels, beside the recipe's own."""
    also: tuple[Also, ...] = ()
    """Further tasks that the same student learns, by the method `multi_task`."""
    method: Use = _KD
    training: Training = Training()


class Extract(_Step):
    """Take one sub-network out of a model that the method `dynabert` trained."""

    stage: Literal["extract"]
    width: float = Field(default=1.0, gt=0, le=1)
    """The share of heads and neurons."""
    depth: float = Field(default=1.0, gt=0, le=1)
    """The share of layers."""


class Vocabulary(Record):
    """Which rows of the embedding table stay: those of tokens seen in training, special ones, and the alphabet."""

    min_count: int = Field(default=1, ge=1)


class Prune(_Step):
    """Take away whole heads, feed-forward neurons, layers and vocabulary rows, then recover with the teacher."""

    stage: Literal["prune"]
    criterion: Use = Use(name="taylor")
    heads: int | None = Field(default=None, ge=1)
    """Attention heads to keep in each layer."""
    neurons: int | None = Field(default=None, ge=1)
    """Feed-forward neurons to keep in each layer."""
    layers: int | None = Field(default=None, ge=1)
    """Layers to keep."""
    vocabulary: Vocabulary | None = None
    method: Use = _KD
    training: Training | None = None
    """The recovery training; `None`: none."""

    @model_validator(mode="after")
    def _takes_something(self) -> "Prune":
        if self.heads is None and self.neurons is None and self.layers is None and self.vocabulary is None:
            raise ValueError("a prune step takes nothing away; set heads, neurons, layers or vocabulary")
        return self


class Export(_Step):
    """Write the model in the target's formats, each checked against torch."""

    stage: Literal["export"]
    tolerance: float = Field(default=1e-3, gt=0)
    """The greatest allowed difference between a file's outputs and torch's, in the outputs' units."""


class Quantize(_Step):
    """int8 after training, in each of the target's formats."""

    stage: Literal["quantize"]
    mode: Literal["dynamic", "static"] = "dynamic"
    """`dynamic`: int8 weights per channel, activations quantized as they come; `static`: activations calibrated."""
    calibration_rows: int = Field(default=128, ge=1)
    max_drop: float | None = Field(default=0.02, ge=0, le=1)
    """Beyond this, the layers that cost the most score are left in float."""
    must_be_faster: bool = True
    """Refuse an int8 model that is not faster than float on this host."""


Step = Annotated[
    Teach | Pretrain | Augment | Distill | Prune | Extract | Export | Quantize, Field(discriminator="stage")
]


class Text(Record):
    """Plain text and word vectors: what pretrain and augment steps work with."""

    data: Use
    column: str = "text"
    """Holds a text, or a list of words."""
    vectors: str | None = None
    """An .npz of word vectors (`words`: newline-joined bytes, `vectors`: [words, dimensions]), by which an augment step
    replaces words of several tokens; without it they stay."""


class Recipe(Record):
    """What to build: a task, its data, and the steps in order."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=80)
    seed: int = Field(default=0, ge=0)
    max_length: int = Field(default=128, ge=8)
    """The longest sequence in training and scoring, in tokens."""
    task: Use
    data: Use
    text: Text | None = None
    step: tuple[Step, ...] = Field(min_length=1)
    deliver: str | None = None
    """Which further task's model is pruned, exported and bundled after the step that trains it, by its name in `also`;
    `None`: the recipe's own task's."""
    gate: Gate = Gate()

    @field_validator("step")
    @classmethod
    def _order(cls, steps: tuple[Step, ...]) -> tuple[Step, ...]:
        order = {
            "teach": 0, "pretrain": 1, "augment": 2, "distill": 3, "prune": 3, "extract": 3, "export": 4, "quantize": 5,
        }  # fmt: skip
        stages = [step.stage for step in steps]
        if stages[0] != "teach":
            raise ValueError("the first step must be teach; it names the model that the others start from")
        for once in ("teach", "augment", "export", "quantize"):
            if stages.count(once) > 1:
                raise ValueError(f"{once} can stand only once")
        if "quantize" in stages and "export" not in stages:
            raise ValueError("quantize works on an exported model; add an export step before it")
        ranks = [order[stage] for stage in stages]
        if ranks != sorted(ranks):
            raise ValueError(
                "the steps must stand in the order teach, pretrain, augment, then distill, prune or extract, export, "
                "quantize"
            )
        for before, step in pairwise(steps):
            dynamic = isinstance(before, Distill) and before.method.name == "dynabert"
            if isinstance(step, Extract) and not (dynamic or (isinstance(before, Teach) and before.training is None)):
                raise ValueError(
                    'extract takes a sub-network of a model that the method "dynabert" trained; put such a distill '
                    "step right before it"
                )
        trained = [step for step in steps if isinstance(step, Distill | Prune | Extract)]
        if any(isinstance(step, Prune) and step.vocabulary for step in trained[:-1]):
            raise ValueError(
                "vocabulary can be cut in the last distill or prune step only: the teacher knows the whole"
            )
        return steps

    @model_validator(mode="after")
    def _several(self) -> "Recipe":
        steps = [step for step in self.step if isinstance(step, Distill) and step.also]
        names = [also.name for step in steps for also in step.also]
        if len(steps) > 1 or len(set(names)) < len(names):
            raise ValueError("also can stand in one distill step only, each further task once")
        if self.deliver is not None and self.deliver not in names:
            raise ValueError(f'deliver = "{self.deliver}" is none of the further tasks: {", ".join(names) or "none"}')
        return self

    def along(self, name: str) -> "Recipe":
        """This recipe with a further task in the place of its own, and a name for both."""
        (also,) = (a for step in self.step if isinstance(step, Distill) for a in step.also if a.name == name)
        return self.model_copy(
            update={
                "name": f"{self.name}-{name}",
                "task": also.task,
                "data": also.data,
                "max_length": also.max_length or self.max_length,
            }
        )

    @model_validator(mode="after")
    def _has_text(self) -> "Recipe":
        if self.text is None and any(isinstance(step, Pretrain) for step in self.step):
            raise ValueError("a pretrain step needs plain text; add a table [text] with its data")
        return self


def read(path: Path) -> Recipe:
    """The recipe in a TOML file; relative paths in it are meant from the file's folder."""
    return parse(Recipe, toml(path), path)


def find(path: Path | None) -> tuple[Recipe, Path]:
    """The recipe at `path`, or the shipped one of that name (`None`: the default), and the folder that its relative
    paths are meant from."""
    known = shipped()
    if path is None or (str(path) in known and not path.exists()):
        return read(known[str(path or "default")]), Path.cwd()
    return read(path), path.parent


def shipped() -> dict[str, Path]:
    """The recipes that come with edgekit, by name."""
    folder = Path(__file__).parent / "pipeline" / "recipes"
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def target(name: str) -> Target:
    """The target called `name`, or the one in the TOML file at that path: a device's record without what reaches it."""
    device = devices.find(name, "--target")
    return Target.model_validate({key: getattr(device, key) for key in Target.model_fields})
