"""Training: the layout of batches, and that a killed run ends as an unbroken one does."""

import platform
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from edgekit.errors import InputError
from edgekit.pipeline import training
from edgekit.recipe import Training
from edgekit.records import Score, Trained
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


def examined(model: Any, scratch: Path, **wanted: Any) -> Trained:
    """The same run, scored along the way by how near a weight is to what it is in the middle of it."""
    settings = Training(epochs=3, learning_rate=1e-2, batch_size=8, precision="float32", **wanted)

    def score() -> Score:
        assert not model.training
        return Score(metric="nearness", value=-abs(model.head.bias.item() - MIDDLE), examples=1)

    exam = training.Exam(model, score)
    return training.train(model, features(), settings, pad_id=0, seed=3, scratch=scratch, what="test", exam=exam)


@pytest.mark.parametrize("precision", ["bf16", "float32", "auto"])
def test_precision(precision: Any, tmp_path: Path) -> None:
    class Told(Fit):
        def forward(self, **batch: torch.Tensor) -> dict[str, torch.Tensor]:
            found.add(torch.is_autocast_enabled("cuda" if torch.cuda.is_available() else "cpu"))
            return super().forward(**batch)

    found: set[bool] = set()
    settings = Training(epochs=1, batch_size=60, precision=precision)
    training.train(Told(), features(), settings, pad_id=0, seed=3, scratch=tmp_path, what="test")
    if precision != "auto":
        assert found == {precision == "bf16"}
    elif not torch.cuda.is_available() and platform.machine() == "x86_64":
        processor = Path("/proc/cpuinfo").read_text()
        if "amx_bf16" not in processor:
            quicker = "AuthenticAMD" in processor and "avx512_bf16" in processor
            assert found == {quicker}, "Intel's AVX-512 is slower in bf16, AMD's is quicker"


MIDDLE = 0.2
"""About the bias after 15 of 45 steps."""


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


def test_what_it_took_is_of_all_its_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow(Fit):
        def forward(self, *args: Any, **kwargs: Any) -> dict[str, torch.Tensor]:
            time.sleep(0.05)
            return super().forward(*args, **kwargs)

    monkeypatch.setattr(training, "CHECKPOINT_S", 0.0)
    with pytest.raises(KeyboardInterrupt):
        examined(Slow(dies_at=40), tmp_path)
    found = examined(Slow(), tmp_path)
    assert found.examples == 360
    assert found.seconds > 45 * 0.05, "39 steps were another process's"
    assert found.peak_rss_bytes


def test_training_learns(tmp_path: Path) -> None:
    model = Fit()
    before = [p.detach().clone() for p in model.parameters()]
    run(model, tmp_path)
    assert any(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert not model.training


def test_scores_along_the_way(tmp_path: Path) -> None:
    model = Fit()
    found = examined(model, tmp_path / "scored", evaluate=3)
    assert [(point.step, point.examples) for point in found.curve] == [(15, 120), (30, 240), (45, 360)]
    assert found.curve[-1].score == pytest.approx(-abs(model.head.bias.item() - MIDDLE))
    plain = run(Fit(), tmp_path / "plain")
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, plain[name]), "scores leave the training as it is"
    assert not list(tmp_path.rglob("best-*"))


def test_the_best_is_kept_also_after_a_kill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Fit()
    found = examined(whole, tmp_path / "whole", evaluate=9, keep="best")
    best = max(point.score for point in found.curve)
    assert found.curve[-1].score < best == pytest.approx(-abs(whole.head.bias.item() - MIDDLE))
    monkeypatch.setattr(training, "CHECKPOINT_S", 0.0)
    with pytest.raises(KeyboardInterrupt):
        examined(Fit(dies_at=33), tmp_path / "killed", evaluate=9, keep="best")
    again = Fit()
    assert examined(again, tmp_path / "killed", evaluate=9, keep="best").curve == found.curve
    assert again.seen < 20
    for name, weight in whole.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name]), name


def test_a_callback_ends_the_training(tmp_path: Path) -> None:
    """The score rises for some time and then falls: the nearness to a bias that is passed on the way."""
    early = {"name": "early_stopping", "patience": 1}
    found = examined(Fit(), tmp_path, evaluate=15, keep="best", callback=early)
    scores = [point.score for point in found.curve]
    assert len(scores) < 15 and scores[-1] <= max(scores[:-1])
    assert found.examples == found.curve[-1].examples < 360


def test_a_callback_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_callback.py").write_text(
        "from edgekit.records import Record\n"
        "class Params(Record):\n"
        "    file: str\n"
        "def at_checkpoint(params, model, curve):\n"
        "    with open(params.file, 'a') as file:\n"
        "        print(curve[-1].step, model.training, file=file)\n"
    )
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "__init__.py").touch()
    (tmp_path / "my_callback.py").rename(tmp_path / "own" / "my_callback.py")
    monkeypatch.syspath_prepend(tmp_path)
    own = {"name": "own.my_callback", "file": str(tmp_path / "log")}
    examined(Fit(), tmp_path / "scratch", evaluate=3, callback=own)
    assert (tmp_path / "log").read_text() == "15 False\n30 False\n45 False\n"


@pytest.mark.parametrize("wrong", [{"keep": "best"}, {"callback": {"name": "early_stopping"}}])
def test_what_rests_on_scores_needs_them(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="set evaluate, say to 4"):
        Training.model_validate(wrong)


def test_a_training_without_a_score_is_not_evaluated(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="this training has no score"):
        training.train(
            Fit(), features(), Training(evaluate=2), pad_id=0, seed=3, scratch=tmp_path, what="test"
        )  # fmt: skip


def test_tied_weights_survive_a_kill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Tied(Fit):
        def __init__(self, dies_at: int | None = None) -> None:
            super().__init__(dies_at)
            self.again = self.embed

    monkeypatch.setattr(training, "CHECKPOINT_S", 0.0)
    whole = run(Tied(), tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(Tied(dies_at=23), tmp_path / "killed")
    for name, weight in run(Tied(), tmp_path / "killed").items():
        assert torch.equal(weight, whole[name]), name


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_shares_add_up_to_the_batch(count: int) -> None:
    """The mean over processes of share * mean over their rows is the mean over all rows."""
    values = np.array([3.0, 1.0, 4.0, 1.0, 5.0])
    parts = [training.shares(range(5), rank, count) for rank in range(count)]
    assert sum(share * values[list(rows)].mean() for rows, share in parts) / count == pytest.approx(values.mean())
    assert all(len(rows) for rows, _ in parts)
