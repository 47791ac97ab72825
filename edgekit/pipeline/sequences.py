"""Small models that are no transformers: word embeddings, then bidirectional GRUs or convolutions, then a head.

For tokens x_1 .. x_n of a row (what follows is padding and never counts):

    gru          h_t = [GRU(x_1 .. x_t); GRU(x_n .. x_t)]                    Cho et al. 2014, in both directions
    convolution  h_t = ReLU([W_k [x_{t-a}; ..; x_{t+b}] for each size k])    Kim 2014, zeros outside the row

A text's state is the greatest value of each feature over its tokens (Kim 2014, max-over-time pooling). The backward
GRU is a forward one on the row with its n tokens turned round, so that it starts at the last token and not in the
padding, and so that exporters, which cannot pack sequences, take it. A convolution is one matrix product with each
token's neighbours side by side, which int8 kernels take.

config.json has the model type `edgekit-sequence`; `models.load` builds it.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import (
    BaseModelOutput,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)

from edgekit.errors import InputError
from edgekit.records import Kind


class Config(PreTrainedConfig):
    """`layers` of `cell`s of `hidden_size` features above embeddings of `embedding_size`."""

    model_type = "edgekit-sequence"

    def __init__(
        self,
        cell: Literal["gru", "convolution"] = "gru",
        vocab_size: int = 1,
        embedding_size: int = 1,
        hidden_size: int = 2,
        num_hidden_layers: int = 1,
        sizes: Sequence[int] = (),
        dropout: float = 0.1,
        pad_token_id: int | None = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.cell, self.sizes, self.dropout = cell, list(sizes), dropout
        self.vocab_size, self.embedding_size, self.pad_token_id = vocab_size, embedding_size, pad_token_id
        self.hidden_size, self.num_hidden_layers = hidden_size, num_hidden_layers


@torch.library.custom_op("edgekit::gru", mutates_args=())
def _one_gru(x: Tensor, inner: Tensor, own: Tensor, bias: Tensor, features: int) -> Tensor:
    """ONNX's GRU from a state of zeros: `x` [batch, length, width] to [batch, length, features].

    `inner` [1, 3 * features, width], `own` [1, 3 * features, features] and `bias` [1, 6 * features] have the gates
    in ONNX's order: update, reset, new. Only an exporter calls it, with a length that is not known yet: of torch's own
    GRU it would note the length of the example as the only one.
    """
    raise NotImplementedError("for export only")


@_one_gru.register_fake
def _(x: Tensor, inner: Tensor, own: Tensor, bias: Tensor, features: int) -> Tensor:
    return x.new_empty(x.shape[0], x.shape[1], features)


def onnx_operators() -> dict[Any, Any]:
    """How torch's exporter writes the operators of this module in ONNX."""
    from onnxscript import opset18 as op

    def gru(x: Any, inner: Any, own: Any, bias: Any, features: int) -> Any:
        states, _ = op.GRU(
            op.Transpose(x, perm=[1, 0, 2]), inner, own, bias, hidden_size=features, linear_before_reset=1
        )
        return op.Transpose(op.Squeeze(states, op.Constant(value_ints=[1])), perm=[1, 0, 2])

    return {torch.ops.edgekit.gru.default: gru}


class _GRU(nn.GRU):
    """One layer in one direction."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        """[batch, length, width] to [batch, length, features]."""
        if not isinstance(x.shape[1], torch.SymInt):
            return super().forward(x)[0]
        parts: Any = (self.weight_ih_l0, self.weight_hh_l0, self.bias_ih_l0, self.bias_hh_l0)
        inner, own, *bias = (torch.cat([part.chunk(3)[i] for i in (1, 0, 2)])[None] for part in parts)
        call: Any = _one_gru
        return call(x, inner, own, torch.cat(bias, 1), self.hidden_size)


class _BiGRU(nn.Module):
    def __init__(self, width: int, features: int) -> None:
        super().__init__()
        self.forwards = _GRU(width, features // 2, batch_first=True)
        self.backwards = _GRU(width, features // 2, batch_first=True)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        places = torch.arange(mask.shape[1], device=mask.device)[None].expand(mask.shape[0], -1)
        count = mask.sum(1, keepdim=True)
        turned = torch.where(places < count, count - 1 - places, places)
        return torch.cat([self.forwards(x), _at(self.backwards(_at(x, turned)), turned)], -1)


def _at(x: Tensor, places: Tensor) -> Tensor:
    """`x` [batch, length, width] at `places` [batch, length]."""
    return torch.gather(x, 1, places[..., None].expand(-1, -1, x.shape[2]))


class _Convolutions(nn.Module):
    def __init__(self, width: int, features: int, sizes: Sequence[int]) -> None:
        super().__init__()
        self.sizes = tuple(sizes)
        parts = [features // len(sizes) + (i < features % len(sizes)) for i in range(len(sizes))]
        self.filters = nn.ModuleList(
            nn.Linear(size * width, part) for size, part in zip(self.sizes, parts, strict=True)
        )

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = x * mask[..., None].to(x.dtype)  # padding is as if it were not there
        most, length = max(self.sizes), x.shape[1]
        before = (most - 1) // 2
        wide = nn.functional.pad(x, (0, 0, before, most - 1 - before))
        near = [wide[:, i : i + length] for i in range(most)]
        found = []
        for size, linear in zip(self.sizes, self.filters, strict=True):
            first = before - (size - 1) // 2
            found.append(linear(torch.cat(near[first : first + size], -1)))
        return torch.relu(torch.cat(found, -1))


class SequenceModel(PreTrainedModel):
    """`body`: embeddings and layers. `head` [labels, features], none for sentence embeddings."""

    config_class = Config
    base_model_prefix = "body"
    onnx_operators = staticmethod(onnx_operators)
    _kind: Kind = "sentence-embedding"

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.body = nn.Module()
        self.body.embeddings = nn.Embedding(config.vocab_size, config.embedding_size)
        widths = [config.embedding_size] + [config.hidden_size] * (config.num_hidden_layers - 1)
        self.body.layers = nn.ModuleList(
            _BiGRU(width, config.hidden_size)
            if config.cell == "gru"
            else _Convolutions(width, config.hidden_size, config.sizes)
            for width in widths
        )
        self.dropout = nn.Dropout(config.dropout)
        outputs: Any = 2 if self._kind == "question-answering" else config.num_labels
        self.head = None if self._kind == "sentence-embedding" else nn.Linear(config.hidden_size, outputs)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The word embeddings."""
        return self.body.get_submodule("embeddings")

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        labels: Tensor | None = None,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """What a transformers model of the same kind gives; `hidden_states`: embeddings, then each layer."""
        state = self.get_input_embeddings()(input_ids)
        states = [state]
        for layer in self.body.get_submodule("layers").children():
            state = layer(self.dropout(state), attention_mask)
            states.append(state)
        hidden = tuple(states)
        if self.head is None:
            return BaseModelOutput(last_hidden_state=state, hidden_states=hidden)  # type: ignore[arg-type]
        loss = None
        if self._kind == "text-classification":
            real = attention_mask[..., None].to(state.dtype)
            logits = self.head(self.dropout((state * real + (real - 1) * 1e4).amax(1)))
            if labels is not None:
                loss = nn.functional.cross_entropy(logits, labels)
            return SequenceClassifierOutput(loss=loss, logits=logits, hidden_states=hidden)  # type: ignore[arg-type]
        logits = self.head(self.dropout(state))
        if self._kind == "token-classification":
            if labels is not None:
                loss = nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
            return TokenClassifierOutput(loss=loss, logits=logits, hidden_states=hidden)  # type: ignore[arg-type]
        start, end = logits[..., 0], logits[..., 1]
        if start_positions is not None and end_positions is not None:
            loss = (
                nn.functional.cross_entropy(start, start_positions) + nn.functional.cross_entropy(end, end_positions)
            ) / 2
        return QuestionAnsweringModelOutput(loss=loss, start_logits=start, end_logits=end, hidden_states=hidden)  # type: ignore[arg-type]


def model_class(kind: Kind, config: Config) -> type[SequenceModel]:
    """The class that `models.load` and `models.new` build. Raises `InputError` for images."""
    from edgekit.pipeline import models

    if kind == "image-classification":
        raise InputError("a model of word embeddings cannot read images; leave the student out")
    return type(models.class_name("Sequence", kind), (SequenceModel,), {"_kind": kind})
