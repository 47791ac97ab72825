"""Recordings of energy sources (tests/golden/energy) as real files, read by the meters' real scripts in real shells."""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

GOLDEN = Path(__file__).parents[2] / "golden" / "energy"
SHELLS = (("sh",), ("dash",), ("busybox", "sh"), ("mksh",))

Play = Callable[[str, str], list[tuple[float, str]]]


def lay(root: Path, head: str, body: str) -> None:
    """One file of a recording: `PATH`, `unreadable PATH`, or `output of PATH` for a tool that prints the body."""
    kind = next((kind for kind in ("unreadable ", "output of ") if head.startswith(kind)), "")
    file = root / head.removeprefix(kind)
    file.parent.mkdir(parents=True, exist_ok=True)
    if kind == "unreadable ":
        file.mkdir(exist_ok=True)  # opens and then fails to be read, for root too
    elif kind == "output of ":
        file.with_suffix(".said").write_text(body, encoding="utf-8")
        file.write_text(f'#!/bin/sh\ncat "{file.with_suffix(".said")}"\n', encoding="utf-8")
        file.chmod(0o755)
    else:
        file.write_text(body, encoding="utf-8")


@pytest.fixture
def play(tmp_path: Path) -> Play:
    """`play("rapl/wrap", script)`: what the script prints at each moment, which must be the same in every shell."""

    def run(name: str, script: str) -> list[tuple[float, str]]:
        recording = (GOLDEN / f"{name}.txt").read_text(encoding="utf-8")
        printed: list[tuple[float, str]] = []
        for moment in ("\n" + recording).split("\n=== ")[1:]:
            stamp, _, files = moment.partition("\n")
            for block in ("\n" + files).split("\n--- ")[1:]:
                head, _, body = block.partition("\n")
                lay(tmp_path, head, body.rstrip("\n") + "\n")
            said = {
                shell: subprocess.run(
                    [*shell, "-c", script, "edgekit", str(tmp_path)],
                    capture_output=True, stdin=subprocess.DEVNULL, timeout=20,
                )
                for shell in SHELLS
                if shutil.which(shell[0])
            }  # fmt: skip
            assert not {shell: done.stderr for shell, done in said.items() if done.stderr}
            assert len({done.stdout for done in said.values()}) == 1, said
            printed.append((float(stamp), said["sh",].stdout.decode()))
        return printed

    return run
