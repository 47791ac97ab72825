"""Training data on disk: the features that a list would hold, made once, and no memory a row."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import families as tiny
import numpy as np
import pytest
from filelock import FileLock

from edgekit.errors import InputError
from edgekit.pipeline import TaskData, encoded
from edgekit.recipe import Recipe
from edgekit.tasks import Feature

TASKS: dict[str, tuple[str, dict[str, object], list[dict[str, object]]]] = {
    "text_classification": (
        "text-classification", {}, [{"text": text, "label": "ab"[i % 2]} for i, text in enumerate(tiny.TEXTS)],
    ),
    "token_classification": (
        "token-classification", {"labels": ["O", "B-X", "I-X"]},
        [{"tokens": text.split(), "tags": ["O"] * len(text.split())} for text in tiny.TEXTS],
    ),
    "question_answering": (
        "question-answering", {},
        [
            {"question": "what", "context": text * 8, "answers": [{"text": text[:5], "answer_start": 0}]}
            for text in tiny.TEXTS
        ],
    ),
    "sentence_embedding": ("sentence-embedding", {}, [{"text_a": a, "text_b": b, "score": 1.0} for a, b in
                                                      zip(tiny.TEXTS, tiny.TEXTS[1:], strict=False)]),
}  # fmt: skip


def task_data(folder: Path, task: str, rows: Sequence[object], shared: Path | None, **params: object) -> TaskData:
    for name in ("train", "dev"):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = Recipe.model_validate({
        "name": "x", "max_length": 32, "task": {"name": task, **params},
        "data": {"name": "files", "train": "train.jsonl", "dev": "dev.jsonl"},
        "step": [{"stage": "teach", "model": "teacher"}],
    })  # fmt: skip
    return TaskData(recipe, folder, shared)


def same(one: Feature, other: Feature) -> bool:
    def equal(a: Feature, b: Feature, part: str) -> bool:
        mine, its = getattr(a, part), getattr(b, part)
        return list(mine) == list(its) and all(
            np.array_equal(mine[n], its[n]) and mine[n].dtype == its[n].dtype and mine[n].ndim == its[n].ndim
            for n in mine
        )

    return one.example == other.example and equal(one, other, "inputs") and equal(one, other, "labels")


@pytest.mark.parametrize("task", TASKS)
def test_what_is_read_is_what_a_list_would_hold(task: str, tmp_path: Path) -> None:
    kind, params, rows = TASKS[task]
    tiny.make(tmp_path / "teacher", "bert", kind)
    rows = rows * 160  # more than are checked and encoded at once
    listed = task_data(tmp_path, task, rows, None, **params).features("train", tmp_path / "teacher")
    data = task_data(tmp_path, task, rows, tmp_path / "store", **params)
    found = data.features("train", tmp_path / "teacher")
    assert isinstance(found, encoded.Encoded) and isinstance(listed, list)
    assert len(found) == len(listed) > 1000
    assert all(same(one, other) for one, other in zip(found, listed, strict=True))
    assert same(found[-1], listed[-1]) and all(map(same, found[5:9], listed[5:9]))
    assert encoded.fingerprint(found) == encoded.fingerprint(listed)
    assert np.array_equal(encoded.lengths(found), encoded.lengths(listed))  # type: ignore[arg-type]
    with pytest.raises(IndexError):
        found[len(found)]


def test_it_is_made_once_for_the_same_ingredients(tmp_path: Path) -> None:
    kind, _, rows = TASKS["text_classification"]
    shutil.copytree(tiny.make(tmp_path / "one", "bert", kind), tmp_path / "other")
    files = tmp_path / "store" / "encoded"

    def folders() -> dict[str, int]:
        return {p.name: (p / "rows.i32").stat().st_ino for p in files.iterdir() if p.is_dir()}

    task_data(tmp_path, "text_classification", rows, tmp_path / "store").features("train", tmp_path / "one")
    before = folders()
    task_data(tmp_path, "text_classification", rows, tmp_path / "store").features("train", tmp_path / "other")
    assert folders() == before, "another model with the same tokenizer"
    task_data(tmp_path, "text_classification", rows[1:], tmp_path / "store").features("train", tmp_path / "one")
    assert len(folders()) == 2
    tiny.make(tmp_path / "roberta", "roberta", kind)
    task_data(tmp_path, "text_classification", rows, tmp_path / "store").features("train", tmp_path / "roberta")
    assert len(folders()) == 3


def test_those_used_last_stay(tmp_path: Path) -> None:
    features = [Feature({"input_ids": np.arange(3)}, 0)]
    made = [encoded.stored(tmp_path, {"n": n}, [features]) for n in range(10)]
    assert len([p for p in tmp_path.iterdir() if p.is_dir()]) == 8
    assert same(made[0][0], features[0]), "what is being read is still there"


def test_what_another_process_is_making_stays(tmp_path: Path) -> None:
    features = [Feature({"input_ids": np.arange(3)}, 0)]
    encoded.stored(tmp_path, {"n": 0}, [features])
    (first,) = (path for path in tmp_path.iterdir() if path.is_dir())
    with FileLock(tmp_path / f".{first.name}.lock"):
        for n in range(1, 12):
            encoded.stored(tmp_path, {"n": n}, [features])
        assert first.is_dir()
    encoded.stored(tmp_path, {"n": 12}, [features])
    assert not first.is_dir()


def test_a_killed_making_is_made_again(tmp_path: Path) -> None:
    features = [Feature({"input_ids": np.arange(n)}, n) for n in range(1, 4)]

    def dies():
        yield features[:2]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        encoded.stored(tmp_path, {}, dies())
    found = encoded.stored(tmp_path, {}, [features])
    assert all(map(same, found, features)) and len(found) == 3


@pytest.mark.parametrize("name", ["rows.i32", "index.i64"])
def test_a_file_of_another_size_is_refused(name: str, tmp_path: Path) -> None:
    encoded.stored(tmp_path, {}, [[Feature({"input_ids": np.arange(3)}, 0)]])
    (path,) = tmp_path.glob(f"*/{name}")
    os.truncate(path, 4)
    with pytest.raises(InputError, match=f"{name}: changed since it was made; remove the folder"):
        encoded.stored(tmp_path, {}, [])


def test_what_does_not_fit_stays_a_list(tmp_path: Path) -> None:
    pixels = [Feature({"pixel_values": np.zeros((3, 4, 4), np.float32)}, 0, {"labels": np.array(1)})]
    floats = [Feature({"input_ids": np.arange(3)}, 0, {"labels": np.array(0.5)})]
    for features in (pixels, floats):
        assert encoded.stored(tmp_path, {}, [features, features]) == [*features, *features]
    assert not list(tmp_path.glob("*/meta.json"))


def test_limited_examples_come_from_all_over_the_rows(tmp_path: Path) -> None:
    kind, _, rows = TASKS["text_classification"]
    tiny.make(tmp_path / "teacher", "bert", kind)
    data = task_data(tmp_path, "text_classification", rows * 300, tmp_path / "store")
    limited = data.features("train", tmp_path / "teacher", limit=10)
    every = data.features("train", tmp_path / "teacher")
    assert len(limited) == 10 and data.count() == 2100
    for i, feature in enumerate(limited):
        assert np.array_equal(feature.inputs["input_ids"], every[i * 210].inputs["input_ids"])


_MEASURE = """
import re, sys
from pathlib import Path
from edgekit.pipeline import TaskData, encoded
from edgekit.pipeline.layout import layout
from edgekit.recipe import Recipe
from edgekit.tasks import pad

folder, rows = Path(sys.argv[1]), int(sys.argv[2])
with (folder / "train.csv").open("w") as file:
    file.write("text,label\\n")
    for i in range(rows):
        file.write(f"a good film number {i} with a great cast and a fine story,{'ab'[i % 2]}\\n")
(folder / "dev.csv").write_text("text,label\\ngood,a\\nbad,b\\n")
recipe = Recipe.model_validate({
    "name": "x", "max_length": 32, "task": {"name": "text_classification"},
    "data": {"name": "files", "train": "train.csv", "dev": "dev.csv"}, "step": [{"stage": "teach", "model": "t"}],
})
data = TaskData(recipe, folder, folder / "store")
assert data.count() == rows
features = data.features("train", Path(sys.argv[3]))
batches = layout(encoded.lengths(features), 32, 3, 0)
for i in range(0, len(batches), max(1, len(batches) // 200)):
    pad([features[row] for row in batches[i]], 0)
print(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
"""


def test_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    if not Path("/proc/self/status").is_file():
        pytest.skip("the peak of memory is read from /proc")
    teacher = tiny.make(tmp_path / "teacher", "bert")
    peaks: list[int] = []
    for rows in (2_000, 30_000):
        folder = tmp_path / str(rows)
        folder.mkdir()
        done = subprocess.run(
            [sys.executable, "-c", _MEASURE, str(folder), str(rows), str(teacher)],
            capture_output=True, text=True, check=True, timeout=300,
        )  # fmt: skip
        peaks.append(int(done.stdout) * 1024)
    # Lists of features took 1.5 KB a row, 42 MB of the difference.
    assert peaks[1] - peaks[0] < 6e6
