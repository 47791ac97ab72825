"""What a model is heard to say, against transformers' own attention and hidden states, for every family."""

from pathlib import Path

import families as tiny
import pytest
import torch

from edgekit.pipeline import models
from edgekit.pipeline.signals import Speaker

NO_BIAS = ("bert", "distilbert", "electra", "roberta", "albert", "mobilebert", "vit")


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_speaker(family: str, tmp_path: Path) -> None:
    kind = "image-classification" if family == "vit" else "text-classification"
    tiny.make(tmp_path, family, kind)
    model = models.load(tmp_path, kind)
    if family == "vit":
        batch = {"pixel_values": torch.randn(2, 3, 32, 32)}
    else:
        mask = torch.tensor([[1] * 7, [1] * 5 + [0] * 2])
        ids = torch.randint(5, 60, (2, 7)) * mask + (1 - mask) * models.pad_id(model)
        batch = {"input_ids": ids, "attention_mask": mask, "token_type_ids": torch.zeros_like(ids)}
    model.set_attn_implementation("eager")
    with torch.no_grad():
        said = Speaker(model, kind)(batch)
        taken = {name: batch[name] for name in models.input_names(model)}
        reference = model(**taken, output_hidden_states=True, output_attentions=True)
    assert torch.equal(said.outputs["logits"], reference.logits)
    assert len(said.hidden) == len(reference.hidden_states) == len(said.queries) + 1
    assert len(said.queries) == len(said.keys) == len(reference.attentions)
    if family in NO_BIAS:  # the others add a position bias to q·k, which TinyBERT's loss does not speak of
        for layer, attention in enumerate(reference.attentions, 1):
            scores = said.scores(layer).masked_fill(said.mask[:, None, None, :] == 0, -1e9)
            assert torch.allclose(scores.softmax(-1), attention, atol=1e-5)
