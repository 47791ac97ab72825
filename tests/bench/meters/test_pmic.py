"""Raspberry Pi 5: rails with both voltage and current; what vcgencmd says where it cannot."""

from typing import Any

import pytest

from edgekit.bench.meters import Reading, Silence, pmic


def read(play: Any, case: str, **params: Any) -> Any:
    chosen = pmic.Params(**params)
    (answer,) = pmic.parse(chosen, play(f"pmic/{case}", pmic.script(chosen)))
    return answer


def test_rails_with_both_are_summed(play: Any) -> None:
    reading = read(play, "pi5")
    assert isinstance(reading, Reading)
    assert reading.power_w == pytest.approx(0.1 * 3.7 + 0.05 * 3.3 + 0 * 0.6 + 1.0 * 0.8)
    assert reading.parts == ("3V7_WL_SW", "3V3_SYS", "DDR_VDDQ", "VDD_CORE")  # EXT5V and BATT have no current


def test_rails_can_be_chosen(play: Any) -> None:
    assert read(play, "pi5", rails=("VDD_CORE",)).power_w == pytest.approx(0.8)
    assert "EXT5V" in read(play, "pi5", rails=("EXT5V",)).reason


def test_the_title_says_that_it_is_not_the_whole_input() -> None:
    assert "not the whole 5 V" in pmic.TITLE


@pytest.mark.parametrize(("case", "there", "says"), [("not-in-video", True, "group video"), ("pi4", False, "Pi 5")])
def test_what_vcgencmd_says_is_passed_on(play: Any, case: str, there: bool, says: str) -> None:
    silence = read(play, case)
    assert isinstance(silence, Silence)
    assert silence.there is there
    assert says in silence.reason
    assert silence.reason.isprintable()


def test_without_vcgencmd_there_is_none() -> None:
    assert pmic.parse(pmic.Params(), [(0.0, "")]) == [Silence(reason="no vcgencmd", there=False)]
