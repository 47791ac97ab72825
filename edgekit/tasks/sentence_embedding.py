"""Sentence embedding: a vector a text, such that like texts point the same way. Distilled without labels: training
rows are texts alone; scoring rows are pairs with a similarity that people gave.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.errors import InputError
from edgekit.records import Kind, Metric, Record, Score
from edgekit.tasks import Arrays, Feature, Predict, Row, _columns, _encode

if TYPE_CHECKING:
    from tokenizers import Tokenizer

KIND: Kind = "sentence-embedding"


class Params(Record):
    """Columns. Training rows hold `text`, or else the two texts of a pair; scoring rows a pair and its score."""

    text: str = "text"
    text_a: str = "text_a"
    text_b: str = "text_b"
    score: str = "score"


@dataclass(frozen=True)
class Example:
    """One text, or two and how alike they are (on any scale; more is more alike)."""

    texts: tuple[str, ...]
    score: float | None = None


def labels(params: Params, rows: Iterable[Row]) -> tuple[str, ...]:
    """None."""
    return ()


def examples(params: Params, rows: Iterable[Row], labels: tuple[str, ...], *, training: bool) -> list[Example]:
    """One `Example` a row."""
    if not training:
        return [Example(_pair(row, params), _columns.number(row, params.score)) for row in rows]
    return [
        Example((_columns.text(row, params.text),) if params.text in row.values else _pair(row, params)) for row in rows
    ]


def _pair(row: Row, params: Params) -> tuple[str, str]:
    return _columns.text(row, params.text_a), _columns.text(row, params.text_b)


def encoder(params: Params, folder: Path, max_length: int) -> "Tokenizer":
    """The tokenizer in `folder`."""
    return _encode.tokenizer(folder, max_length)


def features(
    params: Params, examples: Sequence[Example], labels: tuple[str, ...], encoder: "Tokenizer"
) -> list[Feature]:
    """One feature a text, two a pair; tokens beyond the encoder's length are cut off."""
    texts = [(index, text) for index, example in enumerate(examples) for text in example.texts]
    encodings = _encode.encodings(encoder, [text for _, text in texts])
    return [Feature(_encode.inputs(e), index) for (index, _), e in zip(texts, encodings, strict=True)]


def score(
    params: Params,
    examples: Sequence[Example],
    labels: tuple[str, ...],
    features: Sequence[Feature],
    outputs: Sequence[Arrays],
) -> Score:
    """Spearman's rank correlation, by SciPy, of the pairs' cosines with their scores, as in the STS benchmark (Cer et
    al., 2017). Part: Pearson's. Undefined, hence 0, where all cosines or all scores are equal.
    """
    from scipy import stats

    vectors = np.stack([output["sentence_embedding"] for output in outputs]).astype(np.float64)
    left, right = vectors[0::2], vectors[1::2]
    cosines = (left * right).sum(1) / np.maximum(np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1), 1e-12)
    given = np.array([example.score for example in examples], dtype=np.float64)
    if len(given) < 2 or np.ptp(cosines) == 0 or np.ptp(given) == 0:
        return Score(metric="spearman", value=0.0, examples=len(examples))
    scipy: Any = stats
    part = Metric(name="pearson", value=float(scipy.pearsonr(cosines, given).statistic))
    value = float(scipy.spearmanr(cosines, given).statistic)
    return Score(metric="spearman", value=value, examples=len(examples), parts=(part,))


def answer(
    params: Params, given: Sequence[str], labels: tuple[str, ...], encoder: "Tokenizer", predict: Predict
) -> dict[str, Any]:
    """For one text its `embedding`, for two their `cosine` too."""
    if len(given) not in (1, 2):
        raise InputError(f"sentence embedding takes one text, or two to compare; found {len(given)}")
    texts = _columns.given_texts(given, ("text", "second text")[: len(given)], "sentence embedding")
    outputs = predict(features(params, [Example(texts)], labels, encoder))
    vectors = [output["sentence_embedding"].astype(np.float64) for output in outputs]
    found: dict[str, Any] = {
        "dimensions": len(vectors[0]),
        "norms": [round(float(np.linalg.norm(vector)), 6) for vector in vectors],
        "embeddings": [[round(float(x), 6) for x in vector] for vector in vectors],
    }
    if len(vectors) == 1:
        shown = " ".join(f"{x:.4f}" for x in vectors[0][:8])
        return {"text": f"{len(vectors[0])} dimensions: {shown} ...", **found}
    cosine = float(vectors[0] @ vectors[1] / (np.linalg.norm(vectors[0]) * np.linalg.norm(vectors[1])))
    return {"text": f"cosine {cosine:.4f}", "cosine": round(cosine, 6), **found}
