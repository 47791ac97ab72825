"""The store: what makes a key, that a folder is whole or absent, kills, two builds at once, a full disk."""

import errno
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from edgekit.errors import InputError
from edgekit.records import Facts
from edgekit.store import MANIFEST, Store, key, sha256, sources

ID = "ab" * 32


def facts() -> Facts:
    return Facts(bytes=5, changed="made")


def make(store: Store, work=None, waiting=lambda: None, id: str = ID):  # type: ignore[no-untyped-def]
    def write(out: Path, scratch: Path) -> Facts:
        (out / "sub").mkdir()
        (out / "sub" / "weights").write_bytes(b"hello")
        return facts()

    return store.make("teach", "teach", id, (), {"numpy": "2"}, work or write, waiting)


def test_make_then_find(tmp_path: Path) -> None:
    store = Store(tmp_path)
    artifact, cached = make(store)
    assert not cached
    assert [(f.path, f.bytes, f.sha256) for f in artifact.files] == [
        ("sub/weights", 5, "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824")
    ]
    again, cached = make(store, work=lambda out, scratch: pytest.fail("made twice"))
    assert cached
    assert again == artifact == store.find("teach", ID)
    assert not list((tmp_path / "work").iterdir())


def test_a_changed_file_is_not_served(tmp_path: Path) -> None:
    store = Store(tmp_path)
    make(store)
    (store.folder("teach", ID) / "sub" / "weights").write_bytes(b"hell")
    with pytest.raises(InputError, match="changed since it was made"):
        store.find("teach", ID)


def test_a_failed_stage_leaves_its_scratch_and_no_artifact(tmp_path: Path) -> None:
    store = Store(tmp_path)

    def fails(out: Path, scratch: Path) -> Facts:
        (out / "half").write_text("x")
        (scratch / "checkpoint").write_text("step 7")
        raise InputError("no")

    with pytest.raises(InputError):
        make(store, fails)
    assert store.find("teach", ID) is None
    seen: list[str] = []

    def resumes(out: Path, scratch: Path) -> Facts:
        assert not list(out.iterdir())
        seen.append((scratch / "checkpoint").read_text())
        return facts()

    make(store, resumes)
    assert seen == ["step 7"]


_KILLED = """
import sys, time
from pathlib import Path
from edgekit.records import Facts
from edgekit.store import Store
def work(out, scratch):
    (out / "big").write_bytes(b"x" * 1000)
    (scratch / "seen").write_text("1")
    print("ready", flush=True)
    time.sleep(60)
    return Facts(bytes=1, changed="")
Store(Path(sys.argv[1])).make("teach", "teach", "ab" * 32, (), {}, work, lambda: None)
"""


def _child(store: Path) -> subprocess.Popen[str]:
    child = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(_KILLED), str(store)], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    return child


def test_a_kill_leaves_no_half_artifact_and_the_lock_goes_with_it(tmp_path: Path) -> None:
    child = _child(tmp_path)
    child.send_signal(signal.SIGKILL)
    child.wait()
    store = Store(tmp_path)
    assert store.find("teach", ID) is None

    def work(out: Path, scratch: Path) -> Facts:
        assert (scratch / "seen").exists()
        assert not list(out.iterdir())
        return facts()

    assert make(store, work)[1] is False


def _make_slowly(root: str, order: "multiprocessing.queues.Queue[str]") -> None:
    def work(out: Path, scratch: Path) -> Facts:
        order.put("made")
        time.sleep(0.5)
        (out / "file").write_text(str(os.getpid()))
        return facts()

    _, cached = Store(Path(root)).make("teach", "teach", ID, (), {}, work, lambda: None)
    order.put("cached" if cached else "fresh")


def test_two_builds_at_once_make_it_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    order: multiprocessing.queues.Queue[str] = context.Queue()
    builds = [context.Process(target=_make_slowly, args=(str(tmp_path), order)) for _ in range(3)]
    for build in builds:
        build.start()
    for build in builds:
        build.join(timeout=20)
    assert sorted(order.get(timeout=5) for _ in range(4)) == ["cached", "cached", "fresh", "made"]


def test_a_full_disk_is_one_clear_message(tmp_path: Path) -> None:
    def work(out: Path, scratch: Path) -> Facts:
        (out / "half").write_text("x")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(InputError, match=r"disk that holds .* is full.*go on"):
        make(Store(tmp_path), work)
    assert not list(tmp_path.glob("teach-*"))
    assert not list(tmp_path.glob("work/*/out/*"))


def test_a_store_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="--store"):
        Store(tmp_path / "file" / "store")


def test_a_store_is_made_with_its_first_artifact(tmp_path: Path) -> None:
    store = Store(tmp_path / "new" / "store")
    assert not list(tmp_path.iterdir()), "a build that is refused leaves nothing"
    make(store, lambda out, scratch: Facts(bytes=0, changed=""))
    assert len(list(store.root.glob("teach-*"))) == 1


def test_key_depends_on_every_ingredient_and_not_on_order() -> None:
    assert key({"a": 1, "b": [2]}) == key({"b": [2], "a": 1})
    assert len({key({"a": 1}), key({"a": 2}), key({"b": 1}), key({"a": "1"})}) == 4


def test_sources_follow_imports_within_a_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "my_pkg"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "loss.py").write_text("import numpy\nfrom my_pkg import deep\n")
    (package / "deep.py").write_text("def f():\n    from my_pkg.deeper import g\n")
    (package / "deeper.py").write_text("x = 1\n")
    (package / "other.py").write_text("x = 1\n")
    script = "import sys, json; from edgekit.store import sources; print(json.dumps(sources(['my_pkg.loss'])))"

    def digest() -> tuple[str, dict[str, str]]:
        done = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, check=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])},
        )  # fmt: skip
        found, versions = json.loads(done.stdout)
        return found, versions

    before, versions = digest()
    assert versions.keys() == {"numpy", "python"}
    (package / "other.py").write_text("x = 2\n")
    assert digest()[0] == before
    (package / "deeper.py").write_text("x = 2\n")
    assert digest()[0] != before


def test_sources_of_a_stage_hold_its_libraries() -> None:
    _, versions = sources(["edgekit.pipeline.training"])
    assert {"torch", "transformers", "numpy", "pydantic"} <= versions.keys()


def test_manifest_hashes_are_of_the_files(tmp_path: Path) -> None:
    store = Store(tmp_path)
    artifact, _ = make(store)
    folder = store.folder("teach", ID)
    assert (folder / MANIFEST).is_file()
    assert artifact.files[0].sha256 == sha256(folder / artifact.files[0].path)
