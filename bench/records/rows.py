"""Timing records as the tidy table that figures and tables are made from, with speedups."""

from __future__ import annotations

import functools
import statistics
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from .schema import BASELINES, OURS, TELEMETRY, VERSIONS, Timing, fields_of

Quantiles = tuple[float, float, float]  # p20, median, p80


@dataclass(frozen=True)
class Row:
    """A timing record as figures and tables want it: its fields by name (schema.Timing, and those of every record), and what
    follows from them; None: not measured. Times per step in microseconds."""

    record: dict[str, Any]
    baseline: str | None = None  # the faster of BASELINES in the run compared, see rows()
    speedup: float | None = None  # over it, by device time
    graph_speedup: float | None = None  # over the faster of BASELINES by replay of a CUDA graph
    peer: str | None = None  # the fastest of all providers but ours, in the newest run that has one
    peer_speedup: float | None = None  # over it, by device time
    sides: tuple[list[float], list[float]] | None = None  # samples of both sides of `speedup`, the row's first
    gap: str = ""  # why there is no speedup although there is a time: NO_BASELINE or APART

    def __getattr__(self, name: str) -> Any:
        if name == "record" or name not in _FIELDS:
            raise AttributeError(f"a row has no {name}")
        return self.record.get(name.rstrip("_"))

    us = property(lambda self: measured(self.record, "device_us"))  # Quantiles or None, as the next three: per call on the device
    inaccurate_us = property(lambda self: measured(self.record, "device_us", "inaccurate"))  # gradients miss the tolerance, though by little
    graph_us = property(lambda self: measured(self.record, "graph_us"))
    wall_us = property(lambda self: measured(self.record, "wall_us"))

    @property
    def wall_p99(self) -> float | None:
        samples = self.record["wall_us"]["samples"] if self.wall_us else ()
        return statistics.quantiles(samples, n=100, method="inclusive")[98] if len(samples) > 1 else None

    @property
    def us_per_step(self) -> float | None:
        """Median over T"""
        return self.us[1] / self.shape["T"] if self.us else None

    @property
    def slope_us_per_step(self) -> float | None:
        """Free of launch cost"""
        us, short, steps = self.us, measured(self.record, "short_us"), self.shape["T"] - (self.short_T or 0)
        return (us[1] - short[1]) / steps if us and short and steps > 0 else None

    @property
    def bound(self) -> str | None:
        """The largest part of the practical estimate: the model's bottleneck"""
        parts = self.parts_us_per_step
        return max(parts, key=lambda part: parts[part]) if parts else None

    @property
    def fraction_of_floor(self) -> float | None:
        """Floor time, an estimate, over measured time"""
        floor, us = self.floor_us_per_step, self.us
        return floor * self.shape["T"] / us[1] if us and floor else None

    @property
    def regime(self) -> str | None:
        """Of the forward plan of ours"""
        found = ((self.plan or {}).get("forward") or {}).get("regime")
        return None if found is None else str(found)

    @property
    def error(self) -> float | None:
        """The largest relative error of y or hn against fp64"""
        return max((self.errors[q]["rel"] for q in ("y", "hn") if q in self.errors), default=None)

    @functools.cached_property
    def drawn(self) -> Any:
        """Logarithms of the speedup by samples that are drawn anew (statistics.drawn_ratios); None without a speedup, with few
        samples, and without numpy"""
        try:
            from . import statistics as of_samples
        except ModuleNotFoundError:
            return None
        if self.sides is None or min(map(len, self.sides)) < of_samples.FEWEST:
            return None
        mine, theirs = (of_samples.np.asarray(side) for side in self.sides)
        seed = zlib.crc32(f"{self.case} {self.pass_} {self.provider}".encode())  # no two rows share what is drawn
        return of_samples.drawn_ratios([mine], [theirs], seed)[0]

    @property
    def speedup_interval(self) -> tuple[float, float] | None:
        """Where the speedup lies in 95 of 100 measurements; None where `drawn` is"""
        return None if self.drawn is None else _ends(self.drawn)

    def tidy(self) -> dict[str, Any]:
        """One line of a CSV file: scalars alone, the same columns for every row."""
        e = self.environment
        return {
            "case": self.case, "pass": self.pass_, "provider": self.provider, "status": self.status, **self.shape,
            **{f"us_{name}": value for name, value in zip(("p20", "median", "p80"), self.us or (None,) * 3)},
            "graph_us_median": self.graph_us[1] if self.graph_us else None,
            "wall_us_median": self.wall_us[1] if self.wall_us else None, "wall_us_p99": self.wall_p99,
            "us_per_step": self.us_per_step, "slope_us_per_step": self.slope_us_per_step,
            "floor_us_per_step": self.floor_us_per_step, "practical_us_per_step": self.practical_us_per_step,
            "fraction_of_floor": self.fraction_of_floor, "bound": self.bound, "regime": self.regime,
            "speedup": self.speedup, **dict(zip(("speedup_low", "speedup_high"), self.speedup_interval or (None, None))),
            "graph_speedup": self.graph_speedup, "baseline": self.baseline, "peer": self.peer, "peer_speedup": self.peer_speedup,
            "inaccurate_us_median": self.inaccurate_us[1] if self.inaccurate_us else None, "joules": self.joules,
            "throttled": None if self.throttled is None else " ".join(self.throttled), "other_processes": self.other_processes,
            "peak_bytes": self.peak_bytes, "error": self.error,
            **{name: self.telemetry.get(name) for name in TELEMETRY}, "device": e["device"], "driver": e["driver"],
            "torch": e["torch"], "triton": e["triton"], "cudnn": e["cudnn"], "commit": e["commit"],
            "version": self.version, "date": self.date, "run": self.run, "message": self.message,
        }  # fmt: skip


_FIELDS = {"run", "date", "environment", "pass_", *fields_of(Timing)}
NO_BASELINE = "no cuDNN time"
APART = "not in one run"  # both were timed, but see rows()


def rows(records: Iterable[dict[str, Any]]) -> list[Row]:
    """The newest timing of each (device, case, pass, provider), with its speedup.

    What was timed without a GPU is no time, and gives no row.  A speedup is a ratio of two times of one run: of the newest
    run that timed both with the code and the versions (VERSIONS) of the row.  That is the row's own run, unless a newer one measured the row alone: the row's times are then of the newer run.  Only a status
    of ok carries times; a wrong result has no speedup, on either side."""
    newest: dict[tuple[str, ...], dict[str, Any]] = {}  # by point and provider
    runs: dict[tuple[str, ...], dict[str, dict[str, dict[str, Any]]]] = {}  # point -> run -> provider -> record
    for record in records:
        if record["kind"] == "timing" and record["environment"]["capability"] is not None:
            point = (record["environment"]["device"], record["case"], record["pass"])
            _keep_newer(newest, (*point, record["provider"]), record)
            _keep_newer(runs.setdefault(point, {}).setdefault(record["run"], {}), record["provider"], record)
    return [_row(record, list(runs[key[:3]].values())) for key, record in newest.items()]


def _keep_newer(known: dict[Any, dict[str, Any]], key: Any, record: dict[str, Any]) -> None:
    if key not in known or record["date"] >= known[key]["date"]:
        known[key] = record


def measured(record: dict[str, Any], field: str, status: str = "ok") -> Quantiles | None:
    """(p20, median, p80) of a sampled field of a timing record; None where it was not measured or is wrong."""
    s = record[field]
    return (s["p20"], s["median"], s["p80"]) if record["status"] == status and s["samples"] else None


def _ends(drawn: Any) -> tuple[float, float]:
    from .statistics import ends  # numpy is there: it has drawn them

    return ends(drawn)


def geomean(rows: Iterable[Row]) -> tuple[float, tuple[float, float] | None] | None:
    """(geometric mean, interval) of the speedups that rows have: how far the mean of these cases would move if they were measured
    again, which says nothing of other cases.  No interval where one of them has none; None where there is no speedup."""
    found = [row for row in rows if row.speedup]
    if not found:
        return None
    drawn = [row.drawn for row in found]
    known = all(d is not None for d in drawn)
    return statistics.geometric_mean([row.speedup or 1.0 for row in found]), _ends(sum(drawn) / len(drawn)) if known else None


def _code(record: dict[str, Any]) -> list[Any]:
    return [record["version"], *(record["environment"][name] for name in VERSIONS)]


def _row(record: dict[str, Any], runs: Sequence[dict[str, dict[str, Any]]]) -> Row:
    """`runs`: the records of each run by provider; a speedup is of the newest that has both sides, by rows()."""
    us, name = measured(record, "device_us"), record["provider"]
    timed = [{name: r for name, r in run.items() if measured(r, "device_us")} for run in runs]
    with_mine = [run for run in timed if name in run and _code(run[name]) == _code(record)] if us else []
    with_mine.sort(key=lambda run: run[name]["date"])

    def fastest(among: Callable[[str], bool], field: str = "device_us") -> tuple[dict[str, Any], dict[str, Any] | None]:
        """(the row's record, the fastest by `field` of others that are `among` those sought) in the newest run that has such others"""
        run = next((run for run in reversed(with_mine) if any(map(among, run))), {name: record})
        theirs = [r for other, r in run.items() if among(other) and measured(r, field)]
        return run[name], min(theirs, key=lambda r: r[field]["median"], default=None)

    def over(mine: dict[str, Any], best: dict[str, Any] | None, field: str = "device_us") -> float | None:
        return best[field]["median"] / mine[field]["median"] if best and measured(mine, field) else None

    mine, best = fastest(BASELINES.__contains__)
    peer = fastest(lambda other: not other.startswith(OURS))
    sides = (mine["device_us"]["samples"], best["device_us"]["samples"]) if best else None
    there = any(baseline in run for run in timed for baseline in BASELINES)
    gap = "" if best or not us else APART if there else NO_BASELINE
    return Row(
        record, best["provider"] if best else None, over(mine, best), over(*fastest(BASELINES.__contains__, "graph_us"), "graph_us"),
        peer[1]["provider"] if peer[1] else None, over(*peer), sides, gap,
    )  # fmt: skip
