"""The figure of a comparison of methods: how good each student is, how far its seeds lie apart, how large it is."""

from typing import TYPE_CHECKING

from edgekit.comparison import Compared
from edgekit.gate import drawing as d
from edgekit.gate.drawing import LINE, MUTED, ONE, PAPER, TWO, blank, real, short, unit_of
from edgekit.tables import size

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MOST = 40  # rows


def figure(found: Compared) -> "Figure | None":
    """A row a method, the best first: size, and score: the mean filled, each seed hollow, a line from least to most,
    the teacher dotted."""
    rows = [(one, one.score) for one in found.methods if one.score is not None and real(one.score)][:_MOST]
    if not rows:
        return None
    drawn, (left, right) = blank(0.75 + 0.3 * len(rows), 2)
    sizes = [d.sane(one.bytes or 0) for one, _ in rows]
    unit, scale = unit_of(sizes, d.BYTES)
    left.barh(range(len(rows)), [value / scale for value in sizes], height=0.5, color=ONE)
    for i, value in enumerate(sizes):
        d.say(left, size(value), value / scale, i)
    left.set_xlim(0, max(max(sizes) / scale * 1.45, 1e-9))
    left.set_title(f"weights, {unit}")
    teacher = found.teacher.score.value if found.teacher and found.teacher.score else None
    teacher = teacher if teacher is not None and real(teacher) else None
    ends = [value for one, _ in rows for value in (one.low, one.high) if value is not None and real(value)]
    ends += [] if teacher is None else [teacher]
    room = max(max(ends) - min(ends), abs(max(ends)) * 0.02, 1e-6)
    right.set_xlim(min(ends) - room * 0.15, max(ends) + room * 0.6)
    if teacher is not None:
        right.axvline(teacher, color=MUTED, linestyle=":", linewidth=1.2, label="teacher")
    for i, (one, mean) in enumerate(rows):
        seeds = [run.score.value for run in one.runs if run.score and real(run.score.value)]
        if len(seeds) > 1:
            right.plot([min(seeds), max(seeds)], [i, i], color=LINE, linewidth=2.4)
            right.plot(seeds, [i] * len(seeds), "o", color=TWO, markerfacecolor=PAPER, markersize=4)
        right.plot([mean], [i], "D", color=TWO, markersize=4.5)
        d.say(right, f"{mean:.3f}", max([*seeds, mean]), i)
    right.set_title(short(f"score, {found.metric}", 26))
    many = any(len(one.runs) > 1 for one, _ in rows)
    right.plot([], [], "D", color=TWO, markersize=4.5, label="mean of the seeds" if many else "score")
    if many:
        right.plot([], [], "o", color=TWO, markerfacecolor=PAPER, markersize=4, label="a seed")
    for axes in (left, right):
        d.rows(axes, [short(one.method, 18) for one, _ in rows])
        axes.xaxis.set_ticks([])
        axes.spines["bottom"].set_visible(False)
    d.legend(drawn, 3)
    return drawn
