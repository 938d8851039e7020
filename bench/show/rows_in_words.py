"""Rows sorted by device and suite, and in words: what was measured on what, how, and with which faults."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from ..cases.case import PASSES
from ..cases.suites import SUITES
from ..records.rows import Row
from ..records.schema import TELEMETRY

PASS_TITLES = {"fwd": "forward", "train": "forward + backward"}
EVERYTHING = "every provider and pass"  # has no record
OTHER = "other cases"  # of no suite
REGIMES = {"one_cta": "one CTA", "cta_group": "group of CTAs", "per_step": "a launch a step"}


def arithmetic(row: Row) -> str:
    """bf16, fp16, fp32 (TF32) or fp32 (IEEE)"""
    dtype, precision = row.shape["dtype"], row.shape["precision"]
    return f"{dtype} ({precision.upper()})" if precision else dtype


def by_device(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """The rows of each device, devices by name"""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row.environment["device"], []).append(row)
    return dict(sorted(found.items()))


def suites_of(names: Iterable[str]) -> dict[str, set[str]]:
    """suite -> those of the cases that it lists, in the order of SUITES: of the fewest suites that explain the cases, those that
    explain most first, and of each whose cases are all there.  A case counts for every one of them that lists it; OTHER has
    the cases of no suite."""
    recorded = set(names)
    listed = {suite: {c.name for c in members} for suite, members in SUITES.items()}
    share = {suite: len(members & recorded) / len(members) for suite, members in listed.items()}
    chosen = {suite for suite in listed if share[suite] == 1}
    while left := recorded.difference(*(listed[suite] for suite in chosen)):
        best = max(listed, key=lambda suite: (len(listed[suite] & left), share[suite]))
        if not listed[best] & left:
            break
        chosen.add(best)
    found = {suite: listed[suite] & recorded for suite in SUITES if suite in chosen}
    return found | ({OTHER: left} if left else {})


def by_suite(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The rows of each suite touched, in the order of SUITES, then OTHER; within one, as the suite lists its cases."""
    position = {(s, c.name): i for s, members in SUITES.items() for i, c in enumerate(members)}
    found = {}
    for suite, members in suites_of(row.case for row in rows).items():
        order = [row for row in rows if row.case in members]
        found[suite] = sorted(order, key=lambda r: (position.get((suite, r.case), 0), r.case, PASSES.index(r.pass_)))
    return found


def caption(rows: Iterable[Row], times: bool = True) -> str:
    """On what the rows were measured and, of `times`, how. Every version that occurs is named, with how many records have it
    where there are several."""
    given = list(rows)
    rows = [row for row in given if row.us] or given
    if not rows:
        return "nothing was measured"

    def all_of(field: str) -> str:
        found = Counter(_short(row.environment, field) for row in rows)
        return " and ".join(f"{value} ({count} records)" if len(found) > 1 else value for value, count in sorted(found.items()))

    fields = ("driver", "torch", "triton", "cudnn", "commit")
    mixed = any(len({_short(row.environment, field) for row in rows}) > 1 for field in fields)
    versions = sorted({(row.provider, row.version) for row in rows if row.version})
    dates = sorted({row.date[:10] for row in rows})
    precisions = sorted({row.shape["precision"].upper() for row in rows if row.shape["precision"]})
    return (
        ("VERSIONS DIFFER. " if mixed else "")
        + f"{all_of('device')}, driver {all_of('driver')}; torch {all_of('torch')}, triton {all_of('triton')}, "
        + f"cuDNN {all_of('cudnn')}{''.join(f', {name} {version}' for name, version in versions)}; "
        + f"commit {all_of('commit')}; {' to '.join(dict.fromkeys((dates[0], dates[-1])))}."
        + " Median device time by CUDA events of calls taken in turn, input projection and launches included." * times
        + (f" fp32 is {' or '.join(precisions)} where so named." if precisions else "")
        + "".join(f" {sentence}" for sentence in (*((clocks(rows), late(rows)) if times else ()), summed(given)) if sentence)
    )


def clocks(rows: Iterable[Row]) -> str:
    """A sentence: the lowest and the highest of the rows' medians of clocks, power and temperature; empty where none has any"""
    rows = list(rows)
    parts = []
    for name, words in zip(TELEMETRY, ("SM clock {} MHz", "memory clock {} MHz", "power {} W", "temperature {} C")):
        found = [f"{value:.0f}" for value in sorted(row.telemetry[name] for row in rows if name in row.telemetry)]
        if found:
            parts.append(words.format(" to ".join(dict.fromkeys((found[0], found[-1])))))
    return f"While measured: {', '.join(parts)}." if parts else ""


def late(rows: Iterable[Row]) -> str:
    """A sentence on records with late samples (timing.py); empty where there are none"""
    found = [row for row in rows if row.us and row.late]
    say = "the clock of some samples started before the whole call was queued, and gaps of the host may be in them"
    return f"In {len(found)} records ({', '.join(sorted({row.provider for row in found}))}) {say}." if found else ""


LOOPS = ("loop", "compile", "graph")  # providers of torch's own operators, a step after the other


def summed(rows: Iterable[Row]) -> str:
    """A sentence on those of LOOPS that are wrong in training in bf16 or fp16; empty where none is"""
    found = {r.provider for r in rows if r.status == "wrong" and r.pass_ == "train" and r.shape["dtype"] != "fp32"}
    if not (names := [name for name in LOOPS if name in found]):
        return ""
    why = "autograd sums the weight gradients of an eager loop step by step in bf16 or fp16, which misses the tolerance from about T = 240"
    return f"Wrong in training ({', '.join(names)}): {why} (docs/benchmarks.md)."


def _short(environment: dict[str, Any], field: str) -> str:
    value = environment[field]
    if field == "commit":
        return f"{str(value)[:10]}{' with changes' if environment['dirty'] else ''}"
    if field == "cudnn" and value:  # 8907 is 8.9.7, 91900 is 9.19.0
        return ".".join(map(str, (*divmod(value // 100, 10 if value < 10_000 else 100), value % 100)))
    return "unknown" if value is None else str(value)
