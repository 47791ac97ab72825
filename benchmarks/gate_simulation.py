"""The gate's false alarms and misses on simulated devices: `python benchmarks/gate_simulation.py`.

The noise model and the loop are those of `tests/gate/simulation.py`; the judgement is edgekit's own. Beside it stand
the rules that people use instead, on the same blocks. It takes about a minute and writes gate_simulation.json.
"""

import json
import math
import platform
import sys
from collections import Counter
from datetime import date
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests" / "gate"))

import simulation  # noqa: E402

GATES = 500
DEVICES = {"typical": simulation.TYPICAL, "harsh": simulation.HARSH}


def ours(noise: simulation.Noise, slower: float, lengths: tuple[int, ...], calibrated: bool = False) -> dict[str, Any]:
    """The gate as it is: shares of each answer (INFRA_ERROR: refused for its calibration), and the mean number of
    pairs."""
    answers: Counter[str] = Counter()
    pairs = 0
    for seed in range(GATES):
        answer, took = simulation.gate(noise, slower, seed, lengths, calibrated)
        answers[answer] += 1
        pairs += took
    names = ("PASS", "REGRESSION", "INCONCLUSIVE", *(("INFRA_ERROR",) if calibrated else ()))
    return {**{name: answers[name] / GATES for name in names}, "pairs": pairs / GATES}


def others(noise: simulation.Noise, slower: float) -> dict[str, float]:
    """How often other rules call the candidate slower, of 15 blocks a side."""
    called: Counter[str] = Counter()
    for seed in range(GATES):
        turns = np.array(list(islice(simulation.wander(noise, np.random.default_rng(seed)), 30)))
        # one bundle after the other, as two benchmark runs would do it
        before, after = turns[:15], turns[15:] * (1 + slower)
        called["one run each, ratio of medians over 1.05"] += np.median(after) > 1.05 * np.median(before)
        called["one run each, ratio of medians over 1.03"] += np.median(after) > 1.03 * np.median(before)
        called["one run each, Mann-Whitney, 5 %"] += (
            stats.mannwhitneyu(after, before, alternative="greater").pvalue < 0.05
        )
        # in turns, A B B A, but judged by plain Student
        signs = np.array([1, -1] * 15)[:15]
        pairs = np.log(turns[1::2] / turns[::2]) * signs + math.log1p(slower)
        low, _ = stats.t.interval(0.95, 14, pairs.mean(), stats.sem(pairs))
        called["15 pairs in turns, Student's interval over 0, floor 3 %"] += low > 0 and pairs.mean() > math.log(1.03)
    return {name: count / GATES for name, count in called.items()}


def main() -> None:
    """Run all and write the JSON beside this file."""
    found: dict[str, Any] = {"date": str(date.today()), "machine": platform.machine(), "gates": GATES, "devices": {}}
    for name, noise in DEVICES.items():
        rows: dict[str, Any] = {"model": vars(noise)}
        for title, lengths, calibrated in (
            ("one length", (128,), False),
            ("three lengths", simulation.LENGTHS, False),
            ("one length, after a calibration of 15 pairs", (128,), True),
        ):
            rows[title] = {
                f"{slower:.0%} slower" if slower else "equal": ours(noise, slower, lengths, calibrated)
                for slower in (0.0, 0.05, 0.10)
            }
        equal, slower = others(noise, 0.0), others(noise, 0.05)
        rows["other rules"] = {rule: {"false alarms": equal[rule], "finds 5 %": slower[rule]} for rule in equal}
        noises = [simulation.noise_of(noise, seed) for seed in range(GATES)]
        rows["noise that a calibration finds"] = dict(
            zip(("10 %", "median", "90 %"), np.quantile(noises, [0.1, 0.5, 0.9]).tolist(), strict=True)
        )
        found["devices"][name] = rows
    (HERE / "gate_simulation.json").write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
