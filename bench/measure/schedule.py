"""What a run does within its time: what is not recorded yet, the most informative cases first, as many as fit.  Pure."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..cases.case import Case, Job
from ..records.schema import VERSIONS
from .run import MOST_SECONDS, SAMPLE_SECONDS, calls_of_a_pass

Done = frozenset[tuple[str, str, str]]  # (case, pass, provider)
TRIES = 2  # of what fails: a crash, a time-out, too little memory may have passed by the next run


@dataclass(frozen=True)
class Here:
    """A provider as it is found on this machine."""

    missing: str  # why it cannot run; empty where it can
    version: str | None  # of its package


def done(records: Iterable[Mapping[str, Any]], environment: Mapping[str, Any], here: Mapping[str, Here], runs: int = 1) -> Done:
    """What records of this environment and of these versions settle: what was timed in so many runs.

    What failed is settled after TRIES runs; a provider that was missing, while it still is."""
    count: Counter[tuple[tuple[str, str, str], str]] = Counter()
    found = set()
    for r in records:
        if r["kind"] != "timing" or any(r["environment"][name] != environment[name] for name in VERSIONS):
            continue
        provider = here.get(r["provider"])
        if provider is None or r["version"] != provider.version:
            continue
        key = r["case"], r["pass"], r["provider"]
        status = "failed" if r["status"] in ("error", "timeout") else r["status"]
        count[key, status] += 1
        enough = count[key, status] >= {"failed": TRIES, "ok": runs, "inaccurate": runs}.get(status, 1)
        if enough if status != "missing" else provider.missing:
            found.add(key)
    return frozenset(found)


def jobs(cases: Iterable[Case], passes: Sequence[str], providers: Sequence[str], recorded: Done = frozenset()) -> list[Job]:
    """What is left to measure: of each case the passes that lack a provider, with all providers, for they are compared within a run alone."""
    out = []
    for case in cases:
        lacking = tuple(p for p in passes if any((case.name, p, name) not in recorded for name in providers))
        if lacking:
            out.append(Job(case, lacking, tuple(providers)))
    return out


# How far apart two cases are that differ in a property alone, in doublings of a size.
_APART = {"dtype": 1.0, "precision": 0.5, "cell": 3.0, "bidirectional": 2.0, "lengths": 2.0}


def distance(a: Case, b: Case) -> float:
    """Doublings of every size, and _APART of every property that differs.  I counts by its ratio to H, for it follows H."""
    H, I, *others = (math.log2(getattr(a, name) / getattr(b, name)) for name in ("H", "I", "B", "T", "layers", "models", "heads"))
    return math.hypot(H, I - H, *others, *(d for name, d in _APART.items() if getattr(a, name) != getattr(b, name)))


def ordered(todo: Sequence[Job], known: Iterable[Case] = ()) -> list[Job]:
    """The most informative first: each the one farthest from all before it and from the `known`, which are recorded; of
    equals the one listed first."""
    left, out = list(todo), list[Job]()
    nearest = [min((distance(job.case, case) for case in known), default=math.inf) for job in left]
    while left:
        i = nearest.index(max(nearest))
        out.append(left.pop(i))
        nearest = [min(d, distance(job.case, out[-1].case)) for d, job in zip(nearest[:i] + nearest[i + 1 :], left)]
    return out


OVERHEAD = 1.0  # seconds of a case beside what follows: tensors, its worker, records
PER_PROVIDER = 0.15  # seconds to set one up and to profile a pass
REFERENCE_US = 150.0  # a step of the fp64 reference, forward and backward, at the least
# Microseconds a step of one layer and direction takes, launches included: forward; three times that for both passes.
STEP_US = {"loop": 40.0, "hoisted": 30.0, "compile": 15.0, "graph": 8.0, "compile-graph": 6.0, "cudnn-layers": 15.0}
OTHER_US = 10.0
ONE_BY_ONE = ("cudnn", "cudnn-layers")  # several models or heads are several calls

Runs = Callable[[str, Case], bool]  # whether a provider is here and runs a case


def seconds_of(job: Job, recorded: Mapping[tuple[str, tuple[str, ...]], float] = {}, runs: Runs = lambda name, case: True) -> float:
    """How long a job is expected to take: what it took before, by (case, providers that run it), or an estimate."""
    case = job.case
    providers = [name for name in job.providers if runs(name, case)]
    if (before := recorded.get((case.name, tuple(sorted(providers))))) is not None:
        return before * len(job.passes) / 2
    chains = case.layers * case.directions
    seconds = OVERHEAD + len(job.passes) * (3.5 * SAMPLE_SECONDS + PER_PROVIDER * len(providers))
    for pass_ in job.passes:
        for name in providers:
            steps = case.T * chains * (case.models * case.heads if name in ONE_BY_ONE else 1)
            call = steps * STEP_US.get(name, OTHER_US) * 1e-6 * (1 if pass_ == "fwd" else 3)
            needed = calls_of_a_pass(call, job.alone) * call
            seconds += 3 * call + (needed if needed <= MOST_SECONDS else 0.0)
    return seconds + case.T * chains * REFERENCE_US * 1e-6


def took(records: Iterable[Mapping[str, Any]]) -> dict[tuple[str, tuple[str, ...]], float]:
    """Seconds that both passes of cases took, by (case, providers that ran it): the newest of each."""
    by_run: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for r in records:
        if r["kind"] == "timing":
            by_run.setdefault((r["run"], r["case"]), []).append(r)
    out = {}
    for (_, case), those in sorted(by_run.items(), key=lambda item: item[1][0]["date"]):
        passes = {r["pass"] for r in those}
        ran = {r["provider"] for r in those if r["status"] not in ("missing", "unsupported")}
        out[case, tuple(sorted(ran))] = max(r["seconds"] for r in those) * 2 / len(passes)
    return out


def fitting(todo: Sequence[Job], seconds: float, of: Callable[[Job], float] = seconds_of) -> tuple[list[Job], list[Job]]:
    """(those that fit into `seconds`, in order, the rest): one that is too long is passed over for shorter ones after it."""
    fit, rest = [], []
    for job in todo:
        needed = of(job)
        if needed <= seconds:
            seconds -= needed
            fit.append(job)
        else:
            rest.append(job)
    return fit, rest
