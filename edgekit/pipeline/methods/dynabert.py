"""DynaBERT: one training for all sub-networks of a grid of widths and depths, each of which an extract step takes out.

Before the first training heads and neurons are put in order of importance in every layer (criterion `taylor`), which
changes nothing of what the model computes: the sub-network of width w has the first w of them, so that the important
ones are shared by most sub-networks. Then, for each batch, the gradients of all sub-networks are summed:

    L = sum over (w, d) of   logits * SCE(y[w,d], y') + labels * CE(y[w,d], truth)
                           + hidden * ( MSE(E[w,d], E') + sum over layers of MSE(H[w,d], H') )

    first step:   y', E', H' are the teacher's;  depths = [1.0], hidden = 0.1
    later steps:  they are of the model before, frozen, at the same width and all its layers;  hidden = 1.0

Hou et al., "DynaBERT: Dynamic BERT with Adaptive Width and Depth", 2020: section 2.1 for rewiring and width, with the
losses on logits, embeddings and hidden states; section 2.2 for depth; their weights as in section 3. A layer that stays
is held against what the next one that stays took in before, the last against the last, as in the authors' code. A step
with `labels = 1` and no distillation is their final fine-tuning. Where the model has no logits (sentence embeddings),
the mean squared error of its outputs stands for the soft cross-entropy SCE.

Sub-networks compute with views of the weights, so a narrow one costs less. Each is done with, gradients and all, before
the next one starts: the activations of one are in memory, not of all.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn

from edgekit.errors import InputError
from edgekit.pipeline import families, importance
from edgekit.pipeline.criteria import taylor
from edgekit.pipeline.losses import cross_entropy, hidden_mse, output_mse, soft_cross_entropy
from edgekit.pipeline.methods import Lesson
from edgekit.pipeline.signals import Signals, Speaker, Wanted, uniform_map
from edgekit.pipeline.subnetworks import SubNetwork, first, grid, kept
from edgekit.records import Record

_SOFT = soft_cross_entropy.Params(temperature=1.0)
WIDTHS = (1.0, 0.75, 0.5, 0.25)
"""Of a first step that names none."""


class Params(Record):
    """The grid, and the weights of the losses."""

    widths: tuple[float, ...] | None = None
    """Shares of heads and neurons; `None`: those that the model was trained with before, else 0.25, 0.5, 0.75, 1."""
    depths: tuple[float, ...] = (1.0, 0.75, 0.5)
    """Shares of layers."""
    logits: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    """Lambda 1 in the paper."""
    hidden: float = Field(default=0.1, ge=0, allow_inf_nan=False)
    """Lambda 2: of embeddings and hidden states."""
    labels: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """Of the cross-entropy with the true labels."""

    @field_validator("widths", "depths")
    @classmethod
    def _with_the_whole(cls, shares: tuple[float, ...] | None) -> tuple[float, ...] | None:
        if shares is None:
            return None
        if 1.0 not in shares or len(set(shares)) < len(shares) or not all(0 < share <= 1 for share in shares):
            raise ValueError("take different shares above 0 and up to 1, with 1.0, the whole model, among them")
        return tuple(sorted(shares, reverse=True))

    @model_validator(mode="after")
    def _has_a_loss(self) -> "Params":
        if not (self.logits or self.hidden or self.labels):
            raise ValueError("nothing to learn from; give logits, hidden or labels a weight above 0")
        return self


class _Cell(NamedTuple):
    """A sub-network, and which of its layers is held against which of its teacher's; 0 for the embeddings."""

    network: SubNetwork
    pairs: tuple[tuple[int, int], ...]


class _Dynamic(nn.Module):
    """`before`: the weights that the student starts with are its teacher, at each width."""

    WHOLE_TABLE = True  # the sub-networks are run with weights by name

    def __init__(self, params: Params, lesson: Lesson, widths: tuple[float, ...], before: bool) -> None:
        super().__init__()
        student: Speaker = lesson.student
        self.student, self.params, self.kind, self._teachers = student, params, lesson.kind, lesson.teachers
        self._before = _copy(student) if before else None
        depth = student.depth if before else self._teachers[0].depth
        toward = (0, *uniform_map(student.depth, depth))
        self._by_width: list[tuple[_Cell, ...]] = []  # of each width the whole depth first
        for width in widths:
            cells: list[_Cell] = []
            for share in params.depths:
                passed = (*kept(share, student.depth), student.depth)  # layers before each that stays, and all
                pairs = tuple((mine, toward[its]) for mine, its in enumerate(passed))
                cells.append(_Cell(SubNetwork(student, lesson.kind, width, share), pairs))
            self._by_width.append(tuple(cells))
        states = {its for cells in self._by_width for cell in cells for _, its in cell.pairs if params.hidden}
        self.wanted: Wanted = frozenset({("outputs", 0), *(("hidden", layer) for layer in states)})

    def forward(self, **batch: Any) -> dict[str, Any]:
        """`loss`, and `terms` before their weights, each summed over the sub-networks."""
        weights, buffers = dict(self.student.named_parameters()), dict(self.student.named_buffers())
        gradients: dict[str, Tensor] = {}
        terms: dict[str, list[Tensor]] = {}
        losses: list[Tensor] = []
        taught = bool(self.params.logits or self.params.hidden)
        wisdom: Signals | None = self._teachers[0](batch, self.wanted) if taught and self._before is None else None
        for cells in self._by_width:
            if taught and self._before is not None:
                wisdom = self._same_width(self._before, cells[0].network, buffers, batch)
            for cell in cells:
                parts = {name: view.detach() for name, view in cell.network.views(weights).items()}
                for name, part in parts.items():
                    part.requires_grad_(weights[cell.network.names[name]].requires_grad)
                loss = self._loss(cell, cell.network.speak(parts, buffers, batch, self.training), wisdom, batch, terms)
                if torch.is_grad_enabled():
                    _add(gradients, loss, cell.network, parts, weights)
                losses.append(loss.detach())
        learnt = [name for name, weight in weights.items() if weight.requires_grad]
        total = _Told.apply(
            torch.stack(losses).sum(), [gradients.get(name) for name in learnt], *(weights[name] for name in learnt)
        )
        return {"loss": total, "terms": {name: torch.stack(each).sum() for name, each in terms.items()}}

    @torch.no_grad()
    def _same_width(
        self, before: dict[str, Tensor], network: SubNetwork, buffers: dict[str, Tensor], batch: Mapping[str, Tensor]
    ) -> Signals:
        for name, tensor in before.items():
            before[name] = tensor.to(self.student.model.device)  # the student may have moved to a GPU since
        return network.speak(network.views(before), buffers, batch, False)

    def _loss(
        self,
        cell: _Cell,
        said: Signals,
        wisdom: Signals | None,
        batch: Mapping[str, Tensor],
        terms: dict[str, list[Tensor]],
    ) -> Tensor:
        params = self.params
        parts: dict[str, tuple[float, Tensor]] = {}
        if wisdom and params.logits and self.kind == "sentence-embedding":
            parts["logits"] = params.logits, output_mse.loss(output_mse.Params(), said, wisdom, batch)
        elif wisdom and params.logits:
            parts["logits"] = params.logits, soft_cross_entropy.loss(_SOFT, said, wisdom, batch)
        if wisdom and params.hidden:
            parts["hidden"] = params.hidden, hidden_mse.loss(hidden_mse.Params(layers=cell.pairs), said, wisdom, batch)
        if params.labels:
            parts["labels"] = params.labels, cross_entropy.loss(cross_entropy.Params(), said, said, batch)
        for name, (_, loss) in parts.items():
            terms.setdefault(name, []).append(loss.detach())
        return torch.stack([weight * loss for weight, loss in parts.values()]).sum()


class _Told(torch.autograd.Function):
    """A loss whose gradients are known already."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, gradients: list[Tensor | None], *weights: Tensor) -> Tensor:
        ctx.gradients = gradients
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> Any:
        return None, None, *(each if each is None else outer[0] * each for each in ctx.gradients)


def _add(
    gradients: dict[str, Tensor],
    loss: Tensor,
    network: SubNetwork,
    parts: Mapping[str, Tensor],
    weights: Mapping[str, Tensor],
) -> None:
    """Add the gradients of `loss`, for those `parts` of the `weights` that the sub-network has, to `gradients`."""
    learnt = [name for name, part in parts.items() if part.requires_grad]
    found: Any = torch.autograd.grad(loss, [parts[name] for name in learnt], allow_unused=True)
    for whole, gradient in zip((network.names[name] for name in learnt), found, strict=True):
        if gradient is not None:
            if whole not in gradients:
                gradients[whole] = torch.zeros_like(weights[whole])
            first(gradients[whole], gradient.shape).add_(gradient)
    torch.clear_autocast_cache()  # it would hold a half-precision copy of every sub-network's weights


def _copy(student: Speaker) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in student.named_parameters()}


def refusal(params: Params, config: Mapping[str, Any]) -> str | None:
    """Why a model with this config.json has no such sub-networks, and what would work; `None` where it has."""
    name = str(config.get("model_type"))
    if name not in families.FAMILIES:
        return f'dynabert: the family "{name}" is not known; these are: {", ".join(families.FAMILIES)}'
    groups = config.get("num_hidden_groups", 1)
    if families.FAMILIES[name].shared and groups > 1 and min(params.depths) < 1:
        return f"dynabert: {name} with num_hidden_groups = {groups} cannot lose layers; take depths = [1.0]"
    if config.get("low_rank"):
        return "dynabert: the model's layers are of low rank, which have no neurons of their own; take another student"
    trained = grid(config)
    if trained and params.widths and not set(params.widths) <= set(trained["widths"]):
        return (
            f"dynabert: widths = {sorted(params.widths)}, but the step before trained {trained['widths']}; take some "
            "of these, or leave widths out"
        )
    return None


def objective(params: Params, lesson: Lesson) -> nn.Module:
    """The module that `training.train` trains. Writes the grid to the configuration of the student, whose heads and
    neurons it puts in order where that was not done by a step before. Raises `InputError` where `refusal` says why, and
    for a teacher or labels that do not fit."""
    model = lesson.student.model
    if refused := refusal(params, model.config.to_dict()):
        raise InputError(refused)
    if params.labels and not lesson.features[0].labels:
        raise InputError(f"dynabert: labels = {params.labels:g}, but these rows have no labels; leave it out")
    trained = grid(model.config.to_dict())
    if trained is None:
        if len(lesson.teachers) != 1:
            raise InputError(f"dynabert: takes one teacher, found {len(lesson.teachers)}")
        if params.hidden and lesson.teachers[0].width != lesson.student.width:
            raise InputError(
                f"dynabert: the student's states are {lesson.student.width} wide, the teacher's "
                f"{lesson.teachers[0].width}; take hidden = 0, or a student of the teacher's width"
            )
        scores = importance.scores(taylor, taylor.Params(), model, lesson.features, lesson.kind, lesson.seed)
        heads, neurons = scores
        families.rewire(
            model,
            [importance.order(each) for each in heads],
            [[importance.order(each) for each in networks] for networks in neurons],
        )
    widths = params.widths or (tuple(sorted(trained["widths"], reverse=True)) if trained else WIDTHS)
    model.config.dynabert = {"widths": sorted(widths), "depths": sorted(params.depths)}
    return _Dynamic(params, lesson, widths, before=trained is not None)
