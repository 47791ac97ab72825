"""`edgekit gate`: two bundles measured in turns on each device, and judged.

It stands above bench and gate, which do not know each other: the bench measures pair by pair, and after each pair the
gate says whether they are enough.
"""

import time
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

from edgekit import __version__, bundle, commits, progress
from edgekit.bench import calibrate, check, evaluation
from edgekit.bench.bench import distinct, each, plain, writable, write
from edgekit.bench.measure import Wanted
from edgekit.bench.sidebyside import Name, Side, side_by_side
from edgekit.bundle import Manifest
from edgekit.errors import EdgekitError, InputError
from edgekit.gate import history as histories
from edgekit.gate import verdict
from edgekit.gate.report import bundled
from edgekit.records import Device, Gate, parse
from edgekit.results import Block, Calibration, Check, Entry, Failure, SideBySide, Verdict


def gate(
    candidate: Path, baseline: Path, devices: Sequence[Device], wanted: Wanted,
    sources: tuple[str, str] | None = None,
) -> Verdict:  # fmt: skip
    """What the bundle at `candidate` is worth beside the one at `baseline`, on each device. `sources` are their names
    for people, where the paths are not.

    The tolerances are those of the baseline's recipe, the budgets those of the device's record. A device that fails is
    a failure in the verdict, and does not spoil the others. Raises `InputError` before any device is touched for
    bundles that cannot be compared, and for a tolerance that a device cannot resolve by its calibration.
    """
    began, clock = datetime.now(UTC), time.monotonic()
    distinct(devices)
    names = sources or (str(candidate), str(baseline))
    with ExitStack() as stack:
        opened: dict[Name, tuple[Path, Path, Manifest]] = {
            "baseline": (baseline, *stack.enter_context(bundle.opened(baseline))),
            "candidate": (candidate, *stack.enter_context(bundle.opened(candidate))),
        }
        old = opened["baseline"][2]
        _same_task(old, opened["candidate"][2], *names)
        model = old.model(wanted.format)
        lengths = wanted.lengths or model.lengths
        sides: dict[Name, Side] = {}
        for name, of in opened.items():
            try:
                subject = check.subject(*of, model.format, lengths)
            except InputError as error:
                raise InputError(f"the {name} cannot do what is compared: {error}") from None
            scored = evaluation.read(subject, wanted.base, old) if wanted.score else None
            sides[name] = Side(subject, check.reference(subject, threads=1), scored)
        tolerances = parse(Gate, old.recipe.get("gate", {}), f"{baseline}: manifest.json: recipe: gate")
        count = verdict.comparisons(len(lengths) or 1, wanted.energy, wanted.score) * len(devices)
        noise = {device.name: _calibration(device) for device in devices}
        for device in devices:
            if calibrated := noise[device.name]:
                verdict.resolvable(tolerances.latency_s, calibrated.noise, count, device.name)

        def one(device: Device) -> tuple[SideBySide | None, tuple[Check, ...], Failure | None]:
            calibrated = noise[device.name]
            spread = calibrated.noise if calibrated else None

            def settled(blocks: Sequence[Block]) -> bool:
                return verdict.settled(blocks, tolerances, spread, count)

            found = None
            try:
                found = side_by_side(device, sides, wanted, settled)
                if calibrated and calibrated.facts.model != found.candidate.facts.model:
                    raise InputError(
                        f"device {device.name}: it is a {found.candidate.facts.model} and was calibrated as a "
                        f"{calibrated.facts.model}; calibrate it again: edgekit devices calibrate {device.name}"
                    )
                return found, verdict.judge(found, tolerances, spread, count), None
            except EdgekitError as error:
                progress.say(f"{device.name}: failed: {error}")
                return found, (), Failure(device=device.name, message=str(error), exit_code=error.exit_code)

        done = each(devices, one)
        checks = tuple(check for _, found, _ in done for check in found)
        failures = tuple(failure for _, _, failure in done if failure)
        return Verdict(
            edgekit=__version__, answer=verdict.overall(checks, failures),
            candidate=bundled(names[0], opened["candidate"][2]), baseline=bundled(names[1], old), checks=checks,
            left_out=_left_out(wanted), correction=verdict.correction(count), tolerances=tolerances,
            measured=tuple(found for found, _, _ in done if found), failures=failures,
            began=began.isoformat(timespec="seconds"), seconds=round(time.monotonic() - clock, 3),
        )  # fmt: skip


def run(
    candidate: Path, baseline: str, devices: Sequence[Device], wanted: Wanted, out: Path, history: str,
    recipe: Path | None, store: Path,
) -> Verdict:  # fmt: skip
    """`gate` for the command line: the baseline may be `git:REF`, the verdict is written to `out`/gate-NAME.json, and
    the history gets a line."""
    writable(out)
    histories.ready(history)
    with bundle.opened(candidate) as (_, manifest):
        target = manifest.target.name
    with commits.bundle_at(baseline, recipe, target, store) as path:
        found = gate(candidate, path, devices, wanted, (str(candidate), baseline))
    write(found, out / f"gate-{plain(found.candidate.name)}.json")
    histories.add(history, histories.entry(found))
    return found


def accept(candidate: Path, baseline: str, history: str) -> Manifest:
    """Make the bundle at `candidate` the baseline at that path, and note it in the history."""
    histories.ready(history)
    path = Path(baseline)
    before = bundle.verify(path).digest if path.exists() else None
    manifest = bundle.accept(candidate, path)
    histories.add(
        history,
        Entry(
            at=datetime.now(UTC).isoformat(timespec="seconds"), event="accept", bundle=manifest.name,
            digest=manifest.digest, baseline_digest=before, format=None, answer=None,
        ),
    )  # fmt: skip
    return manifest


def exit_code(found: Verdict) -> int:
    """0 PASS, 3 REGRESSION, 4 or 2 INFRA_ERROR, 5 INCONCLUSIVE."""
    return verdict.exit_code(found)


def _same_task(old: Manifest, new: Manifest, candidate: str, baseline: str) -> None:
    """Raise `InputError` for two bundles that do different work."""
    for what, a, b in (
        ("kind", old.kind, new.kind),
        ("task", old.task.name, new.task.name),
        ("labels", old.labels, new.labels),
    ):
        if a != b:
            raise InputError(
                f"gate: {candidate} and {baseline} do different work, and comparing them says nothing: {what} {b} and "
                f"{a}; name a baseline of the same task"
            )


def _calibration(device: Device) -> Calibration | None:
    """What `edgekit devices calibrate` kept of this device, if anything."""
    path = calibrate.path(device.name)
    if not path.is_file():
        return None
    try:
        return Calibration.model_validate_json(path.read_bytes())
    except ValueError:
        raise InputError(f"{path}: is no calibration of this edgekit; calibrate again, or remove it") from None


def _left_out(wanted: Wanted) -> tuple[str, ...]:
    """The metrics that nobody asked for."""
    return (
        *(() if wanted.score else ("score: --no-score",)),
        *(() if wanted.energy else ("energy_j: not asked for; --energy measures it",)),
    )
