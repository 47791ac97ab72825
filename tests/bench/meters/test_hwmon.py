"""hwmon: one sensor unasked, several only as named; units; the step told from the readings."""

from typing import Any

import pytest

from edgekit.bench.meters import Counter, Reading, Silence, hwmon


def read(play: Any, case: str, **params: Any) -> Any:
    chosen = hwmon.Params(**params)
    return hwmon.parse(chosen, play(f"hwmon/{case}", hwmon.script(chosen)))


def test_the_only_sensor_is_used_and_its_average_preferred(play: Any) -> None:
    readings = read(play, "one-power")
    assert [reading.power_w for reading in readings] == [12.5, 13.0, 14.25]
    assert readings[0].parts == ("power_meter Chassis",)
    assert readings[0].step == pytest.approx(0.25)  # all differences are multiples of 250 mW


def test_several_sensors_must_be_named(play: Any) -> None:
    (silence,) = read(play, "energies")
    assert isinstance(silence, Silence)
    assert silence.there
    assert "amd_energy energy1 Esocket0" in silence.reason
    assert "amdgpu power1" in silence.reason


def test_named_sensors_are_counters_of_joules(play: Any) -> None:
    (reading,) = read(play, "energies", chip="amd_energy", channels=("Esocket0", "energy2"))
    assert isinstance(reading, Reading)
    assert reading.counters == (
        Counter(name="amd_energy Esocket0", energy_j=1.0),
        Counter(name="amd_energy Esocket1", energy_j=3.0),
    )


def test_energy_and_power_are_not_added(play: Any) -> None:
    (silence,) = read(play, "energies", channels=("energy1", "power1"))
    assert isinstance(silence, Silence)
    assert "one kind" in silence.reason


def test_a_channel_that_is_not_there(play: Any) -> None:
    (silence,) = read(play, "energies", channels=("energy1", "energy9"))
    assert isinstance(silence, Silence)


def test_a_sensor_that_cannot_be_read(play: Any) -> None:
    (silence,) = read(play, "unreadable")
    assert isinstance(silence, Silence)
    assert silence.there
    assert "cannot be read" in silence.reason


def test_labels_from_the_device_are_text(play: Any) -> None:
    (reading,) = read(play, "hostile")
    assert reading.power_w == pytest.approx(0.001)
    assert reading.parts[0].isprintable()
    assert r"$(reboot)\n%s" in reading.parts[0]
