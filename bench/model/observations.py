"""Records as observations of the latency model: one recurrence, measured."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, cast

from rnn_triton.plan import latency
from rnn_triton.plan.hardware import Device
from rnn_triton.plan.latency import CONSTANTS, Constants
from rnn_triton.plan.problem import Plan, Problem, plan_from_fields

from ..cases import case as cases
from ..cases import estimate
from ..records.rows import measured
from ..records.schema import OURS, is_switched


@dataclass(frozen=True)
class Observation:
    """One recurrence, measured."""

    case: str
    problem: Problem
    plan: Plan
    device: Device
    us: float  # per step

    def model_us(self, constants: Constants) -> float:
        return latency.practical_us(self.problem, self.plan, self.device, constants)

    def reads(self) -> set[str]:
        """The constants that the model reads for it"""
        names = set()

        class Noting:
            def __getattr__(self, name: str) -> Any:
                names.add(name)
                return getattr(CONSTANTS, name)

        self.model_us(cast(Constants, Noting()))
        return names


def observations(records: Iterable[dict[str, Any]]) -> tuple[list[Observation], dict[str, int]]:
    """(the newest measurement of each recurrence, how many records were left out by reason)."""
    newest: dict[tuple[Any, ...], Observation] = {}
    skipped: Counter[str] = Counter()
    for record in sorted(records, key=lambda r: r["date"]):
        if record["kind"] == "exchange":
            direction, plan = record["direction"], record["plan"]
        elif record["kind"] == "timing" and record["provider"] == OURS:
            direction, plan = "forward", (record["plan"] or {}).get("forward")
        else:
            continue
        if is_switched(record):
            skipped["a setting that the model does not know"] += 1
            continue
        try:
            found = _observation(record, direction, plan)
        except _Unusable as reason:
            skipped[str(reason)] += 1
            continue
        newest[record["kind"], found.device, found.problem, found.plan, record["shape"]["T"]] = found
    return list(newest.values()), dict(skipped)


class _Unusable(ValueError):
    """Why a record is no observation"""


def _observation(record: dict[str, Any], direction: str, plan: Any) -> Observation:
    if record["kind"] == "timing" and record["pass"] != "fwd":
        raise _Unusable("not a forward pass alone")
    us = measured(record, "device_us")
    if us is None:
        raise _Unusable(f"no time: {record['status']}")
    if record["environment"]["hardware"] is None or plan is None:
        raise _Unusable("without hardware or plan")
    # What JSON may hold here is more than a plan, a shape or a device is: whatever the model cannot time is left out.
    try:
        found = _parsed(record, direction, plan, us[1])
        hash(found)
        timed = math.isfinite(math.log(found.model_us(CONSTANTS)))
    except _Unusable:
        raise
    except (TypeError, ValueError, LookupError, ArithmeticError):
        timed = False
    if not timed:
        raise _Unusable("shape, plan or hardware of another version")
    if found.us <= 0:
        raise _Unusable("a slope that is not positive")
    return found


def _parsed(record: dict[str, Any], direction: str, plan: Any, us: float) -> Observation:
    case = cases.Case(**record["shape"])
    if (case.layers, case.bidirectional, case.models * case.heads, case.lengths) != (1, False, 1, "full"):
        raise _Unusable("not one layer in one direction")
    device = replace(Device(**record["environment"]["hardware"]), name=record["environment"]["device"])
    short, per_step = measured(record, "short_us"), us / case.T
    if short is not None and record["short_T"] < case.T:
        per_step = (us - short[1]) / (case.T - record["short_T"])
    problem = dict(zip(("forward", "backward"), estimate.problems(case)))[direction]
    return Observation(case.name, problem, plan_from_fields(plan), device, per_step)
