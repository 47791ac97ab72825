"""Distillation beside TextBrewer, examples a second: MiniLM's 6 layers into 3 on SST-2, states, attention, soft labels.

    python benchmarks/distill_speed.py                    # about 15 minutes; writes benchmarks/distill_speed.json
    python benchmarks/distill_speed.py --rows 640 --epochs 2 --rounds 1 --out /tmp/speed.json

Each run is a fresh process, in turns A B C D D C B A; the same rows, student, losses, learning rate, optimizer and
number of examples, batches of 32, two threads:

    textbrewer-64      TextBrewer 0.2.1.post1, padded to 64 tokens as in its examples
    textbrewer-batch   the same, padded to the longest of the batch
    edgekit            from an empty cache: the teacher runs in the first epoch
    edgekit-again      what a further method, seed or student gets: the teacher's signals are there

Examples a second from the first step to the last, without loading and encoding; the peak resident memory of the
process in that time; its CPU seconds, which other work on the machine disturbs less; and the score on the dev split.
"""

import argparse
import gzip
import itertools
import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
DATA = Path(os.environ.get("EDGEKIT_DATA") or ROOT.parent / "shared" / "data")
MODELS = Path(os.environ.get("EDGEKIT_MODELS") or ROOT.parent / "shared" / "models")
THEIRS, OURS = ("textbrewer-64", "textbrewer-batch"), ("edgekit", "edgekit-again")
COLUMNS = ("examples_per_s", "first_epoch", "later_epochs", "examples_per_cpu_s", "peak_mb", "score")
THREADS = 2


def one(system: str, base: Path) -> dict[str, Any]:
    """Train by one system as the recipe in `base` says; what it took."""
    import torch

    from edgekit import recipe as recipes
    from edgekit.pipeline import Job, Made, TaskData, distill, models
    from edgekit.pipeline.training import Peak, layout
    from edgekit.records import Artifact, Facts

    torch.set_num_threads(THREADS)
    recipe = recipes.Recipe.model_validate_json((base / "recipe.json").read_text())
    teach, step = recipe.step[0], recipe.step[1]
    assert isinstance(teach, recipes.Teach) and isinstance(step, recipes.Distill)
    folder, data = Path(teach.model), TaskData(recipe, base, base / "store")
    artifact = Artifact(
        id="", name="", stage="", parents=(), files=(), facts=Facts(bytes=0, changed=""), seconds=0, versions={}
    )
    features, made = data.features("train", folder), Made(artifact, folder)
    stamps: list[tuple[float, float]] = []

    def stamp(*_: Any) -> None:
        stamps.append((time.perf_counter(), time.process_time()))

    with tempfile.TemporaryDirectory() as scratch:
        job = Job(recipe, recipes.target("host"), data, {"model": made, "teacher": made}, Path(scratch), Path(scratch))
        torch.manual_seed(recipe.seed)
        student, _ = distill.new_student(step, models.load(folder, data.kind, data.labels), job)
        train = _theirs if system in THEIRS else _ours
        with Peak() as peak:
            train(student, folder, features, step, job, stamp, 64 if system == "textbrewer-64" else None)
            stamp()
    epochs = round(step.training.epochs)
    per_epoch = (len(stamps) - 1) // epochs
    lengths = [len(feature.inputs["input_ids"]) for feature in features]
    assert per_epoch * epochs == len(stamps) - 1 == len(layout(lengths, step.training.batch_size, epochs, 0))
    seconds, cpu = (last - first for first, last in zip(stamps[0], stamps[-1], strict=True))
    first = stamps[per_epoch][0] - stamps[0][0]
    return {
        "examples_per_s": len(features) * epochs / seconds,
        "first_epoch": len(features) / first,
        "later_epochs": len(features) * (epochs - 1) / (seconds - first) if epochs > 1 else None,
        "examples_per_cpu_s": len(features) * epochs / cpu,
        "peak_mb": None if peak.rss_bytes is None else peak.rss_bytes / 1e6,
        "score": data.score(models.predictor(student.eval(), data.kind), folder).value,
    }


def _ours(
    student: Any, folder: Path, features: Any, step: Any, job: Any, stamp: Callable[..., None], length: int | None
) -> None:
    from edgekit import plugins
    from edgekit.pipeline import cache, models, training
    from edgekit.pipeline.methods import Lesson
    from edgekit.pipeline.signals import Speaker, Teacher

    method, params = plugins.use("methods", step.method)
    teachers = (Teacher(folder, job.data.kind, job.data.labels),)
    lesson = Lesson(Speaker(student, job.data.kind), teachers, features, job.data.kind, job.recipe.seed)
    with cache.keeping(teachers, features, job, step.training):
        objective = method.objective(params, lesson)
        objective.register_forward_pre_hook(stamp)
        training.train(
            objective, features, step.training, pad_id=models.pad_id(student), seed=job.recipe.seed,
            scratch=job.scratch, what="edgekit",
        )  # fmt: skip


def _theirs(
    student: Any, folder: Path, features: Any, step: Any, job: Any, stamp: Callable[..., None], length: int | None
) -> None:
    import textbrewer
    import textbrewer_run as brewer
    import torch
    from transformers import get_linear_schedule_with_warmup

    from edgekit.pipeline import models
    from edgekit.pipeline.signals import Speaker
    from edgekit.tasks import pad

    logging.disable(logging.INFO)
    kind, settings = job.data.kind, step.training
    mine, its = Speaker(student, kind), Speaker(models.load(folder, kind, job.data.labels), kind)
    size = settings.batch_size
    steps = round(settings.epochs) * -(-len(features) // size)

    def batches() -> Iterator[dict[str, Any]]:
        while True:
            for rows in torch.randperm(len(features)).split(size):
                batch = pad([features[i] for i in rows.tolist()], models.pad_id(student), length)
                yield {name: torch.from_numpy(array) for name, array in batch.items()}

    options = brewer.configuration(mine, its)
    model = brewer.Named(mine)
    model.register_forward_pre_hook(stamp)
    distiller = textbrewer.GeneralDistiller(
        textbrewer.TrainingConfig(device="cpu", output_dir=str(job.scratch), ckpt_steps=10**9),
        textbrewer.DistillationConfig(**options), brewer.Named(its), model, brewer.adaptor, brewer.adaptor,
    )  # fmt: skip
    plain = ("bias", "LayerNorm.weight", "LayerNorm.bias")
    groups = [
        {"params": [p for name, p in model.named_parameters() if name.endswith(plain)], "weight_decay": 0.0},
        {"params": [p for name, p in model.named_parameters() if not name.endswith(plain)]},
    ]
    optimizer = torch.optim.AdamW(groups, lr=settings.learning_rate, weight_decay=settings.weight_decay)
    warmup = {"num_warmup_steps": round(settings.warmup * steps), "num_training_steps": steps}
    torch.manual_seed(job.recipe.seed)
    with distiller:
        distiller.train(
            optimizer, batches(), num_steps=steps, max_grad_norm=1.0,
            scheduler_class=get_linear_schedule_with_warmup, scheduler_args=warmup,
        )  # fmt: skip


def prepare(base: Path, rows: int, epochs: int, seed: int) -> None:
    """Write the data and the recipe."""
    from edgekit import systems

    for split, count in (("train", rows), ("dev", None)):
        with gzip.open(DATA / "sst2" / f"{split}.jsonl.gz", "rt") as file:
            (base / f"{split}.jsonl").write_text("".join(itertools.islice(file, count)))
    method = systems.find("textbrewer").step[0].values["method"]
    training = {"epochs": epochs, "learning_rate": 2e-4, "precision": "float32"}
    (base / "recipe.json").write_text(json.dumps({
        "name": "speed", "max_length": 64, "seed": seed,
        "task": {"name": "text_classification", "text": "text", "label": "label"},
        "data": {"name": "files", "train": "train.jsonl", "dev": "dev.jsonl"},
        "step": [
            {"stage": "teach", "model": str(MODELS / "minilm-l6-sst2")},
            {"stage": "distill", "layers": 3, "training": training, "method": method},
        ],
    }))  # fmt: skip


def main() -> int:
    """Run all in turns, print the table, write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=3200, help="training rows")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    parser.add_argument("--one", nargs=2, metavar=("SYSTEM", "FOLDER"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one:
        print(json.dumps(one(asked.one[0], Path(asked.one[1]))))
        return 0
    from edgekit.pipeline.bundle import host

    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in (*THEIRS, *OURS)}
    environment = {
        **os.environ, "OMP_NUM_THREADS": str(THREADS), "OMP_WAIT_POLICY": "passive", "TOKENIZERS_PARALLELISM": "false",
        "PYTHONPATH": os.pathsep.join((str(ROOT), str(Path(__file__).parent))), "HF_HUB_OFFLINE": "1",
    }  # fmt: skip
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(asked.rounds):
            base = Path(folder, str(turn))
            base.mkdir()
            prepare(base, asked.rows, asked.epochs, seed=turn)
            theirs = THEIRS if turn % 2 == 0 else THEIRS[::-1]
            for system in (*theirs, *OURS) if turn % 2 == 0 else (*OURS, *theirs):
                command = [sys.executable, __file__, "--one", system, str(base)]
                done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
                runs[system].append(json.loads(done.stdout.splitlines()[-1]))
                print(line(f"{system} {turn}", runs[system][-1]), file=sys.stderr, flush=True)
    found = {name: mean(its) for name, its in runs.items()}
    ratios = {
        f"{ours} / {theirs}": {
            what: statistics.geometric_mean(a[what] / b[what] for a, b in zip(runs[ours], runs[theirs], strict=True))
            for what in ("examples_per_s", "examples_per_cpu_s", "peak_mb")
        }
        for ours in OURS
        for theirs in THEIRS
    }
    figures = {
        "host": host(), "load_before": round(load, 2), "threads": THREADS, "rows": asked.rows, "epochs": asked.epochs,
        "mean": found, "ratios": ratios, "runs": runs,
    }  # fmt: skip
    asked.out.write_text(json.dumps(figures, indent=1) + "\n")
    print(f"{host()}\n{'':18}" + "".join(f"{column:>19}" for column in COLUMNS))
    for name, its in found.items():
        print(line(name, its))
    for name, ratio in ratios.items():
        print(f"{name:34} {ratio['examples_per_s']:.2f} times the examples a second "
              f"({ratio['examples_per_cpu_s']:.2f} by CPU time), {ratio['peak_mb']:.2f} of the memory")  # fmt: skip
    return 0


def mean(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The mean of each figure over the rounds."""
    columns = {what: [run[what] for run in runs] for what in runs[0]}
    return {what: None if None in found else statistics.fmean(found) for what, found in columns.items()}


def line(name: str, run: dict[str, Any]) -> str:
    """One run's figures under `COLUMNS`."""
    cells = ("-" if run[c] is None else f"{run[c]:.3f}" if c == "score" else f"{run[c]:.1f}" for c in COLUMNS)
    return f"{name:18}" + "".join(f"{cell:>19}" for cell in cells)


if __name__ == "__main__":
    sys.exit(main())
