"""Figures as a page writes them: `<data value="0.00777">7.77 ms</data>`, the exact number of the records with it."""

import json
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from edgekit import tables

if TYPE_CHECKING:
    from markupsafe import Markup

NAMES = {
    "latency_s": "latency",
    "peak_rss_bytes": "peak memory",
    "size_bytes": "size",
    "energy_j": "energy",
    "score": "score",
}
"""What people call each metric."""

_SPACE = "\u00a0"  # a figure and its unit stay on one line


def tokens(length: int) -> "Markup":
    """A sequence length."""
    return figure(length, "count") + f"{_SPACE}tokens"


def figure(value: float | None, unit: str, signed: bool = False) -> "Markup":
    """A number of the records in `unit`: s, bytes, J, W, Hz, C, percent, share, change, duration, count; any other is
    a score's metric. `None` is "not measured"."""
    from markupsafe import Markup

    if value is None:
        return Markup('<span class="none">not measured</span>')
    if not math.isfinite(value):
        return Markup('<span class="none">no number</span>')
    text = _WRITERS.get(unit, _score)(abs(value)).replace(" ", _SPACE)
    sign = "−" if value < 0 and any(digit in text for digit in "123456789") else "+" if signed and value > 0 else ""
    return Markup('<data value="{}">{}</data>').format(json.dumps(value), sign + text)


def difference(value: float | None, unit: str, signed: bool = True) -> "Markup":
    """A check's change or floor: relative, but of a score the difference itself."""
    return figure(value, "change" if unit in _WRITERS else unit, signed)


def _digits(value: float) -> str:
    """Three digits that count, without an exponent where it can be had."""
    if value < 1:
        return f"{value:.3g}"
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _scaled(*units: tuple[str, float, float]) -> Callable[[float], str]:
    """Writes a value in the first of `units` (name, scale, least value) that it is large enough for, or the last."""

    def write(value: float) -> str:
        name, scale, _ = next((one for one in units if value >= one[2]), units[-1])
        return f"{_digits(value / scale)} {name}"

    return write


def _percent(value: float) -> str:
    return f"{value:.1f} %" if value >= 0.1 or value == 0 else f"{value:.2g} %"


def _duration(value: float) -> str:
    minutes, seconds = divmod(round(value), 60)
    return f"{minutes} min {seconds} s" if minutes >= 2 else f"{_digits(value)} s"


def _score(value: float) -> str:
    return f"{value:.4f}"


_WRITERS: dict[str, Callable[[float], str]] = {
    "s": _scaled(("s", 1, 10), ("ms", 1e-3, 1e-4), ("µs", 1e-6, 1e-12), ("ms", 1e-3, 0)),
    "bytes": tables.size,
    "J": _scaled(("J", 1, 1), ("mJ", 1e-3, 1e-3), ("µJ", 1e-6, 1e-12), ("mJ", 1e-3, 0)),
    "W": _scaled(("W", 1, 1), ("mW", 1e-3, 0)),
    "Hz": _scaled(("GHz", 1e9, 1e9), ("MHz", 1e6, 1e6), ("Hz", 1, 0)),
    "C": lambda value: f"{value:.1f} °C",
    "percent": lambda value: f"{value:.0f} %",
    "share": lambda value: f"{value * 100:.4g} %",
    "change": lambda value: _percent(value * 100),
    "duration": _duration,
    "count": lambda value: f"{value:g}" if isinstance(value, float) else f"{value}",
    "number": _digits,
    "million": lambda value: f"{value / 1e6:.2f} M",
    "exact": lambda value: f"{value:.7g}",
}
UNITS = {"latency_s": "s", "peak_rss_bytes": "bytes", "size_bytes": "bytes", "energy_j": "J"}
"""The unit of each metric but score, whose unit is its metric's name."""

FILTERS: dict[str, Callable[..., Any]] = {
    "figure": figure,
    "difference": difference,
    "tokens": tokens,
    "of_metric": lambda value, metric: figure(value, UNITS.get(metric, "score")),
    "metric_name": lambda metric: NAMES.get(metric, metric),
}
"""What the page's template calls them."""
