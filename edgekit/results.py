"""What a measurement on a device gives: raw samples, the figures read from them, and what speaks against them.

Made by `edgekit bench`, read by `edgekit gate` and the reports. Times are seconds, sizes bytes, energies joules.
"""

from typing import Any, Literal

from pydantic import Field

from edgekit.records import Artifact, Budget, Format, Gate, MetricName, Part, Record, Score


class Interval(Record):
    """Where the true value lies with 95 % confidence, unless `level` says otherwise."""

    low: float
    high: float
    level: float = 0.95


class Workload(Record):
    """What was asked for: batch 1, each length in a process of its own, warm-up before timing."""

    format: Format
    lengths: tuple[int, ...]
    """In tokens; empty for images."""
    threads: int
    warmup_s: float
    repeat_s: float
    """The shortest time that each length is measured for."""


class OutputCheck(Record):
    """One output of the model on the device against the host's reference, on the bundle's own examples."""

    output: str
    examples: int
    cosine_min: float
    """The least cosine between an example's outputs, flattened."""
    max_abs_diff: float
    flips: int
    """How many arg-max decisions differ, of `decisions`; both 0 for outputs that decide nothing."""
    decisions: int
    passed: bool


class Latency(Record):
    """One length's times. `samples_s` are all calls after the warm-up, in order; the figures are read from them."""

    length: int | None
    """In tokens; `None` for images."""
    p50_s: float
    p50_interval: Interval
    """Of the median, from order statistics (binomial)."""
    p90_s: float
    p99_s: float
    mean_s: float
    per_second: float
    open_s: float
    """Opening the runtime's library, or importing it in Python."""
    load_s: float
    first_run_s: float
    cpu_share: float
    """CPU time over wall time, all threads: below the thread count, something else had the cores."""
    involuntary_switches: int
    warmup_s: tuple[float, ...]
    samples_s: tuple[float, ...]
    cpu_s: tuple[float, ...]


class MemoryPhase(Record):
    """The process at the end of one phase, from /proc. `None` is what the target's kernel does not tell."""

    name: Literal["start", "library", "loaded", "first_run", "warm", "end"]
    hwm_bytes: int = Field(ge=0)
    """VmHWM: the most resident memory so far."""
    rss_bytes: int = Field(ge=0)
    anon_bytes: int = Field(ge=0)
    file_bytes: int = Field(ge=0)
    shmem_bytes: int = Field(ge=0)
    pss_bytes: int | None = Field(ge=0)
    swap_bytes: int | None = Field(ge=0)


class MemoryLimit(Record):
    """A run under a real limit."""

    limit_bytes: int
    kind: Literal["cgroup-v1", "cgroup-v2", "address-space"]
    survived: bool
    said: str
    """What the limited process, or the kernel, said where it did not survive."""


class Memory(Record):
    """The longest length's memory, measured in a pass of its own."""

    peak_rss_bytes: int
    """VmHWM at the end."""
    peak_phase: str
    """The phase in which the peak was reached."""
    floor_bytes: int | None
    """The same runner's peak with a model of one trivial operation: what the runtime itself costs."""
    model_bytes: int | None
    """`peak_rss_bytes` less the floor."""
    python_peak_rss_bytes: int | None
    """The same model in a Python process, where that was measured."""
    phases: tuple[MemoryPhase, ...]
    limit: MemoryLimit | None = None


class EnergyWindow(Record):
    """One stretch of time: `idle` or `load`. Times are epoch seconds of the device's clock."""

    kind: Literal["idle", "load"]
    began_s: float
    ended_s: float
    energy_j: float
    inferences: int
    samples: int


class Energy(Record):
    """What one inference costs, or why that is not known. Never a guess: figures are `None` unless `measured`."""

    state: Literal["measured", "unavailable", "not resolvable", "refused"]
    reason: str | None = None
    source: str | None = None
    """The meter and what it reads, for people."""
    resolution_j: float | None = None
    """The smallest step of the source over one window."""
    gross_j: float | None = None
    """An inference's share of all that the source counted."""
    gross_interval: Interval | None = None
    net_j: float | None = None
    """The same with the idle power of the windows before and after taken off."""
    net_interval: Interval | None = None
    idle_w: float | None = None
    load_w: float | None = None
    windows: tuple[EnergyWindow, ...] = ()


class Reading(Record):
    """A device's condition at one moment. What it cannot say is `None` or absent."""

    at_s: float
    """Seconds since the bench began."""
    temperatures_c: dict[str, float] = Field(default_factory=dict)
    """By thermal zone."""
    clocks_hz: dict[int, int] = Field(default_factory=dict)
    """Present frequency by core."""
    governors: dict[int, str] = Field(default_factory=dict)
    battery_percent: float | None = None
    charging: bool | None = None
    load: float | None = None
    """Busy cores as a share of all, over the second before."""


class Sustained(Record):
    """Minutes of work without a pause: the median by minute, and the last one against the first."""

    seconds: float
    p50_s_by_minute: tuple[float, ...]
    last_over_first: float
    samples_s: tuple[float, ...]


class DeviceFacts(Record):
    """What the device says of itself; its fingerprint. No serial numbers and no addresses."""

    model: str
    os: str
    """System and version: `Android 14 (sdk 34)`, `Debian GNU/Linux 12, Linux 6.1.0`."""
    abi: str
    """As the system names it: `aarch64`, `x86_64`, `arm64-v8a`."""
    libc: str | None
    """`glibc 2.36`, `bionic`, `musl`, as far as it can be told."""
    cores: int
    max_clocks_hz: dict[int, int] = Field(default_factory=dict)
    """Top frequency by core."""
    ram_bytes: int | None
    free_bytes: int | None
    """Disk space left in the work folder."""


class BudgetCheck(Record):
    """A budget of the target on this device. `observed` is `None` where it was not measured."""

    budget: Budget
    observed: float | None
    kept: bool | None
    headroom: float | None
    """`limit` less `observed` (for scores the other way round): negative is a broken budget."""


class RunResult(Record):
    """All that one bench of one bundle's model on one device gave."""

    edgekit: str
    bundle: str
    """The bundle's name."""
    digest: str
    """The bundle's digest."""
    model: str
    """The path of the model in the bundle."""
    model_sha256: str
    size_bytes: int
    device: str
    facts: DeviceFacts
    runner: Literal["native", "python"]
    runtime: str
    """Name and version: `litert 2.3.0`."""
    unverified: str | None = None
    """What about the runner has not been tried on such a device."""
    cpus: tuple[int, ...] | None
    """The cores that it was pinned to; `None`: the system's choice."""
    workload: Workload
    checks: tuple[OutputCheck, ...]
    score: Score | None = None
    score_interval: Interval | None = None
    latency: tuple[Latency, ...]
    memory: Memory | None
    energy: Energy | None = None
    sustained: Sustained | None = None
    budgets: tuple[BudgetCheck, ...]
    readings: tuple[Reading, ...]
    doubts: tuple[str, ...]
    """What speaks against the figures: throttling, drift, contention. One line each, with the numbers."""
    began: str
    """When, ISO 8601, UTC."""
    seconds: float


class Failure(Record):
    """A device that gave no result."""

    device: str
    message: str
    exit_code: int


class Benched(Record):
    """What a bench of several devices gave, in order of the devices' names."""

    results: tuple[RunResult, ...]
    failures: tuple[Failure, ...]


class Block(Record):
    """One fresh process's work with one of two bundles: what a pair is made of."""

    side: Literal["baseline", "candidate"]
    length: int | None
    """In tokens; `None` for images."""
    p50_s: float
    peak_rss_bytes: int
    runs: int
    """Timed inferences."""


class ScoreChange(Record):
    """Two bundles' scores on the same examples, answered on the device."""

    metric: str
    baseline: float
    candidate: float
    examples: int
    standard_error: float
    """Of the difference: its deviation over paired bootstrap resamples of whole examples."""


class SideBySide(Record):
    """Two bundles measured in turns on one device: A B, B A, A B, ... in fresh processes. Their `RunResult`s hold the
    samples of all blocks together."""

    baseline: RunResult
    candidate: RunResult
    blocks: tuple[Block, ...]
    """In order of time: a pair is a block of each side at one length, one after the other."""
    score: ScoreChange | None = None


Answer = Literal["PASS", "REGRESSION", "INCONCLUSIVE", "INFRA_ERROR"]


class Check(Record):
    """One figure that the gate judged, on one device."""

    device: str
    metric: MetricName
    length: int | None = None
    """In tokens, where a latency was measured at several."""
    unit: str
    """`s`, `bytes`, `J`, or the name of the score's metric."""
    rule: Literal["change", "budget"]
    """Against the baseline, or against an absolute limit."""
    answer: Answer
    reason: str
    """One sentence with the figures."""
    baseline: float | None = None
    candidate: float | None = None
    """The median over the blocks, or the only figure there is. `None`: not measured."""
    change: float | None = None
    """Relative to the baseline (0.05 is 5 % more); of a score the difference candidate - baseline."""
    interval: Interval | None = None
    """Of `change`, or of a budget's figure; not corrected for the number of comparisons."""
    floor: float | None = None
    """What a change for the worse must exceed to count, as a positive number in the unit of `change`."""
    floor_of: str | None = None
    """Where the floor comes from: `relative tolerance`, `absolute tolerance` or `noise of the device`."""
    pairs: int | None = None
    limit: float | None = None
    """Of a budget."""


class Modelled(Record):
    """A model file of a bundle: what it weighs, and what of."""

    path: str
    bytes: int
    parts: tuple[Part, ...]
    """Empty where the bundle does not say."""


class Bundled(Record):
    """A bundle as a verdict names it."""

    name: str
    digest: str
    source: str
    """As the user gave it: a path, or `git:REF`."""
    recipe: dict[str, Any]
    stages: tuple[Artifact, ...]
    models: tuple[Modelled, ...]


class Verdict(Record):
    """What the gate says of a candidate, and all that it says it from."""

    edgekit: str
    answer: Answer
    candidate: Bundled
    baseline: Bundled
    checks: tuple[Check, ...]
    left_out: tuple[str, ...]
    """Metrics that were not judged, each with the reason: `score: --no-score`."""
    correction: str
    """How the intervals allow for the number of comparisons, in a sentence."""
    tolerances: Gate
    measured: tuple[SideBySide, ...]
    failures: tuple[Failure, ...]
    began: str
    """When, ISO 8601, UTC."""
    seconds: float


class Entry(Record):
    """One line of a gate's history: what a gate said, or that a bundle became the baseline."""

    at: str
    """ISO 8601, UTC."""
    event: Literal["gate", "accept"]
    bundle: str
    """The candidate's name."""
    digest: str
    baseline_digest: str | None
    """`None`: there was none before."""
    format: Format | None
    answer: Answer | None
    """`None` for an accept: nothing was measured."""
    checks: tuple[Check, ...] = ()


class Calibration(Record):
    """A device's own noise, from A/A runs: the same bundle in alternating fresh processes."""

    device: str
    facts: DeviceFacts
    model_sha256: str
    format: Format
    length: int | None
    pairs: int
    medians_s: tuple[float, ...]
    """Each block's median, in the order A B B A ..."""
    noise: float
    """Of the paired log-ratios of medians, `edgekit.paired.deviation`: a standard deviation that outliers do not
    pull."""
    smallest_effect: float
    """The least relative change that this many pairs resolve with 95 % confidence."""
    at: str


class State(Record):
    """A known device as `edgekit devices` lists it."""

    name: str
    description: str
    link: str | None
    """The transport's name."""
    state: Literal["ready", "incomplete", "not reachable", "no link", "broken record"]
    missing: tuple[str, ...]
    """What is missing to use it."""


class Finding(Record):
    """One thing that a measurement rests on, as the doctor found it."""

    what: str
    found: str
    verdict: Literal["good", "bad", "unknown", "note"]
    """`bad` keeps a bench from working; `unknown` makes its figures less certain."""
    remedy: str | None = None


class Doctor(Record):
    """What the doctor found on one device."""

    device: str
    good: bool
    """Nothing is bad."""
    findings: tuple[Finding, ...]
