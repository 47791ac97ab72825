"""Energy, measured for real: a process turns counters in a recorded sysfs tree at a known power, so the joules are
known, and the meter's own loop reads them through the local transport."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edgekit.bench import energy
from edgekit.bench.runner import Run
from edgekit.bench.transports import Transport, local
from edgekit.errors import DeviceError, InputError
from edgekit.records import Use
from edgekit.results import Energy

IDLE_W, LOAD_W = 1.0, 6.0
PER_S = 100  # inferences of the load
SCALE = {"window_s": 0.8, "repeats": 2, "period_s": 0.04}
QUICK = {"window_s": 0.4, "repeats": 2, "period_s": 0.04}

# Argv: the busy file, watts while idle and while busy, then for each file PATH KIND A B.
TURN = """
import itertools, os, sys, time
busy, idle, load, *files = sys.argv[1:]
joules, before = 0.0, time.monotonic()
for n in itertools.count():
    now = time.monotonic()
    power = float(load if os.path.exists(busy) else idle)
    joules, before = joules + power * (now - before), now
    for path, kind, a, b in zip(files[::4], files[1::4], files[2::4], files[3::4]):
        a, b = float(a), float(b)
        if kind == "counter":  # a share of the joules, from b on, in uJ
            text = str(int((b + joules * a) * 1e6))
        elif kind == "wraps":  # at b
            text = str(int(joules * a * 1e6) % int(b * 1e6))
        elif kind == "jumps":  # in steps of a, in uJ
            text = str(int(joules // a * a * 1e6))
        elif kind == "watts":  # that flicker by a, in uW
            text = str(int((power + a * (n % 5 - 2)) * 1e6))
        elif kind == "resets":  # after a joules
            text = str(int((joules if joules < a else joules - a) * 1e6))
        elif kind == "row":  # of a CSV that grows
            with open(path, "a") as file:
                file.write(f"{time.time() + a:.4f},{power:.3f}\\n")
            continue
        with open(path + ".new", "w") as file:
            file.write(text + "\\n")
        os.replace(path + ".new", path)
    time.sleep(0.005)
"""


class Rig:
    """A recorded tree whose files move, and a load that moves them faster."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "board"
        self.busy = folder / "busy"
        self.loads: list[float] = []

    def write(self, path: str, text: str) -> str:
        """A file that stays as it is; its path."""
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{text}\n")
        return str(file)

    @contextlib.contextmanager
    def turning(self, *files: tuple[str, str, float, float], load_w: float = LOAD_W) -> Iterator[None]:
        """Move `files` (path, kind, a, b) by what is drawn."""
        argv = [sys.executable, "-c", TURN, str(self.busy), str(IDLE_W), str(load_w)]
        for file in files:
            argv += [str(part) for part in file]
        with subprocess.Popen(argv, stdin=subprocess.DEVNULL) as process:
            try:
                deadline = time.monotonic() + 10
                while not all(Path(file[0]).exists() and Path(file[0]).stat().st_size for file in files):
                    assert time.monotonic() < deadline, "the rig did not start"
                    time.sleep(0.01)
                yield
            finally:
                process.kill()

    def load(self, seconds: float) -> Run:
        """Busy for so long, as a runner would say it."""
        self.loads.append(seconds)
        self.busy.touch()
        time.sleep(0.03)  # as a runner's warm-up, before it measures
        began_s = time.time()
        time.sleep(seconds)
        ended_s = time.time()
        self.busy.unlink()
        return ran(began_s, ended_s)

    def readers(self) -> list[int]:
        """The processes that have this rig's root in their arguments."""
        found: list[int] = []
        for pid in filter(str.isdigit, os.listdir("/proc")):
            with contextlib.suppress(OSError):
                if str(self.root).encode() in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"):
                    found.append(int(pid))
        return found


def ran(began_s: float | None, ended_s: float | None) -> Run:
    count = round((ended_s - began_s) * PER_S) if began_s and ended_s else 0
    return Run(
        runner="native", format="tflite", runtime="litert", library_version="1", threads=1, cpus=None, open_s=0,
        load_s=0, first_run_s=0, warmup_s=(), samples_s=(0.01,) * count, cpu_s=(0.01,) * count, began_s=began_s,
        ended_s=ended_s, voluntary_switches=0, involuntary_switches=0, minor_faults=0, major_faults=0, phases=(),
        examples=1,
    )  # fmt: skip


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    rig = Rig(tmp_path)
    yield rig
    deadline = time.monotonic() + 10
    while rig.readers() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not rig.readers(), "something still reads the meter"


@pytest.fixture
def here() -> Iterator[Transport]:
    with local.connect(local.Params()) as transport:
        yield transport


def rapl(rig: Rig, zone: str = "0", name: str = "package-0", most_uj: str = "262143328850") -> str:
    rig.write(f"sys/class/powercap/intel-rapl:{zone}/name", name)
    rig.write(f"sys/class/powercap/intel-rapl:{zone}/max_energy_range_uj", most_uj)
    return str(rig.root / f"sys/class/powercap/intel-rapl:{zone}/energy_uj")


def hwmon(rig: Rig, file: str) -> str:
    rig.write("sys/class/hwmon/hwmon0/name", "chip")
    return str(rig.root / "sys/class/hwmon/hwmon0" / file)


def right(found: Energy, within: float = 0.08) -> None:
    """6 W at 100 inferences a second is 60 mJ, 50 mJ of it above idling."""
    assert found.state == "measured", found.reason
    assert found.reason is None
    assert found.gross_j == pytest.approx(LOAD_W / PER_S, rel=within)
    assert found.net_j == pytest.approx((LOAD_W - IDLE_W) / PER_S, rel=within)
    assert found.idle_w == pytest.approx(IDLE_W, rel=2 * within)
    assert found.load_w == pytest.approx(LOAD_W, rel=within)
    assert found.gross_interval is not None
    assert found.net_interval is not None
    assert found.gross_interval.low < found.gross_j < found.gross_interval.high
    assert found.net_interval.low < found.net_j < found.net_interval.high


def no_figures(found: Energy) -> None:
    """An energy that is not measured has no number in it that could be mistaken for one."""
    assert found.gross_j is found.net_j is found.idle_w is found.load_w is None
    assert found.gross_interval is found.net_interval is None
    assert found.reason


def test_counters_that_wrap_each_on_their_own(rig: Rig, here: Transport) -> None:
    package = rapl(rig, "0", "package-0", "2000000")
    dram = rapl(rig, "0:0", "dram", "700000")
    with rig.turning((package, "wraps", 0.75, 2.0), (dram, "wraps", 0.25, 0.7)):
        found = energy.measure(None, here, rig.load, window_s=0.8, repeats=3, period_s=0.04, root=str(rig.root))
    right(found)
    assert found.source == "RAPL energy counters: package-0, dram"
    assert [window.kind for window in found.windows] == ["idle", "load"] * 3 + ["idle"]
    assert [window.inferences > 0 for window in found.windows] == [False, True] * 3 + [False]
    for before, after in zip(found.windows, found.windows[1:], strict=False):
        assert before.began_s < before.ended_s <= after.began_s
    for window in found.windows:
        power_w = LOAD_W if window.kind == "load" else IDLE_W
        assert window.energy_j == pytest.approx(power_w * (window.ended_s - window.began_s), rel=0.16)
        assert window.samples >= 10  # of 20, on a busy machine
    assert rig.loads == [0.8] * 3


def test_power_is_integrated(rig: Rig, here: Transport) -> None:
    with rig.turning((hwmon(rig, "power1_input"), "watts", 0.02, 0)):
        found = energy.measure(Use(name="hwmon"), here, rig.load, **SCALE, root=str(rig.root))
    right(found)
    assert found.resolution_j == pytest.approx(0.02 * 0.8, rel=0.1)  # steps of 20 mW over a window


def test_a_counter_that_moves_in_jumps_is_as_coarse_as_they_are(rig: Rig, here: Transport) -> None:
    with rig.turning((hwmon(rig, "energy1_input"), "jumps", 0.3, 0)):
        found = energy.measure(None, here, rig.load, **SCALE, root=str(rig.root))
    right(found, within=0.25)
    assert found.resolution_j == pytest.approx(0.3, rel=0.01)
    assert found.net_interval is not None
    assert found.net_interval.high - found.net_interval.low > 2 * 0.3 / 90  # the jump is in the interval


def test_what_a_load_adds_must_be_ten_times_the_resolution(rig: Rig, here: Transport) -> None:
    with rig.turning((hwmon(rig, "energy1_input"), "jumps", 0.8, 0)):  # of 4 J a window
        found = energy.measure(None, here, rig.load, **SCALE, root=str(rig.root))
    assert found.state == "not resolvable"
    no_figures(found)
    assert "10 times" in str(found.reason)
    assert len(found.windows) == 5  # what was seen is kept
    assert found.resolution_j == pytest.approx(0.8, rel=0.01)


def test_a_load_that_draws_no_more_than_idling(rig: Rig, here: Transport) -> None:
    with rig.turning((rapl(rig), "counter", 1, 7), load_w=IDLE_W):
        found = energy.measure(None, here, rig.load, **QUICK, root=str(rig.root))
    assert found.state == "not resolvable"
    no_figures(found)
    assert found.source == "RAPL energy counters: package-0"


def test_a_counter_that_never_moves_is_not_0_joules(rig: Rig, here: Transport) -> None:
    Path(rapl(rig)).write_text("0\n")
    found = energy.measure(None, here, rig.load, **QUICK, root=str(rig.root))
    assert found.state == "unavailable"
    no_figures(found)
    assert "never moves" in str(found.reason)


@pytest.mark.parametrize(("value", "says"), [("0", "0 W throughout"), ("4500000", "stuck")])
def test_power_that_never_moves(rig: Rig, here: Transport, value: str, says: str) -> None:
    Path(hwmon(rig, "power1_input")).write_text(f"{value}\n")
    found = energy.measure(None, here, rig.load, **QUICK, root=str(rig.root))
    assert found.state == "unavailable"
    no_figures(found)
    assert says in str(found.reason)


def test_a_counter_that_is_reset(rig: Rig, here: Transport) -> None:
    with rig.turning((hwmon(rig, "energy1_input"), "resets", 3, 0)):
        found = energy.measure(None, here, rig.load, **QUICK, root=str(rig.root))
    assert found.state == "unavailable"
    no_figures(found)
    assert "went back" in str(found.reason)


def battery(rig: Rig, status: str = "Discharging", online: str = "0") -> str:
    folder = "sys/class/power_supply"
    rig.write(f"{folder}/battery/type", "Battery")
    rig.write(f"{folder}/battery/status", status)
    rig.write(f"{folder}/battery/voltage_now", "4000000")
    rig.write(f"{folder}/usb/type", "USB")
    rig.write(f"{folder}/usb/online", online)
    return rig.write(f"{folder}/battery/current_now", "-250000")


@pytest.mark.parametrize(("status", "online"), [("Charging", "1"), ("Discharging", "1"), ("Not charging", "0")])
def test_external_power_is_refused_before_any_work(rig: Rig, here: Transport, status: str, online: str) -> None:
    battery(rig, status, online)
    found = energy.measure(None, here, rig.load, **QUICK, root=str(rig.root))
    assert found.state == "refused"
    no_figures(found)
    assert "external power" in str(found.reason)
    assert not rig.loads


def test_external_power_during_the_pass_is_refused(rig: Rig, here: Transport) -> None:
    battery(rig)

    def load(seconds: float) -> Run:
        battery(rig, online="1" if rig.loads else "0")  # plugged in at the second window
        return rig.load(seconds)

    found = energy.measure(None, here, load, **QUICK, root=str(rig.root))
    assert found.state == "refused"
    no_figures(found)


def test_a_gauge_that_refreshes_once_a_second_needs_long_windows(rig: Rig, here: Transport) -> None:
    current = battery(rig)
    scale = {"window_s": 1.8, "repeats": 2, "period_s": 0.1}
    with rig.turning((current, "watts", 0.02, 0)):  # uA, of 4 V
        found = energy.measure(None, here, rig.load, **scale, root=str(rig.root))
    assert found.state == "not resolvable"
    no_figures(found)
    assert found.resolution_j is not None
    assert found.resolution_j > 4 * (LOAD_W - IDLE_W) * 0.9  # a second at each edge, here of 4 V x 5 A


def test_no_source(rig: Rig, here: Transport) -> None:
    rig.root.mkdir()
    found = energy.measure(None, here, rig.load, **QUICK, root=str(rig.root))
    assert found.state == "unavailable"
    no_figures(found)
    assert all(name in str(found.reason) for name in energy.ORDER)
    assert not rig.loads


def test_a_source_that_cannot_be_read_gives_the_remedy(rig: Rig, here: Transport) -> None:
    Path(rapl(rig)).mkdir()
    found = energy.measure(None, here, rig.load, **QUICK, root=str(rig.root))
    assert found.state == "unavailable"
    no_figures(found)
    assert "chmod" in str(found.reason)
    assert "odpm" not in str(found.reason)  # what is not there is no news beside it


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody who may not read")
def test_a_counter_that_only_root_may_read(rig: Rig, tmp_path: Path) -> None:
    counter = Path(rapl(rig))
    counter.write_text("1\n")
    counter.chmod(0o400)
    script = energy.plugins.use("meters", Use(name="rapl"))[0].script(None)
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(folder.stat().st_mode | 0o005)
    argv = ["sh", "-c", script, "edgekit", str(rig.root)]
    done = subprocess.run(argv, capture_output=True, user=65534, group=65534, extra_groups=[], timeout=20, cwd="/")
    assert done.stdout == b"unreadable 262143328850 package-0\n"
    assert done.stderr == b""


def test_the_meter_that_is_named_is_the_only_one_tried(rig: Rig, here: Transport) -> None:
    battery(rig)
    found = energy.measure(Use(name="rapl"), here, rig.load, **QUICK, root=str(rig.root))
    assert found.state == "unavailable"
    assert "rapl" in str(found.reason)
    with pytest.raises(InputError, match="rails"):
        energy.measure(Use(name="rapl", rails=["x"]), here, rig.load, **QUICK, root=str(rig.root))


def test_sources_say_their_state(rig: Rig, here: Transport) -> None:
    Path(rapl(rig)).mkdir()
    battery(rig, "Charging", "1")
    rig.write("sys/bus/iio/devices/iio:device0/energy_value", "t=1\nCH1(T=1)[S2M_VDD_CPU2], 1\n")
    Path(hwmon(rig, "power1_input")).write_text("1000000\n")
    found = {source.name: source for source in energy.sources(here, str(rig.root))}
    assert tuple(found) == energy.ORDER
    assert {name: source.state for name, source in found.items()} == {
        "odpm": "on external power", "ina3221": "absent", "pmic": "absent", "rapl": "unusable",
        "battery": "on external power", "hwmon": "ready",
    }  # fmt: skip
    assert "root" in found["rapl"].said
    assert found["hwmon"].said == "hwmon sensor: chip power1"


def test_without_fractions_of_seconds_in_date(
    rig: Rig, here: Transport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As busybox's `date`: the loop goes by /proc/uptime, on the same clock as the runner."""
    tools = tmp_path / "tools"
    tools.mkdir()
    date = tools / "date"
    date.write_text('#!/bin/sh\nPATH=${PATH#*:}\ncase $1 in *.%N) date "${1%.%N}.%%N" ;; *) date "$@" ;; esac\n')
    date.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    assert subprocess.run(["date", "+%s.%N"], capture_output=True, text=True).stdout.endswith(".%N\n")
    with rig.turning((rapl(rig), "counter", 1, 0)):
        right(energy.measure(None, here, rig.load, **SCALE, root=str(rig.root)))


def instrument(tmp_path: Path) -> Path:
    file = tmp_path / "trace.csv"
    file.write_text("time,power\n")
    return file


def test_an_instruments_file_is_laid_over_the_windows(rig: Rig, here: Transport, tmp_path: Path) -> None:
    file = instrument(tmp_path)
    use = Use(name="trace", file=str(file), offset_s=-3600)
    with rig.turning((str(file), "row", 3600, 0)):  # its clock is an hour ahead
        time.sleep(0.1)
        found = energy.measure(use, here, rig.load, **SCALE)
    right(found)
    assert found.source == "external instrument: power"


def test_an_instruments_file_that_ends_before_the_pass_is_refused(
    rig: Rig, here: Transport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = instrument(tmp_path)
    monkeypatch.setattr(energy, "_FILE_S", 0.5)
    with rig.turning((str(file), "row", 0, 0)):
        time.sleep(0.1)
    found = energy.measure(Use(name="trace", file=str(file)), here, rig.load, **QUICK)
    assert found.state == "refused"
    no_figures(found)
    assert "before the pass did" in str(found.reason)


def test_an_instruments_file_that_began_late_is_refused(rig: Rig, here: Transport, tmp_path: Path) -> None:
    file = tmp_path / "trace.csv"
    late = time.time() + 0.8
    rows = "".join(f"{late + n / 100:.2f},{1 + n % 7}\n" for n in range(3000))
    file.write_text(f"time,power\n{rows}")
    found = energy.measure(Use(name="trace", file=str(file)), here, rig.load, **QUICK)
    assert found.state == "refused"
    no_figures(found)
    assert "does not cover" in str(found.reason)


def test_an_instruments_file_that_is_not_there(rig: Rig, here: Transport, tmp_path: Path) -> None:
    found = energy.measure(Use(name="trace", file=str(tmp_path / "no.csv")), here, rig.load, **QUICK)
    assert found.state == "unavailable"
    assert "start the instrument first" in str(found.reason)
    assert not rig.loads


def test_a_load_that_fails_ends_the_loop_too(rig: Rig, here: Transport) -> None:
    def load(seconds: float) -> Run:
        assert len(rig.readers()) >= 1
        raise DeviceError("the runner was killed")

    with rig.turning((rapl(rig), "counter", 1, 0)), pytest.raises(DeviceError, match="the runner was killed"):
        energy.measure(None, here, load, **QUICK, root=str(rig.root))


@pytest.mark.parametrize(("times", "says"), [((None, None), "measured nothing"), ((5.0, 5.1), "ended after 0.1 s")])
def test_a_load_that_did_not_last(
    rig: Rig, here: Transport, times: tuple[float | None, float | None], says: str
) -> None:
    load: Callable[[float], Run] = lambda seconds: ran(*times)  # noqa: E731
    with rig.turning((rapl(rig), "counter", 1, 0)):
        if times[0] is None:
            with pytest.raises(DeviceError, match=says):
                energy.measure(None, here, load, **QUICK, root=str(rig.root))
            return
        found = energy.measure(None, here, load, **QUICK, root=str(rig.root))
    assert found.state == "unavailable"
    no_figures(found)
    assert says in str(found.reason)


def test_a_loop_that_is_killed_leaves_no_figure(rig: Rig, here: Transport) -> None:
    def load(seconds: float) -> Run:
        for pid in rig.readers():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return rig.load(seconds)

    with rig.turning((rapl(rig), "counter", 1, 0)):
        try:
            found = energy.measure(None, here, load, **QUICK, root=str(rig.root))
        except DeviceError:
            return  # the leash was among the killed: a lost link
    assert found.state == "unavailable"
    no_figures(found)


def test_one_window_gives_no_interval(rig: Rig, here: Transport) -> None:
    with pytest.raises(InputError, match="2 windows"):
        energy.measure(None, here, rig.load, window_s=1, repeats=1)
