"""Calibrate: how much a device's figures differ when nothing differs.

The same model runs in pairs of fresh processes, A B B A, and the noise is the spread of the pairs' log-ratios of
medians. A gate that is asked to see less than `smallest_effect` on this device would be guessing.

    medians 10.0 10.2 | 10.1 10.0 | ...   ->   ln(10.2/10.0), ln(10.1/10.0), ...   ->   noise = their deviation
"""

import math
import os
import re
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import stdev

from edgekit import bundle, progress
from edgekit.bench import check, conditions, deploy, figures, measure
from edgekit.bench.bench import only_bundle
from edgekit.errors import InputError
from edgekit.records import Device
from edgekit.results import Calibration

_BLOCK_S = 2.0


def calibrate(device: Device, bundle_path: Path | None, pairs: int) -> Calibration:
    """Run A/A pairs of the bundle's model at its longest length, once the device meets its preconditions, and keep
    what they show at `path(device.name)`."""
    check_path(device.name)
    chosen = bundle_path or only_bundle(Path("bundles"))
    link, workdir = measure.connect(device)
    with (
        bundle.opened(chosen) as (folder, manifest),
        link as transport,
        deploy.opened(transport, workdir) as desk,
    ):
        subject = check.subject(chosen, folder, manifest)
        facts = conditions.facts(transport, desk.folder)
        placed, _ = measure.place(device, transport, desk, subject, facts, measure.Wanted())
        length = subject.lengths[-1]
        inputs = placed.timed(length)
        load = placed.load(length, seconds=_BLOCK_S, warmup_s=0.5, repeats=10)
        conditions.wait_until_ready(device, transport, time.monotonic(), placed.cpus)
        medians: list[float] = []
        with progress.bar(f"{device.name}: {2 * pairs} processes", 2 * pairs) as done:
            for i in range(2 * pairs):
                medians.append(figures.latency(placed.run(inputs, load), length).p50_s)
                done(i + 1)
    noise = stdev(log_ratios(medians))
    found = Calibration(
        device=device.name, facts=facts, model_sha256=subject.sha256, format=subject.model.format, length=length,
        pairs=pairs, medians_s=tuple(medians), noise=noise, smallest_effect=smallest_effect(noise, pairs),
        at=datetime.now(UTC).isoformat(timespec="seconds"),
    )  # fmt: skip
    _keep(found, path(device.name))
    return found


def log_ratios(medians: Sequence[float]) -> list[float]:
    """ln(B/A) of each pair, where every second pair ran B first: A B, B A, A B, ...

    >>> [round(r, 3) for r in log_ratios([1.0, 1.1, 1.1, 1.0])]
    [0.095, 0.095]
    """
    pairs = zip(medians[::2], medians[1::2], strict=True)
    return [math.log(second / first) * (-1) ** i for i, (first, second) in enumerate(pairs)]


def smallest_effect(noise: float, pairs: int) -> float:
    """The relative change whose 95 % t interval over `pairs` pairs just excludes no change: exp(t s / sqrt(n)) - 1."""
    return math.expm1(figures.t_quantile(pairs - 1) * noise / math.sqrt(pairs))


def path(name: str) -> Path:
    """Where a device's calibration is kept: `$XDG_DATA_HOME/edgekit/calibration/NAME.json`."""
    home = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share")
    return home / "edgekit" / "calibration" / (re.sub(r"[^\w.]+", "-", name).strip("-.") + ".json")


def check_path(name: str) -> None:
    """Raise `InputError` where the calibration could not be kept: known before minutes are spent on it."""
    try:
        path(name).parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{path(name)}: the calibration cannot be written there: {error.strerror}") from None


def _keep(found: Calibration, where: Path) -> None:
    unfinished = where.with_name(where.name + ".part")
    try:
        unfinished.write_text(found.model_dump_json(indent=1) + "\n", encoding="utf-8")
        unfinished.replace(where)
    except OSError as error:
        raise InputError(f"{where}: the calibration cannot be written: {error.strerror}") from None
