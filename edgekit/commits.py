"""Commits as sources of bundles: `git:REF` names the bundle that the repository's own recipe makes at that commit.

    with bundle_at("git:main", Path("recipe.toml"), "android", Path(".edgekit")) as bundle: ...

The commit is checked out into a folder of its own, outside the work tree, which is never touched. A process that was
killed leaves that folder behind; the next one takes it away (see `_sweep`).
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from edgekit import recipe as recipes
from edgekit.devices import toml
from edgekit.errors import DeviceError, EdgekitError, InputError, NotGoodEnough, nearest, printable
from edgekit.progress import say
from edgekit.records import Record

SCHEME = "git:"
"""What a source that is a commit begins with."""

_PREFIX = "edgekit-commit-"
"""Of the temporary folders that hold a worktree and a lock, which is held as long as its maker lives."""
_LOCK = "lock"
# A hook sets these for the repository that it runs for; the folder that we stand in says that too, and better: in our
# own worktree they would point back to the user's. Settings (GIT_CONFIG_COUNT, ...) stay: they may be what lets a
# container's user read the repository at all.
_WHERE = (
    "GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_COMMON_DIR", "GIT_PREFIX", "GIT_IMPLICIT_WORK_TREE",
    "GIT_OBJECT_DIRECTORY", "GIT_ALTERNATE_OBJECT_DIRECTORIES", "GIT_QUARANTINE_PATH", "GIT_NAMESPACE",
    "GIT_SHALLOW_FILE", "GIT_GRAFT_FILE",
)  # fmt: skip
_ERRORS: dict[int, type[EdgekitError]] = {2: InputError, 3: NotGoodEnough, 4: DeviceError}


class Commit(Record):
    """A commit as people know it."""

    hash: str
    subject: str
    authored: str
    """ISO 8601, with the author's time zone."""


def is_commit(source: str) -> bool:
    """Whether a source is `git:REF` and not a path."""
    return source.startswith(SCHEME)


def resolve(source: str) -> str:
    """The full hash of the commit that `git:REF` (or REF) names in the repository of the working folder.

    Raises `InputError` where there is no git, no repository or no such commit, with the nearest name of one.
    """
    ref = source.removeprefix(SCHEME)
    repository = _git("rev-parse", "--git-dir")
    if repository.returncode:
        raise InputError(
            f"{source}: {Path.cwd()} is in no git repository that can be read ({_words(repository)}); run this where "
            "the recipe's repository is checked out, or name a bundle's folder or zip"
        )
    # After --end-of-options a name that begins with "-" is a name.
    found = _git("rev-parse", "--verify", "--quiet", "--end-of-options", f"{ref}^{{commit}}")
    if not ref or found.returncode:
        raise InputError(f"{source}: there is no such commit, branch or tag here; {_instead(ref)}{_shallow()}")
    return found.stdout.strip()


def describe(commit: str) -> Commit:
    """Subject and date of the commit with this hash."""
    # rev-list, not log: what a user's settings let log print beside the format does not concern it
    _, authored, subject = _must("rev-list", "--max-count=1", "--encoding=UTF-8", "--format=%aI%n%s", commit).split(
        "\n", maxsplit=2
    )
    return Commit(hash=commit, authored=authored, subject=printable(subject.strip()))


def commits_between(good: str, bad: str) -> tuple[str, ...]:
    """The hashes from just after `good` up to and with `bad`, oldest first, along first parents: what was merged at
    once counts as one commit. Raises `InputError` where `good` is not an ancestor of `bad`.
    """
    first, last = resolve(good), resolve(bad)
    if first == last:
        raise InputError(f"{good} and {bad} are the same commit, {first[:12]}; there is nothing between them")
    if _git("merge-base", "--is-ancestor", first, last).returncode:
        raise InputError(
            f"{good} ({first[:12]}) is not an ancestor of {bad} ({last[:12]}), so no commits lead from one to the "
            f"other; as the baseline, name a commit that the candidate is built on{_shallow()}"
        )
    return tuple(_must("rev-list", "--first-parent", "--reverse", f"{first}..{last}").split())


@contextmanager
def bundle_at(source: str, recipe: Path | None, target: str, store: Path) -> Generator[Path]:
    """The path of the bundle that `source` names: of a path the path itself; of `git:REF` a bundle that is built now by
    `recipe` as that commit has it, for `target`, and that is there while the context lasts.

    What builds it is `python -m edgekit build` at the same place in the checked-out commit as the working folder has in
    its work tree, so Python finds modules there first: plugins beside the recipe are the commit's, and a checkout of
    edgekit itself builds with its own code of that commit. What Python finds elsewhere (installed packages,
    `PYTHONPATH`) is today's. `store` is shared, so stages that the commit leaves as they are are not made again. Only
    what is committed counts: neither changes in the work tree nor ignored files, nor submodules; files that Git LFS
    keeps are there as far as its filter is set up. The repository's hooks are not run.

    Raises `InputError` where the commit, or the recipe or the data in it, is not there, and where the build failed the
    kind of error that it ended with (`NotGoodEnough` for exit code 3), with its last words.
    """
    if not is_commit(source):
        yield Path(source)
        return
    commit = resolve(source)
    with tempfile.TemporaryDirectory(prefix="edgekit-bundle-") as temporary:
        out = Path(temporary, "bundle")
        with _checked_out(commit) as tree:
            say(f"build the bundle of commit {commit[:12]} for {target}")
            _build(source, commit, tree, recipe, target, store, out)
        yield out


def _build(source: str, commit: str, tree: Path, recipe: Path | None, target: str, store: Path, out: Path) -> None:
    """Build the bundle at `out` with what is checked out in `tree`."""
    top, inside = _place()
    folder = tree / inside
    if not folder.is_dir():
        raise InputError(f"{source}: the folder {inside} is not there at {commit[:12]}; run this in a folder that is")
    given = () if recipe is None else (_recipe_there(source, commit, folder, recipe, top),)
    argv = [
        sys.executable, "-m", "edgekit", "build", *given, "--target", target, "--store", str(store.absolute()),
        "--out", str(out), "--json",
    ]  # fmt: skip
    code, said, last = _follow(argv, folder)
    if code:
        how = f"exit code {code}" if code > 0 else f"killed by signal {-code}"
        hint = _left_out(commit, folder, given[0] if given else None, target) if top else ""
        raise _ERRORS.get(code, InputError if code < 0 else EdgekitError)(
            f"{source}: building {commit[:12]} failed ({how}): {printable(last)}{hint}"
        )
    if json.loads(said)["bundle"] is None:
        raise InputError(f"{source}: the recipe at {commit[:12]} exports no model, so it makes no bundle")


def _recipe_there(source: str, commit: str, folder: Path, recipe: Path, top: Path | None) -> str:
    """The recipe as `edgekit build` is to be given it in `folder`: relative, and committed."""
    shown = str(recipe)
    if recipe.is_absolute():
        shown = os.path.relpath(Path(os.path.realpath(recipe.parent), recipe.name), os.path.realpath(Path.cwd()))
    inside = os.path.relpath(os.path.join(os.path.realpath(Path.cwd()), shown), top or Path.cwd())
    if inside == ".." or inside.startswith("../"):
        raise InputError(f"{source}: --recipe: {recipe} is outside of the repository; name the one that is in git")
    if (folder / shown).is_file() or shown in recipes.shipped():
        return shown
    here = " (it is in the work tree only: commit it)" if recipe.is_file() else ""
    raise InputError(
        f"{source}: --recipe: {recipe} is not there at {commit[:12]}{here}; name a recipe that the commit has"
    )


def _left_out(commit: str, folder: Path, recipe: str | None, target: str) -> str:
    """What the build needs, stands in the work tree and not in the commit: the likely cause of a failed one."""
    values: list[Any] = [target]  # a TOML file, maybe
    base = Path(recipe or "").parent
    if recipe and (folder / recipe).is_file():
        try:
            values.append(toml(folder / recipe))
        except InputError:
            return ""
    found: list[str] = []
    while values:
        value = values.pop()
        if isinstance(value, dict):
            values += value.values()
        elif isinstance(value, list):
            values += value
        elif isinstance(value, str) and os.path.exists(base / value) and not os.path.exists(folder / base / value):
            found.append(value)
    if not found:
        return ""
    return f"; {', '.join(sorted(found))} is in the work tree but not in git at {commit[:12]}: commit it"


def _follow(argv: list[str], folder: Path) -> tuple[int, str, str]:
    """Run a program in `folder`, its lines on stderr passed on as they come; gives exit code, stdout, last words."""
    last: deque[str] = deque(maxlen=3)
    with tempfile.TemporaryFile() as stdout:
        with subprocess.Popen(
            argv, cwd=folder, env=_environment(), stdin=subprocess.DEVNULL, stdout=stdout, stderr=subprocess.PIPE,
            text=True, encoding="utf-8", errors="replace",
        ) as child:  # fmt: skip
            assert child.stderr is not None
            try:
                for line in child.stderr:
                    if line.strip():
                        last.append(line.strip())
                        say(line.rstrip())
                child.wait()
            except BaseException:  # Ctrl-C above all: the build, too, is over before its folder is taken away
                child.kill()  # the store is safe against that
                raise
        stdout.seek(0)
        words = "\n".join(last).rpartition("edgekit: ")[2]  # an error's message alone, where it is one of edgekit's
        return child.returncode, stdout.read().decode("utf-8", "replace"), words


@contextmanager
def _checked_out(commit: str) -> Generator[Path]:
    """A new folder with the files of the commit: a worktree of the repository that is gone after the context."""
    _sweep()
    with tempfile.TemporaryDirectory(prefix=_PREFIX) as temporary, FileLock(Path(temporary, _LOCK)):
        tree = Path(temporary, "tree")
        try:
            _must("worktree", "add", "--quiet", "--detach", str(tree), commit)
            yield tree
        finally:
            _git("worktree", "remove", "--force", str(tree))  # says so where it never came to be, which is no matter


def _sweep() -> None:
    """Take away the worktrees of processes that were killed: those of ours whose lock nobody holds.

    `git worktree prune` would forget the user's own, too, that are on a disk which is not mounted now.
    """
    for line in _must("worktree", "list", "--porcelain").splitlines():
        tree = Path(line.removeprefix("worktree "))
        if not line.startswith("worktree ") or not tree.parent.name.startswith(_PREFIX):
            continue
        if not tree.parent.is_dir():
            _git("worktree", "remove", "--force", str(tree))
            continue
        try:
            with FileLock(tree.parent / _LOCK, timeout=0):
                _git("worktree", "remove", "--force", str(tree))
                shutil.rmtree(tree.parent, ignore_errors=True)
        except (Timeout, OSError):  # in use, or another user's
            continue


def _place() -> tuple[Path | None, str]:
    """The work tree's top folder (`None` in a bare repository) and the working folder's place below it."""
    top = _git("rev-parse", "--show-toplevel")
    if top.returncode:
        return None, ""
    path = Path(top.stdout.removesuffix("\n"))
    return path, os.path.relpath(os.path.realpath(Path.cwd()), os.path.realpath(path))


def _instead(ref: str) -> str:
    """What to name instead of a ref that there is not."""
    names = _must("for-each-ref", "--format=%(refname:short)", "refs/heads", "refs/tags", "refs/remotes").split()
    same = [name for name in names if name.rpartition("/")[2] == ref.rpartition("/")[2] != ""]
    if same:
        return f'did you mean "{same[0]}"?'
    hint = nearest(ref, names)
    return hint if len(names) <= 12 or hint.startswith("did") else "`git branch -a` and `git tag` list what there is"


def _shallow() -> str:
    """What to do where the commit may be missing because the clone is cut short."""
    if _git("rev-parse", "--is-shallow-repository").stdout.strip() != "true":
        return ""
    return "; this clone is shallow: run `git fetch --unshallow`, or in CI check out with fetch-depth: 0"


def _environment() -> dict[str, str]:
    return {**{key: value for key, value in os.environ.items() if key not in _WHERE}, "GIT_TERMINAL_PROMPT": "0"}


def _git(*args: str) -> subprocess.CompletedProcess[str]:
    """git in the working folder, without hooks."""
    try:
        return subprocess.run(
            ["git", "-c", f"core.hooksPath={os.devnull}", *args], env=_environment(), stdin=subprocess.DEVNULL,
            capture_output=True, text=True, encoding="utf-8", errors="surrogateescape", check=False,
        )  # fmt: skip
    except FileNotFoundError:
        raise InputError("git: is not installed, and a git:REF source needs it; install it, or name a bundle") from None


def _must(*args: str) -> str:
    done = _git(*args)
    if done.returncode:
        raise InputError(f"git {' '.join(args)}: failed with exit code {done.returncode}: {_words(done)}")
    return done.stdout


def _words(done: subprocess.CompletedProcess[str]) -> str:
    return printable("\n".join(done.stderr.strip().splitlines()[:3])) or f"exit code {done.returncode}"
