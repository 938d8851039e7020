"""Fits the least certain constants of rnn_triton/plan/latency.py to records: one least-squares of log(measured / model).

What is fitted is the practical time of one layer in one direction in the plan that ran (observations.py), over the logarithms of
the constants, each within a factor of FACTOR of its old value, by Levenberg's and Marquardt's steps with Huber's weights, so that
an outlier does not pull.  The model is made of maxima: its slopes are taken over wide differences first, which see a limit that
hides behind another, and over narrow ones last.

A constant stays as it is where fewer than PER_CONSTANT records depend on it, or where the records do not tell it apart from the
others: its 95 % interval would be wider than a factor of UNCERTAIN each way.  One that hides at the fitted value, but whose old
value the records speak against, moves and has no interval.  All stay where there are fewer than FEWEST records, and where the
fitted model describes them no better.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np

from rnn_triton.plan import latency
from rnn_triton.plan.latency import CONSTANTS, Constants

from ..cases.case import nearest
from ..records.statistics import student
from .observations import Observation, observations

FEWEST = 12  # records for any fit
PER_CONSTANT = 5
EXERCISED = 0.01  # of a record's time, for a fifth of the constant to either side
UNCERTAIN = 1.5
HUBER = 1.345  # standard deviations: 95 % efficient for normal errors
LEAST_NOISE = 0.01  # of a measurement and of the model's form, however well it happens to fit
FACTOR = 10.0
WIDTHS = (0.4, 0.1, 0.01)  # of the differences that slopes are made of, as logarithms
STEPS = 12  # at most for each width
LEAST_GAIN = 1e-2  # of a step, else it is the last: a loss of half a standard deviation squared is 0.5
SPEAKS = 2.0  # a loss that is larger by this speaks against a value (95 %)

# What may be fitted: (unit, where the present value is from).  Of a (floor, practical) pair the second.
FITTED: dict[str, tuple[str, str]] = {
    "local_us": ("us", "estimate"),
    "warp_cycles": ("cycles", "estimate"),
    "efficiency": ("", "estimate"),
    "sentinel_us": ("us", "estimate"),
    "sentinel_busy_us": ("us", "L2 hit of 260 cycles, arXiv 2501.12084 table IV"),
    "counter_us": ("us", "RRZE-HPC/gpu-benches, gpu-small-kernels/h200_pt.txt"),
    "counter_busy_us": ("us", "estimate"),
    "node_us": ("us", "RRZE-HPC/gpu-benches, h200_graph.txt"),
    "host_us": ("us", "estimate"),
    "k_loop_cycles": ("cycles", "estimate"),
    "l2_read": ("bytes/cycle", "5.5 TB/s of an H100 PCIe at 1.755 GHz (Chips and Cheese)"),
}


@dataclass(frozen=True)
class Goodness:
    """How well a model meets measurements."""

    records: int
    median: float  # of |model / measured - 1|
    p90: float
    r2: float | None  # of logarithms; None where all measurements are equal


@dataclass(frozen=True)
class Value:
    """One constant of FITTED, before and after."""

    name: str
    old: float
    new: float
    low: float | None  # 95 % interval of the new value; None: not fitted
    high: float | None
    records: int  # that depend on it
    why: str  # it was not fitted; empty where it was


@dataclass(frozen=True)
class Fit:
    """`constants` are CONSTANTS themselves where nothing was changed; then `refused` says why."""

    device: str
    constants: Constants
    refused: str
    values: tuple[Value, ...]
    before: dict[str, Goodness]  # by regime, and "all"
    after: dict[str, Goodness]  # of what was fitted, used or not; empty where nothing was
    condition: float | None  # of the fit, its columns scaled: above about 100 constants can hardly be told apart
    skipped: dict[str, int]  # records left out, by reason


def fit(records: Iterable[dict[str, Any]], device: str | None = None) -> Fit:
    """Constants fitted to the records of one device: `device`, where there are several.

    ValueError: there are several and none is named, or none of that name. Too few records are no error: `refused`."""
    known, skipped = observations(records)
    devices = sorted({o.device.name for o in known})
    if device is None and len(devices) > 1:
        raise ValueError(f"constants are fitted to one device, got records of {', '.join(devices)}")
    if device is not None and devices and device not in devices:
        raise ValueError(f"no records of {device!r} to fit constants to; {nearest(device, devices)}")
    device = device or (devices[0] if devices else "no device")
    seen = _Seen([o for o in known if o.device.name == device])
    before = seen.goodness(CONSTANTS)
    count = {name: len(seen.readers[name]) for name in FITTED}
    reasons: dict[str, str] = {}
    refused, names, found, condition = "", list(FITTED), CONSTANTS, None
    half: dict[str, float] = {}
    if len(seen) < FEWEST:
        refused = f"{len(seen)} records of single recurrences, at least {FEWEST} are needed: nothing was fitted"
        names = []
    while names:
        found = seen.solve(names, found)
        count |= {name: seen.exercised(name, found) for name in names}
        half, condition = seen.intervals(names, found)
        few = len(seen) < PER_CONSTANT * len(names)
        least, worst = min(names, key=lambda name: count[name]), max(names, key=lambda name: half[name])
        if count[least] < PER_CONSTANT:
            names.remove(least)
            back = replace(found, **{least: getattr(CONSTANTS, least)})
            if seen.loss(back) < seen.loss(found) + SPEAKS:
                found, reasons[least] = back, f"{count[least]} records depend on it, {PER_CONSTANT} are needed"
            else:
                reasons[least] = "moved to where it no longer shows"
        elif few or half[worst] > math.log(UNCERTAIN):
            names.remove(worst)
            found = replace(found, **{worst: getattr(CONSTANTS, worst)})
            why = f"{len(seen)} records are too few for {len(names) + 1} constants" if few else "not told apart from the others"
            reasons[worst] = f"{why}: within a factor of {math.exp(min(half[worst], 9.0)):.1f}"
        else:
            break
    after = seen.goodness(found) if names else {}
    if not refused and not names:
        refused = "no constant is determined by these records: nothing was fitted"
    elif not refused and after["all"].median >= before["all"].median:
        refused = "describes the records no better than before: nothing was changed"
    if refused:
        names, found = [], CONSTANTS
        reasons = {name: why for name, why in reasons.items() if not why.startswith("moved")}
    values = []
    for name in FITTED:
        old, new = _get(CONSTANTS, name), _get(found, name)
        factor = math.exp(half[name]) if name in names else None
        low, high = (new / factor, new * factor) if factor else (None, None)
        values.append(Value(name, old, new, low, high, count[name], "" if factor else reasons.get(name, refused)))
    return Fit(device, found, refused, tuple(values), before, after, condition, skipped)


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


class _Reads:
    """CONSTANTS that note which of them were asked for"""

    def __init__(self) -> None:
        self.names: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        self.names.add(name)
        return getattr(CONSTANTS, name)


class _Seen:
    """Observations, and for each constant those whose plan the model reads it for: evaluating the model is what a fit costs."""

    def __init__(self, chosen: Sequence[Observation]):
        self.observations = chosen
        self.truth = np.log([o.us for o in chosen])
        asked = [_Reads() for _ in chosen]
        for observation, reads in zip(chosen, asked):
            observation.model_us(cast(Constants, reads))
        self.readers = {name: np.array([i for i, r in enumerate(asked) if name in r.names], int) for name in FITTED}

    def __len__(self) -> int:
        return len(self.observations)

    def predicted(self, constants: Constants, chosen: Iterable[int] | None = None) -> np.ndarray:
        """Logarithms of the model's times, of the observations chosen"""
        return np.log([self.observations[i].model_us(constants) for i in (range(len(self)) if chosen is None else chosen)])

    def around(self, name: str, constants: Constants, step: float) -> list[np.ndarray]:
        """`predicted` of the readers of a constant where it is less, and where it is more, by `step`"""
        middle = math.log(_get(constants, name))
        return [self.predicted(_with(constants, {name: middle + s}), self.readers[name]) for s in (-step, step)]

    def slopes(self, names: Sequence[str], constants: Constants, step: float) -> np.ndarray:
        """[observations, names]: of the logarithms of the model's times over those of constants"""
        out = np.zeros((len(self), len(names)))
        for i, name in enumerate(names):
            low, high = self.around(name, constants, step)
            out[self.readers[name], i] = (high - low) / (2 * step)
        return out

    def exercised(self, name: str, constants: Constants) -> int:
        """How many records change with a constant: to less and to more, the fewer of both"""
        middle = self.predicted(constants, self.readers[name])
        return min(int(np.sum(np.abs(side - middle) > EXERCISED)) for side in self.around(name, constants, 0.2))

    def loss(self, constants: Constants) -> float:
        residuals = self.truth - self.predicted(constants)
        return _loss(residuals, _scale(residuals))

    def solve(self, names: Sequence[str], start: Constants) -> Constants:
        """The constants of least loss, those not named as they are in `start`"""
        x = np.array([math.log(_get(start, name)) for name in names])
        residuals, damping = self.truth - self.predicted(start), 1e-2
        for width in WIDTHS:
            for _ in range(STEPS):
                scale = _scale(residuals)  # stands still within a step
                slopes, weights = self.slopes(names, start, width), _weights(residuals, scale)
                normal, downhill = slopes.T @ (slopes * weights[:, None]), slopes.T @ (weights * residuals)
                while (damping := max(damping, 1e-6)) < 1e6:
                    step = np.linalg.solve(normal + damping * np.diag(np.diag(normal) + 1e-6), downhill)
                    tried = _with(start, dict(zip(names, x + np.clip(step, -0.5, 0.5))))
                    left = self.truth - self.predicted(tried)
                    if (gain := _loss(residuals, scale) - _loss(left, scale)) > 0:
                        break
                    damping *= 8
                else:
                    damping = 1e-2
                    break
                start, residuals, damping = tried, left, damping / 4
                x = np.array([math.log(_get(start, name)) for name in names])
                if gain < LEAST_GAIN:
                    break
        return start

    def intervals(self, names: Sequence[str], found: Constants) -> tuple[dict[str, float], float]:
        """(half the width of each logarithm's 95 % interval, infinite where it is not determined; condition number)"""
        residuals = self.truth - self.predicted(found)
        scale, slopes = _scale(residuals), self.slopes(names, found, 1e-2)
        normal = slopes.T @ (slopes * _weights(residuals, scale)[:, None])
        length = np.sqrt(np.diag(normal))
        length = np.where(length > 1e-9, length, math.nan)
        values, vectors = np.linalg.eigh(np.nan_to_num(normal / np.outer(length, length)))
        values = np.maximum(values, 1e-12)
        variance = (vectors**2 / values).sum(axis=1) / length**2
        width = student(1.959964, max(1, len(self) - len(names))) * scale * np.sqrt(variance)
        return dict(zip(names, np.nan_to_num(width, nan=math.inf).tolist())), float(np.sqrt(values[-1] / values[0]))

    def goodness(self, constants: Constants) -> dict[str, Goodness]:
        predicted, found = self.predicted(constants), {}
        for regime in (*latency.REGIMES, "all"):
            chosen = [i for i, o in enumerate(self.observations) if regime in (o.plan.regime, "all")]
            if chosen:
                truth = self.truth[chosen]
                off = predicted[chosen] - truth
                error, total = np.abs(np.expm1(off)), float(np.sum((truth - truth.mean()) ** 2))
                r2 = 1 - float(off @ off) / total if total > 1e-12 else None
                found[regime] = Goodness(len(chosen), float(np.median(error)), float(np.quantile(error, 0.9)), r2)
        return found


def _scale(residuals: np.ndarray) -> float:
    """A standard deviation that outliers do not move: 1.4826 times the median magnitude"""
    return max(LEAST_NOISE, 1.4826 * float(np.median(np.abs(residuals))))


def _loss(residuals: np.ndarray, scale: float) -> float:
    r = np.abs(residuals) / scale
    return float(np.sum(np.where(r <= HUBER, 0.5 * r * r, HUBER * (r - 0.5 * HUBER))))


def _weights(residuals: np.ndarray, scale: float) -> np.ndarray:
    return np.minimum(1.0, HUBER * scale / np.maximum(np.abs(residuals), 1e-12))


# ---- as text --------------------------------------------------------------------------------------------------------

HEADINGS = ("constant", "old", "new", "95 % interval", "records", "source of the old, or why it stays")
ERROR_HEADINGS = ("regime", "records", "error before", "after", "90 % before", "after", "R2 before", "after")


def constants_body(found: Fit) -> list[tuple[str, ...]]:
    """A line per constant of FITTED under HEADINGS."""
    out: list[tuple[str, ...]] = []
    for value in found.values:
        unit, source = FITTED[value.name]
        out.append(
            (
                f"{value.name} ({unit})" if unit else value.name, f"{value.old:.4g}",
                "-" if value.new == value.old else f"{value.new:.4g}",
                "-" if value.low is None else f"{value.low:.4g} to {value.high:.4g}", str(value.records),
                f"{source}; {value.why}" if value.why else source,
            )
        )  # fmt: skip
    return out


def errors_body(found: Fit) -> list[tuple[str, ...]]:
    """A line per regime under ERROR_HEADINGS: median and 90 % of |model / measured - 1|, and R2 of logarithms."""
    out: list[tuple[str, ...]] = []
    for regime, before in found.before.items():
        both = [before, found.after.get(regime)]
        medians = ["-" if g is None else f"{g.median:.1%}" for g in both]
        tails = ["-" if g is None else f"{g.p90:.1%}" for g in both]
        shares = ["-" if g is None or g.r2 is None else f"{g.r2:.3f}" for g in both]
        out.append((regime, str(before.records), *medians, *tails, *shares))
    return out


def summary(found: Fit) -> list[str]:
    """Lines to show with the tables."""
    lines = [f"latency model fitted to {found.device}: " + (found.refused or "the constants below")]
    if found.condition is not None:
        lines.append(f"condition number of the fit: {found.condition:.0f}")
    return lines + [f"left out: {n} records, {why}" for why, n in found.skipped.items()]
