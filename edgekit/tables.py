"""Results as text for a terminal: at most 80 columns, read from records alone."""

import os
import re
import sys
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.errors import printable
from edgekit.records import Built, StageRow
from edgekit.results import Benched, BudgetCheck, Calibration, Check, Doctor, Energy, RunResult, State, Verdict

if TYPE_CHECKING:
    from rich.table import Table


def line(row: StageRow) -> str:
    """One line on a stage that is done."""
    how = "unchanged" if row.cached else f"{row.seconds:.0f} s"
    score = f", {row.metrics.metric} {row.score:.4f}" if row.metrics else ""
    return f"{row.name}: {how}, {size(row.bytes)}{score}; {row.changed}"


def size(count: float) -> str:
    """Bytes in the unit that reads best, in powers of ten.

    >>> size(740), size(22_713_216)
    ('740 B', '22.7 MB')
    """
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count:.0f} B"


def build(built: Built) -> str:
    """The table of a build: a row a stage with its figures, then what each changed."""
    from rich.table import Table

    scored = next((row.metrics for row in built.stages if row.metrics), None)
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("stage")
    for name in ("params", "size", *([scored.metric] if scored else [])):
        table.add_column(name, justify="right")
    for part in scored.parts if scored else ():
        table.add_column(part.name, justify="right")
    table.add_column("ms", justify="right")
    table.add_column("s", justify="right")
    for row in built.stages:
        parts = {part.name: part.value for part in row.metrics.parts} if row.metrics else {}
        table.add_row(
            row.name,
            f"{row.parameters / 1e6:.2f} M" if row.parameters is not None else "",
            size(row.bytes),
            *([_figure(row.score)] if scored else []),
            *(_figure(parts.get(part.name)) for part in (scored.parts if scored else ())),
            f"{row.latency_s * 1e3:.2f}" if row.latency_s is not None else "",
            "-" if row.cached else f"{row.seconds:.0f}",
        )
    lines = [drawn(table)]
    if scored:
        supports = ", ".join(f"{part.name} {part.support}" for part in scored.parts if part.support is not None)
        lines.append(f"Scored on {scored.examples} examples" + (f" with true cases: {supports}." if supports else "."))
    lines.append("What changed")
    for row in built.stages:
        lines.append(f"  {row.name}: {row.changed}")
        lines += [
            f"    {model.format}: {model.times_smaller:.1f} times smaller and {model.times_faster:.1f} times as fast "
            "as the teacher's ONNX"
            for model in row.against_teacher
        ]
        lines += [f"    {note}" for note in (*row.notes, *(f"refused: {why}" for why in row.refused))]
    if built.unchanged:
        lines.append("Nothing to do: everything was built before and nothing has changed.")
    if built.bundle:
        lines.append(f"Bundle: {built.bundle} and {built.zip}")
    return "\n".join(lines)


def bench(benched: Benched, out: Path) -> str:
    """The table of a bench: a row a device and length, then what else each device showed."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("device", overflow="fold", max_width=18)
    for name in ("tokens", "p50 ms", "95 % interval", "p90", "p99", "mean", "a second", "load ms"):
        table.add_column(name, justify="right")
    for result in benched.results:
        for row in result.latency:
            table.add_row(
                result.device,
                "" if row.length is None else str(row.length),
                _ms(row.p50_s),
                f"{_ms(row.p50_interval.low)}-{_ms(row.p50_interval.high)}",
                *(_ms(s) for s in (row.p90_s, row.p99_s, row.mean_s)),
                f"{row.per_second:.0f}" if row.per_second >= 10 else f"{row.per_second:.2f}",
                f"{row.load_s * 1e3:.0f}",
            )
    lines = [drawn(table, 80)] if benched.results else []
    for result in benched.results:
        lines += ["", *_wrapped(_of_device(result))]
    for one in benched.failures:
        lines += ["", *_wrapped([printable(f"{one.device}: FAILED: {one.message}")])]
    if benched.results:
        lines += ["", f"Results with raw samples: {out}"]
    return "\n".join(lines).removeprefix("\n")


def _of_device(result: RunResult) -> Iterator[str]:
    """What one device showed beside latency."""
    memory, first = result.memory, result.latency[-1]
    yield f"{result.device}: {measured_with(result)}; {result.bundle} {result.model}, {size(result.size_bytes)}"
    for check in result.checks:
        yield (
            f"  right: {check.output} as on this host; cosine {check.cosine_min:.6f} at worst, largest difference "
            f"{check.max_abs_diff:.2g}"
        ) + (f", {check.flips} of {check.decisions} decisions flipped" if check.decisions else "")
    if result.score:
        interval = result.score_interval
        yield f"  score: {result.score.metric} {result.score.value:.4f}" + (
            f" ({interval.low:.4f} to {interval.high:.4f}) on {result.score.examples} examples" if interval else ""
        )
    cold = (("library", first.open_s), ("load", first.load_s), ("first run", first.first_run_s))
    yield f"  cold start: {', '.join(f'{what} {_ms(s)} ms' for what, s in cold)}" + (
        f"; warm-up {len(first.warmup_s)} runs, from {_ms(first.warmup_s[0])} to {_ms(first.warmup_s[-1])} ms"
        if first.warmup_s
        else ""
    )
    if memory:
        floor = (
            f" = runtime floor {size(memory.floor_bytes)} + model {size(memory.model_bytes)}"
            if memory.floor_bytes is not None and memory.model_bytes is not None
            else ""
        )
        last = memory.phases[-1]
        yield (
            f"  memory: peak {size(memory.peak_rss_bytes)} at {memory.peak_phase.replace('_', ' ')}{floor}; at the end "
            f"anonymous {size(last.anon_bytes)}, file-backed {size(last.file_bytes + last.shmem_bytes)}"
        )
        peaks = ", ".join(f"{phase.name.replace('_', ' ')} {size(phase.hwm_bytes)}" for phase in memory.phases)
        yield f"  memory: peak by phase: {peaks}"
        if memory.python_peak_rss_bytes is not None:
            yield f"  memory: the same in a Python process: peak {size(memory.python_peak_rss_bytes)}"
        if limit := memory.limit:
            verdict = "survived" if limit.survived else f"DID NOT SURVIVE: {limit.said}"
            yield f"  memory: under a limit of {size(limit.limit_bytes)} ({limit.kind}): {verdict}"
    if energy := result.energy:
        yield f"  energy: {_energy(energy)}"
    if result.sustained:
        minutes = ", ".join(_ms(s) for s in result.sustained.p50_s_by_minute)
        yield (
            f"  sustained {result.sustained.seconds:.0f} s: p50 by minute {minutes} ms; last over first "
            f"{result.sustained.last_over_first:.3f}"
        )
    for check in result.budgets:
        yield f"  budget {_budget(check)}"
    if result.unverified:
        yield f"  unverified: {result.unverified}"
    for doubt in result.doubts:
        yield f"  doubt: {doubt}"


def _energy(energy: Energy) -> str:
    if energy.state != "measured":
        return f"{energy.state}: {energy.reason}"
    parts = [
        f"{name} {value * 1e3:.3g} mJ ({interval.low * 1e3:.3g} to {interval.high * 1e3:.3g})"
        for name, value, interval in (
            ("gross", energy.gross_j, energy.gross_interval),
            ("net", energy.net_j, energy.net_interval),
        )
        if value is not None and interval is not None
    ]
    return f"{', '.join(parts)} an inference, from {energy.source}"


def _budget(check: BudgetCheck) -> str:
    """One budget with its unit."""
    budget = check.budget
    shown = {"size_bytes": size, "peak_rss_bytes": size, "latency_s": _milliseconds, "energy_j": _millijoules}
    write = shown.get(budget.metric, lambda value: f"{value:.4f}")
    sign = ">=" if budget.metric == "score" else "<="
    if check.observed is None or check.headroom is None:
        return f"{budget.metric} {sign} {write(budget.limit)}: not measured"
    verdict = f"kept, {write(check.headroom)} left" if check.kept else f"BROKEN by {write(-check.headroom)}"
    return f"{budget.metric} {sign} {write(budget.limit)}: {write(check.observed)}, {verdict}"


def _milliseconds(seconds: float) -> str:
    return f"{_ms(seconds)} ms"


def _millijoules(joules: float) -> str:
    return f"{joules * 1e3:.3g} mJ"


def _ms(seconds: float) -> str:
    """Milliseconds with three digits that count."""
    value = seconds * 1e3
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def calibration(found: Calibration, path: Path) -> str:
    """What an A/A calibration showed."""
    return "\n".join(
        _wrapped(
            [
                f"{found.device}: the same model beside itself in {found.pairs} pairs: their medians differ by "
                f"{100 * found.noise:.1f} % (deviation, outliers winsorized). The smallest change that so many pairs "
                f"resolve here is {100 * found.smallest_effect:.1f} %.",
                f"Kept in {path}",
            ]
        )
    )


def _wrapped(lines: Iterable[str], width: int = 80) -> list[str]:
    """Long lines broken at spaces, what follows indented by two more."""
    return [
        part
        for line in lines
        for part in textwrap.wrap(
            line, width, break_on_hyphens=False, break_long_words=False, drop_whitespace=True,
            subsequent_indent=" " * (len(line) - len(line.lstrip()) + 2),
        )
    ]  # fmt: skip


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def drawn(table: "Table", width: int = 200) -> str:
    """A rich table as plain text, as wide as it needs to be."""
    from rich.console import Console

    console = Console(width=width, color_system=None, markup=False, emoji=False)  # names are no `[red]` and no `:x:`
    with console.capture() as captured:
        console.print(table)
    return "\n".join(line.rstrip() for line in captured.get().splitlines())


def devices(states: Sequence[State]) -> str:
    """The known devices: a row each, and below it what is missing to use it."""
    width = max((len(state.name) for state in states), default=0)
    lines: list[str] = []
    for state in states:
        about = " ".join(part for part in (state.description, f"({state.link})" if state.link else "") if part)
        lines.append(f"{printable(state.name):<{min(width, 24)}}  {state.state:<13}  {printable(about)}".rstrip())
        lines += [f"    missing: {printable(one)}" for one in state.missing]
    return "\n".join(_wrapped(lines))


def doctor(found: Doctor) -> str:
    """What the doctor found: a line each with its verdict, remedies below."""
    lines: list[str] = []
    for finding in found.findings:
        lines.append(f"{finding.verdict:<7} {finding.what}: {printable(finding.found)}")
        lines += [f"          do: {printable(finding.remedy)}"] if finding.remedy else []
    bad = sum(finding.verdict == "bad" for finding in found.findings)
    lines.append(f"{found.device}: ready to bench" if found.good else f"{found.device}: {bad} to mend before a bench")
    return "\n".join(_wrapped(lines))


def verdict(found: Verdict) -> str:
    """What the gate says: the answer, a table a device, why a check is no PASS, and what speaks against it all."""
    candidate, baseline, devices = found.candidate, found.baseline, devices_of(found)
    head = f"{found.answer}: {candidate.name} ({candidate.source}) against {baseline.name} ({baseline.source})"
    text = _wrapped([printable(head + (f" on {', '.join(devices)}" if devices else ""))])
    for device in devices:
        text += ["", *_wrapped([printable(_measured_on(device, found))])]
        checks = [check for check in found.checks if check.device == device]
        text += _changes([check for check in checks if check.rule == "change"])
        lines = [
            f"{check.answer} {label(check)}: {_observed(check)}{check.reason}"
            for check in checks
            if check.rule == "budget" or check.answer != "PASS"
        ]
        lines += [f"FAILED: {one.message}" for one in found.failures if one.device == device]
        text += _wrapped(f"  {printable(line)}" for line in lines)
    lines = [*(f"left out: {one}" for one in found.left_out), found.correction]
    lines += [f"doubt, {one}" for one in doubts(found)]
    return "\n".join([*text, "", *_wrapped(map(printable, lines))]).rstrip("\n")


def devices_of(found: Verdict) -> tuple[str, ...]:
    """The devices of a verdict, those that gave nothing too, in order of their names."""
    measured = (pair.candidate.device for pair in found.measured)
    judged, failed = (check.device for check in found.checks), (one.device for one in found.failures)
    return tuple(sorted({*measured, *judged, *failed}))


def _measured_on(device: str, found: Verdict) -> str:
    """What a device is, and how often it was asked."""
    pairs = sorted({check.pairs for check in found.checks if check.device == device and check.pairs})
    said = f"; {' to '.join(str(pairs[at]) for at in sorted({0, len(pairs) - 1}))} pairs" if pairs else ""
    side = next((pair.candidate for pair in found.measured if pair.candidate.device == device), None)
    return f"{device}: {measured_with(side)}{said}" if side else f"{device}{said}"


def measured_with(result: RunResult) -> str:
    """The device and runtime of a result, in half a line."""
    return (
        f"{result.facts.model}, {result.facts.os}; {result.runtime}, {result.runner} runner, "
        f"threads {result.workload.threads}"
        + (f" on cores {', '.join(map(str, result.cpus))}" if result.cpus else "")
    )  # fmt: skip


def _changes(checks: Sequence[Check]) -> list[str]:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("check", overflow="fold")
    for name in ("baseline", "candidate", "change", "interval", "floor"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("answer", no_wrap=True)
    for check in checks:
        table.add_row(*(printable(cell) for cell in (label(check), *cells(check), check.answer)))
    return drawn(table, 80).splitlines() if checks else []


def _observed(check: Check) -> str:
    """A budget's figures; those of a change stand in its row."""
    seen = check.rule == "budget" and check.candidate is not None
    return f"{figure(check.candidate, check.unit)} of {figure(check.limit, check.unit)}; " if seen else ""


def label(check: Check) -> str:
    """What a check is of: `latency_s 128`, `score macro_f1`, `budget size_bytes`."""
    detail = check.unit if check.metric == "score" else check.length
    return f"{'budget ' if check.rule == 'budget' else ''}{check.metric}{f' {detail}' if detail else ''}"


def cells(check: Check) -> tuple[str, str, str, str, str]:
    """Baseline, candidate, change, its interval and floor as text (of a budget the figure's interval, and the limit);
    `-` is not measured.

    >>> cells(Check(device="d", metric="latency_s", unit="s", rule="change", answer="PASS", reason="", candidate=0.01))
    ('-', '10.0 ms', '-', '-', '-')
    """
    budget, score = check.rule == "budget", check.metric == "score"

    def change(value: float, unit: bool = True) -> str:
        return f"{value:+.3f}" if score else f"{value * 100:+.1f}{' %' if unit else ''}"

    interval = "-"
    if check.interval and budget:
        interval = f"{figure(check.interval.low, check.unit)} to {figure(check.interval.high, check.unit)}"
    elif check.interval:
        interval = f"{change(check.interval.low, False)} to {change(check.interval.high)}"
    worst = check.limit if budget else check.floor
    return (
        figure(check.baseline, check.unit),
        figure(check.candidate, check.unit),
        "-" if check.change is None else change(check.change),
        interval,
        "-" if worst is None else figure(worst, check.unit) if budget else change(worst).removeprefix("+"),
    )


def figure(value: float | None, unit: str) -> str:
    """A figure of a check in the unit that reads best; `-` is not measured.

    >>> figure(0.00712, "s"), figure(8_764_928, "bytes"), figure(0.0123, "J"), figure(0.5178, "macro_f1")
    ('7.12 ms', '8.76 MB', '12.3 mJ', '0.5178')
    """
    if value is None:
        return "-"
    if unit == "bytes":
        scale, name = next(((scale, name) for scale, name in ((1e9, "GB"), (1e6, "MB")) if value >= scale), (1e3, "kB"))
        return f"{value / scale:.2f} {name}"
    shown = {"s": _milliseconds, "J": _millijoules}
    return shown[unit](value) if unit in shown else f"{value:.4f}"


def doubts(found: Verdict) -> tuple[str, ...]:
    """What speaks against a verdict's figures, once each, with whose they are: `pixel-8, candidate: throttled`."""
    whose: dict[tuple[str, str], list[str]] = {}
    sides = [side for pair in found.measured for side in (("baseline", pair.baseline), ("candidate", pair.candidate))]
    for side, result in sides:
        for doubt in dict.fromkeys(result.doubts):
            whose.setdefault((result.device, doubt), []).append(side)
    return tuple(f"{device}, {' and '.join(of)}: {doubt}" for (device, doubt), of in whose.items())


_COLOURS = {"PASS": 32, "REGRESSION": 31, "FAILED": 31, "INFRA_ERROR": 35, "INCONCLUSIVE": 33}


def coloured(text: str) -> str:
    """`text` with its answers in colour where stdout is a terminal that shows any, else as it is.

    `NO_COLOR` (no-color.org) and `TERM=dumb` say that it does not.
    """
    if not sys.stdout.isatty() or os.environ.get("NO_COLOR") or os.environ.get("TERM") in ("dumb", None, ""):
        return text
    return re.sub(rf"\b({'|'.join(_COLOURS)})\b", lambda one: f"\x1b[1;{_COLOURS[one[1]]}m{one[1]}\x1b[0m", text)
