"""BERT-EMD: every student layer learns from every teacher layer, as much as the cheapest transport between them says.

    student's layers, shares u [N]       teacher's layers, shares v [M]       sum u = sum v = 1
    distance  D_ij = MSE( S_i, T_j )                                          of hidden states, and of attention scores
    flow      F = argmin sum_ij F_ij D_ij   with F >= 0, rows summing to u, columns to v
    EMD       sum_ij F_ij D_ij              (the flow is a constant: gradients go through D)
    L = b_a EMD(attention) + b_h EMD(hidden) + b_e MSE(embeddings) + the losses on outputs

Cost attention: after each step the shares move to the layers that are cheap to reach. What a unit of a layer's share
costs is c_i = sum_j F_ij D_ij / u_i; the new shares are in proportion to 1 / c_i, or with a `temperature`
softmax_i( (sum_k c_k / c_i) / temperature ); v likewise. There is one set of shares, the mean of those that attention
and hidden states give.

Li, Liu, Zhao, Xu, Yang, Jin, "BERT-EMD: Many-to-Many Layer Mapping for BERT Compression with Earth Mover's Distance",
EMNLP 2020 (arXiv 2010.06133). The defaults, shares in proportion, one set of them, and 0.01 for each part, are those
of the authors' code (github.com/lxk00/BERT-EMD), which had the softmax in an earlier version.

The transport is solved exactly by HiGHS (`scipy.optimize.linprog`), in a few milliseconds a step. Padding never counts.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from edgekit import plugins
from edgekit.errors import InputError
from edgekit.pipeline import families
from edgekit.pipeline.methods import Lesson
from edgekit.pipeline.methods.kd import projected, projection, weight
from edgekit.pipeline.signals import OUTPUTS_ONLY, Signals
from edgekit.records import Record, Use

_KL = (Use(name="kl"),)
_LEAST = 1e-6
"""What a unit of a layer's share costs at least, as a part of what the dearest costs: a layer that costs nothing would
take everything."""


class Params(Record):
    """`attention`, `hidden`, `embeddings`: the weight of each part, 0 leaves it out. `projection`: one map of all the
    student's states to the teacher's width, `auto` for a linear one where the widths are unlike. `losses`: on outputs,
    each by name with its `weight` and parameters. `cost_attention`: whether the layers' shares move; `temperature`: of
    their softmax, `None` for shares in proportion."""

    attention: float = Field(default=0.01, ge=0, allow_inf_nan=False)
    hidden: float = Field(default=0.01, ge=0, allow_inf_nan=False)
    embeddings: float = Field(default=0.01, ge=0, allow_inf_nan=False)
    projection: Literal["auto", "linear", "relu", "tanh"] | None = "auto"
    losses: tuple[Use, ...] = _KL
    cost_attention: bool = True
    temperature: float | None = Field(default=None, gt=0, allow_inf_nan=False)


class _Emd(nn.Module):
    """The student trains; the teacher is held outside of the module's own parts, so no checkpoint stores it. The
    layers' shares are buffers, so a training that goes on from a checkpoint goes on with them."""

    def __init__(self, params: Params, lesson: Lesson) -> None:
        super().__init__()
        self._params = params
        self._teacher, self._losses = _checked(params, lesson)
        (teacher,) = self._teacher
        self.student = lesson.student
        self.progress = 0.0
        self.projection = projection(params.projection, self.student.width, teacher.width)
        self.mine: Tensor
        self.its: Tensor
        self.register_buffer("mine", torch.full((self.student.depth,), 1 / self.student.depth, dtype=torch.float64))
        self.register_buffer("its", torch.full((teacher.depth,), 1 / teacher.depth, dtype=torch.float64))
        layers = range(1, teacher.depth + 1)
        self.wanted = frozenset({
            *OUTPUTS_ONLY,
            *(("scores", layer) for layer in layers if params.attention),
            *(("hidden", layer) for layer in layers if params.hidden),
            *((("hidden", 0),) if params.embeddings else ()),
        })  # fmt: skip

    def forward(self, **batch: Any) -> dict[str, Any]:
        """`loss`, and `terms` before their weights."""
        params, (teacher,) = self._params, self._teacher
        wisdom, said = teacher(batch, self.wanted), self.student(batch)
        mapped = projected(said, self.projection)
        terms: dict[str, Tensor] = {}
        total: list[Tensor] = []
        moved: list[tuple[np.ndarray, np.ndarray]] = []
        for name, part, states in (("attention", params.attention, _scores), ("hidden", params.hidden, _hidden)):
            if part:
                terms[name], shares = self._transport(*states(mapped, wisdom))
                moved.append(shares)
                total.append(part * terms[name])
        if params.embeddings:
            real = said.mask[..., None].float()
            terms["embeddings"] = _distance(mapped.hidden[0], wisdom.hidden[0], real)
            total.append(params.embeddings * terms["embeddings"])
        for number, (loss, its) in enumerate(self._losses, 1):
            term = terms[f"{number} {loss.__name__.rpartition('.')[2]}"] = loss.loss(its, said, wisdom, batch)
            total.append(weight(its.weight, its.schedule, self.progress) * term)
        if moved and self.training and params.cost_attention:
            for kept, shares in zip((self.mine, self.its), zip(*moved, strict=True), strict=True):
                kept.copy_(torch.from_numpy(np.mean(shares, axis=0)))
        return {"loss": torch.stack(total).sum(), "terms": terms}

    def _transport(
        self, mine: Sequence[Tensor], its: Sequence[Tensor], real: Tensor
    ) -> tuple[Tensor, tuple[np.ndarray, np.ndarray]]:
        """The EMD of the student's states and the teacher's, and the shares of both that cost attention gives."""
        with torch.no_grad():
            pairs = [_distance(one, other, real) for one in mine for other in its]
            distances = torch.stack(pairs).view(len(mine), len(its)).cpu().double().numpy()
        u, v = self.mine.cpu().numpy(), self.its.cpu().numpy()
        moved = flow(distances, u, v)
        emd = [float(moved[i, j]) * _distance(mine[i], its[j], real) for i, j in zip(*np.nonzero(moved), strict=True)]
        cost, temperature = moved * distances, self._params.temperature
        return torch.stack(emd).sum(), (attended(cost.sum(1), u, temperature), attended(cost.sum(0), v, temperature))


def flow(distances: np.ndarray, supply: np.ndarray, demand: np.ndarray) -> np.ndarray:
    """The cheapest transport [N, M]: rows sum to `supply` [N], columns to `demand` [M], whose sums are equal.

    >>> flow(np.array([[0.0, 1.0], [1.0, 0.0]]), np.array([0.5, 0.5]), np.array([0.25, 0.75]))
    array([[0.25, 0.25],
           [0.  , 0.5 ]])

    Raises `InputError` for distances that are not finite.
    """
    from scipy.optimize import linprog

    if not np.isfinite(distances).all():
        raise InputError("emd: the states of student and teacher are no longer finite; lower the learning_rate")
    n, m = distances.shape
    scale = max(float(distances.max()), np.finfo(float).tiny)  # the solver's tolerances are absolute
    rows, columns = np.kron(np.eye(n), np.ones(m)), np.kron(np.ones(n), np.eye(m))
    found = linprog(
        distances.ravel() / scale,
        A_eq=np.concatenate([rows, columns[:-1]]),  # the last column follows from the others
        b_eq=np.concatenate([supply, demand[:-1]]),
        method="highs",
    )
    return found.x.reshape(n, m).clip(min=0)


def attended(costs: np.ndarray, shares: np.ndarray, temperature: float | None) -> np.ndarray:
    """The new shares of layers whose `shares` cost `costs` to move: the cheaper a unit, the greater the share.

    >>> attended(np.array([1.0, 1.0]), np.array([0.25, 0.75]), None)      # a unit costs 4 and 4/3
    array([0.25, 0.75])
    """
    unit = costs / np.maximum(shares, np.finfo(float).tiny)
    if unit.max() <= 0:
        return shares
    unit = np.maximum(unit, _LEAST * unit.max())
    inverse = unit.sum() / unit
    if temperature is not None:
        inverse = np.exp((inverse - inverse.max()) / temperature)
    return inverse / inverse.sum()


def _hidden(mine: Signals, its: Signals) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Both models' states without the embeddings, and [batch, length, 1], 1 where a token is real."""
    states = [[said.hidden[layer] for layer in range(1, said.depth + 1)] for said in (mine, its)]
    return states[0], states[1], mine.mask[..., None].float()


def _scores(mine: Signals, its: Signals) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Both models' attention scores, their mean over heads where one has fewer, and which pairs of tokens are real."""
    scores = [[said.scores(layer) for layer in range(1, said.depth + 1)] for said in (mine, its)]
    if len({each.shape[1] for both in scores for each in both}) > 1:
        scores = [[each.float().mean(1, keepdim=True) for each in both] for both in scores]
    real = mine.mask.float()
    return scores[0], scores[1], real[:, None, :, None] * real[:, None, None, :]


def _distance(mine: Tensor, its: Tensor, real: Tensor) -> Tensor:
    """The mean square difference where `real`, which broadcasts to the states' shape, is 1."""
    squares = torch.nn.functional.mse_loss(mine.float(), its.float(), reduction="none")
    return (squares * real).sum() / (real.sum() * (squares.numel() / real.numel()))


def _checked(params: Params, lesson: Lesson) -> tuple[tuple[Any, ...], list[tuple[Any, Any]]]:
    """The one teacher, and the losses on outputs; refuses what cannot be compared."""
    if len(lesson.teachers) != 1:
        raise InputError(f"emd: takes one teacher, found {len(lesson.teachers)}; use the method multi_teacher")
    (teacher,) = lesson.teachers
    if not params.projection and (params.hidden or params.embeddings) and lesson.student.width != teacher.width:
        raise InputError(
            f"emd: the student's states are {lesson.student.width} wide, the teacher's {teacher.width}; "
            'give the method projection = "auto"'
        )
    if refused := refusal(params, lesson.student.model.config.to_dict()):
        raise InputError(refused)
    losses = [plugins.use("losses", use, "emd: losses") for use in params.losses]
    for use, (loss, its) in zip(params.losses, losses, strict=True):
        if loss.reads(its, lesson.student.depth, teacher.depth) - OUTPUTS_ONLY:
            raise InputError(f"emd: {use.name} compares layers, which emd itself does; leave it out, or use kd")
    if not losses and not (params.attention or params.hidden or params.embeddings):
        raise InputError("emd: nothing is compared; give attention, hidden or embeddings a weight above 0, or losses")
    return lesson.teachers, losses


def refusal(params: Params, config: Mapping[str, Any]) -> str | None:
    """Why a student with this config.json cannot be taught so, and what would work; `None` where it can."""
    if params.attention and config.get("model_type") not in families.FAMILIES:
        return "emd: this student has no attention to compare; set attention = 0"
    return None


def objective(params: Params, lesson: Lesson) -> nn.Module:
    """The module that `training.train` trains. Raises `InputError` for several teachers, states of unlike width
    without a projection, a student without attention, and losses on layers."""
    return _Emd(params, lesson)
