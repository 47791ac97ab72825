"""Supervised training: hard labels by hand, whatever the padding and whatever config.json says of the loss."""

from pathlib import Path
from typing import Any

import lessons
import numpy as np
import pytest
import torch

from edgekit.pipeline.methods import supervised
from edgekit.records import Kind


def by_hand(logits: np.ndarray, truth: int) -> float:
    return float(np.log(np.exp(logits - logits.max()).sum()) + logits.max() - logits[truth])


@pytest.mark.parametrize(
    ("family", "kind"),
    [("bert", "text-classification"), ("bert", "token-classification"), ("distilbert", "question-answering"),
     ("vit", "image-classification")],
)  # fmt: skip
def test_the_loss_by_hand(family: str, kind: Kind, tmp_path: Path) -> None:
    given = lessons.lesson(tmp_path, family, kind)
    given.student.model.config.problem_type = "multi_label_classification"  # as some configurations on hubs say
    trained = supervised.objective(supervised.Params(), given).eval()
    rows = lessons.batch(given)
    found = trained(**rows)["loss"]
    with torch.no_grad():
        said = given.student(rows).outputs
    wanted: list[float] = []
    for name, truths in (("logits", "labels"), ("start_logits", "start_positions"), ("end_logits", "end_positions")):
        if name in said:
            own: list[float] = []
            for i, logits in enumerate(said[name].numpy()):
                n = len(rows["input_ids"][i]) if "input_ids" in rows else 0
                real = int(rows["attention_mask"][i].sum()) if n else 0
                truth = rows[truths][i]
                tokens = [(logits, truth)] if truth.dim() == 0 else zip(logits[:real], truth[:real], strict=True)
                own += [by_hand(z[:real] if truths != "labels" else z, int(label)) for z, label in tokens]
            wanted.append(float(np.mean(own)))
    assert found.item() == pytest.approx(np.mean(wanted), rel=1e-5)


def test_padding_does_not_count_in_answers(tmp_path: Path) -> None:
    given = lessons.lesson(tmp_path, "bert", "question-answering")
    trained = supervised.objective(supervised.Params(), given).eval()
    rows = lessons.batch(given)
    wider: dict[str, Any] = {
        name: torch.nn.functional.pad(tensor, (0, 9)) if tensor.dim() == 2 else tensor for name, tensor in rows.items()
    }
    assert trained(**wider)["loss"].item() == pytest.approx(trained(**rows)["loss"].item(), rel=1e-5)


def test_a_batch_without_labels_teaches_nothing(tmp_path: Path) -> None:
    """A window in the middle of a very long word has none."""
    given = lessons.lesson(tmp_path, "bert", "token-classification")
    trained = supervised.objective(supervised.Params(), given)
    rows = lessons.batch(given)
    found = trained(**{**rows, "labels": torch.full_like(rows["labels"], -100)})["loss"]
    found.backward()
    assert found.item() == 0
    assert not any(p.grad.any() for p in given.student.parameters() if p.grad is not None)
