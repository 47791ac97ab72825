"""Ladders: a small side network beside a frozen backbone, fed by its hidden states; only the side network trains.

Sung, Cho and Bansal, "LST: Ladder Side-Tuning for Parameter and Memory Efficient Transfer Learning", 2022, section 3.
With backbone states f_0 .. f_N (f_0 the embeddings) and a side network of width d / r, layer i of it does

    s_0 = D_0 f_0,    s_i = layer_i(mu_i s_{i-1} + (1 - mu_i) D_i f_i),    mu_i = sigmoid(alpha_i / T),  T = 0.1

and the head reads U s_N: D [d / r, d] and U [d, d / r] are learnt, so are alpha (from 0), the side layers and the head.
Gradients never enter the backbone, so its activations need not be kept, which is most of the memory of training. (The
gate stands at the side's state as in the authors' code.)

The side network is the backbone's own family, so its layers, masks and biases are transformers'. config.json has the
model type `edgekit-ladder` and the backbone's whole configuration under `backbone`; `models.load` builds it.
"""

import contextlib
import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from edgekit.pipeline import families
from edgekit.records import Kind

TEMPERATURE = 0.1
"""T of the gates."""
_SEEN = (
    "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings",
    "type_vocab_size", "pad_token_id", "image_size", "num_channels",
)  # fmt: skip


class Config(PreTrainedConfig):
    """`backbone`: its config.json. `reduction`: r. `every`: a side layer stands at every so many backbone layers.
    `kind`: the head's.
    """

    model_type = "edgekit-ladder"

    def __init__(
        self,
        backbone: Mapping[str, Any] | None = None,
        reduction: int = 8,
        every: int = 1,
        kind: Kind = "sentence-embedding",
        **kwargs: Any,
    ) -> None:
        its: Any = families.full(backbone) if backbone else PreTrainedConfig()
        kwargs |= {name: getattr(its, name) for name in _SEEN if hasattr(its, name)}
        super().__init__(**kwargs)
        self.backbone, self.reduction, self.every = dict(backbone or {}), reduction, every
        self.kind: Kind = kind

    def whole(self) -> PreTrainedConfig:
        """The backbone's configuration, with the labels of the ladder."""
        its = families.full(self.backbone)
        its.id2label, its.label2id = self.id2label, self.label2id
        return its

    def side(self) -> PreTrainedConfig:
        """The side network's: narrower, with a layer for every `every` of the backbone's."""
        return narrow(self.whole(), self.reduction, self.every)


def narrow(config: PreTrainedConfig, reduction: int, every: int) -> Any:
    """`config` of a known family with widths divided by `reduction` and layers by `every`, no word embeddings.

    There are as few heads as the backbone's head size allows, so that a side head is a part of a backbone head.
    """
    side: Any = copy.deepcopy(config)
    width = config.hidden_size // reduction
    size = families.head_size(config)
    side.num_attention_heads = next(heads for heads in range(-(-width // size), width + 1) if width % heads == 0)
    neurons = families.FAMILIES[config.model_type].neurons
    setattr(side, neurons, max(1, getattr(config, neurons) // reduction))
    side.hidden_size = width
    side.num_hidden_layers = config.num_hidden_layers // every
    for name in ("embedding_size", "pooler_hidden_size"):
        if hasattr(config, name):
            setattr(side, name, width)
    if hasattr(config, "true_hidden_size"):  # MobileBERT's layers are narrower than its states
        heads = side.num_attention_heads
        side.true_hidden_size = side.intra_bottleneck_size = (
            max(1, config.true_hidden_size // reduction // heads) * heads
        )
    if hasattr(config, "head_dim"):
        side.head_dim = width // side.num_attention_heads
    side.pruned_heads = None
    side.vocab_size = (getattr(config, "pad_token_id", None) or 0) + 1
    return side


class _Foot(nn.Module):
    """Stands in the place of the side network's embeddings and gives what it is fed."""

    def __init__(self) -> None:
        super().__init__()
        self.fed = _Fed()
        self.word_embeddings = None  # where a model is asked for its table of words: the backbone has it
        self.patch_embeddings = nn.Module()  # a ViT asks its embeddings for the type of this weight
        self.patch_embeddings.projection = nn.Linear(1, 1, bias=False).requires_grad_(False)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        return self.fed.first


class _Fed:
    """What the side network gets in one forward pass; no module, so that an exporter does not see a state in it."""

    first: Tensor
    rungs: Iterator[tuple[Tensor, Tensor]]

    def clear(self) -> None:
        """Hold nothing between passes."""
        self.__dict__.clear()


class Rails(nn.Module):
    """The base model of a ladder: a frozen `backbone`, the `side` network and what stands between them."""

    def __init__(self, backbone: Any, config: Config) -> None:
        super().__init__()
        narrow = config.side()
        width, layers = config.hidden_size, narrow.num_hidden_layers
        self.backbone: PreTrainedModel = backbone.requires_grad_(False)
        self.pooler: Any = getattr(backbone, "pooler", None)  # part of the head
        self.activation: Any = getattr(backbone, "pooler_activation", None)
        backbone.pooler = None
        self.side: Any = type(backbone)(narrow)
        self.side.pooler = None
        self.side.embeddings = _Foot()
        if hasattr(self.side.base_model, "encoder") and hasattr(self.side.encoder, "embedding_hidden_mapping_in"):
            self.side.encoder.embedding_hidden_mapping_in = nn.Identity()  # ALBERT's
        self.down = nn.ModuleList(nn.Linear(width, narrow.hidden_size) for _ in range(layers + 1))
        self.up = nn.Linear(narrow.hidden_size, width)
        self.gates = nn.Parameter(torch.zeros(layers))
        self.every = config.every
        for layer in {layer.module: None for layer in families.own_layers(self.side)}:
            layer.register_forward_pre_hook(self._climb)
        if self.pooler is not None:
            self.pooler.requires_grad_(True)

    def get_input_embeddings(self) -> nn.Module:
        """The backbone's, which some families' task models ask for."""
        return self.backbone.get_input_embeddings()

    def train(self, mode: bool = True) -> "Rails":
        """The backbone stays as it is: no dropout in it."""
        super().train(mode)
        self.backbone.eval()
        return self

    def _climb(self, layer: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
        """What a side layer takes: the gated sum of what it was given and of the backbone's state."""
        mu, state = next(self.side.embeddings.fed.rungs)
        return (mu * given[0] + (1 - mu) * state, *given[1:])

    def forward(self, *args: Any, **kwargs: Any) -> BaseModelOutputWithPooling:
        """What a base model gives; `hidden_states` are the backbone's."""
        kwargs = {name: value for name, value in kwargs.items() if name not in ("output_hidden_states", "return_dict")}
        # frozen weights make no graph either; but in a file, what ran under no_grad has lost its modules' names
        with torch.no_grad() if self.training else contextlib.nullcontext():
            states = self.backbone(*args, **kwargs, output_hidden_states=True, return_dict=True).hidden_states
        fed = self.side.embeddings.fed
        fed.first = self.down[0](states[0])
        mu = torch.sigmoid(self.gates / TEMPERATURE)
        fed.rungs = ((mu[i], self.down[i + 1](states[(i + 1) * self.every])) for i in range(len(mu)))
        last = self.up(self.side(*args, **kwargs, return_dict=True).last_hidden_state)
        fed.clear()
        return BaseModelOutputWithPooling(
            last_hidden_state=last, pooler_output=self._pooled(last), hidden_states=states
        )

    def _pooled(self, last: Tensor) -> Tensor | None:
        if isinstance(self.pooler, nn.Linear):  # ALBERT's
            return self.activation(self.pooler(last[:, 0]))
        return None if self.pooler is None else self.pooler(last)


class Ladder(PreTrainedModel):
    """The backbone's own task model in `task`, with `Rails` in the place of its base model."""

    config_class = Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        task: Any = self._task(config.whole())
        base = task.base_model
        rails = Rails(base, config)
        if base is task:
            rails.pooler = None  # an embedding is the mean of the tokens
            self.task: Any = rails
        else:
            setattr(task, task.base_model_prefix, rails)
            self.task = task
        self.post_init()

    _task: Any

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """As of any model; loading makes weights trainable, so the backbone is frozen again."""
        loaded: Any = super().from_pretrained(*args, **kwargs)
        (loaded[0] if isinstance(loaded, tuple) else loaded).base_model.backbone.requires_grad_(False)
        return loaded

    @property
    def base_model(self) -> Rails:
        """The rails."""
        return self.task if isinstance(self.task, Rails) else getattr(self.task, self.task.base_model_prefix)

    def forward(self, **kwargs: Any) -> Any:
        """What the task model gives: `loss` with labels, the head's outputs, and the backbone's hidden states."""
        return self.task(**kwargs)


def model_class(kind: Kind, config: Config) -> type[Ladder]:
    """The class that `models.load` and `models.new` build."""
    from edgekit.pipeline import models

    whole = config.whole()
    found = models.task_class(whole, kind)
    prefix = "task" if kind == "sentence-embedding" else f"task.{found.base_model_prefix}"
    values = {"_task": staticmethod(found), "base_model_prefix": prefix, "main_input_name": found.main_input_name}
    return type(models.class_name("Ladder", kind), (Ladder,), values)
