"""The native runner's latency beside the runtimes' own tools on the same file, and its memory beside a Python process.

    python benchmarks/runner.py BUNDLE [--rounds 12]      exit 3 beyond 5 % of latency, or 30 MB of memory for TFLite

TFLite is compared with ai-edge-litert's own benchmark tool, ONNX with onnxruntime's session in Python. Batch 1, the
bundle's greatest length, one thread, every process fresh; a round is A B B A, so that a drift of the machine meets both
alike. The interval is Student's on the rounds' log ratios of medians. Run it on an idle machine.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import fmean, median, stdev

import numpy as np
from scipy.stats import t

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from edgekit.bench.runner import EMPTY, PYTHON, Load, Run, argv, parse, write_tensors  # noqa: E402
from edgekit.bench.runner import build as kits  # noqa: E402
from edgekit.infer import example, open_model  # noqa: E402
from edgekit.pipeline.bundle import host  # noqa: E402
from edgekit.records import Format  # noqa: E402

WITHIN = 0.05
MOST_TFLITE_BYTES = 30e6
WARMUP, RUNS = 30, 150

LITERT = """
import numpy as np
from ai_edge_litert.tools import benchmark_litert_model as tool
def ones(buffer, details): buffer.write(np.ones(details["shape"], tool.get_numpy_dtype(details["dtype"])))
tool.fill_random_input = ones  # its own noise of -128 to 127 is no token, and the model refuses it
tool.main()
"""
ONNXRUNTIME = """
import json, sys, time
import numpy as np, onnxruntime as ort
model, length, warmup, runs = sys.argv[1], *map(int, sys.argv[2:])
options = ort.SessionOptions()
options.intra_op_num_threads = options.inter_op_num_threads = 1
session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
feeds = {x.name: np.ones([1, length], np.int64) for x in session.get_inputs()}
for _ in range(warmup): session.run(None, feeds)
taken = []
for _ in range(runs):
    start = time.perf_counter()
    session.run(None, feeds)
    taken.append(time.perf_counter() - start)
print(json.dumps(taken))
"""


def main() -> int:
    """Print and write the figures; the exit code."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    arguments.add_argument("bundle", type=Path, help="of a model for text, with both formats")
    arguments.add_argument("--rounds", type=int, default=12)
    given = arguments.parse_args()
    kit = kits.find({"x86_64": "linux-x86_64", "aarch64": "linux-arm64"}[os.uname().machine])
    figures: dict[str, object] = {"machine": f"{host()}, {os.cpu_count()} cores", "rounds": given.rounds, "runs": RUNS}
    length = open_model(given.bundle / "tflite" / "model.tflite").inputs[0].shape[1]
    good = True
    with tempfile.TemporaryDirectory(prefix="edgekit-runner-") as temporary:
        for format in kits.read(kit).libraries:
            model = given.bundle / format / f"model.{format}"
            found = compare(model, format, length, kit, Path(temporary), given.rounds)
            good &= abs(found["ratio"] - 1) <= WITHIN
            good &= format == "onnx" or found["native_peak_bytes"] < MOST_TFLITE_BYTES
            figures[format] = found
    (ROOT / "benchmarks" / "runner.json").write_text(json.dumps(figures, indent=1) + "\n")
    print(json.dumps(figures, indent=1))
    return 0 if good else 3


def compare(model: Path, format: Format, length: int, kit: Path, folder: Path, rounds: int) -> dict[str, float]:
    """One file: median seconds of ours and of the peer, their ratio with its 95 % interval, and peaks of memory."""
    write_tensors(folder / "inputs", [example(open_model(model), length)])
    signature = f"len_{length}" if format == "tflite" else None
    start = [word.replace("{dir}", str(kit)) for word in kits.read(kit).start]
    library = str(kit / kits.read(kit).libraries[format])
    load = Load(signature=signature, warmup_n=WARMUP, repeat_n=RUNS, deadline_s=300)

    def native() -> float:
        return median(run(start, format, library, model, folder / "inputs", load).samples_s)

    def litert() -> float:
        options = {"model": model, "signature": signature, "num_threads": 1, "num_runs": RUNS, "warmup_runs": WARMUP}
        words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        called(sys.executable, "-c", LITERT, *words, "--result_json", str(folder / "peer.json"))
        return json.loads((folder / "peer.json").read_text())["latency"]["median_ms"] / 1e3

    def onnxruntime() -> float:
        said = called(sys.executable, "-c", ONNXRUNTIME, str(model), str(length), str(WARMUP), str(RUNS))
        return median(json.loads(said))

    ours, theirs, ratio, low, high = interleaved(native, litert if format == "tflite" else onnxruntime, rounds)
    memory = load.model_copy(update={"warmup_n": 0, "repeat_n": 20})
    peak = run(start, format, library, model, folder / "inputs", memory).phase("end")
    python = run([sys.executable, str(PYTHON)], format, None, model, folder / "inputs", memory).phase("end")
    write_tensors(folder / "one", [{"x": np.ones(1, np.float32)}])
    floor = run(start, format, library, EMPTY[format], folder / "one", Load(repeat_n=20, deadline_s=60)).phase("end")
    return {
        "length": length, "native_s": round(ours, 6), "peer_s": round(theirs, 6), "ratio": round(ratio, 4),
        "low": round(low, 4), "high": round(high, 4), "model_file_bytes": model.stat().st_size,
        "native_peak_bytes": peak.hwm_bytes, "native_anon_bytes": peak.anon_bytes, "floor_bytes": floor.hwm_bytes,
        "python_peak_bytes": python.hwm_bytes,
    }  # fmt: skip


def interleaved(
    a: Callable[[], float], b: Callable[[], float], rounds: int
) -> tuple[float, float, float, float, float]:
    """Medians of a and b over all processes, and the ratio a / b with its 95 % interval."""
    pairs = [(a(), b(), b(), a()) for _ in range(rounds)]
    logs = [(math.log(p[0] / p[1]) + math.log(p[3] / p[2])) / 2 for p in pairs]
    half = float(t.ppf(0.975, rounds - 1)) * stdev(logs) / math.sqrt(rounds)
    centre = fmean(logs)
    ours, theirs = median([x for p in pairs for x in (p[0], p[3])]), median([x for p in pairs for x in (p[1], p[2])])
    return ours, theirs, math.exp(centre), math.exp(centre - half), math.exp(centre + half)


def run(start: list[str], format: Format, library: str | None, model: Path, inputs: Path, load: Load) -> Run:
    """One process of one of our runners."""
    return parse(called(*argv(start, format, library, str(model), str(inputs), None, load)), "this host")


def called(*words: str) -> bytes:
    """What a command prints; it must succeed."""
    return subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True, timeout=600).stdout


if __name__ == "__main__":
    sys.exit(main())
