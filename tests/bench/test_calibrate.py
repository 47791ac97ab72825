"""A device's own noise, by hand and on this host."""

import math
from pathlib import Path

import bundles
import numpy as np
import pytest
from click.testing import CliRunner

from edgekit import devices
from edgekit.bench import calibrate
from edgekit.cli import cli
from edgekit.errors import InputError
from edgekit.results import Calibration


def test_every_second_pair_ran_the_other_way_round() -> None:
    found = calibrate.log_ratios([1.0, 2.0, 2.0, 1.0, 3.0, 3.0])
    assert found == pytest.approx([math.log(2), math.log(2), 0])


def test_a_steady_drift_cancels() -> None:
    """Each process 1 % slower than the one before: the ratios alternate, their mean is nothing."""
    found = calibrate.log_ratios([1.01**i for i in range(8)])
    assert sum(found) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    ("noise", "pairs", "effect"),
    [
        (0.0, 7, 0.0),
        (0.02, 7, math.expm1(2.447 * 0.02 / math.sqrt(7))),
        (0.02, 3, math.expm1(4.303 * 0.02 / math.sqrt(3))),
        (0.02, 25, math.expm1(2.0639 * 0.02 / 5)),
        (0.02, 100, math.expm1(1.9842 * 0.02 / 10)),
    ],
)
def test_the_smallest_effect_is_students(noise: float, pairs: int, effect: float) -> None:
    assert calibrate.smallest_effect(noise, pairs) == pytest.approx(effect, rel=1e-3)


def test_the_effect_is_resolved_as_often_as_promised() -> None:
    """Of many A/A calibrations with that true noise, 95 % of the means lie within the effect."""
    rng = np.random.default_rng(0)
    within = [
        abs(sample.mean()) <= math.log1p(calibrate.smallest_effect(float(sample.std(ddof=1)), 7))
        for sample in rng.normal(0, 0.03, (4000, 7))
    ]
    assert 0.94 <= np.mean(within) <= 0.965


@pytest.mark.target
@pytest.mark.usefixtures("kits")
def test_this_host_is_calibrated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setattr(calibrate, "_BLOCK_S", 0.05)
    tiny = bundles.make(tmp_path / "b", formats=("tflite",))[0]
    device = devices.find("host").model_copy(update={"workdir": str(tmp_path / "work")})
    found = calibrate.calibrate(device, tiny, 3)
    assert (found.pairs, len(found.medians_s), found.length, found.format) == (3, 6, 32, "tflite")
    assert all(0 < median < 1 for median in found.medians_s)
    assert found.noise == pytest.approx(np.std(calibrate.log_ratios(found.medians_s), ddof=1))
    kept = calibrate.path("host")
    assert kept == tmp_path / "data" / "edgekit" / "calibration" / "host.json"
    assert Calibration.model_validate_json(kept.read_bytes()) == found
    assert not (tmp_path / "work" / "run").exists()


@pytest.mark.target
@pytest.mark.usefixtures("kits")
def test_the_command_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setattr(calibrate, "_BLOCK_S", 0.05)
    tiny = bundles.make(tmp_path / "b", formats=("tflite",))[0]
    (tmp_path / "mine.toml").write_text(f'base = "host"\nworkdir = "{tmp_path}/work"\n')
    done = CliRunner().invoke(cli, ["devices", "calibrate", str(tmp_path / "mine.toml"), str(tiny), "--pairs", "3"])
    assert done.exit_code == 0, done.output
    assert Path(done.output.split("Kept in")[1].strip()).is_file()


def test_a_calibration_that_cannot_be_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data").write_text("")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    with pytest.raises(InputError, match="cannot be written"):
        calibrate.check_path("host")


def test_a_name_stays_one_plain_file() -> None:
    assert calibrate.path("adb:../../x y").name == "adb-..-..-x-y.json"
    assert calibrate.path("adb:../../x y").parent == calibrate.path("host").parent
