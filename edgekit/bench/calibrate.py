"""Calibrate: how much a device's figures differ when nothing differs.

A gate of a bundle against itself: pairs of fresh processes, A B B A, and the noise is the spread of the pairs'
log-ratios of medians, as `edgekit.paired` measures it. A gate that is asked to see less than `smallest_effect` on this
device would be guessing.

    medians 10.0 10.2 | 10.1 10.0 | ...   ->   ln(10.2/10.0), ln(10.0/10.1), ...   ->   noise = their deviation
"""

import math
import os
import re
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from edgekit import bundle, paired
from edgekit.bench import check, conditions, deploy
from edgekit.bench.bench import only_bundle
from edgekit.bench.placed import Placed, connect, place
from edgekit.bench.sidebyside import Name, in_turns
from edgekit.errors import InputError
from edgekit.records import Device
from edgekit.results import Calibration


def calibrate(device: Device, bundle_path: Path | None, pairs: int) -> Calibration:
    """Run A/A pairs of the bundle's model at its longest length, once the device meets its preconditions, and keep
    what they show at `path(device.name)`."""
    check_path(device.name)
    chosen = bundle_path or only_bundle(Path("bundles"))
    link, workdir = connect(device)
    with (
        bundle.opened(chosen) as (folder, manifest),
        link as transport,
        deploy.opened(transport, workdir) as desk,
    ):
        subject = check.subject(chosen, folder, manifest)
        facts = conditions.facts(transport, desk.folder)
        placed = place(device, transport, desk, subject, facts)
        length = subject.lengths[-1]
        sides: Mapping[Name, Placed] = {"baseline": placed, "candidate": placed}
        conditions.wait_until_ready(device, transport, time.monotonic(), placed.cpus)
        blocks, _ = in_turns(sides, (length,), lambda blocks: len(blocks) >= 2 * pairs)
    noise = paired.deviation(paired.log_ratios(blocks))
    found = Calibration(
        device=device.name, facts=facts, model_sha256=subject.sha256, format=subject.model.format, length=length,
        pairs=pairs, medians_s=tuple(block.p50_s for block in blocks), noise=noise,
        smallest_effect=math.expm1(paired.half_width(noise, pairs, 0.95)),
        at=datetime.now(UTC).isoformat(timespec="seconds"),
    )  # fmt: skip
    _keep(found, path(device.name))
    return found


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
