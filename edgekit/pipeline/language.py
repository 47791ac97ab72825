"""Language: a masked-LM head on any text model, which tokens may be masked, and which are.

    states -> dense -> GELU -> layer norm -> product with the word embeddings + bias -> logits over the vocabulary

Devlin, Chang, Lee, Toutanova, "BERT", 2019, section 3.1 and appendix A.1. The decoder is the table of word embeddings
itself; where that is narrower than the model (ALBERT, ELECTRA), `dense` leads to its width, as theirs does. Weights of
the field often come without this head, so a pretrain step trains one. It lies beside the model as
`masked_lm.safetensors`, and the model's folder stays what stock transformers loads.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from edgekit.errors import InputError
from edgekit.pipeline import models
from edgekit.tasks import Arrays, Feature, pad

FILE = "masked_lm.safetensors"


class Head(nn.Module):
    """States [..., width] to logits [..., vocabulary]. The table is not a part of it: it belongs to the model."""

    def __init__(self, width: int, table: int, vocabulary: int) -> None:
        """`table`: the width of the word embeddings."""
        super().__init__()
        self.dense = nn.Linear(width, table)
        self.norm = nn.LayerNorm(table, eps=1e-12)
        self.bias = nn.Parameter(torch.zeros(vocabulary))
        nn.init.normal_(self.dense.weight, std=0.02)
        nn.init.zeros_(self.dense.bias)

    def forward(self, states: Tensor, table: Tensor) -> Tensor:
        """Logits of each state by the word embeddings `table` [vocabulary, its width]."""
        return self.norm(nn.functional.gelu(self.dense(states))) @ table.T + self.bias


def words(model: PreTrainedModel) -> nn.Embedding:
    """The model's table of word embeddings. Raises `InputError` where it has none (images)."""
    try:
        table: Any = model.get_input_embeddings()
    except NotImplementedError:
        table = None
    if not isinstance(table, nn.Embedding):
        raise InputError(f"{model.config.model_type} has no word embeddings; language models are for text")
    return table


def new_head(model: PreTrainedModel, start: Path | None = None) -> Head:
    """A head for `model`: the one in the folder `start` where that has one of its shape, else at random."""
    table = words(model)
    head = Head(model.config.hidden_size, table.embedding_dim, table.num_embeddings)
    if start is not None and (start / FILE).is_file():
        saved = _read(start)
        if all(name in saved and saved[name].shape == value.shape for name, value in head.state_dict().items()):
            head.load_state_dict(saved)
    return head


def save(head: Head, folder: Path) -> None:
    """Write the head beside the model in `folder`."""
    save_file({name: value.detach().cpu().contiguous() for name, value in head.state_dict().items()}, folder / FILE)


def load(folder: Path, model: PreTrainedModel) -> Head:
    """The head beside `model` in `folder`, in eval mode. Raises `InputError` where there is none that fits."""
    if not (folder / FILE).is_file():
        raise InputError(
            f"{folder}: has no masked-LM head ({FILE}); put a pretrain step with the method masked_lm and neither "
            "layers nor student before this one"
        )
    head, saved = new_head(model), _read(folder)
    wanted = {name: value.shape for name, value in head.state_dict().items()}
    if {name: value.shape for name, value in saved.items()} != wanted:
        raise InputError(f"{folder / FILE}: does not fit the model beside it; make that pretrain step again")
    head.load_state_dict(saved)
    return head.eval()


def _read(folder: Path) -> dict[str, Tensor]:
    try:
        return load_file(folder / FILE)
    except SafetensorError as error:
        raise InputError(f"{folder / FILE}: is not a whole safetensors file: {error}") from None


@dataclass(frozen=True)
class Tokens:
    """What masking must know of a tokenizer. `special`: ids that are never masked."""

    mask: int
    special: tuple[int, ...]

    @classmethod
    def of(cls, folder: Path) -> "Tokens":
        """Those of the tokenizer in `folder`. Raises `InputError` where it has no mask token."""
        from tokenizers import Tokenizer

        path = folder / "tokenizer.json"
        if not path.is_file():
            raise InputError(f"{path}: there is no such file; language models are for text, with a fast tokenizer")
        found = Tokenizer.from_file(str(path))
        special = {id: token.content for id, token in found.get_added_tokens_decoder().items() if token.special}
        settings = folder / "tokenizer_config.json"
        named = json.loads(settings.read_text(encoding="utf-8")).get("mask_token") if settings.is_file() else None
        name = named.get("content") if isinstance(named, dict) else named
        mask = [id for id, token in special.items() if token in ((name,) if name else ("[MASK]", "<mask>"))]
        if not mask:
            raise InputError(f"{path}: has no mask token ([MASK] or <mask>), which a masked language model needs")
        return cls(mask[0], tuple(sorted(special)))


def choose(ids: Tensor, real: Tensor, special: Sequence[int], share: float) -> Tensor:
    """The positions to predict, as a bool tensor like `ids` [batch, length]: `share` of each row's tokens, rounded and
    at least one, drawn anew at every call; never padding (`real` is 0) nor special tokens.
    """
    may = real.bool() & ~torch.isin(ids, torch.tensor(special, device=ids.device))
    count = (may.sum(1, keepdim=True) * share).round().clamp(min=1)
    drawn = torch.rand(ids.shape, device=ids.device).masked_fill(~may, 2.0)
    return (drawn.argsort(1).argsort(1) < count) & may


def hide(ids: Tensor, chosen: Tensor, mask: int, vocabulary: int) -> Tensor:
    """BERT's input: of the chosen tokens 80 % become the mask, 10 % any token of the vocabulary, 10 % stay."""
    drawn = torch.rand(ids.shape, device=ids.device)
    random = torch.randint(vocabulary, ids.shape, device=ids.device)
    hidden = torch.where(drawn < 0.8, torch.full_like(ids, mask), torch.where(drawn < 0.9, random, ids))
    return torch.where(chosen, hidden, ids)


def loss(logits: Tensor, truth: Tensor) -> Tensor:
    """The mean cross-entropy, in float32, of logits [tokens, vocabulary]; 0 where nothing was chosen."""
    return nn.functional.cross_entropy(logits.float(), truth, reduction="sum") / max(1, len(truth))


def states(model: PreTrainedModel, batch: Arrays) -> Tensor:
    """The last hidden states [batch, length, width] of a padded batch."""
    inputs = {name: torch.from_numpy(batch[name]).to(model.device) for name in models.input_names(model)}
    return model(**inputs, output_hidden_states=True).hidden_states[-1]


@torch.inference_mode()
def accuracy(model: PreTrainedModel, head: Head, features: Sequence[Feature], tokens: Tokens) -> float:
    """The share of masked tokens of `features` that the model finds; the same tokens at every call."""
    right = total = 0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for start in range(0, len(features), 16):
            batch = pad(features[start : start + 16], models.pad_id(model))
            ids, real = (torch.from_numpy(batch[name]) for name in ("input_ids", "attention_mask"))
            chosen = choose(ids, real, tokens.special, 0.15)
            batch["input_ids"] = ids.masked_fill(chosen, tokens.mask).numpy()
            found = head(states(model, batch)[chosen], words(model).weight).argmax(-1)
            right += int((found == ids[chosen]).sum())
            total += int(chosen.sum())
    return right / max(1, total)
