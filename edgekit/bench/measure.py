"""Measure one model on one device: outputs first, then latency, memory and energy, each in a pass of its own, because
each disturbs the others. Every run of the model is a fresh process on the device."""

import platform
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import numpy as np

from edgekit import __version__, plugins, progress
from edgekit.bench import check, conditions, deploy, doubts, energy, figures
from edgekit.bench import memory as memories
from edgekit.bench.check import Subject
from edgekit.bench.evaluation import Evaluation
from edgekit.bench.runner import EMPTY, PYTHON, Load, Run, argv, build, parse, read_tensors, write_tensors
from edgekit.bench.transports import Transport
from edgekit.errors import DeviceError, InputError, NotGoodEnough
from edgekit.records import Budget, Device, Format, Use
from edgekit.results import BudgetCheck, DeviceFacts, Latency, Memory, OutputCheck, RunResult, Workload
from edgekit.tasks import Arrays

_WARMUP_S = 1.0
_LEAST_REPEATS = 20
_MEMORY_REPEATS = 10
_MOST_EXAMPLES = 1000
"""Of a score in one process: its outputs come back in one piece, under one deadline."""
_MOST_S_A_RUN = 10.0
"""Deadlines leave this much time for one inference: a small model on a board that is emulated in software."""


@dataclass(frozen=True)
class Wanted:
    """What is asked of every device. Each pass beyond outputs, latency and memory is asked for by name."""

    format: Format | None = None
    """`None`: the target's first."""
    lengths: tuple[int, ...] = ()
    """In tokens; none: all that the bundle was built for."""
    seconds: float = 5.0
    """How long each length is timed, at least."""
    score: bool = False
    base: Path = Path()
    """Where relative paths in the recipe's data start."""
    energy: bool = False
    sustained_s: float | None = None
    memory_limit: int | None = None
    runner: Literal["native", "python"] | None = None
    """`None`: as the device's record says."""
    adb: Path | None = None
    """The adb program; `None`: looked for."""


@dataclass(frozen=True)
class Placed:
    """A model and its runner in the work folder of one device, ready to be run."""

    transport: Transport
    desk: deploy.Place
    subject: Subject
    start: tuple[str, ...]
    library: str | None
    model: str
    threads: int
    cpus: tuple[int, ...] | None

    def argv(self, inputs: str, outputs: str | None, load: Load, model: str | None = None) -> list[str]:
        """The runner's command line for one process."""
        return argv(self.start, self.subject.model.format, self.library, model or self.model, inputs, outputs, load)

    def load(
        self, length: int | None, examples: int = 1, seconds: float = 0, warmup_s: float = 0, repeats: int = 0,
        run_s: float = _MOST_S_A_RUN,
    ) -> Load:  # fmt: skip
        """What one process does with an inputs file of so many examples; `run_s` bounds one run, for the deadline."""
        return Load(
            threads=self.threads, cpus=self.cpus, signature=self.subject.signature(length), warmup_s=warmup_s,
            repeat_s=seconds, repeat_n=repeats,
            deadline_s=60 + 2 * (seconds + warmup_s) + run_s * (examples + repeats),
        )  # fmt: skip

    def run(self, inputs: str, load: Load, outputs: str | None = None, model: str | None = None) -> Run:
        """One process of the runner, to its end."""
        done = self.transport.run(self.argv(inputs, outputs, load, model), load.deadline_s + 5)
        if done.stdout.strip():
            return parse(done.stdout, self.transport.name)
        raise DeviceError(
            f"{self.transport.name}: the runner {_end(done.code, self.library is None)}: {done.last_words()}"
        )

    def answers(
        self, name: str, length: int | None, count: int, run_s: float = _MOST_S_A_RUN
    ) -> list[dict[str, np.ndarray]]:
        """The device's outputs for each of the `count` examples in the inputs file `name` there, in order."""
        outputs = f"{self.desk.folder}/{name}.out"
        self.run(f"{self.desk.folder}/{name}", self.load(length, count, run_s=run_s), outputs)
        with tempfile.TemporaryDirectory(prefix="edgekit-outputs-") as temporary:
            local = Path(temporary, "outputs")
            self.desk.get(outputs, local)
            found = read_tensors(local)
        if len(found) != count:
            raise DeviceError(f"{self.transport.name}: answered {len(found)} of {count} examples")
        return found

    def timed(self, length: int | None) -> str:
        """The inputs file there that is timed."""
        return f"{self.desk.folder}/timed-{length}.in"


def connect(device: Device, adb: Path | None = None) -> tuple[AbstractContextManager[Transport], str]:
    """The device's transport, not yet opened, and its work folder. Raises `InputError` where no link is known."""
    where = f"device {device.name}"
    if device.link is None:
        raise InputError(
            f"{where}: its record does not say how to reach it; make {device.name}-mine.toml with "
            f'base = "{device.name}" and link = {{ name = "ssh", host = "..." }} (or adb), and name that file'
        )
    chosen = {"adb": str(adb)} if adb and device.link.name == "adb" else {}
    link = Use.model_validate({**device.link.model_dump(), **chosen})
    module, params = plugins.use("transports", link, where)
    return module.connect(params), device.workdir or module.WORKDIR


def measure(
    device: Device,
    subject: Subject,
    expected: Mapping[int | None, Sequence[Arrays]],
    scored: Evaluation | None,
    wanted: Wanted,
) -> RunResult:
    """Everything that is `wanted` of one device. Raises `DeviceError` for a device or link that fails or is not in the
    condition that its record demands, and `NotGoodEnough` where it computes something else than this host."""
    began, clock = datetime.now(UTC), time.monotonic()
    link, workdir = connect(device, wanted.adb)
    if device.meter:  # energy comes last: what its record has wrong is said first
        plugins.use("meters", device.meter, f"device {device.name}")
    with link as transport, deploy.opened(transport, workdir) as desk:
        facts = conditions.facts(transport, desk.folder)
        _say(device, "uploading")
        placed, unverified = place(device, transport, desk, subject, facts, wanted)
        _say(device, "checking outputs")
        checks = _check(device, placed, expected)
        before = conditions.wait_until_ready(device, transport, clock, placed.cpus)
        with conditions.watch(transport, clock) as during:
            latency = tuple(_latency(device, placed, length, wanted.seconds) for length in subject.lengths)
            sustained = None
            if wanted.sustained_s is not None:
                _say(device, f"working for {wanted.sustained_s:.0f} s without a pause")
                load = placed.load(subject.lengths[-1], seconds=wanted.sustained_s, warmup_s=_WARMUP_S)
                sustained = figures.sustained(placed.run(placed.timed(subject.lengths[-1]), load))
        _say(device, "measuring memory")
        last, memory = _memory(device, placed, wanted)
        used = _energy(device, placed) if wanted.energy else None
        score, interval = (
            (None, None) if scored is None else scored.score(_outputs(device, placed, scored, latency[-1]))
        )
        readings = (before, *during, conditions.read(transport, clock))
    broken = _budgets(device.budgets, subject, latency, memory, used and used.gross_j, score and score.value)
    return RunResult(
        edgekit=__version__, bundle=subject.manifest.name, digest=subject.manifest.digest, model=subject.model.path,
        model_sha256=subject.sha256, size_bytes=subject.file.stat().st_size, device=device.name, facts=facts,
        runner=last.runner, runtime=f"{last.runtime} {last.library_version}", unverified=unverified,
        cpus=placed.cpus, checks=checks, latency=latency, memory=memory, energy=used, sustained=sustained,
        workload=Workload(
            format=subject.model.format, lengths=tuple(n for n in subject.lengths if n is not None),
            threads=placed.threads, warmup_s=_WARMUP_S, repeat_s=wanted.seconds,
        ),
        score=score, score_interval=interval, budgets=broken, readings=readings,
        doubts=doubts.doubts(readings, latency, facts, placed.threads, placed.cpus),
        began=began.isoformat(timespec="seconds"), seconds=round(time.monotonic() - clock, 3),
    )  # fmt: skip


def place(
    device: Device, transport: Transport, desk: deploy.Place, subject: Subject, facts: DeviceFacts, wanted: Wanted
) -> tuple[Placed, str | None]:
    """Put the model and what runs it on the device."""
    format = subject.model.format
    files = {f"model.{format}": subject.file, f"empty.{format}": EMPTY[format]}
    runner, unverified = wanted.runner or device.runner, None
    if runner == "python":
        files["runner.py"] = PYTHON
        start, library = (python(device), f"{desk.folder}/runner.py"), None
    else:
        if not same_abi(device, facts):
            raise DeviceError(
                f"device {device.name}: its record says abi {_abi(device)}, the device itself {facts.abi}; set abi and "
                "os in a record of your own"
            )
        folder = build.find(kit_target(device))
        kit = build.read(folder)
        if format not in kit.libraries:
            raise InputError(
                f"device {device.name}: its runner kit {folder} has no library for {format}; give one: edgekit runner "
                f"build --target {kit.target} --runtime-lib FILE, or use --runner python"
            )
        files |= {file.path: folder / file.path for file in kit.files}
        start = tuple(word.replace("{dir}", desk.folder) for word in kit.start)
        library, unverified = f"{desk.folder}/{kit.libraries[format]}", kit.unverified
    with tempfile.TemporaryDirectory(prefix="edgekit-inputs-") as temporary:
        desk.put({**files, **_inputs(subject, Path(temporary))})
    cpus = conditions.big_cores(facts, device.runtime.threads)
    model = f"{desk.folder}/model.{format}"
    return Placed(transport, desk, subject, start, library, model, device.runtime.threads, cpus), unverified


def _inputs(subject: Subject, folder: Path) -> dict[str, Path]:
    """Every inputs file but those of a score, written to `folder`: sent once and kept there like the model."""
    feeds = {"empty.in": [{"x": np.zeros(1, np.float32)}]}
    for length in subject.lengths:
        feeds[f"check-{length}.in"] = [subject.feed(example, length) for example in subject.examples]
        feeds[f"timed-{length}.in"] = [subject.timed(length)]
    for name, examples in feeds.items():
        write_tensors(folder / name, examples)
    return {name: folder / name for name in feeds}


def python(device: Device) -> str:
    """The interpreter that the Python runner is started with there."""
    ours = device.link is not None and device.link.name == "local"
    return device.python or (sys.executable if ours else "python3")


def abi_of(machine: str) -> str:
    """Android's name for what `uname -m`, or Android itself, says."""
    names = {"aarch64": "arm64-v8a", "arm64": "arm64-v8a", "armv7l": "armeabi-v7a", "armv8l": "armeabi-v7a"}
    return names.get(machine, machine)


def _abi(device: Device) -> str:
    """The ABI that the device's record promises, by Android's name."""
    return abi_of(platform.machine()) if device.abi == "host" else device.abi


def same_abi(device: Device, facts: DeviceFacts) -> bool:
    """Whether the device runs programs for the ABI that its record promises."""
    found, promised = abi_of(facts.abi), _abi(device)
    return found == promised or (found, promised) == ("arm64-v8a", "armeabi-v7a")  # which runs both, mostly


def kit_target(device: Device) -> build.Target:
    """Which of the runner's targets a device is. Raises `InputError` for one that is none."""
    system = "Android" if device.os == "android" else platform.system() if device.abi == "host" else "Linux"
    fit: list[build.Target] = [
        t for t, abi in build.ABI.items() if abi == _abi(device) and (t == "android") == (system == "Android")
    ]
    if not fit or system not in ("Android", "Linux"):
        raise InputError(
            f"device {device.name}: there is no native runner for {system} on {_abi(device)}; use --runner python"
        )
    return fit[0]


def _check(device: Device, placed: Placed, expected: Mapping[int | None, Sequence[Arrays]]) -> tuple[OutputCheck, ...]:
    subject = placed.subject
    found = {length: placed.answers(f"check-{length}.in", length, len(subject.examples)) for length in subject.lengths}
    checks = check.compare(subject, expected, found)
    if wrong := [one for one in checks if not one.passed]:
        said = "; ".join(
            f"{one.output}: cosine {one.cosine_min:.4f} at worst, largest difference {one.max_abs_diff:.4g}, "
            f"{one.flips} of {one.decisions} decisions flipped"
            for one in wrong
        )
        raise NotGoodEnough(
            f"device {device.name}: {subject.model.path} computes something else there than on this host ({said}); "
            "nothing was timed. Try another version of the runtime (edgekit runner build --runtime-lib), or --format"
        )
    return checks


def _latency(device: Device, placed: Placed, length: int | None, seconds: float) -> Latency:
    _say(device, "timing" if length is None else f"timing {length} tokens")
    load = placed.load(length, seconds=seconds, warmup_s=_WARMUP_S, repeats=_LEAST_REPEATS)
    return figures.latency(placed.run(placed.timed(length), load), length)


def _memory(device: Device, placed: Placed, wanted: Wanted) -> tuple[Run, Memory]:
    """The longest length's memory, the runtime's floor, on this host a Python process beside, and a limited run."""
    length = placed.subject.lengths[-1]
    inputs = placed.timed(length)
    load = placed.load(length, repeats=_MEMORY_REPEATS)
    run = placed.run(inputs, load)
    empty = f"{placed.desk.folder}/empty"
    bare = load.model_copy(update={"signature": None})
    floor = placed.run(f"{empty}.in", bare, model=f"{empty}.{placed.subject.model.format}")
    beside = None
    if run.runner == "native" and device.link and device.link.name == "local":
        placed.desk.put({"runner.py": PYTHON})
        start = (sys.executable, f"{placed.desk.folder}/runner.py")
        beside = replace(placed, start=start, library=None).run(inputs, load)
    memory = memories.memory(run, floor, beside)
    if wanted.memory_limit is not None:
        words = placed.argv(inputs, None, load)
        limit = memories.limited(placed.transport, words, wanted.memory_limit, load.deadline_s + 5)
        memory = memory.model_copy(update={"limit": limit})
    return run, memory


def _energy(device: Device, placed: Placed) -> energy.Energy:
    _say(device, "measuring energy; this takes minutes")
    length = placed.subject.lengths[-1]
    inputs = placed.timed(length)

    def load(seconds: float) -> Run:
        return placed.run(inputs, placed.load(length, seconds=seconds))

    return energy.measure(device.meter, placed.transport, load)


def _outputs(device: Device, placed: Placed, scored: Evaluation, timed: Latency) -> list[Arrays]:
    """The device's unpadded outputs for the whole evaluation set, in order; deadlines follow what was `timed`."""
    subject = placed.subject
    lengths = subject.model.lengths or (None,)
    # attention costs the square of the length, and the greatest may not be among those that were asked for
    run_s = 5 * timed.p50_s * max((lengths[-1] or 1) / (timed.length or 1), 1) ** 2
    by_length: dict[int | None, list[int]] = {}
    for i, feature in enumerate(scored.features):
        tokens = len(next(iter(feature.inputs.values())))
        by_length.setdefault(next((n for n in lengths if n is None or n >= tokens), lengths[-1]), []).append(i)
    found: list[Arrays] = [{}] * len(scored.features)
    for length, numbers in [
        (length, every[first : first + _MOST_EXAMPLES])
        for length, every in by_length.items()
        for first in range(0, len(every), _MOST_EXAMPLES)
    ]:
        _say(device, f"scoring {len(numbers)} examples" + (f" of up to {length} tokens" if length else ""))
        feeds = [subject.feed(scored.features[i].inputs, length) for i in numbers]
        with tempfile.TemporaryDirectory(prefix="edgekit-inputs-") as temporary:
            write_tensors(Path(temporary, "score"), feeds)
            placed.desk.send(Path(temporary, "score"), f"{placed.desk.folder}/score.in")
        for i, outputs in zip(numbers, placed.answers("score.in", length, len(feeds), run_s), strict=True):
            found[i] = check.unpadded(subject, outputs, scored.features[i].inputs, length)
    return found


def _budgets(
    budgets: Sequence[Budget],
    subject: Subject,
    latency: Sequence[Latency],
    memory: Memory,
    energy_j: float | None,
    score: float | None,
) -> tuple[BudgetCheck, ...]:
    """Each budget against what was measured; latency is the longest length's median."""
    observed = {
        "size_bytes": float(subject.file.stat().st_size),
        "latency_s": latency[-1].p50_s,
        "peak_rss_bytes": float(memory.peak_rss_bytes),
        "energy_j": energy_j,
        "score": score,
    }
    checks: list[BudgetCheck] = []
    for budget in budgets:
        seen = observed[budget.metric]
        headroom = None
        if seen is not None:
            headroom = seen - budget.limit if budget.metric == "score" else budget.limit - seen
        kept = None if headroom is None else headroom >= 0
        checks.append(BudgetCheck(budget=budget, observed=seen, kept=kept, headroom=headroom))
    return tuple(checks)


def _end(code: int, python: bool) -> str:
    """How a process that said nothing came to its end."""
    if code == 137:
        return "was killed (by the kernel for want of memory, or by somebody)"
    if code in (126, 127) and python:
        return f"could not be started (code {code}); install Python there, or name it in the device's record: python"
    if code in (126, 127):
        return f"could not be started (code {code}: wrong ABI, missing loader, or no right to run it)"
    return f"ended with code {code} and said nothing"


def _say(device: Device, what: str) -> None:
    progress.say(f"{device.name}: {what}")
