"""The one place where a model is trained, by Hugging Face's Trainer: teach, distill and prune use it.

The batches of all epochs are laid out before the first step as a pure function of the seed, so a run that was
killed goes on from its last checkpoint with the very batches that an unbroken run would have seen. Sequences of
like length share a batch, which saves most of the padding.
"""

import contextlib
import json
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, SequentialSampler
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from edgekit import progress
from edgekit.recipe import Training
from edgekit.records import Trained
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
) -> Trained:
    """Train `objective` in place; its forward takes a padded batch by name and gives `{"loss": scalar}`.

    A batch has `index` beside inputs and labels: which of the features its rows are. Only parameters of `objective`
    that require a gradient are trained. Checkpoints go to `scratch`, and a run that finds one there goes on from it.
    `what` names the run on the progress bar.
    """
    lengths = [len(next(iter(f.inputs.values()))) for f in features]
    epochs = training.examples / len(lengths) if training.examples else training.epochs
    batches = layout(lengths, training.batch_size, epochs, seed)
    cuda = torch.cuda.is_available()
    arguments = TrainingArguments(
        output_dir=str(scratch), max_steps=len(batches), per_device_train_batch_size=1,
        learning_rate=training.learning_rate, warmup_steps=round(training.warmup * len(batches)),
        lr_scheduler_type="linear", weight_decay=training.weight_decay, max_grad_norm=1.0,
        bf16=_wants_bf16(training, cuda), use_cpu=not cuda, dataloader_pin_memory=cuda, seed=seed, data_seed=seed,
        save_strategy="no", save_total_limit=1, logging_strategy="no", report_to=[], disable_tqdm=True,
        remove_unused_columns=False,
    )  # fmt: skip
    with progress.bar(what, len(batches)) as show, Peak() as peak:
        trainer = _Trainer(
            model=objective, args=arguments, train_dataset=_Batches(features, batches, pad_id),
            data_collator=_only, callbacks=[_Watch(show, objective)],
        )  # fmt: skip
        trainer.remove_callback(PrinterCallback)  # it prints to stdout, which belongs to the result
        trainer.train(resume_from_checkpoint=_last_checkpoint(scratch))
    objective.to("cpu").eval()
    return Trained(examples=sum(map(len, batches)), seconds=round(peak.seconds, 3), peak_rss_bytes=peak.rss_bytes)


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
        self.seconds = time.monotonic() - self._start
        with contextlib.suppress(OSError):
            found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
            self.rss_bytes = int(found[1]) * 1024 if found else None


def _wants_bf16(training: Training, cuda: bool) -> bool:
    if training.precision != "auto":
        return training.precision == "bf16"
    if cuda:
        return torch.cuda.is_bf16_supported(including_emulation=False)
    can = torch.cpu.get_capabilities()
    return bool(can.get("avx512_bf16") or can.get("amx_bf16") or can.get("bf16"))  # the last: 64-bit ARM


def layout(lengths: Sequence[int], batch_size: int, epochs: float, seed: int) -> list[list[int]]:
    """The indices of each batch of a whole run: every epoch a new shuffle, like lengths together, order shuffled.

    >>> layout([5, 9, 5, 9], batch_size=2, epochs=1, seed=0) in ([[0, 2], [1, 3]], [[1, 3], [0, 2]])
    True
    """
    rng = np.random.default_rng(seed)
    sizes = np.asarray(lengths)
    batches: list[list[int]] = []
    per_epoch = -(-len(sizes) // batch_size)
    total = max(1, round(epochs * per_epoch))
    while len(batches) < total:
        shuffled = rng.permutation(len(sizes))
        window = batch_size * 50  # sorted within this many examples, so that an epoch is still well mixed
        ordered = [np.sort(part)[np.argsort(sizes[np.sort(part)], kind="stable")] for part in _split(shuffled, window)]
        epoch = [part.tolist() for part in _split(np.concatenate(ordered), batch_size)]
        batches += [epoch[i] for i in rng.permutation(len(epoch))]
    return batches[:total]


def _split(indices: np.ndarray, size: int) -> list[np.ndarray]:
    return [indices[start : start + size] for start in range(0, len(indices), size)]


class _Batches(Dataset[dict[str, torch.Tensor]]):
    """Item i is the i-th batch of the run."""

    def __init__(self, features: Sequence[Feature], batches: Sequence[Sequence[int]], pad_id: int) -> None:
        self.features, self.batches, self.pad_id = features, batches, pad_id

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        rows = self.batches[index]
        batch = pad([self.features[i] for i in rows], self.pad_id)
        return {"index": torch.tensor(rows), **{name: torch.from_numpy(array) for name, array in batch.items()}}


def _only(items: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The collator: an item is a batch already."""
    return items[0]


class _Trainer(Trainer):
    """Takes the batches in the order they were laid out in."""

    def _get_train_sampler(self, train_dataset: Any = None) -> SequentialSampler:
        batches: Any = train_dataset or self.train_dataset
        return SequentialSampler(batches)


class _Watch(TrainerCallback):
    """Shows progress, and asks for a checkpoint every `CHECKPOINT_S` seconds."""

    def __init__(self, show: Any, objective: Any) -> None:
        self.show, self.objective = show, objective
        self.saved = time.monotonic()

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if hasattr(self.objective, "progress"):
            self.objective.progress = state.global_step / state.max_steps

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.show(state.global_step)
        if time.monotonic() - self.saved > CHECKPOINT_S and state.global_step < state.max_steps:
            control.should_save = True
            self.saved = time.monotonic()


def _last_checkpoint(scratch: Path) -> str | None:
    """The newest complete checkpoint; one that a kill left half written is passed over.

    `trainer_state.json` is the last file that Trainer writes, and older checkpoints go only after it stands.
    """
    for folder in sorted(scratch.glob("checkpoint-*"), key=lambda p: int(p.name.split("-")[1]), reverse=True):
        try:
            json.loads((folder / "trainer_state.json").read_text())
        except (FileNotFoundError, ValueError):
            continue
        return str(folder)
    return None
