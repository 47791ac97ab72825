"""Gates on devices that do not exist: what the verdict makes of noise whose truth is known.

The noise of a block's median, in shares of it, is the sum of

    process    each fresh process lands differently in memory and on cores: independent, normal
    drift      clocks and other work wander from block to block: a first-order autoregression
    ramp       some gates begin on a cool device, which slows down exponentially towards a limit
    outliers   some blocks are disturbed, and only ever made slower: exponential
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from edgekit import paired
from edgekit.errors import InputError
from edgekit.gate import verdict
from edgekit.records import Gate
from edgekit.results import Answer, Block

LENGTHS = (32, 64, 128)
MEMORY = 0.002


@dataclass(frozen=True)
class Noise:
    """Shares of a block's median. A block keeps `stay` of the drift of the one before; `ramps` and `outliers` are how
    many gates and blocks have one."""

    process: float
    drift: float
    stay: float
    ramp: float
    ramps: float
    outlier: float
    outliers: float


TYPICAL = Noise(process=0.012, drift=0.03, stay=0.9, ramp=0.06, ramps=0.4, outlier=0.25, outliers=0.05)
HARSH = Noise(process=0.03, drift=0.06, stay=0.8, ramp=0.15, ramps=0.7, outlier=0.4, outliers=0.12)


def wander(noise: Noise, rng: np.random.Generator) -> Iterator[float]:
    """The factor of one block's median after the other's."""
    drift = rng.normal(0, noise.drift)
    ramp = rng.uniform(0, noise.ramp) if rng.random() < noise.ramps else 0.0
    blocks = rng.uniform(3, 30)
    number = 0
    while True:
        outlier = rng.exponential(noise.outlier) if rng.random() < noise.outliers else 0.0
        ramped = ramp * (1 - math.exp(-number / blocks))
        yield math.exp(drift + ramped + outlier + rng.normal(0, noise.process))
        drift = noise.stay * drift + rng.normal(0, noise.drift * math.sqrt(1 - noise.stay**2))
        number += 1


def gate(
    noise: Noise, slower: float, seed: int, lengths: tuple[int, ...] = LENGTHS, calibrated: bool = False
) -> tuple[Answer, int]:
    """One gate of a candidate that is truly `slower` at every length, as `edgekit.bench.sidebyside` would measure it:
    its answer, and the pairs that it took. A device that was `calibrated` may be refused: INFRA_ERROR after none."""
    rng = np.random.default_rng(seed)
    factors = wander(noise, rng)
    tolerances, count = Gate(), verdict.comparisons(len(lengths), energy=False, score=True)
    spread = noise_of(noise, seed) if calibrated else None
    if spread is not None:
        try:
            verdict.resolvable(tolerances.latency_s, spread, count, "simulated")
        except InputError:
            return "INFRA_ERROR", 0
    blocks: list[Block] = []
    turns = ["baseline", "candidate"]
    while not verdict.settled(blocks, tolerances, spread, count):
        for length in lengths:
            for side in turns:
                factor = next(factors) * (1 + slower * (side == "candidate"))
                peak = round(28e6 * math.exp(rng.normal(0, MEMORY)))
                blocks.append(Block(side=side, length=length, p50_s=1e-3 * factor, peak_rss_bytes=peak, runs=100))
        turns.reverse()
    checks = tuple(verdict.in_pairs("simulated", blocks, tolerances, spread, count))
    return verdict.overall(checks, ()), len(blocks) // (2 * len(lengths))


def noise_of(noise: Noise, seed: int, pairs: int = 15) -> float:
    """What `edgekit devices calibrate` would find."""
    factors = wander(noise, np.random.default_rng([seed, 1]))
    blocks = [
        Block(side=side, length=None, p50_s=next(factors), peak_rss_bytes=1, runs=1)
        for pair in range(pairs)
        for side in (("baseline", "candidate"), ("candidate", "baseline"))[pair % 2]
    ]
    return paired.deviation(paired.log_ratios(blocks))
