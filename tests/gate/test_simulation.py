"""The gate on simulated devices, in short; `benchmarks/gate_simulation.py` is the long version, with its figures."""

from collections import Counter

import pytest
import simulation
from scipy.stats import binom

GATES = 120


@pytest.mark.parametrize("lengths", [(128,), simulation.LENGTHS], ids=["one length", "three lengths"])
@pytest.mark.parametrize("noise", [simulation.TYPICAL, simulation.HARSH], ids=["typical", "harsh"])
def test_equal_bundles_are_not_called_slower(noise: simulation.Noise, lengths: tuple[int, ...]) -> None:
    """No more often than a gate with 1 % of false alarms would in 999 of 1000 such tests."""
    answers = Counter(simulation.gate(noise, 0.0, seed, lengths)[0] for seed in range(GATES))
    assert answers["REGRESSION"] <= binom.ppf(0.999, GATES, 0.01)
    assert answers.total() == GATES
    if noise is simulation.TYPICAL:
        assert answers["PASS"] >= 0.95 * GATES


@pytest.mark.parametrize("lengths", [(128,), simulation.LENGTHS], ids=["one length", "three lengths"])
def test_five_percent_is_found_on_a_typical_device(lengths: tuple[int, ...]) -> None:
    found = [simulation.gate(simulation.TYPICAL, 0.05, seed, lengths) for seed in range(GATES)]
    assert sum(answer == "REGRESSION" for answer, _ in found) >= 0.95 * GATES
    assert max(pairs for _, pairs in found) <= 15


def test_on_a_harsh_device_a_slower_bundle_hardly_passes() -> None:
    answers = Counter(simulation.gate(simulation.HARSH, 0.05, seed, (128,))[0] for seed in range(GATES))
    assert answers["PASS"] <= 0.05 * GATES
