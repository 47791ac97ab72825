"""Methods beside each other: the same teacher and budget, what is done is kept, and what it says."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import families as tiny
import pytest

from edgekit import recipe as recipes
from edgekit.compare import compare, exit_code, keeper, lines, with_method
from edgekit.comparison import Compared, Contender, Reason, Reference, Run, contender, ranked, rivals
from edgekit.errors import InputError
from edgekit.gate import report
from edgekit.pipeline import TaskData
from edgekit.pipeline.build import build
from edgekit.records import Score, parse
from edgekit.store import Store

RECIPE = """
name = "tiny"
max_length = 16
[task]
name = "text_classification"
labels = ["bad", "good"]
[data]
name = "files"
train = "train.jsonl"
dev = "dev.jsonl"
[[step]]
stage = "teach"
model = "teacher"
[[step]]
stage = "distill"
layers = 1
training = { epochs = 2, batch_size = 4, learning_rate = 1e-2 }
max_drop = 0.0
[[step]]
stage = "prune"
neurons = 8
[[step]]
stage = "export"
"""
HEAD = 'title = "a line"\nsource = "a paper"\n'
SOFT = (
    HEAD
    + """
[[step]]
stage = "distill"
sized = true
training = { share = 1 }
method = { name = "kd", losses = [{ name = "kl" }] }
"""
)
TWO = (
    HEAD
    + """
[[step]]
stage = "distill"
sized = true
training = { share = 0.5 }
method = { name = "kd", losses = [{ name = "hidden_mse" }] }
[[step]]
stage = "distill"
training = { share = 0.5 }
method = { name = "kd", losses = [{ name = "cross_entropy" }] }
"""
)
TYPO = SOFT.replace('name = "kd"', 'name = "kdd"')
CANNOT = HEAD + '[[step]]\nstage = "distill"\nlayers = 9\ntraining = { share = 1 }\n'


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's folder: a recipe, data, a teacher and four methods, of which the last two cannot train this student."""
    tiny.make(tmp_path / "teacher", "bert", labels=["bad", "good"])
    rows = [{"text": text, "label": "bad" if "bad" in text else "good"} for text in tiny.TEXTS]
    for name in ("train", "dev"):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, text in (("recipe", RECIPE), ("soft", SOFT), ("two", TWO), ("cannot", CANNOT), ("typo", TYPO)):
        (tmp_path / f"{name}.toml").write_text(text)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_comparison_from_end_to_end(project: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (project / "seeded.toml").write_text(RECIPE.replace("epochs = 2,", "epochs = 2, seed = 1,"))
    recipe, base = recipes.find(Path("seeded.toml"))
    store = Store(project / "store")
    told: list[Compared] = []
    found = compare(recipe, base, ["cannot.toml", "typo.toml", "soft.toml"], 2, store, told.append)
    said = capfd.readouterr().err

    soft, cannot, typo = found.methods
    assert (found.seeds, found.metric, soft.method, cannot.method) == ((0, 1), "accuracy", "soft", "cannot")
    assert len(list(store.root.glob("teach-*"))) == 1, "one teacher for all methods and seeds"
    assert len(list(store.root.glob("distill-*"))) == 2
    assert not [*store.root.glob("prune-*"), *store.root.glob("export-*")]
    assert soft.failure is None and [run.seed for run in soft.runs] == [0, 1]
    assert soft.examples == 2 * len(tiny.TEXTS)
    assert all(run.peak_rss_bytes and run.seconds > 0 and run.score for run in soft.runs)
    assert soft.bytes == soft.runs[0].bytes > 0 and soft.parameters == soft.runs[0].parameters
    assert "soft, seed 1: accuracy" in said
    weights = {(store.root / run.artifact / "model.safetensors").read_bytes() for run in soft.runs}
    assert len(weights) == 2, "another seed is another training"
    assert cannot.failure and "layers = 9" in cannot.failure.message and cannot.runs == ()
    assert typo.failure and typo.failure.message.startswith('method "typo": ') and '"kdd"' in typo.failure.message
    assert [len(step.methods[0].runs) for step in told] == [1, 2], "told after every run"
    assert (exit_code(found, True), exit_code(found, False)) == (2, 0)

    there = sorted(path.name for path in store.root.iterdir())
    again = compare(recipe, base, ["soft.toml"], 2, store)
    assert "…" not in capfd.readouterr().err, "nothing is made again"
    assert sorted(path.name for path in store.root.iterdir()) == there
    assert again.methods == (soft,)
    for path in (project / "recipe.toml", project / "seeded.toml"):  # their seeds are 0 and 1
        # one that is worse is a result of a comparison, and stops a build
        path.write_text(path.read_text().replace("max_drop = 0.0", "max_drop = 1.0"))
        asked = with_method(recipes.read(path), "soft.toml", base)
        built = build(asked, recipes.target("host"), store, project / "out", base, "distill")
        assert [row.cached for row in built.stages] == [True, True], "a build finds what a comparison made"


@pytest.mark.slow
def test_a_stopped_comparison_keeps_what_is_done_and_goes_on(project: Path) -> None:
    recipe = (project / "recipe.toml").read_text().replace("epochs = 2", "epochs = 2, examples = 1000000")
    (project / "long.toml").write_text(recipe)
    (project / "quick.toml").write_text(
        SOFT.replace("share = 1", "share = 1e-5") + SOFT.removeprefix(HEAD).replace("share = 1", "share = 0.99999")
    )
    as_a_terminal_does = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from edgekit.cli import main\n"
        "if __name__ == '__main__': main()"
    )
    argv = ["compare", "long.toml", "--method", "quick.toml", "--seeds", "1", "--store", "store"]
    child = subprocess.Popen(
        [sys.executable, "-c", as_a_terminal_does, *argv], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert child.stderr is not None
    assert any(line.startswith("distill-2") for line in child.stderr)
    child.send_signal(signal.SIGINT)
    asked = time.monotonic()
    out, err = child.communicate(timeout=30)
    assert time.monotonic() - asked < 5
    assert (child.returncode, out) == (130, "")
    assert "run the same command again to go on" in err and "Traceback" not in err
    assert len(list((project / "store").glob("distill-*"))) == 1, "the first step is done"
    assert len(list((project / "store").glob("work/distill-2-*"))) == 1
    before = {path: path.stat().st_mtime_ns for path in project.glob("store/work/*/scratch/*")}
    time.sleep(1)
    assert {path: path.stat().st_mtime_ns for path in project.glob("store/work/*/scratch/*")} == before


@pytest.mark.slow
def test_a_method_of_two_steps(project: Path) -> None:
    recipe, base = recipes.find(Path("recipe.toml"))
    found = compare(recipe, base, ["two.toml"], 1, Store(project / "store"))
    (two,) = found.methods
    assert two.examples == 2 * len(tiny.TEXTS), "the same budget"
    assert sorted(path.name.rpartition("-")[0] for path in project.glob("store/*-*")) == [
        "distill",
        "distill-2",
        "teach",
    ]


def test_names_and_recipes_that_cannot_be_compared(project: Path) -> None:
    recipe, base = recipes.find(Path("recipe.toml"))
    store = Store(project / "store")
    shutil.copytree(project, project / "other", ignore=shutil.ignore_patterns("other", "store"))
    with pytest.raises(InputError, match="soft is named twice"):
        compare(recipe, base, ["soft.toml", "other/soft.toml"], 1, store)
    with pytest.raises(InputError, match='no method is called "sfot"'):
        compare(recipe, base, ["sfot"], 1, store)
    bare = recipe.model_copy(update={"step": recipe.step[:1]})
    with pytest.raises(InputError, match=r"no method can train this student:\n.*has no distill step") as raised:
        compare(bare, base, (), 1, store)
    assert str(raised.value).count("recipe tiny has no distill step") == 1, "what all say is said once"
    with pytest.raises(InputError, match=r'method "soft": recipe tiny has no distill step'):
        compare(bare, base, ["soft.toml"], 1, store)
    (project / "train.jsonl").unlink()
    with pytest.raises(InputError, match=r"student:\nrecipe: .*train\.jsonl"):
        compare(recipe, base, ["soft.toml", "two.toml"], 1, store)


def test_a_method_in_a_recipe_says_what_it_leaves_out(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe, base = recipes.find(Path("recipe.toml"))
    assert with_method(recipe, None, base) is recipe
    assert [step.stage for step in with_method(recipe, "soft.toml", base).step] == [
        "teach",
        "distill",
        "prune",
        "export",
    ]
    assert capsys.readouterr().err == ""
    (project / "own.toml").write_text(
        HEAD + '[[step]]\nstage = "distill"\ntraining = { share = 1 }\nstudent = { name = "bert" }\n'
    )
    assert [step.stage for step in with_method(recipe, "own.toml", base).step] == ["teach", "distill", "export"]
    assert "a prune step of the recipe is left out" in capsys.readouterr().err


def test_a_budget_in_epochs_is_counted_in_sequences(project: Path) -> None:
    recipe, base = recipes.find(Path("recipe.toml"))
    (project / "more.toml").write_text(HEAD + '[[step]]\nstage = "augment"\n' + SOFT.removeprefix(HEAD))
    store = Store(project / "store")
    with_more = with_method(recipe, "more.toml", base, store).step[2]
    assert with_more.stage == "distill" and with_more.training.examples == 2 * len(tiny.TEXTS)
    (kept,) = store.root.glob("encoded/*/rows.i32")
    at = kept.stat().st_mtime_ns
    TaskData(recipe, base, store.root).features("train", project / "teacher")
    assert [path.stat().st_mtime_ns for path in store.root.glob("encoded/*/rows.i32")] == [at], "a build reads these"


def run(seed: int, score: float | None, **values: int) -> Run:
    found = None if score is None else Score(metric="f1", value=score, examples=10)
    peak = values.get("peak")
    return Run(
        seed=seed, artifact=f"distill-{seed}", score=found, examples=12_000, seconds=70.5 + seed,
        peak_rss_bytes=peak, parameters=None, bytes=values.get("bytes", 4_000_000),
    )  # fmt: skip


def compared(*methods: Contender, seeds: int = 3) -> Compared:
    return Compared(
        edgekit="0", recipe="tiny", task="t", metric="f1", host="h", seeds=tuple(range(seeds)), seconds=1.0,
        began="now", teacher=Reference(score=None, parameters=22_000_000, bytes=90_000_000), methods=ranked(methods),
    )  # fmt: skip


def test_figures_of_several_seeds() -> None:
    one = contender("kd", "", "", [run(0, 0.5, peak=7), run(1, 0.6), run(2, 0.7, peak=9)], None)
    assert one.score == pytest.approx(0.6) and one.deviation == pytest.approx(0.1)  # sqrt(2 * 0.1^2 / (3 - 1))
    assert (one.low, one.high, one.peak_rss_bytes, one.seconds) == (0.5, 0.7, 9, 71.5)
    alone = contender("kd", "", "", [run(0, 0.5)], None)
    assert (alone.score, alone.deviation, alone.peak_rss_bytes, alone.parameters) == (0.5, None, None, None)
    unscored = contender("kd", "", "", [run(0, None), run(1, float("nan"))], None)
    assert (unscored.score, unscored.deviation, unscored.low) == (None, None, None)
    assert contender("kd", "", "", [], None).seconds is None


def test_the_best_comes_first_and_its_rivals_are_named() -> None:
    best = contender("a", "", "", [run(0, 0.8), run(1, 0.9)], None)
    near = contender("b", "", "", [run(0, 0.7), run(1, 0.8)], None)
    far = contender("c", "", "", [run(0, 0.7), run(1, 0.79)], None)
    none = contender("d", "", "", [run(0, None)], None)
    found = compared(none, far, near, best)
    assert [one.method for one in found.methods] == ["a", "b", "c", "d"]
    assert rivals(found) == ("b",)
    assert rivals(compared(none)) == rivals(compared()) == ()
    assert rivals(compared(contender("a", "", "", [run(0, 0.8)], None), near)) == (), "one seed has no spread"


@pytest.mark.parametrize(
    ("codes", "trained", "named", "code"),
    [
        ((), True, True, 0),
        ((2,), True, True, 2),
        ((2,), True, False, 0),
        ((2,), False, False, 2),
        ((2, 3), True, False, 3),
    ],
)
def test_the_exit_code(codes: tuple[int, ...], trained: bool, named: bool, code: int) -> None:
    failed = [contender(f"f{n}", "", "", [], Reason(message="no", exit_code=one)) for n, one in enumerate(codes)]
    good = [contender("good", "", "", [run(0, 0.5)], None)] if trained else []
    assert exit_code(compared(*failed, *good), named) == code


def test_the_table_fits_a_terminal_and_says_what_is_missing() -> None:
    reason = Reason(message="the student \x1b[31mmust be as wide\nas its teacher", exit_code=2)
    long = [run(n, 0.81234 + n / 100, peak=1_213_000_000) for n in range(3)]
    text = lines(
        compared(
            contender("a-very-long-name-of-a-method", "", "", long, None),
            contender("[red]", "", "", [run(0, 0.815)], None),
            contender("broken", "", "", [run(0, 0.7)], reason),
            contender("never", "", "", [], reason),
        )
    )  # fmt: skip
    assert max(map(len, text.splitlines())) <= 80
    for said in (
        "0.8223", "±0.0100", "12,000", "1 min 12 s", "1.2 GB", "4.0 MB", "(teacher)", "22.00 M", "means over 3 seeds",
        "apart from [red]", "[red]: 1 of 3 seeds so far", "broken: not trained after 1 of 3 seeds: the student",
        "never: not trained: ",
    ):  # fmt: skip
        assert said in " ".join(text.split()), said
    assert "\x1b" not in text
    assert "One seed tells little" in lines(compared(contender("a", "", "", [run(0, None)], None), seeds=1))
    assert lines(compared(contender("never", "", "", [], reason))).startswith("never: not trained")


def test_what_is_done_is_kept_and_shown(tmp_path: Path) -> None:
    out, page = tmp_path / "new" / "c.json", tmp_path / "page.html"
    keep = keeper(out, page)
    assert not list(tmp_path.iterdir()), "a comparison that is refused leaves nothing"
    found = compared(contender("kd", "a line", "a paper", [run(0, 0.5)], None))
    keep(found)
    assert parse(Compared, json.loads(out.read_text()), out) == found
    assert report.read([out]).comparisons == (found,)
    assert ">kd<" in page.read_text()
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["c.json", "new", "page.html"]


def test_what_cannot_be_written_is_said_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"--out: .*c\.json: cannot be written"):
        keeper(tmp_path / "file" / "c.json", None)
    for page, said in (("page.pdf", r"must end in \.html"), ("file/page.html", "cannot be written")):
        with pytest.raises(InputError, match=f"--report: .*{page}: {said}"):
            keeper(tmp_path / "c.json", tmp_path / page)
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match=r"--out: .*cannot be written"):
        keeper(tmp_path / "folder", None)(compared())


def test_an_earlier_page_stays_until_there_is_a_result(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text("earlier")
    keep = keeper(tmp_path / "c.json", page)
    assert page.read_text() == "earlier"
    keep(compared())
    assert page.read_text() != "earlier"
