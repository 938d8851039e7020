"""Fits the least certain constants of rnn_triton/plan/latency.py to records, and shows what bounds each measured case.

What is fitted is the practical time of one layer in one direction, forward or backward, in the plan that ran: timing records
of ours (forward) and exchange records, per step by the slope over T where there is one. The others of the model's constants
are properties of the chip and stay.

Method: the squares of log(measured / model), Huber's beyond 1.345 robust standard deviations so that an outlier does not
pull, are minimized over the logarithms of the constants, each within a factor of 10 of its old value (a fraction within 1):
a coarse search one constant at a time, since the model is made of maxima, then Levenberg and Marquardt's steps.

A constant is left as it is where
    fewer than PER_CONSTANT records depend on it (by more than EXERCISED for 20 % of it, less as well as more: at the edge of
    what hides it a limit shows to one side alone, and an interval would be a false one), or, where its old value would make
    them, one limit hidden behind another, it moves to the nearest value that does not show: its interval is open to one side, or
    the records do not tell it apart from the others: its interval would be wider than a factor of UNCERTAIN each way.
All stay where there are fewer than FEWEST records, or fewer than PER_CONSTANT for each constant that is fitted, or where
cross-validation (the cases in FOLDS parts, each predicted from the others) finds the model no better than before.

What it costs is evaluations of the model, in proportion to the records: a few hundred for each, 5 to 10 seconds for 1000.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np

from rnn_triton.plan import latency
from rnn_triton.plan.latency import CONSTANTS, Constants

from ..cases import case as cases
from ..records.statistics import student
from .observations import Observation, observations

FEWEST = 12  # records for any fit
PER_CONSTANT = 5
EXERCISED = 0.01
UNCERTAIN = 1.5
FOLDS = 10
HUBER = 1.345  # standard deviations: 95 % efficient for normal errors
LEAST_NOISE = 0.01  # of a measurement and of the model's form, however well it happens to fit
FACTOR = 10.0
STEPS = 30  # of Levenberg and Marquardt at most
LEAST_GAIN = 1e-3  # of a step, else it is the last: loss of half a standard deviation squared is 0.5, all that matters

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
    low: float | None  # 95 % interval of the new value, open (0 or inf) to one side where a limit is known; None: not fitted
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
    validated: dict[str, Goodness]  # each case predicted from the others
    condition: float | None  # of the fit, its columns scaled: above about 100 constants can hardly be told apart
    skipped: dict[str, int]  # records left out, by reason


# ---- the fit --------------------------------------------------------------------------------------------------------


def fit(records: Iterable[dict[str, Any]], device: str | None = None) -> Fit:
    """Constants fitted to the records of one device: `device`, where there are several.

    ValueError: there are several and none is named, or none of that name. Too few records are no error: `refused`."""
    found_in, skipped = observations(records)
    devices = sorted({o.device.name for o in found_in})
    if device is None and len(devices) > 1:
        raise ValueError(f"constants are fitted to one device, got records of {', '.join(devices)}")
    if device is not None and devices and device not in devices:
        raise ValueError(f"no records of {device!r} to fit constants to; {cases.nearest(device, devices)}")
    device = device or (devices[0] if devices else "no device")
    seen = _Seen([o for o in found_in if o.device.name == device])
    before = _goodness(seen, seen.predicted(CONSTANTS))
    depend = _ever_depending(seen)

    def refuse(why: str, reasons: Mapping[str, str], **more: Any) -> Fit:
        old = (Value(n, _get(CONSTANTS, n), _get(CONSTANTS, n), None, None, depend[n], reasons.get(n, why)) for n in FITTED)
        empty: dict[str, Any] = {"after": {}, "validated": {}, "condition": None}
        return Fit(device, CONSTANTS, why, tuple(old), before, skipped=skipped, **(empty | more))

    if len(seen) < FEWEST:
        return refuse(f"{len(seen)} records of single recurrences, at least {FEWEST} are needed: nothing was fitted", {})
    reasons = {n: f"{k} records depend on it, {PER_CONSTANT} are needed" for n, k in depend.items() if k < PER_CONSTANT}
    names = [name for name in FITTED if name not in reasons]
    held: dict[str, float] = {}  # logarithms of those that only a limit is known of
    while names:
        found = _solve(seen, names, held)
        # what is behind other limits before may bound a record now, and the other way round
        now = {name: seen.showing(name, found) for name in names}
        spread, condition = _covariance(seen, names, found)
        few = len(seen) < PER_CONSTANT * len(names)
        least = min(names, key=lambda name: now[name])
        worst = max(names, key=lambda name: spread[names.index(name)])
        if now[least] < PER_CONSTANT:
            names.remove(least)
            limit = _limit(seen, least, found)
            if limit == _get(CONSTANTS, least):
                depend[least] = now[least]
                reasons[least] = f"{now[least]} records depend on it, {PER_CONSTANT} are needed"
            else:
                held[least] = math.log(limit)
        elif few or spread[names.index(worst)] > math.log(UNCERTAIN):
            why = f"{len(seen)} records are too few for {len(names)} constants" if few else "not told apart from the others"
            reasons[worst] = f"{why}: within a factor of {math.exp(min(spread[names.index(worst)], 9.0)):.1f}"
            names.remove(worst)
        else:
            depend |= now
            break
    if not names:
        return refuse("no constant is determined by these records: nothing was fitted", reasons)

    after = _goodness(seen, seen.predicted(found))
    validated = _goodness(seen, _cross_validated(seen, names, found))
    if validated["all"].median >= before["all"].median:
        why = "predicts cases it was not fitted to no better than before: nothing was changed"
        return refuse(why, reasons, after=after, validated=validated, condition=condition)
    values = []
    for name in FITTED:
        old, new = _get(CONSTANTS, name), _get(found, name)
        low = high = None
        if name in names:
            factor = math.exp(spread[names.index(name)])
            low, high = new / factor, new * factor
        elif name in held:
            low, high = (0.0, new) if new < old else (new, math.inf)
        values.append(Value(name, old, new, low, high, depend[name], reasons.get(name, "")))
    return Fit(device, found, "", tuple(values), before, after, validated, condition, skipped)


def _get(constants: Constants, name: str) -> float:
    value = getattr(constants, name)
    return value[1] if isinstance(value, tuple) else value


def _with(constants: Constants, logs: Mapping[str, float]) -> Constants:
    """The constants with these logarithms of some; nothing practical is faster than its floor, no fraction above 1."""
    changed: dict[str, Any] = {}
    for name, log in logs.items():
        old = getattr(CONSTANTS, name)
        value = math.exp(log)
        changed[name] = (old[0], max(old[0], value)) if isinstance(old, tuple) else value
    return replace(constants, **changed)


def _bounds(name: str) -> tuple[float, float]:
    old = getattr(CONSTANTS, name)
    value = math.log(_get(CONSTANTS, name))
    low, high = value - math.log(FACTOR), value + math.log(FACTOR)
    if isinstance(old, tuple):
        low = max(low, math.log(old[0]))
    return low, min(high, 0.0) if name == "efficiency" else high


class _Reads:
    """CONSTANTS that note which of them were asked for"""

    def __init__(self) -> None:
        self.names: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        self.names.add(name)
        return getattr(CONSTANTS, name)


class _Seen:
    """Observations, and for each constant of FITTED those whose plan the model reads it for: no other changes with it, and
    no other is timed again to see how they change. Evaluating the model is what a fit costs."""

    def __init__(self, observations: Sequence[Observation]):
        self.observations = observations
        self.truth = np.log([o.us for o in observations])
        self.readers: dict[str, np.ndarray] = {}
        read = []
        for observation in observations:
            reads = _Reads()
            observation.model_us(cast(Constants, reads))
            read.append(reads.names)
        for name in FITTED:
            self.readers[name] = np.array([i for i, names in enumerate(read) if name in names], int)

    def __len__(self) -> int:
        return len(self.observations)

    def predicted(self, constants: Constants, chosen: Iterable[int] | None = None) -> np.ndarray:
        """Logarithms of the model's times, of the observations chosen"""
        of = self.observations if chosen is None else [self.observations[i] for i in chosen]
        return np.log([o.model_us(constants) for o in of])

    def residuals(self, constants: Constants) -> np.ndarray:
        return self.truth - self.predicted(constants)

    def moved(self, name: str, constants: Constants, residuals: np.ndarray) -> np.ndarray:
        """The residuals at `constants`, given those where `name` alone was another"""
        out, readers = residuals.copy(), self.readers[name]
        out[readers] = self.truth[readers] - self.predicted(constants, readers)
        return out

    def depending(self, name: str, at: Constants, chosen: np.ndarray, steps: tuple[float, float]) -> np.ndarray:
        """Those of the chosen that change with a constant between two steps from its value, others as they are"""
        middle = math.log(_get(at, name))
        low, high = (self.predicted(_with(at, {name: middle + step}), chosen) for step in steps)
        return chosen[np.abs(high - low) > EXERCISED]

    def showing(self, name: str, at: Constants) -> int:
        """How many change with a constant: to less and to more, the fewer of both. At the edge of what hides it a limit
        shows to one side alone."""
        return min(len(self.depending(name, at, self.readers[name], steps)) for steps in ((-0.2, 0.0), (0.0, 0.2)))

    def slopes(self, names: Sequence[str], constants: Constants, step: float) -> np.ndarray:
        """[observations, names]: of the logarithms of the model's times over those of constants, by central differences"""
        out = np.zeros((len(self), len(names)))
        for i, name in enumerate(names):
            readers, middle = self.readers[name], math.log(_get(constants, name))
            low, high = (self.predicted(_with(constants, {name: middle + s}), readers) for s in (-step, step))
            out[readers, i] = (high - low) / (2 * step)
        return out


def _ever_depending(seen: _Seen) -> dict[str, int]:
    """How many of the records change with each constant, now or with other values of all: at a few places in a factor of 4"""
    generator = np.random.default_rng(0)
    left = dict(seen.readers)  # of which it is not known yet
    for number in range(8):
        logs = {n: math.log(_get(CONSTANTS, n)) + math.log(4) * generator.uniform(-1, 1) * (number > 0) for n in FITTED}
        place = _with(CONSTANTS, {name: float(np.clip(log, *_bounds(name))) for name, log in logs.items()})
        for name, some in left.items():
            left[name] = np.setdiff1d(some, seen.depending(name, place, some, (-0.2, 0.2)))
    return {name: len(seen.readers[name]) - len(some) for name, some in left.items()}


def _scale(residuals: np.ndarray) -> float:
    """A standard deviation that outliers do not move: 1.4826 times the median magnitude"""
    return max(LEAST_NOISE, 1.4826 * float(np.median(np.abs(residuals))))


def _loss(residuals: np.ndarray, scale: float) -> float:
    r = np.abs(residuals) / scale
    return float(np.sum(np.where(r <= HUBER, 0.5 * r * r, HUBER * (r - 0.5 * HUBER))))


def _weights(residuals: np.ndarray, scale: float) -> np.ndarray:
    return np.minimum(1.0, HUBER * scale / np.maximum(np.abs(residuals), 1e-12))


def _limit(seen: _Seen, name: str, found: Constants) -> float:
    """The value nearest the old one that these records do not speak against (95 %), others as found"""
    residuals = seen.residuals(found)
    scale = _scale(residuals)
    allowed = _loss(residuals, scale) + 0.5 * 1.959964**2
    old, new = math.log(_get(CONSTANTS, name)), math.log(_get(found, name))
    for log in np.linspace(old, new, 200):
        if _loss(seen.moved(name, _with(found, {name: log}), residuals), scale) <= allowed:
            return _get(CONSTANTS, name) if log == old else math.exp(log)
    return math.exp(new)


def _solve(seen: _Seen, names: Sequence[str], held: Mapping[str, float]) -> Constants:
    """Of least loss, `held` as they are"""
    bounds = np.array([_bounds(name) for name in names])
    x = np.array([math.log(_get(CONSTANTS, name)) for name in names])
    base = _with(CONSTANTS, held)

    def at(point: np.ndarray) -> Constants:
        return _with(base, dict(zip(names, point)))

    # The scale follows the fit down; within a sweep and a step it stands still.
    residuals = seen.residuals(base)
    for reach in (math.log(2), math.log(1.4), math.log(1.2)):
        for i, name in enumerate(names):
            scale = _scale(residuals)
            for move in (-2 * reach, -reach, reach, 2 * reach):
                point = x.copy()
                point[i] = np.clip(x[i] + move, *bounds[i])
                tried = seen.moved(name, at(point), residuals)
                if _loss(tried, scale) < _loss(residuals, scale):
                    x, residuals = point, tried
                    break
    damping = 1e-2
    for _ in range(STEPS):
        scale = _scale(residuals)
        slopes, weights = seen.slopes(names, at(x), 1e-3), _weights(residuals, scale)
        while damping <= 1e6:
            point = np.clip(x + np.clip(_step(slopes, weights, residuals, damping), -0.5, 0.5), bounds[:, 0], bounds[:, 1])
            tried = seen.residuals(at(point))
            gain = _loss(residuals, scale) - _loss(tried, scale)
            if gain > 0:
                break
            damping *= 5
        else:
            break
        moved = float(np.max(np.abs(point - x)))
        x, residuals, damping = point, tried, damping / 3
        if moved < 1e-4 or gain < LEAST_GAIN:
            break
    return at(x)


def _step(slopes: np.ndarray, weights: np.ndarray, residuals: np.ndarray, damping: float) -> np.ndarray:
    """Levenberg's and Marquardt's, of the logarithms of the constants"""
    normal = slopes.T @ (slopes * weights[:, None])
    downhill = slopes.T @ (weights * residuals)
    return np.linalg.lstsq(normal + damping * np.diag(np.diag(normal) + 1e-9), downhill, rcond=None)[0]


def _covariance(seen: _Seen, names: Sequence[str], found: Constants) -> tuple[list[float], float]:
    """(half the width of each logarithm's 95 % interval, infinite where it is not determined; condition number)"""
    residuals = seen.residuals(found)
    scale = _scale(residuals)
    # one-sided at a bound, where _with would hold one side still: nothing is lost, the interval only widens
    slopes = seen.slopes(names, found, 1e-2)
    normal = slopes.T @ (slopes * _weights(residuals, scale)[:, None])
    length = np.sqrt(np.diag(normal))
    known = length > 1e-9
    scaled = normal / np.outer(np.where(known, length, 1.0), np.where(known, length, 1.0))
    values, vectors = np.linalg.eigh(scaled)
    values = np.maximum(values, 1e-12)
    variance = (vectors**2 / values).sum(axis=1) / np.where(known, length, 1.0) ** 2
    freedom = max(1, len(seen) - len(names))
    half = student(1.959964, freedom) * scale * np.sqrt(variance)
    half = np.where(known, half, math.inf)
    return [float(h) for h in half], float(np.sqrt(values[-1] / values[0]))


def _cross_validated(seen: _Seen, names: Sequence[str], found: Constants) -> np.ndarray:
    """Logarithms of what the model predicts for each case when fitted to the other parts: one step of Gauss and Newton from
    the fit to all of them, which is close to that fit already"""
    of_case = {name: i % FOLDS for i, name in enumerate(sorted({o.case for o in seen.observations}))}
    part = np.array([of_case[o.case] for o in seen.observations])
    residuals = seen.residuals(found)
    slopes, weights = seen.slopes(names, found, 1e-3), _weights(residuals, _scale(residuals))
    x = np.array([math.log(_get(found, name)) for name in names])
    bounds = np.array([_bounds(name) for name in names])
    out = np.empty(len(seen))
    for number in sorted(set(part)):
        rest = part != number
        step = _step(slopes[rest], weights[rest], residuals[rest], 0.0) if rest.any() else x * 0.0
        point = np.clip(x + np.clip(step, -0.5, 0.5), bounds[:, 0], bounds[:, 1])
        constants = _with(found, dict(zip(names, point))) if rest.any() else CONSTANTS
        out[~rest] = seen.predicted(constants, np.flatnonzero(~rest))
    return out


def _goodness(seen: _Seen, predicted: np.ndarray) -> dict[str, Goodness]:
    found = {}
    regimes = [o.plan.regime for o in seen.observations]
    for regime in (*latency.REGIMES, "all"):
        chosen = [i for i, of in enumerate(regimes) if regime in (of, "all")]
        if not chosen:
            continue
        truth = seen.truth[chosen]
        off = predicted[chosen] - truth
        error = np.abs(np.expm1(off))
        total = float(np.sum((truth - truth.mean()) ** 2))
        r2 = 1 - float(off @ off) / total if total > 1e-12 else None
        found[regime] = Goodness(len(chosen), float(np.median(error)), float(np.quantile(error, 0.9)), r2)
    return found


# ---- as text --------------------------------------------------------------------------------------------------------

HEADINGS = ("constant", "old", "new", "95 % interval", "records", "source of the old, or why it stays")
ERROR_HEADINGS = (
    "regime", "records", "error before", "after", "cross-validated", "90 % before", "after", "cross-validated",
    "R2 before", "after", "cross-validated",
)  # fmt: skip


def constants_body(found: Fit) -> list[tuple[str, ...]]:
    """A line per constant of FITTED under HEADINGS."""
    out: list[tuple[str, ...]] = []
    for value in found.values:
        unit, source = FITTED[value.name]
        fitted = value.low is not None
        out.append(
            (
                f"{value.name} ({unit})" if unit else value.name,
                f"{value.old:.4g}",
                f"{value.new:.4g}" if fitted else "-",
                _range(value),
                str(value.records),
                source if fitted else f"{source}; {value.why}",
            )
        )
    return out


def _range(value: Value) -> str:
    if value.low is None or value.high is None:
        return "-"
    if value.low == 0:
        return f"at most {value.high:.4g}"
    return f"at least {value.low:.4g}" if math.isinf(value.high) else f"{value.low:.4g} to {value.high:.4g}"


def errors_body(found: Fit) -> list[tuple[str, ...]]:
    """A line per regime under ERROR_HEADINGS: median and 90 % of |model / measured - 1|, and R2 of logarithms."""
    out = []
    for regime, before in found.before.items():
        three = [before, found.after.get(regime), found.validated.get(regime)]
        medians = ["-" if g is None else f"{g.median:.1%}" for g in three]
        tails = ["-" if g is None else f"{g.p90:.1%}" for g in three]
        shares = ["-" if g is None or g.r2 is None else f"{g.r2:.3f}" for g in three]
        out.append((regime, str(before.records), *medians, *tails, *shares))
    return out


def summary(found: Fit) -> list[str]:
    """Lines to show with the tables."""
    lines = [f"latency model fitted to {found.device}: " + (found.refused or "the constants below")]
    if found.condition is not None:
        lines.append(f"condition number of the fit: {found.condition:.0f}")
    lines += [f"left out: {n} records, {why}" for why, n in found.skipped.items()]
    return lines
