"""Doubts: what a device's conditions, and the samples themselves, say against the figures.

doubts((before, *during, after), latency, facts, threads, cpus)   ->   "hot: BIG reached 91.0 °C, ..."
"""

from collections.abc import Generator, Sequence
from statistics import median

from edgekit.bench.conditions import by_cores, counting, hottest
from edgekit.results import DeviceFacts, Latency, Reading

_SLOWED = 0.9
"""Of the top clock. Clocks move in steps of 5 to 10 %, and a core that only waits for memory keeps its clock."""
_HOT_C = 85.0
"""Most mobile processors begin to lower their clocks between 80 and 95 °C."""
_ROSE_C = 20.0
"""A processor's zone jumps by 10 to 15 °C as soon as one core works; more than that goes on rising."""
_DRIFT = 0.05
"""What a gate is asked to see; less does not turn a verdict round."""
_SWITCHES = 20
"""A second. An undisturbed process sees a few, one that shares a core is put off at each turn: 100 and more."""
_BUSY = 0.2


def doubts(
    readings: Sequence[Reading],
    latency: Sequence[Latency],
    facts: DeviceFacts,
    threads: int,
    cpus: Sequence[int] | None,
) -> tuple[str, ...]:
    """What speaks against the figures, one line each with its numbers and what to do.

    The first reading was taken before, the last one after, those between during the measurement.
    """
    return (
        *_throttled(readings, facts, cpus),
        *(line for row in latency for line in _in_samples(row, threads)),
        *_unsteady(readings, cpus),
    )


def _throttled(readings: Sequence[Reading], facts: DeviceFacts, cpus: Sequence[int] | None) -> Generator[str]:
    """Clocks below their top under load, and heat."""
    shares: list[tuple[float, int, int]] = []
    for reading in readings[1:-1]:
        clocks = {c: hz for c, hz in reading.clocks_hz.items() if c in facts.max_clocks_hz and c in (cpus or [c])}
        seen = [(hz / facts.max_clocks_hz[core], core, hz) for core, hz in clocks.items()]
        # unpinned, the work is where the clock is highest
        shares += [min(seen) if cpus else max(seen)] if seen else []
    if shares:
        share, core, hz = sorted(shares)[len(shares) // 2]
        if share < _SLOWED:
            yield (
                f"throttled: core {core} ran at {hz / 1e9:.2f} of {facts.max_clocks_hz[core] / 1e9:.2f} GHz under load "
                f"(median of {len(shares)} readings); let it cool, or set its governor to performance"
            )
    most = max((found for reading in readings if (found := hottest(reading))), key=lambda one: one[1], default=None)
    first: dict[str, float] = {}
    rises = [
        (degrees - first.setdefault(zone, degrees), zone, degrees)
        for reading in readings
        for zone, degrees in counting(reading).items()
    ]
    rise, zone, degrees = max(rises, default=(0.0, "", 0.0))
    if most and most[1] >= _HOT_C:
        yield f"hot: {most[0]} reached {most[1]:.1f} °C, where processors lower their clocks; cool it, measure shorter"
    elif rise > _ROSE_C:
        yield (
            f"heating: {zone} rose from {degrees - rise:.1f} to {degrees:.1f} °C; a longer run may be slower: "
            "see --sustained"
        )


def _in_samples(row: Latency, threads: int) -> Generator[str]:
    """What one length's samples show: drift, two speeds, others on its cores."""
    what = "" if row.length is None else f"{row.length} tokens: "
    samples, third = row.samples_s, len(row.samples_s) // 3
    if third >= 5:
        first, last = samples[:third], samples[-third:]
        before, after = median(first), median(last)
        # of a median of n: 1.2533 sigma / sqrt(n), sigma by the median deviation, so that outliers weigh nothing
        error = 1.2533 * 1.4826 * (_spread(first) ** 2 + _spread(last) ** 2) ** 0.5 / third**0.5
        if abs(after - before) > max(_DRIFT * before, 3 * error):
            yield (
                f"drift: {what}the last third of the samples is {after / before - 1:+.1%} against the first (medians "
                f"{after * 1e3:.3g} and {before * 1e3:.3g} ms); let it cool, end what else runs there, try again"
            )
    if modes := two_speeds(samples):
        share, low, high = modes
        yield (
            f"two speeds: {what}{share:.0%} of the samples take about {low * 1e3:.3g} ms, most others {high * 1e3:.3g} "
            "ms; work moves between cores or clocks: fewer threads, or a governor that holds the clock"
        )
    if row.cpu_share < 0.9 * threads:
        yield (
            f"contention: {what}{row.cpu_share:.2f} cores' worth of CPU time for {threads} thread"
            f"{'s' * (threads > 1)}; something else had the cores, or so many threads find no work"
        )
    rate = row.involuntary_switches / sum(samples) if samples else 0
    if rate > _SWITCHES:
        yield f"contention: {what}{rate:.0f} involuntary switches a second; end what else runs there"


def _unsteady(readings: Sequence[Reading], cpus: Sequence[int] | None) -> Generator[str]:
    """Other work before, governors, and a cable that came or went."""
    if readings and (load := readings[0].load) is not None and load > _BUSY:
        yield f"contention: {load:.0%} of the cores were busy before; end what else runs there"
    last = next((reading.governors for reading in reversed(readings) if reading.governors), {})
    others = {core: name for core, name in last.items() if core in (cpus or [core]) and name != "performance"}
    if others:
        yield (
            f"governor: {by_cores(others)}; clocks follow the load and cost a few percent of repeatability: "
            "set performance there where you may (root)"
        )
    powered = [reading.charging for reading in readings if reading.charging is not None]
    if len(set(powered)) > 1:
        went = "plugged in" if powered[-1] else "unplugged"
        yield f"charging: external power changed while measuring ({went} at the end); measure again without touching it"


def two_speeds(samples: Sequence[float]) -> tuple[float, float, float] | None:
    """Whether samples have two modes: the share of the quick one and both medians, or `None`.

    Between the 5th and 95th percentile, each outer third of the range must hold a fifth of the samples and the middle
    third next to none; a bell, an even spread and a long tail all fill the middle. The modes differ by 10 % or more.

    >>> two_speeds([1.0] * 12 + [2.0] * 12)
    (0.5, 1.0, 2.0)
    """
    ordered = sorted(samples)
    if len(ordered) < 20:
        return None
    low, high = ordered[len(ordered) // 20], ordered[-1 - len(ordered) // 20]
    step = (high - low) / 3
    quick = [sample for sample in ordered if sample <= low + step]
    slow = [sample for sample in ordered if sample >= high - step]
    between = len(ordered) - len(quick) - len(slow)
    if min(len(quick), len(slow)) < 0.2 * len(ordered) or between > 0.05 * len(ordered):
        return None
    modes = median(quick), median(slow)
    return (len(quick) / len(ordered), *modes) if modes[1] > 1.1 * modes[0] else None


def _spread(samples: Sequence[float]) -> float:
    """The median absolute deviation."""
    middle = median(samples)
    return median(abs(sample - middle) for sample in samples)
