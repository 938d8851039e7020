"""Intervals of ratios of medians by a bootstrap of blocks, and which of many ratios are beyond a band."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np

LEVEL, BAND, RATE = 0.95, 0.02, 0.05
DRAWS, SEED = 2000, 20240229
FEWEST = 5  # samples: the interval of a median of fewer does not cover it at LEVEL, however it is made


def interval(
    a: Sequence[np.ndarray], b: Sequence[np.ndarray], band: float = BAND, seed: int = SEED, clocks: tuple[float, float] = (1.0, 1.0),
) -> tuple[float, float, float]:  # fmt: skip
    """(low, high, p) of median(b) / median(a); each side is the samples of its runs.

    p: how likely a ratio as far from the band, to either side, is where the true one lies at its end; 1 within the band, which
    reaches from clocks[0] times its lower end to clocks[1] times its upper one."""
    drawn, deviation, freedom = drawn_ratios(a, b, seed)
    medians = [float(np.median(np.log(np.concatenate(list(side))))) for side in (a, b)]
    ratio = medians[1] - medians[0]
    beyond = max(ratio - math.log1p(band) - math.log(clocks[1]), math.log1p(-band) + math.log(clocks[0]) - ratio, 0.0)
    t = beyond / max(deviation, 1e-12)
    return *ends(drawn), math.erfc(_normal(t, freedom) / math.sqrt(2))


def drawn_ratios(a: Sequence[np.ndarray], b: Sequence[np.ndarray], seed: int = SEED) -> tuple[np.ndarray, float, float]:
    """(DRAWS logarithms of median(b) / median(a), spread as far as an interval of so few blocks or runs asks for, the standard
    deviation before they were, the degrees of freedom)."""
    generator = np.random.default_rng(seed)
    # medians of positive numbers: their logarithm is the median of the logarithms, and ratios become differences
    (of_a, units_a), (of_b, units_b) = (_medians([np.log(run) for run in side], generator) for side in (a, b))
    variances = [float(np.var(of_a)), float(np.var(of_b))]
    spread = sum(v**2 / (units - 1) for v, units in zip(variances, (units_a, units_b)))  # 0 for infinitely many units
    freedom = sum(variances) ** 2 / spread if spread > 0 else math.inf
    drawn, z = of_b - of_a, NormalDist().inv_cdf((1 + LEVEL) / 2)
    middle = float(np.median(drawn))
    return middle + (drawn - middle) * student(z, freedom) / z, math.sqrt(sum(variances)), freedom


def ends(drawn: np.ndarray) -> tuple[float, float]:
    """The interval that LEVEL of drawn ratios, given as logarithms, lie in"""
    low, high = np.exp(np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]))
    return float(low), float(high)


def student(z: float, freedom: float) -> float:
    """Student's t that is as likely as a normal z: the inverse of Wallace's approximation (1959), within 5 % from 2 degrees of freedom on."""
    if math.isinf(freedom):
        return z
    return math.sqrt(freedom * math.expm1((z * (8 * freedom + 3) / (8 * freedom + 1)) ** 2 / freedom))


def _normal(t: float, freedom: float) -> float:
    """The normal z that is as likely as Student's t: Wallace (1959)"""
    if math.isinf(freedom):
        return t
    return (8 * freedom + 1) / (8 * freedom + 3) * math.sqrt(freedom * math.log1p(t * t / freedom))


def _medians(runs: Sequence[np.ndarray], generator: np.random.Generator) -> tuple[np.ndarray, float]:
    """(DRAWS medians of what the bootstrap draws from the logarithms of one side's samples, how many units it had to draw):
    runs, or blocks of one run; samples that are independent count as infinitely many, their percentiles need no help."""
    if len(runs) == 1:
        block = block_length(runs[0])
        medians = np.median(_blocks(runs[0], generator, len(runs[0]), block), axis=1)
        units = math.inf if block == 1 else len(runs[0]) / block
    else:
        # in each draw every run is replaced by a draw from one of the runs, and the median is over all of them
        length = max(map(len, runs))
        each = np.stack([_blocks(run, generator, length, block_length(run)) for run in runs])  # [runs, DRAWS, length]
        chosen = generator.integers(len(runs), size=(DRAWS, len(runs)))
        medians = np.median(each[chosen, np.arange(DRAWS)[:, None]].reshape(DRAWS, -1), axis=1)
        units = float(len(runs))
    if math.isinf(units):
        return medians, units
    middle = np.median(medians)
    return middle + (medians - middle) * math.sqrt(units / (units - 1)), units


def _blocks(samples: np.ndarray, generator: np.random.Generator, length: int, block: int) -> np.ndarray:
    """[DRAWS, length]: blocks of `block` neighbours on the circle of `samples`"""
    n = len(samples)
    starts = generator.integers(n, size=(DRAWS, math.ceil(length / block)))
    index = (starts[:, :, None] + np.arange(block)).reshape(DRAWS, -1)[:, :length] % n
    return samples[index]


def block_length(samples: np.ndarray) -> int:
    """Samples in a block, from 1 to a quarter of them: the rule of Carlstein (1986) for a first-order autoregression.

    The autocorrelation at lag 1 is that of ranks, which an outlier does not move; within chance (1.64 / sqrt(n), one-sided 5 %) it counts as none."""
    n = len(samples)
    ranks = np.argsort(np.argsort(samples)).astype(float)
    ranks -= ranks.mean()
    power = float(ranks @ ranks)
    rho = float(ranks[1:] @ ranks[:-1]) / power if power else 0.0
    if rho <= 1.64 / math.sqrt(n):
        return 1
    rho = min(rho, 0.95)
    return max(1, min(n // 4, math.ceil((2 * rho / (1 - rho**2)) ** (2 / 3) * n ** (1 / 3))))


def discoveries(p: Sequence[float], rate: float = RATE) -> list[bool]:
    """Which hypotheses Benjamini and Hochberg's procedure (1995) rejects at this false discovery rate"""
    order = sorted(range(len(p)), key=lambda i: p[i])
    last = max((rank for rank, i in enumerate(order, 1) if p[i] <= rate * rank / len(p)), default=0)
    rejected = set(order[:last])
    return [i in rejected for i in range(len(p))]
