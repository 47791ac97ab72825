"""Token classification: one label a word, for example named entities as BIO tags.

A word is labelled at its first token; the others are not learnt (-100). A sentence that is too long becomes several
windows that overlap, and each word belongs to the one window where it has most context, so that none is lost or
counted twice:

    words      a b c d e f g h          windows of five words, overlapping by two
    window 1   a b c d e                belong to it: a b c d
    window 2         d e f g h          belong to it: e f g h
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.errors import InputError
from edgekit.records import Kind, Metric, Record, Score
from edgekit.tasks import Arrays, Feature, Predict, Row, _columns, _encode, _metrics

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

KIND: Kind = "token-classification"

# Words, numbers and single marks; a Chinese or Japanese character is a word, as in the data sets of those languages.
_WORD = re.compile(
    r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]|[^\W\u3040-\u30ff\u3400-\u9fff]+(?:[-'’.][^\W_]+)*|[^\w\s]"
)


class Params(Record):
    """Columns: a list of words and a list of tags, of the same length (in CSV: separated by spaces)."""

    tokens: str = "tokens"
    tags: str = "tags"
    labels: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Sentence:
    """Words and the index of each word's label."""

    words: tuple[str, ...]
    tags: tuple[int, ...]


def labels(params: Params, rows: Iterable[Row]) -> tuple[str, ...]:
    """The recipe's labels, or the sorted tags of the training rows."""
    found = set[str]() if params.labels else {tag for row in rows for tag in _columns.words(row, params.tags)}
    return _columns.label_set(params.labels, found, params.tags)


def examples(params: Params, rows: Iterable[Row], labels: tuple[str, ...], *, training: bool) -> list[Sentence]:
    """One `Sentence` a row; words and tags must pair up."""
    return [read(row, params.tokens, params.tags, labels) for row in rows]


def read(row: Row, tokens: str, tags: str, labels: tuple[str, ...]) -> Sentence:
    """The `Sentence` in a row."""
    words, names = _columns.words(row, tokens), _columns.words(row, tags)
    if len(words) != len(names):
        raise InputError(
            f'{row.where}: column "{tokens}" holds {len(words)} words and column "{tags}" {len(names)} tags; '
            "give each word one tag"
        )
    return Sentence(words, tuple(_columns.index(row, tags, name, labels) for name in names))


def encoder(params: Any, folder: Path, max_length: int) -> "Tokenizer":
    """The tokenizer in `folder`; windows overlap by a quarter of their length."""
    from tokenizers.pre_tokenizers import ByteLevel

    found = _encode.tokenizer(folder, max_length, stride=max_length // 4)
    if isinstance(found.pre_tokenizer, ByteLevel):
        found.pre_tokenizer.add_prefix_space = True  # words come one by one, and each must look like one inside a text
    return found


def features(params: Any, examples: Sequence[Sentence], labels: tuple[str, ...], encoder: "Tokenizer") -> list[Feature]:
    """One feature a window; `extra` holds the `words` that belong to it and the `positions` of their first tokens."""
    encodings = _encode.encodings(encoder, [list(example.words) for example in examples], is_pretokenized=True)
    found: list[Feature] = []
    for index, (example, encoding) in enumerate(zip(examples, encodings, strict=True)):
        tags = np.array(example.tags, dtype=np.int64)
        windows = [encoding, *encoding.overflowing]
        for window, (words, positions) in zip(windows, _shares(windows), strict=True):
            target = np.full(len(window.ids), -100, dtype=np.int64)
            if len(tags):
                target[positions] = tags[words]
            extra = {"words": words, "positions": positions}
            found.append(Feature(_encode.inputs(window), index, {"labels": target}, extra))
    return found


def _shares(windows: Sequence["Encoding"]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """For each window the words that belong to it, and the positions of their first tokens."""
    starts = [_first_tokens(window) for window in windows]
    best: dict[int, tuple[float, int]] = {}
    for number, (words, positions) in enumerate(starts):
        left = positions - positions[:1] if number else np.full(len(words), np.inf)
        right = positions[-1:] - positions if number < len(windows) - 1 else np.full(len(words), np.inf)
        for word, context in zip(words.tolist(), np.minimum(left, right).tolist(), strict=True):
            # on a tie the earlier window, since a later one can begin inside the word
            best[word] = max(best.get(word, (-1.0, 0)), (context, -number))
    for number, (words, positions) in enumerate(starts):
        own = np.array([best[word][1] == -number for word in words.tolist()], dtype=bool)
        yield words[own], positions[own]


def _first_tokens(window: "Encoding") -> tuple[np.ndarray, np.ndarray]:
    """The words in a window and where each begins."""
    ids = np.array([-1 if word is None else word for word in window.word_ids], dtype=np.int64)
    begins = np.flatnonzero((ids >= 0) & (ids != np.concatenate([[-1], ids[:-1]])))
    return ids[begins], begins


def word_logits(
    examples: Sequence[Sentence], labels: Sequence[str], features: Sequence[Feature], outputs: Sequence[Arrays]
) -> list[np.ndarray]:
    """Outputs mapped back to words: one float array [words, labels] an example.

    A word without a token (a stray control character) counts as "O", or as the first label where there is no "O".
    """
    none = np.eye(len(labels))[labels.index("O") if "O" in labels else 0]
    found = [np.tile(none, (len(example.words), 1)) for example in examples]
    for feature, output in zip(features, outputs, strict=True):
        found[feature.example][feature.extra["words"]] = output["logits"][feature.extra["positions"]]
    return found


def score(
    params: Params,
    examples: Sequence[Sentence],
    labels: tuple[str, ...],
    features: Sequence[Feature],
    outputs: Sequence[Arrays],
) -> Score:
    """Micro F1: of entities by seqeval (Ramshaw and Marcus, 1995; CoNLL's rules) where the labels are BIO tags, else
    of words by scikit-learn, leaving out "O". Parts: F1 of each entity type, or label, with its support.
    """
    found = [logits.argmax(-1).tolist() for logits in word_logits(examples, labels, features, outputs)]
    return (_entity_score if _is_bio(labels) else _word_score)([example.tags for example in examples], found, labels)


def _entity_score(true: Sequence[Sequence[int]], found: Sequence[Sequence[int]], labels: Sequence[str]) -> Score:
    from seqeval import metrics

    seqeval: Any = metrics
    tags = [[[labels[i] for i in row] for row in rows] for rows in (true, found)]
    report = seqeval.classification_report(*tags, output_dict=True, zero_division=0)
    parts = tuple(
        Metric(name=name, value=float(row["f1-score"]), support=int(row["support"]))
        for name, row in report.items()
        if not name.endswith(" avg")
    )
    value = float(report["micro avg"]["f1-score"])
    return Score(metric="entity_f1", value=value, examples=len(true), parts=parts)


def _word_score(true: Sequence[Sequence[int]], found: Sequence[Sequence[int]], labels: Sequence[str]) -> Score:
    from sklearn import metrics

    sklearn: Any = metrics
    flat = [[i for row in rows for i in row] for rows in (true, found)]
    counted = [i for i, name in enumerate(labels) if name != "O"]
    value = float(sklearn.f1_score(*flat, labels=counted, average="micro", zero_division=0))
    parts = _metrics.f1(flat[0], flat[1], labels, skip=("O",))
    return Score(metric="micro_f1", value=value, examples=len(true), parts=parts)


def answer(
    params: Params, given: Sequence[str], labels: tuple[str, ...], encoder: "Tokenizer", predict: Predict
) -> dict[str, Any]:
    """`words` with label and probability, and for BIO labels the `entities`; `start` and `end` count characters."""
    (text,) = _columns.given_texts(given, ("text",), "token classification")
    found = list(_WORD.finditer(text))
    tags, sure = tag_words([m.group() for m in found], labels, encoder, predict)
    words = [
        {"text": m.group(), "label": tag, "probability": p, "start": m.start(), "end": m.end()}
        for m, tag, p in zip(found, tags, sure, strict=True)
    ]
    if not _is_bio(labels):
        return {"text": " ".join(f"{word['text']}/{word['label']}" for word in words), "words": words}
    entities = [
        {
            "text": text[found[a].start() : found[b].end()],
            "label": kind,
            "start": found[a].start(),
            "end": found[b].end(),
        }
        for kind, a, b in _entities(tags)
    ]
    shown = "\n".join(f"{entity['label']}\t{entity['text']}" for entity in entities)
    return {"text": shown or "(no entities)", "entities": entities, "words": words}


def tag_words(
    words: Sequence[str], labels: tuple[str, ...], encoder: "Tokenizer", predict: Predict
) -> tuple[list[str], list[float]]:
    """The label of each word and its probability."""
    example = [Sentence(tuple(words), ())]
    parts = features(None, example, labels, encoder)
    logits = word_logits(example, labels, parts, predict(parts))[0]
    shares = np.exp(logits - logits.max(-1, keepdims=True))
    shares /= shares.sum(-1, keepdims=True)
    return [labels[i] for i in shares.argmax(-1)], [round(float(p), 4) for p in shares.max(-1)]


def _is_bio(labels: Sequence[str]) -> bool:
    return all(re.fullmatch(r"O|[BI]-.+", name) for name in labels) and any(name != "O" for name in labels)


def _entities(tags: Sequence[str]) -> list[tuple[str, int, int]]:
    """Type, first and last word of each entity; an `I-` that continues nothing begins one, as in seqeval."""
    found: list[tuple[str, int, int]] = []
    for i, tag in enumerate(tags):
        if tag == "O":
            continue
        mark, kind = tag.split("-", 1)
        if mark == "I" and found and found[-1][0] == kind and found[-1][2] == i - 1:
            found[-1] = (kind, found[-1][1], i)
        else:
            found.append((kind, i, i))
    return found
