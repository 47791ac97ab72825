"""Text: a recipe's plain text as sequences to pre-train on, packed so that nothing is padded.

    rows        "The fox ran." "It was late." "A dog saw it."              max_length = 10
    sequences   [CLS] the fox ran . [SEP] it was late [SEP]
                [CLS] . [SEP] a dog saw it . [SEP]

Rows follow each other with the tokenizer's closing token between them, over the ends of sequences: the FULL-SENTENCES
of Liu et al., "RoBERTa", 2019, section 4.2. Rows are read and encoded as a stream.
"""

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from edgekit import plugins
from edgekit.corpora import Split
from edgekit.errors import InputError, nearest
from edgekit.pipeline import encoded
from edgekit.recipe import Recipe, Text
from edgekit.store import sha256, sources
from edgekit.tasks import Feature, Row

_FILE = "tokenizer.json"
_AT_ONCE = 1000


def features(recipe: Recipe, base: Path, folder: Path, split: Split = "train") -> Iterator[Feature]:
    """The sequences of a split of the recipe's text, by the tokenizer in `folder`; `example` is their number.

    All are `max_length` long but the last. Raises `InputError` for a row without text, and a split without any.
    """
    text = recipe.text
    if text is None:
        raise InputError("recipe: a pretrain step needs plain text; add a table [text] with its data")
    corpus, params = plugins.use("corpora", text.data, "recipe: text")
    encoder = tokenizer(folder)
    opening, closing = around(encoder)
    room = recipe.max_length - len(opening) - len(closing)
    number, held = 0, list[int]()
    for ids in _encoded(corpus.rows(params, split, base), text, encoder):
        held += ([*closing] if held else []) + ids
        while len(held) >= room:
            yield _feature([*opening, *held[:room], *closing], number)
            number, held = number + 1, held[room:]
    if held:
        yield _feature([*opening, *held, *closing], number)
    elif not number:
        raise InputError(f"recipe: text: its {split} split holds no text; add some")


def stored(recipe: Recipe, base: Path, folder: Path, shared: Path | None) -> Sequence[Feature]:
    """The sequences of the training split, kept under `shared` and read one by one; without it, a list of them."""
    found = features(recipe, base, folder)
    if shared is None or recipe.text is None:
        return list(found)
    corpus, params = plugins.use("corpora", recipe.text.data, "recipe: text")
    source, versions = sources((__name__, encoded.__name__, corpus.__name__))
    ingredients = {
        "text": corpus.fingerprint(params, base), "column": recipe.text.column, "max_length": recipe.max_length,
        "tokenizer": sha256(folder / _FILE), "source": source, "versions": versions,
    }  # fmt: skip
    return encoded.stored(shared / "encoded", ingredients, iter(lambda: list(islice(found, _AT_ONCE)), []))


def tokenizer(folder: Path) -> Any:
    """The tokenizer in `folder`, which neither pads nor cuts, and takes a text's first word as one inside a text."""
    from tokenizers import Tokenizer
    from tokenizers.pre_tokenizers import ByteLevel

    path = folder / _FILE
    if not path.is_file():
        raise InputError(
            f"{path}: there is no such file, so text cannot be encoded; a pretrain step needs a text model with a "
            "fast tokenizer"
        )
    found = Tokenizer.from_file(str(path))
    found.no_padding()
    found.no_truncation()
    if isinstance(found.pre_tokenizer, ByteLevel):
        found.pre_tokenizer.add_prefix_space = True
    return found


def around(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The special tokens before and after one text."""
    encoding = tokenizer.encode("a")
    inside = [i for i, special in enumerate(encoding.special_tokens_mask) if not special]
    return encoding.ids[: inside[0]], encoding.ids[inside[-1] + 1 :]


def _encoded(rows: Iterator[Row], text: Text, tokenizer: Any) -> Iterator[list[int]]:
    while some := list(islice(rows, _AT_ONCE)):
        given = [_value(row, text.column) for row in some]
        split = isinstance(given[0], list)
        if any(isinstance(value, list) != split for value in given):
            raise InputError(f'{some[0].where}: column "{text.column}" holds texts and lists of words; make them alike')
        for encoding in tokenizer.encode_batch_fast(given, is_pretokenized=split, add_special_tokens=False):
            if encoding.ids:
                yield encoding.ids


def _value(row: Row, column: str) -> str | list[str]:
    if column not in row.values:
        raise InputError(
            f'{row.where}: there is no column "{column}"; {nearest(column, map(str, row.values))}, '
            "or name another in the recipe's text.column"
        )
    value = row.values[column]
    words = isinstance(value, list | tuple) and all(isinstance(word, str) for word in value)
    if not (isinstance(value, str) or words):
        raise InputError(f'{row.where}: column "{column}" must hold a text or a list of words, found {value!r:.60}')
    return value if isinstance(value, str) else list(value)


def _feature(ids: list[int], number: int) -> Feature:
    array = np.array(ids, dtype=np.int64)
    one, nothing = (np.broadcast_to(np.int64(value), array.shape) for value in (1, 0))  # no memory of their own
    return Feature({"input_ids": array, "attention_mask": one, "token_type_ids": nothing}, number)
