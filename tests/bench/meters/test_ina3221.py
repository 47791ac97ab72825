"""Jetson's monitor: volts times amperes of the right rail, and its resolution."""

from typing import Any

import pytest

from edgekit.bench.meters import Reading, Silence, ina3221


def read(play: Any, case: str, **params: Any) -> Any:
    chosen = ina3221.Params(**params)
    (answer,) = ina3221.parse(chosen, play(f"ina3221/{case}", ina3221.script(chosen)))
    return answer


def test_vdd_in_is_the_module(play: Any) -> None:
    reading = read(play, "orin-nano")
    assert isinstance(reading, Reading)
    assert reading.power_w == pytest.approx(4.0)  # 5 V x 0.8 A; the parts are not added to the whole
    # 40 uV over 5 mOhm is 8 mA, at 5 V 40 mW; 8 mV at 0.8 A is 6.4 mW
    assert reading.step == pytest.approx(0.0464)
    assert reading.parts == ("VDD_IN",)
    assert reading.charging is None


def test_rails_are_summed_as_asked(play: Any) -> None:
    reading = read(play, "orin-nano", rails=("VDD_CPU_GPU_CV", "VDD_SOC"))
    assert reading.power_w == pytest.approx(4.992 * 0.104 + 5.0 * 0.2)


def test_without_vdd_in_the_user_says_what_the_whole_is(play: Any) -> None:
    silence = read(play, "agx-orin")
    assert isinstance(silence, Silence)
    assert silence.there
    assert "VDD_IN" in silence.reason
    assert "VDD_GPU_SOC, VDD_CPU_CV" in silence.reason
    assert "VIN_SYS_5V0" not in silence.reason  # its voltage cannot be read
    reading = read(play, "agx-orin", rails=("VDD_GPU_SOC", "VDD_CPU_CV"))
    assert reading.power_w == pytest.approx(19 * 0.15)
    assert reading.step == pytest.approx(2 * 19 * 0.02 + 0.15 * 0.008)  # 2 mOhm: 20 mA


def test_another_chip_is_none(play: Any) -> None:
    silence = read(play, "none")
    assert isinstance(silence, Silence)
    assert not silence.there


def test_garbage_is_none() -> None:
    (silence,) = ina3221.parse(ina3221.Params(), [(0.0, "5000 x 5000 VDD_IN\n5000 800\n\x00")])
    assert isinstance(silence, Silence)
