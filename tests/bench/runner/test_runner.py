"""Both runners, run for real on this host on tiny models: what they answer, measure, and say of what is wrong."""

import ast
import resource
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import tinymodels

from edgekit.bench.runner import EMPTY, PYTHON, Load, Run, argv, parse, read_tensors, write_tensors
from edgekit.bench.runner import build as runner_build
from edgekit.errors import DeviceError
from edgekit.infer import open_model
from edgekit.records import Format

WEIGHTS = np.arange(12, dtype=np.float32).reshape(4, 3) / 7
SIGNATURE: dict[Format, str | None] = {"onnx": None, "tflite": "len_3"}
FORMATS: tuple[Format, ...] = ("onnx", "tflite")
QUICK = Load(deadline_s=60)


@dataclass
class Bench:
    """One kind of runner and a folder with models and inputs."""

    start: list[str]
    libraries: Mapping[Format, str]
    folder: Path

    @property
    def python(self) -> bool:
        return self.start[-1] == str(PYTHON)

    def run(
        self, format: Format, load: Load = QUICK, outputs: str | None = "out", **changed: str | None
    ) -> subprocess.CompletedProcess[bytes]:
        given = {"library": self.libraries[format], "model": f"model.{format}", "inputs": f"in.{format}", **changed}
        if load.signature is None:
            load = load.model_copy(update={"signature": SIGNATURE[format]})
        command = argv(self.start, format, given["library"], str(given["model"]), str(given["inputs"]), outputs, load)
        return subprocess.run(command, cwd=self.folder, capture_output=True, timeout=120)

    def said(self, format: Format, load: Load = QUICK, **changed: str | None) -> Run:
        done = self.run(format, load, **changed)
        assert done.returncode == 0, done.stderr.decode()
        return parse(done.stdout, "here")

    def fails(self, format: Format, match: str, load: Load = QUICK, **changed: str | None) -> None:
        done = self.run(format, load, **changed)
        assert done.returncode == 1, done.stderr.decode()
        with pytest.raises(DeviceError, match=match):
            parse(done.stdout, "here")

    def outputs(self) -> list[dict[str, np.ndarray]]:
        return read_tensors(self.folder / "out")


def examples(format: Format, count: int) -> list[dict[str, np.ndarray]]:
    random = np.random.default_rng(5)
    found = [{"input": random.normal(size=(3, 4)).astype(np.float32)} for _ in range(count)]
    return found if format == "tflite" else [{"count": np.array([i]), **e} for i, e in enumerate(found)]


@pytest.fixture(params=["native", "python"])
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Bench:
    (tmp_path / "model.onnx").write_bytes(tinymodels.onnx_linear(WEIGHTS))
    (tmp_path / "model.tflite").write_bytes(tinymodels.tflite_linear(WEIGHTS))
    for format in FORMATS:
        write_tensors(tmp_path / f"in.{format}", examples(format, 3))
    if request.param == "python":
        return Bench([sys.executable, str(PYTHON)], {"onnx": "onnxruntime", "tflite": "ai_edge_litert"}, tmp_path)
    kit: Path = request.getfixturevalue("kit")
    found = runner_build.read(kit)
    start = [word.replace("{dir}", str(kit)) for word in found.start]
    return Bench(start, {format: str(kit / name) for format, name in found.libraries.items()}, tmp_path)


only_native = pytest.mark.parametrize("bench", ["native"], indirect=True)


@pytest.mark.target
@pytest.mark.parametrize("format", FORMATS)
def test_each_example_is_answered_in_order_as_on_the_host(bench: Bench, format: Format) -> None:
    run = bench.said(format)
    session = open_model(bench.folder / f"model.{format}") if format == "onnx" else None
    for example, found in zip(examples(format, 3), bench.outputs(), strict=True):
        np.testing.assert_allclose(found["output"], example["input"] @ WEIGHTS, rtol=1e-5)
        if session:
            expected = session(example)
            assert found.keys() == expected.keys()
            np.testing.assert_array_equal(found["total"], example["count"] + 1)
            np.testing.assert_array_equal(found["output"], expected["output"])
    assert run.examples == 3 and run.format == format
    assert run.samples_s == run.cpu_s == run.warmup_s == () and run.began_s is None


@pytest.mark.target
@pytest.mark.parametrize("format", FORMATS)
def test_what_is_measured(bench: Bench, format: Format) -> None:
    run = bench.said(format, Load(threads=1, cpus=(0,), warmup_n=7, repeat_n=50, deadline_s=60))
    assert (len(run.warmup_s), len(run.samples_s), len(run.cpu_s)) == (7, 50, 50)
    assert all(s > 0 for s in run.samples_s) and min(run.open_s, run.load_s, run.first_run_s) > 0
    assert sum(run.cpu_s) <= 2 * sum(run.samples_s) + 0.01
    assert run.began_s and run.ended_s and run.ended_s - run.began_s >= sum(run.samples_s) * 0.9
    assert run.threads == 1 and run.cpus == (0,)
    assert run.runner == ("python" if bench.python else "native")
    assert run.runtime == {"onnx": "onnxruntime", "tflite": "litert"}[format]
    assert run.library_version[0].isdigit()


@pytest.mark.target
@pytest.mark.parametrize("format", FORMATS)
def test_memory_by_phase_is_plausible(bench: Bench, format: Format) -> None:
    phases = bench.said(format, Load(warmup_n=1, repeat_n=3, deadline_s=60)).phases
    peaks = [phase.hwm_bytes for phase in phases]
    assert peaks == sorted(peaks) and phases[0].hwm_bytes < phases[1].hwm_bytes < 500e6
    for phase in phases:
        assert phase.rss_bytes <= phase.hwm_bytes
        assert abs(phase.anon_bytes + phase.file_bytes + phase.shmem_bytes - phase.rss_bytes) < 2e6
        assert phase.pss_bytes is None or phase.pss_bytes <= phase.rss_bytes + 2e6


@pytest.mark.target
def test_warming_up_and_measuring_last_until_count_and_time_are_reached(bench: Bench) -> None:
    run = bench.said("tflite", Load(warmup_s=0.1, warmup_n=2, repeat_s=0.3, repeat_n=5, deadline_s=60))
    assert len(run.samples_s) >= 5 and len(run.warmup_s) >= 2
    assert run.began_s and run.ended_s and 0.3 <= run.ended_s - run.began_s < 10


@pytest.mark.target
def test_the_first_example_is_the_one_that_is_timed(bench: Bench) -> None:
    big = [{"input": np.zeros((n, 4), np.float32), "count": np.array([0])} for n in (3, 200_000)]
    write_tensors(bench.folder / "in.onnx", big)
    small_first = bench.said("onnx", Load(repeat_n=5, deadline_s=60))
    write_tensors(bench.folder / "in.onnx", big[::-1])
    big_first = bench.said("onnx", Load(repeat_n=5, deadline_s=60))
    assert min(big_first.samples_s) > 3 * min(small_first.samples_s)


@pytest.mark.target
@pytest.mark.parametrize("format", FORMATS)
def test_thousands_of_examples_do_not_grow_memory(bench: Bench, format: Format) -> None:
    write_tensors(bench.folder / f"in.{format}", examples(format, 3) * 1500)
    run = bench.said(format)
    assert run.examples == len(bench.outputs()) == 4500
    assert run.phase("end").hwm_bytes - run.phase("first_run").hwm_bytes < 3e6


@pytest.mark.target
def test_out_of_time(bench: Bench) -> None:
    done = bench.run("tflite", Load(repeat_s=600, deadline_s=1.5))
    assert done.returncode == 124 and b"out of time" in done.stderr and not done.stdout
    with pytest.raises(DeviceError, match="found nothing"):
        parse(done.stdout, "here")


@pytest.mark.target
def test_a_signature_that_is_not_there(bench: Bench) -> None:
    bench.fails("tflite", 'no signature "len_9"; it has: len_1, len_3', Load(signature="len_9", deadline_s=60))
    bench.fails("onnx", "no signatures", Load(signature="len_3", deadline_s=60))


@pytest.mark.target
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("broken", ["absent", "empty", "garbage", "cut off"])
def test_a_model_that_is_none(bench: Bench, format: Format, broken: str) -> None:
    path = bench.folder / f"broken.{format}"
    if broken != "absent":
        whole = (bench.folder / f"model.{format}").read_bytes()
        path.write_bytes({"empty": b"", "garbage": b"no model " * 50, "cut off": whole[: len(whole) // 2]}[broken])
    bench.fails(format, "failed at the model: ", model=str(path))


@pytest.mark.target
@pytest.mark.parametrize(
    ("data", "match"),
    [
        (None, "No such file"),
        (b"", "cut off, or no tensors file"),
        (b"PK\x03\x04 something\n", "is no tensors file"),
        (b"edgekit-tensors 1\n0\n", "has no examples"),
        (b"edgekit-tensors 1\nmany\n", "a count should stand"),
        (b"edgekit-tensors 1\n1\n1\nfloat32 2 3 4 input\n1234", "ends within input"),
        (b"edgekit-tensors 1\n1\n1\nfloat99 2 3 4 input\n", "type"),
        (b"edgekit-tensors 1\n1\n1\nfloat32 9 3 4 input\n", "count|rank"),
        (b"edgekit-tensors 1\n1\n1\nfloat32 2 99999999 99999999 input\n", "over a gigabyte"),
        (b"edgekit-tensors 1\n1\n1\nfloat32 2 3 4 other\n" + bytes(48) + b"\n", "input input is not in the inputs"),
        (b"edgekit-tensors 1\n1\n1\nfloat32 2 3 4\n" + bytes(48) + b"\n", "usable name"),
        (b"edgekit-tensors 1\n2\n1\nfloat32 2 3 4 input\n" + bytes(48) + b"\n", "cut off"),
        (b"edgekit-tensors 1\n1\n1\nfloat32 2 3 4 input\n" + bytes(48) + b"\nmore", "goes on"),
        (b"edgekit-tensors 1\n1\n1\nint32 2 3 4 input\n" + bytes(48) + b"\n", r"takes float32\[3, 4\].* int32\[3, 4\]"),
        (b"edgekit-tensors 1\n1\n1\nfloat32 2 2 4 input\n" + bytes(32) + b"\n", r"takes float32\[3, 4\].*\[2, 4\]"),
    ],
)  # fmt: skip
def test_inputs_that_do_not_fit(bench: Bench, data: bytes | None, match: str) -> None:
    if data is not None:
        (bench.folder / "broken").write_bytes(data)
    bench.fails("tflite", f"failed at the inputs: .*({match})", inputs="broken")


@pytest.mark.target
def test_onnx_says_what_it_does_not_take(bench: Bench) -> None:
    write_tensors(bench.folder / "in.onnx", [{"input": np.zeros((3, 4), np.int32), "count": np.array([1])}])
    bench.fails("onnx", "failed at the run: .*[Uu]nexpected input data type")


@pytest.mark.target
@pytest.mark.parametrize("outputs", ["/dev/full", "absent/out"])
def test_outputs_that_cannot_be_written(bench: Bench, outputs: str) -> None:
    write_tensors(bench.folder / "in.tflite", examples("tflite", 3) * 200)
    bench.fails("tflite", "failed at the outputs: .*(No space left|No such file)", outputs=outputs)


@pytest.mark.target
def test_cores_that_are_not_there(bench: Bench) -> None:
    bench.fails("tflite", r"failed at the cpus: cannot run on the cores .*900", Load(cpus=(900,), deadline_s=60))


@pytest.mark.target
@pytest.mark.parametrize(
    "words", [[], ["--format", "onnx"], ["--what", "1"], ["--format", "tensorflow"], ["--deadline-s"]]
)
def test_wrong_options(bench: Bench, words: list[str]) -> None:
    done = subprocess.run([*bench.start, *words], capture_output=True, timeout=60)
    assert done.returncode == 2 and done.stderr and not done.stdout


@pytest.mark.target
@pytest.mark.parametrize("option", ["--threads", "--repeat-n", "--repeat-s", "--deadline-s"])
@pytest.mark.parametrize("value", ["-1", "x", "1e99", "nan"])
def test_numbers_out_of_range(bench: Bench, option: str, value: str) -> None:
    words = argv(bench.start, "tflite", bench.libraries["tflite"], "m", "i", None, QUICK)
    done = subprocess.run([*words, option, value], capture_output=True, timeout=60)
    assert done.returncode == 2 and not done.stdout


@pytest.mark.target
def test_no_more_memory_than_the_limit(bench: Bench) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (36_000_000, 36_000_000))  # ONNX Runtime's library alone is 30 MB

    command = argv(bench.start, "onnx", bench.libraries["onnx"], "model.onnx", "in.onnx", None, QUICK)
    done = subprocess.run(command, cwd=bench.folder, capture_output=True, timeout=60, preexec_fn=limit)
    assert done.returncode != 0
    with pytest.raises(DeviceError):
        parse(done.stdout, "here")


@pytest.mark.target
@pytest.mark.parametrize("format", FORMATS)
def test_the_empty_model_measures_the_runtimes_floor(bench: Bench, format: Format) -> None:
    write_tensors(bench.folder / "one", [{"x": np.array([2], np.float32)}])
    load = Load(signature={"onnx": None, "tflite": "empty"}[format], repeat_n=3, deadline_s=60)
    command = argv(bench.start, format, bench.libraries[format], str(EMPTY[format]), "one", "out", load)
    run = parse(subprocess.run(command, cwd=bench.folder, capture_output=True, timeout=60).stdout, "here")
    assert bench.outputs()[0]["y"].tolist() == [{"onnx": 2, "tflite": 4}[format]]
    assert run.phase("end").hwm_bytes < bench.said(format).phase("end").hwm_bytes + 2e6


@pytest.mark.target
@pytest.mark.parametrize("cpus", ["0,", ",0", "a", "0-1", "-1"])
def test_cores_that_are_no_numbers(bench: Bench, cpus: str) -> None:
    words = argv(bench.start, "tflite", bench.libraries["tflite"], "model.tflite", "in.tflite", None, QUICK)
    done = subprocess.run([*words, "--cpus", cpus], cwd=bench.folder, capture_output=True, timeout=60)
    assert done.returncode == 2 and not done.stdout


def test_the_python_runner_is_written_for_old_pythons_too() -> None:
    ast.parse(PYTHON.read_bytes(), feature_version=(3, 8))


def test_the_empty_models_are_what_their_makers_make() -> None:
    assert EMPTY["onnx"].read_bytes() == tinymodels.onnx_empty()
    assert EMPTY["tflite"].read_bytes() == tinymodels.tflite_empty()
    assert all(path.stat().st_size < 1000 for path in EMPTY.values())


# Of the native runner only: what can be wrong with a library


@pytest.mark.target
@only_native
def test_a_library_that_is_absent_or_another(bench: Bench) -> None:
    bench.fails("tflite", "failed at the library: .*cannot open shared object", library="/absent/libLiteRt.so")
    bench.fails("tflite", "has no LiteRtCreateEnvironment", library=bench.libraries["onnx"])
    bench.fails("onnx", "has no OrtGetApiBase", library=bench.libraries["tflite"])


@pytest.mark.target
@only_native
def test_a_library_for_another_machine(bench: Bench, library: Callable[..., Path]) -> None:
    other = library("arm-linux-gnueabihf.2.17", "libonnxruntime.so", "int OrtGetApiBase;")
    bench.fails("onnx", "failed at the library: .*(ELF class|ELF header|file too short)", library=str(other))


@pytest.mark.target
@only_native
def test_a_library_that_prints_and_crashes(bench: Bench, library: Callable[..., Path]) -> None:
    triple = {"x86_64": "x86_64-linux-gnu.2.17", "arm64-v8a": "aarch64-linux-gnu.2.17"}
    source = """
        #include <stdio.h>
        void *OrtGetApiBase(void) { puts("{hello}"); fflush(stdout); return *(void *volatile *)8; }
    """
    machine = runner_build.read(Path(bench.start[-1]).parent).abi
    bad = library(triple[machine], "libonnxruntime.so", source)
    bench.fails("onnx", "failed at the library: the runtime's library crashed with SIGSEGV", library=str(bad))


@pytest.mark.target
@only_native
def test_an_unknown_build_of_litert_runs_and_says_so(bench: Bench) -> None:
    other = bench.folder / "libLiteRt.so"
    other.write_bytes(Path(bench.libraries["tflite"]).read_bytes() + b"\0")
    assert bench.said("tflite", library=str(other)).library_version == "unknown"
