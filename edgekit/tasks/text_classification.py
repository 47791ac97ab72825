"""Text classification: one label for a text, or for a pair of texts (paraphrase, entailment)."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.errors import InputError
from edgekit.records import Kind, Record, Score
from edgekit.tasks import Arrays, Feature, Predict, Row, _columns, _encode, _metrics

if TYPE_CHECKING:
    from tokenizers import Tokenizer

KIND: Kind = "text-classification"


class Params(Record):
    """Columns, and what counts: `f1` is that of the second of two labels."""

    text: str = "text"
    text_b: str | None = None
    """The second text of a pair."""
    label: str = "label"
    labels: tuple[str | int, ...] | None = None
    metric: _metrics.Name = "accuracy"


@dataclass(frozen=True)
class Example:
    """A text or a pair, and the index of its label."""

    texts: tuple[str, ...]
    label: int


def labels(params: Params, rows: Iterable[Row]) -> tuple[str, ...]:
    """The recipe's labels, or those of the training rows: numbers by value, else in alphabetical order."""
    found = set[str]() if params.labels else {_columns.label(row, params.label) for row in rows}
    names = _columns.label_set(params.labels, found, params.label)
    if params.metric == "f1" and len(names) != 2:
        raise InputError(f'recipe: task: metric "f1" needs two labels, found {len(names)}; use "macro_f1"')
    return names


def examples(params: Params, rows: Iterable[Row], labels: tuple[str, ...], *, training: bool) -> list[Example]:
    """One `Example` a row."""
    columns = (params.text, *((params.text_b,) if params.text_b else ()))
    return [
        Example(tuple(_columns.text(row, column) for column in columns), _columns.label_id(row, params.label, labels))
        for row in rows
    ]


def encoder(params: Params, folder: Path, max_length: int) -> "Tokenizer":
    """The tokenizer in `folder`; a pair that is too long loses tokens of its longer text."""
    return _encode.tokenizer(folder, max_length)


def features(
    params: Params, examples: Sequence[Example], labels: tuple[str, ...], encoder: "Tokenizer"
) -> list[Feature]:
    """One feature an example; tokens beyond the encoder's length are cut off."""
    encodings = _encode.encodings(encoder, [e.texts if len(e.texts) == 2 else e.texts[0] for e in examples])
    return [
        Feature(_encode.inputs(encoding), index, {"labels": np.array(example.label)})
        for index, (example, encoding) in enumerate(zip(examples, encodings, strict=True))
    ]


def score(
    params: Params,
    examples: Sequence[Example],
    labels: tuple[str, ...],
    features: Sequence[Feature],
    outputs: Sequence[Arrays],
) -> Score:
    """`params.metric` of the likeliest labels; parts: the other metrics."""
    found = [int(output["logits"].argmax()) for output in outputs]
    return _metrics.classification(params.metric, [example.label for example in examples], found, labels)


def answer(
    params: Params, given: Sequence[str], labels: tuple[str, ...], encoder: "Tokenizer", predict: Predict
) -> dict[str, Any]:
    """The likeliest `label` and the `probabilities` of all."""
    texts = _columns.given_texts(
        given, (params.text, *((params.text_b,) if params.text_b else ())), "text classification"
    )
    (output,) = predict(features(params, [Example(texts, 0)], labels, encoder))
    return likeliest(output["logits"], labels)


def likeliest(logits: np.ndarray, labels: Sequence[str]) -> dict[str, Any]:
    """What a user sees of logits [labels]."""
    shares = np.exp(logits - logits.max())
    shares = shares / shares.sum()
    best = int(shares.argmax())
    probabilities = {name: round(float(share), 4) for name, share in zip(labels, shares, strict=True)}
    return {"text": f"{labels[best]} ({shares[best]:.1%})", "label": labels[best], "probabilities": probabilities}
