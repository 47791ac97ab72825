"""Hand-made records for the tests of pages: a gate's verdict on a phone-like device with all that can be measured."""

import math
import random
from collections.abc import Sequence
from typing import Any

from edgekit.comparison import Compared, Reason, Reference, Run, contender, ranked
from edgekit.records import Artifact, Budget, Facts, Gate, Metric, Part, Score
from edgekit.results import (
    Answer,
    Block,
    BudgetCheck,
    Bundled,
    Check,
    DeviceFacts,
    Energy,
    EnergyWindow,
    Entry,
    Failure,
    Interval,
    Latency,
    Memory,
    MemoryPhase,
    Modelled,
    OutputCheck,
    Reading,
    RunResult,
    ScoreChange,
    SideBySide,
    Verdict,
    Workload,
)

HOSTILE = (
    '</script><img src=x onerror="alert(1)"><!-- $\\frac{a}{b}$ ]]> {{ 7 * 7 }} \x00\x1b[31m\u202e\n' + "long" * 40
)


def score(value: float) -> Score:
    """A score with parts, one of them 0."""
    return Score(
        metric="macro_f1",
        value=value,
        examples=247,
        parts=(Metric(name="COMMA", value=value - 0.13, support=2862), Metric(name="QUESTION", value=0.0, support=42)),
    )


def stage(name: str, n: int, size: int, value: float | None, latency_s: float | None = None, **facts: Any) -> Artifact:
    """A stage's artifact, the `n`th."""
    return Artifact(
        id=f"{n:02x}" * 32,
        name=name,
        stage=name.partition("-")[0],
        parents=(),
        files=(),
        seconds=40.0 + 91.7 * n,
        facts=Facts(
            bytes=size,
            parameters=size // 4,
            score=None if value is None else score(value),
            latency_s=latency_s,
            changed=facts.pop("changed", f"what {name} does"),
            **facts,
        ),
        versions={"python": "3.11", "torch": "2.13.0+cpu"},
    )


def bundle(name: str = "punctuation", digest: str = "c0ffee12" * 8, grown: float = 1.0, parts: bool = True) -> Bundled:
    """A bundle of two formats and eight stages; `grown` times the size of the default."""
    modules = [
        ("embeddings", 4_917_000),
        *((f"layer {i} {part}", 390_000 + 45_000 * i) for i in range(3) for part in ("attention", "feed-forward")),
        ("head", 4_100),
        ("other", 611_532),
    ]
    weights = tuple(Part(name=name, bytes=int(size * grown)) for name, size in modules)
    size = sum(part.bytes for part in weights)
    return Bundled(
        name=name,
        digest=digest,
        source=f"bundles/{name}-android",
        recipe={"name": name},
        stages=(
            stage("teach", 1, 90_279_488, 0.5312845906325003, changed="fine-tuned, 0.38 epochs of 15448 sequences"),
            stage("distill", 2, 68_980_368, 0.5305266878781967, changed="layers 6 -> 3 (from 1, 2, 3), 0.6 epochs"),
            stage("prune", 3, 29_957_512, 0.5205328890046754, notes=("heads 12 -> 6",)),
            stage("teacher-onnx", 4, 90_410_930, 0.5312845906325003, 0.04125547900093807),
            stage("export-tflite", 5, 29_931_928, 0.5205328890046754, 0.008310909000101674),
            stage("export-onnx", 6, 30_029_225, 0.5205328890046754, 0.010053480499664147),
            stage("quantize-tflite", 7, size, 0.517790100028704, 0.007496748500670947, refused=("static: slower",)),
            stage("quantize-onnx", 8, 7_703_832, 0.5153585042779293, 0.00722350749947509),
        ),
        models=(
            Modelled(path="tflite/model.tflite", bytes=size, parts=weights if parts else ()),
            Modelled(path="onnx/model.onnx", bytes=7_703_832, parts=()),
        ),
    )


def samples(seed: int, middle: float, count: int = 240) -> tuple[float, ...]:
    """Times as a phone gives them: skewed, with an outlier now and then."""
    draw = random.Random(seed)
    return tuple(middle * math.exp(draw.gauss(0, 0.03)) * (1.5 if draw.random() < 0.03 else 1) for _ in range(count))


def latency(seed: int, length: int | None, middle: float, count: int = 240) -> Latency:
    """One length's times around `middle` seconds."""
    times = samples(seed, middle, count)
    ordered = sorted(times)
    return Latency(
        length=length,
        p50_s=ordered[count // 2],
        p50_interval=Interval(low=middle * 0.995, high=middle * 1.006),
        p90_s=ordered[int(count * 0.9)],
        p99_s=ordered[int(count * 0.99)],
        mean_s=sum(times) / count,
        per_second=count / sum(times),
        open_s=0.0113,
        load_s=0.0231,
        first_run_s=middle * 2.3,
        cpu_share=0.9871,
        involuntary_switches=12,
        warmup_s=times[:20],
        samples_s=times,
        cpu_s=tuple(t * 0.987 for t in times),
    )


def memory(peak: int = 25_964_544) -> Memory:
    """Six phases up to `peak` bytes."""
    shares = (("start", 0.06), ("library", 0.28), ("loaded", 0.7), ("first_run", 0.93), ("warm", 0.97), ("end", 1.0))
    return Memory(
        peak_rss_bytes=peak,
        peak_phase="end",
        floor_bytes=12_300_288,
        model_bytes=peak - 12_300_288,
        python_peak_rss_bytes=61_644_800,
        phases=tuple(
            MemoryPhase(
                name=name,
                hwm_bytes=int(peak * share),
                rss_bytes=int(peak * share * 0.99),
                anon_bytes=int(peak * share * 0.55),
                file_bytes=int(peak * share * 0.4),
                shmem_bytes=int(peak * share * 0.04),
                pss_bytes=None,
                swap_bytes=0,
            )
            for name, share in shares
        ),
    )


def energy(gross: float = 0.0213) -> Energy:
    """Measured joules with intervals."""
    return Energy(
        state="measured",
        source="INA3221, VDD_IN",
        resolution_j=0.00031,
        gross_j=gross,
        idle_w=1.21,
        load_w=3.94,
        gross_interval=Interval(low=gross * 0.96, high=gross * 1.05),
        net_j=gross * 0.69,
        net_interval=Interval(low=gross * 0.62, high=gross * 0.77),
        windows=(EnergyWindow(kind="load", began_s=0.0, ended_s=60.0, energy_j=236.0, inferences=11080, samples=60),),
    )


def readings(count: int = 12) -> tuple[Reading, ...]:
    """A device that warms up and then clocks down a little."""
    return tuple(
        Reading(
            at_s=9.7 * n,
            temperatures_c={"cpu-thermal": 41.0 + 9 * (1 - math.exp(-n / 4)), "battery": 31.0 + 0.2 * n},
            clocks_hz={0: 1_800_000_000, 4: 2_400_000_000 - (300_000_000 if n > 8 else 0)},
            governors={0: "schedutil", 4: "schedutil"},
            battery_percent=81.0 - n / 4,
            charging=False,
            load=0.05 + 0.01 * (n % 3),
        )
        for n in range(count)
    )


def result(
    device: str = "pixel-8", slower: float = 1.0, lengths: Sequence[int | None] = (32, 128), **other: Any
) -> RunResult:
    """A bench with everything; `other` replaces fields."""
    rows = tuple(
        latency(
            len(device) + 7 * n + int(1000 * slower), length, (0.0021 if length is None else length * 60.7e-6) * slower
        )
        for n, length in enumerate(lengths)
    )
    fields: dict[str, Any] = dict(
        edgekit="0.1.0",
        bundle="punctuation",
        digest="c0ffee12" * 8,
        model="tflite/model.tflite",
        model_sha256="148e5972" * 8,
        size_bytes=8_764_928,
        device=device,
        runner="native",
        runtime="litert 2.3.0",
        facts=DeviceFacts(
            model="Pixel 8",
            os="Android 14 (sdk 34)",
            abi="arm64-v8a",
            libc="bionic",
            cores=9,
            max_clocks_hz={0: 1_700_000_000, 4: 2_400_000_000},
            ram_bytes=7_800_000_000,
            free_bytes=51_000_000_000,
        ),
        cpus=(4,),
        workload=Workload(
            format="tflite", lengths=tuple(n for n in lengths if n), threads=1, warmup_s=1.0, repeat_s=5.0
        ),
        checks=(
            OutputCheck(
                output="logits",
                examples=8,
                cosine_min=0.9999991,
                max_abs_diff=2.3e-05,
                flips=0,
                decisions=875,
                passed=True,
            ),
        ),
        score=score(0.5178),
        score_interval=Interval(low=0.5038, high=0.5318),
        latency=rows,
        memory=memory(),
        energy=energy(),
        budgets=(
            BudgetCheck(
                budget=Budget(metric="size_bytes", limit=30e6), observed=8_764_928.0, kept=True, headroom=21_235_072.0
            ),
            BudgetCheck(
                budget=Budget(metric="peak_rss_bytes", limit=3e7),
                observed=25_964_544.0,
                kept=True,
                headroom=4_035_456.0,
            ),
        ),
        readings=readings(),
        doubts=("drift: 128 tokens: the last third of the samples is +6.1% against the first",),
        began="2026-11-21T07:09:45+00:00",
        seconds=97.3,
    )
    return RunResult(**{**fields, **other})


def blocks(length: int | None, slower: float, count: int = 9, seed: int = 1) -> tuple[Block, ...]:
    """Pairs A B B A ... that drift together, with one outlier; the candidate `slower` times as slow."""
    draw = random.Random(seed)
    found: list[Block] = []
    for n in range(count):
        drift = 1 + 0.02 * math.sin(n / 2)
        pair = [
            Block(
                side=side,
                length=length,
                runs=180,
                peak_rss_bytes=25_900_000 + draw.randrange(90_000),
                p50_s=(length or 35) * 60.7e-6 * drift * factor * math.exp(draw.gauss(0, 0.008)) * (1.4 if hit else 1),
            )
            for side, factor, hit in (("baseline", 1.0, False), ("candidate", slower, n == 5 and count > 5))
        ]
        found += pair if n % 2 == 0 else pair[::-1]
    return tuple(found)


def check(device: str, length: int | None, change: float, answer: Answer) -> Check:
    """A check of latency."""
    before = (length or 35) * 60.7e-6
    return Check(
        device=device,
        metric="latency_s",
        length=length,
        unit="s",
        rule="change",
        answer=answer,
        reason=f"latency_s changed by {change:+.1%}; the floor of +3.0% is the relative tolerance",
        baseline=before,
        candidate=before * (1 + change),
        change=change,
        floor=0.03,
        floor_of="relative tolerance",
        pairs=9,
        interval=Interval(low=change - 0.011, high=change + 0.012, level=0.975),
    )


def verdict(answer: Answer = "REGRESSION", devices: Sequence[str] = ("pixel-8", "rpi-5")) -> Verdict:
    """A gate on each device: the candidate is 5.2 % slower at 128 tokens and unchanged at 32."""
    found: list[Check] = []
    measured: list[SideBySide] = []
    for n, device in enumerate(devices):
        found += [
            check(device, 32, 0.004, "PASS"),
            check(device, 128, 0.052, answer),
            Check(
                device=device,
                metric="peak_rss_bytes",
                unit="bytes",
                rule="change",
                answer="PASS",
                reason="as before",
                baseline=25_964_544.0,
                candidate=26_061_824.0,
                change=0.0037467,
                floor=0.03,
                floor_of="relative tolerance",
                pairs=9,
                interval=Interval(low=0.001, high=0.0064, level=0.975),
            ),
            Check(
                device=device,
                metric="score",
                unit="macro_f1",
                rule="change",
                answer="PASS",
                reason="within the margin",
                baseline=0.5178,
                candidate=0.5161,
                change=-0.0017,
                floor=0.01,
                floor_of="absolute tolerance",
                interval=Interval(low=-0.0063, high=0.0029),
            ),
            Check(
                device=device,
                metric="peak_rss_bytes",
                unit="bytes",
                rule="budget",
                answer="PASS",
                limit=3e7,
                reason="26.1 MB of 30.0 MB",
                candidate=26_061_824.0,
                interval=Interval(low=25.9e6, high=26.2e6),
            ),
            Check(
                device=device,
                metric="energy_j",
                unit="J",
                rule="budget",
                answer="INFRA_ERROR",
                limit=0.03,
                reason="energy was not measured",
            )
            if n
            else Check(
                device=device,
                metric="size_bytes",
                unit="bytes",
                rule="budget",
                answer="PASS",
                limit=3e7,
                candidate=8_764_928.0,
                reason="8.8 MB of 30.0 MB",
            ),
        ]
        measured.append(
            SideBySide(
                baseline=result(device),
                candidate=result(device, 1.05, digest="beefed34" * 8, memory=memory(26_061_824)),
                blocks=(*blocks(32, 1.004, seed=2), *blocks(128, 1.052, seed=3)),
                score=ScoreChange(
                    metric="macro_f1", baseline=0.5178, candidate=0.5161, examples=247, standard_error=0.0023
                ),
            )
        )
    return Verdict(
        edgekit="0.1.0",
        answer=answer,
        candidate=bundle(digest="beefed34" * 8, grown=1.06),
        baseline=bundle(),
        checks=tuple(found),
        left_out=("energy_j: no meter on rpi-5", "score on rpi-5: --no-score"),
        correction="Each of the 4 intervals is at 97.5 % so that all hold together with 95 % (Bonferroni).",
        tolerances=Gate(),
        measured=tuple(measured),
        began="2026-11-21T07:09:45+00:00",
        seconds=612.4,
        failures=(Failure(device="board", message="board: the link was lost; see the cable", exit_code=4),),
    )


def nothing() -> Verdict:
    """A gate that measured nothing."""
    return verdict("INFRA_ERROR").model_copy(update={"measured": (), "checks": ()})


def history(count: int = 40, device: str = "pixel-8") -> tuple[Entry, ...]:
    """Gates of which the later half is 8 % slower, and a new baseline between."""
    draw = random.Random(5)
    found: list[Entry] = []
    for n in range(count):
        level = 0.00777 * (1.08 if n >= count // 2 else 1) * math.exp(draw.gauss(0, 0.006))
        said: Answer = "REGRESSION" if n == count // 2 else "PASS"
        one = check(device, 128, level / 0.00777 - 1, said).model_copy(update={"candidate": level})
        at = f"{2026 + n // 336}-{1 + n // 28 % 12:02d}-{1 + n % 28:02d}T08:00:00+00:00"
        if n == count // 2 + 1:
            found.append(
                Entry(
                    at=at,
                    event="accept",
                    bundle="punctuation",
                    digest="12" * 32,
                    baseline_digest=None,
                    format="tflite",
                    answer=None,
                )
            )
        found.append(
            Entry(
                at=at,
                event="gate",
                bundle="punctuation",
                digest=f"{n % 256:02x}" * 32,
                baseline_digest="12" * 32,
                format="tflite",
                answer=said,
                checks=(one,),
            )
        )
    return tuple(found)


def comparison(seeds: int = 3, **other: Any) -> Compared:
    """Three methods of which the second is the best, and one that could not train this student."""

    def runs(level: float, grown: float) -> list[Run]:
        return [
            Run(
                seed=n,
                artifact=f"distill-{n}{int(1000 * level)}",
                score=score(level + 0.0037 * n),
                examples=20_000,
                seconds=131.5 * grown + n,
                peak_rss_bytes=int(1_213_000_000 * grown) + n,
                parameters=int(15_615_000 * grown),
                bytes=int(62_473_000 * grown),
            )
            for n in range(seeds)
        ]

    refused = Reason(message="recipe: step distill: the student must be as wide as its teacher", exit_code=2)
    methods = (
        contender("kd", "soft and hard labels", "Hinton et al., 2015, section 2", runs(0.5012, 1.0), None),
        contender("minilmv2", "relations of the last layer", "Wang et al., 2021", runs(0.5132, 1.0), None),
        contender("dynabert", "adaptive width and depth", "Hou et al., 2020", runs(0.4987, 0.7)[:1], refused),
        contender("theseus", "modules replaced one by one", "Xu et al., 2020", [], refused),
    )
    fields: dict[str, Any] = dict(
        edgekit="0.1.0",
        recipe="punctuation",
        task="punctuation",
        metric="macro_f1",
        host="Linux x86_64",
        seeds=tuple(range(seeds)),
        teacher=Reference(score=score(0.5313), parameters=22_569_000, bytes=90_279_488),
        methods=ranked(methods),
        began="2026-11-21T07:09:45+00:00",
        seconds=1421.9,
    )
    return Compared(**{**fields, **other})
