"""Battery gauges: units and signs by vendor, external power, dumpsys, and what is no reading."""

from typing import Any

import pytest

from edgekit.bench.meters import Reading, Silence, battery


def read(play: Any, case: str, **params: Any) -> Any:
    chosen = battery.Params(**params)
    return battery.parse(chosen, play(f"battery/{case}", battery.script(chosen)))


def powers(readings: Any) -> list[float | None]:
    return [reading.power_w if isinstance(reading, Reading) else None for reading in readings]


def test_pixel_microamperes_negative_while_discharging(play: Any) -> None:
    readings = read(play, "pixel")
    # 8000 alone could be 8 A in mA; the pass says it is 8 mA
    assert powers(readings) == pytest.approx([1.0, 3.0, 0.032])
    assert readings[0].step == pytest.approx(2000e-6 * 4)  # the currents move in steps of 2 mA
    assert readings[0].charging is False
    assert readings[0].age_s == 1.0


def test_samsung_milliamperes(play: Any) -> None:
    assert powers(read(play, "samsung")) == pytest.approx([1.4, 6.0, 1.6])


def test_the_unit_can_be_said(play: Any) -> None:
    assert powers(read(play, "samsung", unit="uA")) == pytest.approx([1.4e-3, 6e-3, 1.6e-3])


def test_qualcomm_positive_while_discharging_and_a_reading_against_it_dropped(play: Any) -> None:
    first, second, third = read(play, "qualcomm")
    assert powers([first, second]) == pytest.approx([4.14, 2.07])
    assert isinstance(third, Silence)


def test_one_of_a_pixels_gauges_counts_and_a_mouse_does_not(play: Any) -> None:
    (reading,) = read(play, "pixel-gauges")
    assert reading.power_w == pytest.approx(2.0)
    assert reading.charging is False  # the mouse is charging


def test_a_laptop_shows_power(play: Any) -> None:
    assert powers(read(play, "laptop")) == pytest.approx([6.5, 7.75])
    assert read(play, "laptop")[0].step == pytest.approx(1.25)


@pytest.mark.parametrize("case", ["charging", "weak-port", "dumpsys-charging"])
def test_external_power_is_seen_also_while_discharging(play: Any, case: str) -> None:
    assert read(play, case)[0].charging is True


def test_a_full_battery_on_a_charger_gives_no_reading_of_0_w(play: Any) -> None:
    (answer,) = read(play, "full")
    assert isinstance(answer, Silence)


def test_dumpsys_gives_the_charge_taken(play: Any) -> None:
    readings = read(play, "dumpsys-aosp")
    # 1 mAh at 4 V is 14.4 J, then 2 mAh at 3.99 V
    assert [r.counters[0].energy_j for r in readings] == pytest.approx([0, 14.4, 14.4 + 28.728])
    assert readings[0].step == pytest.approx(14.4)
    assert readings[0].charging is False


def test_dumpsys_of_a_samsung_gives_current_and_its_log_is_no_value(play: Any) -> None:
    assert powers(read(play, "dumpsys-samsung")) == pytest.approx([1.8, 3.6])
    assert read(play, "dumpsys-samsung")[1].charging is False


@pytest.mark.parametrize(
    ("case", "there", "says"),
    [
        ("zero", True, "makes sense"),
        ("no-status", True, "external power"),
        ("two-batteries", True, "BAT0, BAT1"),
        ("unreadable", True, "cannot be read"),
        ("none", False, "no battery"),
        ("dumpsys-overridden", True, "dumpsys battery reset"),
        ("dumpsys-volts", True, "makes sense"),
        ("hostile", True, "battery"),
    ],
)
def test_what_is_no_reading_says_why(play: Any, case: str, there: bool, says: str) -> None:
    (silence,) = read(play, case)
    assert isinstance(silence, Silence), silence
    assert silence.there is there
    assert says in silence.reason
    assert silence.reason.isprintable()


def test_a_supply_can_be_named(play: Any) -> None:
    assert read(play, "two-batteries", supply="BAT0")[0].power_w == pytest.approx(6.5)
    assert "maxfg" in read(play, "pixel-gauges", supply="fuel")[0].reason
