"""Augment: more training rows, by putting other words in the place of some.

    row            "a fine film"                       each word is replaced with probability p_t, in N_a copies,
    candidates     fine: good great nice …             by one of its K candidates, all as likely:
    copies         "a great film" "the fine movie" …

Jiao et al., "TinyBERT", 2020, section 3.3 and algorithm 1. A word that is one token of the model gets the K likeliest
words that a masked language model puts in its place, with the rest of its text around it; one of several tokens the K
nearest by the cosine of word vectors (GloVe), or stays where there are none. Candidates are whole words, never the word
itself; marks, numbers and labels stay, and each tag stays with its word. Equal copies are dropped.

The cost is the language model, which is asked for the words that some copy replaces; `rows` bounds it. The paper masks
one word at a time; here words at least seven tokens apart share a sequence, in which no more is masked than such a
model is trained to find, and a text longer than `max_length` is read in overlapping windows.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from edgekit import plugins, progress
from edgekit.errors import InputError
from edgekit.pipeline import ROWS, Job, language, models, text, weights
from edgekit.recipe import Augment, Pretrain, Recipe
from edgekit.records import Facts
from edgekit.tasks import Feature, Row, pad

WORD = re.compile(r"[^\W\d_]+(?:[-'’][^\W\d_]+)*")
"""What may be replaced, and by what: letters, with marks only between them."""
_AT_ONCE = 256
"""Rows whose words are asked for together: short sequences share a batch."""
_BATCH = 64
_APART = 7
"""Tokens between words that are masked at once; so they are a seventh of a sequence at most."""


class _Asked(NamedTuple):
    """What the language model is asked at once: `words` by number, the `ids` around them, and their places in these."""

    words: tuple[int, ...]
    ids: list[int]
    places: tuple[int, ...]


class _Words:
    """A row's words, over all of its texts, and what stands between them."""

    def __init__(self, values: Sequence[str | list[str]]) -> None:
        self.parts = [_split(value) if isinstance(value, str) else value for value in values]
        self.whole = [isinstance(value, str) for value in values]
        self.at = [(n, i) for n, parts in enumerate(self.parts) for i, p in enumerate(parts) if WORD.fullmatch(p)]

    def words(self) -> list[str]:
        return [self.parts[n][i] for n, i in self.at]

    def replaced(self, new: Mapping[int, str]) -> list[str | list[str]]:
        """The texts with the words of these numbers replaced."""
        parts = [list(each) for each in self.parts]
        for number, word in new.items():
            n, i = self.at[number]
            parts[n][i] = word
        return ["".join(each) if whole else each for each, whole in zip(parts, self.whole, strict=True)]


class _Model:
    """A masked language model in a folder, asked for words."""

    def __init__(self, folder: Path, job: Job, candidates: int) -> None:
        self.model = models.load(folder, job.data.kind, job.data.labels, new_head=True)
        self.head = language.load(folder, self.model)
        if torch.cuda.is_available():
            torch.nn.ModuleList((self.model, self.head)).cuda()
        self.tokenizer = text.tokenizer(folder)
        self.tokens = language.Tokens.of(folder)
        self.opening, self.closing = text.around(self.tokenizer)
        self.room = job.recipe.max_length - len(self.opening) - len(self.closing)
        self.word = _whole_words(self.tokenizer)
        allowed = torch.zeros(language.words(self.model).num_embeddings, dtype=torch.bool)
        allowed[[id for id in self.word if id < len(allowed)]] = True
        self.never = ~allowed.to(self.model.device)
        self.count = max(0, min(candidates, int(allowed.sum()) - 1))

    def asked(self, row: _Words, wanted: set[int]) -> Iterator[_Asked]:
        """The sequences that ask for each wanted word that is one token."""
        numbers = {place: number for number, place in enumerate(row.at) if number in wanted}
        for n, (parts, whole) in enumerate(zip(row.parts, row.whole, strict=True)):
            ids, parts_of = self._encode(parts, whole)
            count = Counter(parts_of)
            single = {
                position: numbers[n, part]
                for position, part in enumerate(parts_of)
                if count[part] == 1 and (n, part) in numbers and ids[position] not in self.tokens.special
            }
            yield from self._shared(ids, single)

    def _encode(self, parts: list[str], whole: bool) -> tuple[list[int], list[int]]:
        """Ids of a text, and for each the part that it belongs to; a token over two parts belongs to the second."""
        if not whole:
            encoding = self.tokenizer.encode(parts, is_pretokenized=True, add_special_tokens=False)
            return encoding.ids, encoding.word_ids
        encoding = self.tokenizer.encode("".join(parts), add_special_tokens=False)
        ends = np.cumsum([len(part) for part in parts])
        last = [max(start, end - 1) for start, end in encoding.offsets]
        return encoding.ids, np.searchsorted(ends, last, side="right").tolist()

    def _shared(self, ids: list[int], words: Mapping[int, int]) -> Iterator[_Asked]:
        """`words`, by their places in `ids`, in as few sequences as `_APART` allows."""
        half = max(1, self.room // 2)
        together: dict[tuple[int, int], list[int]] = {}
        for place in words:
            together.setdefault((place // half, place % _APART), []).append(place)
        for (number, _), places in together.items():
            start = max(0, min(number * half - half // 2, len(ids) - self.room))
            window = [*self.opening, *ids[start : start + self.room], *self.closing]
            its = tuple(place - start + len(self.opening) for place in places)
            yield _Asked(tuple(words[place] for place in places), window, its)

    @torch.inference_mode()
    def likeliest(self, asked: Sequence[_Asked]) -> list[dict[int, list[str]]]:
        """The K likeliest words in each place, by the number of the word that stands there."""
        found: list[dict[int, list[str]]] = [{} for _ in asked]
        order = sorted(range(len(asked)), key=lambda i: len(asked[i].ids))
        for start in range(0, len(order), _BATCH):
            some = order[start : start + _BATCH]
            batch = pad([_masked(asked[i], self.tokens.mask) for i in some], models.pad_id(self.model))
            at = [(row, i, k) for row, i in enumerate(some) for k in range(len(asked[i].places))]
            rows, places = torch.tensor([row for row, _, _ in at]), torch.tensor([asked[i].places[k] for _, i, k in at])
            states = language.states(self.model, batch)[rows, places]
            logits = self.head(states, language.words(self.model).weight).masked_fill(self.never, -torch.inf)
            own = torch.tensor([[asked[i].ids[asked[i].places[k]]] for _, i, k in at], device=logits.device)
            best = logits.scatter(1, own, -torch.inf).topk(self.count).indices.tolist()
            for (_, i, k), ids in zip(at, best, strict=True):
                found[i][asked[i].words[k]] = [self.word[id] for id in ids]
        return found


class _Vectors:
    """Word vectors in a file: the words nearest to one by cosine."""

    def __init__(self, path: Path) -> None:
        try:
            with np.load(path, allow_pickle=False) as file:
                self.words = bytes(file["words"].item()).decode().split("\n")
                vectors = file["vectors"].astype(np.float32)
        except (OSError, ValueError, KeyError, AttributeError, UnicodeDecodeError) as error:
            raise InputError(
                f"{path}: is no .npz of word vectors: {error}; it holds `words`, newline-joined bytes, and `vectors` "
                "[words, dimensions]"
            ) from None
        if vectors.shape[:1] != (len(self.words),) or vectors.ndim != 2:
            raise InputError(f"{path}: has {len(self.words)} words and vectors of the shape {[*vectors.shape]}")
        self.matrix = vectors / np.linalg.norm(vectors, axis=1, keepdims=True).clip(1e-9)

    @cached_property
    def _row(self) -> dict[str, int]:
        return {word: i for i, word in reversed(list(enumerate(self.words)))}

    @cached_property
    def _no_words(self) -> np.ndarray:
        return np.array([not WORD.fullmatch(word) for word in self.words])

    def nearest(self, words: Sequence[str], count: int) -> dict[str, list[str]]:
        """The `count` nearest words to each; none for one that has no vector."""
        found: dict[str, list[str]] = {}
        rows = {word: row for word in words if (row := self._row.get(word, self._row.get(word.lower()))) is not None}
        known = list(rows)
        for start in range(0, len(known), _BATCH):
            some = known[start : start + _BATCH]
            own = [rows[word] for word in some]
            likeness = self.matrix[own] @ self.matrix.T
            likeness[:, self._no_words] = -np.inf
            likeness[np.arange(len(own)), own] = -np.inf
            best = np.argsort(-likeness, axis=1, kind="stable")[:, :count]
            for word, row, values in zip(some, best, likeness, strict=True):
                found[word] = [self.words[i] for i in row if values[i] > -np.inf]
        return found


def check(recipe: Recipe, base: Path) -> None:
    """Raise `InputError` where the recipe's task, steps or word vectors allow no augment step; before any work."""
    task, params = plugins.use("tasks", recipe.task, "recipe: task")
    if task.KIND not in ("text-classification", "token-classification") or not _columns(task.KIND, params)[0]:
        raise InputError(
            f"recipe: step augment: replaces words in rows of text or token classification, and {recipe.task.name} is "
            f"{task.KIND}; leave the step out"
        )
    made = [step for step in recipe.step if isinstance(step, Pretrain) and not (step.layers or step.student)]
    if not made or made[-1].method.name not in ("masked_lm", "distilbert"):
        raise InputError(
            "recipe: step augment: needs a masked language model; put a pretrain step with the method masked_lm and "
            "neither layers nor student before it"
        )
    if recipe.text and recipe.text.vectors:
        _Vectors(weights.vectors(recipe.text.vectors, base))


def run(step: Augment, job: Job) -> Facts:
    """Write the new rows, in the task's own columns, to `job.out`."""
    check(job.recipe, job.data.base)
    _, params = plugins.use("tasks", job.recipe.task, "recipe: task")
    columns, labels = _columns(job.data.kind, params)
    model = _Model(job.parents["language"].folder, job, step.candidates)
    text_table = job.recipe.text
    named = text_table.vectors if text_table else None
    vectors = _Vectors(weights.vectors(named, job.data.base)) if named else None
    total = job.data.count()  # which also checks every row
    wanted = min(step.rows or total, total)
    rows, seen, made = _spread(job.data.rows("train"), wanted, total), 0, 0
    path = job.out / ROWS
    with path.open("w", encoding="utf-8") as file, progress.bar("augment", wanted) as show:
        while some := list(islice(rows, _AT_ONCE)):
            for values in _copies(step, some, columns, labels, model, vectors, job.recipe.seed):
                file.write(json.dumps(values, ensure_ascii=False) + "\n")
                made += 1
            seen += len(some)
            show(min(seen, wanted))
    if not made:
        raise InputError("recipe: step augment: no word of the training rows could be replaced; leave the step out")
    return Facts(bytes=path.stat().st_size, changed=f"{made} rows made from {seen}")


def _spread(rows: Iterable[Row], wanted: int, total: int) -> Iterator[tuple[int, Row]]:
    """`wanted` of the `total` rows at even distances, each with its number."""
    return ((i, row) for i, row in enumerate(rows) if (i + 1) * wanted // total > i * wanted // total)


def _columns(kind: str, params: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The columns of words, and those of labels."""
    names = (("text", "text_b"), ("label",)) if kind == "text-classification" else (("tokens",), ("tags",))
    words, labels = (tuple(filter(None, (getattr(params, name, None) for name in part))) for part in names)
    return words, labels


def _copies(
    step: Augment, rows: Sequence[tuple[int, Row]], columns: tuple[str, ...], labels: tuple[str, ...], model: _Model,
    vectors: _Vectors | None, seed: int,
) -> Iterator[dict[str, Any]]:  # fmt: skip
    """The copies of some rows, each of which has its number in the split."""
    given = [_Words([_value(row, column) for column in columns]) for _, row in rows]
    draws = [
        np.random.default_rng([seed, number]).random((2, step.copies, len(its.at)))
        for (number, _), its in zip(rows, given, strict=True)
    ]
    wanted = [np.flatnonzero((draw[0] < step.replace).any(0)).tolist() for draw in draws]
    asked = [list(model.asked(g, set(w))) for g, w in zip(given, wanted, strict=True)]
    likeliest = iter(model.likeliest([each for some in asked for each in some]))
    candidates: list[dict[int, list[str]]] = []
    for some in asked:
        said = [next(likeliest) for _ in some]
        candidates.append({number: words for each in said for number, words in each.items() if words})
    if vectors:
        split = [
            {w: g.words()[w] for w in ws if w not in c} for g, ws, c in zip(given, wanted, candidates, strict=True)
        ]
        near = vectors.nearest(sorted({word for each in split for word in each.values()}), step.candidates)
        for each, found in zip(split, candidates, strict=True):
            found |= {number: near[word] for number, word in each.items() if near.get(word)}
    for (_, row), its, draw, found in zip(rows, given, draws, candidates, strict=True):
        kept = {column: row.values[column] for column in labels}
        before = {json.dumps(its.replaced({}))}
        for chances, picks in zip(*draw, strict=True):
            new = {w: c[int(picks[w] * len(c))] for w, c in found.items() if chances[w] < step.replace}
            texts = its.replaced(new)
            if (same := json.dumps(texts)) not in before:
                before.add(same)
                yield {**dict(zip(columns, texts, strict=True)), **kept}


def _value(row: Row, column: str) -> str | list[str]:
    """A text, or a list of words; what token classification reads as words at white space stays a text's words."""
    value = row.values[column]
    return value if isinstance(value, str) else list(value)


def _split(value: str) -> list[str]:
    """A text as its words and what stands between them.

    >>> _split("a fine film, 2 h")
    ['', 'a', ' ', 'fine', ' ', 'film', ', 2 ', 'h', '']
    """
    return re.split(f"({WORD.pattern})", value)


def _masked(asked: _Asked, mask: int) -> Feature:
    ids = np.array(asked.ids, dtype=np.int64)
    ids[list(asked.places)] = mask
    inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    return Feature(inputs, 0)


def _whole_words(tokenizer: Any) -> dict[int, str]:
    """The tokens that stand for a whole word by themselves, by id.

    WordPiece marks a token that continues a word (##s), the others one that begins it (a space before, "Ġ" or "▁").
    """
    spec = json.loads(tokenizer.to_str())["model"]
    prefix = spec.get("continuing_subword_prefix")
    starts = None if spec["type"] == "WordPiece" else ("Ġ", "▁")
    found: dict[int, str] = {}
    for token, id in tokenizer.get_vocab(with_added_tokens=False).items():
        if (starts and not token.startswith(starts)) or (prefix and token.startswith(prefix)):
            continue
        word = tokenizer.decode([id]).strip() if starts else token
        if WORD.fullmatch(word):
            found[id] = word
    return found
