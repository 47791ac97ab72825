"""Extractive question answering as SQuAD: the answer is a span of the context, found by the logits of its first and
last token. A long context becomes several windows that overlap; the best span of all windows answers.
"""

import json
import re
import string
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from edgekit.errors import InputError
from edgekit.records import Kind, Metric, Record, Score
from edgekit.tasks import Arrays, Feature, Predict, Row, _columns, _encode

if TYPE_CHECKING:
    from tokenizers import Tokenizer

KIND: Kind = "question-answering"
_LONGEST_ANSWER = 30  # tokens, as in BERT's run_squad


class Params(Record):
    """Columns; `answers` holds SQuAD's `[{"text": ..., "answer_start": ...}, ...]`, or the same as `datasets` turns it,
    `{"text": [...], "answer_start": [...]}`; in CSV as JSON.
    """

    context: str = "context"
    question: str = "question"
    answers: str = "answers"


@dataclass(frozen=True)
class Example:
    """A question on a context, and the answers that count as right, each with its first character in the context."""

    question: str
    context: str
    answers: tuple[tuple[str, int], ...]


class _Span(NamedTuple):
    score: float
    start: int
    end: int


def labels(params: Params, rows: Iterable[Row]) -> tuple[str, ...]:
    """None: a span is two positions."""
    return ()


def examples(params: Params, rows: Iterable[Row], labels: tuple[str, ...], *, training: bool) -> list[Example]:
    """One `Example` a row; each answer must stand where it says."""
    return [
        Example(_columns.text(row, params.question), _columns.text(row, params.context), _answers(row, params))
        for row in rows
    ]


def _answers(row: Row, params: Params) -> tuple[tuple[str, int], ...]:
    context, value = _columns.text(row, params.context), _columns.cell(row, params.answers)
    where = f'{row.where}: column "{params.answers}"'
    wanted = f'{where} must hold [{{"text": ..., "answer_start": ...}}, ...] with at least one answer'
    try:
        value = json.loads(value) if isinstance(value, str) else value
        if isinstance(value, list):
            found = tuple((one["text"], one["answer_start"]) for one in value)
        else:
            found = tuple(zip(value["text"], value["answer_start"], strict=True))
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{wanted}, found {str(value)[:60]!r}") from None
    if not found:
        raise InputError(f"{wanted}; questions without an answer cannot be used, remove the row")
    for text, start in found:
        if not isinstance(text, str) or not text or not isinstance(start, int) or isinstance(start, bool):
            raise InputError(f"{wanted}, found the text {text!r} and the start {start!r}")
        if start < 0 or context[start : start + len(text)] != text:
            there = context[max(start, 0) : max(start, 0) + len(text)]
            raise InputError(
                f'{where}: answer "{text}" does not stand at character {start} of the context, "{there}" does'
            )
    return found


def encoder(params: Params, folder: Path, max_length: int) -> "Tokenizer":
    """The tokenizer in `folder`; windows of the context overlap by a quarter of `max_length`."""
    if max_length < 32:
        raise InputError(f'recipe: key "max_length": question answering needs at least 32 tokens, found {max_length}')
    return _encode.tokenizer(folder, max_length, stride=max_length // 4, cut="only_second")


def features(
    params: Params, examples: Sequence[Example], labels: tuple[str, ...], encoder: "Tokenizer"
) -> list[Feature]:
    """One feature a window. A window without the first answer aims at its first token, as BERT does.

    `extra`: `offsets` int32 [length, 2], the characters of each token, and `inside` bool [length], whether it is of the
    context. A question may take a third of the length; what is beyond is cut off.
    """
    questions = _shortened([example.question for example in examples], encoder)
    pairs = [(question, example.context) for question, example in zip(questions, examples, strict=True)]
    found: list[Feature] = []
    for index, (example, encoding) in enumerate(zip(examples, _encode.encodings(encoder, pairs), strict=True)):
        for window in (encoding, *encoding.overflowing):
            inside = np.array([part == 1 for part in window.sequence_ids])
            offsets = np.array(window.offsets, dtype=np.int32)
            target = _target(example, offsets, inside) if example.answers else {}
            found.append(Feature(_encode.inputs(window), index, target, {"offsets": offsets, "inside": inside}))
    return found


def _shortened(questions: Sequence[str], encoder: "Tokenizer") -> list[str]:
    """Questions of at most a third of the encoder's length in tokens."""
    cut: Any = encoder.truncation
    room = cut["max_length"] // 3
    encodings = _encode.encodings(encoder, [("", question) for question in questions], add_special_tokens=False)
    return [
        question if len(encoding.ids) <= room else question[: encoding.offsets[room - 1][1]]
        for question, encoding in zip(questions, encodings, strict=True)
    ]


def _target(example: Example, offsets: np.ndarray, inside: np.ndarray) -> dict[str, np.ndarray]:
    text, start = example.answers[0]
    touched = np.flatnonzero(inside & (offsets[:, 1] > start) & (offsets[:, 0] < start + len(text)))
    whole = len(touched) and offsets[touched[0], 0] <= start and offsets[touched[-1], 1] >= start + len(text)
    first, last = (touched[0], touched[-1]) if whole else (0, 0)
    return {"start_positions": np.array(first), "end_positions": np.array(last)}


def score(
    params: Params,
    examples: Sequence[Example],
    labels: tuple[str, ...],
    features: Sequence[Feature],
    outputs: Sequence[Arrays],
) -> Score:
    """SQuAD 1.1's F1 of words, and exact match: the best over the right answers, averaged over the questions, in 0..1
    (Rajpurkar et al., 2016, https://arxiv.org/abs/1606.05250, and their evaluation script).
    """
    spans = _best(len(examples), features, outputs)
    found = [example.context[span.start : span.end] for example, span in zip(examples, spans, strict=True)]
    pairs = [(text, [right for right, _ in example.answers]) for text, example in zip(found, examples, strict=True)]
    f1 = np.mean([max(word_f1(text, right) for right in answers) for text, answers in pairs])
    exact = np.mean([any(normalised(text) == normalised(right) for right in answers) for text, answers in pairs])
    part = Metric(name="exact_match", value=float(exact))
    return Score(metric="f1", value=float(f1), examples=len(examples), parts=(part,))


def normalised(text: str) -> str:
    """Lower case, without punctuation, articles and superfluous spaces, as SQuAD compares answers."""
    bare = "".join(c for c in text.lower() if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", bare).split())


def word_f1(found: str, right: str) -> float:
    """The harmonic mean of precision and recall of the words in common."""
    a, b = normalised(found).split(), normalised(right).split()
    common = sum((Counter(a) & Counter(b)).values())
    return 2 * common / (len(a) + len(b)) if common else 0.0


def _best(examples: int, features: Sequence[Feature], outputs: Sequence[Arrays]) -> list[_Span]:
    """The span of characters with the greatest sum of logits, for each example over its windows."""
    found = [_Span(-np.inf, 0, 0)] * examples
    for feature, output in zip(features, outputs, strict=True):
        inside, offsets = feature.extra["inside"], feature.extra["offsets"]
        start = np.where(inside, output["start_logits"], -np.inf)
        end = np.where(inside, output["end_logits"], -np.inf)
        for more in range(min(_LONGEST_ANSWER, len(start))):
            sums = start[: len(start) - more] + end[more:]
            at = int(sums.argmax())
            if sums[at] > found[feature.example].score:
                found[feature.example] = _Span(float(sums[at]), int(offsets[at, 0]), int(offsets[at + more, 1]))
    return found


def answer(
    params: Params, given: Sequence[str], labels: tuple[str, ...], encoder: "Tokenizer", predict: Predict
) -> dict[str, Any]:
    """The `answer`, its `start` and `end` in characters of the context, and its `score` (the sum of two logits)."""
    question, context = _columns.given_texts(given, ("question", "context"), "question answering")
    parts = features(params, [Example(question, context, ())], labels, encoder)
    (span,) = _best(1, parts, predict(parts))
    text = context[span.start : span.end].lstrip()  # some tokenizers count the space before a word to it
    start = span.end - len(text)
    return {"text": text, "answer": text, "start": start, "end": span.end, "score": round(span.score, 4)}
