"""The verdict: what two bundles' pairs, and a device's budgets, say of a candidate.

A change for the worse counts when it exceeds the *floor*: the largest of the recipe's relative tolerance, its absolute
one, and the device's own calibrated noise. Of latency and memory, measured in pairs (`edgekit.paired`), and with the
interval of the change:

    floor < change, and 0 is excluded at the corrected level        REGRESSION
    change <= floor, and 5/3 of the floor is excluded at 99 %       PASS
    neither: the pairs do not tell                                  more of them, at last INCONCLUSIVE

So at a floor of 3 %, PASS says that the candidate is not 5 % slower, and not only that nothing was seen.

One gate makes several such comparisons, and looks at them again after each pair. A REGRESSION must exclude 0 at the
level 1 - 0.01 / comparisons (Bonferroni; early looks are stricter still) and exceed the floor as well: in
`benchmarks/gate_simulation.py` less than 1 % of the gates of equal bundles, over all looks, call one slower. What PASS
excludes is each figure's own risk and is not corrected. A score is measured once, on all examples there are: within its
floor it passes.
"""

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from statistics import NormalDist, median

from edgekit import paired
from edgekit.errors import InputError
from edgekit.records import Budget, Gate, MetricName, Tolerance
from edgekit.results import Answer, Block, BudgetCheck, Check, Energy, Failure, Interval, RunResult, SideBySide, Verdict

FIRST, MOST = 7, 15
"""Pairs before the first look, and at most."""
_ERROR = 0.01
_EACH = 0.99
_EXCLUDED = 5 / 3
"""What PASS excludes, in floors."""


def level(comparisons: int, pairs: int = MOST) -> float:
    """At which a REGRESSION must exclude 0, in one of so many comparisons, after so many pairs. Early looks are
    stricter, with the third power of their share of the pairs, in the manner of O'Brien and Fleming (1979); that this
    holds the error of all looks together is shown by simulation.

    >>> level(1), round(level(5), 4), round(level(5, pairs=7), 4)
    (0.99, 0.998, 0.9998)
    """
    return 1 - _ERROR / max(comparisons, 1) * (pairs / MOST) ** 3


def comparisons(lengths: int, energy: bool, score: bool) -> int:
    """How many figures with an interval one device gives: a latency a length, memory, and what else was asked for."""
    return lengths + 1 + energy + score


def correction(comparisons: int) -> str:
    """How the intervals allow for their number, in a sentence."""
    return (
        f"{comparisons} comparisons: a REGRESSION must exclude no change at {100 * level(comparisons):.2f} % "
        "confidence (Bonferroni), which holds the chance that equal bundles give one anywhere to about 1 %"
    )


def resolvable(tolerance: Tolerance, noise: float, comparisons: int, device: str) -> None:
    """Raise `InputError` where, by the device's calibrated `noise`, the most pairs cannot tell what PASS is to exclude
    from no change. An absolute tolerance is not looked at: what it is worth depends on the model."""
    seen = math.expm1(paired.half_width(noise, MOST, level(comparisons)))
    if tolerance.absolute == 0 and seen > _EXCLUDED * tolerance.relative:
        raise InputError(
            f"device {device}: latency_s is to be held to {100 * tolerance.relative:.1f} %, but by its calibration "
            f"{MOST} pairs resolve no less than {100 * seen:.1f} % there; find out what disturbs it (edgekit devices "
            "doctor), calibrate again when it is quiet (edgekit devices calibrate), or raise gate.latency_s in the "
            "baseline's recipe"
        )


def settled(
    blocks: Sequence[Block], gate: Gate, noise: float | None, comparisons: int, budgets: Sequence[Budget] = ()
) -> bool:
    """Whether the pairs so far decide each of their checks, and the device's latency budgets, or are as many as there
    may be."""
    pairs = len(blocks) // (2 * len({block.length for block in blocks} or {None}))
    if pairs < FIRST or pairs >= MOST:
        return pairs >= MOST
    answers: list[Answer] = [check.answer for check in in_pairs("", blocks, gate, noise, comparisons)]
    medians = _longest(blocks)
    for budget in budgets:
        if budget.metric == "latency_s" and budget.required:
            answers.append(_within("latency_s", budget.limit, paired.trimmed_mean(medians), _at_each(medians))[0])
    return "INCONCLUSIVE" not in answers


def judge(measured: SideBySide, gate: Gate, noise: float | None, comparisons: int) -> tuple[Check, ...]:
    """Every check that one device's measurement allows: changes first, then the device's budgets on the candidate.

    `noise` is the device's calibrated one, `None` where it was not calibrated. Raises `InputError` for results that
    cannot be compared: of unlike devices, workloads or runtimes, or without pairs.
    """
    _alike(measured)
    baseline, candidate = measured.baseline, measured.candidate
    device = candidate.device
    checks = [
        *in_pairs(device, measured.blocks, gate, noise, comparisons),
        _size(device, baseline, candidate, gate.size_bytes),
    ]
    if measured.score is not None:
        change = measured.score
        difference = change.candidate - change.baseline
        checks.append(
            _compared(
                device, "score", change.metric, None, change.baseline, change.candidate, difference,
                lambda at: _normal(difference, change.standard_error, at), level(comparisons),
                gate.score.relative * abs(change.baseline), gate.score.absolute, None,
            )
        )  # fmt: skip
    if baseline.energy is not None or candidate.energy is not None:
        checks.append(_energy(device, baseline.energy, candidate.energy, gate.energy_j, level(comparisons)))
    return (*checks, *(_budget(device, one, measured) for one in candidate.budgets))


def in_pairs(
    device: str, blocks: Sequence[Block], gate: Gate, noise: float | None, comparisons: int
) -> Generator[Check]:  # fmt: skip
    """The checks of figures that each block has: latency at each length, and peak memory at the longest."""
    lengths = sorted({block.length for block in blocks}, key=lambda length: length or 0)
    for length in lengths:
        of_length = [block for block in blocks if block.length == length]
        yield _paired(device, "latency_s", "s", length, of_length, gate.latency_s, noise, comparisons)
    longest = [block for block in blocks if block.length == lengths[-1]]
    yield _paired(device, "peak_rss_bytes", "bytes", None, longest, gate.peak_rss_bytes, None, comparisons)


def overall(checks: Sequence[Check], failures: Sequence[Failure]) -> Answer:
    """The one answer of all checks. A regression on one device stands, whatever the others did; without any check
    there is no PASS."""
    answers = {check.answer for check in checks}
    if "REGRESSION" in answers or any(failure.exit_code == 3 for failure in failures):
        return "REGRESSION"
    if failures or not checks:
        return "INFRA_ERROR"
    return "INCONCLUSIVE" if "INCONCLUSIVE" in answers else "PASS"


def exit_code(found: Verdict) -> int:
    """PASS 0, REGRESSION 3, INFRA_ERROR 4 (2 where trying again cannot help), INCONCLUSIVE 5."""
    codes: Mapping[Answer, int] = {"PASS": 0, "REGRESSION": 3, "INFRA_ERROR": 4, "INCONCLUSIVE": 5}
    if found.answer == "INFRA_ERROR" and found.failures and all(one.exit_code == 2 for one in found.failures):
        return 2
    return codes[found.answer]


def _alike(measured: SideBySide) -> None:
    """Raise `InputError` for what may not be compared."""
    a, b = measured.baseline, measured.candidate
    for what, one, other in (
        ("devices", (a.device, _fingerprint(a)), (b.device, _fingerprint(b))),
        ("workloads", a.workload, b.workload),
        ("runtimes", (a.runner, a.runtime, a.cpus), (b.runner, b.runtime, b.cpus)),
    ):
        if one != other:
            raise InputError(
                f"the results are of unlike {what}: {one} and {other}; measure both again with one `edgekit gate`"
            )
    lengths = {block.length for block in measured.blocks}
    asked = set(a.workload.lengths) or {None}
    if lengths != asked:
        raise InputError(
            f"{a.device}: pairs of length {sorted(map(str, lengths)) or 'none'}, asked for {sorted(map(str, asked))}: "
            "the result is not whole; measure again"
        )
    for length in lengths:
        if (count := sum(block.length == length for block in measured.blocks)) < 2 * FIRST:
            raise InputError(f"{a.device}: {count} blocks are no {FIRST} pairs; measure again")


def _fingerprint(result: RunResult) -> tuple[object, ...]:
    facts = result.facts
    return facts.model, facts.os, facts.abi, facts.cores, facts.ram_bytes


def _paired(
    device: str, metric: MetricName, unit: str, length: int | None, blocks: Sequence[Block], tolerance: Tolerance,
    noise: float | None, comparisons: int,
) -> Check:  # fmt: skip
    """The trimmed mean of the pairs' log-ratios against the floor, as relative changes."""
    values: dict[str, list[float]] = {"baseline": [], "candidate": []}
    for block in blocks:
        values[block.side].append(_figure(metric, block))
    ratios = paired.log_ratios(blocks, lambda block: _figure(metric, block))

    def interval(at: float) -> Interval:
        found = paired.interval(ratios, at)
        return Interval(low=math.expm1(found.low), high=math.expm1(found.high), level=at)

    before, after = median(values["baseline"]), median(values["candidate"])
    return _compared(
        device, metric, unit, length, before, after, math.expm1(paired.trimmed_mean(ratios)),
        interval, level(comparisons, len(ratios)), tolerance.relative, tolerance.absolute / before,
        noise and math.expm1(noise), len(ratios),
    )  # fmt: skip


def _figure(metric: MetricName, block: Block) -> float:
    return block.p50_s if metric == "latency_s" else float(block.peak_rss_bytes)


def _size(device: str, baseline: RunResult, candidate: RunResult, tolerance: Tolerance) -> Check:
    """The model files' sizes, which are exact."""
    before, after = baseline.size_bytes, candidate.size_bytes
    return _compared(
        device, "size_bytes", "bytes", None, before, after, after / before - 1, None, 1, tolerance.relative,
        tolerance.absolute / before, None,
    )  # fmt: skip


def _energy(
    device: str, baseline: Energy | None, candidate: Energy | None, tolerance: Tolerance, level: float
) -> Check:
    """Gross joules per inference; the relative errors of the two add up as squares (first-order propagation)."""
    before, after = _joules(baseline), _joules(candidate)
    if before is None or after is None:
        missing = [
            f"{name}: {side.state}, {side.reason or 'but not as joules above 0'}" if side else f"{name}: not measured"
            for name, side, figures in (("baseline", baseline, before), ("candidate", candidate, after))
            if figures is None
        ]
        return Check(
            device=device, metric="energy_j", unit="J", rule="change", answer="INCONCLUSIVE",
            baseline=before and before[0], candidate=after and after[0],
            reason=f"energy was asked for and cannot be compared; {'; '.join(missing)}",
        )  # fmt: skip
    change = after[0] / before[0] - 1
    error = (1 + change) * math.hypot(before[1] / before[0], after[1] / after[0])
    return _compared(
        device, "energy_j", "J", None, before[0], after[0], change,
        lambda at: _normal(change, error, at), level, tolerance.relative, tolerance.absolute / before[0], None,
    )  # fmt: skip


def _joules(energy: Energy | None) -> tuple[float, float] | None:
    """Gross joules and their standard error, read from the 95 % interval; `None` where they are not above 0, too."""
    if energy is None or energy.gross_j is None or energy.gross_interval is None or not energy.gross_j > 0:
        return None
    return energy.gross_j, (energy.gross_interval.high - energy.gross_interval.low) / 2 / NormalDist().inv_cdf(0.975)


def _normal(middle: float, error: float, level: float) -> Interval:
    half = NormalDist().inv_cdf((1 + level) / 2) * error
    return Interval(low=middle - half, high=middle + half, level=level)


def _compared(
    device: str, metric: MetricName, unit: str, length: int | None, before: float, after: float, change: float,
    interval: Callable[[float], Interval] | None, level: float, relative: float, absolute: float, noise: float | None,
    pairs: int | None = None,
) -> Check:  # fmt: skip
    """The rule above. `interval` gives that of `change` at a level, `None` where it is exact; the floor is the largest
    of `relative`, `absolute` and `noise`, all in the unit of `change`."""
    floors = {"relative tolerance": relative, "absolute tolerance": absolute, "noise of the device": noise or 0.0}
    source, floor = max(floors.items(), key=lambda one: one[1])
    sign = -1 if metric == "score" else 1

    def worse(at: float) -> tuple[float, float]:
        """From the best to the worst that it can be."""
        found = interval(at) if interval else Interval(low=change, high=change)
        low, high = sorted((sign * found.low, sign * found.high))
        return low, high

    answer: Answer = "INCONCLUSIVE"
    if sign * change > floor and worse(level)[0] > 0:
        answer = "REGRESSION"
    elif sign * change <= floor and (metric in ("score", "size_bytes") or worse(_EACH)[1] <= _EXCLUDED * floor):
        answer = "PASS"
    shown = interval(_EACH) if interval else None
    return Check(
        device=device, metric=metric, length=length, unit=unit, rule="change", answer=answer, baseline=before,
        candidate=after, change=change, interval=shown, floor=floor, floor_of=source, pairs=pairs,
        reason=_reason(answer, metric, change, shown, level, floor, source, pairs),
    )  # fmt: skip


def _reason(
    answer: Answer, metric: MetricName, change: float, interval: Interval | None, level: float, floor: float,
    source: str, pairs: int | None,
) -> str:  # fmt: skip
    """The figures in a sentence."""

    def write(value: float) -> str:
        return f"{value:+.4f}" if metric == "score" else f"{100 * value:+.1f} %"

    said = write(change) + (f" ({write(interval.low)} to {write(interval.high)})" if interval else "")
    said += f" in {pairs} pairs" if pairs else ""
    limit = f"the floor of {write(-floor if metric == 'score' else floor)} ({source})"
    match answer:
        case "REGRESSION":
            return f"{said}: worse than {limit}" + (
                f", and not by chance at {100 * level:.5g} % confidence" if interval else ""
            )
        case "PASS":
            return f"{said}: within {limit}"
        case _ if metric == "score":
            return f"{said}: beyond {limit}, but the examples are too few to exclude chance"
        case _:
            return f"{said}: too uncertain to tell from {limit}; quiet the device and try again"


def _budget(device: str, one: BudgetCheck, measured: SideBySide) -> Check:
    """An absolute limit. Of what has an interval its upper bound must keep it, of memory every process."""
    budget, candidate = one.budget, measured.candidate
    observed, interval, longest = one.observed, None, candidate.latency[-1].length
    if budget.metric == "latency_s":
        medians = _longest(measured.blocks)
        observed, interval = paired.trimmed_mean(medians), _at_each(medians)
    elif budget.metric == "peak_rss_bytes":
        peaks = [float(b.peak_rss_bytes) for b in measured.blocks if b.side == "candidate"]
        observed = max([*peaks, observed or 0.0])
    elif budget.metric == "energy_j" and candidate.energy is not None:
        interval = candidate.energy.gross_interval
    units = {"latency_s": "s", "energy_j": "J", "score": candidate.score.metric if candidate.score else "score"}
    answer, reason = _within(budget.metric, budget.limit, observed, interval)
    if observed is None:
        reason += _why(budget.metric, candidate)
    if not budget.required and answer != "PASS":
        answer, reason = "PASS", f"{reason}; the budget is not required"
    return Check(
        device=device, metric=budget.metric, length=longest if budget.metric == "latency_s" else None,
        unit=units.get(budget.metric, "bytes"), rule="budget", answer=answer, candidate=observed, interval=interval,
        limit=budget.limit, reason=reason,
    )  # fmt: skip


def _why(metric: MetricName, candidate: RunResult) -> str:
    """Why a budgeted metric has no figure, and what to do."""
    if metric == "energy_j":
        return (
            f": {candidate.energy.state}, {candidate.energy.reason}" if candidate.energy else "; --energy measures it"
        )
    return "; it was left out with --no-score" if metric == "score" else ""


def _longest(blocks: Sequence[Block]) -> list[float]:
    """The candidate's medians at the longest length."""
    longest = max((block.length or 0 for block in blocks), default=0)
    return [block.p50_s for block in blocks if block.side == "candidate" and (block.length or 0) == longest]


def _at_each(medians: Sequence[float]) -> Interval:
    return paired.interval(medians, _EACH)


def _within(
    metric: MetricName, limit: float, observed: float | None, interval: Interval | None
) -> tuple[Answer, str]:  # fmt: skip
    if observed is None:
        return "REGRESSION", "not measured, and a budget that was not measured is not kept"
    if metric == "score":
        kept = observed >= limit
        return ("PASS" if kept else "REGRESSION"), f"{observed:.4f}, {'not ' if kept else ''}below {limit:.4f}"
    upper = interval.high if interval is not None else observed
    if upper <= limit:
        return "PASS", f"{100 * (1 - upper / limit):.1f} % below the limit" + (
            " at its upper bound" if interval else ""
        )
    if observed <= limit:
        return "INCONCLUSIVE", f"{100 * (1 - observed / limit):.1f} % below the limit, but its upper bound is above it"
    return "REGRESSION", f"{100 * (observed / limit - 1):.1f} % above the limit"
