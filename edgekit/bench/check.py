"""Right first: does the model compute on the device what it computes here? Asked before any time is believed.

The bundle's own examples, cut to each length, run on the device and in this process by the same format's runtime.

    device   [0.1, 2.0]  [3.0, 1.0]        cosine per example, largest difference,
    host     [0.1, 2.1]  [0.9, 1.0]   ->   and how many arg-max decisions flipped: here one of two
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgekit import bundle, infer
from edgekit.bundle import Manifest, ModelFile
from edgekit.errors import DeviceError, InputError
from edgekit.records import Format
from edgekit.results import OutputCheck
from edgekit.tasks import OUTPUTS, Arrays

_LEAST_COSINE = {False: 0.9999, True: 0.99}
_MOST_FLIPS = {False: 0.0, True: 0.02}
"""By whether the model is quantized. Float kernels of two processors differ by rounding alone (cosines here: 1 - 1e-6);
dynamic int8 rounds activations whose last bit may differ, which moves logits by about a hundredth."""


@dataclass(frozen=True)
class Subject:
    """One model of a verified, opened bundle."""

    path: Path
    """As the user gave it, for messages."""
    folder: Path
    manifest: Manifest
    model: ModelFile
    lengths: tuple[int | None, ...]
    """In tokens, those that are asked for; one `None` for images."""
    examples: Sequence[Arrays]

    @property
    def file(self) -> Path:
        """The model file."""
        return self.folder / self.model.path

    @property
    def sha256(self) -> str:
        """Of the model file, from the verified manifest."""
        return next(file.sha256 for file in self.manifest.files if file.path == self.model.path)

    def signature(self, length: int | None) -> str | None:
        """The TFLite signature for inputs of this length; `None`: the file's only one, or ONNX."""
        return f"len_{length}" if self.model.format == "tflite" and length is not None else None

    def feed(self, inputs: Arrays, length: int | None) -> dict[str, np.ndarray]:
        """One example as the model takes it: batch 1, the model's types, cut to `length` and, for TFLite, filled up."""
        found: dict[str, np.ndarray] = {}
        for tensor in self.model.inputs:
            array = np.asarray(inputs[tensor.name])
            if array.ndim == 1 and length is not None:
                array = array[:length]
                if self.model.format == "tflite":
                    fill = self.manifest.pad_id if tensor.name == "input_ids" else 0
                    array = np.pad(array, (0, length - len(array)), constant_values=fill)
            found[tensor.name] = array[None].astype(tensor.dtype)
        return found

    def timed(self, length: int | None) -> dict[str, np.ndarray]:
        """What is timed: the longest example, repeated until it fills `length`, so that no token is padding."""
        longest = max(self.examples, key=lambda inputs: max(array.shape[0] for array in inputs.values()))
        if length is None:
            return self.feed(longest, None)
        return self.feed({name: np.resize(array, length) for name, array in longest.items()}, length)


def subject(
    path: Path, folder: Path, manifest: Manifest, format: Format | None = None, lengths: Sequence[int] = ()
) -> Subject:
    """The bundle's model in `format`, by default the target's first, at `lengths`, by default all that it was built
    for. Raises `InputError` for a length that the model does not have."""
    model = manifest.model(format)
    if lengths and not model.lengths:
        raise InputError(f"--length: {path} takes images, which have no length in tokens")
    for length in lengths:
        if model.format == "tflite" and length not in model.lengths:
            there = ", ".join(map(str, model.lengths))
            raise InputError(f"--length {length}: {path} has one TFLite signature each for {there}")
        if length > max(model.lengths):
            raise InputError(f"--length {length}: {path} was built for at most {max(model.lengths)} tokens")
    asked = tuple(sorted(set(lengths))) or model.lengths or (None,)
    return Subject(path, folder, manifest, model, asked, bundle.examples(folder, path))


def reference(subject: Subject, threads: int) -> dict[int | None, list[Arrays]]:
    """This host's outputs for every example, by length."""
    session = infer.open_model(subject.file, threads)
    return {length: [session(subject.feed(e, length)) for e in subject.examples] for length in subject.lengths}


def compare(
    subject: Subject, expected: Mapping[int | None, Sequence[Arrays]], found: Mapping[int | None, Sequence[Arrays]]
) -> tuple[OutputCheck, ...]:
    """The device's outputs against the host's, one check an output over all lengths. Padding is left out."""
    checks: list[OutputCheck] = []
    for name in OUTPUTS[subject.manifest.kind]:
        cosines: list[float] = []
        worst, flips, decisions = 0.0, 0, 0
        for length, outputs in expected.items():
            for inputs, ours, theirs in zip(subject.examples, outputs, found[length], strict=True):
                a, b = (_valid(name, side, inputs, length) for side in (ours, theirs))
                if a.shape != b.shape:
                    raise DeviceError(
                        f"output {name} at length {length}: the device gave shape {list(b.shape)}, this host "
                        f"{list(a.shape)}; is the device's runtime of another version?"
                    )
                cosines.append(_cosine(a, b))
                worst = max(worst, float(np.max(np.abs(a - b), initial=0.0)) if np.isfinite(b).all() else math.inf)
                if name != "sentence_embedding":
                    differ = a.argmax(-1) != b.argmax(-1)
                    flips, decisions = flips + int(np.sum(differ)), decisions + differ.size
        quantized = subject.model.quantized
        good = min(cosines) >= _LEAST_COSINE[quantized] and flips <= math.ceil(decisions * _MOST_FLIPS[quantized])
        checks.append(
            OutputCheck(
                output=name,
                examples=len(cosines),
                cosine_min=min(cosines),
                max_abs_diff=worst,
                flips=flips,
                decisions=decisions,
                passed=good,
            )
        )
    return tuple(checks)


def _valid(name: str, outputs: Arrays, inputs: Arrays, length: int | None) -> np.ndarray:
    """One example's output in float64, without the batch dimension and without what belongs to padding."""
    if name not in outputs:
        raise DeviceError(f"the device gave no output {name}; it gave {', '.join(outputs)}")
    array = np.asarray(outputs[name], dtype=np.float64)
    if not array.ndim or not len(array):
        raise DeviceError(f"the device gave output {name} with shape {list(array.shape)}, which has no batch")
    tokens = next((len(given[:length]) for given in inputs.values() if given.ndim == 1), None)
    return array[0, :tokens] if infer.per_token(name, array.ndim) else array[0]


def unpadded(subject: Subject, outputs: Arrays, inputs: Arrays, length: int | None) -> dict[str, np.ndarray]:
    """The task's outputs of one example as `edgekit.tasks.Predict` gives them."""
    return {name: _valid(name, outputs, inputs, length) for name in OUTPUTS[subject.manifest.kind]}


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    """Of two arrays, flattened; 0 where one is not finite, 1 where both are all zero."""
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return 0.0
    norms = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(np.clip(a.ravel() @ b.ravel() / norms, -1, 1)) if norms else float(np.array_equal(a, b))
