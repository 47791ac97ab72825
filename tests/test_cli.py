"""The command line as its users meet it: what stands on stdout and stderr, and the exit code."""

import gzip
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable
from pathlib import Path

import families as tiny
import pytest

from edgekit import cli, recipe, systems
from edgekit.errors import InputError

ROWS = [{"text": text, "label": ("bad" if "bad" in text else "good")} for text in tiny.TEXTS]
RECIPE = """
name = "tiny"
max_length = 32
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
stage = "export"
[[step]]
stage = "quantize"
"""

Outcome = tuple[int, str, str]
Run = Callable[..., Outcome]


@pytest.fixture(scope="session")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("teacher") / "teacher"
    return tiny.make(folder, "bert", labels=["bad", "good"], max_position_embeddings=128)


@pytest.fixture
def project(tmp_path: Path, teacher: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's folder: a recipe, data and a teacher."""
    shutil.copytree(teacher, tmp_path / "teacher")
    (tmp_path / "recipe.toml").write_text(RECIPE)
    for name in ("train", "dev"):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """`edgekit ARGS...` in this process: exit code, stdout, stderr."""
    monkeypatch.setattr(cli, "_stop_at_once", lambda: None)  # it would take this process's Ctrl-C for good

    def call(*args: str) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["edgekit", *args])
        code: object = 0
        try:
            cli.main()
        except SystemExit as end:
            code = end.code or 0
        out, err = capsys.readouterr()
        assert isinstance(code, int)
        return code, out, err

    return call


def edit(old: str, new: str) -> Callable[[Path], None]:
    """A recipe with one thing changed."""

    def change(project: Path) -> None:
        text = (project / "recipe.toml").read_text()
        assert old in text
        (project / "recipe.toml").write_text(text.replace(old, new))

    return change


def write(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda project: (project / name).write_bytes(content) and None


def remove(name: str) -> Callable[[Path], None]:
    return lambda project: (project / name).unlink()


def pickled(project: Path) -> None:
    (project / "teacher" / "model.safetensors").unlink()
    (project / "teacher" / "pytorch_model.bin").write_bytes(pickle.dumps({"w": 1}))


def truncated(project: Path) -> None:
    path = project / "teacher" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def truncated_gzip(project: Path) -> None:
    (project / "train.jsonl.gz").write_bytes(gzip.compress((project / "train.jsonl").read_bytes())[:-20])
    edit('"train.jsonl"', '"train.jsonl.gz"')(project)


def other_family(project: Path) -> None:
    config = json.loads((project / "teacher" / "config.json").read_text())
    (project / "teacher" / "config.json").write_text(json.dumps(config | {"model_type": "gpt2"}))
    edit('[[step]]\nstage = "export"', '[[step]]\nstage = "distill"\nlayers = 1\n[[step]]\nstage = "export"')(project)


def two_prunes(project: Path) -> None:
    prunes = '[[step]]\nstage = "prune"\nvocabulary = {}\n[[step]]\nstage = "prune"\nneurons = 8\n'
    edit('[[step]]\nstage = "export"', prunes + '[[step]]\nstage = "export"')(project)


def distill(lines: str) -> Callable[[Path], None]:
    return edit('[[step]]\nstage = "export"', f'[[step]]\nstage = "distill"\n{lines}\n[[step]]\nstage = "export"')


def prune(line: str) -> Callable[[Path], None]:
    return edit('[[step]]\nstage = "export"', f'[[step]]\nstage = "prune"\n{line}\n[[step]]\nstage = "export"')


MALFORMED: dict[str, tuple[Callable[[Path], None], str]] = {
    "not TOML": (write("recipe.toml", b"name = = 1"), "recipe.toml: is not valid TOML"),
    "not UTF-8": (write("recipe.toml", b'name = "\xff"'), "recipe.toml: cannot be read"),
    "empty": (write("recipe.toml", b""), 'key "name" is missing'),
    "absent": (remove("recipe.toml"), "recipe.toml: there is no such file"),
    "unknown key": (edit("max_length", "max_lenght"), 'did you mean "max_length"?'),
    "unknown key in a step": (edit('model = "teacher"', 'model = "teacher"\nrevison = "x"'), '"revision"?'),
    "wrong type": (edit("max_length = 32", 'max_length = "long"'), 'key "max_length"'),
    "NaN": (edit('model = "teacher"', 'model = "teacher"\ntraining = { epochs = nan }'), "epochs"),
    "negative": (edit('model = "teacher"', 'model = "teacher"\nmax_drop = -1'), "max_drop"),
    "a name that is a path": (edit('name = "tiny"', 'name = "../tiny"'), 'key "name"'),
    "no steps": (write("recipe.toml", RECIPE.partition("[[step]]")[0].encode()), 'key "step" is missing'),
    "unknown stage": (edit('stage = "export"', 'stage = "exprot"'), "exprot"),
    "quantize before export": (edit('[[step]]\nstage = "export"\n', ""), "add an export step"),
    "teach is not first": (edit('[[step]]\nstage = "teach"\nmodel = "teacher"\n', ""), "the first step must be teach"),
    "unknown task": (edit("text_classification", "text_clasification"), 'did you mean "text_classification"?'),
    "unknown task option": (edit('labels = ["bad", "good"]', 'lables = ["bad"]'), 'did you mean "labels"?'),
    "a plugin that is not installed": (edit('"text_classification"', '"no_such_pkg.task"'), "cannot be found"),
    "a prune step that takes nothing": (prune(""), "takes nothing away"),
    "vocabulary cut too early": (two_prunes, "last distill or prune step"),
    "unknown criterion": (prune('neurons = 8\ncriterion = { name = "tailor" }'), 'did you mean "taylor"?'),
    "more heads than there are": (prune("heads = 64"), "64"),
    "a loss on a layer that is not there": (
        distill('layers = 1\nmethod = { name = "kd", losses = [{ name = "hidden_mse", layers = [[2, 2]] }] }'),
        "hidden_mse: layers: [2, 2] matches nothing",
    ),
    "attention of a student that has none": (
        distill('student = { name = "bigru" }\nmethod = { name = "kd", losses = [{ name = "attention_mse" }] }'),
        'the family "edgekit-sequence" gives none',
    ),
    "absent data": (remove("train.jsonl"), "train.jsonl"),
    "empty data": (write("dev.jsonl", b""), "dev"),
    "a label outside the set": (edit('["bad", "good"]', '["bad", "fine"]'), "good"),
    "truncated gzip": (truncated_gzip, "train.jsonl.gz"),
    "broken row": (write("dev.jsonl", b'{"text": "a", "label": "bad"}\n{"text": \n'), "2"),
    "absent teacher": (edit('model = "teacher"', 'model = "./techer"'), "there is no folder"),
    "a teacher without weights": (remove("teacher/model.safetensors"), "no weights"),
    "a teacher without configuration": (remove("teacher/config.json"), "no config.json"),
    "a pickle": (pickled, "never unpickles"),
    "a pickle named safetensors": (write("teacher/model.safetensors", pickle.dumps([1] * 99)), "not a safetensors"),
    "truncated weights": (truncated, "is truncated"),
    "other weights": (edit('model = "teacher"', f'model = "teacher"\nsha256 = "{"0" * 64}"'), "sha256"),
    "a family that a step cannot take": (other_family, "gpt2"),
}  # fmt: skip


@pytest.mark.parametrize("what", MALFORMED)
def test_malformed_input_is_one_clear_message(what: str, project: Path, run: Run) -> None:
    spoil, message = MALFORMED[what]
    spoil(project)
    code, out, err = run("build", "recipe.toml", "--target", "host")
    assert code == 2, err
    assert message in err
    assert "Traceback" not in err
    assert out == ""
    assert not list(project.glob(".edgekit/teach-*"))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("build", "--target", "andriod"), 'did you mean "android"?'),
        (("build", "recipe.toml", "--until", "exprot"), 'did you mean "export"?'),
        (("build", "recipe.toml", "--out", "recipe.toml"), "recipe.toml"),
        (("build", "--taget", "host"), "--target"),
        (("biuld",), "build"),
        (("init", "text_clasification"), 'did you mean "text_classification"?'),
        (("init",), "text_classification"),
        (("init", "text_classification", "--method", "minilmv"), 'did you mean "minilmv2"?'),
        (("build", "recipe.toml", "--method", "minilmv"), 'did you mean "minilmv2"?'),
        (("build", "recipe.toml", "--method", "kd"), "has no distill step"),
        (("methods", "minilmv"), 'did you mean "minilmv2"?'),
        (("compare", "recipe.toml", "--method", "minilmv"), 'did you mean "minilmv2"?'),
        (("compare", "recipe.toml", "--method", "kd", "--method", "kd"), "kd is named twice"),
        (("compare", "recipe.toml", "--seeds", "0"), "--seeds"),
        (("compare", "recipe.toml"), "has no distill step"),
        (("compare", "recipe.toml", "--report", "page.pdf"), "--report: page.pdf: must end in .html"),
        (("compare", "none.toml"), "there is no such file"),
        (("verify", "nothing-here"), "nothing-here"),
        (("run", "nothing-here", "a text"), "nothing-here"),
        (("inspect", "./nothing-here"), "nothing-here"),
    ],
)
def test_a_typo_in_the_arguments(args: tuple[str, ...], message: str, project: Path, run: Run) -> None:
    code, out, err = run(*args)
    assert (code, out) == (2, "")
    assert message in err
    assert "Traceback" not in err


TASKS = (
    "text_classification",
    "token_classification",
    "question_answering",
    "sentence_embedding",
    "image_classification",
)


@pytest.mark.parametrize("task", TASKS)
def test_init_writes_a_recipe_that_reads(task: str, project: Path, run: Run) -> None:
    code, out, _ = run("init", task, "--out", "new.toml")
    assert code == 0
    assert "new.toml" in out
    read = recipe.read(project / "new.toml")
    assert read.task.name == task
    assert [step.stage for step in read.step] == ["teach", "distill", "prune", "export", "quantize"]
    commented = [
        line.lstrip("# ").split("#")[0]
        for line in (project / "new.toml").read_text().splitlines()
        if line.startswith("# ") and " = " in line
    ]
    for line in commented:
        tomllib.loads(line)  # what stands behind "#" can be said as it stands
    assert run("init", task, "--out", "new.toml")[0] == 2, "an existing file is kept"


def test_methods_are_listed_shown_and_completed(run: Run) -> None:
    code, out, err = run("methods")
    assert (code, err) == (0, "")
    assert all(name in out for name in systems.names())
    listed = json.loads(run("methods", "--json")[1])
    assert [one["name"] for one in listed] == list(systems.names())
    assert all(set(one) == {"name", "title", "source"} for one in listed)
    assert tomllib.loads(run("methods", "kd")[1])["step"][0]["stage"] == "distill"
    assert json.loads(run("methods", "kd", "--json")[1])["step"][0]["sized"] is True
    for command in ("build", "compare", "init text_classification"):
        words = f"edgekit {command} --method minil"
        asked = {"_EDGEKIT_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1)}
        done = subprocess.run(
            [sys.executable, "-m", "edgekit"], capture_output=True, text=True, timeout=120,
            env={**os.environ, **asked, "PYTHONPATH": os.pathsep.join(sys.path)},
        )  # fmt: skip
        assert done.stdout.split() == ["plain,minilm", "plain,minilmv2"]


def test_a_comparison_that_does_not_begin_keeps_an_earlier_page(project: Path, run: Run) -> None:
    page = project / "page.html"
    page.write_text("earlier")
    code, _, err = run("compare", "recipe.toml", "--method", "kdd", "--report", "page.html")
    assert (code, page.read_text()) == (2, "earlier")
    assert 'no method is called "kdd"' in err


def test_version_help_and_completion(run: Run) -> None:
    assert run("--version")[1].startswith("edgekit 0.")
    assert "build" in run("--help")[1]
    for shell in ("bash", "zsh", "fish"):
        code, out, _ = run("completion", shell)
        assert (code, "_EDGEKIT_COMPLETE" in out) == (0, True)


def test_shipped_recipes_and_targets_read() -> None:
    for name, path in recipe.shipped().items():
        assert recipe.read(path).name, name
    assert recipe.target("android").formats[0] == "tflite"
    with pytest.raises(InputError, match="nothing"):
        recipe.target("nothing-like-it")


def test_ctrl_c_is_answered_while_a_library_is_silenced(tmp_path: Path) -> None:
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "import pathlib, time; from edgekit import cli, progress; cli._stop_at_once()\n"
        "with progress.quiet(): pathlib.Path('ready').touch(); time.sleep(60)"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code], cwd=tmp_path, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    while not (tmp_path / "ready").exists() and child.poll() is None:
        time.sleep(0.05)
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=30)
    assert child.returncode == 130
    assert "run the same command again to go on" in err


def test_no_thread_of_a_library_takes_ctrl_c(tmp_path: Path) -> None:
    """Python's own handler waits for native code, and a thread that was there before gets the signal."""
    code = (
        "import sys; from pathlib import Path; from edgekit.cli import main\n"
        "def blocked(*_, **__):\n"
        "    import numpy\n"
        "    lines = [line for path in Path('/proc/self/task').glob('*/status') for line in path.open()]\n"
        "    masks = [int(line.split()[1], 16) for line in lines if line.startswith('SigBlk')]\n"
        "    print(len(masks), sum(mask >> 1 & 1 for mask in masks)); sys.exit()\n"
        "import edgekit.recipe; edgekit.recipe.find = blocked\n"
        "sys.argv = ['edgekit', 'build', 'x.toml']; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "", "OPENBLAS_NUM_THREADS": "2"},
    )  # fmt: skip
    threads, blocked = map(int, done.stdout.split())
    assert threads > 2 and blocked == threads - 1, done.stderr  # the one that waits for it takes it


def test_ctrl_c_stops_at_once_and_says_how_to_go_on(project: Path) -> None:
    edit('model = "teacher"', 'model = "teacher"\ntraining = { epochs = 1000 }')(project)
    # a background job of a shell, which this may run in, ignores Ctrl-C, and so would its child
    as_a_terminal_does = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from edgekit.cli import main; main()"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", as_a_terminal_does, "build", "recipe.toml", "--target", "host"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert child.stderr is not None
    assert any("teach" in line for line in child.stderr)
    time.sleep(1)
    child.send_signal(signal.SIGINT)
    asked = time.monotonic()
    _, err = child.communicate(timeout=30)
    assert time.monotonic() - asked < 2
    assert child.returncode == 130
    assert "run the same command again to go on" in err
    assert "Traceback" not in err
