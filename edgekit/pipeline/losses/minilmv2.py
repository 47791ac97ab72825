"""MiniLMv2: how queries relate to queries, keys to keys and values to values, in heads of the relation's own.

    L = sum over A of {Q, K, V} of mean over relation heads and tokens of KL( R(A_t) || R(A_s) ),
    R(A) = softmax( A A^T / sqrt(d_r) ),  A [relation heads, tokens, d_r]

of the student's last layer and one of the teacher's. The projections of all attention heads are put side by side and
cut anew into `relation_heads`, so that student and teacher may have any number of heads and any width.

Wang et al., "MiniLMv2: Multi-Head Self-Attention Relation Distillation for Compressing Pretrained Transformers", 2021,
section 3.1 (relations, all three of weight 1), 3.2 (which layer: the last of a teacher of base size; of a large one of
24 layers the 21st for BERT, the 19th for RoBERTa). The paper takes 48 relation heads for base-size teachers.
"""

from collections.abc import Mapping
from math import gcd

import torch
from pydantic import Field
from torch import Tensor

from edgekit.errors import InputError
from edgekit.pipeline.losses._attention import divergence, heard, relation
from edgekit.pipeline.losses._params import Weighted, same_tokens
from edgekit.pipeline.signals import Part, Signals, Wanted

_RELATED: tuple[Part, ...] = ("queries", "keys", "values")


class Params(Weighted):
    """`relation_heads`: how many; by default the most, up to 48, that both models' widths can be cut into with at least
    8 dimensions each. `teacher_layer`: from 1; by default the last."""

    relation_heads: int | None = Field(default=None, ge=1)
    teacher_layer: int | None = Field(default=None, ge=1)


def reads(params: Params, student: int, teacher: int) -> Wanted:
    """Queries, keys and values of one of the teacher's layers."""
    layer = params.teacher_layer or teacher
    if layer > teacher:
        raise InputError(f"minilmv2: teacher_layer = {layer} does not exist: the teacher has {teacher} layers")
    return frozenset((part, layer) for part in _RELATED)


def loss(params: Params, student: Signals, teacher: Signals, batch: Mapping[str, Tensor]) -> Tensor:
    """A scalar, the mean over rows, relation heads and each row's unpadded tokens, summed over the three relations."""
    layer = params.teacher_layer or teacher.depth
    terms: list[Tensor] = []
    for part in _RELATED:
        heard("minilmv2", student.depth in getattr(student, part) and layer in getattr(teacher, part))
        mine, its = getattr(student, part)[student.depth], getattr(teacher, part)[layer]
        same_tokens("minilmv2", mine, its, dimension=2)
        heads = _heads(params.relation_heads, *(each.shape[1] * each.shape[3] for each in (mine, its)))
        mine, its = (_cut(each, heads) for each in (mine, its))
        terms.append(divergence(relation(mine, mine), relation(its, its), student.mask))
    return torch.stack(terms).sum()


def _cut(projected: Tensor, heads: int) -> Tensor:
    """[batch, attention heads, length, size] -> [batch, relation heads, length, size of those]."""
    return projected.transpose(1, 2).flatten(2).unflatten(2, (heads, -1)).transpose(1, 2)


def _heads(asked: int | None, student: int, teacher: int) -> int:
    """How many relation heads widths of `student` and `teacher` are cut into."""
    both = gcd(student, teacher)
    fitting = [n for n in range(1, both + 1) if both % n == 0]
    if asked is None:
        return max(n for n in fitting if n == 1 or (n <= 48 and 8 * n <= min(student, teacher)))
    if asked not in fitting:
        raise InputError(
            f"minilmv2: relation_heads = {asked}: the student's queries are {student} wide, the teacher's {teacher}, "
            f"which can both be cut into {', '.join(map(str, fitting))}"
        )
    return asked
