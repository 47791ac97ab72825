"""A device's own noise, by hand and on this host."""

import math
from pathlib import Path

import bundles
import numpy as np
import pytest
from click.testing import CliRunner

from edgekit import devices
from edgekit.bench import calibrate, sidebyside
from edgekit.cli import cli
from edgekit.errors import InputError
from edgekit.results import Calibration


@pytest.mark.target
@pytest.mark.usefixtures("kits")
def test_this_host_is_calibrated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setattr(sidebyside, "TURNS", 2)
    tiny = bundles.make(tmp_path / "b", formats=("tflite",))[0]
    device = devices.find("host").model_copy(update={"workdir": str(tmp_path / "work")})
    found = calibrate.calibrate(device, tiny, 3)
    assert (found.pairs, len(found.medians_s), found.length, found.format) == (3, 6, 32, "tflite")
    assert all(0 < median < 1 for median in found.medians_s)
    a, b, c, d, e, f = found.medians_s
    ratios = np.log([b / a, c / d, f / e])  # three are too few to trim any
    assert found.noise == pytest.approx(np.std(ratios, ddof=1))
    assert found.smallest_effect == pytest.approx(math.expm1(4.302653 * np.std(ratios, ddof=1) / math.sqrt(3)))
    kept = calibrate.path("host")
    assert kept == tmp_path / "data" / "edgekit" / "calibration" / "host.json"
    assert Calibration.model_validate_json(kept.read_bytes()) == found
    assert not (tmp_path / "work" / "run").exists()


@pytest.mark.target
@pytest.mark.usefixtures("kits")
def test_the_command_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setattr(sidebyside, "TURNS", 2)
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
