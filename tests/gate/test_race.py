"""The figure of a comparison: what it draws is what the records say, whatever they say."""

import math
from xml.etree import ElementTree

import numpy as np
import pages
import pytest

from edgekit.comparison import Compared
from edgekit.gate import drawing, race


def drawn(found: Compared) -> tuple[list[float], list[str]]:
    """Where the marks of the score stand, and what is written beside them."""
    with drawing.style():
        figure = race.figure(found)
        assert figure is not None
        ElementTree.fromstring(drawing.svg(figure, "f", "methods").replace("xlink:", ""))
        right = figure.axes[1]
        marks = [float(x) for line in right.lines if line.get_marker() == "D" for x in np.asarray(line.get_xdata())]
        return marks, [text.get_text() for axes in figure.axes for text in axes.texts]


def test_a_row_a_method_the_best_first() -> None:
    found = pages.comparison()
    marks, texts = drawn(found)
    assert marks == [one.score for one in found.methods if one.score is not None]
    assert marks == sorted(marks, reverse=True)
    assert texts == ["62.5 MB", "62.5 MB", "43.7 MB", "0.517", "0.505", "0.499"]


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e300])
def test_what_cannot_be_drawn_is_left_out(value: float) -> None:
    found = pages.comparison(1)
    first, *others = found.methods
    odd = first.model_copy(update={"score": value, "low": value, "high": value})
    assert len(drawn(found.model_copy(update={"methods": (odd, *others)}))[1]) == 4
    assert race.figure(found.model_copy(update={"methods": (odd,)})) is None


def test_nothing_trained_is_no_figure() -> None:
    assert race.figure(pages.comparison(methods=pages.comparison().methods[3:])) is None
