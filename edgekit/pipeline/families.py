"""Families: where each kind of transformer keeps its layers, heads and neurons, and how to take some away.

A head is `head_size` rows of the query, key and value projections and the same columns of the output projection;
a neuron is a row of the first feed-forward projection and the same column of the second:

    hidden -> query [heads * head_size, hidden] -> attention -> output [hidden, heads * head_size] -> hidden
    hidden -> up [neurons, hidden] -> activation -> down [hidden, neurons] -> hidden

How a folder says that heads are gone. transformers 5 computes the head size of most families as hidden size over
heads and has no head pruning, transformers 4 reads `pruned_heads`, `{layer: [ids of the original heads]}`, from
config.json when it builds a model. So:

- ViT has `head_dim` in its configuration: fewer `num_attention_heads` of the same `head_dim`; stock transformers 5.
- The others keep the original `num_attention_heads` and get `pruned_heads`. Stock transformers 4 loads that for
  BERT, DistilBERT, ELECTRA, RoBERTa, ALBERT and MobileBERT; it cannot for MPNet (whose bias has a column a head) and
  DeBERTa-v2. Under transformers 5 `models.load` here builds all of them (see `pruned`).

Fewer neurons, layers and vocabulary rows need none of that: config.json has a number for each.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import CONFIG_MAPPING, PreTrainedConfig, PreTrainedModel

from edgekit.pipeline import low_rank
from edgekit.recipe import Distill, Pretrain, Prune, Step


@dataclass(frozen=True)
class Family:
    """Module paths inside the base model (`layers`, `head_bias`) or a layer; `*` is every entry of a module list."""

    layers: str = "encoder.layer.*"
    attention: str = "attention.self"
    query: str = "attention.self.query"
    key: str = "attention.self.key"
    value: str = "attention.self.value"
    output: str = "attention.output.dense"
    feed_forward: tuple[tuple[str, str], ...] = (("intermediate.dense", "output.dense"),)
    positions: tuple[str, ...] = ()
    """Further projections with a part for each head; absent in some configurations."""
    head_bias: str | None = None
    """An embedding with one column a head, used by all layers: they keep the same heads."""
    shared: bool = False
    """The layers are one set of weights, applied `num_hidden_layers` times."""
    neurons: str = "intermediate_size"
    """The configuration's name for the feed-forward width."""
    head_dim: str | None = None
    """The configuration's name for the head size, where it has one."""
    vocabulary: bool = True


_BERT = Family()
FAMILIES: Mapping[str, Family] = {
    "bert": _BERT,
    "electra": _BERT,
    "roberta": _BERT,
    "xlm-roberta": _BERT,
    "camembert": _BERT,
    "distilbert": Family(
        layers="transformer.layer.*",
        attention="attention",
        query="attention.q_lin",
        key="attention.k_lin",
        value="attention.v_lin",
        output="attention.out_lin",
        feed_forward=(("ffn.lin1", "ffn.lin2"),),
        neurons="hidden_dim",
    ),
    "albert": Family(
        layers="encoder.albert_layer_groups.*.albert_layers.*",
        attention="attention",
        query="attention.query",
        key="attention.key",
        value="attention.value",
        output="attention.dense",
        feed_forward=(("ffn", "ffn_output"),),
        shared=True,
    ),
    # the bottlenecks carry the residual stream, so they keep their width; heads and the stacked FFNs do not
    "mobilebert": replace(
        _BERT,
        feed_forward=(("ffn.*.intermediate.dense", "ffn.*.output.dense"), ("intermediate.dense", "output.dense")),
    ),
    "mpnet": replace(
        _BERT,
        attention="attention.attn",
        query="attention.attn.q",
        key="attention.attn.k",
        value="attention.attn.v",
        output="attention.attn.o",
        head_bias="encoder.relative_attention_bias",
    ),
    "deberta-v2": replace(
        _BERT,
        query="attention.self.query_proj",
        key="attention.self.key_proj",
        value="attention.self.value_proj",
        positions=("attention.self.pos_key_proj", "attention.self.pos_query_proj"),
    ),
    "vit": Family(
        layers="layers.*",
        attention="attention",
        query="attention.q_proj",
        key="attention.k_proj",
        value="attention.v_proj",
        output="attention.o_proj",
        feed_forward=(("mlp.fc1", "mlp.fc2"),),
        head_dim="head_dim",
        vocabulary=False,
    ),
}


class FeedForward(NamedTuple):
    """`up` [neurons, hidden] and `down` [hidden, neurons]."""

    up: nn.Linear
    down: nn.Linear


@dataclass(frozen=True)
class Layer:
    """The modules of one layer, `module`. MobileBERT has several feed-forward networks a layer, the others one."""

    module: nn.Module
    attention: nn.Module
    query: nn.Linear
    key: nn.Linear
    value: nn.Linear
    output: nn.Linear
    positions: tuple[nn.Linear, ...]
    feed_forward: tuple[FeedForward, ...]
    head_size: int

    @property
    def heads(self) -> int:
        """The heads that are there now."""
        return self.query.out_features // self.head_size


def name(config: PreTrainedConfig) -> str:
    """The family whose layers run: a ladder's are its backbone's."""
    return (getattr(config, "backbone", None) or {}).get("model_type", config.model_type)


def full(config: Mapping[str, Any]) -> PreTrainedConfig:
    """A config.json of a known family, or of a ladder's backbone, with what it leaves to the defaults."""
    its = config.get("backbone") or config
    return CONFIG_MAPPING[str(its["model_type"])].from_dict(dict(its))


def width(config: PreTrainedConfig) -> int:
    """Of what layers compute with: the hidden states', or of MobileBERT its bottleneck's."""
    return getattr(config, "true_hidden_size", config.hidden_size)


def head_size(config: PreTrainedConfig) -> int:
    """How many rows of the query projection are one head."""
    own = getattr(config, FAMILIES[config.model_type].head_dim or "-", None)
    return own or width(config) // config.num_attention_heads


def family(model: PreTrainedModel) -> Family:
    """The anatomy of the model's family; `refusal` says beforehand whether it is known."""
    return FAMILIES[model.config.model_type]


def layers(model: PreTrainedModel) -> list[Layer]:
    """The layers as they run, from input to output; ALBERT's one set of weights is listed once for each time."""
    found, config = own_layers(model), model.config
    if not family(model).shared:
        return found
    inner, groups = config.inner_group_num, config.num_hidden_groups
    return [
        found[i * groups // config.num_hidden_layers * inner + k]
        for i in range(config.num_hidden_layers)
        for k in range(inner)
    ]


def own_layers(model: PreTrainedModel) -> list[Layer]:
    """The layers that have weights of their own: all but ALBERT's repetitions."""
    found = family(model)
    return [_layer(found, module) for module in _modules(model.base_model, found.layers)]


def _layer(found: Family, module: nn.Module) -> Layer:
    def linear(path: str) -> Any:
        return module.get_submodule(path)

    attention = module.get_submodule(found.attention)
    return Layer(
        module=module,
        attention=attention,
        query=linear(found.query),
        key=linear(found.key),
        value=linear(found.value),
        output=linear(found.output),
        positions=tuple(linear for path in found.positions for linear in _modules(module, path)),
        feed_forward=tuple(
            FeedForward(up, down)
            for paths in found.feed_forward
            for up, down in zip(*(_modules(module, path) for path in paths), strict=True)
        ),
        head_size=int(getattr(attention, found.head_dim or "attention_head_size")),  # type: ignore[arg-type]
    )


def _modules(root: nn.Module, path: str) -> Iterator[Any]:
    """The modules at `path`, none where it does not exist."""
    name, _, rest = path.partition(".")
    for child in root.children() if name == "*" else filter(None, [getattr(root, name, None)]):
        yield from _modules(child, rest) if rest else [child]


def refusal(config: Mapping[str, Any], step: Step) -> str | None:
    """Why a model with this config.json cannot take `step`, and what would work; `None` where it can."""
    if not isinstance(step, Distill | Pretrain | Prune) or (isinstance(step, Distill | Pretrain) and step.student):
        return None
    name = str(config.get("model_type"))
    if name.startswith("edgekit-") and isinstance(step, Distill | Pretrain) and not step.layers:
        return None  # trained as it is
    if name not in FAMILIES:
        return f'the family "{name}" is not known; these are: {", ".join(FAMILIES)}'
    try:
        found, full = FAMILIES[name], CONFIG_MAPPING[name].from_dict(dict(config))
    except (ValueError, StrictDataclassError) as error:
        return f"its config.json cannot be used: {' '.join(str(error).split())[:200]}"
    there = full.num_hidden_layers
    if isinstance(step, Prune) and config.get("low_rank"):
        return "its layers are of low rank and cannot be pruned; prune before the step that makes them so"
    if found.shared and step.layers and full.num_hidden_groups > 1:
        return f"{name} with num_hidden_groups = {full.num_hidden_groups} cannot lose layers; leave out layers"
    if isinstance(step, Distill | Pretrain):
        if step.layers and step.layers > there:
            return f"layers = {step.layers}, but the model has {there}; ask for as many or fewer"
        return None
    if found.shared and step.layers:
        return f"the layers of {name} share their weights, fewer are no smaller; use a distill step with layers instead"
    if step.vocabulary and not found.vocabulary:
        return f"{name} has no vocabulary to cut; leave out vocabulary"
    has = {"heads": max(map(len, _heads(full))), "neurons": getattr(full, found.neurons), "layers": there}
    for key, now in has.items():
        wanted = getattr(step, key)
        if wanted is not None and wanted >= now:
            return f"{key} = {wanted} takes nothing away, the model has {now}; ask for fewer, or leave it out"
    return None


def _heads(config: PreTrainedConfig) -> list[list[int]]:
    """By layer with weights of its own, the heads that are there, by their indices in the original model."""
    gone = {int(layer): set(heads) for layer, heads in (getattr(config, "pruned_heads", None) or {}).items()}
    shared = FAMILIES[config.model_type].shared
    layers = config.num_hidden_groups * config.inner_group_num if shared else config.num_hidden_layers
    return [[h for h in range(config.num_attention_heads) if h not in gone.get(i, ())] for i in range(layers)]


def keep_heads(model: PreTrainedModel, keep: Sequence[Sequence[int]]) -> None:
    """Take all heads but `keep[layer]`, by their indices now, out of each layer, in place.

    Where the family has a bias shared by all layers (MPNet), they must keep the same heads; where stock transformers
    is to build it (ViT), the same number.
    """
    found, config = family(model), model.config
    head_size = own_layers(model)[0].head_size
    if found.head_dim:
        setattr(config, found.head_dim, head_size)
        config.num_attention_heads = len(keep[0])
    else:
        kept = [[there[i] for i in layer] for there, layer in zip(_heads(config), keep, strict=True)]
        _set_pruned(config, kept)
    _take_heads(model, [sorted(heads) for heads in keep])
    _forget_grid(config)


def _set_pruned(config: PreTrainedConfig, kept: Sequence[Sequence[int]]) -> None:
    """Write `pruned_heads`: the original heads that are not in `kept`, by layer."""
    every = range(config.num_attention_heads)
    config.pruned_heads = {str(i): [h for h in every if h not in heads] for i, heads in enumerate(kept)}


def _take_heads(model: PreTrainedModel, take: Sequence[Sequence[int]]) -> None:
    """Leave the heads `take[layer]`, in that order."""
    for layer, heads in zip(own_layers(model), take, strict=True):
        units = [head * layer.head_size + i for head in heads for i in range(layer.head_size)]
        for linear in (layer.query, layer.key, layer.value, *layer.positions):
            _keep_rows(linear, units)
        _keep_columns(layer.output, units)
        for name, value in (
            ("num_attention_heads", len(heads)),
            ("n_heads", len(heads)),
            ("all_head_size", len(units)),
        ):
            if hasattr(layer.attention, name):
                setattr(layer.attention, name, value)
    for bias in _modules(model.base_model, family(model).head_bias or "-"):
        bias.weight = _select(bias.weight, 1, take[0])
        bias.embedding_dim = len(take[0])


def pruned(model_class: type[PreTrainedModel], config: PreTrainedConfig) -> type[PreTrainedModel]:
    """`model_class`, or where the configuration says `pruned_heads` or `low_rank` one that builds such layers.

    It keeps the class's name, so transformers loads, saves and names it as the stock class.
    """
    if not getattr(config, "pruned_heads", None) and not getattr(config, "low_rank", None):
        return model_class

    class Pruned(model_class):  # type: ignore[misc, valid-type]
        def __init__(self, config: PreTrainedConfig, *args: Any, **kwargs: Any) -> None:
            super().__init__(config, *args, **kwargs)
            if getattr(config, "pruned_heads", None):
                _take_heads(self, _heads(config))
            if rank := getattr(config, "low_rank", None):
                low_rank.build(self, own_layers(self), rank)

    Pruned.__name__ = Pruned.__qualname__ = model_class.__name__
    return Pruned


def keep_neurons(model: PreTrainedModel, keep: Sequence[Sequence[Sequence[int]]]) -> None:
    """Take all neurons but `keep[layer][network]` out of each feed-forward network, in place; all the same number."""
    _take_neurons(model, [[sorted(neurons) for neurons in networks] for networks in keep])
    setattr(model.config, family(model).neurons, len(keep[0][0]))
    _forget_grid(model.config)


def _take_neurons(model: PreTrainedModel, take: Sequence[Sequence[Sequence[int]]]) -> None:
    for layer, networks in zip(own_layers(model), take, strict=True):
        for (up, down), neurons in zip(layer.feed_forward, networks, strict=True):
            _keep_rows(up, neurons)
            _keep_columns(down, neurons)


def rewire(model: PreTrainedModel, heads: Sequence[Sequence[int]], neurons: Sequence[Sequence[Sequence[int]]]) -> None:
    """Put the heads `[layer]` and neurons `[layer][network]` into these orders, in place.

    All are there, so what the model computes stays the same. Where the family has a bias shared by all layers (MPNet),
    they must have the same order of heads.
    """
    _take_heads(model, heads)
    _take_neurons(model, neurons)


def stack(model: PreTrainedModel) -> tuple[nn.Module, str]:
    """The module that runs the layers one after the other, and its attribute that is the list of them (not ALBERT)."""
    parent, _, name = family(model).layers.removesuffix(".*").rpartition(".")
    return model.base_model.get_submodule(parent), name


def with_layers(model: PreTrainedModel, keep: Sequence[int]) -> PreTrainedModel:
    """A copy of `model` with only the layers `keep` (from 0, ascending), in that order, their weights and its head.

    ALBERT, whose layers are one, is applied `len(keep)` times.
    """
    student = copy.deepcopy(model)
    config, found = student.config, family(student)
    if not found.shared:
        heads = _heads(config)
        encoder, name = stack(student)
        setattr(encoder, name, nn.ModuleList(getattr(encoder, name)[i] for i in keep))
        if getattr(config, "pruned_heads", None):
            _set_pruned(config, [heads[i] for i in keep])
    config.num_hidden_layers = len(keep)
    _forget_grid(config)
    return student


def _forget_grid(config: PreTrainedConfig) -> None:
    """What the whole model was trained for (see `subnetworks.grid`), a part of it was not."""
    config.__dict__.pop("dynabert", None)


def _keep_rows(linear: nn.Linear, rows: Sequence[int]) -> None:
    linear.weight = _select(linear.weight, 0, rows)
    linear.out_features = len(rows)
    if linear.bias is not None:  # pyright: ignore[reportUnnecessaryComparison]
        linear.bias = _select(linear.bias, 0, rows)


def _keep_columns(linear: nn.Linear, columns: Sequence[int]) -> None:
    linear.weight = _select(linear.weight, 1, columns)
    linear.in_features = len(columns)


def _select(weight: torch.Tensor, dim: int, indices: Sequence[int]) -> nn.Parameter:
    kept = weight.detach().index_select(dim, torch.tensor(indices, device=weight.device))
    return nn.Parameter(kept.clone(), requires_grad=weight.requires_grad)
