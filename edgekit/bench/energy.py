"""Energy: what one inference costs, measured in windows of idling and of work by turns.

    idle | load | idle | load | idle | load | idle          each of `window_s`, a minute for gauges of 1 Hz

    gross = energy of a load window / its inferences
    net   = (energy of a load window - mean power of the idle windows beside it x its time) / its inferences

A loop on the device prints the meter's readings for the whole pass; they are cut into windows here. Each window's mean
power is taken between the first and the last reading within it, so that no reading straddles an edge. The loop's own
cost is in all windows alike: it is in gross and not in net.

No figure is a guess. There is none where no source answers, where a counter stands still, while the device is on
external power, or where what the load adds is less than ten times what the source can resolve.
"""

import itertools
import math
import secrets
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from edgekit import plugins
from edgekit.bench.meters import Meter, Reading, Silence
from edgekit.bench.runner import Run
from edgekit.bench.transports import Done, Transport
from edgekit.errors import DeviceError, InputError
from edgekit.records import Record, Use
from edgekit.results import Energy, EnergyWindow, Interval

ORDER = ("odpm", "ina3221", "pmic", "rapl", "battery", "hwmon")
"""Where no meter is named: monitors of the module or chip first, the battery's slow gauge late, and last what only the
board's maker can name. An external instrument is never found, only named."""

_RESOLVED = 10
"""What the load adds must be so many times the source's resolution."""
_PROBE_S = 30.0
_SETTLE_S = 2.0
"""Left out after a load: clocks and voltages fall by and by."""
_FILE_S = 10.0
"""How long an instrument's file is awaited to reach the end of the pass: instruments write with a delay."""
_PLUGGED = (
    "the device is on external power, which hides what it uses; unplug it (reach a phone by adb over Wi-Fi) and try "
    "again"
)

_CLOCK = """\
second=$(date +%s) up=
case $(date +%s.%N) in
*[!0-9.]* | *.) # no %N here: /proc/uptime, laid over the clock at the moment that its second turns
  while s=$(date +%s); [ "$s" = "$second" ]; do :; done
  read -r up rest </proc/uptime
  up=${up%.*}${up#*.} second=$s ;;
esac
now() {
  if [ -z "$up" ]; then t=$(date +%s.%N); return; fi
  read -r t rest </proc/uptime
  t=$((${t%.*}${t#*.} - up)) # a difference: mksh counts in 32 bits
  rest=0$((t % 100))
  t=$((second + t / 100)).${rest#"${rest%??}"}
}
"""
"""Shell: `now` puts the epoch seconds of the device's clock into `$t`, to 10 ms or better."""

_LOOP = """\
nonce=$2 period=$3
while :; do
  now
  printf '%s %s\\n' "$nonce" "$t"
  once "$1"
  sleep "$period" 2>/dev/null || sleep 1
done
"""


class Source(Record):
    """A meter on a device, for people who choose one."""

    name: str
    title: str
    state: Literal["ready", "on external power", "unusable", "absent"]
    said: str
    """What it reads, or why it cannot."""


@dataclass(frozen=True)
class _Meter:
    """A meter's module and parameters, and what a first reading gave."""

    name: str
    module: Meter
    params: Any
    first: Reading | Silence

    @property
    def title(self) -> str:
        parts = self.first.parts if isinstance(self.first, Reading) else ()
        return f"{self.module.TITLE}: {', '.join(parts)}" if parts else self.module.TITLE

    @property
    def age_s(self) -> float:
        return self.first.age_s if isinstance(self.first, Reading) else 0


@dataclass(frozen=True)
class _Window:
    """A window with the mean power within it, and what the source can resolve of its energy."""

    kind: Literal["idle", "load"]
    began_s: float
    ended_s: float
    inferences: int
    samples: int
    power_w: float
    resolution_j: float

    @property
    def seconds(self) -> float:
        return self.ended_s - self.began_s

    @property
    def record(self) -> EnergyWindow:
        return EnergyWindow(
            kind=self.kind, began_s=self.began_s, ended_s=self.ended_s, energy_j=self.power_w * self.seconds,
            inferences=self.inferences, samples=self.samples,
        )  # fmt: skip


class _NoFigure(Exception):
    """Why there is none: carried to `measure`, which says so in its result."""

    def __init__(self, reason: str, state: Literal["unavailable", "refused"] = "unavailable") -> None:
        super().__init__(reason)
        self.reason = reason
        self.state: Literal["unavailable", "refused"] = state


def sources(transport: Transport, root: str = "") -> tuple[Source, ...]:
    """Every source that can be found on a device, in the order in which they are tried, with its state and why.

    `root` is the root of the device's file system. Raises `DeviceError` where the link breaks.
    """
    found: list[Source] = []
    for name in ORDER:
        meter = _probed(transport, Use(name=name), root)
        if isinstance(meter.first, Silence):
            state = "unusable" if meter.first.there else "absent"
            found.append(Source(name=name, title=meter.module.TITLE, state=state, said=meter.first.reason))
        else:
            state = "on external power" if meter.first.charging else "ready"
            found.append(Source(name=name, title=meter.module.TITLE, state=state, said=meter.title))
    return tuple(found)


def measure(
    meter: Use | None,
    transport: Transport,
    load: Callable[[float], Run],
    *,
    window_s: float = 60,
    repeats: int = 3,
    period_s: float = 0.5,
    root: str = "",
) -> Energy:
    """Joules per inference, gross and net, over `repeats` windows of load, or the reason why they are not known.

    `load(seconds)` runs the model on the device without a pause for at least that long. `meter` is what the device's
    record names; `None` is the first of `ORDER` that answers. It is read every `period_s`. `root` is the root of the
    device's file system. Raises `InputError` for parameters that cannot be, and `DeviceError` where the link breaks.
    """
    if repeats < 2 or window_s <= 0 or period_s <= 0:
        raise InputError(f"energy: an interval needs 2 windows or more, found {repeats}; and times above 0")
    source: _Meter | None = None
    windows: list[_Window] = []
    try:
        source = _source(transport, meter, root)
        windows = _pass(source, transport, load, window_s, repeats, period_s, root)
    except _NoFigure as none:
        title = source.title if source else None
        return Energy(state=none.state, reason=none.reason, source=title, windows=())
    return _figures(source.title, windows, source.age_s)


# Finding the source.


def _probed(transport: Transport, use: Use, root: str) -> _Meter:
    module, params = plugins.use("meters", use, f'meter "{use.name}"')
    script = module.script(params)
    if isinstance(script, Path):
        printed = _file(script)
        first = module.parse(params, [(0.0, printed)])[0] if isinstance(printed, str) else printed
    else:
        done = transport.run(["sh", "-c", script, "edgekit", root], _PROBE_S)
        first = module.parse(params, [(0.0, done.stdout.decode(errors="replace"))])[0]
    return _Meter(use.name, module, params, first)


def _source(transport: Transport, wanted: Use | None, root: str) -> _Meter:
    """The meter asked for, or the first that answers."""
    there: list[str] = []
    absent: list[str] = []
    for use in [wanted] if wanted else [Use(name=name) for name in ORDER]:
        meter = _probed(transport, use, root)
        if isinstance(meter.first, Silence):
            (there if meter.first.there else absent).append(f"{meter.name}: {meter.first.reason}")
        elif meter.first.charging:
            raise _NoFigure("; ".join([_PLUGGED, *there]), "refused")
        else:
            return meter
    hint = [] if there or wanted else ["an instrument's file can be named as meter"]
    raise _NoFigure("; ".join([*(there or absent), *hint]))


def _file(path: Path) -> str | Silence:
    try:
        return path.expanduser().read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        return Silence(reason=f"{path}: cannot be read: {error.strerror}; start the instrument first", there=True)


# The pass.


def _pass(
    meter: _Meter,
    transport: Transport,
    load: Callable[[float], Run],
    window_s: float,
    repeats: int,
    period_s: float,
    root: str,
) -> list[_Window]:
    """Idle and load by turns while the sampler runs, then the readings of each window."""
    stop = threading.Event()
    nonce = secrets.token_hex(8)
    bounds: list[tuple[float, float, int]] = []
    with ThreadPoolExecutor(1) as pool:
        sampler: Future[Done] | None = None
        if isinstance(script := meter.module.script(meter.params), str):
            loop = f"{_CLOCK}once() (\n{script}\n)\n{_LOOP}"
            argv = ["sh", "-c", loop, "edgekit", root, nonce, f"{period_s:g}"]
            sampler = pool.submit(transport.run, argv, 3 * (2 * repeats + 1) * window_s + 3600, stop)
        try:
            ahead_s = _ahead(transport)
            bounds.append(_idle(transport, window_s, sampler))
            for _ in range(repeats):
                bounds.append(_load(load, window_s))
                time.sleep(min(_SETTLE_S, window_s / 10))
                bounds.append(_idle(transport, window_s, sampler))
            if sampler:
                time.sleep(period_s)
        finally:
            stop.set()
    readings = _sampled(meter, sampler.result(), nonce) if sampler else _recorded(meter, ahead_s, bounds[-1][1])
    good = [reading for reading in readings if isinstance(reading, Reading)]
    if any(reading.charging for reading in good):
        raise _NoFigure(_PLUGGED, "refused")
    if not good:
        raise _NoFigure(next((r.reason for r in readings if isinstance(r, Silence)), "the meter fell silent"))
    series = _series(good)
    return [
        _window("load" if n % 2 else "idle", bound, series, good, period_s if sampler else None)
        for n, bound in enumerate(bounds)
    ]


def _device_time(transport: Transport) -> float:
    """The device's clock, epoch seconds."""
    done = transport.run(["sh", "-c", _CLOCK + 'now; printf "%s\\n" "$t"', "edgekit"], _PROBE_S)
    text = done.good("reading the device's clock").strip()
    try:
        return float(text)
    except ValueError:
        raise DeviceError(f"{transport.name}: reading its clock gave {text[:60]!r}; has it a `date`?") from None


def _ahead(transport: Transport) -> float:
    """How far the device's clock is ahead of this host's, in seconds: from the quickest of three answers."""
    tries: list[tuple[float, float]] = []
    for _ in range(3):
        before = time.time()
        there = _device_time(transport)
        after = time.time()
        tries.append((after - before, there - (before + after) / 2))
    return min(tries)[1]


def _idle(transport: Transport, window_s: float, sampler: "Future[Done] | None") -> tuple[float, float, int]:
    began_s = _device_time(transport)
    end = time.monotonic() + window_s
    while (left := end - time.monotonic()) > 0:
        if sampler and sampler.done():
            done = sampler.result()
            raise _NoFigure(f"the loop that reads the meter ended with {done.code}: {done.last_words()}")
        if transport.stopping.wait(min(left, 1)):
            break  # the next command says so
    return began_s, _device_time(transport), 0


def _load(load: Callable[[float], Run], window_s: float) -> tuple[float, float, int]:
    run = load(window_s)
    if run.began_s is None or run.ended_s is None or not run.samples_s:
        raise DeviceError("energy: the load measured nothing; is the runner of this version?")
    if run.ended_s - run.began_s < 0.9 * window_s:
        took = run.ended_s - run.began_s
        raise _NoFigure(f"the load ended after {took:.1f} s of {window_s:g} s; the model is too quick for one process")
    return run.began_s, run.ended_s, len(run.samples_s)


def _sampled(meter: _Meter, done: Done, nonce: str) -> list[Reading | Silence]:
    """The loop's output as readings. The last may be cut off, and is left out."""
    printed: list[tuple[float, str]] = []
    for block in done.stdout.decode(errors="replace").split(f"{nonce} ")[1:]:
        stamp, _, text = block.partition("\n")
        try:
            printed.append((float(stamp), text))
        except ValueError:
            raise DeviceError(f"{meter.name}: the device's clock gave {stamp[:40]!r}; has it a `date`?") from None
    return meter.module.parse(meter.params, printed[:-1])


def _recorded(meter: _Meter, ahead_s: float, end_s: float) -> list[Reading | Silence]:
    """The instrument's readings by the device's clock, once its file covers the pass or is given up."""
    path = meter.module.script(meter.params)
    given_up = time.monotonic() + _FILE_S
    while True:
        text = _file(Path(path))
        found = meter.module.parse(meter.params, [(0.0, text)]) if isinstance(text, str) else [text]
        shifted = [r.model_copy(update={"at_s": r.at_s + ahead_s}) if isinstance(r, Reading) else r for r in found]
        last = shifted[-1] if shifted else None
        if (isinstance(last, Reading) and last.at_s >= end_s) or time.monotonic() > given_up:
            break
        time.sleep(0.5)
    if isinstance(last, Reading) and last.at_s < end_s:
        raise _NoFigure(
            f"{path}: ends {end_s - last.at_s:.1f} s before the pass did; let the instrument run on, or set offset_s",
            "refused",
        )
    return shifted


# From readings to windows.


def _series(readings: Sequence[Reading]) -> list[tuple[float, float]]:
    """Time and joules so far, counters unwrapped and summed, or power integrated by trapezoids.

    Raises `_NoFigure` for what never moves and for a counter that went back.
    """
    if readings[0].power_w is not None:
        powers = [(reading.at_s, reading.power_w) for reading in readings if reading.power_w is not None]
        values = {power for _, power in powers}
        if values == {0.0}:
            raise _NoFigure("the source reads 0 W throughout, so it measures nothing; choose another meter")
        if len(values) == 1 and len(powers) > 1:
            raise _NoFigure(f"the source reads {powers[0][1]:g} W throughout: it is stuck; choose another meter")
        total, series = 0.0, [(powers[0][0], 0.0)]
        for (t0, p0), (t1, p1) in itertools.pairwise(powers):
            total += (t1 - t0) * (p0 + p1) / 2
            series.append((t1, total))
        return series
    names = [counter.name for counter in readings[0].counters]
    same = [reading for reading in readings if [counter.name for counter in reading.counters] == names]
    total, series = 0.0, [(same[0].at_s, 0.0)]
    for before, after in itertools.pairwise(same):
        for old, new in zip(before.counters, after.counters, strict=True):
            moved = new.energy_j - old.energy_j
            if moved < 0 and new.wrap_j is None:
                raise _NoFigure(f"the counter {new.name} went back by {-moved:g} J; was it reset? try again")
            total += moved if moved >= 0 else moved + (new.wrap_j or 0)
        series.append((after.at_s, total))
    if total == 0:
        raise _NoFigure("the counter never moves, so it measures nothing; choose another meter")
    return series


def _window(
    kind: Literal["idle", "load"],
    bound: tuple[float, float, int],
    series: Sequence[tuple[float, float]],
    readings: Sequence[Reading],
    period_s: float | None,
) -> _Window:
    """One window's mean power, from readings `period_s` apart (`None`: an instrument's own). Raises `_NoFigure` where
    they do not cover it."""
    began_s, ended_s, inferences = bound
    seconds = ended_s - began_s
    start_s = began_s + readings[0].age_s  # what is read before may show the time before
    inside = [(t, joules) for t, joules in series if start_s <= t <= ended_s]
    times = [start_s, *(t for t, _ in inside), ended_s]
    gap = max(b - a for a, b in itertools.pairwise(times))
    least = max(4, (ended_s - start_s) / period_s / 2) if period_s else 4
    if len(inside) < least or gap > seconds / 4:
        state = "unavailable" if period_s else "refused"
        raise _NoFigure(
            f"a window of {seconds:.1f} s has {len(inside)} readings with a gap of {gap:.1f} s: "
            + ("the device is too busy or the source too slow" if period_s else "the file does not cover the windows"),
            state,
        )
    # A counter that moves less often than it is read says something new only when it moves.
    moves = [inside[0], *(b for a, b in itertools.pairwise(inside) if b[1] != a[1])]
    coarse = len(moves) < 0.8 * len(inside) and readings[0].power_w is None
    jumps = sorted(b[1] - a[1] for a, b in itertools.pairwise(moves))
    # The first value's age is unknown, so that spans start where the counter is first seen to move.
    ends = moves[1:] if coarse and len(moves) > 2 else inside
    power_w = (ends[-1][1] - ends[0][1]) / (ends[-1][0] - ends[0][0])
    step = max(reading.step for reading in readings)
    if readings[0].power_w is not None:
        resolution_j = step * seconds
    else:
        resolution_j = max(step, jumps[len(jumps) // 2] if coarse and jumps else 0)
    return _Window(kind, began_s, ended_s, inferences, len(inside), power_w, resolution_j)


# From windows to figures.


def _figures(title: str, windows: Sequence[_Window], age_s: float) -> Energy:
    """Joules per inference from idle, load, idle, load, ..., idle; or why the load cannot be told from idling."""
    idles, loads = windows[0::2], windows[1::2]
    idle_w = statistics.fmean(idle.power_w for idle in idles)
    load_w = statistics.fmean(load.power_w for load in loads)
    # Where a reading shows the past, the edges of a window are uncertain by that.
    resolution_j = max(window.resolution_j for window in windows) + age_s * abs(load_w - idle_w)
    records = tuple(window.record for window in windows)

    bases = [(before.power_w + after.power_w) / 2 for before, after in itertools.pairwise(idles)]
    drifts = [abs(after.power_w - before.power_w) / 2 for before, after in itertools.pairwise(idles)]
    times = [load.seconds / load.inferences for load in loads]
    coarse = resolution_j / statistics.fmean(load.inferences for load in loads)
    gross = [load.power_w * s for load, s in zip(loads, times, strict=True)]
    net = [(load.power_w - base) * s for load, base, s in zip(loads, bases, times, strict=True)]
    drift = statistics.fmean(w * s for w, s in zip(drifts, times, strict=True))
    net_interval = _interval(net, drift + coarse)

    added_j = statistics.fmean((load.power_w - base) * load.seconds for load, base in zip(loads, bases, strict=True))
    reason = None
    if added_j < _RESOLVED * resolution_j:
        reason = (
            f"the load adds {added_j:.3g} J a window and the source resolves {resolution_j:.3g} J, of which it must be "
            f"{_RESOLVED} times; use longer windows or a finer source"
        )
    elif net_interval.low <= 0:
        reason = (
            f"net energy lies between {net_interval.low:.3g} and {net_interval.high:.3g} J, which spans 0: idling took "
            f"{min(i.power_w for i in idles):.3g} to {max(i.power_w for i in idles):.3g} W; stop what else runs there"
        )
    if reason:
        return Energy(state="not resolvable", reason=reason, source=title, resolution_j=resolution_j, windows=records)
    return Energy(
        state="measured", source=title, resolution_j=resolution_j, idle_w=idle_w, load_w=load_w, windows=records,
        gross_j=statistics.fmean(gross), gross_interval=_interval(gross, coarse),
        net_j=statistics.fmean(net), net_interval=net_interval,
    )  # fmt: skip


def _interval(values: Sequence[float], wider: float) -> Interval:
    """Of the mean by Student's t over the windows, widened on both sides by what the windows cannot show."""
    from scipy import stats

    mean = statistics.fmean(values)
    half = float(stats.t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values)) + wider
    return Interval(low=mean - half, high=mean + half)
