"""TextBrewer 0.2.1.post1, run beside us: each of its losses, and a whole training step by step.

Where a definition differs, the constant factor stands in the test. TextBrewer takes scores with padded keys at -1e4, as
BERT's own attention had them when it was written; ours masks by itself.
"""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import families as tiny
import numpy as np
import pytest
import torch
from said import BATCH, LENGTH, MASK, WIDTH, signals, value
from torch import Tensor, nn
from transformers import get_linear_schedule_with_warmup

from edgekit import plugins
from edgekit.pipeline import models
from edgekit.pipeline.methods import Lesson
from edgekit.pipeline.signals import Signals, Speaker, Teacher
from edgekit.pipeline.training import layout, train
from edgekit.recipe import Training
from edgekit.records import Kind, Use
from edgekit.tasks import Feature, pad

with warnings.catch_warnings():
    warnings.simplefilter("ignore", SyntaxWarning)  # `is not 'none'` in its configurations.py
    textbrewer = pytest.importorskip("textbrewer")
    from textbrewer import distiller_utils, losses, schedulers

LABELS = {"labels": torch.tensor([[0, -100, 2, 1], [1, 2, -100, -100]])}


def scores(said: Signals, layer: int) -> Tensor:
    return said.scores(layer).masked_fill(said.mask[:, None, None, :] == 0, -1e4)


@pytest.mark.parametrize(("ours", "theirs"), [
    ("attention_mse", losses.att_mse_loss), ("attention_mse_sum", losses.att_mse_sum_loss),
    ("attention_ce", losses.att_ce_loss), ("attention_ce_mean", losses.att_ce_mean_loss),
])  # fmt: skip
def test_attention(ours: str, theirs: Any) -> None:
    student, teacher = signals(0, 2), signals(1, 4)
    wanted = theirs(scores(student, 1), scores(teacher, 3), MASK)
    found = value(ours, student, teacher, layers=[[1, 3]])
    assert found.item() == pytest.approx(wanted.item(), rel=1e-5)


@pytest.mark.parametrize(("ours", "theirs"), [
    ("hidden_mse", losses.hid_mse_loss), ("cosine", losses.cos_loss), ("pkd", losses.pkd_loss),
])  # fmt: skip
def test_hidden(ours: str, theirs: Any) -> None:
    student, teacher = signals(0, 2), signals(1, 4)
    wanted = theirs(student.hidden[1], teacher.hidden[3], MASK)
    assert value(ours, student, teacher, layers=[[1, 3]]).item() == pytest.approx(wanted.item(), rel=1e-5)


@pytest.mark.parametrize(("ours", "theirs", "factor"), [
    ("fsp", losses.fsp_loss, 1),
    ("nst", losses.mmd_loss, WIDTH**2 / LENGTH**2),  # with a mask theirs divides by the padded length
])  # fmt: skip
def test_pairs_of_layers(ours: str, theirs: Any, factor: float) -> None:
    student, teacher = signals(0, 2), signals(1, 4)
    wanted = theirs([student.hidden[0], student.hidden[1]], [teacher.hidden[0], teacher.hidden[3]], MASK)
    found = factor * value(ours, student, teacher, layers=[[[0, 1], [0, 3]]])
    assert found.item() == pytest.approx(wanted.item(), rel=1e-5)


def test_nst_without_padding_is_theirs_for_any_widths() -> None:
    student, teacher = signals(0, 2, width=5), signals(1, 4)
    for said in (student, teacher):
        object.__setattr__(said, "mask", torch.ones_like(MASK))
    wanted = losses.mmd_loss([student.hidden[0], student.hidden[1]], [teacher.hidden[0], teacher.hidden[3]])
    found = value("nst", student, teacher, layers=[[[0, 1], [0, 3]]])
    assert found.item() == pytest.approx(wanted.item(), rel=1e-5)


THEIR_TEMPERATURES = {
    "constant": schedulers.constant_temperature_scheduler,
    "flsw": schedulers.flsw_temperature_scheduler_builder(0.5, 1.5),
    "cwsm": schedulers.cwsm_temperature_scheduler_builder(0.5),
}


@pytest.mark.parametrize(
    ("ours", "theirs"), [("soft_cross_entropy", losses.kd_ce_loss), ("output_mse", losses.kd_mse_loss)]
)
@pytest.mark.parametrize("schedule", THEIR_TEMPERATURES)
@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("mask", ["unpadded", "labels"])
def test_soft_labels_of_tokens(ours: str, theirs: Any, schedule: str, shift: bool, mask: str) -> None:
    student, teacher = signals(0, 2), signals(1, 4)
    keep = MASK if mask == "unpadded" else (LABELS["labels"] != -100).long()
    both = [s.outputs["logits"].clone() for s in (student, teacher)]
    mine, its = distiller_utils.select_logits_with_mask(both, [keep, keep])
    if shift:  # it selects the logits before, and not the labels: an adaptor has to
        its = distiller_utils.probability_shift_(
            its, torch.where(LABELS["labels"] < 0, 0, LABELS["labels"])[keep.bool()]
        )
    wanted = theirs(mine, its, THEIR_TEMPERATURES[schedule](mine, its, 3))
    # a token without a label teaches as it is with us; theirs, of selected logits, would take the last label for -100
    labels = torch.where(LABELS["labels"] < 0, 0, LABELS["labels"]) if mask == "unpadded" else LABELS["labels"]
    found = value(
        ours, student, teacher, {"labels": labels}, temperature=3, temperature_schedule=schedule, beta=0.5, gamma=1.5,
        probability_shift=shift, mask=mask,
    )  # fmt: skip
    assert found.item() == pytest.approx(wanted.item(), rel=1e-5)


@pytest.mark.parametrize("schedule", THEIR_TEMPERATURES)
@pytest.mark.parametrize("shift", [False, True])
def test_soft_labels_of_rows_and_kl(schedule: str, shift: bool) -> None:
    student, teacher = signals(0, 2, shape=(BATCH, 5)), signals(1, 4, shape=(BATCH, 5))
    mine, its, labels = student.outputs["logits"], teacher.outputs["logits"].clone(), torch.tensor([4, 0])
    if shift:
        its = distiller_utils.probability_shift_(its, labels)
    tau = THEIR_TEMPERATURES[schedule](mine, its, 3)
    options = {
        "temperature": 3,
        "temperature_schedule": schedule,
        "beta": 0.5,
        "gamma": 1.5,
        "probability_shift": shift,
    }
    for ours, theirs in (("soft_cross_entropy", losses.kd_ce_loss), ("output_mse", losses.kd_mse_loss)):
        found = value(ours, student, teacher, {"labels": labels}, **options)
        assert found.item() == pytest.approx(theirs(mine, its, tau).item(), rel=1e-5)
    kl = value("kl", student, teacher, {"labels": labels}, **options)  # T^2 times theirs without the teacher's entropy
    wanted = 9 * (losses.kd_ce_loss(mine, its, tau) - losses.kd_ce_loss(its, its, tau))
    assert kl.item() == pytest.approx(wanted.item(), rel=1e-4)


# A whole training, step by step.

KIND: Kind = "text-classification"
STEPS, RATE, SHARE = 12, 2e-3, 0.25
PLAIN = [  # hidden states through projections of their own, attention, soft and hard labels
    {"name": "soft_cross_entropy", "temperature": 4},
    {"name": "cross_entropy", "weight": 0.5},
    {"name": "hidden_mse", "layers": [[0, 0]], "projection": "linear", "weight": 0.7},
    {"name": "hidden_mse", "layers": [[1, 2]], "projection": "tanh", "weight": 0.3},
    {"name": "attention_mse", "layers": [[2, 4]], "weight": 0.4},
    {"name": "attention_ce", "layers": [[1, 2]], "weight": 0.2},
]
SCHEDULED = [  # temperature and weights that change, mistakes of the teacher put right, Gram matrices
    {"name": "soft_cross_entropy", "temperature": 4, "temperature_schedule": "flsw", "beta": 1, "gamma": 2,
     "probability_shift": True, "schedule": "linear_decay"},
    {"name": "cross_entropy", "schedule": "linear_growth"},
    {"name": "hidden_mse", "layers": [[2, 4]], "projection": "linear", "weight": 0.7},
    {"name": "fsp", "layers": [[[0, 1], [0, 2]]], "projection": "relu", "weight": 0.3},
    {"name": "attention_ce_mean", "layers": [[2, 4]], "weight": 0.4},
]  # fmt: skip
# Theirs, by the same options.
PLAIN_MATCHES = [
    {"layer_S": 0, "layer_T": 0, "feature": "hidden", "loss": "hidden_mse", "weight": 0.7, "proj": ["linear", 32, 48]},
    {"layer_S": 1, "layer_T": 2, "feature": "hidden", "loss": "hidden_mse", "weight": 0.3, "proj": ["tanh", 32, 48]},
    {"layer_S": 2, "layer_T": 4, "feature": "attention", "loss": "attention_mse", "weight": 0.4},
    {"layer_S": 1, "layer_T": 2, "feature": "attention", "loss": "attention_ce", "weight": 0.2},
]
SCHEDULED_MATCHES = [
    {"layer_S": 2, "layer_T": 4, "feature": "hidden", "loss": "hidden_mse", "weight": 0.7, "proj": ["linear", 32, 48]},
    {"layer_S": [0, 1], "layer_T": [0, 2], "feature": "hidden", "loss": "fsp", "weight": 0.3, "proj": ["relu", 32, 48]},
    {"layer_S": 2, "layer_T": 4, "feature": "attention", "loss": "attention_ce_mean", "weight": 0.4},
]
PLAIN_CONFIG = {"temperature": 4, "kd_loss_weight": 1, "hard_label_weight": 0.5, "intermediate_matches": PLAIN_MATCHES}
SCHEDULED_CONFIG = {
    "temperature": 4, "temperature_scheduler": ["flsw", 1, 2], "probability_shift": True, "kd_loss_weight": 1,
    "kd_loss_weight_scheduler": "linear_decay", "hard_label_weight": 0, "hard_label_weight_scheduler": "linear_growth",
    "intermediate_matches": SCHEDULED_MATCHES,
}  # fmt: skip


class Recorded(nn.Module):
    """An objective, and the loss of every step."""

    def __init__(self, objective: Any) -> None:
        super().__init__()
        self.objective = objective
        self.losses: list[float] = []

    @property
    def progress(self) -> float:
        return self.objective.progress

    @progress.setter
    def progress(self, share: float) -> None:
        self.objective.progress = share

    def forward(self, **batch: Any) -> dict[str, Any]:
        said = self.objective(**batch)
        self.losses.append(said["loss"].item())
        return said


class Named(nn.Module):
    """A speaker as TextBrewer calls a model. `projections` are there for its gradient clipping: Hugging Face's Trainer
    clips the norm of all that is trained, TextBrewer that of the model's own parameters."""

    def __init__(self, speaker: Speaker) -> None:
        super().__init__()
        self.speaker = speaker
        self.projections = nn.ModuleList()

    def forward(self, **batch: Tensor) -> Signals:
        return self.speaker(batch)


def adaptor(batch: Mapping[str, Tensor], said: Signals) -> dict[str, Any]:
    logits = said.outputs["logits"]
    attention = [said.queries[1], *(scores(said, layer) for layer in range(1, said.depth + 1))]  # layers count from 1
    return {
        "logits": logits, "labels": batch["labels"], "hidden": [*said.hidden.values()], "attention": attention,
        "inputs_mask": said.mask, "losses": nn.functional.cross_entropy(logits, batch["labels"]),
    }  # fmt: skip


def examples() -> list[Feature]:
    rng = np.random.default_rng(0)
    found = []
    for i in range(40):
        ids = rng.integers(5, 60, rng.integers(4, 12))
        inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
        found.append(Feature(inputs, i, {"labels": np.array(ids.sum() % 2)}))
    return found


def speakers(folder: Path) -> tuple[Speaker, Teacher]:
    """A student of 2 layers of width 32 and a teacher of 4 of width 48, without dropout; the same at every call."""
    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    for name, shape in (("student", {}), ("teacher", {"hidden_size": 48, "num_hidden_layers": 4, "seed": 1})):
        if not (folder / name).exists():
            tiny.make(folder / name, "bert", **still, **shape)
    labels = ("negative", "positive")
    return Speaker(models.load(folder / "student", KIND, labels), KIND), Teacher(folder / "teacher", KIND, labels)


def grouped(module: nn.Module) -> list[dict[str, Any]]:
    """As Hugging Face's Trainer: no weight decay of biases and layer norms."""

    def plain(name: str) -> bool:
        return name.endswith("bias") or "LayerNorm" in name

    named = list(module.named_parameters())
    return [
        {"params": [p for name, p in named if not plain(name)], "weight_decay": 0.01},
        {"params": [p for name, p in named if plain(name)], "weight_decay": 0.0},
    ]


def by_textbrewer(
    folder: Path, config: dict[str, Any], batches: Sequence[Mapping[str, Tensor]], projections: Sequence[nn.Module]
) -> tuple[list[float], dict[str, Tensor]]:
    """The loss of each step, and the final weights; `projections` are what its own are set to."""
    student, teacher = speakers(folder)
    found: list[float] = []

    class Recording(textbrewer.GeneralDistiller):
        def write_loss(self, total_loss: Tensor, writer_step: int, losses_dict: Any = None) -> None:
            found.append(total_loss.item())

    mine = Named(student)
    distiller = Recording(
        textbrewer.TrainingConfig(device="cpu", output_dir=str(folder / "out")),
        textbrewer.DistillationConfig(**config),
        Named(teacher.speaker), mine, adaptor, adaptor,
    )  # fmt: skip
    optimizer = torch.optim.AdamW(grouped(student), lr=RATE)
    for its, given in zip([p for p in distiller.projs if p is not None], projections, strict=True):
        (linear,) = (module for module in its.modules() if isinstance(module, nn.Linear))
        (ours,) = (module for module in given.modules() if isinstance(module, nn.Linear))
        linear.load_state_dict(ours.state_dict())
        mine.projections.append(its)
    with distiller:
        distiller.train(
            optimizer, list(batches), num_epochs=1, max_grad_norm=1.0,
            scheduler_class=get_linear_schedule_with_warmup,
            scheduler_args={"num_warmup_steps": round(SHARE * STEPS), "num_training_steps": STEPS},
        )  # fmt: skip
    return found, student.model.state_dict()


@pytest.mark.parametrize(
    ("recipe", "config"), [(PLAIN, PLAIN_CONFIG), (SCHEDULED, SCHEDULED_CONFIG)], ids=["plain", "scheduled"]
)
def test_a_training_step_by_step(recipe: list[dict[str, Any]], config: dict[str, Any], tmp_path: Path) -> None:
    features = examples()
    training = Training(
        examples=STEPS * 8, batch_size=8, learning_rate=RATE, warmup=SHARE, weight_decay=0.01, precision="float32"
    )
    student, teacher = speakers(tmp_path)
    before = {name: tensor.clone() for name, tensor in student.model.state_dict().items()}
    method, params = plugins.use("methods", Use(name="kd", losses=recipe))
    torch.manual_seed(5)
    recorded = Recorded(method.objective(params, Lesson(student, (teacher,), features, KIND, seed=3)))
    projections = [p for p in recorded.objective.projections if not isinstance(p, nn.Identity)]
    assert len(projections) == 2
    started = [{name: t.clone() for name, t in p.state_dict().items()} for p in projections]
    pad_id = models.pad_id(student.model)
    train(recorded, features, training, pad_id=pad_id, seed=3, scratch=tmp_path / "scratch", what="ours")

    order = layout([len(f.inputs["input_ids"]) for f in features], 8, STEPS * 8 / len(features), 3)
    batches = [
        {name: torch.from_numpy(array) for name, array in pad([features[i] for i in rows], pad_id).items()}
        for rows in order
    ]
    assert len(batches) == STEPS
    for p, state in zip(projections, started, strict=True):
        p.load_state_dict(state)
    losses, weights = by_textbrewer(tmp_path, config, batches, projections)

    assert recorded.losses == pytest.approx(losses, rel=1e-4)
    assert len(losses) == STEPS
    moved = 0.0
    for name, tensor in student.model.state_dict().items():
        if name.endswith("key.bias"):
            continue  # the same for all keys of a query, so a softmax does not feel it: its gradient is rounding error
        assert torch.allclose(tensor, weights[name], rtol=1e-4, atol=2e-5), name
        moved = max(moved, (tensor - before[name]).abs().max().item())
    assert moved > 100 * 2e-5  # the weights that agree are not those of the start
