"""The report's figures: records in, matplotlib figures out; `None` where there is nothing to draw.

with style():
    figure = distribution([Curve("baseline", samples, plain=True), Curve("candidate", others)])
    page += svg(figure, "f1", "How long a call took, baseline and candidate")
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from edgekit.gate import drawing as d
from edgekit.gate.drawing import BAD, INK, LINE, MUTED, ONE, PAPER, THREE, TWO, blank, few, legend, real, short, unit_of
from edgekit.records import Artifact, Part
from edgekit.results import Check, Energy, Interval, Memory, Reading
from edgekit.tables import size

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_POINTS = 200  # of a curve: more are not seen
_ROWS = 60  # of a bar chart
_LINES = 24  # of one strip of conditions, those that differ


class Curve(NamedTuple):
    """Samples in seconds under a name; `plain` is drawn dashed, as what others are compared with."""

    name: str
    samples_s: Sequence[float]
    plain: bool = False


class Point(NamedTuple):
    """A variant of a model: how long it takes and how good it is."""

    name: str
    latency_s: float
    score: float


def stages(artifacts: Sequence[Artifact]) -> "Figure | None":
    """Size and score from the teacher to the bundle, a row a stage."""
    if not artifacts:
        return None
    artifacts = artifacts[:_ROWS]
    metric = next((a.facts.score.metric for a in artifacts if a.facts.score), None)
    scores = [(i, s.value) for i, a in enumerate(artifacts) if (s := a.facts.score) and s.metric == metric]
    scores = [(i, value) for i, value in scores if real(value)]
    figure, (left, *right) = blank(0.5 + 0.26 * len(artifacts), 2 if scores else 1)
    sizes = [d.sane(a.facts.bytes) for a in artifacts]
    unit, scale = unit_of(sizes, d.BYTES)
    left.barh(range(len(sizes)), [value / scale for value in sizes], height=0.55, color=ONE)
    for i, value in enumerate(sizes):
        d.say(left, size(value), value / scale, i)
    left.set_xlim(0, max(max(sizes) / scale * 1.42, 1e-9))
    left.set_title(f"size, {unit}")
    for axes in right:
        low, high = min(value for _, value in scores), max(value for _, value in scores)
        room = max(high - low, abs(high) * 0.02, 1e-6)
        axes.set_xlim(low - room * 0.15, high + room * 0.65)
        axes.axvline(scores[0][1], color=MUTED, linestyle=":", linewidth=1)  # the teacher's: what is lost is seen
        for i, value in scores:
            axes.plot([low - room * 0.15, value], [i, i], color=LINE, linewidth=1.2)
            axes.plot([value], [i], "o", color=TWO, markersize=5)
            d.say(axes, f"{value:.3f}", value, i)
        axes.set_title(short(f"score, {metric}", 26))
    for axes in (left, *right):
        d.rows(axes, [short(a.name, 18) for a in artifacts])
        axes.xaxis.set_ticks([])
        axes.spines["bottom"].set_visible(False)
    return figure


def distribution(curves: Sequence[Curve]) -> "Figure | None":
    """The share of calls that took no longer than a time. Medians are marked; the slowest few lie beyond the axis."""
    drawn = [(curve, values) for curve in curves if (values := d.finite(curve.samples_s, above=0))]
    if not drawn:
        return None
    figure, (axes,) = blank(2.5)
    unit, scale = unit_of([float(np.median(values)) for _, values in drawn], d.SECONDS)
    lengths = len(drawn) > 2  # several lengths, whose times lie far apart
    for n, (curve, values) in enumerate(drawn):
        shares = np.linspace(0, 1, min(len(values), _POINTS) + 1)
        times = np.quantile(values, shares) / scale
        colour = ONE if curve.plain else (TWO, ONE, THREE, INK)[n % 4] if lengths else TWO
        dashes = ["--"] if curve.plain else ["-", "-.", ":"] if lengths else ["-"]
        axes.plot(times, shares * 100, color=colour, linestyle=dashes[n % len(dashes)], label=short(curve.name, 30))
        middle = float(np.median(values)) / scale
        fill = PAPER if curve.plain else colour
        axes.plot([middle], [50], "o", color=colour, markersize=6, markerfacecolor=fill)
    low = min(min(values) for _, values in drawn) / scale
    high = max(float(np.quantile(values, 0.975)) for _, values in drawn) / scale
    if lengths and low > 0 and high / low > 3:
        axes.set_xscale("log")
        d.plain_log(axes)
        axes.set_xlim(low / 1.1, high * 1.1)
    else:
        room = max(high - low, high * 0.01) * 0.06
        axes.set_xlim(low - room, high + room)
        few(axes.xaxis, 5)
    axes.set_ylim(0, 102)
    axes.set_yticks([0, 25, 50, 75, 100])
    axes.set_xlabel(f"time of a call, {unit}")
    axes.set_ylabel("calls, %")
    legend(figure, len(drawn))
    return figure


def pairs(ratios: Sequence[float], check: Check) -> "Figure | None":
    """Each pair's latency, the candidate's over the baseline's, in order of time, and what `check` made of them."""
    changes = [(ratio - 1) * 100 for ratio in ratios if real(ratio)]
    if not changes:
        return None
    figure, (axes,) = blank(2.7)
    middle, interval, floor = check.change, check.interval, check.floor
    told = (middle, floor, *((interval.low, interval.high) if interval else ()))
    seen = [value * 100 for value in told if value is not None and real(value)]
    inner = np.quantile(changes, [0.25, 0.75])
    reach = 3 * max(float(inner[1] - inner[0]), 0.5)  # what lies further is drawn on the edge, with its figure
    near = [value for value in changes if inner[0] - reach <= value <= inner[1] + reach]
    low, high = min(near + seen + [0.0]), max(near + seen + [0.0])
    room = max(high - low, 1.0) * 0.14
    low, high = low - room, high + room
    order = range(1, len(changes) + 1)
    if interval and real(interval.low) and real(interval.high):
        axes.axhspan(interval.low * 100, interval.high * 100, color=TWO, alpha=0.2, linewidth=0, label="its interval")
    if middle is not None and real(middle):
        axes.axhline(middle * 100, color=TWO, label="trimmed mean")
    axes.axhline(0, color=INK, linewidth=1)
    if floor is not None and real(floor):
        axes.axhline(floor * 100, color=BAD, linestyle=(0, (5, 3)), linewidth=1.3, label="floor")
    inside = [(n, value) for n, value in zip(order, changes, strict=True) if low <= value <= high]
    axes.plot([n for n, _ in inside], [value for _, value in inside], "o", color=ONE, markersize=5, label="a pair")
    for n, value in zip(order, changes, strict=True):
        if not low <= value <= high:
            edge = high if value > high else low
            axes.plot([n], [edge], "^" if value > high else "v", color=ONE, markersize=6, clip_on=False)
            axes.annotate(
                f"{value:+.0f} %", (n, edge), (0, -11 if value > high else 5), textcoords="offset points",
                ha="center", fontsize=7.5,
            )  # fmt: skip
    axes.set_xlim(0.4, len(changes) + 0.6)
    axes.set_ylim(low, high)
    few(axes.xaxis, 6, whole=True)
    axes.grid(visible=False, axis="x")
    axes.set_xlabel("pair, in order of time")
    axes.set_ylabel("candidate against baseline, %")
    legend(figure, 4)
    return figure


def memory(found: Memory, budget: float | None, most: float) -> "Figure | None":
    """Resident memory at the end of each phase by kind, with the runtime's floor and the budget; the axis holds
    `most` bytes."""
    if not found.phases:
        return None
    phases = found.phases
    figure, (axes,) = blank(1.35 + 0.27 * len(phases))
    most = max(d.sane(most), 1.0)
    unit, scale = unit_of([most], d.BYTES)
    left = np.zeros(len(phases))
    kinds = (
        ("anonymous", [p.anon_bytes for p in phases], ONE, None),
        ("file-backed", [p.file_bytes for p in phases], THREE, "////"),
        ("shared", [p.shmem_bytes for p in phases], TWO, "...."),
    )
    for name, counts, colour, hatch in kinds:
        if any(counts):
            widths = np.array([d.sane(count) for count in counts]) / scale
            axes.barh(
                range(len(phases)), widths, left=left, height=0.6, color=colour, hatch=hatch, edgecolor=PAPER,
                linewidth=0, label=name,
            )  # fmt: skip
            left += widths
    peaks = [d.sane(p.hwm_bytes) / scale for p in phases]
    axes.plot(peaks, range(len(phases)), "D", color=INK, markersize=4, label="peak so far")
    if found.floor_bytes is not None:
        axes.axvline(d.sane(found.floor_bytes) / scale, color=INK, linestyle=":", label="runtime floor")
    if budget is not None and real(budget):
        axes.axvline(budget / scale, color=BAD, linestyle=(0, (5, 3)), label="budget")
    d.rows(axes, [p.name.replace("_", " ") for p in phases])
    axes.set_xlim(0, most / scale * 1.05)
    few(axes.xaxis, 5)
    axes.set_xlabel(f"resident memory, {unit}")
    legend(figure, 6)
    return figure


def energy(rows: Sequence[tuple[str, Energy]]) -> "Figure | None":
    """What an inference costs, gross and net, each with its interval; a row a measurement."""
    marks: list[tuple[int, float, Interval | None, bool]] = []
    names: list[str] = []
    for name, found in rows:
        if found.gross_j is None and found.net_j is None:
            continue
        gross, net_of_idle = (found.gross_j, found.gross_interval, False), (found.net_j, found.net_interval, True)
        for value, interval, net in (gross, net_of_idle):
            if value is not None and real(value):
                marks.append((len(names), value, interval, net))
        names.append(short(name, 24))
    if not marks:
        return None
    figure, (axes,) = blank(1.2 + 0.42 * len(names))
    unit, scale = unit_of([abs(value) for _, value, _, _ in marks], d.JOULES)
    for row, value, interval, net in marks:
        y, colour = row + (0.16 if net else -0.16), TWO if net else ONE
        if interval and real(interval.low) and real(interval.high):
            axes.plot([interval.low / scale, interval.high / scale], [y, y], color=colour, linewidth=2)
        mark, fill = ("D", PAPER) if net else ("o", colour)
        axes.plot([value / scale], [y], mark, color=colour, markersize=6, markerfacecolor=fill)
    axes.plot([], [], "o", color=ONE, label="gross")
    axes.plot([], [], "D", color=TWO, markerfacecolor=PAPER, label="net of idle")
    d.rows(axes, names)
    axes.set_xlim(min(0.0, axes.get_xlim()[0]), max(axes.get_xlim()[1], 1e-9))
    few(axes.xaxis, 5)
    axes.set_xlabel(f"energy of an inference, {unit}")
    legend(figure, 2)
    return figure


def parts(candidate: Sequence[Part], baseline: Sequence[Part]) -> "Figure | None":
    """What a model file's bytes are spent on, where one is given beside the baseline's."""
    new, old = ({part.name: d.sane(part.bytes) for part in side} for side in (candidate, baseline))
    names = list(dict.fromkeys([*new, *old]))[:_ROWS]
    if not names:
        return None
    both = bool(new and old)
    figure, (axes,) = blank(0.75 + (0.4 if both else 0.27) * len(names))
    most = max(*new.values(), *old.values(), 1.0)
    unit, scale = unit_of([most], d.BYTES)
    for side, offset, hollow in ((old, 0.2, True), (new, -0.2, False)):
        if side:
            rows = [i + (offset if both else 0) for i in range(len(names))]
            widths = [side.get(name, 0.0) / scale for name in names]
            axes.barh(
                rows, widths, height=0.34 if both else 0.6, color="none" if hollow else TWO if both else ONE,
                edgecolor=ONE if hollow else "none", linewidth=1.2 if hollow else 0,
                label="baseline" if hollow else "candidate",
            )  # fmt: skip
            for row, name in zip(rows, names, strict=True):
                if name in side:
                    d.say(axes, size(side[name]), side[name] / scale, row)
    d.rows(axes, [short(name, 28) for name in names])
    axes.set_xlim(0, most / scale * 1.25)
    few(axes.xaxis, 4)
    axes.set_xlabel(f"size, {unit}")
    if both:
        legend(figure, 2)
    return figure


def front(points: Sequence[Point]) -> list[int]:
    """Which points no other beats: none is at least as fast and as good, and better in one. In order of latency.

    >>> front([Point("a", 2.0, 0.9), Point("b", 1.0, 0.8), Point("c", 1.5, 0.7)])
    [1, 0]
    """
    best: list[int] = []
    for i in sorted(range(len(points)), key=lambda i: (points[i].latency_s, -points[i].score)):
        last = points[best[-1]] if best else None
        if last is None or points[i].score > last.score or points[i][1:] == last[1:]:
            best.append(i)
    return best


def tradeoff(points: Sequence[Point], metric: str) -> "Figure | None":
    """Score against latency; the points of the Pareto front are filled and joined."""
    points = [point for point in points if real(point.latency_s) and real(point.score)]
    if len(points) < 2:
        return None
    figure, (axes,) = blank(2.8)
    unit, scale = unit_of([max(point.latency_s for point in points)], d.SECONDS)
    best = front(points)
    axes.step(
        [points[i].latency_s / scale for i in best], [points[i].score for i in best], where="post", color=ONE,
        linewidth=1.3, label="Pareto front",
    )  # fmt: skip
    times, scores = [p.latency_s / scale for p in points], [p.score for p in points]
    wide, tall = (
        max(times) - min(times) or max(times) / 20 or 1,
        max(scores) - min(scores) or abs(max(scores)) / 20 or 1,
    )
    axes.set_xlim(min(times) - 0.12 * wide, max(times) + 0.2 * wide)
    axes.set_ylim(min(scores) - 0.16 * tall, max(scores) + 0.2 * tall)
    for i, (x, y) in enumerate(zip(times, scores, strict=True)):
        axes.plot([x], [y], "o", color=ONE, markersize=7, markerfacecolor=ONE if i in best else PAPER)
    d.names(axes, [short(point.name, 26) for point in points], times, scores)
    axes.plot([], [], "o", color=ONE, markerfacecolor=PAPER, label="beaten by another")
    few(axes.xaxis, 5)
    few(axes.yaxis, 5)
    axes.set_xlabel(f"median time of an inference, {unit}")
    axes.set_ylabel(short(metric, 30))
    legend(figure, 2)
    return figure


def trend(
    values: Sequence[float], answers: Sequence[str | None], steps: Sequence[int], accepted: Sequence[int], metric: str
) -> "Figure | None":
    """A figure over a history, oldest first, with what the gate said each time; `steps` are where a new level begins,
    `accepted` before which figures a new baseline was accepted."""
    if len(values) < 2 or not all(map(real, values)):
        return None
    figure, (axes,) = blank(2.2)
    kinds = {"latency_s": d.SECONDS, "peak_rss_bytes": d.BYTES, "size_bytes": d.BYTES, "energy_j": d.JOULES}
    unit, scale = unit_of(values, kinds.get(metric, (("", 1.0),)))
    shown = [value / scale for value in values]
    axes.plot(range(len(shown)), shown, color=LINE, linewidth=1)
    small = 3 if len(values) > 80 else 5.5
    for kind, mark, colour, name in (
        (("PASS",), "o", ONE, "pass"), (("REGRESSION",), "X", BAD, "regression"),
        (("INCONCLUSIVE", "INFRA_ERROR", None), "d", MUTED, "no answer"),
    ):  # fmt: skip
        some = [(x, value) for x, (value, said) in enumerate(zip(shown, answers, strict=True)) if said in kind]
        if some:
            axes.plot(*zip(*some, strict=True), mark, color=colour, markersize=small, label=name)
    for n, (begin, end) in enumerate(pairwise([0, *steps, len(shown)])):
        level = float(np.median(shown[begin:end]))
        axes.plot([begin, end - 1], [level, level], color=TWO, linewidth=2.2, label=None if n else "level")
        if n:
            axes.axvline(begin - 0.5, color=TWO, linestyle="--", linewidth=1.1, label="step" if n == 1 else None)
    for n, x in enumerate(accepted):
        axes.axvline(x - 0.5, color=MUTED, linestyle=":", linewidth=1.2, label=None if n else "new baseline")
    axes.xaxis.set_ticks([])
    axes.margins(y=0.18)
    few(axes.yaxis, 4)
    axes.set_xlabel("gates, oldest first")
    axes.set_ylabel(unit)
    legend(figure, 6)
    return figure


def sustained(minutes_s: Sequence[float]) -> "Figure | None":
    """The median by minute of work without a pause."""
    values = d.finite(minutes_s, above=0)
    if len(values) < 2 or len(values) != len(minutes_s):
        return None
    figure, (axes,) = blank(1.8)
    unit, scale = unit_of(values, d.SECONDS)
    axes.plot(range(1, len(values) + 1), [value / scale for value in values], color=ONE, marker="o", markersize=3.5)
    axes.set_ylim(0, max(values) / scale * 1.15)
    few(axes.xaxis, 6, whole=True)
    axes.set_xlabel("minute")
    axes.set_ylabel(f"median, {unit}")
    return figure


def conditions(readings: Sequence[Reading]) -> "Figure | None":
    """Temperatures, clocks, load and battery over the bench, as far as the device tells them: a strip each."""
    lines: dict[str, list[tuple[str, list[tuple[float, float]]]]] = {
        "temperatures, °C": [
            (zone, [(one.at_s, one.temperatures_c[zone]) for one in readings if zone in one.temperatures_c])
            for zone in sorted({zone for one in readings for zone in one.temperatures_c})
        ],
        "clocks, GHz": [
            (f"core {core}", [(one.at_s, one.clocks_hz[core] / 1e9) for one in readings if core in one.clocks_hz])
            for core in sorted({core for one in readings for core in one.clocks_hz})
        ],
        "load, % of all cores": [("", [(one.at_s, one.load * 100) for one in readings if one.load is not None])],
        "battery, %": [("", [(one.at_s, one.battery_percent) for one in readings if one.battery_percent is not None])],
    }
    strips: list[tuple[str, dict[tuple[tuple[float, float], ...], list[str]]]] = []
    for title, some in lines.items():
        alike: dict[tuple[tuple[float, float], ...], list[str]] = {}  # cores of one cluster share a line
        for name, line in some:
            kept = tuple(sorted((x, y) for x, y in line if real(x) and real(y)))
            if kept and (kept in alike or len(alike) < _LINES):
                alike.setdefault(kept, []).append(name)
        if any(len(line) > 1 for line in alike):
            strips.append((title, alike))
    if not strips:
        return None
    figure, all_axes = blank(0.5 + 0.95 * len(strips), 1, len(strips))
    for axes, (title, alike) in zip(all_axes, strips, strict=True):
        for n, line in enumerate(alike):
            colour = (ONE, TWO, THREE, MUTED)[n % 4]
            axes.plot(*zip(*line, strict=True), color=colour, marker="o", markersize=2.5, linewidth=1.1)
        axes.set_title(title)
        if title.startswith(("clocks", "load")):
            axes.set_ylim(0, max(max(y for line in alike for _, y in line) * 1.15, 1e-9))
        ranked = sorted(alike.items(), key=lambda one: one[0][-1][1])
        told = ranked if len(ranked) <= 4 else [ranked[0], ranked[-1]]  # of many lines the lowest and the highest
        d.ends(axes, [(short(", ".join(names), 16), line[-1][1]) for line, names in told])
        few(axes.yaxis, 3)
    all_axes[-1].set_xlabel("seconds since the bench began")
    return figure
