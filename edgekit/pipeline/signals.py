"""What a model says of a batch: its outputs, hidden states and attention, for losses to compare.

`Speaker` is the model that trains, `Teacher` a frozen one; training does not know whether the teacher speaks now or
its words come from disk (`cache`). Attention is read as TinyBERT needs it, the scores q·k/sqrt(d) *before* the
softmax, from the outputs of the query and key projections, so the forward pass may use any fast attention kernel.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel

from edgekit.errors import InputError
from edgekit.pipeline import families, models
from edgekit.records import Kind
from edgekit.tasks import Feature

if TYPE_CHECKING:
    from edgekit.pipeline.alignment import Alignment

Part = Literal["outputs", "hidden", "scores", "queries", "keys", "values"]
Wanted = frozenset[tuple[Part, int]]
"""What is asked of a teacher: parts and the layers that they are of (of `outputs` always 0)."""
OUTPUTS_ONLY: Wanted = frozenset({("outputs", 0)})


@dataclass(frozen=True)
class Signals:
    """`outputs`: by `tasks.OUTPUTS`. `hidden`: by layer, 0 for the embeddings, [batch, length, width] each.
    `queries`, `keys`, `values`: by layer from 1, [batch, heads, length, head size]. `mask`: [batch, length], 1 where a
    token is real; for images, ones for every patch. `depth`: the number of layers.
    """

    outputs: Mapping[str, Tensor]
    hidden: Mapping[int, Tensor]
    queries: Mapping[int, Tensor]
    keys: Mapping[int, Tensor]
    values: Mapping[int, Tensor]
    mask: Tensor
    depth: int
    kept: Mapping[int, Tensor] = field(default_factory=dict[int, Tensor])
    """Attention scores by layer, where they were kept in place of queries and keys."""

    def scores(self, layer: int) -> Tensor:
        """Attention scores of a layer before the softmax, q·k/sqrt(d): [batch, heads, length, length]."""
        if layer in self.kept:
            return self.kept[layer]
        query, key = self.queries[layer], self.keys[layer]
        return query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5


class _Attention(dict[int, Tensor]):
    """Queries, keys or values by layer; of a family whose attention is not known there are none to ask for."""

    def __init__(self, family: str) -> None:
        super().__init__()
        self.family = family

    def __missing__(self, layer: int) -> Tensor:
        if self:
            raise KeyError(layer)
        raise InputError(
            f'a loss reads attention, and a model of the family "{self.family}" gives none; take losses that read '
            "outputs or hidden states"
        )


class Speaker(torch.nn.Module):
    """A model that gives `Signals` for a batch. Gradients flow if the model trains."""

    def __init__(self, model: PreTrainedModel, kind: Kind) -> None:
        super().__init__()
        self.exportable = models.Exportable(model, kind)
        self.layers = families.layers(model) if model.config.model_type in families.FAMILIES else []
        self._said: dict[torch.nn.Module, list[Tensor]] | None = None  # kept only while this speaks
        for module in {part for layer in self.layers for part in (layer.query, layer.key, layer.value)}:
            module.register_forward_hook(self._listen)

    @property
    def model(self) -> PreTrainedModel:
        """The model itself."""
        return self.exportable.model

    @property
    def depth(self) -> int:
        """The number of layers."""
        return self.model.config.num_hidden_layers

    @property
    def width(self) -> int:
        """The width of the hidden states."""
        return self.model.config.hidden_size

    def _listen(self, module: torch.nn.Module, inputs: Any, output: Tensor) -> None:
        if self._said is not None:
            self._said.setdefault(module, []).append(output)

    def forward(self, batch: Mapping[str, Tensor]) -> Signals:
        """Run the model on a padded batch."""
        self._said = heard = {}
        inputs = [batch[name] for name in self.exportable.input_names]
        outputs, hidden = self.exportable.with_hidden(*inputs)
        mask = batch.get("attention_mask")
        if mask is None:
            mask = torch.ones(hidden[0].shape[:2], dtype=torch.long, device=hidden[0].device)
        said = {module: iter(calls) for module, calls in heard.items()}
        queries, keys, values = (_Attention(self.model.config.model_type) for _ in range(3))
        for number, layer in enumerate(self.layers, 1):  # shared modules (ALBERT) have spoken once a layer, in order
            for kept, module in ((queries, layer.query), (keys, layer.key), (values, layer.value)):
                kept[number] = _split_heads(next(said[module]), layer.head_size)
        self._said = None
        return Signals(outputs, dict(enumerate(hidden)), queries, keys, values, mask, len(hidden) - 1)


class Kept(Protocol):
    """A teacher's words on disk, see `cache`."""

    def signals(self, teacher: "Teacher", batch: Mapping[str, Tensor], wanted: Wanted) -> Signals:
        """What is wanted of the batch's rows; `teacher.speak` is asked for those that are not there yet."""
        ...


class Teacher:
    """A frozen model in a folder. It is loaded when it first has to speak, which with everything kept is never."""

    def __init__(
        self,
        folder: Path,
        kind: Kind,
        labels: Sequence[str],
        alignment: "Alignment | None" = None,
        kept: Kept | None = None,
    ) -> None:
        """`alignment`: what pairs this teacher's own tokens with the student's, where their tokenizers differ."""
        self.folder, self.labels, self.alignment, self.kept = folder, labels, alignment, kept
        self.kind: Kind = kind
        config = models.configuration(folder)
        self.depth: int = config.num_hidden_layers
        self.width: int = config.hidden_size
        self.head_size: int = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self.pad_id: int = getattr(config, "pad_token_id", None) or 0

    @property
    def features(self) -> Sequence[Feature] | None:
        """The training features in this teacher's own tokens, `None` where they are the student's."""
        return self.alignment.features if self.alignment else None

    @cached_property
    def speaker(self) -> Speaker:
        """The model, frozen, on the GPU where there is one."""
        model = Speaker(models.load(self.folder, self.kind, self.labels), self.kind).eval().requires_grad_(False)
        return model.cuda() if torch.cuda.is_available() else model

    def __call__(self, batch: Mapping[str, Tensor], wanted: Wanted = OUTPUTS_ONLY) -> Signals:
        """What is wanted of a padded batch; gradients never flow.

        Of a teacher with a tokenizer of its own that is outputs, and `mask` says of which tokens; in a task of one
        answer a row also hidden states, in its own tokens. Anything else is an `InputError`.
        """
        if self.alignment is None:
            return self._heard(batch, wanted)
        if any(part != "outputs" and (part != "hidden" or self.alignment.per_token) for part, _ in wanted):
            raise InputError(
                f"{self.folder}: this teacher's tokenizer is not the student's, so its layers have other tokens; leave "
                "out losses on layers, or take a teacher with the student's tokenizer"
            )
        own = self.alignment.batch(batch, self.pad_id)
        return self.alignment.translated(self._heard(own, wanted), own["index"], batch)

    def _heard(self, batch: Mapping[str, Tensor], wanted: Wanted) -> Signals:
        """Only what is wanted, kept or not, so that a loss that reads what it did not ask for fails at once."""
        return self.kept.signals(self, batch, wanted) if self.kept else _only(self.speak(batch), wanted)

    @torch.no_grad()
    def speak(self, batch: Mapping[str, Tensor]) -> Signals:
        """Run the model on a padded batch of its own tokens."""
        return self.speaker(batch)


def _only(said: Signals, wanted: Wanted) -> Signals:
    def layers(*parts: Part) -> set[int]:
        return {layer for part, layer in wanted if part in parts}

    def some(by_layer: Mapping[int, Tensor], layers: set[int]) -> dict[int, Tensor]:
        return {layer: tensor for layer, tensor in by_layer.items() if layer in layers}

    return replace(
        said,
        hidden=some(said.hidden, layers("hidden")),
        queries=some(said.queries, layers("queries", "scores")),
        keys=some(said.keys, layers("keys", "scores")),
        values=some(said.values, layers("values")),
    )


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
