"""A model and what runs it, placed on a device: every run is a fresh process there."""

import platform
import sys
import tempfile
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from edgekit import plugins
from edgekit.bench import conditions, deploy
from edgekit.bench.check import Subject
from edgekit.bench.runner import EMPTY, PYTHON, Load, Run, argv, build, parse, read_tensors, write_tensors
from edgekit.bench.transports import Transport
from edgekit.errors import DeviceError, InputError
from edgekit.records import Device, Use
from edgekit.results import DeviceFacts

_MOST_S_A_RUN = 10.0
"""Deadlines leave this much time for one inference: a small model on a board that is emulated in software."""


@dataclass(frozen=True)
class Placed:
    """A model and its runner in the work folder of one device, ready to be run."""

    transport: Transport
    desk: deploy.Place
    subject: Subject
    start: tuple[str, ...]
    library: str | None
    name: str
    """What its files there begin with: `model`, or the side of a comparison."""
    threads: int
    cpus: tuple[int, ...] | None
    unverified: str | None
    """What about the runner has not been tried on such a device."""

    @property
    def model(self) -> str:
        """The model file there."""
        return f"{self.desk.folder}/{self.name}.{self.subject.model.format}"

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

    def timing(self, length: int | None, seconds: float, warmup_s: float, repeats: int) -> Run:
        """One process that is timed at one length, on the input that is for that."""
        return self.run(self.timed(length), self.load(length, seconds=seconds, warmup_s=warmup_s, repeats=repeats))

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
        return f"{self.desk.folder}/{self.name}-timed-{length}.in"


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


def place(
    device: Device, transport: Transport, desk: deploy.Place, subject: Subject, facts: DeviceFacts,
    asked: Literal["native", "python"] | None = None, name: str = "model",
) -> Placed:  # fmt: skip
    """Put the model and what runs it on the device; `name` tells several models in one folder apart."""
    format = subject.model.format
    files = {f"{name}.{format}": subject.file, f"empty.{format}": EMPTY[format]}
    runner, unverified = asked or device.runner, None
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
        desk.put({**files, **_inputs(subject, name, Path(temporary))})
    cpus = conditions.big_cores(facts, device.runtime.threads)
    return Placed(transport, desk, subject, start, library, name, device.runtime.threads, cpus, unverified)


def _inputs(subject: Subject, name: str, folder: Path) -> dict[str, Path]:
    """Every inputs file but those of a score, written to `folder`: sent once and kept there like the model."""
    feeds = {"empty.in": [{"x": np.zeros(1, np.float32)}]}
    for length in subject.lengths:
        feeds[f"{name}-check-{length}.in"] = [subject.feed(example, length) for example in subject.examples]
        feeds[f"{name}-timed-{length}.in"] = [subject.timed(length)]
    for file, examples in feeds.items():
        write_tensors(folder / file, examples)
    return {file: folder / file for file in feeds}


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


def _end(code: int, python: bool) -> str:
    """How a process that said nothing came to its end."""
    if code == 137:
        return "was killed (by the kernel for want of memory, or by somebody)"
    if code in (126, 127) and python:
        return f"could not be started (code {code}); install Python there, or name it in the device's record: python"
    if code in (126, 127):
        return f"could not be started (code {code}: wrong ABI, missing loader, or no right to run it)"
    return f"ended with code {code} and said nothing"
