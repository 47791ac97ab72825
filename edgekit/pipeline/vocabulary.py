"""Vocabulary: cut the embedding table, and the tokenizer with it, down to the tokens that a task uses.

A row of the table belongs to one token, so a token that never comes up costs bytes for nothing. What stays: tokens
seen in training, special and added ones, and the alphabet, so that any text can still be encoded:

    seen {"the", "fox"}, alphabet {"a" .. "z", "##a" .. "##z"}:  "the fox ran" -> the fox r ##a ##n

Text whose tokens all stay is encoded as before: WordPiece takes the longest token that there is, a Unigram model
the likeliest sequence of those there are, and BPE keeps each merge that a token left is made by. Tokens keep their
order, and those up to the padding token stay, because RoBERTa and MPNet count positions from its id.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from transformers import PreTrainedConfig, PreTrainedModel

from edgekit.errors import InputError
from edgekit.pipeline import encoded, models
from edgekit.tasks import Feature

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")


def kept(folder: Path, config: PreTrainedConfig, features: Sequence[Feature], min_count: int) -> list[int]:
    """The ids to keep, ascending: those that stand at least `min_count` times in `features`, and what must stay.

    Raises `InputError` where `folder` has no tokenizer.json of a kind that can be cut.
    """
    spec = _read(folder)
    keep = {int(i) for i in np.flatnonzero(encoded.counts(features) >= min_count)}
    keep |= {token["id"] for token in spec["added_tokens"]} | set(_named(config).values())
    keep |= set(range((config.pad_token_id or 0) + 1))
    keep |= _alphabet(spec["model"])
    if spec["model"]["type"] == "BPE":
        keep |= _merged_from(spec["model"], keep)
    if max(keep) >= config.vocab_size:
        raise InputError(f"{folder}: tokenizer.json has the id {max(keep)}, the model {config.vocab_size} rows")
    return sorted(keep)


def cut(model: PreTrainedModel, folder: Path, keep: Sequence[int]) -> None:
    """Keep the tokens `keep` (ascending ids), in place: of `model` and of the tokenizer's files in `folder`.

    Only tokenizer.json and its settings are left in `folder`; it says all that the slow tokenizers' files did.
    """
    new = {old: i for i, old in enumerate(keep)}
    before, spec = Tokenizer.from_file(str(folder / "tokenizer.json")), _read(folder)
    _renumber(spec, new)
    after = Tokenizer.from_str(json.dumps(spec))
    moved = [i for i in keep if before.id_to_token(i) != after.id_to_token(new[i])]
    if moved:
        raise InputError(f'{folder / "tokenizer.json"}: "{before.id_to_token(moved[0])}" cannot be renumbered')
    after.save(str(folder / "tokenizer.json"))
    _renumber_settings(folder, new)
    embeddings: Any = model.get_input_embeddings()
    rows = torch.tensor(keep, device=embeddings.weight.device)
    embeddings.weight = torch.nn.Parameter(embeddings.weight.detach().index_select(0, rows))
    embeddings.num_embeddings = model.config.vocab_size = len(keep)
    if embeddings.padding_idx is not None:
        embeddings.padding_idx = new[embeddings.padding_idx]
    for name, old in _named(model.config).items():
        setattr(model.config, name, new[old])


def _read(folder: Path) -> dict[str, Any]:
    """tokenizer.json in its present form, whichever version of the format wrote it."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise InputError(f"{folder}: has no tokenizer.json, so its vocabulary cannot be cut; leave out vocabulary")
    spec = json.loads(Tokenizer.from_file(str(path)).to_str())
    if spec["model"]["type"] not in ("WordPiece", "BPE", "Unigram"):
        raise InputError(
            f"{path}: a {spec['model']['type']} vocabulary cannot be cut, WordPiece, BPE and Unigram can; "
            "leave out vocabulary"
        )
    return spec


def _named(config: PreTrainedConfig) -> dict[str, int]:
    """`pad_token_id`, `cls_token_id` and their like."""
    return {k: v for k, v in config.to_dict().items() if k.endswith("_token_id") and isinstance(v, int)}


def _alphabet(model: Mapping[str, Any]) -> set[int]:
    """What any text can be spelt with: single characters or bytes, inside a word and out, and the unknown token."""
    if model["type"] == "Unigram":
        pieces = [piece for piece, _ in model["vocab"]]
        # the score of an unknown character hangs on the least likely piece
        least = min(range(len(pieces)), key=lambda i: model["vocab"][i][1])
        unknown = {least} if model["unk_id"] is None else {least, model["unk_id"]}
        return {i for i, piece in enumerate(pieces) if len(piece) == 1 or _BYTE.fullmatch(piece)} | unknown
    prefix, suffix = model.get("continuing_subword_prefix") or "", model.get("end_of_word_suffix") or ""

    def is_letter(token: str) -> bool:
        return len(token.removeprefix(prefix).removesuffix(suffix)) == 1 or len(token) == 1

    return {
        i for token, i in model["vocab"].items()
        if is_letter(token) or token == model["unk_token"] or _BYTE.fullmatch(token)
    }  # fmt: skip


def _merged_from(model: Mapping[str, Any], keep: set[int]) -> set[int]:
    """Every token that a BPE model merges on its way to those in `keep`."""
    vocab, prefix = model["vocab"], model["continuing_subword_prefix"] or ""
    parts: dict[int, set[int]] = {}
    for left, right in model["merges"]:
        parts.setdefault(vocab[left + right.removeprefix(prefix)], set()).update((vocab[left], vocab[right]))
    found: set[int] = set()
    open_ = set(keep)
    while open_:
        found |= open_
        open_ = set[int]().union(*(parts.get(i, ()) for i in open_)) - found
    return found


def _renumber(spec: dict[str, Any], new: Mapping[int, int]) -> None:
    """Keep the tokens of `new` in a tokenizer.json and give them their new ids wherever one stands."""
    model = spec["model"]
    if model["type"] == "Unigram":
        model["vocab"] = [entry for i, entry in enumerate(model["vocab"]) if i in new]
        model["unk_id"] = new.get(model["unk_id"])
    else:
        model["vocab"] = {token: new[i] for token, i in model["vocab"].items() if i in new}
    if model["type"] == "BPE":
        prefix = model["continuing_subword_prefix"] or ""
        model["merges"] = [
            (left, right) for left, right in model["merges"]
            if {left, right, left + right.removeprefix(prefix)} <= model["vocab"].keys()
        ]  # fmt: skip
    for token in spec["added_tokens"]:
        token["id"] = new[token["id"]]
    if spec["padding"]:
        spec["padding"]["pad_id"] = new[spec["padding"]["pad_id"]]
    _renumber_processor(spec["post_processor"] or {}, new)


def _renumber_processor(processor: dict[str, Any], new: Mapping[int, int]) -> None:
    for inner in processor.get("processors", ()):  # of a Sequence
        _renumber_processor(inner, new)
    special: Mapping[str, Any] = processor.get("special_tokens", {})  # of TemplateProcessing
    for token in special.values():
        token["ids"] = [new[i] for i in token["ids"]]
    for side in ("cls", "sep"):  # of BertProcessing and RobertaProcessing
        if side in processor:
            token, i = processor[side]
            processor[side] = [token, new[i]]


def _renumber_settings(folder: Path, new: Mapping[int, int]) -> None:
    settings = folder / "tokenizer_config.json"
    if settings.is_file():
        values = json.loads(settings.read_text(encoding="utf-8"))
        if "added_tokens_decoder" in values:
            decoder: Mapping[str, Any] = values["added_tokens_decoder"]
            values["added_tokens_decoder"] = {str(new[int(i)]): token for i, token in decoder.items()}
        settings.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    for name in models.VOCABULARY_FILES:
        (folder / name).unlink(missing_ok=True)
