"""What the losses on attention share: scores and relations in float32, and what is compared of padded rows.

Scores [batch, heads, length, length] are those before the softmax, q·k / sqrt(d), without a family's own bias of
positions. A padded token is no key (it gets no probability) and no query (its row does not count).
"""

from collections.abc import Callable

import torch
from torch import Tensor

from edgekit.errors import InputError
from edgekit.pipeline.losses._params import Matched, dot, mean_square, pairs, product, same_tokens
from edgekit.pipeline.signals import Signals, Wanted


class Params(Matched):
    """Which layers' scores are compared."""


def reads(params: Params, student: int, teacher: int) -> Wanted:
    """The teacher's attention scores of the pairs of layers."""
    return frozenset(("scores", its) for _, its in pairs(params.layers, student, teacher))


def over_pairs(
    name: str, params: Params, student: Signals, teacher: Signals, compared: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """The sum over the pairs of layers of what `compared` says of their scores, for the loss `name`."""
    terms = [
        compared(scores(name, student, layer), scores(name, teacher, its))
        for layer, its in pairs(params.layers, student.depth, teacher.depth)
    ]
    return torch.stack(terms).sum()


def scores(name: str, signals: Signals, layer: int) -> Tensor:
    """The scores of a layer for the loss `name`, in float32. Raises `InputError` where the model has no attention."""
    if layer in signals.kept:
        return signals.kept[layer].float()
    heard(name, layer in signals.queries)
    query, key = signals.queries[layer], signals.keys[layer]
    return relation(query, key)


def relation(one: Tensor, other: Tensor) -> Tensor:
    """a·b / sqrt(d) of each pair of tokens: [batch, heads, length, d] twice to [batch, heads, length, length]."""
    return product(one.float() * one.shape[-1] ** -0.5, other.transpose(-1, -2))


def heard(name: str, there: bool) -> None:
    """Refuse a model whose attention cannot be read."""
    if not there:
        raise InputError(
            f"{name}: one of the models has no attention that can be read, or its family is not known; use losses on "
            "outputs or hidden states"
        )


def same_heads(name: str, mine: Tensor, its: Tensor) -> None:
    """Refuse unlike numbers of heads."""
    if mine.shape[1] != its.shape[1]:
        raise InputError(
            f"{name}: the student has {mine.shape[1]} heads in this layer, the teacher {its.shape[1]}, and this loss "
            "compares head with head; use attention_ce_mean, attention_mse (both compare the means over heads), "
            "attention_mse_sum or minilmv2"
        )


def squared(mine: Tensor, its: Tensor, mask: Tensor) -> Tensor:
    """The mean over heads and pairs of unpadded tokens of (mine - its)^2, of scores or whatever has their shape."""
    same_tokens("attention", mine, its, dimension=-1)
    real = mask.bool()
    both = real[:, None, :, None] & real[:, None, None, :]
    return mean_square(mine, its, both)


def cross_entropy(mine: Tensor, its: Tensor, mask: Tensor) -> Tensor:
    """The mean over heads and unpadded queries of - sum over keys of softmax(its) * log softmax(mine)."""
    padded = _padded(mine, its, mask)
    queries = mask.bool()[:, None, :, None]
    wanted = (its + padded).softmax(-1).mul_(queries.float())
    return -dot(wanted, (mine + padded).log_softmax(-1)) / (queries.sum() * mine.shape[1])


def divergence(mine: Tensor, its: Tensor, mask: Tensor) -> Tensor:
    """The mean over rows, heads and each row's unpadded queries of KL( softmax(its) || softmax(mine) ) over keys."""
    padded = _padded(mine, its, mask)
    mine, its = (mine + padded).log_softmax(-1), (its + padded).log_softmax(-1)
    unpadded = mask.bool()[:, None, :]
    each = torch.nn.functional.kl_div(mine, its, log_target=True, reduction="none").sum(-1)
    return (each.masked_fill(~unpadded, 0).sum(-1) / unpadded.sum(-1).clamp(min=1)).mean()


def _padded(mine: Tensor, its: Tensor, mask: Tensor) -> Tensor:
    """What is added to scores so that padded keys get no probability: [batch, 1, 1, length]."""
    same_tokens("attention", mine, its, dimension=-1)
    return (1 - mask[:, None, None, :].float()) * torch.finfo(torch.float32).min
