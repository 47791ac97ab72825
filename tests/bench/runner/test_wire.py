"""argv, parse and the tensors files: what passes between this host and a runner."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit.bench.runner import PHASES, Load, argv, parse, read_tensors, write_tensors
from edgekit.errors import DeviceError, InputError


def document(**changes: Any) -> dict[str, Any]:
    sizes = {"hwm_bytes": 9, "rss_bytes": 8, "anon_bytes": 3, "file_bytes": 5, "shmem_bytes": 0}
    return {
        "edgekit_runner": 1, "runner": "native", "format": "tflite", "runtime": "litert", "library_version": "2.3.0",
        "threads": 2, "cpus": [4, 5], "open_ns": 1_500_000, "load_ns": 20_000_000, "first_run_ns": 3_000_000,
        "warmup_ns": [2_000_000], "samples_ns": [1_000_000, 1_250_000], "cpu_ns": [900_000, 950_000],
        "began_ns": 1_700_000_000_500_000_000, "ended_ns": 1_700_000_001_000_000_000, "voluntary_switches": 1,
        "involuntary_switches": 2, "minor_faults": 3, "major_faults": 0, "examples": 7,
        "phases": [{"name": name, **sizes, "pss_bytes": None, "swap_bytes": 0} for name in PHASES], **changes,
    }  # fmt: skip


def said(**changes: Any) -> bytes:
    return json.dumps(document(**changes)).encode()


def test_argv_says_what_the_load_says() -> None:
    load = Load(threads=2, cpus=(4, 5), signature="len_32", warmup_n=3, repeat_s=0.5, deadline_s=60)
    words = argv(["/x/run", "--here"], "tflite", "/x/lib.so", "/x/m.tflite", "/x/in", "/x/out", load)
    options = dict(zip(words[2::2], words[3::2], strict=True))
    assert words[:2] == ["/x/run", "--here"]
    assert options["--cpus"] == "4,5" and options["--signature"] == "len_32" and options["--outputs"] == "/x/out"
    assert float(options["--repeat-s"]) == 0.5 and float(options["--deadline-s"]) == 60


def test_argv_leaves_out_what_was_not_given() -> None:
    words = argv(["r"], "onnx", None, "m", "i", None, Load(deadline_s=1))
    assert not {"--library", "--outputs", "--signature", "--cpus"} & set(words)


def test_a_document_becomes_a_run_in_seconds() -> None:
    run = parse(said() + b"\n", "pixel")
    assert (run.open_s, run.load_s, run.first_run_s) == (0.0015, 0.02, 0.003)
    assert run.samples_s == (0.001, 0.00125) and run.warmup_s == (0.002,) and run.cpus == (4, 5)
    assert run.began_s == 1_700_000_000.5 and run.ended_s == 1_700_000_001
    assert run.phase("end").hwm_bytes == 9 and run.phase("end").pss_bytes is None


@pytest.mark.parametrize(
    "stdout",
    [
        b"", b"\xff\xfe", b"hello", b"[]", b"null", b'{"edgekit_runner": 2}', said()[:-20], said() + said(),
        said().replace(b"1250000", b"NaN"), said().replace(b"1250000", b"Infinity"), said(samples_ns=[1.5, 2]),
        said(samples_ns=[-1, 2]), said(samples_ns=[1]), said(samples_ns="x"), said(open_ns=None), said(more=1),
        said(phases=[]), said(phases=document()["phases"][1:]), said(examples=None), said(runner="other"),
        b'{"edgekit_runner": 1}', b"[" * 100_000,
    ],
)  # fmt: skip
def test_anything_else_is_a_device_error(stdout: bytes) -> None:
    with pytest.raises(DeviceError, match=r"^pixel: "):
        parse(stdout, "pixel")


def test_an_error_document_names_phase_message_and_remedy() -> None:
    stdout = json.dumps({"edgekit_runner": 1, "error": {"phase": "library", "message": "lib.so:\x1b wrong ELF class"}})
    with pytest.raises(DeviceError, match=r"at the library: lib.so:\? wrong ELF class; .*--runtime-lib"):
        parse(stdout.encode(), "pixel")


def test_tensors_come_back_as_they_were(tmp_path: Path) -> None:
    examples = [
        {"ids": np.arange(6, dtype=np.int64).reshape(2, 3), "name with spaces": np.array([1.5, np.nan], np.float32)},
        {"scalar": np.array(7, np.int32), "empty": np.zeros((0, 4), np.float32)},
        {},
    ]
    write_tensors(tmp_path / "t", examples)
    found = read_tensors(tmp_path / "t")
    assert [list(example) for example in found] == [list(example) for example in examples]
    for example, back in zip(examples, found, strict=True):
        for name, array in example.items():
            assert back[name].dtype == array.dtype
            np.testing.assert_array_equal(back[name], array)


def test_the_format_is_the_documented_one(tmp_path: Path) -> None:
    write_tensors(tmp_path / "t", [{"x": np.array([[1, 2]], np.int32)}])
    assert (tmp_path / "t").read_bytes() == b"edgekit-tensors 1\n1\n1\nint32 2 1 2 x\n\x01\0\0\0\x02\0\0\0\n"


@pytest.mark.parametrize("example", [{"x": np.zeros(1)}, {"a\nb": np.zeros(1, np.int32)}, {"": np.zeros(1, np.int32)}])
def test_what_a_runner_cannot_take_is_refused(tmp_path: Path, example: dict[str, np.ndarray]) -> None:
    with pytest.raises(InputError):
        write_tensors(tmp_path / "t", [example])


BROKEN = [
    b"", b"edgekit-tensors 2\n0\n", b"PK\x03\x04", b"edgekit-tensors 1\n", b"edgekit-tensors 1\n-1\n",
    b"edgekit-tensors 1\n99999999999999\n", b"edgekit-tensors 1\n1\n1\nint32 1 1 x\n\0\0",
    b"edgekit-tensors 1\n1\n1\nint32 2 1 x\n\0\0\0\0\n", b"edgekit-tensors 1\n1\n1\nfloat64 1 1 x\n" + bytes(8) + b"\n",
    b"edgekit-tensors 1\n1\n1\nint32 9 1 1 1 1 1 1 1 1 1 x\n\0\0\0\0\n",
    b"edgekit-tensors 1\n1\n1\nint64 3 99999999 99999999 99999999 x\n\0\n",
    b"edgekit-tensors 1\n1\n1\nint32 1 -1 x\n\n",
    b"edgekit-tensors 1\n1\n1\nint32 1 1 x\n\0\0\0\0\nmore", b"edgekit-tensors 1\n1\n" + b"9" * 5000,
]  # fmt: skip


@pytest.mark.parametrize("data", BROKEN)
def test_a_broken_file_is_a_device_error(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "t").write_bytes(data)
    with pytest.raises(DeviceError, match="run it again"):
        read_tensors(tmp_path / "t")


def test_an_absent_file_is_a_device_error(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="cannot be read"):
        read_tensors(tmp_path / "t")
