"""What a model says of a batch: its outputs, hidden states and attention, for losses to compare.

Attention is read as TinyBERT needs it, the scores q·k/sqrt(d) *before* the softmax, from the outputs of the query
and key projections, so the forward pass may use any fast attention kernel.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from edgekit.pipeline import families, models
from edgekit.records import Kind


@dataclass(frozen=True)
class Signals:
    """`outputs`: by `tasks.OUTPUTS`. `hidden`: embeddings, then each layer, [batch, length, width] each.
    `queries`, `keys`: each layer, [batch, heads, length, head size]. `mask`: [batch, length], 1 where a token is
    real; for images, ones for every patch.
    """

    outputs: Mapping[str, Tensor]
    hidden: tuple[Tensor, ...]
    queries: tuple[Tensor, ...]
    keys: tuple[Tensor, ...]
    mask: Tensor

    def scores(self, layer: int) -> Tensor:
        """Attention scores of a layer (from 0) before the softmax, q·k/sqrt(d): [batch, heads, length, length]."""
        query, key = self.queries[layer], self.keys[layer]
        return query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5


class Speaker(torch.nn.Module):
    """A model that gives `Signals` for a batch. Gradients flow if the model trains."""

    def __init__(self, model: PreTrainedModel, kind: Kind) -> None:
        super().__init__()
        self.exportable = models.Exportable(model, kind)
        self.layers = families.layers(model)
        self._said: dict[torch.nn.Module, list[Tensor]] = {}
        for module in {part for layer in self.layers for part in (layer.query, layer.key)}:
            module.register_forward_hook(self._listen)

    def _listen(self, module: torch.nn.Module, inputs: Any, output: Tensor) -> None:
        self._said.setdefault(module, []).append(output)

    def forward(self, batch: Mapping[str, Tensor]) -> Signals:
        """Run the model on a padded batch."""
        self._said.clear()
        inputs = [batch[name] for name in self.exportable.input_names]
        outputs, hidden = self.exportable.with_hidden(*inputs)
        mask = batch.get("attention_mask")
        if mask is None:
            mask = torch.ones(hidden[0].shape[:2], dtype=torch.long, device=hidden[0].device)
        said = {module: iter(calls) for module, calls in self._said.items()}
        queries, keys = [], []
        for layer in self.layers:  # shared modules (ALBERT) have spoken once a layer, in order
            queries.append(_split_heads(next(said[layer.query]), layer.head_size))
            keys.append(_split_heads(next(said[layer.key]), layer.head_size))
        self._said.clear()
        return Signals(outputs, hidden, tuple(queries), tuple(keys), mask)


def _split_heads(projected: Tensor, head_size: int) -> Tensor:
    """[batch, length, heads * size] -> [batch, heads, length, size]."""
    batch, length, _ = projected.shape
    return projected.view(batch, length, -1, head_size).transpose(1, 2)


def uniform_map(student_layers: int, teacher_layers: int) -> tuple[int, ...]:
    """TinyBERT's uniform g(m): the teacher's layer (from 1) for each of the student's, the last for the last.

    Jiao et al. 2020, section 3.1: g(m) = m * N / M, rounded up where M does not divide N.

    >>> uniform_map(3, 6), uniform_map(4, 6)
    ((2, 4, 6), (2, 3, 5, 6))
    """
    return tuple(-(-m * teacher_layers // student_layers) for m in range(1, student_layers + 1))
