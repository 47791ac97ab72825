"""Memory over the number of training rows: checked, encoded, laid out and trained on, at 10^4, 10^5 and 10^6 rows.

    python benchmarks/streaming.py                       # about 10 minutes; writes benchmarks/streaming.json

Each size is a fresh process that reads a CSV file of generated sentences with MiniLM's tokenizer, as a build does, and
trains a tiny model for 200 steps. Beside the peak of the resident memory stands what is the process's own, without the
pages of libraries, at the end; and how long a row took to be checked and to be encoded.
"""

import argparse
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
MODELS = Path(os.environ.get("EDGEKIT_MODELS") or ROOT.parent / "shared" / "models")
STEPS = 200
WORDS = (
    "a",
    "the",
    "one",
    "film",
    "story",
    "cast",
    "that",
    "was",
    "not",
    "very",
    "good",
    "bad",
    "slow",
    "warm",
    "of",
    "its",
)


def one(rows: int, folder: Path) -> dict[str, Any]:
    """Check, encode and train on `rows` rows in `folder`."""
    from transformers import AutoConfig

    from edgekit.pipeline import TaskData, models, training
    from edgekit.pipeline.methods import Lesson, supervised
    from edgekit.pipeline.signals import Speaker
    from edgekit.recipe import Recipe, Training

    source = MODELS / "minilm-l6-sst2"
    recipe = Recipe.model_validate({
        "name": "streaming", "max_length": 64, "task": {"name": "text_classification"},
        "data": {"name": "files", "train": "train.csv", "dev": "dev.csv"},
        "step": [{"stage": "teach", "model": str(source)}],
    })  # fmt: skip
    data = TaskData(recipe, folder, folder / "store")
    start = time.monotonic()
    found = data.count()
    checked = time.monotonic()
    features = data.features("train", source)
    encoded = time.monotonic()
    config: Any = AutoConfig.for_model(
        "bert", hidden_size=64, num_hidden_layers=1, num_attention_heads=2, intermediate_size=128, vocab_size=30522,
        num_labels=2,
    )  # fmt: skip
    model = models.new(config, data.kind)
    objective = supervised.objective(supervised.Params(), Lesson(Speaker(model, data.kind), (), features, data.kind, 0))
    training.train(
        objective, features, Training(examples=32 * STEPS, batch_size=32), pad_id=0, seed=0,
        scratch=folder / "scratch", what="train",
    )  # fmt: skip
    status = Path("/proc/self/status").read_text()
    sizes = {name: int(re.findall(rf"{name}:\s+(\d+)", status)[0]) / 1e3 for name in ("VmHWM", "RssAnon")}
    return {
        "rows": found, "peak_mb": sizes["VmHWM"], "own_mb": sizes["RssAnon"],
        "check_us_a_row": (checked - start) / found * 1e6, "encode_us_a_row": (encoded - checked) / found * 1e6,
        "disk_bytes_a_row": sum(p.stat().st_size for p in folder.glob("store/encoded/*/*")) / found,
    }  # fmt: skip


def prepare(rows: int, folder: Path) -> None:
    """Write the data: sentences of 4 to 24 words."""
    chance = random.Random(0)
    for name, count in (("train", rows), ("dev", 10)):
        with (folder / f"{name}.csv").open("w") as file:
            file.write("text,label\n")
            for i in range(count):
                file.write(f"{' '.join(chance.choices(WORDS, k=chance.randint(4, 24)))},{'ab'[i % 2]}\n")


def main() -> int:
    """Measure each size, print the table, write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one:
        print(json.dumps(one(int(asked.one[0]), Path(asked.one[1]))))
        return 0
    from edgekit.pipeline.bundle import host

    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "2"}
    found: list[dict[str, Any]] = []
    for rows in asked.rows:
        with tempfile.TemporaryDirectory() as folder:
            prepare(rows, Path(folder))
            command = [sys.executable, __file__, "--one", str(rows), folder]
            done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
            found.append(json.loads(done.stdout.splitlines()[-1]))
    asked.out.write_text(json.dumps({"host": host(), "steps": STEPS, "sizes": found}, indent=1) + "\n")
    print(host())
    for its in found:
        print("  ".join(f"{name} {value:.1f}" if isinstance(value, float) else f"{name} {value}"
                        for name, value in its.items()))  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
