"""DistilBERT: a language model of fewer layers, from a larger one, on plain text.

    L = 5 T² KL( p_teacher(T) || p_student(T) ) + 2 L_mlm + 1 (1 - cos( h_student, h_teacher ))

with the distributions over the vocabulary at the chosen tokens, softened by T = 2, the masked-LM loss at the same
tokens, and the last hidden states at every real token. Sanh, Debut, Chaumond, Wolf, "DistilBERT", 2019, section 3; the
weights 5, 2, 1 are those that its authors trained with; their own soft targets are at every real token, ours at the
chosen ones, which the masked-LM head has computed anyway. Their student has every other layer of its teacher:
`layers = 6, start = "alternate"`, and its head starts as the teacher's. The states of a student of another width are
first led to the teacher's by a learnt linear map.
"""

from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from edgekit.errors import InputError
from edgekit.pipeline import language
from edgekit.pipeline.methods import Lesson
from edgekit.pipeline.methods.kd import projection
from edgekit.pipeline.methods.masked_lm import MaskedLM
from edgekit.pipeline.methods.masked_lm import Params as _MaskedLM


class Params(_MaskedLM):
    """The weights of the three losses; `share`: of a sequence's tokens, to be predicted."""

    temperature: float = Field(default=2.0, gt=0, allow_inf_nan=False)
    soft: float = Field(default=5.0, ge=0, allow_inf_nan=False)
    masked: float = Field(default=2.0, ge=0, allow_inf_nan=False)
    cosine: float = Field(default=1.0, ge=0, allow_inf_nan=False)


class _DistilBERT(MaskedLM):
    """The student and its head train; the teacher and its head are held outside of the module's own parts."""

    def __init__(self, params: Params, lesson: Lesson) -> None:
        super().__init__(params, lesson)
        teacher = lesson.teachers[0]
        self.projection = projection("auto" if params.cosine else None, self.student.width, teacher.width)
        self._params = params
        self._teacher = (teacher, language.load(teacher.folder, teacher.speaker.model).requires_grad_(False))
        theirs = language.words(teacher.speaker.model).num_embeddings
        mine = language.words(self.student.model).num_embeddings
        if theirs != mine:
            raise InputError(
                f"distilbert: the student knows {mine} tokens, the teacher {theirs}; they must be the same"
            )

    def forward(self, **batch: Any) -> dict[str, Any]:
        """`loss`, and `terms` before their weights."""
        (teacher, its_head), params = self._teacher, self._params
        ids, table = batch["input_ids"], language.words(self.student.model).weight
        chosen = language.choose(ids, batch["attention_mask"], self.tokens.special, self._share)
        hidden = {**batch, "input_ids": language.hide(ids, chosen, self.tokens.mask, len(table))}
        said = self.student(hidden)
        states, logits = said.hidden[said.depth], self.head(said.hidden[said.depth][chosen], table)
        with torch.no_grad():
            heard = teacher.speak(hidden)  # what it said of the text before is of other masks
            its_states = heard.hidden[heard.depth]
            its_table = language.words(teacher.speaker.model).weight
            its_logits = its_head.to(its_states.device)(its_states[chosen], its_table)
        terms = {
            "soft": soft(logits, its_logits, params.temperature),
            "masked": language.loss(logits, ids[chosen]),
        }
        if params.cosine:
            terms["cosine"] = cosine(self.projection(states), its_states, batch["attention_mask"])
        total = torch.stack([getattr(params, name) * term for name, term in terms.items()]).sum()
        return {"loss": total, "terms": terms}


def soft(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T² KL( p_teacher(T) || p_student(T) ), the mean over tokens, of logits [tokens, vocabulary]; in float32."""
    mine, its = (torch.log_softmax(logits.float() / temperature, -1) for logits in (student, teacher))
    kl = nn.functional.kl_div(mine, its, reduction="sum", log_target=True)
    return kl * temperature**2 / max(1, len(student))


def cosine(student: Tensor, teacher: Tensor, real: Tensor) -> Tensor:
    """1 - cos of the states [batch, length, width], the mean over the tokens that are `real`; in float32."""
    tokens = real.bool()
    return (1 - nn.functional.cosine_similarity(student[tokens].float(), teacher[tokens].float(), dim=-1)).mean()


def objective(params: Params, lesson: Lesson) -> nn.Module:
    """The module that `training.train` trains. Raises `InputError` where the teacher has no masked-LM head, or
    knows other tokens than the student."""
    return _DistilBERT(params, lesson)
