"""The one place where a model is trained, by Hugging Face's Trainer: teach, distill and prune use it.

The batches of all epochs are laid out before the first step as a pure function of the seed, so a run that was
killed goes on from its last checkpoint with the very batches that an unbroken run would have seen. Sequences of
like length share a batch, which saves most of the padding.

Of several processes (`processes`) each takes its share of every batch's rows, process r of n the rows r, r + n, ...,
and the gradients are averaged with the weight of the shares, so the batches, the steps and the result are those of one
process, and a checkpoint of one goes on with any number of others:

    gradient = sum over processes of (rows here / rows of the batch) * gradient of the loss of the rows here

That is the gradient of the whole batch's loss exactly where the loss is a mean over rows. One that is a mean over
tokens weighs a token of a share with few tokens a little more; rows of like length, dealt out in turn, keep the shares
alike. A loss between the rows of a batch sees the rows of a share.

Before every step Python's and NumPy's generators are seeded by the seed and the step, and torch's by the process's
number too: what must be drawn alike for a whole batch is drawn from one of the former.
"""

import contextlib
import json
import random
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch.utils.data import DataLoader, Dataset
from transformers import (
    PreTrainedModel,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.utils import SAFE_WEIGHTS_NAME

from edgekit import plugins, progress
from edgekit.errors import InputError
from edgekit.pipeline import encoded, occurring, processes
from edgekit.pipeline.layout import layout
from edgekit.recipe import Training
from edgekit.records import Point, Score, Trained
from edgekit.tasks import Feature, pad

CHECKPOINT_S = 30.0
"""Seconds of training between checkpoints: what a kill costs at most."""


def train(
    objective: torch.nn.Module,
    features: Sequence[Feature],
    training: Training,
    *,
    pad_id: int,
    seed: int,
    scratch: Path,
    what: str,
    exam: "Exam | None" = None,
) -> Trained:
    """Train `objective` in place; its forward takes a padded batch by name and gives `{"loss": scalar}`.

    A batch has `index` beside inputs and labels: which of the features its rows are. Only parameters of `objective`
    that require a gradient are trained. Checkpoints go to `scratch`, and a run that finds one there goes on from it.
    `what` names the run on the progress bar; `exam` is taken as often as `training.evaluate` says.
    """
    batches = planned(objective, features, training, seed)
    cuda = torch.cuda.is_available()
    backend = ("nccl" if cuda else "gloo") if processes.count() > 1 else None
    arguments = TrainingArguments(
        output_dir=str(scratch), max_steps=len(batches), per_device_train_batch_size=1,
        learning_rate=training.learning_rate, warmup_steps=round(training.warmup * len(batches)),
        lr_scheduler_type="linear", weight_decay=training.weight_decay, max_grad_norm=1.0,
        bf16=wants_bf16(training, cuda), use_cpu=not cuda, dataloader_pin_memory=cuda, seed=seed, data_seed=seed,
        save_strategy="no", save_total_limit=1, logging_strategy="no", report_to=[], disable_tqdm=True,
        remove_unused_columns=False, ddp_find_unused_parameters=True, ddp_backend=backend,
    )  # fmt: skip
    checkpoint = _agreed_checkpoint(scratch)
    sizes = [len(batch) for batch in batches]
    along = _Along(training, exam, sizes, objective, scratch)
    with progress.bar(what, len(batches)) as show, Peak() as peak, occurring.only(objective, features):
        watch = _Watch(show, objective, peak)
        trainer = _Trainer(
            model=objective, args=arguments, train_dataset=_Batches(features, batches, pad_id),
            data_collator=_only, callbacks=[watch, along],
        )  # fmt: skip
        trainer.model_accepts_loss_kwargs = False  # a batch holds nothing but its rows
        trainer.remove_callback(PrinterCallback)  # it prints to stdout, which belongs to the result
        trainer.train(resume_from_checkpoint=checkpoint)
        curve = _curve(trainer.state)
        if training.keep == "best" and curve:
            _load_best(objective, curve, scratch)
    objective.to("cpu").eval()
    return Trained(
        examples=sum(sizes[: trainer.state.global_step]), seconds=round(watch.before_s + peak.seconds, 3),
        peak_rss_bytes=_most(watch.before_rss, peak.rss_bytes), curve=curve,
    )  # fmt: skip


@dataclass(frozen=True)
class Exam:
    """What is done with the model along a training: `score` gives its score on the dev split."""

    model: PreTrainedModel
    score: Callable[[], Score]


class Peak:
    """The seconds that a `with` block took and the process's peak resident memory in it.

    Linux keeps the peak (VmHWM) and sets it back to the present value when `5` is written to clear_refs
    (proc_pid_clear_refs(5)); `rss_bytes` is `None` where it does not.
    """

    seconds: float = 0.0
    rss_bytes: int | None = None

    def __enter__(self) -> "Peak":
        self._start = time.monotonic()
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
        return self

    def __exit__(self, *error: object) -> None:
        self.read()

    def read(self) -> None:
        """Bring both up to date."""
        self.seconds = time.monotonic() - self._start
        with contextlib.suppress(OSError):
            found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
            self.rss_bytes = int(found[1]) * 1024 if found else None


def wants_bf16(training: Training, cuda: bool) -> bool:
    """Whether it trains in bf16 autocast: asked for, or where the processor multiplies matrices in it.

    AVX-512 BF16 without AMX counts on AMD only, where a core multiplies twice as fast in it as in float32 (190 and 95
    GFLOP/s on an EPYC 9004): a student of three layers trained at 204 examples/s with it and at 141 without. On two
    cores of a Xeon that has it it was 117 with it and 197 without: the casts cost more than its dot products gain.
    """
    if training.precision != "auto":
        return training.precision == "bf16"
    if cuda:
        return torch.cuda.is_bf16_supported(including_emulation=False)
    can = torch.cpu.get_capabilities()
    amd = "AMD" in str(can.get("cpu_name")) and can.get("avx512_bf16")
    return bool(amd or can.get("amx_bf16") or can.get("bf16"))  # the latter: 64-bit ARM


def steps(training: Training, rows: int) -> int:
    """How many steps a training on `rows` rows has."""
    return max(1, round(_epochs(training, rows) * -(-rows // training.batch_size)))


def _epochs(training: Training, rows: int) -> float:
    return training.examples / rows if training.examples else training.epochs


def planned(
    objective: torch.nn.Module, features: Sequence[Feature], training: Training, seed: int
) -> Sequence[list[int]]:
    """The indices of each batch of a whole run, by `layout` or the objective's own function of that name."""
    lengths = encoded.lengths(features)
    lengths = np.ones(len(features), np.int32) if lengths is None else lengths  # images are of one size
    lay: Any = getattr(objective, "layout", layout)
    return lay(lengths, training.batch_size, _epochs(training, len(lengths)), seed)


class _Batches(Dataset[dict[str, torch.Tensor]]):
    """Item i is this process's share of the i-th batch of the run; `share` is how much its mean loss counts."""

    def __init__(self, features: Sequence[Feature], batches: Sequence[Sequence[int]], pad_id: int) -> None:
        self.features, self.batches, self.pad_id = features, batches, pad_id

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        rows, share = shares(self.batches[index], processes.rank(), processes.count())
        batch = pad([self.features[i] for i in rows], self.pad_id)
        named = {name: torch.from_numpy(array) for name, array in batch.items()}
        return {"share": torch.tensor(share), "index": torch.tensor(rows), **named}


def shares(rows: Sequence[int], rank: int, count: int) -> tuple[Sequence[int], float]:
    """The rows of a batch that process `rank` of `count` takes, and what its mean loss is multiplied by before the mean
    over processes. Where there are fewer rows than processes some take one that counts nothing.

    >>> shares([7, 8, 9], 0, 2), shares([7, 8, 9], 1, 2), shares([7], 1, 2)
    (([7, 9], 1.3333333333333333), ([8], 0.6666666666666666), ([7], 0.0))
    """
    mine = rows[rank::count]
    return mine or rows[:1], len(mine) * count / len(rows)


def _only(items: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The collator: an item is a batch already."""
    return items[0]


class _Trainer(Trainer):
    """Takes the batches in the order they were laid out in, and draws at random as a pure function of the step."""

    def get_train_dataloader(self) -> DataLoader[Any]:
        """The batches as they are: accelerate would deal out whole ones to the processes."""
        batches: Any = self.train_dataset
        return DataLoader(batches, batch_size=1, collate_fn=_only, pin_memory=self.args.dataloader_pin_memory)

    def _wrap_model(self, model: Any, training: bool = True, dataloader: Any = None) -> Any:
        """As it is: one process takes one GPU, and torchrun starts one for each."""
        return model

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Which rows they are is asked by the CPU."""
        device = self.args.device
        return {n: t if n in ("index", "share") else t.to(device, non_blocking=True) for n, t in inputs.items()}

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """The loss of these rows, as much as they are of the batch."""
        share = inputs.pop("share").item()
        return super().compute_loss(model, inputs, *args, **kwargs) * share

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """Tied weights once; nothing but weights."""
        if self.args.should_save and output_dir:
            Path(output_dir).mkdir(parents=True, exist_ok=True)
            objective: Any = self.model
            safetensors.torch.save_model(objective, str(Path(output_dir, SAFE_WEIGHTS_NAME)))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        objective: Any = self.model
        safetensors.torch.load_model(objective, str(Path(resume_from_checkpoint, SAFE_WEIGHTS_NAME)))

    def store_flos(self) -> None:
        """It would ask all processes, and only process 0 saves."""

    def _save_rng_state(self, output_dir: str) -> None: ...

    def _load_rng_state(self, checkpoint: str | None) -> None: ...


class _Watch(TrainerCallback):
    """Shows progress, seeds each step, and asks for a checkpoint every `CHECKPOINT_S` seconds, which takes along what
    the training took so far."""

    def __init__(self, show: Any, objective: Any, peak: Peak) -> None:
        self.show, self.objective, self.peak = show, objective, peak
        self.saved = time.monotonic()
        self.before_s: float = 0.0
        self.before_rss: int | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        for row in state.log_history:
            if "seconds" in row:
                its: dict[str, Any] = row
                self.before_s, self.before_rss = its["seconds"], its["peak_rss_bytes"]

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        _seed(args.seed, state.global_step)
        if hasattr(self.objective, "progress"):
            self.objective.progress = state.global_step / state.max_steps

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.show(state.global_step)
        if time.monotonic() - self.saved > CHECKPOINT_S and state.global_step < state.max_steps:
            control.should_save = processes.rank() == 0  # it writes what all have in common
            self.saved = time.monotonic()
            self.peak.read()
            spent: dict[str, Any] = {
                "step": state.global_step, "seconds": self.before_s + self.peak.seconds,
                "peak_rss_bytes": _most(self.before_rss, self.peak.rss_bytes),
            }  # fmt: skip
            state.log_history = [row for row in state.log_history if "seconds" not in row] + [spent]


def _most(one: int | None, other: int | None) -> int | None:
    """The greater of two figures that may be unknown."""
    return max((each for each in (one, other) if each is not None), default=None)


class _Along(TrainerCallback):
    """Scores the model at even distances, keeps the best one and asks the recipe's callback whether to go on."""

    def __init__(
        self, training: Training, exam: Exam | None, sizes: Sequence[int], objective: torch.nn.Module, scratch: Path
    ) -> None:
        if training.evaluate and exam is None:
            raise InputError("recipe: evaluate: this training has no score; leave it out here")
        self.training, self.exam, self.objective, self.scratch = training, exam, objective, scratch
        self.sizes = sizes
        self.steps = {max(1, round(i * len(sizes) / training.evaluate)) for i in range(1, training.evaluate + 1)}
        self.callback = plugins.use("callbacks", training.callback, "recipe: callback") if training.callback else None

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.global_step not in self.steps or self.exam is None:
            return
        self.exam.model.eval()
        occurring.settle(self.objective)
        shown, score = sum(self.sizes[: state.global_step]), self.exam.score().value
        state.log_history.append({"step": state.global_step, "examples": shown, "dev_score": score})
        curve = _curve(state)
        if self.training.keep == "best" and _best(curve) == state.global_step and processes.rank() == 0:
            safetensors.torch.save_model(self.objective, str(_kept(self.scratch, state.global_step)))
        if self.callback:
            module, params = self.callback
            control.should_training_stop = processes.agree(
                lambda: bool(module.at_checkpoint(params, self.exam and self.exam.model, curve))
            )

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """What a run that goes on from here will not ask for goes."""
        best = _kept(self.scratch, _best(_curve(state)))
        for path in self.scratch.glob("best-*.safetensors"):
            if path != best:
                path.unlink()


def _curve(state: TrainerState) -> tuple[Point, ...]:
    """The scores so far; the trainer's state takes them along into a checkpoint."""
    rows = [row for row in state.log_history if "dev_score" in row]
    return tuple(Point(step=int(r["step"]), examples=int(r["examples"]), score=r["dev_score"]) for r in rows)


def _best(curve: Sequence[Point]) -> int:
    """The step of the first of the highest scores; -1 before there is any."""
    return max(curve, key=lambda point: point.score).step if curve else -1


def _kept(scratch: Path, step: int) -> Path:
    return scratch / f"best-{step}.safetensors"


def _load_best(objective: torch.nn.Module, curve: Sequence[Point], scratch: Path) -> None:
    """The weights of the best score, in every process."""
    path = Path(processes.agree(lambda: str(_kept(scratch, _best(curve)).absolute())))
    safetensors.torch.load_model(objective, str(path))


def _seed(seed: int, step: int) -> None:
    """Seed what draws at random in a step: no two steps alike, and torch's not in two processes."""
    common, own = np.random.SeedSequence([seed, step]), np.random.SeedSequence([seed, step, processes.rank()])
    alike = int(common.generate_state(1)[0])
    random.seed(alike)
    np.random.seed(alike)
    torch.manual_seed(int(own.generate_state(1)[0]))


def _agreed_checkpoint(scratch: Path) -> str | None:
    """The checkpoint that every process goes on from."""
    found = processes.agree(lambda: _last_checkpoint(scratch))
    if found and not Path(found).is_dir():
        raise InputError(f"cannot see {found}, from which process 0 goes on; share --store between the machines")
    return found


def _last_checkpoint(scratch: Path) -> str | None:
    """The newest complete checkpoint; one that a kill left half written is passed over.

    `trainer_state.json` is the last file that Trainer writes, and older checkpoints go only after it stands.
    """
    for folder in sorted(scratch.glob("checkpoint-*"), key=lambda p: int(p.name.split("-")[1]), reverse=True):
        try:
            json.loads((folder / "trainer_state.json").read_text())
        except (FileNotFoundError, ValueError):
            continue
        return str(folder.absolute())
    return None
