"""DynaBERT on SST-2: one training, then eight models, each through export, quantization and their checks to a bundle.

    python benchmarks/dynabert.py                # writes benchmarks/dynabert.json and prints the table
    python benchmarks/dynabert.py --examples 640 # a quick look

The teacher is a fine-tuned MiniLM-L6 (`minilm-l6-sst2/`, looked for in --models or EDGEKIT_MODELS), the data is
`sst2/train.jsonl.gz` and `sst2/dev.jsonl.gz` in --data or EDGEKIT_DATA; by default they are in the folders
shared/models and shared/data beside the checkout. The widths 0.25, 0.5, 0.75 and 1 are trained first, then with the
depths 0.5 and 1, and each of the eight sub-networks is built to int8 TFLite and ONNX for this host. At the end all of
them are timed side by side in one process: batch 1, length 128, one thread. Exit code 3 where a build is refused, or
where a sub-network that is narrower or shallower is not smaller and faster. What is built is kept: a run that was
stopped goes on.
"""

import argparse
import json
import os
import sys
from datetime import date
from itertools import product
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from edgekit import bundle, infer, progress, tables  # noqa: E402
from edgekit.errors import NotGoodEnough  # noqa: E402
from edgekit.pipeline.build import build  # noqa: E402
from edgekit.pipeline.bundle import host  # noqa: E402
from edgekit.recipe import Recipe  # noqa: E402
from edgekit.records import Built, Target  # noqa: E402
from edgekit.store import Store  # noqa: E402

WIDTHS, DEPTHS = (0.25, 0.5, 0.75, 1.0), (0.5, 1.0)
FORMATS = ("tflite", "onnx")
LENGTH = 128
TARGET = Target(name="host", description="this host", abi="host", formats=FORMATS, lengths=(LENGTH,))


def main() -> int:
    """Build every cell, time them, print and write the figures; the exit code."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    shared = ROOT.parent / "shared"
    arguments.add_argument("--data", type=Path, default=Path(os.environ.get("EDGEKIT_DATA") or shared / "data"))
    arguments.add_argument("--models", type=Path, default=Path(os.environ.get("EDGEKIT_MODELS") or shared / "models"))
    arguments.add_argument("--examples", type=int, default=6400, help="shown in each of the two trainings")
    given = arguments.parse_args()
    store = Store(ROOT / ".edgekit" / "benchmarks")
    rows: list[dict[str, Any]] = []
    files: list[dict[str, Path]] = []
    for width, depth in product(WIDTHS, DEPTHS):
        out = store.root / f"dynabert-{width:g}-{depth:g}"
        try:
            built = build(
                recipe(given.data, given.models, given.examples, width, depth), TARGET, store, out, ROOT,
                done=lambda row: None if row.cached else progress.say(tables.line(row)),
            )  # fmt: skip
        except NotGoodEnough as error:
            rows.append({"width": width, "depth": depth, "refused": str(error)})
            progress.say(f"width {width:g}, depth {depth:g}: {error}")
            continue
        rows.append({"width": width, "depth": depth, **figures(built)})
        files.append({model.format: out / model.path for model in bundle.verify(out).models})
    time_them([row for row in rows if "refused" not in row], files)
    wrong = disorder(rows)
    document = {
        "machine": f"{host()}, {os.cpu_count()} cores", "date": date.today().isoformat(),
        "examples": given.examples, "length": LENGTH, "rows": rows, "not_in_order": wrong,
    }  # fmt: skip
    Path(__file__).with_suffix(".json").write_text(json.dumps(document, indent=1) + "\n")
    print(f"{document['machine']}\n{table(rows)}")
    for line in wrong:
        print(line)
    return 3 if wrong or any("refused" in row for row in rows) else 0


def recipe(data: Path, models: Path, examples: int, width: float, depth: float) -> Recipe:
    """One cell; the trainings are those of all cells."""
    training = {"examples": examples, "learning_rate": 2e-4, "batch_size": 32}
    files = {"name": "files", **{split: str(data / "sst2" / f"{split}.jsonl.gz") for split in ("train", "dev")}}
    wide = {"name": "dynabert", "widths": WIDTHS, "depths": [1.0]}
    deep = {"name": "dynabert", "depths": DEPTHS, "hidden": 1.0}
    return Recipe.model_validate({
        "name": "dynabert", "max_length": LENGTH, "task": {"name": "text_classification"}, "data": files,
        "step": [
            {"stage": "teach", "model": str(models / "minilm-l6-sst2")},
            {"stage": "distill", "method": wide, "training": training},
            {"stage": "distill", "method": deep, "training": training},
            {"stage": "extract", "width": width, "depth": depth},
            {"stage": "export"},
            {"stage": "quantize"},
        ],
    })  # fmt: skip


def figures(built: Built) -> dict[str, Any]:
    """What the build measured of a cell."""
    stages = {stage.name: stage for stage in built.stages}
    made = {format: stages[f"quantize-{format}"] for format in FORMATS}
    return {
        "changed": stages["extract"].changed,
        "parameters": stages["extract"].parameters,
        "score": stages["extract"].score,
        "teacher_score": stages["teach"].score,
        "training_s": stages["distill"].seconds + stages["distill-2"].seconds,
        **{f"{format}_score": its.score for format, its in made.items()},
        **{f"{format}_bytes": its.bytes for format, its in made.items()},
    }


def time_them(rows: list[dict[str, Any]], files: list[dict[str, Path]]) -> None:
    """Add the latencies, all cells of a format timed in turn."""
    for format in FORMATS:
        sessions = [infer.open_model(its[format]) for its in files]
        if sessions:
            seconds = infer.latency(sessions, infer.example(sessions[0], LENGTH), budget_s=4.0 * len(sessions))
            for row, latency in zip(rows, seconds, strict=True):
                row[f"{format}_latency_s"] = latency


def disorder(rows: list[dict[str, Any]]) -> list[str]:
    """Where a sub-network is not smaller and faster than the next wider or deeper one."""
    cells = {(row["width"], row["depth"]): row for row in rows if "refused" not in row}
    wrong: list[str] = []
    for (width, depth), row in cells.items():
        wider = next((w for w in WIDTHS if w > width), None)
        deeper = next((d for d in DEPTHS if d > depth), None)
        for bigger in ((wider, depth), (width, deeper)):
            for key in (f"{format}_{what}" for what in ("bytes", "latency_s") for format in FORMATS):
                if bigger in cells and row[key] >= cells[bigger][key]:
                    wrong.append(f"{key}: {row[key]:g} at {width, depth}, {cells[bigger][key]:g} at {bigger}")
    return wrong


def table(rows: list[dict[str, Any]]) -> str:
    """The figures in Markdown."""
    lines = [
        "| width | depth | parameters | accuracy | TFLite int8 | | | ONNX int8 | | |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = [f"{row['width']:g}", f"{row['depth']:g}"]
        if "refused" in row:
            cells.append(f"refused: {row['refused']}")
        else:
            cells += [f"{row['parameters'] / 1e6:.1f} M", f"{row['score']:.3f}"]
            for format in FORMATS:
                cells += [f"{row[f'{format}_bytes'] / 1e6:.1f} MB", f"{row[f'{format}_latency_s'] * 1e3:.2f} ms"]
                cells.append(f"{row[f'{format}_score']:.3f}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
