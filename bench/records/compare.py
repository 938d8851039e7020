"""Compares two sides of records: per case, pass and provider the ratio of times B / A, an interval, and a verdict.

A side is a record file, a folder of them, or a commit that has records; only equal devices are compared.  docs/benchmarks.md
says how intervals, verdicts and the rate of false alarms are made, and why.  Verdicts, the first that holds:

    broken   timed in A, but wrong, failed or no longer supported in B         fixed    the other way round
    noise    fewer than FEWEST samples on a side
    same     the interval at equal clocks lies within the band 1 - band to 1 + band, ends included
    slower, faster   it lies wholly above the band, wholly below it
    clocks   across an end of the band, where the interval of the times as they are is not: the clocks may explain the change
    noise    across an end of the band
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..cases.case import nearest
from . import environment
from .schema import OURS
from .statistics import BAND, FEWEST, LEVEL, RATE, SEED, discoveries, interval
from .store import read

VERSIONS = ("torch", "triton", "cudnn", "cuda", "driver", "python")
LOST = ("wrong", "inaccurate", "error", "timeout", "unsupported")  # statuses of what ran and no longer does

Key = tuple[str, str, str, str]  # device, case, pass, provider


@dataclass(frozen=True)
class Side:
    """The timing records of one side."""

    name: str
    records: tuple[dict[str, Any], ...]
    problems: tuple[str, ...] = ()  # lines of its files that are no records

    @property
    def devices(self) -> list[str]:
        return sorted({r["environment"]["device"] for r in self.records})


@dataclass(frozen=True)
class Pair:
    """One (device, case, pass, provider) that both sides have. Times in microseconds per call."""

    device: str
    case: str
    pass_: str
    provider: str
    verdict: str
    us_a: float | None  # median; None where that side has no time
    us_b: float | None
    ratio: float | None = None  # B / A
    low: float | None = None  # interval; None where there are too few samples
    high: float | None = None
    p: float | None = None  # of a ratio within the band, two-sided
    samples: tuple[int, int] = (0, 0)
    runs: tuple[int, int] = (0, 0)
    mhz: tuple[float | None, float | None] = (None, None)  # of the SMs
    message: str = ""
    regression: bool = False


@dataclass(frozen=True)
class Comparison:
    a: Side
    b: Side
    pairs: tuple[Pair, ...]
    only_a: tuple[str, ...]  # "case pass provider: why"
    only_b: tuple[str, ...]
    notes: tuple[str, ...]  # what differs besides the code, and what the records do not know
    band: float

    @property
    def regressions(self) -> list[Pair]:
        return [pair for pair in self.pairs if pair.regression]

    @property
    def tested(self) -> int:
        return sum(pair.p is not None for pair in self.pairs)

    @property
    def expected_false_alarms(self) -> float:
        """How many pairs look slower at most, on average, if no ratio is beyond the band; `regressions` has fewer"""
        return self.tested * (1 - LEVEL) / 2


def load(name: str, paths: Iterable[Path]) -> Side:
    """The side that `name` means: a record file, a folder of them, or a commit, of which the records of `paths` are taken.

    ValueError: it is none of these, it has no timing records, or the beginning of a hash fits several commits."""
    given, commit = Path(name), None
    files = sorted(given.rglob("*.jsonl")) if given.is_dir() else [given] if given.is_file() else list(dict.fromkeys(paths))
    if given.is_dir() and not files:
        raise ValueError(f"no record files (*.jsonl) in the folder {name}")
    found, problems = read(files)
    found = [r for r in found if r["kind"] == "timing"]
    if not given.exists():
        commit = _commit(name, {r["environment"]["commit"] for r in found} - {None})
        found = [r for r in found if r["environment"]["commit"] == commit]
    if not found:
        lines = f"; {len(problems)} lines are no records, the first: {problems[0]}" if problems else ""
        raise ValueError(f"no timing records in {name}{lines}")
    return Side(name, tuple(found), tuple(map(str, problems)))


def _commit(name: str, commits: set[str]) -> str:
    wanted, known = name.lower(), [c[:12] for c in commits]
    if not re.fullmatch(r"[0-9a-f]{7,40}", wanted) or not any(c.startswith(wanted) for c in commits):
        root = str(environment.root())
        resolved = environment._output("git", "-C", root, "rev-parse", "--verify", "--quiet", f"{name}^{{commit}}")
        if resolved is None:
            raise ValueError(
                f"{name!r} is no record file, no folder of them and no commit (7 hex digits or more, or what git knows); "
                f"commits with records: {nearest(wanted[:12], known)}"
            )
        wanted = resolved
    fitting = sorted(c for c in commits if c.startswith(wanted))
    if not fitting:
        raise ValueError(f"commit {wanted[:12]} has no timing records; commits that have: {nearest(wanted[:12], known)}")
    if len(fitting) > 1:
        raise ValueError(f"{name!r} begins several commits: {', '.join(c[:12] for c in fitting)}")
    return fitting[0]


def compare(a: Side, b: Side, providers: Sequence[str] | None = (OURS,), band: float = BAND, seed: int = SEED) -> Comparison:
    """Every (device, case, pass, provider) of either side, for the providers named (None: all of them).

    ValueError: the sides have no device, or nothing at all, in common; `band` is not in (0, 1)."""
    if not 0 < band < 1:
        raise ValueError(f"band must lie between 0 and 1, got {band}")
    if not set(a.devices) & set(b.devices):
        raise ValueError(f"different devices are not compared: {a.name} is of {', '.join(a.devices)}, {b.name} of {', '.join(b.devices)}")
    of_a, of_b = (_grouped(side, providers) for side in (a, b))
    pairs = []
    alone: tuple[list[str], list[str]] = [], []
    for key in dict.fromkeys([*of_a, *of_b]):
        pair = _pair(key, of_a[key], of_b[key], band, seed) if key in of_a and key in of_b else None
        if pair is not None:
            pairs.append(pair)
            continue
        for group, names in zip((of_a, of_b), alone):  # on one side alone, or without a time on either
            if key in group:
                names.append(f"{' '.join(key[1:])} on {key[0]}: {group[key][-1]['status']}")
    if not pairs:
        has = [f"{len(names)} ({', '.join(names[:3])}{', ...' * (len(names) > 3)})" if names else "none" for names in alone]
        raise ValueError(
            f"nothing to compare: {a.name} and {b.name} share no timed case of {', '.join(providers or ['any provider'])}; "
            f"{a.name} has {has[0]}, {b.name} has {has[1]}"
        )
    return Comparison(a, b, _judged(pairs), tuple(alone[0]), tuple(alone[1]), (*_notes(a, b), *_unknown(pairs)), band)


def _grouped(side: Side, providers: Sequence[str] | None) -> dict[Key, list[dict[str, Any]]]:
    """The records of each key, the newest last"""
    found: dict[Key, list[dict[str, Any]]] = {}
    for record in sorted(side.records, key=lambda r: r["date"]):
        if providers is None or record["provider"] in providers:
            key = (record["environment"]["device"], record["case"], record["pass"], record["provider"])
            found.setdefault(key, []).append(record)
    return found


def _timed(records: Sequence[dict[str, Any]]) -> list[np.ndarray]:
    """The samples of each run; none where the newest record has no time: what came before no longer holds"""
    if records[-1]["status"] != "ok":
        return []
    runs: dict[str, list[float]] = {}
    for record in records:
        if record["status"] == "ok":
            runs.setdefault(record["run"], []).extend(record["device_us"]["samples"])
    return [np.asarray(samples) for samples in runs.values() if samples]


def _pair(key: Key, a: Sequence[dict[str, Any]], b: Sequence[dict[str, Any]], band: float, seed: int) -> Pair | None:
    runs_a, runs_b = _timed(a), _timed(b)
    us_a, us_b = (float(np.median(np.concatenate(runs))) if runs else None for runs in (runs_a, runs_b))
    if us_a is None or us_b is None:
        bad = a[-1] if us_a is None else b[-1]
        if bad["status"] not in LOST or (us_a is None and us_b is None):
            return None
        verdict = "fixed" if us_a is None else "broken"
        message = f"{bad['status']}: {bad['message']}"
        return Pair(*key, verdict, us_a, us_b, message=message, regression=verdict == "broken")
    samples = sum(map(len, runs_a)), sum(map(len, runs_b))
    clocks = [(_clock(a, name), _clock(b, name)) for name in ("sm_mhz", "memory_mhz")]
    pair = Pair(*key, "noise", us_a, us_b, us_b / us_a, samples=samples, runs=(len(runs_a), len(runs_b)), mhz=clocks[0])
    if min(samples) < FEWEST:
        return dataclasses.replace(pair, message=f"{min(samples)} samples say nothing; {FEWEST} or more would")
    ratios = [1.0, *(of_a / of_b for of_a, of_b in clocks if of_a and of_b)]
    low, high, p = interval(runs_a, runs_b, band, seed, (min(ratios), max(ratios)))
    verdict = _where(low / max(ratios), high / min(ratios), band)
    if verdict == "noise" and _where(low, high, band) != "noise":
        verdict = "clocks"
    return dataclasses.replace(pair, verdict=verdict, low=low, high=high, p=p)


def _where(low: float, high: float, band: float) -> str:
    if 1 - band <= low and high <= 1 + band:
        return "same"
    return "slower" if low > 1 + band else "faster" if high < 1 - band else "noise"


def _clock(records: Sequence[dict[str, Any]], name: str) -> float | None:
    """The median over the runs that were timed; None where no record has it"""
    found = [r["telemetry"][name] for r in records if r["status"] == "ok" and r["telemetry"].get(name, 0) > 0]
    return float(np.median(found)) if found else None


def _unknown(pairs: Sequence[Pair]) -> list[str]:
    """What the records of both sides do not tell"""
    timed = [pair for pair in pairs if pair.p is not None]
    notes = []
    if once := sum(min(pair.runs) == 1 for pair in timed):
        notes.append(f"one run on a side of {once} pairs: how far runs of equal code are apart is not known; run --repeats 3 shows it")
    if unclocked := sum(None in pair.mhz for pair in timed):
        notes.append(f"clocks are not recorded for {unclocked} pairs, whose verdict knows nothing of them")
    return notes


def _judged(pairs: Sequence[Pair]) -> tuple[Pair, ...]:
    """With `regression` set"""
    tested = [pair for pair in pairs if pair.p is not None]
    rejected = dict(zip(map(id, tested), discoveries([pair.p or 0.0 for pair in tested])))
    return tuple(
        dataclasses.replace(pair, regression=pair.regression or (pair.verdict == "slower" and rejected.get(id(pair), False)))
        for pair in pairs
    )


def _notes(a: Side, b: Side) -> list[str]:
    notes = []
    only = {side.name: sorted(set(side.devices) - set(other.devices)) for side, other in ((a, b), (b, a))}
    notes += [f"only in {name}: {', '.join(devices)}" for name, devices in only.items() if devices]
    for version in VERSIONS:
        of_a, of_b = ({str(r["environment"][version]) for r in side.records} for side in (a, b))
        if of_a != of_b or len(of_a) > 1:
            notes.append(f"{version} differs: A {', '.join(sorted(of_a))}; B {', '.join(sorted(of_b))}")
    for side in (a, b):
        code = {(r["environment"]["commit"], r["environment"]["source"]) for r in side.records}
        if len(code) > 1:
            commits = sorted({str(commit)[:12] for commit, _ in code})
            notes.append(f"{side.name} mixes {len(code)} states of the code, of {', '.join(commits)}")
        if any(r["environment"]["dirty"] for r in side.records):
            notes.append(f"{side.name} was measured with uncommitted changes")
        if side.problems:
            notes.append(f"{side.name}: {len(side.problems)} lines are no records, the first: {side.problems[0]}")
    if {json.dumps(r, sort_keys=True) for r in a.records} == {json.dumps(r, sort_keys=True) for r in b.records}:
        notes.append("A and B are the same records")
    return notes


HEADINGS = ("case", "pass", "provider", "A us", "B us", "B / A", f"{LEVEL:.0%} interval", "A MHz", "B MHz", "verdict")
_ORDER = ("broken", "slower", "faster", "fixed", "clocks", "noise", "same")


def body(comparison: Comparison) -> list[tuple[str, ...]]:
    """A line per pair under HEADINGS: what broke and what is slower first, most changed first. A * marks a regression."""

    def rank(pair: Pair) -> tuple[Any, ...]:
        return _ORDER.index(pair.verdict), -abs(math.log(pair.ratio or 1.0)), pair.case, pair.pass_, pair.provider

    several = len({pair.device for pair in comparison.pairs}) > 1
    out: list[tuple[str, ...]] = []
    for pair in sorted(comparison.pairs, key=rank):
        provider = f"{pair.provider} on {pair.device}" if several else pair.provider
        ratio = "-" if pair.ratio is None else f"{pair.ratio:.3f}"
        ends = "-" if pair.low is None else f"{pair.low:.3f} to {pair.high:.3f}"
        numbers = [f"{value:.{digits}f}" if value else "-" for digits, both in ((1, (pair.us_a, pair.us_b)), (0, pair.mhz)) for value in both]
        verdict = pair.verdict + "*" * pair.regression + (f": {pair.message}" if pair.message else "")
        out.append((pair.case, pair.pass_, provider, *numbers[:2], ratio, ends, *numbers[2:], verdict))
    return out


def summary(comparison: Comparison) -> list[str]:
    """Lines to show with the table: what differs besides the code, the counts, what to expect by chance, what is on one side."""
    count = {verdict: sum(pair.verdict == verdict for pair in comparison.pairs) for verdict in _ORDER}
    lines = [f"note: {note}" for note in comparison.notes]
    lines.append(
        f"A = {comparison.a.name}, B = {comparison.b.name}: "
        + ", ".join(f"{n} {verdict}" for verdict, n in count.items() if n)
        + f"; same: within {comparison.band:.1%}, slower or faster: beyond it"
    )
    lines.append(
        f"of {comparison.tested} pairs tested, {comparison.expected_false_alarms:.1f} at most look slower by chance alone; "
        f"regressions (*, at a false discovery rate of {RATE:.0%}): {len(comparison.regressions)}"
    )
    for name, only in (("A", comparison.only_a), ("B", comparison.only_b)):
        if only:
            lines.append(f"not compared, in {name}: {'; '.join(only)}")
    return lines
