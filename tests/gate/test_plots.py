"""The figures: what they show, read from their axes, and the SVG that they become."""

import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from typing import Any

import numpy as np
import pages
import pytest

from edgekit.gate import drawing, plots
from edgekit.gate.plots import Curve, Point
from edgekit.records import Part
from edgekit.results import Energy, Interval, Memory, Reading


@pytest.fixture(autouse=True)
def style() -> Iterator[None]:
    with drawing.style():
        yield


def lines(axes: Any) -> dict[str, Any]:
    """The axes' named lines."""
    return {line.get_label(): line for line in axes.get_lines() if not line.get_label().startswith("_")}


def named(figure: Any) -> list[str]:
    """What the legend says."""
    return sorted({text.get_text() for legend in figure.legends for text in legend.get_texts()})


def test_a_distribution_is_the_share_of_calls_by_time() -> None:
    figure = plots.distribution([Curve("a", [0.001, 0.002, 0.003, 0.004], plain=True), Curve("b", [0.002] * 3)])
    assert figure
    axes = figure.axes[0]
    a = lines(axes)["a"]
    assert list(a.get_xdata()) == pytest.approx([1, 1.75, 2.5, 3.25, 4])
    assert list(a.get_ydata()) == pytest.approx([0, 25, 50, 75, 100])
    assert (a.get_linestyle(), lines(axes)["b"].get_linestyle()) == ("--", "-")
    assert axes.get_xlabel() == "time of a call, ms"


def test_a_curve_of_many_samples_is_thinned_but_keeps_its_ends() -> None:
    samples = list(np.linspace(0.01, 0.02, 100_000))
    figure = plots.distribution([Curve("a", samples)])
    assert figure
    times = lines(figure.axes[0])["a"].get_xdata()
    assert len(times) <= 201
    assert (times[0], times[-1]) == pytest.approx((10, 20))


def test_pairs_show_each_change_the_mean_its_interval_and_the_floor() -> None:
    check = pages.check("a", 128, 0.052, "REGRESSION")
    figure = plots.pairs([1.05, 1.06, 1.04, 1.055, 1.045, 9.0], check)
    assert figure
    axes = figure.axes[0]
    found = lines(axes)
    assert list(found["a pair"].get_ydata()) == pytest.approx([5, 6, 4, 5.5, 4.5])
    assert list(found["a pair"].get_xdata()) == [1, 2, 3, 4, 5]
    assert found["trimmed mean"].get_ydata()[0] == pytest.approx(5.2)
    assert found["floor"].get_ydata()[0] == pytest.approx(3)
    assert [text.get_text() for text in axes.texts] == ["+800 %"]  # the outlier, on the edge with its figure
    assert axes.get_ylim()[1] < 10
    band = axes.patches[0].get_extents().transformed(axes.transData.inverted())
    assert (band.y0, band.y1) == pytest.approx((4.1, 6.4))


@pytest.mark.parametrize("ratios", [[1.0], [1.0, 1.0], [2.0, 0.5]])
def test_few_pairs_can_be_drawn(ratios: list[float]) -> None:
    check = pages.check("a", None, 0.0, "PASS").model_copy(update={"interval": None, "floor": None, "change": None})
    assert plots.pairs(ratios, check)


def test_memory_stacks_what_is_resident_against_the_budget() -> None:
    memory = pages.memory(20_000_000)
    figure = plots.memory(memory, 30e6, 30e6)
    assert figure
    axes = figure.axes[0]
    end = [bars[-1] for bars in axes.containers]
    assert [bar.get_width() for bar in end] == pytest.approx([11, 8, 0.8])
    assert [bar.get_x() for bar in end] == pytest.approx([0, 11, 19])
    assert lines(axes)["budget"].get_xdata()[0] == 30
    assert axes.get_xlim()[1] > 30
    assert named(figure) == ["anonymous", "budget", "file-backed", "peak so far", "runtime floor", "shared"]
    assert [label.get_text() for label in axes.get_yticklabels()][3] == "first run"


def test_energy_has_a_row_a_measurement_with_intervals() -> None:
    figure = plots.energy([("a", pages.energy(0.02)), ("b", Energy(state="refused", reason="charging"))])
    assert figure
    axes = figure.axes[0]
    drawn = [list(line.get_xdata()) for line in axes.get_lines() if len(line.get_xdata()) == 2]
    assert drawn[0] == pytest.approx([19.2, 21.0])
    assert drawn[1] == pytest.approx([12.4, 15.4])
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a"]
    assert plots.energy([("b", Energy(state="unavailable", reason="no meter"))]) is None


def test_parts_stand_beside_the_baseline_s() -> None:
    figure = plots.parts(
        (Part(name="a", bytes=2_000_000), Part(name="new", bytes=10)), (Part(name="a", bytes=1_000_000),)
    )
    assert figure
    axes = figure.axes[0]
    assert {text.get_text() for text in axes.texts} == {"2.0 MB", "1.0 MB", "10 B"}
    assert named(figure) == ["baseline", "candidate"]
    assert plots.parts((), ()) is None


@pytest.mark.parametrize(
    ("points", "best"),
    [
        ([(1, 0.5), (2, 0.6), (3, 0.7)], [0, 1, 2]),
        ([(3, 0.7), (2, 0.6), (1, 0.5)], [2, 1, 0]),
        ([(1, 0.5), (2, 0.5)], [0]),
        ([(1, 0.5), (1, 0.6)], [1]),
        ([(1, 0.9), (2, 0.5), (3, 0.8)], [0]),
        ([(1, 0.5), (1, 0.5)], [0, 1]),
        ([(2, 0.1)], [0]),
        ([], []),
    ],
)
def test_the_front_is_what_no_other_beats(points: list[tuple[float, float]], best: list[int]) -> None:
    assert plots.front([Point("", *point) for point in points]) == best


def test_the_front_by_its_definition() -> None:
    draw = np.random.default_rng(0)
    points = [Point("", float(a), float(b)) for a, b in draw.integers(0, 12, (80, 2))]
    beaten = [
        any(o[1] <= p[1] and o[2] >= p[2] and o[1:] != p[1:] for o in points) for p in points
    ]  # fmt: skip
    assert sorted(plots.front(points)) == [i for i, lost in enumerate(beaten) if not lost]


def test_a_trade_off_fills_the_front_and_names_every_point() -> None:
    points = [Point("small", 0.001, 0.5), Point("large", 0.004, 0.6), Point("bad", 0.005, 0.4)]
    figure = plots.tradeoff(points, "f1")
    assert figure
    axes = figure.axes[0]
    fills = {
        line.get_xdata()[0]: line.get_markerfacecolor()
        for line in axes.get_lines()
        if line.get_marker() == "o" and len(line.get_xdata()) == 1
    }
    assert fills == {1.0: drawing.ONE, 4.0: drawing.ONE, 5.0: drawing.PAPER}
    assert {text.get_text() for text in axes.texts} == {"small", "large", "bad"}
    assert plots.tradeoff(points[:1], "f1") is None
    assert plots.tradeoff([Point(f"point {n}", 0.001, 0.5) for n in range(40)], "f1")


def test_a_trend_has_a_level_a_step_and_every_answer() -> None:
    values = [0.010] * 5 + [0.020] * 5
    figure = plots.trend(values, ["PASS"] * 5 + ["REGRESSION"] + ["PASS"] * 3 + [None], (5,), [6], "latency_s")
    assert figure
    axes = figure.axes[0]
    found = lines(axes)
    assert list(found["regression"].get_xdata()) == [5]
    assert list(found["no answer"].get_xdata()) == [9]
    assert list(found["level"].get_xdata()) == [0, 4]
    assert list(found["level"].get_ydata()) == [10, 10]
    assert found["step"].get_xdata()[0] == 4.5
    assert found["new baseline"].get_xdata()[0] == 5.5
    assert plots.trend([0.01], ["PASS"], (), [], "latency_s") is None


def test_conditions_have_a_strip_for_what_is_known() -> None:
    figure = plots.conditions(pages.readings())
    assert figure
    assert [axes.get_title(loc="left") for axes in figure.axes] == [
        "temperatures, °C", "clocks, GHz", "load, % of all cores", "battery, %",
    ]  # fmt: skip
    assert {text.get_text() for text in figure.axes[0].texts} == {"cpu-thermal", "battery"}
    known = [Reading(at_s=n, load=0.1 * n, clocks_hz={0: 10**9, 1: 10**9, 2: 2 * 10**9}) for n in (0, 1)]
    figure = plots.conditions(known)
    assert figure and len(figure.axes) == 2
    assert {text.get_text() for text in figure.axes[0].texts} == {"core 0, core 1", "core 2"}
    assert list(figure.axes[1].get_lines()[0].get_ydata()) == pytest.approx([0, 10])
    assert plots.conditions([Reading(at_s=0), Reading(at_s=1)]) is None
    assert plots.conditions(known[:1]) is None


def test_nothing_and_nonsense_give_no_figure() -> None:
    none = Memory(
        peak_rss_bytes=0, peak_phase="", floor_bytes=None, model_bytes=None, python_peak_rss_bytes=None, phases=()
    )
    nan = float("nan")
    assert plots.stages(()) is None
    assert plots.distribution([Curve("a", [nan, -1.0, 0.0, float("inf"), 1e300])]) is None
    assert plots.pairs([nan], pages.check("a", 1, 0.0, "PASS")) is None
    assert plots.memory(none, None, 0) is None
    assert (
        plots.energy([("a", Energy(state="measured", gross_j=nan, gross_interval=Interval(low=nan, high=nan)))]) is None
    )
    assert plots.tradeoff([Point("a", nan, 1), Point("b", 1, nan)], "f1") is None
    assert plots.trend([1.0, nan], ["PASS"] * 2, (), [], "score") is None
    assert plots.sustained([nan, 1.0]) is None


@pytest.mark.parametrize("prefix", ["a", "b7"])
def test_svg_is_one_element_with_ids_of_its_own_and_colours_of_the_page(prefix: str) -> None:
    memory = plots.memory(pages.memory(), 30e6, 30e6)
    assert memory
    text = drawing.svg(memory, prefix, 'said "so" <loud>\n$x^2$ --> \x1b')
    root = ET.fromstring(text)
    assert root.tag == "svg" and root.get("role") == "img" and not root.get("width") and root.get("viewBox")
    assert root.get("aria-label") == 'said "so" <loud> / $x^2$ --> ?'
    ids = [node.get("id") for node in root.iter() if node.get("id")]
    assert len(ids) == len(set(ids)) and all(str(one).startswith(f"{prefix}-") for one in ids)
    used = {name for pair in re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', text) for name in pair if name}
    assert used == set(ids)
    assert not re.search(r"#[0-9a-f]{6}", text.replace("#ffffff", ""))
    assert "var(--one)" in text and "var(--bad)" in text
    assert "<!--" not in text and "metadata" not in text and "http" not in text
    assert drawing.svg(memory, prefix, "a") == drawing.svg(memory, prefix, "a")


def test_svg_takes_any_name() -> None:
    figure = plots.parts(
        (Part(name=pages.HOSTILE, bytes=5), Part(name="$\\undefined{", bytes=6), Part(name="漢字", bytes=7)), ()
    )
    assert figure
    ET.fromstring(drawing.svg(figure, "a", pages.HOSTILE))
