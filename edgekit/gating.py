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
from edgekit.bundle import Manifest, ModelFile
from edgekit.errors import EdgekitError, InputError, NotGoodEnough
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
    a failure in the verdict, and does not spoil the others; one that cannot resolve the tolerance by its calibration
    is one of those. Raises `InputError` before any device is touched for bundles that cannot be compared.
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
            try:
                scored = evaluation.read(subject, wanted.base, old) if wanted.score else None
            except InputError as error:
                raise InputError(f"{error}; --no-score leaves the score out") from None
            sides[name] = Side(subject, check.reference(subject, threads=1), scored)
        tolerances = parse(Gate, old.recipe.get("gate", {}), f"{baseline}: manifest.json: recipe: gate")
        each_device = verdict.comparisons(len(lengths) or 1, wanted.energy, wanted.score)
        count = each_device * len(devices)

        def one(device: Device) -> tuple[SideBySide | None, tuple[Check, ...], Failure | None]:
            found = None
            try:
                calibrated = _calibration(device)
                spread = calibrated.noise if calibrated else None
                if spread is not None:
                    verdict.resolvable(tolerances.latency_s, spread, each_device, device.name)

                def settled(blocks: Sequence[Block]) -> bool:
                    return verdict.settled(blocks, tolerances, spread, count, device.budgets)

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
            edgekit=__version__, answer=verdict.overall(checks, failures), checks=checks, failures=failures,
            candidate=bundled(names[0], opened["candidate"][2]), baseline=bundled(names[1], old),
            left_out=_left_out(wanted, lengths, opened["candidate"][2], model),
            correction=verdict.correction(count), tolerances=tolerances,
            measured=tuple(found for found, _, _ in done if found),
            began=began.isoformat(timespec="seconds"), seconds=round(time.monotonic() - clock, 3),
        )  # fmt: skip


def run(
    candidate: Path, baseline: str, devices: Sequence[Device], wanted: Wanted, out: Path, history: str,
    recipe: Path | None, target: str | None, store: Path,
) -> Verdict:  # fmt: skip
    """`gate` for the command line: the baseline may be `git:REF`, the verdict is written to
    `out`/gate-NAME-FORMAT.json, and the history gets a line. Once there is a verdict, it is given, even where one of
    the two cannot be written: that is said on stderr."""
    if commits.is_commit(str(candidate)):
        raise InputError(f"gate: {candidate}: only the baseline may be a commit; build the candidate first")
    writable(out)
    histories.ready(history)
    with bundle.opened(candidate) as (_, manifest):
        target = target or manifest.target.name
    with ExitStack() as stack:
        try:
            path = stack.enter_context(commits.bundle_at(baseline, recipe, target, store))
        except NotGoodEnough as error:  # of the baseline's build: that says nothing of the candidate
            raise InputError(f"the baseline cannot be built: {error}") from None
        found = gate(candidate, path, devices, wanted, (str(candidate), baseline))
    entry = histories.entry(found)
    for keep in (
        lambda: write(found, out / f"gate-{plain(found.candidate.name)}-{entry.format or 'none'}.json"),
        lambda: histories.add(history, entry),
    ):
        try:
            keep()
        except InputError as error:
            progress.say(f"gate: {error}")
    return found


def accept(candidate: Path, baseline: str, history: str) -> Manifest:
    """Make the bundle at `candidate` the baseline at that path, and note it in the history."""
    histories.ready(history)
    path = Path(baseline)
    try:
        before = bundle.verify(path).digest
    except InputError:  # none there, or a spoilt one, which accept mends
        before = None
    manifest = bundle.accept(candidate, path)
    line = Entry(
        at=datetime.now(UTC).isoformat(timespec="seconds"), event="accept", bundle=manifest.name,
        digest=manifest.digest, baseline_digest=before, format=None, answer=None,
    )  # fmt: skip
    try:
        histories.add(history, line)
    except InputError as error:
        raise InputError(f"{baseline}: is now {candidate}, but the history does not say so: {error}") from None
    return manifest


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
    except (OSError, ValueError):
        raise InputError(f"{path}: is no calibration of this edgekit; calibrate again, or remove it") from None


def _left_out(
    wanted: Wanted, lengths: Sequence[int], candidate: Manifest, model: ModelFile
) -> tuple[str, ...]:  # fmt: skip
    """What the bundles have and nobody asked for."""
    others = sorted(one.format for one in candidate.models if one.format != model.format)
    there = {*model.lengths, *candidate.model(model.format).lengths}
    missing = ", ".join(str(length) for length in sorted(there - set(lengths)))
    return (
        *(() if wanted.score else ("score: --no-score",)),
        *(() if wanted.energy else ("energy_j: not asked for; --energy measures it",)),
        *(
            (f"latency_s at {missing} tokens: not asked for; without --length, at all of the baseline's",)
            * bool(missing)
        ),
        *(f"the {format} model: this is of {model.format}; --format {format} gates it" for format in others),
    )
