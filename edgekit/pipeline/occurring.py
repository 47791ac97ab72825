"""Of a table of word embeddings only the rows of tokens that occur are trained.

Any other row has the gradient 0, yet the gradient, its norm and AdamW's two moments go over all of them in every step:
in a model of three layers and 30,522 tokens that is most of what an optimizer's step does. The rows that occur are
trained as they are in the whole table. The others keep their values, where weight decay would shrink them.
"""

import contextlib
from collections.abc import Generator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding
from transformers import PreTrainedModel

from edgekit.pipeline import encoded
from edgekit.tasks import Feature


class Rows(nn.Module):
    """The rows `ids` of a table while they are trained, [ids, width]; it looks up in the table's place."""

    ids: Tensor
    place: Tensor

    def __init__(self, table: nn.Embedding, ids: Tensor) -> None:
        super().__init__()
        self._table = (table,)  # not a part of this one
        self.rows = nn.Parameter(table.weight.detach()[ids])
        place = torch.full((table.num_embeddings,), -1)
        place[ids] = torch.arange(len(ids))
        self.register_buffer("ids", ids, persistent=False)
        self.register_buffer("place", place, persistent=False)
        padding = -1 if table.padding_idx is None else int(place[table.padding_idx])
        self._padding = None if padding == -1 else padding

    def forward(self, tokens: Tensor) -> Tensor:
        """[...] to [..., width]; a token that is not among the ids has the table's row."""
        place = self.place[tokens]
        own = embedding(place.clamp(min=0), self.rows, self._padding)
        return torch.where((place < 0)[..., None], embedding(tokens, self._table[0].weight), own)

    def settle(self) -> None:
        """Write the rows into the table."""
        with torch.no_grad():
            self._table[0].weight[self.ids] = self.rows


@contextlib.contextmanager
def only(objective: nn.Module, features: Sequence[Feature]) -> Generator[None]:
    """Inside the block the word embeddings in `objective` that train are `Rows` of the tokens in `features`, and
    parameters of `objective`; after it they are whole tables again. `settle` brings the tables up to date in between.

    Nothing is done for images, nor for an `objective` that says `WHOLE_TABLE`: it reads the weights themselves.
    """
    tables = [] if getattr(objective, "WHOLE_TABLE", False) else _tables(objective)
    if not tables:
        yield
        return
    ids = torch.from_numpy(encoded.counts(features).nonzero()[0])
    objective.occurring = nn.ModuleList(Rows(table, ids) for table in tables)
    for table, rows in zip(tables, objective.occurring, strict=True):
        table.weight.requires_grad_(False)
        table.forward = rows.forward
    try:
        yield
    finally:
        settle(objective)
        for table in tables:
            table.weight.requires_grad_(True)
            del table.forward
        del objective.occurring


def settle(objective: nn.Module) -> None:
    """Write what is trained into the tables, for what reads a model's weights during a training."""
    occurring: Any = getattr(objective, "occurring", ())
    for rows in occurring:
        rows.settle()


def _tables(objective: nn.Module) -> list[nn.Embedding]:
    """The tables of word embeddings in the models of `objective`, those that train."""
    found: dict[nn.Embedding, None] = {}
    for module in objective.modules():
        if isinstance(module, PreTrainedModel):
            with contextlib.suppress(NotImplementedError):  # a model of images
                table: Any = module.get_input_embeddings()
                if isinstance(table, nn.Embedding) and table.weight.requires_grad:
                    found[table] = None
    return list(found)
