"""Results as text for a terminal: at most 80 columns, read from records alone."""

import textwrap
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.errors import printable
from edgekit.records import Built, StageRow
from edgekit.results import Benched, BudgetCheck, Calibration, Doctor, Energy, RunResult, State

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
    lines = [_text(table)]
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
    lines = [_text(table, 80)] if benched.results else []
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
    yield (
        f"{result.device}: {result.facts.model}, {result.facts.os}; {result.runtime}, {result.runner} runner, "
        f"threads {result.workload.threads}"
        + (f" on cores {', '.join(map(str, result.cpus))}" if result.cpus else "")
        + f"; {result.bundle} {result.model}, {size(result.size_bytes)}"
    )
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
                f"{found.device}: the same model in {2 * found.pairs} processes, {found.pairs} pairs: paired medians "
                f"differ by {found.noise:.1%} (standard deviation). The smallest change that {found.pairs} pairs can "
                f"resolve here is {found.smallest_effect:.1%}.",
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


def _text(table: "Table", width: int = 200) -> str:
    """A rich table as plain text, as wide as it needs to be."""
    from rich.console import Console

    console = Console(width=width, color_system=None)
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
