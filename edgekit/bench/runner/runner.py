"""The runner in Python, for where only a wheel is at hand: onnxruntime, ai-edge-litert or tflite-runtime.

One file that runs by itself on a target: Python 3.8 or newer, numpy and the runtime. It takes the options of the
native runner (see argv in __init__.py) and prints the same document, with "runner": "python", because a Python
process costs memory that an app does not pay. `--library` names the module; without it, whichever is installed.
Exit codes: 0 good, 1 an error that the document names, 2 wrong options, 124 out of time.
"""

import argparse
import array
import gc
import importlib
import json
import os
import resource
import signal
import sys
import threading
import time

MOST_SAMPLES = 1000000
MOST_BYTES = 1 << 30  # of one tensor
DTYPES = {"float32": "<f4", "int32": "<i4", "int64": "<i8"}
MODULES = {"onnx": ["onnxruntime"], "tflite": ["ai_edge_litert", "tflite_runtime"]}
NAMES = {"onnxruntime": "onnxruntime", "ai_edge_litert": "litert", "tflite_runtime": "tflite-runtime"}
FIELDS = {
    "hwm_bytes": "VmHWM", "rss_bytes": "VmRSS", "anon_bytes": "RssAnon", "file_bytes": "RssFile",
    "shmem_bytes": "RssShmem", "swap_bytes": "VmSwap",
}  # fmt: skip


class Failure(Exception):
    """Why the run cannot go on: the phase and a message for the document."""


def arguments():
    """The options, checked; argparse ends the process with 2 where they are wrong."""
    parser = argparse.ArgumentParser(prog="edgekit-runner", allow_abbrev=False)
    parser.add_argument("--format", required=True, choices=list(MODULES))
    parser.add_argument("--library", choices=list(NAMES))
    for name in ("--model", "--inputs"):
        parser.add_argument(name, required=True)
    for name in ("--outputs", "--signature"):
        parser.add_argument(name)
    parser.add_argument("--cpus", type=lambda text: sorted(int(cpu) for cpu in text.split(",")))
    parser.add_argument("--threads", type=int, default=1)
    for name in ("--warmup-s", "--repeat-s"):
        parser.add_argument(name, type=float, default=0)
    for name in ("--warmup-n", "--repeat-n"):
        parser.add_argument(name, type=int, default=0)
    parser.add_argument("--deadline-s", type=float, required=True)
    given = parser.parse_args()
    counts_fit = 1 <= given.threads <= 256 and all(0 <= n <= MOST_SAMPLES for n in (given.warmup_n, given.repeat_n))
    times_fit = all(0 <= s <= 1e6 for s in (given.warmup_s, given.repeat_s)) and 0 < given.deadline_s <= 1e6
    if not (counts_fit and times_fit and min(given.cpus or [0]) >= 0):
        parser.error("a number is out of its range")
    if given.library and given.library not in MODULES[given.format]:
        parser.error(f"{given.library} does not run {given.format}")
    return given


def start_deadline(seconds):
    """End the process after so long: by a thread, or by the kernel where a library keeps all threads waiting."""

    def end():
        time.sleep(seconds)
        os.write(2, b"edgekit-runner: out of time: the deadline has passed\n")
        os._exit(124)

    threading.Thread(target=end, daemon=True).start()
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, seconds + 2)


def memory(name):
    """This process's memory now; never from getrusage, whose peak is inherited from the parent."""

    def fields(path):
        try:
            with open(path) as file:
                pairs = [line.partition(":") for line in file]
        except OSError:
            return {}
        return {key: int(value.split()[0]) * 1024 for key, _, value in pairs if value.strip().endswith("kB")}

    status = fields("/proc/self/status")
    if "VmHWM" not in status or "RssAnon" not in status:
        raise Failure("start", "/proc/self/status tells no VmHWM or RssAnon: this needs Linux 4.5 or newer")
    found = {field: status.get(line) for field, line in FIELDS.items()}
    return dict(found, name=name, pss_bytes=fields("/proc/self/smaps_rollup").get("Pss"))


def read_line(file, path):
    """The next line of the inputs file, without its end."""
    line = file.readline(1000)
    if not line.endswith(b"\n"):
        raise Failure("inputs", f"{path}: is cut off, or no tensors file")
    return line[:-1].decode(errors="replace")


def read_count(text, path):
    """A count or dimension."""
    if not (text.isdigit() and len(text) < 19):
        raise Failure("inputs", f"{path}: a count should stand where it says {text[:40]!r}")
    return int(text)


def read_example(file, path):
    """The next example of the inputs file: arrays by name. The format is told in __init__.py, at write_tensors."""
    import numpy as np

    example = {}
    for _ in range(read_count(read_line(file, path), path)):
        dtype, _, rest = read_line(file, path).partition(" ")
        rank, _, rest = rest.partition(" ")
        if dtype not in DTYPES or rank not in "012345678" or len(rank) != 1:
            raise Failure("inputs", f"{path}: has a tensor of type {dtype[:20]!r} and rank {rank[:20]!r}")
        words = rest.split(" ", int(rank))
        if len(words) != int(rank) + 1 or not words[-1]:
            raise Failure("inputs", f"{path}: a tensor without a usable name")
        shape = [read_count(word, path) for word in words[:-1]]
        count = 1
        for dim in shape:
            count *= dim
        size = count * np.dtype(DTYPES[dtype]).itemsize
        if size > MOST_BYTES:
            raise Failure("inputs", f"{path}: a tensor of over a gigabyte")
        data = file.read(size + 1)
        if len(data) != size + 1 or data[-1:] != b"\n":
            raise Failure("inputs", f"{path}: ends within {words[-1]}")
        example[words[-1]] = np.frombuffer(data, DTYPES[dtype], count).reshape(shape).astype(dtype)
    return example


def write_example(file, example):
    """One example's arrays by name, in the format of the inputs file."""
    file.write(b"%d\n" % len(example))
    for name, values in example.items():
        if values.dtype.name not in DTYPES:
            raise Failure("outputs", f"{name} is {values.dtype}, which this runner does not write")
        head = [values.dtype.name, str(values.ndim)] + [str(dim) for dim in values.shape] + [name]
        file.write(" ".join(head).encode() + b"\n" + values.astype(DTYPES[values.dtype.name]).tobytes() + b"\n")


def open_library(format, wanted):
    """The runtime's module, and its package's name and version."""
    tried = [wanted] if wanted else MODULES[format]
    for name in tried:
        try:
            module = importlib.import_module(name if format == "onnx" else name + ".interpreter")
        except ImportError as error:
            why = error
            continue
        return module, name, version_of(name)
    raise Failure("library", f"none of {', '.join(tried)} can be imported: {why}") from None


def version_of(name):
    """The installed package's version."""
    from importlib import metadata

    try:
        return metadata.version(name.replace("_", "-"))
    except metadata.PackageNotFoundError:
        return "unknown"


def load_onnx(ort, given):
    """A function from an example to outputs, by ONNX Runtime; and what it raises."""
    if given.signature:
        raise Failure("signature", f'an ONNX file has no signatures, "{given.signature}" was asked for')
    state = vars(importlib.import_module("onnxruntime.capi.onnxruntime_pybind11_state"))
    failures = tuple(e for e in state.values() if isinstance(e, type) and issubclass(e, Exception))
    options = ort.SessionOptions()
    options.intra_op_num_threads = given.threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    try:
        session = ort.InferenceSession(given.model, options, providers=["CPUExecutionProvider"])
    except failures as error:
        raise Failure("model", f"ONNX Runtime: {error}") from None
    names = [tensor.name for tensor in session.get_inputs()]
    outputs = [tensor.name for tensor in session.get_outputs()]

    def feed(example):
        missing = [name for name in names if name not in example]
        if missing:
            raise Failure("inputs", f"the model's input {missing[0]} is not in the inputs file")
        return {name: example[name] for name in names}

    return feed, lambda feeds: session.run(outputs, feeds), lambda found: dict(zip(outputs, found)), failures  # noqa: B905 - no strict= in 3.8


def load_tflite(module, given):
    """The same by LiteRT or tflite-runtime; only the signature asked for is made ready to run."""
    failures = (ValueError, RuntimeError)
    if not os.path.isfile(given.model):
        raise Failure("model", f"{given.model}: there is no such file")
    try:
        interpreter = module.Interpreter(model_path=given.model, num_threads=given.threads)
        keys = list(interpreter.get_signature_list())
        if (given.signature or (keys or [None])[0]) not in keys:
            have = ", ".join(keys) or "none"
            raise Failure(
                "signature", 'the model has no signature "{}"; it has: {}'.format(given.signature or "", have)
            )
        runner = interpreter.get_signature_runner(given.signature or keys[0])
        details = runner.get_input_details()
    except failures as error:
        raise Failure("model", "{}: {}".format(module.__name__.partition(".")[0], error)) from None

    def feed(example):
        for name, detail in details.items():
            if name not in example:
                raise Failure("inputs", f"the model's input {name} is not in the inputs file")
            wanted = "{}{}".format(detail["dtype"].__name__, [int(dim) for dim in detail["shape"]])
            found = f"{example[name].dtype.name}{list(example[name].shape)}"
            if wanted != found:
                message = f"{name}: the model takes {wanted}, the inputs file has {found}"
                raise Failure("inputs", message)
        return {name: example[name] for name in details}

    return feed, lambda feeds: runner(**feeds), dict, failures


def repeat(call, least, seconds):
    """Wall and CPU time of each call in ns, until both the count and the time are reached."""
    room = MOST_SAMPLES if seconds else least
    wall, cpu = array.array("q", bytes(8 * room)), array.array("q", bytes(8 * room))
    gc.collect()  # takes milliseconds, which are not the calls'
    gc.disable()
    end, count = time.monotonic_ns() + int(seconds * 1e9), 0
    while True:
        used, start = time.process_time_ns(), time.monotonic_ns()
        call()
        stop = time.monotonic_ns()
        cpu[count] = time.process_time_ns() - used
        wall[count] = stop - start
        count += 1
        if count >= MOST_SAMPLES or (count >= least and stop >= end):
            break
    gc.enable()
    return wall[:count].tolist(), cpu[:count].tolist()


def run(given):
    """Everything, in order; the document's contents."""
    if given.cpus:
        try:
            os.sched_setaffinity(0, given.cpus)
        except (OSError, ValueError) as error:
            raise Failure("cpus", f"cannot run on the cores {given.cpus}: {error}") from None
    phases = [memory("start")]
    begin = time.monotonic_ns()
    module, package, version = open_library(given.format, given.library)
    open_ns = time.monotonic_ns() - begin
    phases.append(memory("library"))
    begin = time.monotonic_ns()
    feed, call, named, failures = (load_onnx if given.format == "onnx" else load_tflite)(module, given)
    load_ns = time.monotonic_ns() - begin
    phases.append(memory("loaded"))
    try:
        examples, first_run_ns, feeds = run_examples(given, feed, call, named, phases)
        warmup, samples, cpu, began, ended = [], [], [], None, None
        if given.warmup_n or given.warmup_s:
            warmup, _ = repeat(lambda: call(feeds), given.warmup_n, given.warmup_s)
        phases.append(memory("warm"))
        before = after = resource.getrusage(resource.RUSAGE_SELF)
        if given.repeat_n or given.repeat_s:
            before, began = resource.getrusage(resource.RUSAGE_SELF), time.time_ns()
            samples, cpu = repeat(lambda: call(feeds), given.repeat_n, given.repeat_s)
            ended, after = time.time_ns(), resource.getrusage(resource.RUSAGE_SELF)
    except failures as error:
        raise Failure("run", str(error)) from None
    phases.append(memory("end"))
    return {
        "runner": "python", "format": given.format, "runtime": NAMES[package], "library_version": version,
        "threads": given.threads, "cpus": given.cpus, "open_ns": open_ns, "load_ns": load_ns,
        "first_run_ns": first_run_ns, "warmup_ns": warmup, "samples_ns": samples, "cpu_ns": cpu,
        "began_ns": began, "ended_ns": ended, "voluntary_switches": after.ru_nvcsw - before.ru_nvcsw,
        "involuntary_switches": after.ru_nivcsw - before.ru_nivcsw, "minor_faults": after.ru_minflt - before.ru_minflt,
        "major_faults": after.ru_majflt - before.ru_majflt, "phases": phases, "examples": examples,
    }  # fmt: skip


def run_examples(given, feed, call, named, phases):
    """Run each example once and write its outputs; their number, the first one's time, and the first one's inputs."""
    try:
        with open(given.inputs, "rb") as source, open(given.outputs or os.devnull, "wb") as sink:
            if read_line(source, given.inputs) != "edgekit-tensors 1":
                raise Failure("inputs", f"{given.inputs}: is no tensors file")
            count = read_count(read_line(source, given.inputs), given.inputs)
            if not count:
                raise Failure("inputs", f"{given.inputs}: has no examples")
            sink.write(b"edgekit-tensors 1\n%d\n" % count)
            for i in range(count):
                feeds = feed(read_example(source, given.inputs))
                begin = time.monotonic_ns()
                found = call(feeds)
                if not i:
                    first, first_run_ns = feeds, time.monotonic_ns() - begin
                    phases.append(memory("first_run"))
                write_example(sink, named(found))
            if source.read(1):
                raise Failure("inputs", f"{given.inputs}: goes on after its last example")
    except OSError as error:
        raise Failure("inputs" if error.filename == given.inputs else "outputs", str(error)) from None
    return count, first_run_ns, first


def main():
    """Run, print the document, and end the process at once: the libraries need no tidying up."""
    given = arguments()
    document = os.dup(1)  # what libraries print there goes to stderr
    os.dup2(2, 1)
    start_deadline(given.deadline_s)
    try:
        said, code = run(given), 0
    except Failure as failure:
        said, code = {"error": {"phase": failure.args[0], "message": failure.args[1]}}, 1
        sys.stderr.write("edgekit-runner: {}: {}\n".format(*failure.args))
    except MemoryError:
        said, code = {"error": {"phase": "memory", "message": "Python got no more memory"}}, 1
    sys.stderr.flush()
    with os.fdopen(document, "w") as file:
        json.dump(dict(said, edgekit_runner=1), file)
        file.write("\n")
    os._exit(code)


if __name__ == "__main__":
    main()
