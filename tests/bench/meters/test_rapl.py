"""RAPL's zones: which count, their wraps, and who may read them."""

from typing import Any

import pytest

from edgekit.bench.meters import Counter, Reading, Silence, rapl


def test_packages_and_memory_count_once(play: Any) -> None:
    first, second = rapl.parse(rapl.Params(), play("rapl/laptop", rapl.script(rapl.Params())))
    assert isinstance(first, Reading)
    assert isinstance(second, Reading)
    assert first.counters == (
        Counter(name="package-0", energy_j=10.0, wrap_j=262143.328850),
        Counter(name="dram", energy_j=65.0, wrap_j=65712.999613),
    )
    assert [counter.energy_j for counter in second.counters] == [15.0, 65.0]
    assert (first.at_s, second.at_s) == (0.0, 0.5)
    assert first.parts == ("package-0", "dram")
    assert first.charging is None


def test_psys_stands_alone(play: Any) -> None:
    params = rapl.Params(domain="psys")
    reading = rapl.parse(params, play("rapl/laptop", rapl.script(params)))[0]
    assert isinstance(reading, Reading)
    assert [(c.name, c.energy_j) for c in reading.counters] == [("psys", 90.0)]


def test_a_zone_that_is_not_there_is_named(play: Any) -> None:
    params = rapl.Params(domain="psys")
    silence = rapl.parse(params, play("rapl/amd", rapl.script(params)))[0]
    assert isinstance(silence, Silence)
    assert silence.there
    assert "psys" in silence.reason
    assert "package-0, core" in silence.reason


def test_without_a_range_there_is_no_wrap() -> None:
    reading = rapl.parse(rapl.Params(), [(0.0, "77 0 package-0\n")])[0]
    assert isinstance(reading, Reading)
    assert reading.counters == (Counter(name="package-0", energy_j=77e-6, wrap_j=None),)


@pytest.mark.parametrize(
    ("case", "there", "says"),
    [("unreadable", True, "root"), ("none", False, "no RAPL"), ("garbage", True, "'12e9'")],
)
def test_what_cannot_be_read_says_so(play: Any, case: str, there: bool, says: str) -> None:
    silence = rapl.parse(rapl.Params(), play(f"rapl/{case}", rapl.script(rapl.Params())))[0]
    assert isinstance(silence, Silence)
    assert silence.there is there
    assert says in silence.reason
