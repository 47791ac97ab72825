"""The runner: a small program on the target that runs one model file in a process of its own and says what it saw.

    argv(["/data/local/tmp/edgekit/edgekit-runner"], "tflite", "libLiteRt.so", "model.tflite", "in", "out", load)
    parse(stdout, "pixel-8") -> Run

Two programs take the same options and print the same JSON: `runner.c`, which costs no more memory than an app would
(a Python interpreter alone is 25 to 30 MB), and `runner.py`, for where only a wheel is at hand. Either one

1. opens the runtime's library, then loads the model (for TFLite: the one signature asked for),
2. runs each example of the inputs file once, in order, and writes its outputs (the first is the *first run*),
3. warms up on the first example and measures on it, where the load asks for that,
4. prints one JSON document.

This file is pure: words in, records out, and the tensors files. `build` compiles the native one.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
from pydantic import Field, ValidationError

from edgekit.errors import DeviceError, InputError, printable
from edgekit.records import Format, Record
from edgekit.results import MemoryPhase

PYTHON = Path(__file__).parent / "runner.py"
"""The Python runner, to be pushed where no native one is."""
EMPTY: Mapping[Format, Path] = {
    "onnx": Path(__file__).parent / "empty.onnx",
    "tflite": Path(__file__).parent / "empty.tflite",
}
"""A model of one trivial operation, y = x and y = x + x for one float x: a process that runs it costs what the runtime
itself costs. The TFLite has the signature `empty`. A test makes both again from their description."""
PHASES = ("start", "library", "loaded", "first_run", "warm", "end")
MOST_SAMPLES = 1_000_000
"""Both runners stop warming up and measuring at so many runs, whatever the load says: the buffers have an end."""

_MAGIC = b"edgekit-tensors 1"
_DTYPES = {"float32": "<f4", "int32": "<i4", "int64": "<i8"}
_REMEDIES = {
    "library": "give the library for this target's ABI: edgekit runner build --runtime-lib",
    "model": "check that the file is whole and that this runtime's version can run it",
    "signature": "name one that the model has",
    "inputs": "the inputs file does not fit the model: write it for this model and signature",
    "run": "the runtime failed on these inputs: try another version of it, or another model",
    "memory": "the process got no more memory: free some, or raise its limit",
    "outputs": "free space on the target, or name another work folder",
}


class Load(Record):
    """What a runner is to do beside running each example once. Warm-up and measuring last until both their time and
    their count are reached; with neither, that part is left out.
    """

    threads: int = Field(default=1, ge=1, le=256)
    cpus: tuple[int, ...] | None = None
    """The cores that the process may use; `None` leaves it to the system."""
    signature: str | None = None
    """A TFLite file's signature; `None` is its first. ONNX has none."""
    warmup_s: float = Field(default=0, ge=0, allow_inf_nan=False)
    warmup_n: int = Field(default=0, ge=0, le=MOST_SAMPLES)
    repeat_s: float = Field(default=0, ge=0, allow_inf_nan=False)
    repeat_n: int = Field(default=0, ge=0, le=MOST_SAMPLES)
    deadline_s: float = Field(gt=0, allow_inf_nan=False)
    """The runner ends itself after so long, with exit code 124, whatever it is doing."""


class Run(Record):
    """What a runner said of one process."""

    runner: Literal["native", "python"]
    format: Format
    runtime: str
    """`onnxruntime`, `litert` or `tflite-runtime`."""
    library_version: str
    threads: int
    cpus: tuple[int, ...] | None
    open_s: float
    """Opening the runtime's library (or importing its module)."""
    load_s: float
    """Loading the model, up to where it can be run."""
    first_run_s: float
    warmup_s: tuple[float, ...]
    samples_s: tuple[float, ...]
    cpu_s: tuple[float, ...]
    """CPU time of each sample, all threads together."""
    began_s: float | None
    """When measuring began, seconds since 1970 by the target's clock; `None` where nothing was measured."""
    ended_s: float | None
    voluntary_switches: int
    involuntary_switches: int
    minor_faults: int
    major_faults: int
    """Context switches and page faults while measuring."""
    phases: tuple[MemoryPhase, ...]
    examples: int

    def phase(self, name: str) -> MemoryPhase:
        """The memory at the end of the phase of that name."""
        return next(phase for phase in self.phases if phase.name == name)


def argv(
    start: Sequence[str], format: Format, library: str | None, model: str, inputs: str, outputs: str | None, load: Load
) -> list[str]:
    """The command line on the target. `start` begins it (a kit's `start`, or `["python3", ".../runner.py"]`).

    `library` is the path of the runtime's library; for the Python runner the module's name, or `None` for whichever
    is installed.
    """
    words = [*start, "--format", format]
    given = {
        "--library": library,
        "--model": model,
        "--inputs": inputs,
        "--outputs": outputs,
        "--signature": load.signature,
        "--cpus": None if load.cpus is None else ",".join(map(str, load.cpus)),
        "--threads": load.threads,
        "--warmup-s": load.warmup_s,
        "--warmup-n": load.warmup_n,
        "--repeat-s": load.repeat_s,
        "--repeat-n": load.repeat_n,
        "--deadline-s": load.deadline_s,
    }
    for option, value in given.items():
        if value is not None:
            words += [option, f"{value:.9f}" if isinstance(value, float) else str(value)]
    return words


def parse(stdout: bytes, where: str) -> Run:
    """The one JSON document that a runner printed. `where` names the target in messages.

    Raises `DeviceError` for anything else, and for a document in which the runner says why it could not go on.
    """
    try:
        value = json.loads(stdout.decode(), parse_constant=_refuse)
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, cut off, two documents, NaN
        found = f"{len(stdout)} bytes, ending in {stdout[-60:]!r}" if stdout else "nothing"
        raise DeviceError(
            f"{where}: expected one JSON document from the runner, found {found} ({error}); "
            "the runner was ended or something else wrote to its output: see its error output, then try again"
        ) from None
    if isinstance(value, dict) and isinstance(said := value.get("error"), dict):
        phase, message = printable(str(said.get("phase"))), printable(str(said.get("message")))
        remedy = _REMEDIES.get(phase, "see the runner's error output")
        raise DeviceError(f"{where}: the runner failed at the {phase}: {message}; {remedy}")
    try:
        run = Run.model_validate(_seconds(value))
    except (ValidationError, ValueError, TypeError) as error:
        first = error.errors()[0] if isinstance(error, ValidationError) else {"loc": (), "msg": str(error)}
        raise DeviceError(
            f"{where}: the runner's document is not what this edgekit reads: {'.'.join(map(str, first['loc']))}: "
            f"{first['msg']}; build the runner again: edgekit runner build"
        ) from None
    if tuple(phase.name for phase in run.phases) != PHASES or len(run.samples_s) != len(run.cpu_s):
        raise DeviceError(
            f"{where}: the runner's document lacks phases or samples; build it again: edgekit runner build"
        )
    return run


def _refuse(constant: str) -> float:
    raise ValueError(f"it has a {constant}")


def _seconds(value: Any) -> dict[str, Any]:
    """The document with its `*_ns` integers as `*_s` seconds."""
    if not isinstance(value, dict) or value.get("edgekit_runner") != 1:
        raise ValueError('it has no "edgekit_runner": 1')
    found: dict[str, Any] = {}
    for key, item in value.items():
        if key.endswith("_ns"):
            found[f"{key[:-3]}_s"] = [_second(i) for i in item] if isinstance(item, list) else _second(item)
        elif key != "edgekit_runner":
            found[key] = item
    return found


def _second(ns: Any) -> float | None:
    if ns is None:
        return None
    if type(ns) is not int or not 0 <= ns < 1 << 63:
        raise ValueError(f"{ns!r} is no time in ns")
    return ns / 1e9


def write_tensors(path: Path, examples: Sequence[Mapping[str, np.ndarray]]) -> None:
    """Write an inputs file: for each example its float32, int32 or int64 arrays by name.

    Text lines and raw little-endian values by turns, so that a C program can stream it:

        edgekit-tensors 1
        <examples>
        then for each example        <tensors>
        and for each of its tensors  <dtype> <rank> <dimension>... <name>
                                     the values, in C order, followed by a line end
    """
    with path.open("wb") as file:
        file.write(b"%s\n%d\n" % (_MAGIC, len(examples)))
        for example in examples:
            file.write(b"%d\n" % len(example))
            for name, array in example.items():
                if array.dtype.name not in _DTYPES:
                    raise InputError(f"{path}: {name} is {array.dtype}; runners take {', '.join(_DTYPES)}: cast it")
                if not name or name != name.strip() or "\n" in name or len(name.encode()) > 200:
                    raise InputError(f"{path}: {name!r} cannot be a tensor's name here; rename the model's tensor")
                head = [array.dtype.name, str(array.ndim), *map(str, array.shape), name]
                file.write(" ".join(head).encode() + b"\n")
                file.write(np.ascontiguousarray(array, _DTYPES[array.dtype.name]).tobytes() + b"\n")


def read_tensors(path: Path) -> list[dict[str, np.ndarray]]:
    """The examples of a tensors file. It may come from a device, so anything odd in it is a `DeviceError`."""
    try:
        with path.open("rb") as file:
            left = path.stat().st_size
            if _line(file, path) != _MAGIC.decode():
                raise DeviceError(f"{path}: is no tensors file of a runner; run it again")
            examples = [dict(_example(file, path, left)) for _ in range(_count(_line(file, path), left, path))]
            if file.read(1):
                raise DeviceError(f"{path}: goes on after its last example; run it again")
            return examples
    except OSError as error:
        raise DeviceError(f"{path}: cannot be read: {error.strerror}; run it again") from None


def _example(file: BinaryIO, path: Path, size: int) -> Iterator[tuple[str, np.ndarray]]:
    for _ in range(_count(_line(file, path), size, path)):
        dtype, _, rest = _line(file, path).partition(" ")
        rank, _, rest = rest.partition(" ")
        if dtype not in _DTYPES or rank not in [str(i) for i in range(9)]:
            raise DeviceError(f"{path}: has a tensor of type {dtype!r} and rank {rank!r}; run it again")
        *dims, name = rest.split(" ", int(rank))
        if len(dims) != int(rank):
            raise DeviceError(f"{path}: a tensor of rank {rank} has {len(dims)} dimensions; run it again")
        shape = tuple(_count(dim, size, path) for dim in dims)
        length = math.prod(shape) * np.dtype(_DTYPES[dtype]).itemsize
        data = file.read(length + 1) if length < size else b""
        if len(data) != length + 1 or not data.endswith(b"\n"):
            raise DeviceError(f"{path}: ends within {name} of shape {list(shape)}; the run was cut off: run it again")
        yield name, np.frombuffer(data, _DTYPES[dtype], math.prod(shape)).reshape(shape).astype(dtype)


def _line(file: BinaryIO, path: Path) -> str:
    line = file.readline(1000)
    if not line.endswith(b"\n"):
        raise DeviceError(f"{path}: is cut off, or no tensors file of a runner; run it again")
    return line[:-1].decode(errors="replace")


def _count(text: str, size: int, path: Path) -> int:
    """A count or dimension, which cannot be more than the file has bytes."""
    if not (text.isascii() and text.isdigit() and len(text) < 19 and int(text) <= size):
        raise DeviceError(f"{path}: says {text!r} where a count should stand; run it again")
    return int(text)
