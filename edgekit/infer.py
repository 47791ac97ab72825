"""Run a model file in this process: `.onnx` by ONNX Runtime, `.tflite` by LiteRT. No torch.

    session = open_model(Path("model.tflite"))
    session({"input_ids": ids, "attention_mask": mask})["logits"]       # arrays by the torch model's names

A TFLite file has batch 1 and a fixed length a signature (`len_32`, `len_128`); a session hides both.
"""

import importlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from edgekit.errors import InputError
from edgekit.progress import quiet
from edgekit.records import Kind, Tensor
from edgekit.tasks import OUTPUTS, Arrays, Feature, Predict, pad


@dataclass(frozen=True)
class Session:
    """An opened model file. `inputs` and `outputs` say -1 for what is dynamic, and TFLite's greatest length."""

    path: Path
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    run: Callable[[Arrays], dict[str, np.ndarray]]

    def __call__(self, feeds: Arrays) -> dict[str, np.ndarray]:
        """Outputs by name for [batch, length] or [batch, channels, height, width] inputs by name, cast as the file
        wants them. What the model does not take is ignored; raises `InputError` for a missing or too long input.
        """
        missing = [tensor.name for tensor in self.inputs if tensor.name not in feeds]
        if missing:
            raise InputError(f"{self.path}: needs the input {', '.join(missing)}; given: {', '.join(feeds)}")
        return self.run({t.name: np.asarray(feeds[t.name]).astype(t.dtype, copy=False) for t in self.inputs})


def open_model(path: Path, threads: int = 1) -> Session:
    """Open a `.onnx` or `.tflite` file. Raises `InputError` where the file or what runs it is absent or broken."""
    openers = {".onnx": _onnx, ".tflite": _tflite}
    if path.suffix not in openers:
        raise InputError(f"{path}: no runtime is known for this file; it must end in {' or '.join(openers)}")
    if not path.is_file():
        raise InputError(f"{path}: there is no such model file")
    return openers[path.suffix](path, threads)


def _runtime(path: Path, *modules: str) -> Any:
    """The first of `modules` that is installed."""
    for module in modules:
        try:
            return importlib.import_module(module)
        except ModuleNotFoundError:
            continue
    raise InputError(f'{path}: running it needs {modules[0].split(".")[0]}: pip install "edgekit[run]"')


def _onnx(path: Path, threads: int) -> Session:
    ort = _runtime(path, "onnxruntime")
    state = vars(importlib.import_module("onnxruntime.capi.onnxruntime_pybind11_state"))
    failures = tuple(e for e in state.values() if isinstance(e, type) and issubclass(e, Exception))
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    try:
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except failures as error:
        raise InputError(f"{path}: ONNX Runtime cannot load it: {error}") from None

    def tensors(nodes: Any) -> tuple[Tensor, ...]:
        types = [str(node.type).removeprefix("tensor(").removesuffix(")") for node in nodes]
        return tuple(
            Tensor(
                name=node.name,
                dtype={"float": "float32", "double": "float64"}.get(kind, kind),
                shape=tuple(d if isinstance(d, int) else -1 for d in node.shape),  # a dynamic one has a name
            )
            for node, kind in zip(nodes, types, strict=True)
        )

    outputs = tensors(session.get_outputs())
    names = [tensor.name for tensor in outputs]

    def run(feeds: Arrays) -> dict[str, np.ndarray]:
        try:
            return dict(zip(names, session.run(names, dict(feeds)), strict=True))
        except failures as error:
            shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in feeds.items())
            raise InputError(f"{path}: cannot run on {shapes}: {error}") from None

    return Session(path, tensors(session.get_inputs()), outputs, run)


def _tflite(path: Path, threads: int) -> Session:
    runtime = _runtime(path, "ai_edge_litert.interpreter", "tflite_runtime.interpreter")
    try:
        with quiet():
            interpreter = runtime.Interpreter(model_path=str(path), num_threads=threads)
            interpreter.allocate_tensors()  # it prints a line the first time
            runners = [interpreter.get_signature_runner(name) for name in interpreter.get_signature_list()]
    except (ValueError, RuntimeError) as error:
        raise InputError(f"{path}: LiteRT cannot load it: {error}") from None
    if not runners:
        raise InputError(f"{path}: has no signature, so its inputs have no names; export it with edgekit")
    if "tflite_runtime" in runtime.__name__ and any(
        len(tensor["quantization_parameters"]["scales"]) > 1 for tensor in interpreter.get_tensor_details()
    ):
        raise InputError(
            f"{path}: is int8 with a scale for each channel, which tflite-runtime computes wrongly; "
            'install LiteRT: pip install "edgekit[run]"'
        )
    by_length = dict(sorted((_length(runner.get_input_details()), runner) for runner in runners))
    longest = max(by_length)

    def tensors(details: Mapping[str, Any]) -> tuple[Tensor, ...]:
        return tuple(
            Tensor(name=name, dtype=np.dtype(d["dtype"]).name, shape=tuple(map(int, d["shape"])))
            for name, d in details.items()
        )

    def run(feeds: Arrays) -> dict[str, np.ndarray]:
        given = _length({name: {"shape": array.shape} for name, array in feeds.items()})
        if given > longest:
            raise InputError(f"{path}: {given} tokens given, the model takes at most {longest}; cut the input")
        length = next(length for length in by_length if length >= given)
        rows = [by_length[length](**_row(feeds, i, length)) for i in range(len(next(iter(feeds.values()))))]
        found = {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
        return {name: a[:, :given] if per_token(name, a.ndim) else a for name, a in found.items()}

    greatest = by_length[longest]
    return Session(path, tensors(greatest.get_input_details()), tensors(greatest.get_output_details()), run)


def _length(details: Mapping[str, Mapping[str, Any]]) -> int:
    """The sequence length of inputs [batch, length]; 0 for images, which have none."""
    return max((int(d["shape"][1]) for d in details.values() if len(d["shape"]) == 2), default=0)


def _row(feeds: Arrays, row: int, length: int) -> dict[str, np.ndarray]:
    """One row of each input, filled up to `length` with zeros, which the attention mask's zeros hide."""
    return {
        name: np.pad(a[row : row + 1], ((0, 0), (0, length - a.shape[1]))) if a.ndim == 2 else a[row : row + 1]
        for name, a in feeds.items()
    }


def per_token(name: str, rank: int) -> bool:
    """Whether an output of this rank, batch dimension included, has an entry for each token on axis 1."""
    return name in ("start_logits", "end_logits", "last_hidden_state") or (name == "logits" and rank == 3)


def predictor(run: Callable[[Arrays], Arrays], kind: Kind, pad_id: int = 0, batch_size: int = 32) -> Predict:
    """`run` (a session, or any function from a padded batch to outputs by name) as a function from features to
    unpadded outputs, those in `OUTPUTS`. Sequences of like length share a batch.
    """

    def predict(features: Sequence[Feature]) -> list[Arrays]:
        found: list[Arrays] = [{}] * len(features)
        sizes = [len(next(iter(feature.inputs.values()))) for feature in features]
        order = sorted(range(len(features)), key=sizes.__getitem__)
        for start in range(0, len(order), batch_size):
            part = order[start : start + batch_size]
            outputs = run(pad([features[i] for i in part], pad_id))
            for row, i in enumerate(part):
                found[i] = {
                    name: outputs[name][row, : sizes[i]] if per_token(name, outputs[name].ndim) else outputs[name][row]
                    for name in OUTPUTS[kind]
                }
        return found

    return predict


def example(session: Session, length: int) -> dict[str, np.ndarray]:
    """One row of ones for each input, of `length` tokens or one image: something to time a model on."""
    shapes = {t.name: (1, length) if len(t.shape) == 2 else (1, *t.shape[1:]) for t in session.inputs}
    return {t.name: np.ones(shapes[t.name], dtype=t.dtype) for t in session.inputs}


def latency(sessions: Sequence[Session], feeds: Arrays, budget_s: float = 1.0) -> tuple[float, ...]:
    """The median seconds of one call of each session on `feeds`, timed side by side for about `budget_s`.

    Interleaved A B B A, so that a drift of the machine's speed meets all alike; at least six calls each.
    """
    for session in sessions:
        session(feeds)
    taken: list[list[float]] = [[] for _ in sessions]
    order = [*range(len(sessions)), *reversed(range(len(sessions)))]
    end = time.perf_counter() + budget_s
    while len(taken[0]) < 6 or time.perf_counter() < end:
        for i in order:
            start = time.perf_counter()
            sessions[i](feeds)
            taken[i].append(time.perf_counter() - start)
    return tuple(median(seconds) for seconds in taken)
