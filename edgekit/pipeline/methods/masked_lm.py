"""Masked language modelling: find the tokens that were hidden, from those around them.

    L = - mean over chosen tokens i of log p(x_i | x with the chosen tokens hidden)

Devlin, Chang, Lee, Toutanova, "BERT", 2019, section 3.1, task 1: 15 % of a sequence's tokens are chosen; of these 80 %
become [MASK], 10 % a random token, 10 % stay. They are drawn anew each time that a sequence is seen (Liu et al.,
"RoBERTa", 2019, section 4.1). The logits, the greatest cost of a small model, are computed at the chosen tokens only.
"""

from typing import Any

from pydantic import Field
from torch import Tensor, nn

from edgekit.pipeline import language
from edgekit.pipeline.methods import Lesson
from edgekit.records import Record


class Params(Record):
    """`share`: of a sequence's tokens, to be predicted."""

    share: float = Field(default=0.15, gt=0, lt=1)


class MaskedLM(nn.Module):
    """The student and a masked-LM head, which starts as the first teacher's where that has one of its shape."""

    WHOLE_TABLE = True  # the head compares states with every word

    def __init__(self, params: Params, lesson: Lesson) -> None:
        super().__init__()
        folder = lesson.teachers[0].folder
        self.student = lesson.student
        self.head = language.new_head(self.student.model, folder)
        self.tokens = language.Tokens.of(folder)
        self._share = params.share

    def forward(self, **batch: Any) -> dict[str, Tensor]:
        """`loss`: in nats a chosen token."""
        ids, table = batch["input_ids"], language.words(self.student.model).weight
        chosen = language.choose(ids, batch["attention_mask"], self.tokens.special, self._share)
        hidden = language.hide(ids, chosen, self.tokens.mask, len(table))
        said = self.student({**batch, "input_ids": hidden})
        return {"loss": language.loss(self.head(said.hidden[said.depth][chosen], table), ids[chosen])}


def objective(params: Params, lesson: Lesson) -> MaskedLM:
    """The module that `training.train` trains. Raises `InputError` where the model is not one of text."""
    return MaskedLM(params, lesson)
