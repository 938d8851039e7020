"""Fits the least certain constants of rnn_triton/plan/latency.py to records: one least-squares of log(measured / model).

An observation is a recurrence in the plan that ran (observations.py); unknown are the logarithms of constants, within FACTOR of the old
ones.  Steps are damped Gauss-Newton's with Huber's weights, so that an outlier does not pull, and slopes are taken over wide differences
first, which see a limit of the model that hides behind another.  A constant stays where fewer than PER_CONSTANT records depend on it, or
where its 95 % interval is wider than a factor of UNCERTAIN each way; one that hides at the fitted value, but whose old value the records
speak against, moves and has no interval.  All stay where the fitted model describes the records no better. """

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from rnn_triton.plan import latency
from rnn_triton.plan.latency import CONSTANTS, Constants

from ..records.statistics import student
from .observations import Observation, observations

FEWEST, PER_CONSTANT = 12, 5  # records for any fit, and for a constant
EXERCISED = 0.01  # of a record's time, for a fifth of the constant to either side
UNCERTAIN, FACTOR = 1.5, 10.0
HUBER = 1.345  # standard deviations: 95 % efficient for normal errors
LEAST_NOISE = 0.01  # of a measurement and of the model's form, however well it happens to fit
WIDTHS, STEPS = (0.4, 0.1, 0.01), 12  # of the differences that slopes are made of, as logarithms; steps at most for each
SPEAKS, LEAST_GAIN = 2.0, 1e-2  # of a loss: this much speaks against a value (95 %); a step that gains less is the last
MOVED = "moved to where it no longer shows"

# What may be fitted; of a (floor, practical) pair the second.  latency.py says where the present values are from.
FITTED = (
    "local_us", "warp_cycles", "efficiency", "sentinel_us", "sentinel_busy_us", "counter_us", "counter_busy_us", "node_us",
    "host_us", "k_loop_cycles", "l2_read",
)  # fmt: skip


class Goodness(NamedTuple):
    records: int
    median: float  # of |model / measured - 1|
    p90: float


class Value(NamedTuple):
    name: str
    old: float
    new: float
    factor: float | None  # to either end of the 95 % interval of the new value
    records: int  # that depend on it
    why: str  # it has no interval


class Fit(NamedTuple):
    """`constants` are CONSTANTS themselves where nothing was changed; then `refused` says why."""

    device: str
    constants: Constants
    refused: str
    values: list[Value]
    before: dict[str, Goodness]  # by regime, and "all"
    after: dict[str, Goodness]  # of what was fitted, used or not; empty where nothing was
    skipped: dict[str, int]  # records left out, by reason


def fit(records: Iterable[dict[str, Any]]) -> Fit:
    """Constants fitted to the records of one device. ValueError for several; too few records are no error: `refused`."""
    known, skipped = observations(records)
    devices = sorted({o.device.name for o in known})
    if len(devices) > 1:
        raise ValueError(f"constants are fitted to one device, got records of {', '.join(devices)}")
    seen = _Seen(known)
    before, found, after = seen.goodness(CONSTANTS), CONSTANTS, {}
    count = {name: len(seen.readers[name]) for name in FITTED}
    names = list(FITTED) if len(known) >= FEWEST else []
    refused = "" if names else f"{len(known)} records of single recurrences, at least {FEWEST} are needed: nothing was fitted"
    reasons, half = dict[str, str](), dict[str, float]()
    while names:  # all at once, then without the constant that is known least
        found = seen.solve(names, found)
        count |= {name: seen.exercised(name, found) for name in names}
        half = seen.intervals(names, found)
        out = min(names, key=lambda name: (min(count[name], PER_CONSTANT), -half[name]))
        hidden = count[out] < PER_CONSTANT
        if not hidden and len(known) >= PER_CONSTANT * len(names) and half[out] <= math.log(UNCERTAIN):
            break
        names.remove(out)
        back = replace(found, **{out: getattr(CONSTANTS, out)})
        if hidden and seen.loss(back) >= seen.loss(found) + SPEAKS:
            reasons[out] = MOVED
            continue
        found, reasons[out] = back, f"not told apart from the others: within a factor of {math.exp(min(half[out], 9.0)):.1f}"
        if hidden:
            reasons[out] = f"{count[out]} records depend on it, {PER_CONSTANT} are needed"
    if names:
        after = seen.goodness(found)
        refused = "" if after["all"].median < before["all"].median else "describes the records no better than before: nothing was changed"
    elif not refused:
        refused = "no constant is determined by these records: nothing was fitted"
    if refused:
        names, found = [], CONSTANTS
        reasons = {name: why for name, why in reasons.items() if why != MOVED}
    values = []
    for name in FITTED:
        factor, why = (math.exp(half[name]), "") if name in names else (None, reasons.get(name, refused))
        values.append(Value(name, _get(CONSTANTS, name), _get(found, name), factor, count[name], why))
    return Fit(devices[0] if devices else "no device", found, refused, values, before, after, skipped)


def _get(constants: Constants, name: str) -> float:
    value = getattr(constants, name)
    return value[1] if isinstance(value, tuple) else value


def _with(constants: Constants, logs: Mapping[str, float]) -> Constants:
    """The constants with these logarithms of some, each within its bounds: nothing practical is faster than its floor."""
    changed: dict[str, Any] = {}
    for name, log in logs.items():
        old, value = getattr(CONSTANTS, name), _get(CONSTANTS, name)
        value = min(max(math.exp(log), value / FACTOR), 1.0 if name == "efficiency" else value * FACTOR)
        changed[name] = (old[0], max(old[0], value)) if isinstance(old, tuple) else value
    return replace(constants, **changed)


class _Seen:
    """Observations, and for each constant those whose plan the model reads it for: evaluating the model is what a fit costs."""

    def __init__(self, chosen: Sequence[Observation]):
        self.observations = chosen
        self.truth = np.log([o.us for o in chosen])
        reads = [o.reads() for o in chosen]
        self.readers = {name: np.array([i for i, names in enumerate(reads) if name in names], int) for name in FITTED}

    def predicted(self, constants: Constants, chosen: Iterable[int] | None = None) -> np.ndarray:
        """Logarithms of the model's times, of the observations chosen"""
        return np.log([self.observations[i].model_us(constants) for i in (range(len(self.truth)) if chosen is None else chosen)])

    def around(self, name: str, constants: Constants, step: float) -> list[np.ndarray]:
        """`predicted` of the readers of a constant where it is less, and where it is more, by `step`"""
        middle = math.log(_get(constants, name))
        return [self.predicted(_with(constants, {name: middle + s}), self.readers[name]) for s in (-step, step)]

    def exercised(self, name: str, constants: Constants) -> int:
        """How many records change with a constant: to less and to more, the fewer of both"""
        middle = self.predicted(constants, self.readers[name])
        return min(int(np.sum(np.abs(side - middle) > EXERCISED)) for side in self.around(name, constants, 0.2))

    def loss(self, constants: Constants, scale: float | None = None) -> float:
        """Huber's, of residuals over `scale`, their own where there is none"""
        residuals = self.truth - self.predicted(constants)
        r = np.abs(residuals) / (scale or _scale(residuals))
        return float(np.sum(np.where(r <= HUBER, 0.5 * r * r, HUBER * (r - 0.5 * HUBER))))

    def normal(self, names: Sequence[str], constants: Constants, width: float) -> tuple[np.ndarray, np.ndarray, float]:
        """(the normal matrix and its right side, with Huber's weights, the residuals' scale)"""
        residuals, slopes = self.truth - self.predicted(constants), np.zeros((len(self.truth), len(names)))
        scale = _scale(residuals)
        for i, name in enumerate(names):
            low, high = self.around(name, constants, width)
            slopes[self.readers[name], i] = (high - low) / (2 * width)
        weighted = slopes * np.minimum(1.0, HUBER * scale / np.maximum(np.abs(residuals), 1e-12))[:, None]
        return slopes.T @ weighted, weighted.T @ residuals, scale

    def solve(self, names: Sequence[str], start: Constants) -> Constants:
        """The constants of least loss, those not named as they are in `start`"""
        for width in WIDTHS:
            damping = 1e-2
            for _ in range(STEPS):
                matrix, downhill, scale = self.normal(names, start, width)
                gain, loss = 0.0, self.loss(start, scale)
                while gain <= 0 and damping < 1e6:
                    step = np.linalg.solve(matrix + damping * np.diag(np.diag(matrix) + 1e-6), downhill).clip(-0.5, 0.5)
                    tried = _with(start, {name: math.log(_get(start, name)) + s for name, s in zip(names, step)})
                    gain, damping = loss - self.loss(tried, scale), 8 * damping
                start, damping = (tried, max(damping / 32, 1e-6)) if gain > 0 else (start, damping)
                if gain < LEAST_GAIN:
                    break
        return start

    def intervals(self, names: Sequence[str], found: Constants) -> dict[str, float]:
        """Half the width of each logarithm's 95 % interval, huge where it is not determined"""
        matrix, _, scale = self.normal(names, found, 1e-2)
        length = np.sqrt(np.diag(matrix)) + 1e-9
        variance = np.diag(np.linalg.inv(matrix / np.outer(length, length) + 1e-12 * np.eye(len(names)))) / length**2
        width = student(1.959964, max(1, len(self.truth) - len(names))) * scale * np.sqrt(np.maximum(variance, 0))
        return dict(zip(names, width.tolist()))

    def goodness(self, constants: Constants) -> dict[str, Goodness]:
        error = np.abs(np.expm1(self.predicted(constants) - self.truth))
        found = {}
        for regime in (*latency.REGIMES, "all"):
            if chosen := [i for i, o in enumerate(self.observations) if regime in (o.plan.regime, "all")]:
                found[regime] = Goodness(len(chosen), float(np.median(error[chosen])), float(np.quantile(error[chosen], 0.9)))
        return found


def _scale(residuals: np.ndarray) -> float:
    """A standard deviation that outliers do not move: 1.4826 times the median magnitude"""
    return max(LEAST_NOISE, 1.4826 * float(np.median(np.abs(residuals))))
