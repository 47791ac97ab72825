"""Doubts: each threshold from both sides, on readings and samples made by hand."""

from typing import Any

import pytest

from edgekit.bench import doubts
from edgekit.results import DeviceFacts, Interval, Latency, Reading

FACTS = DeviceFacts(
    model="m", os="o", abi="a", libc=None, cores=4, max_clocks_hz={0: 1_800_000_000, 3: 2_900_000_000}, ram_bytes=None,
    free_bytes=None,
)  # fmt: skip


def row(samples: list[float], cpu_share: float = 1.0, switches: int = 0) -> Latency:
    return Latency(
        length=64, p50_s=1, p50_interval=Interval(low=1, high=1), p90_s=1, p99_s=1, mean_s=1, per_second=1, open_s=1,
        load_s=1, first_run_s=1, cpu_share=cpu_share, involuntary_switches=switches, warmup_s=(),
        samples_s=tuple(samples), cpu_s=(),
    )  # fmt: skip


def kinds(*readings: dict[str, Any], latency: Latency | None = None, threads: int = 1, cpus: Any = (3,)) -> list[str]:
    seen = [Reading(at_s=i, **values) for i, values in enumerate(readings)]
    rows = [latency] if latency else []
    return [line.partition(":")[0] for line in doubts.doubts(seen, rows, FACTS, threads, cpus)]


def clock(*hz: float) -> list[dict[str, Any]]:
    return [{"clocks_hz": {0: int(low), 3: int(high)}} for low, high in zip(hz[::2], hz[1::2], strict=True)]


def test_a_quiet_measurement_leaves_no_doubt() -> None:
    assert not kinds(
        {"load": 0.1, "temperatures_c": {"cpu": 40}, "charging": False, "governors": {0: "x", 3: "performance"}},
        *clock(3e8, 2.9e9),
        {"temperatures_c": {"cpu": 55}, "charging": False},
        latency=row([1.0 + 0.01 * (i % 7) for i in range(300)], switches=300),
    )
    assert not kinds()


def test_throttling() -> None:
    before, after = clock(3e8, 3e8), clock(3e8, 3e8)
    assert not kinds(*before, *clock(3e8, 2.9e9, 3e8, 2.7e9, 3e8, 3e8), *after)
    assert kinds(*before, *clock(3e8, 2.9e9, 3e8, 2.0e9, 3e8, 2.1e9), *after) == ["throttled"]
    # nobody was pinned: the core with the highest share counts
    assert not kinds(*before, *clock(1.8e9, 3e8, 3e8, 2.9e9), *after, cpus=None)
    assert kinds(*before, *clock(9e8, 3e8, 3e8, 1e9), *after, cpus=None) == ["throttled"]
    seen = [Reading(at_s=0, **one) for one in (*before, *clock(3e8, 2.0e9), *after)]
    (line,) = doubts.doubts(seen, [], FACTS, 1, (3,))
    assert "core 3 ran at 2.00 of 2.90 GHz" in line


@pytest.mark.parametrize(("most", "said"), [(55, []), (61, ["heating"]), (85, ["hot"])])
def test_heat(most: float, said: list[str]) -> None:
    zones = [{"temperatures_c": {"cpu": c, "VIRTUAL-SKIN": 99}} for c in (40, most, 45)]
    assert kinds(*zones) == said
    # a zone that only one look shows has not risen
    assert kinds({"temperatures_c": {"cpu-0": 30}}, *zones[1:]) == (said if most == 85 else [])


def test_drift() -> None:
    noise = [0.02 * ((i * 7919) % 11 - 5) for i in range(300)]
    steady = [1 + n for n in noise]
    assert not kinds(latency=row(steady))
    assert kinds(latency=row([1 + n + 0.1 * i / 300 for i, n in enumerate(noise)])) == ["drift"]
    assert kinds(latency=row([1.1 - 0.1 * i / 300 + n for i, n in enumerate(noise)])) == ["drift"]
    # outliers weigh nothing, and a handful of wild samples proves nothing
    assert not kinds(latency=row([*steady[:-60], *[s * 9 if i % 3 else s for i, s in enumerate(steady[-60:])]]))
    assert not kinds(latency=row([1.0, 1.6, 0.9, 1.4, 1.1, 1.5, 0.9, 1.3, 1.2, 1.2, 1.0, 1.5, 1.6, 1.1, 1.5]))


def test_contention() -> None:
    even = [1.0] * 30
    assert kinds(latency=row(even, cpu_share=0.89)) == ["contention"]
    assert not kinds(latency=row(even, cpu_share=0.91))
    assert kinds(latency=row(even, cpu_share=1.7), threads=2) == ["contention"]
    assert kinds(latency=row(even, switches=601)) == ["contention"]  # in 30 s
    assert not kinds(latency=row(even, switches=600))
    assert kinds({"load": 0.21}) == ["contention"]
    assert not kinds({"load": 0.2}, {"load": 0.9})


def test_governors_and_charging() -> None:
    assert kinds({"governors": {3: "schedutil"}}) == ["governor"]
    assert not kinds({"governors": {0: "schedutil", 3: "performance"}})
    assert kinds({"governors": {0: "schedutil"}}, cpus=None) == ["governor"]
    assert kinds({"charging": False}, {}, {"charging": True}) == ["charging"]
    assert not kinds({"charging": True}, {}, {"charging": True})


def test_two_speeds() -> None:
    spread = [1 + 0.001 * (i % 10) for i in range(100)]
    assert doubts.two_speeds(spread) is None
    assert doubts.two_speeds([1.0] * 100) is None
    assert doubts.two_speeds([1 + 2 * (i / 100) ** 8 for i in range(100)]) is None  # a long tail
    assert doubts.two_speeds([1 + i / 100 for i in range(100)]) is None
    assert doubts.two_speeds([1.0, 1.05] * 50) is None  # too close to matter
    assert doubts.two_speeds([1.0, 2.0]) is None  # too few
    found = doubts.two_speeds([s * (1 if i % 3 else 1.5) for i, s in enumerate(spread)])
    assert found == pytest.approx((0.66, 1.005, 1.506), abs=0.01)
    assert "two speeds" in kinds(latency=row([1.0, 1.5] * 30))
