"""The nouns: frozen records, the only thing that passes between stages or touches disk.

Unknown keys are refused, sequences are tuples, units are SI and stand in the field's name. `None` means
*not measured* and is never 0.
"""

from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edgekit.errors import InputError, nearest

Format = Literal["onnx", "tflite"]
MetricName = Literal["latency_s", "peak_rss_bytes", "size_bytes", "energy_j", "score"]
Kind = Literal[
    "text-classification", "token-classification", "question-answering", "sentence-embedding", "image-classification"
]


class Record(BaseModel):
    """A frozen value with named, checked fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Use(BaseModel):
    """A plugin and its parameters as a recipe writes them: `{ name = "kl", temperature = 2 }`.

    The parameters are checked by the plugin's own `Params` (see `edgekit.plugins.use`), not here, so that reading
    a recipe imports no plugin.
    """

    model_config = ConfigDict(frozen=True, extra="allow")
    name: str

    @property
    def params(self) -> dict[str, Any]:
        """What the recipe says beside the name."""
        return dict(self.model_extra or {})


class Metric(Record):
    """One figure of a score; `support` is the number of true cases it rests on."""

    name: str
    value: float
    support: int | None = None


class Score(Record):
    """How good a model is on the task's evaluation rows: the headline metric (higher is better) and its parts."""

    metric: str
    value: float
    examples: int
    parts: tuple[Metric, ...] = ()


class Tensor(Record):
    """An input or output of a model file; -1 is a dynamic dimension."""

    name: str
    dtype: str
    shape: tuple[int, ...]


class Parity(Record):
    """A model file against the torch model it came from, on one (batch, length) shape with padded rows."""

    output: str
    batch: int
    length: int
    max_abs_diff: float
    tolerance: float


class Part(Record):
    """What a part of the model takes of a model file, in bytes: its weights with their scales."""

    name: str
    """`embeddings`, `layer 0 attention`, `layer 0 feed-forward`, `head`, or `other`: whatever is no weight."""
    bytes: int


class LayerSensitivity(Record):
    """What quantizing one layer alone costs in score; `kept` says whether it was left in float for that."""

    layer: str
    drop: float
    kept: bool


class Comparison(Record):
    """A bundle's model beside the teacher's float32 ONNX: files on disk, and time measured in one run on this host
    (batch 1, the target's greatest length, one thread)."""

    format: Format
    times_smaller: float
    times_faster: float


class Point(Record):
    """How good a model was in the middle of its training: the headline score after `step` steps."""

    step: int
    examples: int
    """Shown by then."""
    score: float


class Trained(Record):
    """What a training took."""

    examples: int
    """Shown in all, repeated ones counted each time."""
    seconds: float
    peak_rss_bytes: int | None = None
    """The process's peak resident memory while it trained; `None` where the system does not tell."""
    curve: tuple[Point, ...] = ()
    """Where the recipe asked for it, in order."""


class Facts(Record):
    """What a stage measured of what it made.

    `bytes` is the size of the model's weights file(s) on disk, `changed` one line on what the stage did.
    """

    parameters: int | None = None
    bytes: int
    score: Score | None = None
    trained: Trained | None = None
    changed: str
    format: Format | None = None
    inputs: tuple[Tensor, ...] = ()
    outputs: tuple[Tensor, ...] = ()
    parity: tuple[Parity, ...] = ()
    latency_s: float | None = None
    """Median time of one inference on this host: batch 1, the target's greatest length, one thread."""
    float_latency_s: float | None = None
    """The float model's, measured side by side with `latency_s` in the same run."""
    sensitivity: tuple[LayerSensitivity, ...] = ()
    against_teacher: tuple[Comparison, ...] = ()
    refused: tuple[str, ...] = ()
    """Variants that were made, checked and not kept, each with its reason."""
    notes: tuple[str, ...] = ()


class File(Record):
    """A file of an artifact or bundle; `path` is relative with forward slashes."""

    path: str
    bytes: int
    sha256: str


class Artifact(Record):
    """One stage's result on disk: what made it, its files and its facts."""

    id: str
    name: str
    stage: str
    parents: tuple[str, ...]
    files: tuple[File, ...]
    facts: Facts
    seconds: float
    versions: dict[str, str]


class Budget(Record):
    """A limit that a metric must keep; `score` is a lower one, the others are upper ones."""

    metric: MetricName
    limit: float = Field(gt=0, allow_inf_nan=False)
    required: bool = True


class Tolerance(Record):
    """How much worse a figure may become before that counts: the larger of a share of the baseline's and an amount in
    the metric's unit."""

    relative: float = Field(default=0, ge=0, lt=1)
    absolute: float = Field(default=0, ge=0, allow_inf_nan=False)


class Gate(Record):
    """A recipe's tolerances, by metric: what `edgekit gate` lets pass. The baseline's recipe counts, so that a change
    cannot loosen the gate that it has to pass."""

    latency_s: Tolerance = Tolerance(relative=0.03)
    peak_rss_bytes: Tolerance = Tolerance(relative=0.03, absolute=500_000)
    size_bytes: Tolerance = Tolerance(relative=0.01)
    energy_j: Tolerance = Tolerance(relative=0.05)
    score: Tolerance = Tolerance(absolute=0.01)


class Runtime(Record):
    """How the app is to run the model."""

    threads: int = Field(default=1, ge=1)


class Target(Record):
    """Where a model is to run: what decides formats, ABI, lengths, runtime settings and budgets."""

    name: str
    description: str
    abi: Literal["arm64-v8a", "armeabi-v7a", "x86_64", "host"]
    formats: tuple[Format, ...] = Field(min_length=1)
    lengths: tuple[int, ...] = Field(min_length=1)
    """Sequence lengths in tokens, ascending; TFLite gets one signature a length, and the greatest bounds ONNX too."""
    runtime: Runtime = Runtime()
    budgets: tuple[Budget, ...] = ()


class Preconditions(Record):
    """What a device must be like before it is measured: awaited up to `wait_s`, then refused. `None`: any."""

    max_temperature_c: float | None = None
    """Of the hottest thermal zone that counts (a processor's, or the battery's)."""
    min_battery_percent: float | None = Field(default=None, ge=0, le=100)
    charging: bool | None = None
    """`False`: only on battery, as energy needs it."""
    governor: str | None = None
    """Every measured core's frequency governor: `performance`, `schedutil`, ..."""
    max_load: float | None = Field(default=None, ge=0)
    """Busy cores before the measurement, as a share of all cores (0 to 1)."""
    wait_s: float = Field(default=120, ge=0)


class Device(Target):
    """A target that can be reached: a file of `devices/`, or the user's own.

    `base` was resolved when the file was read: a record says only what differs from the one it names.
    """

    os: Literal["linux", "android"] = "linux"
    """Which C library programs there are linked with: glibc or Android's bionic."""
    link: Use | None = None
    """The transport and its parameters; `None`: nobody has said yet how to reach it."""
    meter: Use | None = None
    """Where energy is read; `None`: the first source that the device has."""
    runner: Literal["native", "python"] = "native"
    python: str | None = None
    """The interpreter there that has a runtime's wheel, a virtual environment's say; `None`: `python3` (on this host
    our own)."""
    workdir: str | None = None
    """A folder on the device that holds what is uploaded; `None`: the transport's own."""
    preconditions: Preconditions = Preconditions()


class StageRow(Record):
    """One line of the table that a build prints. `score` is the headline `metric`; `None` is not measured."""

    name: str
    artifact: str
    parameters: int | None
    bytes: int
    score: float | None
    metrics: Score | None
    latency_s: float | None
    seconds: float
    cached: bool
    changed: str
    trained: Trained | None = None
    against_teacher: tuple[Comparison, ...] = ()
    refused: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


class Built(Record):
    """What a build gave. `bundle` and `zip` are paths, `None` where it stopped before the bundle."""

    recipe: str
    target: str
    bundle: str | None
    zip: str | None
    unchanged: bool
    stages: tuple[StageRow, ...]


_R = TypeVar("_R", bound=BaseModel)


def parse(record: type[_R], value: Any, where: str | Path) -> _R:
    """`value` as a `record`, or one `InputError` that names the file, the key and what to do."""
    try:
        return record.model_validate(value)
    except ValidationError as error:
        raise InputError("\n".join(_explain(record, e, where) for e in error.errors())) from None


def _explain(record: type[BaseModel], error: Any, where: str | Path) -> str:
    """One line for one thing wrong."""
    key = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        last, known = str(error["loc"][-1]), _keys(record)
        return f'{where}: unknown key "{key}"; ' + (
            "it belongs into another table" if last in known else nearest(last, known)
        )
    if error["type"] == "missing":
        return f'{where}: key "{key}" is missing; add it'
    return f'{where}: key "{key}": {error["msg"].lower()}, found {error["input"]!r}'


def _keys(annotation: Any) -> set[str]:
    """Every key that a record, or a record inside an annotation such as `tuple[A | B, ...]`, knows."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        fields = annotation.model_fields
        return set(fields).union(*(_keys(field.annotation) for field in fields.values()))
    return set[str]().union(*(_keys(arg) for arg in get_args(annotation)))
