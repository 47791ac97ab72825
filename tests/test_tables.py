"""Tables: every figure of the records, in 80 columns."""

import os
import pty
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from edgekit import tables
from edgekit.records import Budget, Built, Gate, Metric, Score, StageRow
from edgekit.results import (
    Benched,
    BudgetCheck,
    Bundled,
    Check,
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
    SideBySide,
    Sustained,
    Verdict,
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


def check(**values: Any) -> Check:
    given: dict[str, Any] = {
        "device": "pixel-8", "metric": "latency_s", "length": 128, "unit": "s", "rule": "change", "answer": "PASS",
        "reason": "as fast", "baseline": 0.00712, "candidate": 0.00715, "change": 0.004,
        "interval": Interval(low=0.001, high=0.007), "floor": 0.03, "floor_of": "relative tolerance", "pairs": 7,
    }  # fmt: skip
    return Check.model_validate({**given, **values})


UNMEASURED = {"baseline": None, "candidate": None, "change": None, "interval": None, "floor": None, "pairs": None}


def verdict(*checks: Check, **values: Any) -> Verdict:
    baseline, candidate = (
        Bundled(name="punctuation", digest="d" * 64, source=source, recipe={}, stages=(), models=())
        for source in ("git:main", "bundles/new")
    )
    given: dict[str, Any] = {
        "edgekit": "0", "answer": "PASS", "candidate": candidate, "baseline": baseline, "checks": checks,
        "left_out": (), "correction": "2 comparisons: each at 99.5 %", "tolerances": Gate(),
        "measured": (SideBySide(baseline=result(), candidate=result(), blocks=()),), "failures": (),
        "began": "2026-11-21T07:09:45+00:00", "seconds": 60.0,
    }  # fmt: skip
    return Verdict.model_validate({**given, **values})


def said(found: Verdict) -> str:
    text = tables.verdict(found)
    assert max(map(len, text.splitlines())) <= 80
    assert "\x1b" not in text
    return " ".join(text.split())


def test_a_verdict_in_figures() -> None:
    text = said(
        verdict(
            check(length=32),
            check(answer="REGRESSION", candidate=0.00812, change=0.14, reason="slower by 14.0 %",
                  interval=Interval(low=0.112, high=0.1704)),
            check(metric="peak_rss_bytes", length=None, unit="bytes", baseline=27.1e6, candidate=27.15e6,
                  answer="INCONCLUSIVE", reason="too uncertain to tell"),
            check(metric="score", length=None, unit="macro_f1", baseline=0.5178, candidate=0.5111, change=-0.0067,
                  interval=Interval(low=-0.012, high=0.003), floor=0.01, pairs=None),
            check(metric="size_bytes", length=None, unit="bytes", baseline=8764928, candidate=8764928, change=0,
                  interval=None, floor=0.01, pairs=None),
            answer="REGRESSION",
            left_out=("energy_j: not asked for",),
        )
    )  # fmt: skip
    assert text.startswith("REGRESSION: punctuation (bundles/new) against punctuation (git:main) on pixel-8 ")
    for words in (
        "pixel-8: Pixel 8, Android 14 (sdk 34); litert 2.3.0, native runner, threads 2 on cores 4, 5; 7 pairs",
        "check baseline candidate change interval floor answer",
        "latency_s 32 7.12 ms 7.15 ms +0.4 % +0.1 to +0.7 % 3.0 % PASS",
        "latency_s 128 7.12 ms 8.12 ms +14.0 % +11.2 to +17.0 % 3.0 % REGRESSION",
        "peak_rss_bytes 27.10 MB 27.15 MB +0.4 % +0.1 to +0.7 % 3.0 % INCONCLUSIVE",
        "score macro_f1 0.5178 0.5111 -0.007 -0.012 to +0.003 0.010 PASS",
        "size_bytes 8.76 MB 8.76 MB +0.0 % - 1.0 % PASS",
        "REGRESSION latency_s 128: slower by 14.0 %",
        "INCONCLUSIVE peak_rss_bytes: too uncertain to tell",
        "left out: energy_j: not asked for 2 comparisons: each at 99.5 %",
    ):
        assert words in text, words
    assert "as fast" not in text


def test_budgets_failures_and_what_was_not_measured() -> None:
    text = said(
        verdict(
            check(**UNMEASURED, answer="INCONCLUSIVE", metric="energy_j", unit="J", length=None, reason="unavailable"),
            check(**{**UNMEASURED, "candidate": 0.0041}, rule="budget", limit=0.005, reason="18 % below the limit"),
            check(**UNMEASURED, rule="budget", metric="score", unit="score", limit=0.9, answer="REGRESSION",
                  reason="not measured"),
            failures=(Failure(device="my-pi", message="ssh: refused;\nis it on?", exit_code=4),),
        )
    )  # fmt: skip
    for words in (
        "on my-pi, pixel-8",
        "energy_j - - - - - INCONCLUSIVE",
        "PASS budget latency_s 128: 4.10 ms of 5.00 ms; 18 % below the limit",
        "REGRESSION budget score score: not measured",
        "my-pi FAILED: ssh: refused; / is it on?",
    ):
        assert words in text, words


def test_a_verdict_of_nothing_is_text_too() -> None:
    text = said(verdict(answer="INFRA_ERROR", measured=(), correction=""))
    assert text == "INFRA_ERROR: punctuation (bundles/new) against punctuation (git:main)"


def test_doubts_are_told_once_with_whose_they_are() -> None:
    both = SideBySide(
        baseline=result(doubts=("hot: it was", "hot: it was")),
        candidate=result(doubts=("hot: it was", "drift: a lot")),
        blocks=(),
    )
    other = result(device="my-pi", doubts=("hot: it was",))
    text = said(
        verdict(check(), measured=(both, SideBySide(baseline=result(device="my-pi"), candidate=other, blocks=())))
    )
    assert text.count("hot: it was") == 2
    for words in (
        "doubt, pixel-8, baseline and candidate: hot: it was",
        "doubt, pixel-8, candidate: drift: a lot",
        "doubt, my-pi, candidate: hot: it was",
    ):
        assert words in text


def test_names_from_elsewhere_are_text() -> None:
    """No control codes, no new lines, no markup of the table's library."""
    hostile = "\x1b[31m[red]x[/red] :x:\u202e\nPASS"
    text = said(
        verdict(
            check(device=hostile, unit=hostile, metric="score", reason=hostile, answer="REGRESSION", length=None),
            left_out=(hostile,),
            correction=hostile,
            failures=(Failure(device=hostile, message=hostile, exit_code=4),),
            measured=(SideBySide(baseline=result(doubts=(hostile,)), candidate=result(device=hostile), blocks=()),),
        )
    )
    assert "?[31m[red]x[/red] :x:? / PASS" in text
    assert "[red]x[/red] :x:" in tables.bench(
        Benched(results=(result(device="[red]x[/red] :x:"),), failures=()), Path()
    )


COLOURED = "from edgekit import tables; print(tables.coloured('PASS: a PASSAGE, REGRESSION'))"


def seen(**environment: str) -> str:
    """What `coloured` gives where stdout is a terminal."""
    ours, theirs = pty.openpty()
    env = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "TERM")} | environment
    try:
        subprocess.run([sys.executable, "-c", COLOURED], env=env, stdout=theirs, check=True, timeout=60)
        return os.read(ours, 1000).decode().strip()
    finally:
        os.close(ours)
        os.close(theirs)


def test_colour_only_on_a_terminal_that_shows_it() -> None:
    plain = "PASS: a PASSAGE, REGRESSION"
    assert subprocess.check_output([sys.executable, "-c", COLOURED], timeout=60, text=True) == f"{plain}\n"
    found = seen(TERM="xterm")
    assert found == "\x1b[1;32mPASS\x1b[0m: a PASSAGE, \x1b[1;31mREGRESSION\x1b[0m"
    assert re.sub(r"\x1b\[[\d;]*m", "", found) == plain
    assert seen(TERM="dumb") == plain
    assert seen(TERM="xterm", NO_COLOR="1") == plain
    assert seen(TERM="xterm", NO_COLOR="") == found
    assert seen() == plain
