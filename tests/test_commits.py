"""Bundles from commits: real git repositories, most with an `edgekit` of their own that builds in no time.

An edgekit checkout builds with its own code of the commit, so a repository that has a package of that name decides
what a build does: it is how these tests see the arguments, fail, or last.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import families as tiny
import pytest

from edgekit import bundle, commits
from edgekit.errors import EdgekitError, InputError, NotGoodEnough

IDENTITY = ("-c", "user.name=t", "-c", "user.email=t@localhost", "-c", "commit.gpgsign=false")
MAIN = "edgekit/__main__.py"
BUILDS = """
import json, os, pathlib, sys
print("building ...", file=sys.stderr)
out = pathlib.Path(sys.argv[sys.argv.index("--out") + 1])
out.mkdir()
recipe = pathlib.Path(sys.argv[2])
(out / "seen.json").write_text(json.dumps({
    "argv": sys.argv[1:], "cwd": os.getcwd(), "recipe": recipe.read_text() if recipe.is_file() else None,
    "env": dict(os.environ),
}))
print(json.dumps({"bundle": str(out)}))
"""


def git(folder: Path, *args: str) -> str:
    done = subprocess.run(["git", *IDENTITY, *args], cwd=folder, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def commit(folder: Path, message: str, files: Mapping[str, str] | None = None) -> str:
    """Commit these files, and all others, and give the hash."""
    for name, text in (files or {}).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "--allow-empty", "-m", message)
    return git(folder, "rev-parse", "HEAD")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with two commits, which is the working folder; temporary folders are made beside it."""
    folder = tmp_path / "repository"
    folder.mkdir()
    (tmp_path / "temporary").mkdir()
    git(folder, "init", "-q", "-b", "main")
    commit(folder, "one", {"edgekit/__init__.py": "", MAIN: BUILDS, "recipe.toml": "name = 'one'\n"})
    git(folder, "tag", "v1")
    commit(folder, "two", {"recipe.toml": "name = 'two'\n"})
    monkeypatch.chdir(folder)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    return folder


def left(folder: Path) -> tuple[int, list[Path]]:
    """How many worktrees the repository knows beside its own, and what stands in the temporary folder."""
    listed = git(folder, "worktree", "list", "--porcelain").split("\n\n")
    return len(listed) - 1, list((folder.parent / "temporary").iterdir())


def seen(source: str, recipe: Path | None = Path("recipe.toml"), target: str = "host") -> dict[str, object]:
    with commits.bundle_at(source, recipe, target, Path("store")) as path:
        return json.loads((path / "seen.json").read_text())


def refused(
    source: str, *words: str, recipe: Path | None = Path("recipe.toml"), error: type[Exception] = InputError
) -> None:
    with pytest.raises(error) as found, commits.bundle_at(source, recipe, "host", Path("store")):
        pass
    assert type(found.value) is error
    for word in words:
        assert word in str(found.value)


def test_a_path_is_itself(tmp_path: Path) -> None:
    with commits.bundle_at(str(tmp_path), None, "host", tmp_path) as path:
        assert path == tmp_path


def test_the_commit_is_built_and_nothing_stays(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "recipe.toml").write_text("not committed")
    found = seen("git:v1")
    assert found["recipe"] == "name = 'one'\n"
    argv = found["argv"]
    assert isinstance(argv, list)
    assert argv[:6] == ["build", "recipe.toml", "--target", "host", "--store", str(here / "store")]
    assert argv[-1] == "--json"
    assert not Path(str(found["cwd"])).is_relative_to(here)
    out, err = capsys.readouterr()
    assert out == ""
    assert "building ..." in err
    assert left(here) == (0, [])
    assert git(here, "status", "--porcelain") == "M recipe.toml"
    assert git(here, "rev-parse", "--abbrev-ref", "HEAD") == "main"


@pytest.mark.parametrize("ref", ["main", "HEAD~1", "v1^{}", "@", "main@{0}", "refs/heads/main"])
def test_every_way_to_name_a_commit(here: Path, ref: str) -> None:
    assert commits.resolve(f"git:{ref}") == git(here, "rev-parse", f"{ref}^{{commit}}")


def test_from_a_folder_below(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "app").mkdir()
    (here / "app" / "edgekit").symlink_to("../edgekit")
    commit(here, "three", {"app/recipe.toml": "name = 'app'\n"})
    monkeypatch.chdir(here / "app")
    for recipe in (Path("recipe.toml"), here / "app" / "recipe.toml", Path("../app/recipe.toml")):
        assert seen("git:main", recipe)["recipe"] == "name = 'app'\n"
    assert seen("git:main", Path("../recipe.toml"))["recipe"] == "name = 'two'\n"
    refused("git:v1", "the folder app is not there")


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("git:mian", ('did you mean "main"?',)),
        ("git:", ("there is no such commit",)),
        ("git:--upload-pack=touch x", ("there is no such commit",)),
        ("git:-h", ("there is no such commit",)),
        ("git:v1..main", ("there is no such commit",)),
        ("git:main:recipe.toml", ("there is no such commit",)),
        ("git:" + "0" * 40, ("there is no such commit",)),
        ("git:$(touch x)\n`touch x`", ("there is no such commit",)),
    ],
)
def test_a_ref_that_is_none(here: Path, source: str, words: tuple[str, ...]) -> None:
    refused(source, *words)
    assert not (here / "x").exists()
    assert left(here) == (0, [])


def test_a_remote_branch_of_that_name_is_offered(here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    git(here, "branch", "release")
    git(tmp_path, "clone", "-q", str(here), "clone")
    monkeypatch.chdir(tmp_path / "clone")
    refused("git:release", 'did you mean "origin/release"?')


def test_a_shallow_clone_says_how_to_get_the_rest(here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    git(tmp_path, "clone", "-q", "--depth=1", f"file://{here}", "clone")
    monkeypatch.chdir(tmp_path / "clone")
    refused("git:v1", "git fetch --unshallow", "fetch-depth: 0")
    git(tmp_path / "clone", "fetch", "-q", "--depth=1", "origin", "tag", "v1")
    with pytest.raises(InputError, match=r"is not an ancestor .*fetch-depth: 0"):
        commits.commits_between("git:v1", "git:main")


def test_no_repository_and_no_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    refused("git:main", "is in no git repository", "not a git repository")
    monkeypatch.setenv("PATH", str(tmp_path))
    refused("git:main", "git: is not installed")


def test_an_empty_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    git(tmp_path, "init", "-q")
    monkeypatch.chdir(tmp_path)
    refused("git:main", "there is no such commit", "there is: nothing")


def test_recipes_that_are_not_there(here: Path) -> None:
    (here / "mine.toml").write_text("")
    refused("git:v1", "mine.toml is not there at", "commit it", recipe=Path("mine.toml"))
    refused("git:v1", "none.toml is not there at", recipe=Path("none.toml"))
    refused("git:v1", "is outside of the repository", recipe=Path("../recipe.toml"))
    refused("git:v1", "is outside of the repository", recipe=Path("/recipe.toml"))
    assert left(here) == (0, [])


def test_recipes_that_ship_go_by_their_names(here: Path) -> None:
    for recipe, argv in ((None, ["build", "--target"]), (Path("default"), ["build", "default", "--target"])):
        found = seen("git:main", recipe)["argv"]
        assert isinstance(found, list)
        assert found[: len(argv)] == argv


@pytest.mark.parametrize(
    ("code", "error"),
    [("2", InputError), ("3", NotGoodEnough), ("1", EdgekitError), ("-9", InputError)],
)
def test_a_failed_build_keeps_its_exit_code_and_last_words(here: Path, code: str, error: type[EdgekitError]) -> None:
    end = "os.kill(os.getpid(), 9)" if code == "-9" else f"sys.exit({code})"
    words = "\x1b[31mmy last\nedgekit: words"
    commit(here, "fails", {MAIN: f"import os, sys\nprint({words!r}, file=sys.stderr, flush=True)\n{end}\n"})
    refused("git:main", "failed", "): words", "signal 9" if code == "-9" else f"exit code {code}", error=error)
    assert left(here) == (0, [])


def test_a_build_that_prints_a_lot_does_not_hang(here: Path) -> None:
    text = (
        "for i in range(20000): print('x' * 50); print('y' * 50, file=__import__('sys').stderr)\nraise SystemExit(2)\n"
    )
    commit(here, "prints", {MAIN: text})
    refused("git:main", "yyyyy")


def test_data_that_is_not_in_git(here: Path) -> None:
    (here / ".gitignore").write_text("*.jsonl\nteacher/\n")
    (here / "train.jsonl").write_text("")
    (here / "teacher").mkdir()
    recipe = "[data]\ntrain = 'train.jsonl'\n[[step]]\nmodel = 'teacher'\n"
    commit(here, "three", {"recipe.toml": recipe, MAIN: "raise SystemExit(2)\n"})
    refused("git:main", "teacher, train.jsonl is in the work tree but not in git at")


def test_hooks_do_not_run(here: Path) -> None:
    for name in ("post-checkout", "post-commit", "reference-transaction"):
        hook = here / ".git" / "hooks" / name
        hook.parent.mkdir(exist_ok=True)
        hook.write_text(f"#!/bin/sh\ntouch '{here.parent}/ran-{name}'\n")
        hook.chmod(0o755)
    git(here, "worktree", "add", "-q", "--detach", "../proof", "v1")
    assert (here.parent / "ran-post-checkout").exists()
    (here.parent / "ran-post-checkout").unlink()
    (here.parent / "ran-reference-transaction").unlink(missing_ok=True)
    seen("git:v1")
    assert not list(here.parent.glob("ran-*"))


def test_inside_a_hook(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What git sets for a hook points to the repository that it runs for, by paths from where the hook stands."""
    monkeypatch.setenv("GIT_DIR", ".git")
    monkeypatch.setenv("GIT_INDEX_FILE", ".git/index.lock")
    monkeypatch.setenv("GIT_WORK_TREE", ".")
    found = seen("git:v1")
    assert found["recipe"] == "name = 'one'\n"
    env = found["env"]
    assert isinstance(env, dict)
    assert not {"GIT_DIR", "GIT_INDEX_FILE", "GIT_WORK_TREE"} & env.keys()
    monkeypatch.undo()
    assert left(here) == (0, [])


def test_in_a_real_pre_push_hook(here: Path) -> None:
    script = (
        f"import sys; sys.path[:] = {sys.path!r}; from pathlib import Path; from edgekit import commits\n"
        "with commits.bundle_at('git:v1', Path('recipe.toml'), 'host', Path('store')) as path:\n"
        f"    Path({str(here.parent)!r}, 'pushed').write_bytes((path / 'seen.json').read_bytes())\n"
    )
    (here.parent / "hook.py").write_text(script)
    hook = here / ".git" / "hooks" / "pre-push"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text(f"#!/bin/sh\nexec '{sys.executable}' '{here.parent}/hook.py'\n")
    hook.chmod(0o755)
    git(here.parent, "init", "-q", "--bare", "remote.git")
    git(here, "push", "-q", "../remote.git", "main")
    assert json.loads((here.parent / "pushed").read_text())["recipe"] == "name = 'one'\n"
    assert left(here)[0] == 0


def test_in_a_bare_repository(here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    git(tmp_path, "clone", "-q", "--bare", str(here), "bare.git")
    monkeypatch.chdir(tmp_path / "bare.git")
    assert seen("git:v1")["recipe"] == "name = 'one'\n"


def test_in_a_worktree_of_the_users(here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    git(here, "worktree", "add", "-q", "--detach", str(tmp_path / "mine"), "main")
    monkeypatch.chdir(tmp_path / "mine")
    assert seen("git:v1")["recipe"] == "name = 'one'\n"
    assert left(here) == (1, [])


WAITS = """
import pathlib, sys, time
pathlib.Path(sys.argv[sys.argv.index("--store") + 1], "running").write_text(str(__import__("os").getpid()))
time.sleep(60)
"""


def start(here: Path) -> tuple[subprocess.Popen[str], int]:
    """A process that builds a commit, and the process id of the build, which lasts."""
    commit(here, "lasts", {MAIN: WAITS})
    (here / "store").mkdir()
    code = (
        "import signal, sys; from pathlib import Path; from edgekit import commits\n"
        "for name in (signal.SIGINT, signal.SIGTERM): signal.signal(name, signal.default_int_handler)\n"  # as cli does
        "with commits.bundle_at('git:main', Path('recipe.toml'), 'host', Path('store')): pass\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code.replace("import signal, sys;", f"import signal, sys; sys.path[:] = {sys.path!r};")],
        cwd=here, stderr=subprocess.PIPE, text=True, env={**os.environ, "TMPDIR": str(here.parent / "temporary")},
    )  # fmt: skip
    running = here / "store" / "running"
    until(lambda: running.exists() and running.read_text() != "")
    return child, int(running.read_text())


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_build_leaves_nothing(here: Path, stop: signal.Signals) -> None:
    child, builds = start(here)
    assert left(here)[0] == 1
    child.send_signal(stop)
    child.communicate(timeout=60)
    assert child.returncode != 0
    until(lambda: not lives(builds))
    assert left(here) == (0, [])


def test_the_next_one_takes_away_what_a_kill_left(here: Path) -> None:
    child, builds = start(here)
    child.kill()
    child.communicate(timeout=60)
    os.kill(builds, signal.SIGKILL)
    assert left(here)[0] == 1
    git(here, "worktree", "add", "-q", "--detach", "../mine", "v1")
    (here.parent / "mine" / ".git").unlink()
    (here.parent / "mine").rename(here.parent / "not-mounted-now")
    seen("git:v1")
    assert left(here)[0] == 1, "the user's own stays known"
    assert [path.name for path in left(here)[1] if path.name.startswith("edgekit-commit")] == []


def test_one_that_is_in_use_stays(here: Path) -> None:
    child, builds = start(here)
    try:
        seen("git:v1")
        assert left(here)[0] == 1
        assert lives(builds)
    finally:
        child.terminate()
        child.communicate(timeout=60)
    assert left(here) == (0, [])


def test_commits_between_follow_first_parents(here: Path) -> None:
    git(here, "checkout", "-q", "-b", "side", "v1")
    commit(here, "side 1")
    side = commit(here, "side 2")
    git(here, "checkout", "-q", "main")
    two = git(here, "rev-parse", "main")
    git(here, "merge", "-q", "--no-ff", "-m", "merged", "side")
    merged = git(here, "rev-parse", "main")
    last = commit(here, "last")
    assert commits.commits_between("git:v1", "main") == (two, merged, last)
    assert commits.commits_between("git:side", "git:main") == (two, merged, last)
    assert commits.commits_between(two, merged) == (merged,)
    with pytest.raises(InputError, match="is not an ancestor of"):
        commits.commits_between("git:main", "git:v1")
    with pytest.raises(InputError, match="is not an ancestor of"):
        commits.commits_between(two, side)
    with pytest.raises(InputError, match="the same commit"):
        commits.commits_between("git:main", "git:HEAD")


def test_describe_gives_the_subject_on_one_line_and_the_date(here: Path) -> None:
    git(here, "config", "log.showSignature", "true")
    subject = "Schrieb Größe\x1b[31m neu"
    (here / "message").write_text(f"{subject}\n\nand a body\n")
    git(here, "commit", "-q", "--allow-empty", "--date=2026-01-02T03:04:05+0200", "-F", "message")
    found = commits.describe(commits.resolve("git:HEAD"))
    assert found.subject == "Schrieb Größe?[31m neu"
    assert found.authored == "2026-01-02T03:04:05+02:00"
    git(here, "commit", "-q", "--allow-empty", "--allow-empty-message", "-m", "")
    assert commits.describe(commits.resolve("git:HEAD")).subject == ""


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
stage = "export"
"""
TARGET = 'description = "a test"\nabi = "host"\nformats = ["onnx"]\nlengths = [8, 16]\n'


@pytest.mark.slow
def test_a_real_build_of_a_commit_shares_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    git(tmp_path, "init", "-q", "-b", "main")
    tiny.make(tmp_path / "teacher", "bert", labels=["bad", "good"])
    rows = [{"text": text, "label": "bad" if "bad" in text else "good"} for text in tiny.TEXTS]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "here.toml").write_text(TARGET)
    commit(tmp_path, "one", {"recipe.toml": RECIPE})
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    with commits.bundle_at("git:main", Path("recipe.toml"), "here.toml", tmp_path / "store") as path:
        first = bundle.verify(path)
    assert first.name == "tiny"
    assert "unchanged" not in capsys.readouterr().err
    (tmp_path / "notes").write_text("nothing that a bundle is made of")
    commit(tmp_path, "two")
    with commits.bundle_at("git:HEAD", Path("recipe.toml"), "here.toml", tmp_path / "store") as path:
        assert bundle.verify(path).digest == first.digest
    assert "export-onnx: unchanged" in capsys.readouterr().err
    assert len(git(tmp_path, "worktree", "list").splitlines()) == 1
