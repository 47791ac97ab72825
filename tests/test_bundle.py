"""A bundle against what can happen to it: each thing that verify refuses, and equal bytes for equal inputs."""

import hashlib
import json
import os
import random
import shutil
import stat
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit import bundle
from edgekit.errors import InputError
from edgekit.records import File, Tensor, Use

MODELS = {"onnx": b"onnx bytes", "tflite": b"tflite bytes"}


EXAMPLES = [
    {"input_ids": np.array([1, 2, 3]), "attention_mask": np.array([1, 1, 1])},
    {"input_ids": np.array([4]), "attention_mask": np.array([1])},
]


def manifest(**values: Any) -> bundle.Manifest:
    target = {"name": "t", "description": "d", "abi": "host", "formats": ["tflite", "onnx"], "lengths": [8]}
    ids = Tensor(name="input_ids", dtype="int64", shape=(-1, -1))
    models = [
        {
            "format": name, "path": f"{name}/model.{name}", "quantized": True, "inputs": [ids], "outputs": [],
            "lengths": [8], "score": None, "parity": [], "latency_s": 0.001, "float_latency_s": None,
        }
        for name in MODELS
    ]  # fmt: skip
    given: dict[str, Any] = {
        "version": 2, "edgekit": "0", "name": "tiny", "task": Use(name="text_classification"),
        "kind": "text-classification",
        "labels": ("ä", "b"), "target": target, "max_length": 8, "pad_id": 0, "encoder": "onnx", "models": models,
        "host": "h", "recipe": {"x": [1, 2.5]}, "stages": (), "files": (), "digest": "",
    }  # fmt: skip
    return bundle.Manifest.model_validate({**given, **values})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make(tmp_path / "tiny")


def make(path: Path) -> Path:
    for name, content in MODELS.items():
        (path / name).mkdir(parents=True)
        (path / name / f"model.{name}").write_bytes(content)
    (path / "onnx" / "config.json").write_text("{}")
    (path / "README.md").write_text("a card")
    bundle.write_examples(path, EXAMPLES)
    bundle.write(path, manifest())
    return path


def edit(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the manifest and give it a fitting digest, as an attacker would."""
    data = json.loads((folder / "manifest.json").read_text())
    change(data)
    (folder / "manifest.json").write_text(bundle._text(data))  # pyright: ignore[reportPrivateUsage]


def refused(path: Path, *words: str) -> None:
    with pytest.raises(InputError) as error:
        bundle.verify(path)
    for word in (str(path), *words):
        assert word in str(error.value)


def test_verify_gives_the_manifest_of_folder_and_zip(folder: Path) -> None:
    found = bundle.verify(folder)
    assert [file.path for file in found.files] == [
        "README.md",
        "examples.npz",
        "onnx/config.json",
        "onnx/model.onnx",
        "tflite/model.tflite",
    ]
    digest = hashlib.sha256(MODELS["onnx"]).hexdigest()
    assert found.files[3] == File(path="onnx/model.onnx", bytes=10, sha256=digest)
    assert bundle.verify(bundle.pack(folder)) == found


def test_examples_come_back_in_order(folder: Path) -> None:
    found = bundle.examples(folder, folder)
    assert [{name: array.tolist() for name, array in inputs.items()} for inputs in found] == [
        {"input_ids": [1, 2, 3], "attention_mask": [1, 1, 1]},
        {"input_ids": [4], "attention_mask": [1]},
    ]


@pytest.mark.parametrize("kind", ["pickle", "bomb", "empty", "garbage", "truncated"])
def test_examples_of_a_stranger_are_refused(folder: Path, kind: str) -> None:
    path = folder / "examples.npz"
    if kind == "pickle":
        np.savez(path, **{"0.input_ids": np.array([{"a": 1}], dtype=object)}, allow_pickle=True)
    elif kind == "bomb":
        np.savez_compressed(path, **{"0.input_ids": np.zeros(10_000_000, dtype=np.int64)})
    elif kind == "empty":
        np.savez(path)
    elif kind == "garbage":
        path.write_bytes(b"not a zip")
    else:
        path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(InputError, match=r"examples\.npz"):
        bundle.examples(folder, folder)


def test_equal_inputs_give_equal_bytes(folder: Path, tmp_path: Path) -> None:
    other = make(tmp_path / "elsewhere" / "other")
    os.utime(other / "README.md", (1, 1))
    (other / "README.md").chmod(0o600)
    assert (folder / "manifest.json").read_bytes() == (other / "manifest.json").read_bytes()
    assert bundle.pack(folder).read_bytes() == bundle.pack(other).read_bytes()


def test_zip_unpacks_with_plain_modes_in_order(folder: Path) -> None:
    with zipfile.ZipFile(bundle.pack(folder)) as archive:
        assert archive.namelist() == sorted(archive.namelist())
        assert {entry.external_attr >> 16 for entry in archive.infolist()} == {stat.S_IFREG | 0o644}
        assert archive.testzip() is None


def test_opened_zip_is_cleaned_up(folder: Path) -> None:
    with bundle.opened(bundle.pack(folder)) as (unpacked, found):
        assert (unpacked / "onnx" / "model.onnx").read_bytes() == MODELS["onnx"]
        assert found.name == "tiny"
    assert not unpacked.exists()


def test_model_is_the_targets_first_format_or_the_one_asked_for(folder: Path) -> None:
    found = bundle.verify(folder)
    assert (found.model().format, found.model("onnx").format) == ("tflite", "onnx")
    only = found.model_copy(update={"models": found.models[:1]})
    with pytest.raises(InputError, match="no tflite model; there is: onnx"):
        only.model("tflite")


def test_changed_byte(folder: Path) -> None:
    path = folder / "tflite" / "model.tflite"
    path.write_bytes(b"X" + path.read_bytes()[1:])
    refused(folder, "tflite/model.tflite", "was changed")


def test_missing_file(folder: Path) -> None:
    (folder / "README.md").unlink()
    refused(folder, "README.md", "is missing")


def test_extra_file(folder: Path) -> None:
    (folder / "onnx" / "more.bin").write_bytes(b"")
    refused(folder, "onnx/more.bin", "is not in the manifest")


@pytest.mark.parametrize("inside", [True, False])
def test_link_even_with_the_right_content(folder: Path, tmp_path: Path, inside: bool) -> None:
    moved = (folder if inside else tmp_path) / "moved.md"
    (folder / "README.md").rename(moved)
    (folder / "README.md").symlink_to(moved)
    refused(folder, "README.md", "is a link")


def test_linked_folder(folder: Path, tmp_path: Path) -> None:
    shutil.move(folder / "onnx", tmp_path / "onnx")
    (folder / "onnx").symlink_to(tmp_path / "onnx")
    refused(folder, "onnx", "is a link")


def test_fifo(folder: Path) -> None:
    os.mkfifo(folder / "pipe")
    refused(folder, "pipe", "neither a file nor a folder")


@pytest.mark.parametrize(
    "name", ["../evil", "/etc/passwd", "a/../../b", "a\\..\\b", "C:evil", "a//b", "./a", "", "a\nb"]
)
def test_unsafe_name_in_the_manifest(folder: Path, name: str) -> None:
    edit(folder, lambda data: data["files"].append({"path": name, "bytes": 1, "sha256": "0" * 64}))
    refused(folder, "manifest.json", "unsafe name")


def test_name_that_differs_in_case_only(folder: Path) -> None:
    edit(folder, lambda data: data["files"].append({**data["files"][0], "path": "readme.MD"}))
    refused(folder, "twice")


def test_model_that_is_not_among_the_files(folder: Path) -> None:
    edit(folder, lambda data: data["models"][0].update(path="../model.onnx"))
    refused(folder, "../model.onnx", "not among its files")
    edit(folder, lambda data: data["models"][0].update(path="onnx/model.onnx") or data.update(encoder=".."))
    refused(folder, "../config.json", "not among its files")


def test_edited_manifest(folder: Path) -> None:
    path = folder / "manifest.json"
    path.write_text(path.read_text().replace('"max_length": 8', '"max_length": 9'))
    refused(folder, "manifest.json", "digest")


def test_manifest_with_a_key_twice(folder: Path) -> None:
    path = folder / "manifest.json"
    path.write_text(path.read_text().replace('{\n "digest"', '{\n "digest": "1",\n "digest"', 1))
    refused(folder, "manifest.json", "digest")


def test_unknown_version(folder: Path) -> None:
    edit(folder, lambda data: data.update(version=1))
    refused(folder, "format 1", "reads format 2")


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{}", b"\xff", b"[" * 100_000], ids=["empty", "list", "bare", "binary", "deep"]
)
def test_manifest_that_is_none(folder: Path, content: bytes) -> None:
    (folder / "manifest.json").write_bytes(content)
    refused(folder, "manifest.json", "is not a bundle's manifest")


def test_unknown_key_in_the_manifest(folder: Path) -> None:
    edit(folder, lambda data: data.update(kinds=data.pop("kind")))
    refused(folder, 'unknown key "kinds"; did you mean "kind"?')


def test_not_a_bundle(tmp_path: Path) -> None:
    refused(tmp_path, "is not a bundle", "manifest.json")
    refused(tmp_path / "absent", "no such bundle")
    (tmp_path / "note.txt").write_text("hello")
    refused(tmp_path / "note.txt", "neither a bundle folder nor a whole zip")
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("a", "b")
    refused(tmp_path / "other.zip", "has no manifest.json")


def test_truncated_zip(folder: Path) -> None:
    path = bundle.pack(folder)
    for size in (10, path.stat().st_size // 2, path.stat().st_size - 1):
        cut = path.with_name(f"cut-{size}.zip")
        cut.write_bytes(path.read_bytes()[:size])
        refused(cut, "whole", "copy it again")


def test_zip_with_a_flipped_bit(folder: Path) -> None:
    path = bundle.pack(folder)
    path.write_bytes(path.read_bytes().replace(MODELS["onnx"], b"Onnx bytes"))
    refused(path, "damaged zip")


def rezip(
    source: Path, path: Path, change: Callable[[zipfile.ZipFile], None], compression: int = zipfile.ZIP_STORED
) -> Path:
    """A zip of the bundle in the folder `source`, with what `change` adds."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        for file in sorted(p for p in source.rglob("*") if p.is_file()):
            archive.write(file, file.relative_to(source).as_posix())
        change(archive)
    return path


@pytest.mark.parametrize("name", ["../evil", "/etc/evil", "x/../../evil", "more"])
def test_zip_slip_and_extra_entries(folder: Path, tmp_path: Path, name: str) -> None:
    path = rezip(folder, tmp_path / "slip.zip", lambda archive: archive.writestr(name, b"x"))
    refused(path, name, "the manifest says nothing of it")
    assert not (tmp_path / "evil").exists()


def test_zip_slip_that_the_manifest_allows(folder: Path, tmp_path: Path) -> None:
    edit(folder, lambda data: data["files"].append({"path": "../evil", "bytes": 1, "sha256": "0" * 64}))
    path = rezip(folder, tmp_path / "slip.zip", lambda archive: archive.writestr("../evil", b"x"))
    refused(path, "unsafe name")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_zip_with_an_entry_twice(folder: Path, tmp_path: Path) -> None:
    path = rezip(folder, tmp_path / "twice.zip", lambda archive: archive.writestr("README.md", b"a card"))
    refused(path, "README.md", "stands twice")


def test_zip_with_a_link(folder: Path, tmp_path: Path) -> None:
    entry = zipfile.ZipInfo("link")
    entry.external_attr = (stat.S_IFLNK | 0o777) << 16
    path = rezip(folder, tmp_path / "link.zip", lambda archive: archive.writestr(entry, "/etc/passwd"))
    refused(path, "link", "is a link")


def test_zip_bomb(folder: Path, tmp_path: Path) -> None:
    (folder / "README.md").write_bytes(b"\0" * 10_000_000)
    path = rezip(folder, tmp_path / "bomb.zip", lambda archive: None, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 100_000
    refused(path, "README.md", "10000000 bytes", "the manifest says 6")


def test_zip_that_would_fill_the_disk(folder: Path, tmp_path: Path) -> None:
    edit(folder, lambda data: data["files"][0].update(bytes=10**18))
    refused(rezip(folder, tmp_path / "huge.zip", lambda archive: None), "unpacks to 100000000000000", "has free")


def test_compressed_zip_of_the_folder_is_read(folder: Path, tmp_path: Path) -> None:
    path = rezip(folder, tmp_path / "packed.zip", lambda archive: None, zipfile.ZIP_DEFLATED)
    assert bundle.verify(path) == bundle.verify(folder)


def test_zip_with_a_file_where_a_folder_should_be(folder: Path, tmp_path: Path) -> None:
    def change(data: dict[str, Any]) -> None:
        data["files"] += [{"path": p, "bytes": 1, "sha256": "0" * 64} for p in ("x", "x/y")]

    edit(folder, change)

    def add(archive: zipfile.ZipFile) -> None:
        archive.writestr("x", b"1")
        archive.writestr("x/y", b"1")

    path = rezip(folder, tmp_path / "odd.zip", add)
    refused(path, "cannot be unpacked")


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    make(tmp_path / "store" / "bundle-1" / bundle.FOLDER)
    return tmp_path / "store" / "bundle-1"


def test_place_copies_once_and_replaces_what_differs(artifact: Path, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    zipped = bundle.place(artifact, out)
    assert zipped == tmp_path / "deep" / "out.zip"
    first = (out / "manifest.json").stat().st_ino, zipped.stat().st_ino
    bundle.place(artifact, out)
    assert ((out / "manifest.json").stat().st_ino, zipped.stat().st_ino) == first
    (out / "README.md").write_text("spoilt")
    bundle.place(artifact, out)
    assert bundle.verify(out) == bundle.verify(zipped) == bundle.verify(artifact / bundle.FOLDER)
    assert sorted(p.name for p in out.parent.iterdir()) == ["out", "out.zip"]


def test_place_overwrites_nothing_but_a_bundle(artifact: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    bundle.check_out(work)
    (work / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match=r"--out: .*not a bundle; name another folder"):
        bundle.place(artifact, work)
    out = tmp_path / "out"
    bundle.place(artifact, out)
    (out / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"holds notes.txt, which is not the bundle's"):
        bundle.place(artifact, out)
    (tmp_path / "photos.zip").write_bytes(b"mine")
    with pytest.raises(InputError, match=r"photos.zip is there and is not a bundle"):
        bundle.place(artifact, tmp_path / "photos")


@pytest.fixture
def newer(tmp_path: Path) -> Path:
    """A bundle that differs from `folder`."""
    path = make(tmp_path / "newer")
    (path / "README.md").write_text("another card")
    bundle.write(path, manifest())
    return path


def around(path: Path) -> list[str]:
    return sorted(other.name for other in path.parent.iterdir())


@pytest.mark.parametrize("packed", [False, True], ids=["of a folder", "of a zip"])
@pytest.mark.parametrize("name", ["best", "best.zip"])
def test_accept_makes_a_baseline_and_replaces_it(folder: Path, newer: Path, name: str, packed: bool) -> None:
    baseline = folder.parent / "baselines" / name
    for candidate in (folder, newer, folder):
        given = bundle.pack(candidate) if packed else candidate
        assert bundle.accept(given, baseline) == bundle.verify(candidate) == bundle.verify(baseline)
        assert baseline.is_dir() == (name == "best")
        assert around(baseline) == [name]
    assert (
        os.stat(baseline).st_mode & 0o777
        == os.stat(folder if baseline.is_dir() else folder / "README.md").st_mode & 0o777
    )


def test_accept_of_what_is_there_writes_nothing(folder: Path, tmp_path: Path) -> None:
    bundle.accept(folder, tmp_path / "best")
    before = (tmp_path / "best" / "manifest.json").stat().st_ino
    bundle.accept(folder, tmp_path / "best")
    assert (tmp_path / "best" / "manifest.json").stat().st_ino == before


def test_accept_keeps_a_link_a_link(folder: Path, newer: Path, tmp_path: Path) -> None:
    bundle.accept(folder, tmp_path / "v1")
    (tmp_path / "best").symlink_to("v1")
    bundle.accept(newer, tmp_path / "best")
    assert (tmp_path / "best").is_symlink()
    assert bundle.verify(tmp_path / "v1") == bundle.verify(newer)


def test_accept_mends_a_baseline_that_was_spoilt(folder: Path, tmp_path: Path) -> None:
    for name in ("best", "best.zip"):
        bundle.accept(folder, tmp_path / name)
    (tmp_path / "best" / "README.md").write_text("spoilt")
    with (tmp_path / "best.zip").open("r+b") as file:
        file.seek(60)
        file.write(b"spoilt")
    for name in ("best", "best.zip"):
        bundle.accept(folder, tmp_path / name)
        bundle.verify(tmp_path / name)


def test_accept_refuses_what_is_no_bundle_and_loses_nothing(folder: Path, newer: Path, tmp_path: Path) -> None:
    thesis = tmp_path / "thesis"
    thesis.mkdir()
    (thesis / "thesis.txt").write_text("mine")
    (tmp_path / "photos.zip").write_bytes(b"mine")
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("photo.jpg", b"mine")
    bundle.accept(folder, tmp_path / "noted")
    (tmp_path / "noted" / "notes.txt").write_text("mine")
    bundle.accept(folder, tmp_path / "best")
    (newer / "README.md").write_text("spoilt")
    for candidate, baseline, words in (
        (folder, thesis, "holds something that is not a bundle"),
        (folder, thesis / "thesis.txt", "holds something that is not a bundle"),
        (folder, tmp_path / "photos.zip", "is not a bundle"),
        (folder, tmp_path / "other.zip", "is not a bundle"),
        (folder, tmp_path / "noted", "holds notes.txt"),
        (folder, folder, "are not two places"),
        (folder, tmp_path / "." / "tiny", "are not two places"),
        (folder, folder / "best", "are not two places"),
        (folder / "onnx", folder, "are not two places"),
        (folder, Path("git:main"), "is a commit"),
        (Path("git:main"), folder, "is a commit"),
        (newer, tmp_path / "best", "was changed after the build"),
        (tmp_path / "nothing", tmp_path / "best", "there is no such bundle"),
    ):
        before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        with pytest.raises(InputError, match=words):
            bundle.accept(candidate, baseline)
        assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("name", ["best", "best.zip"])
def test_accept_on_a_full_disk_keeps_the_old_one(folder: Path, newer: Path, tmp_path: Path, name: str) -> None:
    """A limit on the size of files stands for the disk: like it, it ends a write with an error in the middle."""
    (newer / "big").write_bytes(b"0" * 200_000)
    bundle.write(newer, manifest())
    bundle.accept(folder, tmp_path / name)
    code = (
        "import resource, signal, sys; from pathlib import Path; from edgekit import bundle\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "bundle.accept(Path(sys.argv[1]), Path(sys.argv[2]))"
    )
    done = python(code, newer, tmp_path / name)
    _, err = done.communicate(timeout=60)
    assert "what was there before is there still" in err.splitlines()[-1]
    assert bundle.verify(tmp_path / name) == bundle.verify(folder)
    assert around(tmp_path / name) == sorted([name, "newer", "tiny"])


def python(code: str, *args: Path) -> subprocess.Popen[str]:
    """A Python that has its temporary files, some of which a kill leaves, above the folder of the first path."""
    temporary = args[0].parent.parent / "temporary"
    temporary.mkdir(exist_ok=True)
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, args)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TMPDIR": str(temporary)},
    )  # fmt: skip


@pytest.mark.parametrize("name", ["best", "best.zip"])
def test_a_kill_at_any_moment_leaves_the_old_or_the_new_one(
    folder: Path, newer: Path, tmp_path: Path, name: str
) -> None:
    """A process that exchanges the two again and again is killed, again and again."""
    code = (
        "import sys; from pathlib import Path; from edgekit import bundle\n"
        "print(flush=True)\n"
        "while True:\n    for path in sys.argv[2:]: bundle.accept(Path(path), Path(sys.argv[1]))"
    )
    baseline = tmp_path / "baselines" / name
    bundle.accept(folder, baseline)
    whole = {bundle.verify(folder).digest, bundle.verify(newer).digest}
    rng = random.Random(0)
    for _ in range(6):
        child = python(code, baseline, newer, folder)
        assert child.stdout is not None
        child.stdout.readline()
        end = time.monotonic() + rng.uniform(0, 0.1)
        while time.monotonic() < end:
            assert (baseline / "manifest.json").exists() if name == "best" else baseline.exists()
        child.kill()
        child.communicate(timeout=60)
        assert bundle.verify(baseline).digest in whole
