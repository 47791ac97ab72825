"""Tasks: how raw rows become model inputs, how outputs become a score, and what a user sees. NumPy only, no torch.

A task is used while training and scoring (`pipeline`), by `edgekit run` and on devices, so it knows rows, arrays
and encoders but neither a training library nor a runtime. A plugin here holds `KIND`, a `Params` record (its
columns and options) and the functions of `Task`. To add one, copy `text_classification.py`.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from edgekit.records import Kind, Score

Arrays = Mapping[str, np.ndarray]


class Row(NamedTuple):
    """One row of data, where it stands (`dev.csv: row 17`, for messages), and where relative paths in it start."""

    where: str
    values: Mapping[str, Any]
    folder: Path = Path()


@dataclass(frozen=True)
class Feature:
    """One sequence (or image) as a model takes it, without padding.

    `inputs`: `input_ids`, `attention_mask`, `token_type_ids`, each int64 [length], or `pixel_values` float32
    [channels, height, width]. `labels`: what training aims at, by the names of Hugging Face's forward (`labels`
    scalar or [length] with -100 where nothing is to be learnt; `start_positions`, `end_positions`), empty where
    there are none. `example` is the index of the example it was made from: a long text gives several features.
    `extra` is what the task's own `score` needs to go back from tokens to words or characters.
    """

    inputs: Arrays
    example: int
    labels: Arrays = field(default_factory=dict[str, np.ndarray])
    extra: Mapping[str, Any] = field(default_factory=dict[str, Any])


Predict = Callable[[Sequence[Feature]], list[Arrays]]
"""Features to one dict of unpadded outputs each, by the names in `OUTPUTS`, without the batch dimension."""

OUTPUTS: dict[Kind, tuple[str, ...]] = {
    "text-classification": ("logits",),
    "token-classification": ("logits",),
    "question-answering": ("start_logits", "end_logits"),
    "sentence-embedding": ("sentence_embedding",),
    "image-classification": ("logits",),
}
"""What a model of each kind gives: logits [labels], [length, labels], [length] each; an embedding [dim]; [labels]."""


def pad(features: Sequence[Feature], pad_id: int, length: int | None = None) -> dict[str, np.ndarray]:
    """Inputs and labels of `features` as one batch, [batch, length] each, padded on the right.

    `length` defaults to the longest sequence. `input_ids` are padded with `pad_id`, labels a token with -100 (which
    losses ignore), everything else with 0; images and scalar labels are stacked as they are.
    """
    batch: dict[str, np.ndarray] = {}
    for part, names in (("inputs", features[0].inputs), ("labels", features[0].labels)):
        for name in names:
            arrays = [getattr(feature, part)[name] for feature in features]
            if arrays[0].ndim == 1 and (part == "inputs" or name == "labels"):
                fill = pad_id if name == "input_ids" else -100 if part == "labels" else 0
                widest = length or max(len(array) for array in arrays)
                padded = np.full((len(arrays), widest), fill, dtype=np.int64)
                for row, array in zip(padded, arrays, strict=True):
                    row[: len(array)] = array
                batch[name] = padded
            else:
                batch[name] = np.stack(arrays)
    return batch


class Task(Protocol):
    """What a module in this folder holds. `params` is its own `Params` throughout."""

    KIND: Kind
    Params: type[Any]

    def labels(self, params: Any, rows: Iterable[Row]) -> tuple[str, ...]:
        """The label set: the recipe's, or what the training rows hold, sorted. Empty for tasks without labels."""
        ...

    def examples(self, params: Any, rows: Iterable[Row], labels: tuple[str, ...], *, training: bool) -> list[Any]:
        """Rows as checked examples; a bad row is an `InputError` that names file, row and column."""
        ...

    def encoder(self, params: Any, folder: Path, max_length: int) -> Any:
        """What encodes raw input, from the `tokenizer.json` or `preprocessor_config.json` in a model's folder."""
        ...

    def features(self, params: Any, examples: Sequence[Any], labels: tuple[str, ...], encoder: Any) -> list[Feature]:
        """Examples as the model takes them."""
        ...

    def score(
        self,
        params: Any,
        examples: Sequence[Any],
        labels: tuple[str, ...],
        features: Sequence[Feature],
        outputs: Sequence[Arrays],
    ) -> Score:
        """How good `outputs` (one a feature) are, by the metric that the field uses."""
        ...

    def answer(self, params: Any, given: Sequence[str], labels: tuple[str, ...], encoder: Any, predict: Predict) -> Any:
        """What a user sees for `given` (texts, or paths of images): a JSON value with the key `text` to print."""
        ...
