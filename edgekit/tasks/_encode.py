"""Text to ids with a model's own fast tokenizer, without transformers: the same code in training and on a device."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from edgekit.errors import InputError
from edgekit.tasks import Arrays

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer


def tokenizer(
    folder: Path,
    max_length: int,
    stride: int = 0,
    cut: Literal["longest_first", "only_second"] = "longest_first",
) -> "Tokenizer":
    """The tokenizer in `folder`, which cuts at `max_length` tokens (special ones included) and does not pad.

    What was cut off comes as the encoding's `overflowing`: further windows that overlap by `stride` tokens.
    """
    from tokenizers import Tokenizer

    path = folder / "tokenizer.json"
    if not path.is_file():
        raise InputError(
            f"{path}: there is no such file, so text cannot be encoded; save a fast tokenizer there: "
            "AutoTokenizer.from_pretrained(MODEL, use_fast=True).save_pretrained(FOLDER)"
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: is not JSON: {error}; save the tokenizer again") from None
    if not isinstance(content, dict) or "model" not in content:
        raise InputError(f'{path}: has no key "model", so it is not a fast tokenizer; save the tokenizer again')
    found = Tokenizer.from_file(str(path))
    found.no_padding()
    found.enable_truncation(max_length, stride=stride, strategy=cut)
    return found


def encodings(tokenizer: "Tokenizer", texts: Sequence[Any], **options: Any) -> Iterator["Encoding"]:
    """`texts` (or pairs, or lists of words) encoded in order; a thousand at a time, since encodings are large."""
    for start in range(0, len(texts), 1000):
        yield from tokenizer.encode_batch(texts[start : start + 1000], **options)


def inputs(encoding: "Encoding") -> Arrays:
    """What a model takes, int64 [length] each."""
    return {
        "input_ids": np.array(encoding.ids, dtype=np.int64),
        "attention_mask": np.array(encoding.attention_mask, dtype=np.int64),
        "token_type_ids": np.array(encoding.type_ids, dtype=np.int64),
    }
