"""A real run from end to end: a fine-tuned MiniLM-L6 on SST-2 to an int8 bundle, with its figures and its machine.

    python benchmarks/sst2.py                    # writes benchmarks/sst2.json and prints the table

The data (`sst2/train.jsonl.gz`, `sst2/dev.jsonl.gz` with the columns text and label) is looked for in EDGEKIT_DATA,
the teacher (`minilm-l6-sst2/`) in EDGEKIT_MODELS; by default in the folders shared/data and shared/models beside the
checkout. A run that was stopped goes on.
"""

import json
import os
import sys
from pathlib import Path

from edgekit import progress, tables
from edgekit.errors import EdgekitError
from edgekit.pipeline.build import build
from edgekit.pipeline.bundle import host
from edgekit.recipe import Recipe, target
from edgekit.store import Store

ROOT = Path(__file__).parent.parent
DATA = Path(os.environ.get("EDGEKIT_DATA") or ROOT.parent / "shared" / "data")
MODELS = Path(os.environ.get("EDGEKIT_MODELS") or ROOT.parent / "shared" / "models")

METHOD = {
    "name": "kd",
    "losses": [{"name": "kl", "weight": 4}, {"name": "cross_entropy"}, {"name": "hidden_mse", "weight": 0.1}],
}
RECIPE = {
    "name": "sst2",
    "max_length": 128,
    "task": {"name": "text_classification", "text": "text", "label": "label"},
    "data": {
        "name": "files",
        "train": str(DATA / "sst2" / "train.jsonl.gz"),
        "dev": str(DATA / "sst2" / "dev.jsonl.gz"),
    },
    "step": [
        {"stage": "teach", "model": str(MODELS / "minilm-l6-sst2")},
        {"stage": "distill", "layers": 3, "training": {"epochs": 0.4, "learning_rate": 5e-4}, "method": METHOD},
        {
            "stage": "prune", "heads": 8, "neurons": 768, "vocabulary": {},
            "training": {"epochs": 0.15, "learning_rate": 3e-4}, "method": METHOD,
        },
        {"stage": "export"},
        {"stage": "quantize"},
    ],
}  # fmt: skip


def main() -> int:
    """Build, print the table, write the figures; the exit code is that of `edgekit build`."""
    store = Store(ROOT / ".edgekit" / "benchmarks")
    try:
        built = build(
            Recipe.model_validate(RECIPE), target("android"), store, store.root / "sst2", ROOT,
            done=lambda row: progress.say(tables.line(row)),
        )  # fmt: skip
    except EdgekitError as error:
        progress.say(f"sst2: {error}")
        return error.exit_code
    figures = {"host": host(), **built.model_dump(mode="json", exclude={"bundle", "zip", "unchanged"})}
    (Path(__file__).with_suffix(".json")).write_text(json.dumps(figures, indent=1) + "\n")
    print(f"{figures['host']}\n{tables.build(built)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
