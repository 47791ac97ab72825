"""`edgekit bench`: one bundle on several devices at once; one device that fails never spoils the others."""

import re
import tempfile
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import TypeVar

from edgekit import bundle, progress
from edgekit.bench import check, evaluation, transports
from edgekit.bench.measure import Wanted, measure
from edgekit.errors import EdgekitError, InputError
from edgekit.records import Device, Record
from edgekit.results import Benched, Failure, RunResult

_MOST_SUSTAINED_S = 12 * 3600
_R = TypeVar("_R")


def bench(path: Path | None, devices: Sequence[Device], wanted: Wanted, out: Path) -> Benched:
    """Measure the bundle at `path` (`None`: the only one in `bundles/`) on each device.

    Each device's `RunResult` is written to `out`/BUNDLE-DEVICE-FORMAT.json when that device is done. Raises
    `InputError` for a bundle, format or length that is not there, before any device is touched.
    """
    distinct(devices)
    if (wanted.sustained_s or 0) > _MOST_SUSTAINED_S:
        raise InputError(f"--sustained: {_MOST_SUSTAINED_S / 3600:g}h at most; the device is let go after a day")
    with bundle.opened(path or only_bundle(Path("bundles"))) as (folder, manifest):
        subject = check.subject(path or folder, folder, manifest, wanted.format, wanted.lengths)
        writable(out)
        expected = check.reference(subject, threads=1)
        scored = evaluation.read(subject, wanted.base) if wanted.score else None

        def one(device: Device) -> tuple[RunResult | None, Failure | None]:
            result = None
            try:
                result = measure(device, subject, expected, scored, wanted)
                write(result, out / file_name(result))
                return result, None
            except EdgekitError as error:  # what was measured is shown, even where it cannot be written
                progress.say(f"{device.name}: failed: {error}")
                return result, Failure(device=device.name, message=str(error), exit_code=error.exit_code)

        done = each(devices, one)
    return Benched(
        results=tuple(result for result, _ in done if result),
        failures=tuple(failure for _, failure in done if failure),
    )


def distinct(devices: Sequence[Device]) -> None:
    """Raise `InputError` for a device that is given twice, or two whose files would be one."""
    names = [device.name for device in devices]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise InputError(f"--device {twice}: is given twice; a device can do one measurement at a time")
    files = [plain(name) for name in names]
    if alike := [name for name in names if files.count(plain(name)) > 1]:
        raise InputError(f"--device {' and '.join(alike)}: their results would be one file; rename one of the records")


def each(devices: Sequence[Device], work: Callable[[Device], _R]) -> list[_R]:
    """`work` on all devices at once, in order of their names. Ctrl-C ends what runs on them."""
    with warnings.catch_warnings(), ThreadPoolExecutor(len(devices)) as pool:
        # scikit-learn, of resamples of a small evaluation set; filters are all threads', so they are set here
        warnings.filterwarnings("ignore", "A single label was found")
        futures = [pool.submit(work, device) for device in sorted(devices, key=lambda device: device.name)]
        try:
            return [future.result() for future in futures]
        except KeyboardInterrupt:
            # What runs on the devices ends by itself and takes its folder along. Asked again and again: a worker
            # may be just about to connect.
            transports.stop_all()
            while wait(futures, timeout=0.5).not_done:
                transports.stop_all()
            raise


def exit_code(benched: Benched) -> int:
    """3 where a result is wrong or a required budget broken, else 4 where a device failed, else 2 or 0."""
    broken = any(
        one.kept is False and one.budget.required for result in benched.results for one in result.budgets
    ) or any(result.memory and result.memory.limit and not result.memory.limit.survived for result in benched.results)
    codes = [failure.exit_code for failure in benched.failures]
    return 3 if broken or 3 in codes else max(codes, default=0)


def only_bundle(folder: Path) -> Path:
    """The bundle that is meant where none is named."""
    found = sorted(path.parent for path in folder.glob("*/manifest.json"))
    if len(found) != 1:
        there = f"{folder}/ has {', '.join(path.name for path in found)}" if found else f"{folder}/ has none"
        raise InputError(f"which bundle? {there}; name one, or make one with `edgekit build`")
    return found[0]


def file_name(result: RunResult) -> str:
    """What a result's file is called; whatever a device's name holds, it stays one plain name."""
    return f"{plain(result.bundle)}-{plain(result.device)}-{result.workload.format}.json"


def plain(name: str) -> str:
    """A name as part of a file's name."""
    return re.sub(r"[^\w.]+", "-", name).strip("-.")[:80]


def writable(out: Path) -> None:
    """Raise `InputError` unless files can be written in the folder `out`, which is made where it is missing."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise InputError(f"--out {out}: results cannot be written there: {error.strerror}") from None


def write(result: Record, path: Path) -> None:
    """Write a result's JSON, whole or not at all."""
    unfinished = path.with_name(path.name + ".part")
    try:
        unfinished.write_text(result.model_dump_json(indent=1) + "\n", encoding="utf-8")
        unfinished.replace(path)
    except OSError as error:
        unfinished.unlink(missing_ok=True)
        raise InputError(
            f"{path}: the result cannot be written: {error.strerror}; its raw samples are lost, make room and try again"
        ) from None
