"""MiniLM: the last layer's attention, and how its values relate to each other.

    L = L_AT + L_VR
    L_AT = mean over heads and queries of KL( softmax(Q_t K_t^T / sqrt(d_t)) || softmax(Q_s K_s^T / sqrt(d_s)) )
    L_VR = mean over heads and queries of KL( softmax(V_t V_t^T / sqrt(d_t)) || softmax(V_s V_s^T / sqrt(d_s)) )

of the last layer of each. Wang et al., "MiniLM: Deep Self-Attention Distillation for Task-Agnostic Compression of
Pre-Trained Transformers", 2020, sections 3.1 and 3.2. Depth and width of the student are free, its number of heads is
the teacher's; `minilmv2` is free of that as well.
"""

from collections.abc import Mapping

from torch import Tensor

from edgekit.pipeline.losses._attention import divergence, relation, same_heads, scores
from edgekit.pipeline.losses._params import Weighted
from edgekit.pipeline.signals import Signals, Wanted


class Params(Weighted):
    """No options."""


def reads(params: Params, student: int, teacher: int) -> Wanted:
    """The attention scores and values of the teacher's last layer."""
    return frozenset({("scores", teacher), ("values", teacher)})


def loss(params: Params, student: Signals, teacher: Signals, batch: Mapping[str, Tensor]) -> Tensor:
    """A scalar, the mean over rows, heads and each row's unpadded queries."""
    mine, its = scores("minilm", student, student.depth), scores("minilm", teacher, teacher.depth)
    same_heads("minilm", mine, its)
    values, its_values = student.values[student.depth], teacher.values[teacher.depth]
    relations = relation(values, values), relation(its_values, its_values)
    return divergence(mine, its, student.mask) + divergence(*relations, student.mask)
