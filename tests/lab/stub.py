"""A device whose measuring is stubbed out: `python3` there is a shell script that answers as the runner does.

Everything else is real: the link, the leash, the uploads, the files that come back.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from edgekit.bench.check import Subject, reference
from edgekit.bench.runner import PHASES, write_tensors

_PYTHON = """\
#!/bin/sh
for word; do
    case $before in --outputs) outputs=$word ;; --signature) signature=$word ;; --model) model=$word ;; esac
    before=$word
done
{before}
[ -z "$outputs" ] || cat {folder}/outputs-$signature >"$outputs"
{say}
"""


def document(samples: Sequence[int] = (2_000_000,) * 30) -> str:
    """What a runner prints; times are ns."""
    sizes = dict.fromkeys(["hwm_bytes", "rss_bytes", "anon_bytes", "file_bytes", "shmem_bytes"], 20_000_000)
    return json.dumps(
        {
            "edgekit_runner": 1, "runner": "python", "format": "tflite", "runtime": "litert", "library_version": "0",
            "threads": 1, "cpus": None, "open_ns": 1, "load_ns": 1, "first_run_ns": 1, "warmup_ns": [],
            "samples_ns": list(samples), "cpu_ns": list(samples), "began_ns": None, "ended_ns": None,
            "voluntary_switches": 0, "involuntary_switches": 0, "minor_faults": 0, "major_faults": 0, "examples": 1,
            "phases": [{"name": name, **sizes, "pss_bytes": None, "swap_bytes": 0} for name in PHASES],
        }
    )  # fmt: skip


def install(
    root: Path,
    subject: Subject,
    change: Mapping[str, float] | None = None,
    *,
    say: str = "cat {folder}/document",
    before: str = "",
    seen: str = "/recorded/stub",
) -> None:
    """Make `root`/system/bin/python3 the stub, its files in `root`/recorded/stub.

    Its outputs are this host's; `change` adds to and multiplies them (`add`, `times`). `say` is how it prints its
    document and `before` what it does first, in sh; `{folder}` is its folder as the device sees it.
    """
    folder = root / "recorded" / "stub"
    folder.mkdir(parents=True)
    (folder / "document").write_text(document())
    how = {"add": 0.0, "times": 1.0, **(change or {})}
    for length, outputs in reference(subject, 1).items():
        changed = [
            {name: np.asarray(array * how["times"] + how["add"], array.dtype) for name, array in one.items()}
            for one in outputs
        ]
        write_tensors(folder / f"outputs-{subject.signature(length)}", changed)
    python = root / "system" / "bin" / "python3"
    python.parent.mkdir(parents=True, exist_ok=True)
    python.write_text(_PYTHON.format(say=say.format(folder=seen), before=before.format(folder=seen), folder=seen))
    python.chmod(0o755)
