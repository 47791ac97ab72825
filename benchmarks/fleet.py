"""One device and twenty at once, with the measuring itself stubbed out: what edgekit's own work on a device costs.

    python benchmarks/fleet.py [--devices 20]      exit 3 where twenty take 2.5 times as long as one, or more

The devices are real adbds and real OpenSSH servers by turns, on loopback (see tests/lab), all on this machine's cores.
Uploads are done before, as they are for every bench but the first. Three rounds of each, the best of each counts.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "lab"), str(ROOT / "tests" / "pipeline")]

import bundles  # noqa: E402
import lab  # noqa: E402
import stub  # noqa: E402

from edgekit import bundle, devices  # noqa: E402
from edgekit.bench import bench as benches  # noqa: E402
from edgekit.bench import check  # noqa: E402
from edgekit.bench.measure import Wanted  # noqa: E402
from edgekit.pipeline.bundle import host  # noqa: E402
from edgekit.records import Device, Use  # noqa: E402

LIMIT = 2.5
WANTED = Wanted(seconds=0.01, runner="python")


def main() -> int:
    """Print and write the figures; the exit code."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    arguments.add_argument("--devices", type=int, default=20)
    count = arguments.parse_args().devices
    with tempfile.TemporaryDirectory(prefix="edgekit-fleet-") as temporary, ExitStack() as stack:
        folder = Path(temporary)
        tiny = bundles.make(folder / "tiny", formats=("tflite",))[0]
        fleet = start(count, folder, tiny, stack)

        def seconds(some: list[Device]) -> float:
            began = time.monotonic()
            found = benches.bench(tiny, some[::-1], WANTED, folder / "results")
            taken = time.monotonic() - began
            assert not found.failures, found.failures
            assert [result.device for result in found.results] == sorted(device.name for device in some)
            return taken

        seconds(fleet)  # uploads
        rounds = [(seconds(fleet[:1]), seconds(fleet[1:2]), seconds(fleet)) for _ in range(3)]
    one, many = min(max(a, b) for a, b, _ in rounds), min(all_ for _, _, all_ in rounds)
    figures = {
        "devices": count,
        "one_s": round(one, 2),
        "all_s": round(many, 2),
        "ratio": round(many / one, 2),
        "limit": LIMIT,
        "rounds_s": [[round(s, 2) for s in row] for row in rounds],
        "machine": f"{host()}, {os.cpu_count()} cores",
    }
    (ROOT / "benchmarks" / "fleet.json").write_text(json.dumps(figures, indent=1) + "\n")
    print(json.dumps(figures, indent=1))
    return 0 if many / one < LIMIT else 3


def start(count: int, folder: Path, tiny: Path, stack: ExitStack) -> list[Device]:
    """Half of them by adb, half by ssh, each with the stub; names in order."""
    subject = check.subject(tiny, tiny, bundle.verify(tiny))
    server = stack.enter_context(lab.adb_server(folder, lab.adb_client(36)))
    os.environ.update(server.env)
    fleet: list[Device] = []
    for i in range(count):
        name = f"device-{i:02}"
        values: dict[str, object] = {"name": name, "budgets": ()}
        if i % 2 == 0:
            phone = stack.enter_context(lab.adbd(folder / "phones", name))
            stub.install(phone.root, subject)
            record = devices.find(f"adb:{server.connect(phone)}")
        else:
            box = stack.enter_context(lab.sshd(folder / name))
            stub.install(box.home, subject, seen=f"{box.home}/recorded/stub")
            link = {"name": "ssh", "host": box.host, "config": str(box.config)}
            record = devices.find("host")
            values |= {"link": Use.model_validate(link), "python": f"{box.home}/system/bin/python3"}
        fleet.append(record.model_copy(update=values))
    return fleet


if __name__ == "__main__":
    sys.exit(main())
