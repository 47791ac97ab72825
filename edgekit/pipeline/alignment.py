"""Teachers with a tokenizer of their own: which of their rows and tokens speak of the student's.

    student's   [CLS] th ##e  quick  [SEP]        a row's labels stand at the first token of each word
    teacher's   <s>   the  qui ck    </s>
    compared          1->1     2->3               word by word; the student's other tokens are left out

Each example is encoded twice, for the student and for the teacher. Outputs of one a row (text classification, sentence
embeddings, images) are compared as they are. Outputs of one a token are compared at the labelled tokens, in their order
within the example, also where one tokenizer cuts it into more windows than the other. Hidden states, attention and
answer positions have no such pairs. TextBrewer's counterpart is a batch for the teacher beside that for the student.
"""

import itertools
import json
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from edgekit.errors import InputError
from edgekit.pipeline.signals import Signals
from edgekit.records import Kind
from edgekit.tasks import Feature, pad

_MOST_LOST = 0.1
"""The share of examples that may not pair up before something is wrong with the tokenizers."""


class _Pairs(NamedTuple):
    """Of one of the student's rows: int64 [words] each. A row of one output has one word at no position."""

    rows: np.ndarray
    theirs: np.ndarray
    mine: np.ndarray


class _Flat(Sequence[_Pairs]):
    """Pairs of many rows in a few bytes a word."""

    def __init__(self) -> None:
        self._words, self._ends = array("q"), array("q", [0])

    def add(self, pairs: _Pairs) -> None:
        """The next row's."""
        self._words.frombytes(np.stack(pairs).astype(np.int64).tobytes())
        self._ends.append(len(self._words))

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, row: Any) -> Any:
        own = np.array(self._words[self._ends[row] : self._ends[row + 1]], dtype=np.int64)
        return _Pairs(*own.reshape(3, -1))


@dataclass(frozen=True)
class Alignment:
    """A teacher's `features`, and for each of the student's features which of them and which tokens are compared."""

    features: Sequence[Feature]
    pairs: Sequence[_Pairs]
    per_token: bool

    def batch(self, batch: Mapping[str, Tensor], pad_id: int) -> dict[str, Tensor]:
        """The teacher's padded batch for the rows of the student's `batch`; its `index` counts `features`."""
        wanted = {row for i in batch["index"].tolist() for row in self.pairs[i].rows.tolist()}
        rows = sorted(wanted) or [0]  # no word of the batch has a counterpart: any row will do, nothing of it is used
        own = pad([self.features[row] for row in rows], pad_id)
        device = next(tensor.device for name, tensor in batch.items() if name != "index")
        return {"index": torch.tensor(rows), **{name: torch.from_numpy(a).to(device) for name, a in own.items()}}

    def translated(self, said: Signals, rows: Tensor, batch: Mapping[str, Tensor]) -> Signals:
        """What the teacher said of `rows` of its features, as of the student's `batch`: outputs, where they are one a
        row also hidden states, in the teacher's tokens."""
        place = {row: at for at, row in enumerate(rows.tolist())}
        pairs = [self.pairs[i] for i in batch["index"].tolist()]
        if not self.per_token:
            at = [place[int(each.rows[0])] for each in pairs]
            outputs = {name: output[at] for name, output in said.outputs.items()}
            hidden = {layer: states[at] for layer, states in said.hidden.items()}
            return Signals(outputs, hidden, {}, {}, {}, batch.get("attention_mask", said.mask[at]), said.depth)
        logits = said.outputs["logits"]
        mask = torch.zeros_like(batch["attention_mask"])
        found = logits.new_zeros(*mask.shape, logits.shape[-1])
        for number, each in enumerate(pairs):
            mine = torch.from_numpy(each.mine).to(mask.device)
            found[number, mine] = logits[[place[row] for row in each.rows.tolist()], each.theirs.tolist()]
            mask[number, mine] = 1
        return Signals({"logits": found}, {}, {}, {}, {}, mask, said.depth)


def same_input(one: Path, other: Path) -> bool:
    """Whether the models in two folders read the same ids (or pixels) for the same input."""
    return _reader(one) == _reader(other)


def _reader(folder: Path) -> object:
    """What turns input into ids or pixels, less what is set anew when it is loaded."""
    for name in ("tokenizer.json", "preprocessor_config.json"):
        if (folder / name).is_file():
            content = json.loads((folder / name).read_text(encoding="utf-8"))
            return {key: value for key, value in content.items() if key not in ("truncation", "padding", "version")}
    raise InputError(f"{folder}: has neither tokenizer.json nor preprocessor_config.json; save the tokenizer there")


def longest(config: Mapping[str, Any]) -> int | None:
    """The most tokens that a model with this config.json reads; `None` where it does not say."""
    most = config.get("max_position_embeddings")
    # these number positions from behind the padding id
    numbered = config.get("model_type") in ("roberta", "xlm-roberta", "camembert", "mpnet")
    return most if most is None or not numbered else most - config.get("pad_token_id", 1) - 1


def check(kind: Kind, folder: Path) -> None:
    """Refuse a kind of model whose outputs cannot be compared across tokenizers; `folder` is the teacher's."""
    if kind == "question-answering":
        raise InputError(
            f"{folder}: this teacher's tokenizer is not the student's, and answer positions in other tokens cannot be "
            "compared; take a teacher with the student's tokenizer"
        )


def align(student: Sequence[Feature], teacher: Sequence[Feature], kind: Kind, folder: Path) -> Alignment:
    """Pair the features that the same examples gave for the student and for the teacher in `folder`.

    Raises `InputError` for answer positions, and where the examples do not pair up.
    """
    check(kind, folder)
    per_token = kind == "token-classification"
    pairs, lost, examples = _Flat(), 0, 0
    others = _by_example(teacher)
    other, its = next(others, (None, range(0)))
    for example, numbers in _by_example(student):
        examples += 1
        while other is not None and other < example:
            other, its = next(others, (None, range(0)))
        found = its if other == example else range(0)
        if per_token:
            mine, theirs = _labelled(student, numbers), _labelled(teacher, found)
            if len(mine) != len(theirs):
                lost += 1
                mine = theirs = np.zeros((0, 2), dtype=np.int64)
            for number in numbers:
                here = mine[:, 0] == number
                pairs.add(_Pairs(theirs[here, 0], theirs[here, 1], mine[here, 1]))
        else:
            if len(numbers) != len(found):
                raise InputError(
                    f"{folder}: example {example + 1} gives {len(found)} rows for this teacher and {len(numbers)} for "
                    "the student; take a teacher with the student's tokenizer"
                )
            none = np.zeros(1, dtype=np.int64)
            for row in found:
                pairs.add(_Pairs(np.array([row]), none, none))
    if lost > _MOST_LOST * examples:
        raise InputError(
            f"{folder}: {lost} of {examples} examples have other labelled words for this teacher than for the "
            "student; take a teacher whose tokenizer sees the same words"
        )
    return Alignment(teacher, pairs, per_token)


def _by_example(features: Sequence[Feature]) -> Iterator[tuple[int, range]]:
    """Each example's number, ascending, and the features that it gave, which follow each other."""
    for example, those in itertools.groupby(enumerate(features), lambda each: each[1].example):
        numbers = [number for number, _ in those]
        yield example, range(numbers[0], numbers[-1] + 1)


def _labelled(features: Sequence[Feature], numbers: Sequence[int]) -> np.ndarray:
    """(feature, position) of each labelled token of an example, in order: int64 [words, 2]."""
    found = [
        np.stack([np.full(len(at), number), at], axis=1)
        for number in numbers
        for at in [np.flatnonzero(features[number].labels["labels"] != -100)]
    ]
    return np.concatenate([*found, np.zeros((0, 2), dtype=np.int64)]).astype(np.int64)
