"""Pixel's rails: chosen by name, in joules; untrusted names; charging."""

from typing import Any

import pytest

from edgekit.bench.meters import Reading, Silence, odpm


def read(play: Any, case: str, **params: Any) -> Any:
    chosen = odpm.Params(**params)
    return odpm.parse(chosen, play(f"odpm/{case}", odpm.script(chosen)))


def test_the_rails_of_a_model_on_the_cpu(play: Any) -> None:
    first, second = read(play, "pixel")
    rails = {
        "S2M_VDD_CPUCL2": 30.0, "S3M_VDD_CPUCL1": 23.0, "S4M_VDD_CPUCL0": 46.0, "S1M_VDD_MIF": 21.0, "S10S_VDD2L": 5.5,
    }  # fmt: skip
    assert {c.name: c.energy_j for c in first.counters} == rails
    assert {c.name: c.energy_j for c in second.counters} == rails | {
        "S2M_VDD_CPUCL2": 31.0, "S4M_VDD_CPUCL0": 46.25, "S1M_VDD_MIF": 21.1,
    }  # fmt: skip
    assert all(counter.wrap_j is None for counter in first.counters)
    assert first.parts == tuple(rails)
    assert first.charging is False


def test_rails_can_be_chosen(play: Any) -> None:
    (first, _) = read(play, "pixel", rails=("TPU", "CPUCL2"))
    assert [c.name for c in first.counters] == ["S10M_VDD_TPU", "S2M_VDD_CPUCL2"]


def test_a_rail_that_is_not_there_is_refused_with_those_that_are(play: Any) -> None:
    (silence, _) = read(play, "pixel", rails=("CPUCL2", "VDD_NPU"))
    assert isinstance(silence, Silence)
    assert silence.there
    assert "VDD_NPU" in silence.reason
    assert "CPUCL2," not in silence.reason.partition(";")[0]
    assert "S2S_VDD_G3D" in silence.reason


def test_charging_is_seen(play: Any) -> None:
    assert read(play, "charging")[0].charging is True


def test_names_from_the_phone_are_made_plain_and_numbers_that_cannot_be_are_left_out(play: Any) -> None:
    (reading,) = read(play, "hostile")
    assert isinstance(reading, Reading)
    assert [c.energy_j for c in reading.counters] == [1.0]
    assert reading.parts[0].isprintable()
    assert "reboot" in reading.parts[0]  # as text


@pytest.mark.parametrize(("case", "there", "says"), [("unreadable", True, "root"), ("none", False, "energy_value")])
def test_what_cannot_be_read_says_so(play: Any, case: str, there: bool, says: str) -> None:
    (silence,) = read(play, case)
    assert isinstance(silence, Silence)
    assert silence.there is there
    assert says in silence.reason
