"""scripts/edgekit from the outside: real bash, real venvs, real pip, on a checkout whose edgekit is a few lines.

The stand-in package needs no download, so an install takes seconds. The real one is installed by scripts/test itself.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PYTHON = getattr(sys, "_base_executable", sys.executable)
MINOR = f"{sys.version_info[0]}.{sys.version_info[1]}"

# All that the scripts may count on beside Python: what every Debian has.
TOOLS = "bash cat cut dirname env find flock grep ls mkdir readlink realpath rm sha256sum tail"

PYPROJECT = """
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]
[project]
name = "edgekit"
version = "0.1.0"
"""

BACKEND = '''
"""A build backend without dependencies: one editable wheel of the folder that it lies in."""
import os, pathlib, time, zipfile

def build_editable(wheel_directory, config_settings=None, metadata_directory=None):
    hang = os.environ.get("HANG")
    if hang:
        pathlib.Path(hang).touch()
        time.sleep(600)
    info, name = "edgekit-0.1.0.dist-info", "edgekit-0.1.0-py3-none-any.whl"
    files = {
        "edgekit.pth": os.getcwd(),
        f"{info}/METADATA": "Metadata-Version: 2.1\\nName: edgekit\\nVersion: 0.1.0\\n"
                            "Provides-Extra: build\\nProvides-Extra: bench\\nProvides-Extra: dev\\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\\nGenerator: test\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n",
        f"{info}/entry_points.txt": "[console_scripts]\\nedgekit = edgekit:main\\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{path},,\\n" for path in [*files, f"{info}/RECORD"])
    with zipfile.ZipFile(os.path.join(wheel_directory, name), "w") as wheel:
        for path, text in files.items():
            wheel.writestr(path, text)
    return name
'''

MAIN = """
import json, os, sys

def main():
    print(json.dumps({"argv": sys.argv[1:], "pid": os.getpid(), "cwd": os.getcwd(), "prefix": sys.prefix}))
"""


def make_checkout(folder: Path) -> Path:
    (folder / "edgekit").mkdir(parents=True)
    (folder / "pyproject.toml").write_text(PYPROJECT)
    (folder / "backend.py").write_text(BACKEND)
    (folder / "edgekit" / "__init__.py").write_text(MAIN)
    shutil.copytree(ROOT / "scripts", folder / "scripts")
    return folder


def environment(tmp: Path, **pythons: str) -> dict[str, str]:
    """A machine with `TOOLS` and the given Pythons: name (`python3_12` is python3.12) to the code it runs first."""
    path = tmp / "bin"
    path.mkdir()
    for tool in TOOLS.split():
        found = shutil.which(tool)
        assert found, tool
        (path / tool).symlink_to(found)
    for name, before in pythons.items():
        script = path / name.replace("_", ".")
        fake = f"""[ "$1" = -c ] && exec "{PYTHON}" -c 'import sys; {before}; exec(sys.argv[1])' "$2"\n"""
        script.write_text(f'#!{shutil.which("bash")}\n{before and fake}exec "{PYTHON}" "$@"\n')
        script.chmod(0o755)
    return {"PATH": str(path), "HOME": str(tmp), "PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": os.devnull}


def run(script: Path, env: dict[str, str], *args: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run([script, *args], env=env, cwd=cwd, capture_output=True, text=True, timeout=300)


def version(*numbers: int) -> str:
    return f'sys.version_info = ({", ".join(map(str, numbers))}, 0, "final", 0)'


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return environment(tmp_path_factory.mktemp("machine"), python3="")


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory, machine: dict[str, str]) -> Path:
    """A checkout, in a folder with a space in its name, whose first use is over."""
    folder = make_checkout(tmp_path_factory.mktemp("with space") / "checkout")
    first = run(folder / "scripts" / "edgekit", machine, "build", "--json")
    assert first.returncode == 0, first.stderr
    assert json.loads(first.stdout)["argv"] == ["build", "--json"]
    assert first.stderr.count("\n") == 1
    assert "about 4 minutes" in first.stderr
    return folder


def test_later_use_says_nothing_and_installs_nothing(checkout: Path, machine: dict[str, str]) -> None:
    log = checkout / ".venv" / ".edgekit" / "install.log"
    before = log.stat().st_mtime_ns
    again = run(checkout / "scripts" / "edgekit", machine, "run", "two words", "*")
    assert json.loads(again.stdout)["argv"] == ["run", "two words", "*"]
    assert again.stderr == ""
    assert log.stat().st_mtime_ns == before


def test_works_from_anywhere_and_through_a_link(checkout: Path, machine: dict[str, str], tmp_path: Path) -> None:
    link = tmp_path / "ek"
    link.symlink_to(checkout / "scripts" / "edgekit")
    found = json.loads(run(link, machine, cwd=tmp_path).stdout)
    assert found["cwd"] == str(tmp_path)
    assert found["prefix"] == str(checkout / ".venv")


def test_signals_reach_edgekit(checkout: Path, machine: dict[str, str]) -> None:
    with subprocess.Popen([checkout / "scripts" / "edgekit"], env=machine, stdout=subprocess.PIPE) as process:
        out, _ = process.communicate(timeout=60)
    assert json.loads(out)["pid"] == process.pid


def test_changed_dependencies_are_installed(checkout: Path, machine: dict[str, str]) -> None:
    script = checkout / "scripts" / "edgekit"
    (checkout / "pyproject.toml").write_text(PYPROJECT + "# changed\n")
    assert "up to date" in run(script, machine).stderr
    assert run(script, machine).stderr == ""


def test_failed_install_shows_why_and_is_tried_again(checkout: Path, machine: dict[str, str]) -> None:
    script = checkout / "scripts" / "edgekit"
    good = (checkout / "pyproject.toml").read_text()
    (checkout / "pyproject.toml").write_text(good.replace("requires = []", 'requires = ["hatchling"]'))
    # nothing listens on port 9 of this machine
    offline = {k: v for k, v in machine.items() if k != "PIP_NO_INDEX"}
    offline |= {"PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_RETRIES": "0"}
    for _ in range(2):
        failed = run(script, offline)
        assert failed.returncode == 2
        assert failed.stdout == ""
        assert "No matching distribution found for hatchling" in failed.stderr
        assert "Check the network" in failed.stderr
    (checkout / "pyproject.toml").write_text(good)
    assert run(script, machine).returncode == 0


def test_killed_set_up_is_completed_by_two_at_once(tmp_path: Path) -> None:
    """Also: python3 is too new here, so the next best is taken; and EDGEKIT_VENV names the folder."""
    folder = make_checkout(tmp_path / "checkout")
    machine = environment(tmp_path, python3=version(3, 15), **{f"python{MINOR}".replace(".", "_"): ""})
    machine["EDGEKIT_VENV"] = str(tmp_path / "elsewhere" / "venv")
    script, hangs = folder / "scripts" / "edgekit", tmp_path / "hangs"

    first = subprocess.Popen([script], env=machine | {"HANG": str(hangs)}, start_new_session=True)
    deadline = time.monotonic() + 120
    while not hangs.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    assert hangs.exists()

    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    both = [subprocess.Popen([script, str(i)], env=machine, **pipes) for i in range(2)]
    results = [process.communicate(timeout=300) for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert [json.loads(out)["argv"] for out, _ in results] == [["0"], ["1"]]
    assert "".join(err for _, err in results).count("bringing") == 1
    assert json.loads(results[0][0])["prefix"] == machine["EDGEKIT_VENV"]
    assert not (folder / ".venv").exists()


def refused(tmp_path: Path, venv: Path | None = None, **pythons: str) -> str:
    folder = make_checkout(tmp_path / "checkout")
    machine = environment(tmp_path, **pythons)
    if venv:
        machine["EDGEKIT_VENV"] = str(venv)
    done = run(folder / "scripts" / "edgekit", machine, "build")
    assert done.returncode == 2
    assert done.stdout == ""
    return done.stderr


def test_python_too_old(tmp_path: Path) -> None:
    message = refused(tmp_path, python3=version(3, 9), python3_12=version(3, 10))
    assert "needs Python 3.11, 3.12 or 3.13, found python3, which is 3.9, python3.12, which is 3.10." in message
    assert "sudo apt install python3 python3-venv" in message
    assert message.count("\n") == 2


def test_no_python(tmp_path: Path) -> None:
    assert "found none" in refused(tmp_path)


def test_python_without_venv(tmp_path: Path) -> None:
    """Debian's python3 without its package python3-venv: there is no ensurepip."""
    message = refused(tmp_path, python3='sys.modules["ensurepip"] = None')
    assert f"sudo apt install python{MINOR}-venv" in message
    assert message.count("\n") == 2


def test_folder_with_other_files_is_left_alone(tmp_path: Path) -> None:
    kept = tmp_path / "photos" / "one.jpg"
    kept.parent.mkdir()
    kept.write_text("x")
    assert "is not a virtual environment" in refused(tmp_path, venv=kept.parent, python3="")
    assert [p.name for p in kept.parent.iterdir()] == ["one.jpg"]


def test_someone_elses_broken_venv_is_left_alone(tmp_path: Path) -> None:
    broken = tmp_path / "venv"
    broken.mkdir()
    (broken / "pyvenv.cfg").write_text("home = /nowhere\n")
    (broken / "precious").write_text("x")
    assert "Remove the folder" in refused(tmp_path, venv=broken, python3="")
    assert (broken / "precious").exists()
