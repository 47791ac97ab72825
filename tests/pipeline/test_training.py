"""Training: the layout of batches, and that a killed run ends as an unbroken one does."""

from pathlib import Path

import numpy as np
import pytest
import torch

from edgekit.pipeline import training
from edgekit.recipe import Training
from edgekit.tasks import Feature


def test_layout_shows_every_example_once_an_epoch_with_like_lengths_together() -> None:
    rng = np.random.default_rng(0)
    lengths = rng.integers(5, 60, 333).tolist()
    batches = training.layout(lengths, batch_size=8, epochs=2, seed=1)
    half = len(batches) // 2
    for epoch in (batches[:half], batches[half:]):
        assert sorted(i for batch in epoch for i in batch) == list(range(333))
    padding = sum(max(lengths[i] for i in b) * len(b) for b in batches) / (2 * sum(lengths))
    assert padding < 1.1
    assert batches == training.layout(lengths, 8, 2, seed=1)
    assert batches != training.layout(lengths, 8, 2, seed=2)


def test_layout_of_part_of_an_epoch() -> None:
    assert len(training.layout([4] * 100, batch_size=10, epochs=0.5, seed=0)) == 5
    assert len(training.layout([4] * 3, batch_size=10, epochs=0.01, seed=0)) == 1


class Fit(torch.nn.Module):
    """Learns to tell the length; counts its batches, dies at one of them."""

    def __init__(self, dies_at: int | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = torch.nn.Embedding(30, 4)
        self.drop = torch.nn.Dropout(0.2)
        self.head = torch.nn.Linear(4, 1)
        self.dies_at, self.seen = dies_at, 0

    def forward(
        self, index: torch.Tensor, input_ids: torch.Tensor, attention_mask: torch.Tensor, labels: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        self.seen += 1
        if self.seen == self.dies_at:
            raise KeyboardInterrupt
        said = self.head(self.drop(self.embed(input_ids)).mean(1)).squeeze(-1)
        return {"loss": ((said - labels) ** 2).mean()}


def features() -> list[Feature]:
    rng = np.random.default_rng(0)
    sizes = rng.integers(3, 12, 120)
    return [
        Feature(
            {"input_ids": rng.integers(1, 30, n), "attention_mask": np.ones(n, int)}, i, {"labels": np.array(n / 10)}
        )
        for i, n in enumerate(sizes)
    ]


def run(model: Fit, scratch: Path) -> dict[str, torch.Tensor]:
    settings = Training(epochs=3, learning_rate=1e-2, batch_size=8, precision="float32")
    training.train(model, features(), settings, pad_id=0, seed=3, scratch=scratch, what="test")
    return model.state_dict()


def test_a_killed_run_ends_as_an_unbroken_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "CHECKPOINT_S", 0.0)
    whole = run(Fit(), tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(Fit(dies_at=23), tmp_path / "killed")
    # what a kill in the middle of writing a checkpoint leaves: a newer folder without its last file
    (tmp_path / "killed" / "checkpoint-999").mkdir()
    again = Fit()
    resumed = run(again, tmp_path / "killed")
    assert again.seen < 45 - 20, "it went on, it did not begin anew"
    assert whole.keys() == resumed.keys()
    for name, weight in whole.items():
        assert torch.equal(weight, resumed[name]), name


def test_training_learns(tmp_path: Path) -> None:
    model = Fit()
    before = [p.detach().clone() for p in model.parameters()]
    run(model, tmp_path)
    assert any(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert not model.training
