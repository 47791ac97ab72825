"""Bisecting: the pure search in full for small rows, then over commits and recipes with bundles that say what they are
worth, and once with real builds that are really gated."""

import itertools
import json
import math
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import families as tiny
import numpy as np
import pytest

from edgekit import bisect as bisecting
from edgekit import bundle, devices, gating, splice
from edgekit.bench.measure import Wanted
from edgekit.bisect import Found, Trial, bisect, first_bad, lines
from edgekit.errors import EdgekitError, InputError
from edgekit.records import Artifact, Facts, Gate, Tensor
from edgekit.results import Answer, Bundled, Check, Failure, Verdict
from edgekit.splice import Suspect, splices, unlike

IDENTITY = ("-c", "user.name=t", "-c", "user.email=t@localhost", "-c", "commit.gpgsign=false")


def row(count: int, first: int, skipped: Sequence[int] = ()) -> tuple[Callable[[int], Answer | None], list[int]]:
    """A judge of things that are bad from `first` on and cannot be judged at `skipped`; and what it was asked."""
    asked: list[int] = []

    def judge(i: int) -> Answer | None:
        assert 0 <= i < count
        asked.append(i)
        if i in skipped:
            return (None, "INCONCLUSIVE", "INFRA_ERROR")[i % 3]
        return "REGRESSION" if i >= first else "PASS"

    return judge, asked


@pytest.mark.parametrize("count", range(1, 34))
def test_every_first_bad_one_is_found_in_few_calls(count: int) -> None:
    for first in range(count):
        judge, asked = row(count, first)
        assert first_bad(count, judge) == Found("REGRESSION", (first,))
        assert len(asked) == len(set(asked)) <= 1 + math.ceil(math.log2(count))


def hidden(first: int, skipped: Sequence[int]) -> tuple[int, ...]:
    """What stays possible when all but `skipped` is known: the first bad one and what was skipped just before it."""
    last = next(i for i in itertools.count(first) if i not in skipped)
    start = next(i for i in itertools.count(first - 1, -1) if i not in skipped) + 1
    return tuple(range(start, last + 1))


@pytest.mark.parametrize("count", range(1, 21))
def test_with_skips_what_remains_is_as_small_as_it_can_be(count: int) -> None:
    rng = random.Random(count)
    for first in range(count):
        for _ in range(30):
            skipped = [i for i in range(count - 1) if rng.random() < rng.choice((0.1, 0.5, 0.9))]
            judge, asked = row(count, first, skipped)
            assert first_bad(count, judge) == Found("REGRESSION", hidden(first, skipped))
            assert len(asked) == len(set(asked))


def test_a_block_that_does_not_build_costs_few_calls_where_it_hides_nothing() -> None:
    for first in (*range(40), *range(61, 99)):
        judge, asked = row(100, first, range(40, 60))
        assert first_bad(100, judge).suspects == (first,)
        assert len(asked) <= 12


@pytest.mark.parametrize("last", ["PASS", "INCONCLUSIVE", "INFRA_ERROR", None])
def test_unless_the_last_is_bad_nothing_else_is_asked(last: Answer | None) -> None:
    asked: list[int] = []
    assert first_bad(9, lambda i: (asked.append(i), last)[1]) == Found(last, ())
    assert asked == [8]


# -- bundles that say what they are worth --------------------------------------------------------------------------


def manifest(recipe: Mapping[str, Any], stages: Sequence[Artifact] = (), **target: Any) -> bundle.Manifest:
    ids = Tensor(name="input_ids", dtype="int64", shape=(-1, -1))
    model = {
        "format": "onnx", "path": "model.onnx", "quantized": False, "inputs": [ids], "outputs": [], "lengths": [8],
        "score": None, "parity": [], "latency_s": None, "float_latency_s": None,
    }  # fmt: skip
    device = {"name": "t", "description": "d", "abi": "host", "formats": ["onnx"], "lengths": [8], **target}
    return bundle.Manifest.model_validate({
        "version": 2, "edgekit": "0", "name": "tiny", "task": {"name": "text_classification"},
        "kind": "text-classification", "labels": ("a", "b"), "target": device, "max_length": 8, "pad_id": 0,
        "encoder": "onnx", "models": [model], "host": "h", "recipe": dict(recipe), "stages": stages, "files": (),
        "digest": "",
    })  # fmt: skip


def write(folder: Path, worth: str, recipe: Mapping[str, Any] | None = None) -> Path:
    (folder / "onnx").mkdir(parents=True, exist_ok=True)
    (folder / "onnx" / "config.json").write_text("{}")
    (folder / "model.onnx").write_text(worth)
    bundle.write_examples(folder, [{"input_ids": np.array([1])}])
    bundle.write(folder, manifest(recipe or {}))
    return folder


def verdict(answer: Answer, reason: str = "", failures: tuple[Failure, ...] = ()) -> Verdict:
    checks = [
        Check(device="host", metric="size_bytes", unit="bytes", rule="change", answer=answer, reason=reason),
        Check(device="host", metric="latency_s", length=8, unit="s", rule="change", answer="PASS", reason="as it was"),
    ]
    of = Bundled(name="tiny", digest="", source="", recipe={}, stages=(), models=())
    return Verdict(
        edgekit="0", answer=answer, candidate=of, baseline=of, checks=tuple(checks if not failures else ()),
        left_out=(), correction="", tolerances=Gate(), measured=(), failures=failures, began="", seconds=0,
    )  # fmt: skip


class Scripted:
    """A gate that reads a bundle's answer in its model file; `asked` are the files' texts, in order."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __call__(self, candidate: Path, baseline: Path) -> Verdict:
        assert (baseline / "model.onnx").read_text().startswith("good")
        self.asked.append(text := (candidate / "model.onnx").read_text())
        match text.split()[0]:
            case "good":
                return verdict("PASS")
            case "bad":
                return verdict("REGRESSION", "5 MB is twice 2.5 MB")
            case "odd":
                return verdict("INCONCLUSIVE", "the interval holds the floor")
            case _:
                return verdict("INFRA_ERROR", "", (Failure(device="host", message="no link", exit_code=4),))


# -- over commits --------------------------------------------------------------------------------------------------

COPIES = """
import json, pathlib, shutil, sys
out = sys.argv[sys.argv.index("--out") + 1]
if not pathlib.Path("bundle").is_dir(): sys.exit("there is nothing to build")
shutil.copytree("bundle", out)
print(json.dumps({"bundle": out}))
"""


def git(folder: Path, *args: str) -> str:
    done = subprocess.run(["git", *IDENTITY, *args], cwd=folder, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository whose own edgekit takes the bundle in it for what is built."""
    folder = tmp_path / "repository"
    (folder / "edgekit").mkdir(parents=True)
    (folder / "edgekit" / "__init__.py").touch()
    (folder / "edgekit" / "__main__.py").write_text(COPIES)
    git(folder, "init", "-q", "-b", "main")
    monkeypatch.chdir(folder)
    return folder


def history(folder: Path, *worths: str) -> list[str]:
    """A commit for each, whose bundle is worth that much (`""`: that does not build); gives their hashes."""
    hashes: list[str] = []
    for i, worth in enumerate(worths):
        if worth:
            write(folder / "bundle", worth)
        else:
            shutil.rmtree(folder / "bundle", ignore_errors=True)
        git(folder, "add", "-A")
        git(folder, "commit", "-q", "--allow-empty", "-m", f"number {i}")
        hashes.append(git(folder, "rev-parse", "HEAD"))
    git(folder, "tag", "good", hashes[0])
    return hashes


def over_commits(gate: bisecting.Gate, candidate: str = "git:main", baseline: str = "git:good") -> bisecting.Bisected:
    return bisect(candidate, baseline, gate, None, "host", Path("store"), Path())


def test_the_first_bad_commit_is_named(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hashes = history(repository, "good 0", "good 1", "good 2", "good 3", "good 4", "bad 5", "bad 6", "bad 7", "bad 8")
    gate = Scripted()
    found = over_commits(gate)
    assert gate.asked == ["bad 8", "good 4", "bad 6", "bad 5"]
    assert (found.answer, found.over, found.count, found.exit_code) == ("REGRESSION", "commits", 8, 3)
    assert [suspect.name for suspect in found.suspects] == [hashes[5]]
    assert found.suspects[0].what.startswith("number 5 (20")
    assert [(check.metric, check.reason) for check in found.broke] == [("size_bytes", "5 MB is twice 2.5 MB")]
    assert [(trial.what, trial.answer) for trial in found.trials] == [
        (f"{hashes[8][:12]} number 8", "REGRESSION"),
        (f"{hashes[4][:12]} number 4", "PASS"),
        (f"{hashes[6][:12]} number 6", "REGRESSION"),
        (f"{hashes[5][:12]} number 5", "REGRESSION"),
    ]
    out, err = capsys.readouterr()
    assert out == ""
    assert f"bisect: try {hashes[6][:12]} number 6; 3 to search" in err
    text = lines(found)
    assert text.splitlines()[:2] == [
        "The first commit that broke the gate, of 8:",
        f"  {hashes[5][:12]}  {found.suspects[0].what}",
    ]
    assert "  size_bytes on host: 5 MB is twice 2.5 MB" in text
    assert len(git(repository, "worktree", "list").splitlines()) == 1


def test_commits_that_cannot_be_judged_are_passed_over(repository: Path) -> None:
    hashes = history(repository, "good 0", "good 1", "", "odd 3", "lost 4", "bad 5", "bad 6")
    found = over_commits(Scripted())
    assert [suspect.name for suspect in found.suspects] == hashes[2:6]
    assert found.exit_code == 5
    reasons = {trial.what.split()[-1]: trial.reason for trial in found.trials}
    assert "there is nothing to build" in str(reasons["2"])
    assert reasons["3"] == "the interval holds the floor"
    assert reasons["4"] == "host: no link"
    assert lines(found).startswith("One of these 4 commits broke the gate; those between could not be judged:\n")


def test_a_commit_that_changes_no_bundle_is_not_measured(repository: Path) -> None:
    hashes = history(repository, "good", "good", "good", "bad", "bad", "bad")
    gate = Scripted()
    assert [suspect.name for suspect in over_commits(gate).suspects] == [hashes[3]]
    assert gate.asked == ["bad"]


@pytest.mark.parametrize(
    ("worth", "answer", "code"), [("good 1", "PASS", 0), ("odd 1", "INCONCLUSIVE", 5), ("lost", "INFRA_ERROR", 4)]
)
def test_a_candidate_that_is_not_bad_ends_it(repository: Path, worth: str, answer: str, code: int) -> None:
    history(repository, "good 0", "bad", worth)
    gate = Scripted()
    found = over_commits(gate)
    assert (found.answer, found.suspects, found.exit_code, gate.asked) == (answer, (), code, [worth])
    assert lines(found).startswith("Nothing")


def test_candidates_and_baselines_that_cannot_be_bisected(repository: Path, tmp_path: Path) -> None:
    history(repository, "good 0", "bad")
    for candidate, baseline, words in (
        ("git:good", "git:main", "is not an ancestor"),
        ("git:main", "git:main", "the same commit"),
        ("git:main", str(tmp_path), "are a commit and a bundle"),
        ("bundles/x", "git:main", "are a commit and a bundle"),
        (str(tmp_path / "x"), str(tmp_path / "y"), "there is no such bundle"),
    ):
        with pytest.raises(InputError, match=words):
            over_commits(Scripted(), candidate, baseline)
    history_ = git(repository, "rev-list", "--count", "main")
    assert history_ == "2"


def test_a_candidate_or_baseline_that_does_not_build_is_an_error(repository: Path) -> None:
    history(repository, "good 0", "")
    with pytest.raises(EdgekitError, match="there is nothing to build"):
        over_commits(Scripted())


# -- over the steps of recipes -------------------------------------------------------------------------------------

TEACH = {"stage": "teach", "model": "teacher"}
PRUNE = {"stage": "prune", "neurons": 24}
DISTILL = {"stage": "distill", "layers": 2}
EXPORT = {"stage": "export"}


def recipe(*steps: Mapping[str, Any], **values: Any) -> dict[str, Any]:
    return {
        "name": "tiny", "task": {"name": "text_classification"}, "data": {"name": "files"}, "step": list(steps),
        **values,
    }  # fmt: skip


def spliced(old: Mapping[str, Any], new: Mapping[str, Any]) -> tuple[splice.Splice, ...]:
    return splices(manifest(old), manifest(new))


def shown(steps: Sequence[Mapping[str, Any]]) -> list[str]:
    return [f"{step['stage']} {step.get('neurons') or step.get('layers') or ''}".strip() for step in steps]


def test_each_splice_takes_one_difference_more() -> None:
    old = recipe(TEACH, DISTILL, PRUNE, {**PRUNE, "neurons": 20}, EXPORT)
    new = recipe(TEACH, {**DISTILL, "layers": 3}, PRUNE, {**PRUNE, "neurons": 10}, EXPORT, seed=7, name="renamed")
    found = spliced(old, new)
    assert [one.suspect.name for one in found] == ["rebuilt", "data", "distill", "prune-2"]
    assert [one.suspect.changes for one in found] == [
        (),
        ("seed: 0 -> 7",),
        ("layers: 2 -> 3",),
        ("neurons: 20 -> 10",),
    ]
    assert [one.recipe["seed"] for one in found] == [0, 7, 7, 7]
    assert [shown(one.recipe["step"])[1:4] for one in found] == [
        ["distill 2", "prune 24", "prune 20"],
        ["distill 2", "prune 24", "prune 20"],
        ["distill 3", "prune 24", "prune 20"],
        ["distill 3", "prune 24", "prune 10"],
    ]
    assert {one.recipe["name"] for one in found} == {"tiny"}


def test_steps_that_come_and_go() -> None:
    found = spliced(recipe(TEACH, DISTILL, PRUNE, EXPORT), recipe(TEACH, PRUNE, {**PRUNE, "neurons": 8}, EXPORT))
    assert [(one.suspect.name, one.suspect.what) for one in found][1:] == [
        ("distill", "a step that is gone"),
        ("prune-2", "a step that is new"),
    ]
    assert [shown(one.recipe["step"]) for one in found] == [
        ["teach", "distill 2", "prune 24", "export"],
        ["teach", "prune 24", "export"],
        ["teach", "prune 24", "prune 8", "export"],
    ]


def test_another_target_counts_and_its_name_does_not() -> None:
    old = manifest(recipe(TEACH, EXPORT))
    found = splices(old, manifest(recipe(TEACH, EXPORT), name="u", lengths=[8, 16]))
    assert [one.suspect.name for one in found] == ["rebuilt", "target"]
    assert found[1].suspect.changes == ("lengths.1: none -> 16",)
    with pytest.raises(InputError, match="the same recipe and target"):
        splices(old, manifest(recipe(TEACH, EXPORT, gate={"score": {"absolute": 0.5}}), name="u"))


def test_steps_in_another_order_are_refused() -> None:
    with pytest.raises(InputError) as error:
        spliced(recipe(TEACH, DISTILL, PRUNE, EXPORT), recipe(TEACH, PRUNE, DISTILL, EXPORT))
    assert "the baseline's: teach, distill, prune, export; the candidate's: teach, prune, distill, export" in str(
        error.value
    )


def artifact(name: str, id: str, **versions: str) -> Artifact:
    return Artifact(
        id=id * 20, name=name, stage=name, parents=(), files=(), facts=Facts(bytes=1, changed=""), seconds=1,
        versions=versions,
    )  # fmt: skip


def test_equal_recipes_say_what_else_differs() -> None:
    old = (artifact("teach", "a", torch="2.1"), artifact("export", "b", torch="2.1", onnx="1.0"))
    new = (artifact("teach", "a", torch="2.1"), artifact("export", "c", torch="2.2", onnx="1.0"))
    assert unlike(old, new) == (
        "torch 2.1 -> 2.2",
        "the first stage that differs is export (bbbbbbbbbbbb -> cccccccccccc)",
    )
    assert unlike(old, old) == ("no stage differs",)
    with pytest.raises(InputError, match=r"torch 2\.1 -> 2\.2; the first stage that differs is export"):
        splices(manifest(recipe(TEACH, EXPORT), old), manifest(recipe(TEACH, EXPORT), new))
    moved = (artifact("teach", "d", torch="2.1"),)
    assert unlike(old, moved)[-1] == "no library version differs: it is code, weights or data"


def test_a_recipe_of_a_stranger_is_one_message(tmp_path: Path) -> None:
    good, bad = write(tmp_path / "good", "good", recipe(TEACH, EXPORT)), write(tmp_path / "bad", "bad", {"x": 1})
    with pytest.raises(InputError, match='the recipe in the bundle: unknown key "x"'):
        bisect(str(bad), str(good), Scripted(), None, "host", tmp_path / "store", tmp_path)


def test_lines_fit_a_terminal_and_hold_no_control_codes() -> None:
    check = Check(
        device="host", metric="size_bytes", unit="bytes", rule="change", answer="REGRESSION", reason="long " * 60
    )
    suspect = Suspect(
        name="prune-2", what="a step that changed", changes=("neurons: 20 -> 10", "x: \x1b[2J -> " + "y" * 200)
    )
    found = bisecting.Bisected(
        candidate="c", baseline="b", over="stages", count=3, answer="REGRESSION", suspects=(suspect,), broke=(check,),
        note="a note\nof two lines", trials=(Trial(what="rebuilt", answer=None, reason="r " * 99, broke=()),),
    )  # fmt: skip
    text = lines(found)
    assert max(map(len, text.splitlines())) <= 80
    assert "\x1b" not in text
    assert "    neurons: 20 -> 10\n" in text
    assert bisecting.Bisected.model_validate_json(found.model_dump_json()) == found


# -- real ones -----------------------------------------------------------------------------------------------------

RECIPE = """
name = "tiny"
max_length = 16
[task]
name = "text_classification"
labels = ["bad", "good"]
[data]
name = "files"
train = "rows.jsonl"
dev = "rows.jsonl"
[[step]]
stage = "teach"
model = "teacher"
[[step]]
stage = "prune"
neurons = 16
[[step]]
stage = "export"
"""
TARGET = 'description = "a test"\nabi = "host"\nformats = ["onnx"]\nlengths = [16]\n'


def project(folder: Path) -> Path:
    tiny.make(folder / "teacher", "bert", labels=["bad", "good"])
    rows = [{"text": text, "label": "bad" if "bad" in text else "good"} for text in tiny.TEXTS]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "here.toml").write_text(TARGET)
    (folder / "recipe.toml").write_text(RECIPE)
    return folder


def size(path: Path) -> int:
    return {file.path: file.bytes for file in bundle.verify(path).files}["onnx/model.onnx"]


def by_size(candidate: Path, baseline: Path) -> Verdict:
    now, was = map(size, (candidate, baseline))
    return verdict("REGRESSION", f"{now} bytes, was {was}") if now > 1.01 * was else verdict("PASS")


@pytest.mark.slow
def test_the_step_that_made_a_bundle_bigger(tmp_path: Path) -> None:
    from edgekit.pipeline.build import build
    from edgekit.recipe import read, target
    from edgekit.store import Store

    project(tmp_path)
    for name, text in (
        ("old", RECIPE),
        ("new", RECIPE.replace("max_length", "seed = 1\nmax_length").replace("= 16\n[[step]]", "= 40\n[[step]]")),
    ):
        (tmp_path / "recipe.toml").write_text(text)
        read_, here = read(tmp_path / "recipe.toml"), target(str(tmp_path / "here.toml"))
        build(read_, here, Store(tmp_path / "store"), tmp_path / name, tmp_path)

    def over_stages(candidate: str, baseline: str, gate: bisecting.Gate) -> bisecting.Bisected:
        return bisect(
            str(tmp_path / candidate), str(tmp_path / baseline), gate, None, "host", tmp_path / "store", tmp_path
        )

    found = over_stages("new.zip", "old", by_size)
    assert [(suspect.name, suspect.changes) for suspect in found.suspects] == [("prune", ("neurons: 16 -> 40",))]
    assert (found.over, found.count, found.exit_code, found.note) == ("stages", 3, 3, None)
    assert [trial.what for trial in found.trials] == ["candidate", "prune", "rebuilt", "data"]
    assert found.broke[0].reason.endswith(f"was {size(tmp_path / 'old')}")

    found = over_stages("old", "new", by_size)
    assert (found.answer, found.suspects, found.exit_code) == ("PASS", (), 0)

    # The recipe is not to blame where the candidate is bad and what its recipe makes is good.
    path = tmp_path / "new" / "onnx" / "model.onnx"
    path.write_bytes(path.read_bytes() + b"\0" * 5_000_000)
    bundle.write(tmp_path / "new", bundle.verify(tmp_path / "new.zip"))

    def by_megabytes(candidate: Path, baseline: Path) -> Verdict:
        return verdict("REGRESSION" if size(candidate) > 4_000_000 else "PASS", "big")

    found = over_stages("new", "old", by_megabytes)
    assert (found.answer, found.suspects, found.exit_code) == ("REGRESSION", (), 5)
    assert found.note is not None
    assert "passes; so the recipe did not break the gate" in found.note
    assert "no change can be named for it" in " ".join(lines(found).split())

    # Nor is a step where the baseline's own recipe does not make any more what it made.
    old = bundle.verify(tmp_path / "old")
    moved = tuple(stage.model_copy(update={"versions": {"torch": "1.0"}, "id": "0" * 64}) for stage in old.stages)
    (tmp_path / "old" / "onnx" / "model.onnx").write_bytes(b"small")
    bundle.write(tmp_path / "old", old.model_copy(update={"stages": moved}))
    found = over_stages("new.zip", "old", by_size)
    assert [suspect.name for suspect in found.suspects] == ["rebuilt"]
    assert any(change.startswith("torch 1.0 -> ") for change in found.suspects[0].changes)


@pytest.mark.slow
def test_the_commit_that_made_a_bundle_bigger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Five commits, real builds, real gates: one takes less away, of which the model's size tells without doubt."""
    lax = "[gate]\nlatency_s = { relative = 0.9 }\npeak_rss_bytes = { relative = 0.9 }\nscore = { absolute = 0.9 }\n"
    text = RECIPE.replace("[task]", f"{lax}[task]")
    bigger = text.replace("neurons = 16", "neurons = 40")
    project(tmp_path)
    git(tmp_path, "init", "-q", "-b", "main")
    hashes: list[str] = []
    for message, recipe_ in (
        ("a", text),
        ("b", text + "# less\n"),
        ("c", bigger),
        ("d", bigger + "#\n"),
        ("e", bigger),
    ):
        (tmp_path / "recipe.toml").write_text(recipe_)
        git(tmp_path, "add", "-A")
        git(tmp_path, "commit", "-q", "-m", message)
        hashes.append(git(tmp_path, "rev-parse", "HEAD"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    host = devices.find("host").model_copy(update={"workdir": str(tmp_path / "work")})

    def gate(candidate: Path, baseline: Path) -> Verdict:
        return gating.gate(candidate, baseline, [host], Wanted(lengths=(16,)))

    found = bisect("git:main", f"git:{hashes[0]}", gate, Path("recipe.toml"), "here.toml", tmp_path / "store", Path())
    assert [suspect.name for suspect in found.suspects] == [hashes[2]]
    assert {check.metric for check in found.broke} == {"size_bytes"}
    assert found.exit_code == 3
    assert git(tmp_path, "status", "--porcelain") == "?? store/\n?? work/"
    assert len(git(tmp_path, "worktree", "list").splitlines()) == 1
