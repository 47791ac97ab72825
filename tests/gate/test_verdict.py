"""The verdict by mutation: what is worse must be found, what is not comparable refused, what is the same must pass."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from verdicts import check, result, verdict

from edgekit.errors import InputError
from edgekit.gate import verdict as judging
from edgekit.records import Budget, Gate, Tolerance
from edgekit.results import (
    Block,
    BudgetCheck,
    Check,
    Energy,
    Failure,
    Interval,
    ScoreChange,
    SideBySide,
    Workload,
)

BASE_S, PEAK = 0.007, 28_000_000
COUNT = 3


def blocks(
    slower: float = 0.0, heavier: float = 0.0, noise: float = 0.004, pairs: int = 9, lengths: Sequence[int] = (128,)
) -> tuple[Block, ...]:
    """Pairs with a known truth; each length draws noise of its own."""
    rng = np.random.default_rng(1)
    found: list[Block] = []
    turns: list[Any] = ["baseline", "candidate"]
    for _ in range(pairs):
        for length in lengths:
            for side in turns:
                worse = side == "candidate"
                found.append(
                    Block(
                        side=side, length=length, p50_s=BASE_S * (1 + slower * worse) * math.exp(rng.normal(0, noise)),
                        peak_rss_bytes=round(PEAK * (1 + heavier * worse)), runs=100,
                    )
                )  # fmt: skip
        turns.reverse()
    return tuple(found)


def budget(metric: Any, limit: float, observed: float | None, required: bool = True) -> BudgetCheck:
    """As bench gives it; what the gate makes of it rests on the blocks where there are some."""
    kept = None if observed is None else observed <= limit
    return BudgetCheck(budget=Budget(metric=metric, limit=limit, required=required), observed=observed, kept=kept,
                       headroom=None)  # fmt: skip


def pair(
    *of: Block, score: ScoreChange | None = None, baseline: dict[str, Any] | None = None, **candidate: Any
) -> SideBySide:
    return SideBySide(
        baseline=result(**(baseline or {})), candidate=result(**candidate), blocks=of or blocks(), score=score
    )


def judged(measured: SideBySide, gate: Gate | None = None, noise: float | None = None) -> dict[str, Check]:
    return {f"{one.rule} {one.metric}": one for one in judging.judge(measured, gate or Gate(), noise, COUNT)}


def score(before: float, after: float, error: float = 0.002) -> ScoreChange:
    return ScoreChange(metric="f1", baseline=before, candidate=after, examples=500, standard_error=error)


def joules(value: float, half: float = 0.001, **values: Any) -> Energy:
    interval = Interval(low=value - half, high=value + half)
    return Energy.model_validate({"state": "measured", "gross_j": value, "gross_interval": interval, **values})


def test_the_same_passes_in_everything() -> None:
    found = judged(pair(*blocks(), score=score(0.9, 0.9)))
    assert {name: one.answer for name, one in found.items()} == {
        "change latency_s": "PASS", "change peak_rss_bytes": "PASS", "change size_bytes": "PASS", "change score": "PASS"
    }  # fmt: skip
    assert found["change latency_s"].pairs == 9
    assert found["change size_bytes"].change == 0


MUTATIONS = {
    "slower": (pair(*blocks(slower=0.05)), "change latency_s"),
    "heavier": (pair(*blocks(heavier=0.04)), "change peak_rss_bytes"),
    "bigger": (pair(size_bytes=8_900_000), "change size_bytes"),
    "less accurate": (pair(score=score(0.90, 0.88)), "change score"),
    "hungrier": (pair(baseline={"energy": joules(0.1)}, energy=joules(0.12)), "change energy_j"),
    "over its latency": (pair(budgets=(budget("latency_s", 0.0069, 0.007),)), "budget latency_s"),
    "over its memory": (pair(budgets=(budget("peak_rss_bytes", 27e6, 26e6),)), "budget peak_rss_bytes"),
    "over its size": (pair(budgets=(budget("size_bytes", 8e6, 8.8e6),)), "budget size_bytes"),
    "under its score": (pair(budgets=(budget("score", 0.9, 0.89),)), "budget score"),
    "energy not measured": (pair(budgets=(budget("energy_j", 0.1, None),)), "budget energy_j"),
    "score not measured": (pair(budgets=(budget("score", 0.5, None),)), "budget score"),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_what_is_worse_is_found(name: str) -> None:
    """And only that: one check is a REGRESSION, and it is the right one."""
    measured, broken = MUTATIONS[name]
    found = judged(measured)
    assert [what for what, one in found.items() if one.answer == "REGRESSION"] == [broken]
    assert judging.overall(tuple(found.values()), ()) == "REGRESSION"


@pytest.mark.parametrize(
    ("measured", "metric"),
    [
        (pair(*blocks(slower=-0.2)), "latency_s"),
        (pair(*blocks(slower=0.01)), "latency_s"),
        (pair(*blocks(heavier=0.015)), "peak_rss_bytes"),
        (pair(size_bytes=8_000_000), "size_bytes"),
        (pair(score=score(0.88, 0.90)), "score"),
        (pair(score=score(0.900, 0.895)), "score"),
        (pair(baseline={"energy": joules(0.12)}, energy=joules(0.1)), "energy_j"),
    ],
)
def test_what_is_better_or_hardly_worse_passes(measured: SideBySide, metric: str) -> None:
    assert judged(measured)[f"change {metric}"].answer == "PASS"


def test_the_change_is_that_of_the_pairs() -> None:
    found = judged(pair(*blocks(slower=0.05, noise=0)))["change latency_s"]
    assert found.change == pytest.approx(0.05)
    assert found.interval and found.interval.low == pytest.approx(0.05) == found.interval.high
    assert (found.baseline, found.candidate) == (pytest.approx(BASE_S), pytest.approx(BASE_S * 1.05))
    assert (found.floor, found.floor_of, found.unit) == (0.03, "relative tolerance", "s")


def test_noise_is_inconclusive_never_pass() -> None:
    """The same noise around nothing and around 4 %: neither is said with 15 pairs that spread by 20 %."""
    for slower in (0.0, 0.04):
        found = judged(pair(*blocks(slower=slower, noise=0.2, pairs=15)))["change latency_s"]
        assert found.answer == "INCONCLUSIVE"
        assert "too uncertain" in found.reason


def test_the_floor_is_the_largest_of_three() -> None:
    measured = pair(*blocks(slower=0.05, noise=0))
    kept = judged(measured, Gate(latency_s=Tolerance(relative=0.01, absolute=0.0007)))["change latency_s"]
    assert (kept.answer, kept.floor, kept.floor_of) == ("PASS", pytest.approx(0.1), "absolute tolerance")
    kept = judged(measured, noise=0.06)["change latency_s"]
    assert (kept.answer, kept.floor, kept.floor_of) == ("PASS", pytest.approx(math.expm1(0.06)), "noise of the device")
    assert judged(measured, Gate(latency_s=Tolerance(relative=0.06)))["change latency_s"].answer == "PASS"
    assert judged(measured, Gate(latency_s=Tolerance(relative=0.04)))["change latency_s"].answer == "REGRESSION"


def test_every_length_is_judged() -> None:
    slow = [b.model_copy(update={"p50_s": b.p50_s * 1.06}) if (b.side, b.length) == ("candidate", 64) else b
            for b in blocks(lengths=(32, 64, 128))]  # fmt: skip
    workload = Workload(format="tflite", lengths=(32, 64, 128), threads=1, warmup_s=1, repeat_s=5)
    found = judging.judge(pair(*slow, baseline={"workload": workload}, workload=workload), Gate(), None, 5)
    answers = {one.length: one.answer for one in found if one.metric == "latency_s"}
    assert answers == {32: "PASS", 64: "REGRESSION", 128: "PASS"}


def test_a_score_that_may_be_chance_is_inconclusive() -> None:
    found = judged(pair(score=score(0.90, 0.88, error=0.02)))["change score"]
    assert found.answer == "INCONCLUSIVE"
    assert (found.change, found.unit) == (pytest.approx(-0.02), "f1")
    assert found.interval and found.interval.high == pytest.approx(-0.02 + 2.5758 * 0.02, abs=1e-5)


def test_energy_that_was_asked_for_and_not_measured_is_no_pass() -> None:
    lost = Energy(state="refused", reason="on external power")
    found = judged(pair(baseline={"energy": joules(0.1)}, energy=lost))["change energy_j"]
    assert found.answer == "INCONCLUSIVE"
    assert "candidate: refused, on external power" in found.reason
    assert found.candidate is None


@pytest.mark.parametrize("value", [0.0, -0.1])
def test_a_meter_that_gives_no_joules_is_no_pass(value: float) -> None:
    found = judged(pair(baseline={"energy": joules(0.1)}, energy=joules(value)))["change energy_j"]
    assert found.answer == "INCONCLUSIVE"
    assert "candidate: measured, but not as joules above 0" in found.reason


def test_the_errors_of_two_energies_add_up() -> None:
    """10 % each way of either: sqrt(2) times 10 % of the ratio, scaled from 95 to 99 %."""
    found = judged(pair(baseline={"energy": joules(0.1, 0.01)}, energy=joules(0.1, 0.01)))["change energy_j"]
    assert found.interval and found.interval.high == pytest.approx(math.sqrt(2) * 0.1 * 2.5758 / 1.95996, rel=1e-4)
    assert found.answer == "INCONCLUSIVE"


@pytest.mark.parametrize(("limit", "answer"), [(0.0075, "PASS"), (0.00701, "INCONCLUSIVE"), (0.0068, "REGRESSION")])
def test_a_latency_budget_is_kept_by_the_upper_bound(limit: float, answer: str) -> None:
    found = judged(pair(budgets=(budget("latency_s", limit, 0.007),)))["budget latency_s"]
    assert (found.answer, found.limit, found.length) == (answer, limit, 128)
    assert found.interval and found.interval.low < 0.007 < found.interval.high


def test_a_memory_budget_is_kept_by_every_process() -> None:
    of = [*blocks(), *blocks()]
    of[3] = of[3].model_copy(update={"side": "candidate", "peak_rss_bytes": 30_000_001})
    of[2] = of[2].model_copy(update={"side": "baseline"})
    found = judged(pair(*of, budgets=(budget("peak_rss_bytes", 30e6, 28e6),)))["budget peak_rss_bytes"]
    assert (found.answer, found.candidate) == ("REGRESSION", 30_000_001)


def test_a_budget_that_is_not_required_is_told() -> None:
    found = judged(pair(budgets=(budget("size_bytes", 8e6, 8.8e6, required=False),)))["budget size_bytes"]
    assert found.answer == "PASS"
    assert "above the limit; the budget is not required" in found.reason


UNLIKE = {
    "another device": {"device": "other"},
    "another machine of that name": {"facts": result().facts.model_copy(update={"cores": 4})},
    "another workload": {"workload": result().workload.model_copy(update={"threads": 4})},
    "another runtime": {"runtime": "litert 2.2.0"},
    "another runner": {"runner": "python"},
}


@pytest.mark.parametrize("name", UNLIKE)
def test_unlike_results_are_refused(name: str) -> None:
    with pytest.raises(InputError, match="the results are of unlike"):
        judged(pair(**UNLIKE[name]))


@pytest.mark.parametrize(
    "of", [blocks(pairs=3), blocks()[:-1], blocks(lengths=(64,)), blocks(lengths=(64, 128))],
    ids=["too few", "half a pair", "another length", "one more length"],
)  # fmt: skip
def test_results_that_are_not_whole_are_refused(of: tuple[Block, ...]) -> None:
    with pytest.raises(InputError):
        judged(pair(*of))


def test_an_empty_result_is_refused() -> None:
    with pytest.raises(InputError, match="is not whole"):
        judged(SideBySide(baseline=result(), candidate=result(), blocks=()))


def failure(code: int) -> Failure:
    return Failure(device="x", message="", exit_code=code)


@pytest.mark.parametrize(
    ("answers", "failures", "overall", "code"),
    [
        (["PASS"], [], "PASS", 0),
        ([], [], "INFRA_ERROR", 4),
        (["PASS", "INCONCLUSIVE"], [], "INCONCLUSIVE", 5),
        (["PASS", "INCONCLUSIVE", "REGRESSION"], [], "REGRESSION", 3),
        (["PASS"], [4], "INFRA_ERROR", 4),
        (["INCONCLUSIVE"], [4], "INFRA_ERROR", 4),
        (["REGRESSION"], [4], "REGRESSION", 3),
        (["PASS"], [3], "REGRESSION", 3),
        ([], [2], "INFRA_ERROR", 2),
        ([], [2, 4], "INFRA_ERROR", 4),
    ],
)
def test_one_answer_of_many(answers: list[Any], failures: list[int], overall: str, code: int) -> None:
    checks, failed = [check(answer=one) for one in answers], tuple(failure(one) for one in failures)
    assert judging.overall(checks, failed) == overall
    assert judging.exit_code(verdict(*checks, answer=overall, failures=failed)) == code


def test_enough_is_when_every_figure_is_decided() -> None:
    """At least 7 pairs, at most 15, and in between as soon as no figure is open."""

    def enough(of: Sequence[Block]) -> bool:
        return judging.settled(of, Gate(), None, COUNT)

    assert not enough(())
    assert not enough(blocks(pairs=6, noise=0))
    assert enough(blocks(pairs=7, noise=0))
    assert enough(blocks(pairs=7, noise=0, slower=0.2))
    assert not enough(blocks(pairs=14, noise=0.2))
    assert enough(blocks(pairs=15, noise=0.2))


def test_a_latency_budget_that_is_open_asks_for_more_pairs() -> None:
    of = blocks(pairs=8)
    for limit, enough in ((0.0075, True), (0.00701, False), (0.0068, True)):
        budgets = (Budget(metric="latency_s", limit=limit), Budget(metric="score", limit=0.5))
        assert judging.settled(of, Gate(), None, COUNT, budgets) is enough
        assert judging.settled(of, Gate(), None, COUNT, (budgets[0].model_copy(update={"required": False}),))


def test_a_tolerance_below_what_the_device_resolves_is_refused() -> None:
    """A deviation of 8 % leaves exp(t * 8 % / sqrt(15)) - 1 of 15 pairs, with t of the 8 degrees that trimming leaves
    (4.1224 at 1 - 0.01 / 3); one of 1 % far less than the tolerance."""
    judging.resolvable(Tolerance(relative=0.03), 0.04, COUNT, "pixel-8")  # 4.4 %: PASS can still exclude 5 %
    judging.resolvable(Tolerance(absolute=0.001), 0.08, COUNT, "pixel-8")  # worth what it is worth
    with pytest.raises(InputError, match=r"pixel-8: latency_s is to be held to 3\.0 %.*no less than 8\.9 %"):
        judging.resolvable(Tolerance(relative=0.03), 0.08, COUNT, "pixel-8")
    assert math.expm1(4.1224 * 0.08 / math.sqrt(15)) == pytest.approx(0.089, abs=5e-4)


def test_the_level_allows_for_comparisons_and_looks() -> None:
    assert judging.level(1) == 0.99
    assert judging.level(10) == pytest.approx(0.999)
    assert judging.level(10, 7) == pytest.approx(1 - 0.001 * (7 / 15) ** 3)
    assert judging.comparisons(3, energy=True, score=True) == 6
    assert "99.80 %" in judging.correction(5)
