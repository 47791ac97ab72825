"""Results as text for a terminal: at most 80 columns, read from records alone."""

from typing import TYPE_CHECKING

from edgekit.records import Built, StageRow

if TYPE_CHECKING:
    from rich.table import Table


def line(row: StageRow) -> str:
    """One line on a stage that is done."""
    how = "unchanged" if row.cached else f"{row.seconds:.0f} s"
    score = f", {row.metrics.metric} {row.score:.4f}" if row.metrics else ""
    return f"{row.name}: {how}, {size(row.bytes)}{score}; {row.changed}"


def size(count: int) -> str:
    """Bytes in the unit that reads best, in powers of ten.

    >>> size(740), size(22_713_216)
    ('740 B', '22.7 MB')
    """
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count} B"


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


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _text(table: "Table") -> str:
    """A rich table as plain text, as wide as it needs to be."""
    from rich.console import Console

    console = Console(width=200, color_system=None)
    with console.capture() as captured:
        console.print(table)
    return "\n".join(line.rstrip() for line in captured.get().splitlines())
