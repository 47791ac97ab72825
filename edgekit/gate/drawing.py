"""What the report's figures are drawn with: colours, units, an empty figure, and a figure as SVG for a page.

A figure is narrow enough for a phone; a page puts two beside each other. Its colours are CSS variables of the page
(`var(--one)`), so that it follows light, dark and print. Nothing is told by colour alone: what is the baseline's is
dashed, hollow or hatched, what is the candidate's is solid.
"""

import math
import re
import warnings
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from html import escape
from io import StringIO
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.errors import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MUTED, LINE, PAPER = "#1d2126", "#5a636e", "#d7dce2", "#fefeff"
ONE, TWO, THREE, BAD = "#0b62a4", "#c4500b", "#8a6d1f", "#b3261d"
_VARIABLES = {
    INK: "ink", MUTED: "muted", LINE: "line", PAPER: "paper", ONE: "one", TWO: "two", THREE: "three", BAD: "bad",
}  # fmt: skip
"""What the page's style sheet calls each colour. Blue, vermilion and ochre stay apart for every kind of sight."""

_WIDTH = 4.3  # inches: 310 pt, about the width of a phone's screen in CSS pixels
_MOST = 1e15  # a figure beyond it is no measurement, and no axis can show it beside others
SECONDS = (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6))
BYTES = (("GB", 1e9), ("MB", 1e6), ("kB", 1e3), ("B", 1.0))
JOULES = (("J", 1.0), ("mJ", 1e-3), ("µJ", 1e-6))


@contextmanager
def style() -> Generator[None]:
    """matplotlib as the report's figures want it, whatever the user's own settings are."""
    import matplotlib

    settings: Any = {
        "svg.fonttype": "path", "svg.hashsalt": "edgekit", "text.parse_math": False, "text.usetex": False,
        "font.family": ["DejaVu Sans"], "font.size": 8.5, "axes.titlesize": 8.5, "axes.titlelocation": "left",
        "text.color": INK, "axes.labelcolor": MUTED, "axes.titlecolor": INK, "axes.edgecolor": LINE,
        "xtick.color": LINE, "ytick.color": LINE, "xtick.labelcolor": MUTED, "ytick.labelcolor": MUTED,
        "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": LINE,
        "grid.linewidth": 0.6, "axes.axisbelow": True, "axes.facecolor": "none", "figure.facecolor": "none",
        "savefig.facecolor": "none", "hatch.linewidth": 1.1, "legend.frameon": False, "legend.fontsize": 8,
        "xtick.major.size": 0, "ytick.major.size": 0, "lines.linewidth": 1.6, "figure.constrained_layout.use": True,
        "axes.formatter.useoffset": False,
    }  # fmt: skip
    with matplotlib.rc_context(), warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # of letters that the font does not have: a box stands for them
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(settings)
        yield


def svg(figure: "Figure", prefix: str, label: str) -> str:
    """`figure` as an SVG element for an HTML page: said aloud as `label`, its ids begin with `prefix`, of which each
    figure of a page has its own. Equal figures give equal text."""
    out = StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    viewbox = re.search(r'viewBox="[-0-9. ]+"', text)
    opening = f'<svg role="img" aria-label="{escape(printable(label))}" {viewbox[0] if viewbox else ""}>'
    text = re.sub(r"<svg[^>]*>", lambda _: opening, text, count=1)
    used = set(re.findall(r'url\(#([^)]+)\)|href="#([^"]+)"', text))
    kept = {name for pair in used for name in pair if name}
    text = re.sub(r' id="([^"]*)"', lambda m: f' id="{prefix}-{m[1]}"' if m[1] in kept else "", text)
    text = re.sub(r'(?:xlink:)?href="#', f'href="#{prefix}-', text).replace("url(#", f"url(#{prefix}-")
    for colour, name in _VARIABLES.items():
        text = text.replace(colour, f"var(--{name})")
    return re.sub(r"\n\s*\n?", "\n", text).strip()


def blank(height: float, columns: int = 1, rows: int = 1) -> tuple["Figure", "list[Axes]"]:
    """An empty figure `height` inches high, and its axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH, height))
    grid = figure.subplots(rows, columns, sharey=columns > 1, sharex=rows > 1, squeeze=False)
    return figure, list(grid.flat)


def real(value: float | None) -> bool:
    """Whether a figure can be drawn."""
    return value is not None and math.isfinite(value) and abs(value) < _MOST


def sane(value: float) -> float:
    """A count as far as it can be drawn."""
    return float(min(value, _MOST)) if value > 0 else 0.0


def finite(values: Sequence[float], above: float = -math.inf) -> list[float]:
    """The values that can be drawn."""
    return [value for value in values if real(value) and value > above]


def unit_of(values: Sequence[float], units: Sequence[tuple[str, float]]) -> tuple[str, float]:
    """The greatest unit in which the largest value is at least 1, else the least."""
    most = max((abs(value) for value in values), default=0)
    return next(((name, scale) for name, scale in units if most >= scale), units[-1])


def short(text: str, most: int) -> str:
    """A name as far as a figure has room for it."""
    text = printable(text)
    return text if len(text) <= most else f"{text[: most // 2]}…{text[-(most // 2 - 1) :]}"


def say(axes: "Axes", text: str, x: float, y: float) -> None:
    """A few words to the right of a point."""
    axes.annotate(text, (x, y), (4, 0), textcoords="offset points", va="center", fontsize=7.5)


def rows(axes: "Axes", names: Sequence[str]) -> None:
    """The names of a bar chart's rows, the first one on top."""
    axes.set_yticks(range(len(names)), list(names), color=INK)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")


def ends(axes: "Axes", lines: Sequence[tuple[str, float]]) -> None:
    """Names at the right end of lines, by the height at which each ends; apart where two would touch."""
    bottom, top = axes.get_ylim()
    least, below = (top - bottom) * 0.2, -math.inf
    for name, y in sorted(lines, key=lambda line: line[1]):
        y = max(y, below + least)
        axes.annotate(
            name, (1, y), (4, 0), xycoords=("axes fraction", "data"), textcoords="offset points", va="center",
            fontsize=7.5, annotation_clip=False,
        )  # fmt: skip
        below = y


def names(axes: "Axes", names: Sequence[str], x: Sequence[float], y: Sequence[float]) -> None:
    """A name beside each point, as near as it does not cover another name or point; a thin line where that is far."""
    from matplotlib.patheffects import withStroke

    wide, tall = 250.0, 130.0  # points; about what the axes are, and only nearness depends on it
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    points = list(zip(x, y, strict=True))
    spots = [((a - left) / (right - left) * wide, (b - bottom) / (top - bottom) * tall) for a, b in points]
    taken = [(a - 4, b - 4, a + 4, b + 4) for a, b in spots]
    for name, (a, b), at in zip(names, spots, points, strict=True):
        long = 4.9 * len(name)
        options = [
            (dx, dy)
            for dy in (0, 10, -10, 20, -20, 30, -30, 40, -40)
            for dx in (8 + abs(dy) / 4, -8 - abs(dy) / 4 - long)
        ]
        boxes = [(a + dx, b + dy - 5, a + dx + long, b + dy + 5) for dx, dy in options]
        inside = [i for i, box in enumerate(boxes) if box[0] > 0 and box[2] < wide and box[1] > 0 and box[3] < tall]
        best = next((i for i in inside if not any(_meet(boxes[i], other) for other in taken)), 0)
        taken.append(boxes[best])
        dx, dy = options[best]
        line = {"arrowstyle": "-", "color": MUTED, "linewidth": 0.6, "shrinkA": 1, "shrinkB": 4}
        axes.annotate(
            name, at, (dx if dx > 0 else dx + long, dy), textcoords="offset points", va="center", fontsize=8,
            ha="left" if dx > 0 else "right", arrowprops=line if abs(dy) > 10 else None,
            path_effects=[withStroke(linewidth=3, foreground=PAPER)],
        )  # fmt: skip


def _meet(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> bool:
    """Whether two boxes (left, bottom, right, top) overlap."""
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def few(axis: Any, count: int, whole: bool = False) -> None:
    """No more than about `count` ticks, at `whole` numbers only: room is short on a phone."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(count, integer=whole))


def plain_log(axes: "Axes") -> None:
    """A logarithmic axis with the ticks 1, 2, 5, 10 ... written out."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def legend(figure: "Figure", count: int) -> None:
    """What the marks mean, below the axes."""
    figure.legend(loc="outside lower center", ncols=min(count, 3), handlelength=1.8, columnspacing=1.4)
