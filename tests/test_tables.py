"""Tables: every figure of the records, in 80 columns."""

from pathlib import Path
from typing import Any

from edgekit import tables
from edgekit.records import Budget, Built, Metric, Score, StageRow
from edgekit.results import (
    Benched,
    BudgetCheck,
    DeviceFacts,
    Energy,
    Failure,
    Interval,
    Latency,
    Memory,
    MemoryLimit,
    MemoryPhase,
    OutputCheck,
    RunResult,
    Sustained,
    Workload,
)


def built(unchanged: bool = False) -> Built:
    score = Score(
        metric="macro_f1", value=0.71, examples=900,
        parts=(Metric(name="COMMA", value=0.6, support=5000), Metric(name="QUESTION", value=0.5, support=43)),
    )  # fmt: skip
    rows = (
        StageRow(name="teach", artifact="a" * 64, parameters=22_713_216, bytes=90_868_376, score=0.71, metrics=score,
                 latency_s=None, seconds=240.4, cached=False, changed="fine-tuned"),
        StageRow(name="quantize-tflite", artifact="b" * 64, parameters=None, bytes=7_000_000, score=0.69,
                 metrics=score, latency_s=0.00163, seconds=3, cached=unchanged, changed="dynamic",
                 refused=("static: slower",)),
    )  # fmt: skip
    return Built(recipe="r", target="t", bundle="out", zip="out.zip", unchanged=unchanged, stages=rows)


def test_build_table() -> None:
    text = tables.build(built())
    assert max(len(line) for line in text.splitlines()) <= 80
    for figure in ("22.71 M", "90.9 MB", "0.710", "1.63", "240", "0.500", "QUESTION 43", "900 examples"):
        assert figure in text, figure
    assert "refused: static: slower" in text
    assert "out.zip" in text
    assert "Nothing to do" not in text


def test_an_unchanged_build_says_so() -> None:
    assert "Nothing to do" in tables.build(built(unchanged=True))


def test_not_measured_is_empty_not_zero() -> None:
    line = next(line for line in tables.build(built()).splitlines() if line.startswith("teach"))
    assert " 0.00" not in line


def result(**values: Any) -> RunResult:
    facts = DeviceFacts(
        model="Pixel 8", os="Android 14 (sdk 34)", abi="arm64-v8a", libc="bionic", cores=9, ram_bytes=1, free_bytes=1
    )
    phases = [
        MemoryPhase(
            name=name,
            hwm_bytes=hwm,
            rss_bytes=hwm,
            anon_bytes=5_000_000,
            file_bytes=7_000_000,
            shmem_bytes=1_000_000,
            pss_bytes=None,
            swap_bytes=0,
        )
        for name, hwm in (("start", 1_000_000), ("loaded", 21_000_000), ("end", 27_100_000))
    ]
    latency = Latency(
        length=128, p50_s=0.00712, p50_interval=Interval(low=0.0071, high=0.0072), p90_s=0.0123, p99_s=0.1234,
        mean_s=0.008, per_second=125, open_s=0.001, load_s=0.02, first_run_s=0.03, cpu_share=1,
        involuntary_switches=0, warmup_s=(0.01, 0.008), samples_s=(0.007,), cpu_s=(0.007,),
    )  # fmt: skip
    right = OutputCheck(
        output="logits", examples=8, cosine_min=0.99987, max_abs_diff=0.03, flips=1, decisions=800, passed=True
    )
    given: dict[str, Any] = {
        "edgekit": "0", "bundle": "punctuation", "digest": "d", "model": "tflite/model.tflite", "model_sha256": "s",
        "size_bytes": 8_800_000, "device": "pixel-8", "facts": facts, "runner": "native", "runtime": "litert 2.3.0",
        "cpus": (4, 5),
        "workload": Workload(format="tflite", lengths=(128,), threads=2, warmup_s=1, repeat_s=5),
        "checks": (right,),
        "latency": (latency,),
        "memory": Memory(
            peak_rss_bytes=27_100_000, peak_phase="end", floor_bytes=9_100_000, model_bytes=18_000_000,
            python_peak_rss_bytes=None, phases=tuple(phases),
        ),
        "budgets": (), "readings": (), "doubts": (), "began": "now", "seconds": 1.0,
    }  # fmt: skip
    return RunResult.model_validate({**given, **values})


def shown(*results: RunResult, failures: tuple[Failure, ...] = ()) -> str:
    text = tables.bench(Benched(results=results, failures=failures), Path("results"))
    assert max(map(len, text.splitlines())) <= 80
    return " ".join(text.split())


def test_a_device_in_figures() -> None:
    text = shown(result())
    for words in (
        "pixel-8 128 7.12 7.10-7.20 12.3 123 8.00 125 20",
        "Pixel 8, Android 14 (sdk 34); litert 2.3.0, native runner, threads 2 on cores 4, 5",
        "cosine 0.999870 at worst, largest difference 0.03, 1 of 800 decisions flipped",
        "library 1.00 ms, load 20.0 ms, first run 30.0 ms; warm-up 2 runs, from 10.0 to 8.00 ms",
        "peak 27.1 MB at end = runtime floor 9.1 MB + model 18.0 MB",
        "anonymous 5.0 MB, file-backed 8.0 MB",
        "start 1.0 MB, loaded 21.0 MB, end 27.1 MB",
    ):
        assert words in text


def test_embeddings_decide_nothing() -> None:
    check = OutputCheck(
        output="sentence_embedding", examples=8, cosine_min=1, max_abs_diff=0, flips=0, decisions=0, passed=True
    )
    assert "largest difference 0 cold start" in shown(result(checks=(check,)))


def test_energy_is_a_figure_or_a_reason() -> None:
    gross, net = Interval(low=0.019, high=0.021), Interval(low=0.011, high=0.013)
    measured = Energy(
        state="measured", source="battery gauge", resolution_j=0.1, gross_j=0.02, gross_interval=gross, net_j=0.0123,
        net_interval=net, idle_w=1, load_w=2,
    )  # fmt: skip
    assert "energy: gross 20 mJ (19 to 21), net 12.3 mJ (11 to 13) an inference, from battery gauge" in shown(
        result(energy=measured)
    )
    text = shown(result(energy=Energy(state="refused", reason="the phone is charging; unplug it")))
    assert "energy: refused: the phone is charging; unplug it" in text


def test_budgets_limits_and_doubts() -> None:
    def check(metric: Any, limit: float, observed: float | None, headroom: float | None) -> BudgetCheck:
        kept = None if headroom is None else headroom >= 0
        return BudgetCheck(budget=Budget(metric=metric, limit=limit), observed=observed, kept=kept, headroom=headroom)

    memory = result().memory
    assert memory
    limit = MemoryLimit(limit_bytes=30_000_000, kind="cgroup-v2", survived=False, said="the kernel killed it")
    text = shown(
        result(
            budgets=(
                check("peak_rss_bytes", 30e6, 27.1e6, 2.9e6),
                check("latency_s", 0.005, 0.00712, -0.00212),
                check("score", 0.9, 0.85, -0.05),
                check("energy_j", 0.1, None, None),
            ),
            memory=memory.model_copy(update={"limit": limit}),
            sustained=Sustained(seconds=120, p50_s_by_minute=(0.007, 0.009), last_over_first=1.286, samples_s=()),
            doubts=("hot: it was", "drift: a lot " * 12),
        )
    )
    for words in (
        "budget peak_rss_bytes <= 30.0 MB: 27.1 MB, kept, 2.9 MB left",
        "budget latency_s <= 5.00 ms: 7.12 ms, BROKEN by 2.12 ms",
        "budget score >= 0.9000: 0.8500, BROKEN by 0.0500",
        "budget energy_j <= 100 mJ: not measured",
        "under a limit of 30.0 MB (cgroup-v2): DID NOT SURVIVE: the kernel killed it",
        "sustained 120 s: p50 by minute 7.00, 9.00 ms; last over first 1.286",
        "doubt: hot: it was",
    ):
        assert words in text


def test_failures_stand_below_the_results() -> None:
    failures = (Failure(device="my-pi", message="ssh: connection refused; is it on?", exit_code=4),)
    assert shown(result(), failures=failures).index("pixel-8") < shown(result(), failures=failures).index(
        "my-pi: FAILED"
    )
    assert shown(failures=failures).startswith("my-pi: FAILED: ssh: connection refused")
    two = (Failure(device="b", message='key "host" is missing; add it\nunknown key\x1b[31m', exit_code=2),)
    assert shown(failures=two) == 'b: FAILED: key "host" is missing; add it / unknown key?[31m'
