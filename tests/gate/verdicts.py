"""Verdicts made by hand, for the tests of what shows them."""

from typing import Any

from edgekit.records import Gate
from edgekit.results import (
    Bundled,
    Check,
    DeviceFacts,
    Failure,
    Interval,
    Latency,
    Reading,
    RunResult,
    SideBySide,
    Verdict,
    Workload,
)

HOSTILE = (
    "a|b `c` <img src=x onerror=alert(1)> @team/all owner/repo#12 #3 !4 ~5 https://h.example www.h.example "
    "](javascript:alert(1)) ![i](x) [l](javascript:x) **b** _e_ ~~s~~ $x$ &copy; <!-- </details> --> \\ GH-7 "
    ":tada: me@h.example\n\n# h\n```\n|---|\x1b[31m\x00\x0b\u202e\u2028\ufffe\ud800 end"
)
"""What a device or a branch may be called, and what must come of it: text."""


def check(**values: Any) -> Check:
    given: dict[str, Any] = {
        "device": "pixel-8", "metric": "latency_s", "length": 128, "unit": "s", "rule": "change", "answer": "PASS",
        "reason": "within the floor", "baseline": 0.00712, "candidate": 0.00715, "change": 0.004,
        "interval": Interval(low=0.001, high=0.007), "floor": 0.03, "floor_of": "relative tolerance", "pairs": 7,
    }  # fmt: skip
    return Check.model_validate({**given, **values})


def result(**values: Any) -> RunResult:
    latency = Latency(
        length=128, p50_s=0.007, p50_interval=Interval(low=0.007, high=0.007), p90_s=0.01, p99_s=0.01, mean_s=0.008,
        per_second=125, open_s=0.001, load_s=0.02, first_run_s=0.03, cpu_share=1, involuntary_switches=0, warmup_s=(),
        samples_s=(0.007,), cpu_s=(0.007,),
    )  # fmt: skip
    readings = (
        Reading(at_s=0, temperatures_c={"cpu": 31, "skin": 29}, clocks_hz={0: 9, 4: 1_800_000_000},
                governors={4: "schedutil"}, battery_percent=80, charging=False, load=0.02),
        Reading(at_s=5, temperatures_c={"cpu": 41.5}, clocks_hz={4: 2_850_000_000}, load=0.55),
    )  # fmt: skip
    given: dict[str, Any] = {
        "edgekit": "0", "bundle": "punctuation", "digest": "d", "model": "tflite/model.tflite", "model_sha256": "s",
        "size_bytes": 8_800_000, "device": "pixel-8", "runner": "native", "runtime": "litert 2.3.0", "cpus": (4,),
        "facts": DeviceFacts(model="Pixel 8", os="Android 14", abi="arm64-v8a", libc=None, cores=9, ram_bytes=1,
                             free_bytes=1),
        "workload": Workload(format="tflite", lengths=(128,), threads=1, warmup_s=1, repeat_s=5),
        "checks": (), "latency": (latency,), "memory": None, "budgets": (), "readings": readings, "doubts": (),
        "began": "2026-11-21T07:09:45+00:00", "seconds": 1.0,
    }  # fmt: skip
    return RunResult.model_validate({**given, **values})


def verdict(*checks: Check, **values: Any) -> Verdict:
    baseline, candidate = (
        Bundled(name="punctuation", digest=letter * 64, source=source, recipe={}, stages=(), models=())
        for source, letter in (("git:main", "a"), ("bundles/new", "b"))
    )
    given: dict[str, Any] = {
        "edgekit": "0.1.0", "answer": "PASS", "candidate": candidate, "baseline": baseline, "checks": checks,
        "left_out": (), "correction": "2 comparisons: each at 99.5 %", "tolerances": Gate(),
        "measured": (SideBySide(baseline=result(), candidate=result(), blocks=()),), "failures": (),
        "began": "2026-11-21T07:09:45+00:00", "seconds": 60.0,
    }  # fmt: skip
    return Verdict.model_validate({**given, **values})


def hostile() -> Verdict:
    """A verdict with a hostile name wherever one can stand."""
    named = Bundled(name=HOSTILE, digest=HOSTILE, source=HOSTILE, recipe={}, stages=(), models=())
    side = result(device=HOSTILE, doubts=(HOSTILE,), runtime=HOSTILE)
    return verdict(
        check(device=HOSTILE, metric="score", unit=HOSTILE, answer="REGRESSION", reason=HOSTILE),
        check(device=HOSTILE),
        answer="REGRESSION", candidate=named, baseline=named, left_out=(HOSTILE,), correction=HOSTILE,
        failures=(Failure(device=HOSTILE, message=HOSTILE, exit_code=4),), edgekit=HOSTILE,
        measured=(SideBySide(baseline=side, candidate=side, blocks=()),),
    )  # fmt: skip


def mixed() -> Verdict:
    """A verdict that has one of everything."""
    nothing: dict[str, Any] = {
        "baseline": None, "candidate": None, "change": None, "interval": None, "floor": None, "pairs": None
    }  # fmt: skip
    return verdict(
        check(length=32),
        check(answer="REGRESSION", candidate=0.00812, change=0.14, interval=Interval(low=0.112, high=0.1704),
              reason="slower by 14.0 %"),
        check(metric="peak_rss_bytes", length=None, unit="bytes", baseline=27.1e6, candidate=27.15e6,
              answer="INCONCLUSIVE", reason="too uncertain to tell"),
        check(**{**nothing, "candidate": 0.0041}, rule="budget", limit=0.005, reason="18 % below the limit"),
        check(**nothing, rule="budget", metric="energy_j", unit="J", length=None, limit=0.1, answer="REGRESSION",
              reason="not measured"),
        answer="REGRESSION",
        left_out=("score: --no-score",),
        failures=(Failure(device="my-pi", message="ssh: refused", exit_code=4),
                  Failure(device="other", message="outputs differ", exit_code=3)),
        measured=(SideBySide(baseline=result(), candidate=result(doubts=("throttled: it was",)), blocks=()),),
    )  # fmt: skip
