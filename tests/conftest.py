"""What every test gets: no network, caches of its own, two threads; and how many tests met a real target."""

import os
import signal
import sys
import tempfile
from pathlib import Path

import hypothesis
import pytest

ROOT = Path(__file__).parent.parent

# Before any test module imports a library that reads these once. Child processes inherit them.
_SESSION = tempfile.TemporaryDirectory(prefix="edgekit-tests-")
os.environ.update(
    HF_HUB_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    TRANSFORMERS_OFFLINE="1",
    HF_HOME=f"{_SESSION.name}/huggingface",
    HF_HUB_DISABLE_TELEMETRY="1",
    XDG_CACHE_HOME=f"{_SESSION.name}/cache",
    EDGEKIT_STORE=f"{_SESSION.name}/store",
    OMP_NUM_THREADS="2",  # torch's and numpy's pools
    OMP_WAIT_POLICY="passive",
    TOKENIZERS_PARALLELISM="false",
)

# Started in the background, a shell's job ignores Ctrl-C, and so would every process that a test starts and stops.
signal.signal(signal.SIGINT, signal.default_int_handler)

# A busy machine must not fail a test, and a run must not depend on the one before.
hypothesis.settings.register_profile("edgekit", deadline=None, database=None, derandomize=True)
hypothesis.settings.load_profile("edgekit")


def _only_loopback(event: str, args: tuple[object, ...]) -> None:
    if event == "socket.connect" and isinstance(args[1], tuple):
        host = str(args[1][0])
        if not (host.startswith("127.") or host in ("::1", "localhost", "0.0.0.0")):
            raise RuntimeError(f"a test reached for the network: {host}")


sys.addaudithook(_only_loopback)


@pytest.fixture(autouse=True)
def edgekit_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of this test's own that holds its caches, calibrations and store."""
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "cache"))
    monkeypatch.setenv("XDG_DATA_HOME", str(home / "data"))
    monkeypatch.setenv("EDGEKIT_STORE", str(home / "store"))
    return home


@pytest.fixture(scope="session")
def _kits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runners")


@pytest.fixture
def kits(_kits: Path, edgekit_home: Path) -> None:
    """Runner kits are compiled once for all tests that only use them; each kit is named by what went into it."""
    (edgekit_home / "cache" / "edgekit").mkdir(parents=True)
    (edgekit_home / "cache" / "edgekit" / "runners").symlink_to(_kits)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Real data sets, one folder each (`sst2/`, ...): EDGEKIT_DATA, or shared/data beside the checkout."""
    folder = Path(os.environ.get("EDGEKIT_DATA") or ROOT.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"no data sets at {folder}; name their folder with EDGEKIT_DATA")
    return folder


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how many tests ran on a real target, so that a green run cannot hide that none did."""
    stats = terminalreporter.stats
    target = {
        outcome: [r for r in stats.get(outcome, []) if "target" in getattr(r, "keywords", {})]
        for outcome in ("passed", "failed", "error", "skipped")
    }
    ran = {r.nodeid for outcome in ("passed", "failed", "error") for r in target[outcome]}
    line = f"real-target tests: {len(ran)} ran, {len(target['skipped'])} skipped"
    reasons = sorted({r.longrepr[2].removeprefix("Skipped: ") for r in target["skipped"]})
    terminalreporter.write_line(line + (f" ({'; '.join(reasons)})" if reasons else ""))
