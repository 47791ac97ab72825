"""A real limit on a real process; the group is gone afterwards."""

import json
import os
import sys
from pathlib import Path

import pytest

from edgekit.bench import memory
from edgekit.bench.runner import PHASES
from edgekit.bench.transports import local

CGROUPS = "/sys/fs/cgroup"
granted = os.geteuid() == 0 and (Path(CGROUPS, "memory").is_dir() or Path(CGROUPS, "cgroup.controllers").exists())
EAT = """
import json, sys
block = bytearray(int(sys.argv[1]))
print(sys.argv[2])
"""


def said() -> str:
    """A document as the runner's."""
    phases = [
        {"name": name, **dict.fromkeys(["hwm_bytes", "rss_bytes", "anon_bytes", "file_bytes", "shmem_bytes"], 1),
         "pss_bytes": None, "swap_bytes": 0}
        for name in PHASES
    ]  # fmt: skip
    return json.dumps(
        {"edgekit_runner": 1, "runner": "native", "format": "onnx", "runtime": "onnxruntime", "library_version": "1",
         "threads": 1, "cpus": None, "open_ns": 1, "load_ns": 1, "first_run_ns": 1, "warmup_ns": [], "samples_ns": [],
         "cpu_ns": [], "began_ns": None, "ended_ns": None, "voluntary_switches": 0, "involuntary_switches": 0,
         "minor_faults": 0, "major_faults": 0, "phases": phases, "examples": 1}
    )  # fmt: skip


@pytest.mark.parametrize("root", [CGROUPS, "/nonexistent"])
@pytest.mark.parametrize(("eats", "survives"), [(1_000_000, True), (400_000_000, False)])
def test_a_limit_is_real(root: str, eats: int, survives: bool) -> None:
    if root == CGROUPS and not granted:
        pytest.skip("no memory cgroup can be made here")
    before = set(Path(CGROUPS).rglob("edgekit-*")) if granted else set()
    with local.connect(local.Params()) as transport:
        argv = [sys.executable, "-c", EAT, str(eats), said()]
        found = memory.limited(transport, argv, 100_000_000, 30, root)
    assert (found.survived, found.limit_bytes) == (survives, 100_000_000)
    assert (found.kind == "address-space") == (root != CGROUPS)
    assert bool(found.said) is not survives
    if root == CGROUPS and not survives:
        assert "kernel" in found.said
    assert (set(Path(CGROUPS).rglob("edgekit-*")) if granted else set()) == before


def test_a_group_that_takes_no_limit_is_removed(tmp_path: Path) -> None:
    """As in a container that may make groups and set nothing: here the groups of another controller."""
    if not (granted and Path(CGROUPS, "pids").is_dir()):
        pytest.skip("no cgroup v1 can be made here")
    (tmp_path / "memory").symlink_to(Path(CGROUPS, "pids"))
    before = set(Path(CGROUPS, "pids").rglob("edgekit-*"))
    with local.connect(local.Params()) as transport:
        found = memory.limited(transport, ["echo", said()], 100_000_000, 30, str(tmp_path))
    assert (found.kind, found.survived) == ("address-space", True)
    assert set(Path(CGROUPS, "pids").rglob("edgekit-*")) == before
