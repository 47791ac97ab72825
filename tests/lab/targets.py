"""The lab's devices as targets: each with the transport that reaches it, for tests that hold for all of them."""

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import lab

from edgekit import plugins
from edgekit.bench.transports import Transport
from edgekit.records import Use

KINDS = ("ssh", "adb29", "adb36")


@dataclass
class Target:
    """A real device and the link to it."""

    link: Use
    box: lab.Sshd | lab.Adbd
    files: Path
    """The device's `folder`, as this machine sees it."""
    folder: str
    """Where tests work on it, an absolute path there."""

    def connect(self) -> AbstractContextManager[Transport]:
        """Open the link to it."""
        module, params = plugins.use("transports", self.link)
        return module.connect(params)

    def start(self, code: str) -> "subprocess.Popen[str]":
        """A Python process of its own that runs `code` with `connect()` and `folder`, its stdout read from here."""
        before = (
            "import json, sys\nfrom edgekit import plugins\nfrom edgekit.records import Use\n"
            "from edgekit.bench import deploy\nlink, folder = Use(**json.loads(sys.argv[1])), sys.argv[2]\n"
            "def connect():\n    module, params = plugins.use('transports', link)\n    return module.connect(params)\n"
        )
        return subprocess.Popen(
            [sys.executable, "-c", before + code, json.dumps(self.link.model_dump()), self.folder],
            stdout=subprocess.PIPE, text=True, cwd=Path(plugins.__file__).parent.parent, start_new_session=True,
        )  # fmt: skip

    def wait_until_empty(self, seconds: float = 15) -> None:
        """Nothing runs there any more, and no work folder lies about."""
        lab.wait_for("what runs on the device to end", lambda: not self.box.processes(), seconds)
        left = [path for path in self.files.rglob("*") if path.name in ("run", "lock") or path.suffix == ".part"]
        assert not left


@contextlib.contextmanager
def target(kind: str, folder: Path, mount: str = "") -> Iterator[tuple[Target, dict[str, str]]]:
    """A device of that kind below `folder`, and the environment that adb needs to see it. `mount` is for adbd."""
    if kind == "ssh":
        with lab.sshd(folder) as box:
            yield Target(Use(name="ssh", host=box.host, config=str(box.config)), box, box.home, str(box.home)), {}
        return
    client = lab.adb_client(int(kind.removeprefix("adb")))
    with lab.adb_server(folder, client) as server, lab.adbd(folder / "phones", mount=mount) as phone:
        link = Use(name="adb", serial=phone.serial, adb=str(client))
        yield Target(link, phone, phone.root / "data/local/tmp", "/data/local/tmp"), server.env
