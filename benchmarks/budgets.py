"""Which models of a build keep 200 MB and 30 MB of memory on this host, by how much, and what a real limit says.

    python benchmarks/budgets.py BUNDLE [--store .edgekit]      exit 3 where no model keeps a budget

The models are those of a bundle, and from the store that built it the float32 exports, the teacher's float32 ONNX, and
the pruned model as int8 TFLite with its greatest length only, which is exported here. Each is run at that length in
fresh processes: one thread, ten inferences, in the native runner and in Python. The peak is the largest VmHWM of five
such runs; the limit is a memory cgroup that holds the model's process and nothing else, where root may make one.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any, Literal, NamedTuple

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from edgekit import bundle, devices, plugins, progress  # noqa: E402
from edgekit.bench import check, measure  # noqa: E402
from edgekit.bench.placed import place  # noqa: E402
from edgekit.bundle import Manifest, ModelFile  # noqa: E402
from edgekit.pipeline.bundle import host  # noqa: E402
from edgekit.pipeline.export import made_up  # noqa: E402
from edgekit.pipeline.models import Exportable, load, pad_id  # noqa: E402
from edgekit.records import Artifact, Format  # noqa: E402
from edgekit.results import Memory  # noqa: E402
from edgekit.store import Store  # noqa: E402
from edgekit.tasks import pad  # noqa: E402

BUDGETS = (200_000_000, 30_000_000)
PASSES = 5
RUNNERS: tuple[Literal["native", "python"], ...] = ("native", "python")


class Variant(NamedTuple):
    """A model file to be measured, as the bundle would describe it."""

    name: str
    file: Path
    model: ModelFile


def main() -> int:
    """Print and write the figures; the exit code."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    arguments.add_argument("bundle", type=Path, help="int8, of a model for text, with both formats")
    arguments.add_argument("--store", type=Path, default=Path(".edgekit"), help="where it was built")
    given = arguments.parse_args()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="edgekit-budgets-") as temporary:
        manifest = bundle.verify(given.bundle)
        for number, variant in enumerate(variants(given.bundle, manifest, Store(given.store), Path(temporary))):
            folder = bundled(given.bundle, manifest, variant, Path(temporary, str(number)))
            for runner in RUNNERS:
                rows.append(row(variant, runner, memory(folder, Path(temporary, "work"), runner)))
                print(json.dumps(rows[-1]), file=sys.stderr)
            shutil.rmtree(folder)
    figures = {
        "machine": f"{host()}, {os.cpu_count()} cores", "date": date.today().isoformat(), "bundle": manifest.name,
        "digest": manifest.digest, "length": manifest.target.lengths[-1], "rows": rows,
    }  # fmt: skip
    (ROOT / "benchmarks" / "budgets.json").write_text(json.dumps(figures, indent=1) + "\n")
    print(table(rows))
    return 0 if all(any(row["budgets"][i]["kept"] for row in rows) for i in range(len(BUDGETS))) else 3


def variants(path: Path, manifest: Manifest, store: Store, folder: Path) -> Iterator[Variant]:
    """The bundle's own models, then what the store has beside them."""
    stages = {stage.name: stage for stage in manifest.stages}
    tflite, onnx = manifest.model("tflite"), manifest.model("onnx")
    yield Variant(f"TFLite int8, {len(tflite.lengths)} lengths", path / tflite.path, tflite)
    student = next(s for s in manifest.stages if s.id == stages["export-tflite"].parents[0])
    yield one_length(manifest, store.folder(student.name, student.id), folder)
    yield Variant("ONNX int8", path / onnx.path, onnx)
    for name, said in (
        ("export-tflite", f"TFLite float32, {len(tflite.lengths)} lengths"),
        ("export-onnx", "ONNX float32"),
        ("teacher-onnx", "teacher, ONNX float32"),
    ):
        stage = stages[name]
        model = described(manifest.model(stage.facts.format), stage)
        yield Variant(said, store.folder(name, stage.id) / Path(model.path).name, model)


def described(model: ModelFile, stage: Artifact) -> ModelFile:
    """The bundle's record of the same format, for a float model that a stage made."""
    return model.model_copy(
        update={"quantized": False, "inputs": stage.facts.inputs, "outputs": stage.facts.outputs, "parts": ()}
    )


def one_length(manifest: Manifest, student: Path, folder: Path) -> Variant:
    """The bundle's int8 TFLite once more, with its greatest length only."""
    import torch

    model, longest = manifest.model("tflite"), manifest.target.lengths[-1]
    exportable = Exportable(load(student, manifest.kind, manifest.labels), manifest.kind).eval()
    batch = pad(made_up(exportable, 2, longest), pad_id(exportable.model))
    source, path = folder / "float.tflite", folder / "one.tflite"
    with progress.quiet():
        tensors = {name: torch.from_numpy(array) for name, array in batch.items()}
        plugins.load("exporters", "tflite").export(exportable, tensors, (longest,), source)
        plugins.load("quantizers", "tflite").quantize(source, path)
    source.unlink()
    return Variant("TFLite int8, one length", path, model.model_copy(update={"lengths": (longest,)}))


def bundled(source: Path, manifest: Manifest, variant: Variant, folder: Path) -> Path:
    """A bundle like the one at `source` with no other model than this one."""
    for file in manifest.files:
        if Path(file.path).suffix not in (".onnx", ".tflite"):
            (folder / file.path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / file.path, folder / file.path)
    (folder / variant.model.path).parent.mkdir(exist_ok=True)
    shutil.copyfile(variant.file, folder / variant.model.path)
    formats: tuple[Format, ...] = (variant.model.format,)
    target = manifest.target.model_copy(update={"formats": formats})
    bundle.write(folder, manifest.model_copy(update={"models": (variant.model,), "target": target}))
    return folder


def memory(path: Path, work: Path, runner: Literal["native", "python"]) -> list[Memory]:
    """The memory pass of `edgekit bench`, several times, the first ones with a run under each budget as a limit.

    The outputs are checked before. It has a work folder of its own, so that another bench on this host does not keep
    it out.
    """
    device = devices.find("host").model_copy(update={"workdir": str(work)})
    with bundle.opened(path) as (folder, manifest), measure.prepared(device, None) as (transport, desk, facts):
        subject = check.subject(path, folder, manifest, None, manifest.target.lengths[-1:])
        placed = place(device, transport, desk, subject, facts, runner)
        measure.right(device, placed, check.reference(subject, threads=1))
        limits = (*BUDGETS, *[None] * (PASSES - len(BUDGETS)))
        return [measure.peak(device, placed, limit)[1] for limit in limits]


def row(variant: Variant, runner: str, found: list[Memory]) -> dict[str, Any]:
    """The figures of one model in one runner; the first passes in `found` are those of the budgets."""
    worst = max(found, key=lambda one: one.peak_rss_bytes)
    budgets = [
        {
            "limit_bytes": limit, "kept": worst.peak_rss_bytes <= limit,
            "headroom_bytes": limit - worst.peak_rss_bytes,
            "under_the_limit": one.limit and {"kind": one.limit.kind, "survived": one.limit.survived,
                                              "said": one.limit.said},
        }
        for limit, one in zip(BUDGETS, found, strict=False)
    ]  # fmt: skip
    return {
        "model": variant.name, "runner": runner, "file_bytes": variant.file.stat().st_size,
        "peaks_rss_bytes": [one.peak_rss_bytes for one in found],
        "peak_rss_bytes": worst.peak_rss_bytes, "peak_phase": worst.peak_phase, "floor_bytes": worst.floor_bytes,
        "model_bytes": worst.model_bytes, "budgets": budgets,
    }  # fmt: skip


def table(rows: list[dict[str, Any]]) -> str:
    """The figures in Markdown, as README.md has them."""
    lines = [
        "| model | file | runner | peak | floor + model | 200 MB | 30 MB |",
        "|---|---|---|---|---|---|---|",
    ]
    for one in rows:
        mb = {key: f"{one[f'{key}_bytes'] / 1e6:.1f}" for key in ("file", "peak_rss", "floor", "model")}
        cells = [said(budget) for budget in one["budgets"]]
        figures = (f"{mb['file']} MB", one["runner"], f"{mb['peak_rss']} MB", f"{mb['floor']} + {mb['model']}")
        lines.append(f"| {' | '.join((one['model'], *figures, *cells))} |")
    return "\n".join(lines)


def said(budget: dict[str, Any]) -> str:
    """`kept by 4.8 MB; survived`."""
    limited = budget["under_the_limit"]
    end = "survived" if limited["survived"] else "killed" if "kernel killed" in limited["said"] else limited["said"]
    return f"{'kept' if budget['kept'] else 'broken'} by {abs(budget['headroom_bytes']) / 1e6:.1f} MB; {end}"


if __name__ == "__main__":
    sys.exit(main())
