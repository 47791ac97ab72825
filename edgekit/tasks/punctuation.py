"""Punctuation restoration: the mark after each word of a lower-case transcript, as token classification.

    words   thank you   mr speaker are you  ready
    labels  O     COMMA O  PERIOD  O   O    QUESTION      ->      thank you, mr speaker. are you ready?

Only marks are put in: the model does not predict capitals, so none are made up.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field

from edgekit.records import Record, Score
from edgekit.tasks import Arrays, Feature, Predict, Row, _columns, _metrics
from edgekit.tasks.token_classification import KIND, Sentence, encoder, features, read, tag_words, word_logits

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["KIND", "Params", "answer", "encoder", "examples", "features", "labels", "score"]

_MARKS = {"O": "", "COMMA": ",", "PERIOD": ".", "QUESTION": "?"}


class Params(Record):
    """Columns: a list of words, and a list of what follows each: O, COMMA, PERIOD or QUESTION."""

    tokens: str = "tokens"
    tags: str = "tags"
    window: int = Field(default=90, ge=8)
    """The longest training example in words; their lengths vary from an eighth of it."""


def labels(params: Params, rows: Iterable[Row]) -> tuple[str, ...]:
    """Always O, COMMA, PERIOD, QUESTION."""
    return tuple(_MARKS)


def examples(params: Params, rows: Iterable[Row], labels: tuple[str, ...], *, training: bool) -> list[Sentence]:
    """Rows as they are for scoring. For training, rows are cut into windows (the same at every call)."""
    found = [read(row, params.tokens, params.tags, labels) for row in rows]
    if not training:
        return found
    rng = np.random.default_rng(0)
    return [part for sentence in found for part in _windows(sentence, params.window, rng)]


def _windows(sentence: Sentence, longest: int, rng: np.random.Generator) -> Iterator[Sentence]:
    """Successive windows of varying length: half of them end where a sentence ends, as transcripts mostly do, the
    others anywhere, so that the model meets text that begins and stops in mid-sentence.
    """
    ends = np.flatnonzero(np.array(sentence.tags) >= list(_MARKS).index("PERIOD")) + 1
    start = 0
    while start < len(sentence.words):
        stop = min(start + int(rng.integers(longest // 8, longest, endpoint=True)), len(sentence.words))
        inside = ends[(ends > start) & (ends <= stop)]
        if len(inside) and rng.random() < 0.5:
            stop = int(inside[-1])
        yield Sentence(sentence.words[start:stop], sentence.tags[start:stop])
        start = stop


def score(
    params: Params,
    examples: Sequence[Sentence],
    labels: tuple[str, ...],
    features: Sequence[Feature],
    outputs: Sequence[Arrays],
) -> Score:
    """The mean F1 of COMMA and PERIOD over all words, by scikit-learn. Parts: F1 of each mark with its support."""
    true = [tag for example in examples for tag in example.tags]
    found = np.concatenate([logits.argmax(-1) for logits in word_logits(examples, labels, features, outputs)]).tolist()
    parts = _metrics.f1(true, found, labels, skip=("O",))
    headline = [part.value for part in parts if part.name in ("COMMA", "PERIOD")]
    return Score(metric="macro_f1", value=sum(headline) / len(headline), examples=len(examples), parts=parts)


def answer(
    params: Params, given: Sequence[str], labels: tuple[str, ...], encoder: "Tokenizer", predict: Predict
) -> dict[str, Any]:
    """The text with its marks; `words` tells the mark after each word and the model's probability for it.

    The words stay as they are given, and a word that already ends in a mark gets no second one.
    """
    (text,) = _columns.given_texts(given, ("text",), "punctuation")
    words = text.split()
    tags, sure = tag_words(words, labels, encoder, predict)
    marked = [word if word[-1] in ",.?!;:" else word + _MARKS[tag] for word, tag in zip(words, tags, strict=True)]
    details = [
        {"word": word, "mark": _MARKS[tag], "probability": p} for word, tag, p in zip(words, tags, sure, strict=True)
    ]
    return {"text": " ".join(marked), "words": details}
