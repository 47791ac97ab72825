"""ELECTRA: learn from every token of a text which ones a small generator has replaced.

    text       the chef cooked the meal
    masked     [MASK] chef [MASK] the meal            the generator, a masked language model, fills the gaps:
    filled     the    chef  ate   the meal            samples x ~ p_G, not its best guess
    truth      0      0     1     0   0               the student says of each token whether it was replaced

    L = L_mlm(generator) + 50 · mean over real tokens i of BCE( D(filled)_i, [filled_i != x_i] )

Clark, Luong, Le, Manning, "ELECTRA", 2020, section 2: a sampled token that is the true one counts as true, and no
gradient flows through the sampling. Section 3.2: the generator is the student's shape at a share of its width, 1/4 to
1/2 being best, and shares its embeddings; as in the authors' code that is all of them, words, positions and layer norm,
and a linear map leads to the generator's width. Generator and detecting head are dropped after. Any text model can be
the student.
"""

from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn
from transformers import PreTrainedModel

from edgekit.pipeline import language
from edgekit.pipeline.methods import Lesson
from edgekit.records import Record

_INNER = 4
"""A feed-forward network's width over the hidden states'."""


class Params(Record):
    """`generator`: its width as a share of the student's, and `layers` (`None`: as many as the student's). `share`: of
    a sequence's tokens, masked. `weight`: of the detection loss."""

    generator: float = Field(default=0.25, gt=0, le=1)
    layers: int | None = Field(default=None, ge=1)
    share: float = Field(default=0.15, gt=0, lt=1)
    weight: float = Field(default=50.0, gt=0, allow_inf_nan=False)


class Generator(nn.Module):
    """A small masked language model over the embeddings of another model, which it does not own."""

    def __init__(self, model: PreTrainedModel, params: Params, width: int, depth: int) -> None:
        super().__init__()
        base: Any = model.base_model
        table = language.words(model)
        self._theirs = (getattr(base, "embeddings", table), table)  # in a tuple: parts of the student, not of this
        theirs = self._theirs[0].training
        with torch.no_grad():
            embedded = self._theirs[0].eval()(torch.zeros(1, 1, dtype=torch.long, device=table.weight.device))
        self._theirs[0].train(theirs)
        heads = next(n for n in range(max(1, width // 64), width + 1) if width % n == 0)
        self.project = nn.Linear(embedded.shape[-1], width)
        self.positions = (
            None
            if getattr(self._theirs[0], "position_embeddings", None) is not None
            else nn.Embedding(getattr(model.config, "max_position_embeddings", 512), width)
        )
        layer = nn.TransformerEncoderLayer(width, heads, _INNER * width, activation="gelu", batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, params.layers or depth, enable_nested_tensor=False)
        self.head = language.Head(width, table.embedding_dim, table.num_embeddings)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
        for name, value in self.named_parameters():
            if name.endswith("in_proj_weight"):
                nn.init.normal_(value, std=0.02)

    def forward(self, ids: Tensor, real: Tensor, chosen: Tensor) -> Tensor:
        """Logits of the chosen tokens of `ids` [batch, length]: [tokens, vocabulary]."""
        embed, table = self._theirs
        states = self.project(embed(ids))
        if self.positions is not None:
            states = states + self.positions(torch.arange(ids.shape[1], device=ids.device))
        states = self.encoder(states, src_key_padding_mask=real == 0)
        return self.head(states[chosen], table.weight)


class _Electra(nn.Module):
    """The student as discriminator, its detecting head, and the generator."""

    WHOLE_TABLE = True  # the generator's head compares states with every word

    def __init__(self, params: Params, lesson: Lesson) -> None:
        super().__init__()
        self.student = lesson.student
        self.tokens = language.Tokens.of(lesson.teachers[0].folder)
        width = self.student.width
        self.generator = Generator(
            self.student.model, params, max(8, round(params.generator * width / 8) * 8), self.student.depth
        )
        self.detector = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, 1))
        self._params = params

    def forward(self, **batch: Any) -> dict[str, Any]:
        """`loss`, and `terms` before their weights: `masked` of the generator, `replaced` of the student."""
        ids, real = batch["input_ids"], batch["attention_mask"]
        chosen = language.choose(ids, real, self.tokens.special, self._params.share)
        logits = self.generator(ids.masked_fill(chosen, self.tokens.mask), real, chosen)
        filled = ids.masked_scatter(chosen, sample(logits))
        said = self.student({**batch, "input_ids": filled})
        found = self.detector(said.hidden[said.depth]).squeeze(-1)
        masked, replaced = language.loss(logits, ids[chosen]), detection(found, filled != ids, real)
        return {
            "loss": masked + self._params.weight * replaced,
            "terms": {"masked": masked, "replaced": replaced},
        }


def sample(logits: Tensor) -> Tensor:
    """A token drawn from the distribution of each row of logits [tokens, vocabulary]: argmax of logits and Gumbel
    noise -log(-log u), which is the softmax's distribution. No gradient flows."""
    with torch.no_grad():
        uniform = torch.rand(logits.shape, device=logits.device).clamp(1e-20, 1 - 1e-7)
        return (logits.float() - torch.log(-torch.log(uniform))).argmax(-1)


def detection(found: Tensor, replaced: Tensor, real: Tensor) -> Tensor:
    """Binary cross-entropy of logits [batch, length] with what was replaced, the mean over real tokens, in float32."""
    tokens = real.bool()
    return nn.functional.binary_cross_entropy_with_logits(found[tokens].float(), replaced[tokens].float())


def objective(params: Params, lesson: Lesson) -> nn.Module:
    """The module that `training.train` trains. Raises `InputError` where the model is not one of text."""
    return _Electra(params, lesson)
