"""From a problem and a device to the plan that runs it: pure, total, deterministic.

The choice is, in this order: what `overriding` asks for; what measured.json says for the problem; one CTA where it holds
W_hh; the smallest practical time of the latency model (latency.py) over all plans that fit (candidates.py).  Every problem
on a device of compute capability 8.0 or newer has a plan; UnsupportedError says which device is older.
"""

from __future__ import annotations

import functools
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..errors import UnsupportedError
from . import latency
from .candidates import candidates, cta_group, one_cta
from .hardware import Device
from .measured import measured_plans
from .overriding import BESIDES, Choices, matches, overrides
from .problem import ONE, CtaGroup, Lanes, OneCta, PerStep, Plan, Problem

Failures = tuple[tuple[Plan, str], ...]

_lock = threading.Lock()
_rejected: dict[tuple[Problem, Device, Lanes], Failures] = {}
_TRIES = 4  # plans of a regime that may fail to compile before the regime is given up


# ---- the choice -----------------------------------------------------------------------------------------------------


def plan(problem: Problem, device: Device, chosen: Choices | None = None) -> Plan:
    """The configuration for this problem on this device, under the overrides `chosen`, by default those that are open.

    UnsupportedError: the device is older than Ampere, or everything failed to compile.  ValueError: an override that no
    plan of the problem satisfies."""
    return _decide(problem, device, overrides() if chosen is None else chosen, rejected(problem, device))


@functools.lru_cache(maxsize=4096)
def _decide(problem: Problem, device: Device, chosen: Choices, failed: Failures) -> Plan:
    if device.capability < 80:
        raise UnsupportedError(
            f"{device.name} has compute capability {device.capability / 10:.1f}; the kernels need 8.0 (Ampere) or newer"
        )
    asked = dict(chosen)
    fitting = list(candidates(problem, device, asked))
    found = [p for p in fitting if matches(p, asked)]
    if not found:
        raise ValueError(_no_choice(problem, device, asked, fitting))
    found = remaining(found, failed)
    if not found:
        why = "; ".join(dict.fromkeys(why for _, why in (failed[0], failed[-1])))
        raise UnsupportedError(f"no plan for {problem} compiles on {device.name}: {why}")
    found = measured_plans(problem, device, found) or found
    # Rule until a GPU has measured it: one CTA, which exchanges nothing, wherever it holds W_hh.
    found = [p for p in found if p.regime == "one_cta"] or found
    return best(problem, device, found)


# A GEMM before the launch is a launch more and T*B*H values in memory: it has to be worth them.
_GEMM_ADVANTAGE = 1.05
# What a launch per step is estimated to cost is mostly the host's time for it, the least certain constant of the model;
# until it is measured the host must not decide a near tie against keeping W_hh on chip.
_PER_STEP_ADVANTAGE = 1.2


def best(problem: Problem, device: Device, plans: Sequence[Plan]) -> Plan:
    """The one of least practical time; of equals the one that takes fewer CTAs, then the first."""

    def cost(p: Plan) -> tuple[float, int]:
        us = latency.practical_us(problem, p, device)
        if isinstance(p, CtaGroup):
            return us * (_GEMM_ADVANTAGE if p.w_ih_home == "gemm" else 1.0), p.groups * p.ctas
        return us * (_PER_STEP_ADVANTAGE if isinstance(p, PerStep) else 1.0), 0

    return min(plans, key=cost)


def lane_plan(problem: Problem, lanes: Lanes, device: Device, chosen: Choices | None = None) -> OneCta | CtaGroup | None:
    """The configuration of least estimated time for a launch of these lanes; None where none fits, or compiles.  `problem`
    is of one lane, the first."""
    chosen = overrides() if chosen is None else chosen
    return _lane_plan(problem, lanes, device, chosen, rejected(problem, device, lanes))


@functools.lru_cache(maxsize=4096)
def _lane_plan(problem: Problem, lanes: Lanes, device: Device, chosen: Choices, failed: Any) -> OneCta | CtaGroup | None:
    asked = dict(chosen)
    if device.capability < 80:
        return None
    fitting: list[OneCta | CtaGroup] = [*one_cta(problem, device, asked, lanes), *cta_group(problem, device, asked, lanes)]
    left = remaining([p for p in fitting if matches(p, asked)], failed)

    def cost(p: OneCta | CtaGroup) -> tuple[float, int]:
        return latency.lanes_us(problem, p, device, lanes), p.groups * p.ctas if isinstance(p, CtaGroup) else 0

    return min(left, key=cost, default=None)


def _no_choice(problem: Problem, device: Device, asked: Mapping[str, Any], fitting: Sequence[Plan]) -> str:
    asked = {name: value for name, value in asked.items() if name not in BESIDES}
    wanted = ", ".join(f"{name}={value!r}" for name, value in asked.items())
    there = []
    for regime in dict.fromkeys(p.regime for p in fitting):
        of = [p for p in fitting if p.regime == regime]
        values = {name: sorted({str(getattr(p, name)) for p in of if hasattr(p, name)}) for name in asked}
        there.append(f"{regime}: " + ", ".join(f"{name} {' | '.join(v)}" for name, v in values.items() if v))
    fewer = f"; its cooperative launches have {device.together} CTAs at most" if device.together is not None else ""
    return f"no plan of {problem} on {device.name} has {wanted}; there are {'; '.join(there)}{fewer}"


# ---- plans that failed ----------------------------------------------------------------------------------------------


def reject(problem: Problem, device: Device, p: Plan, why: str, lanes: Lanes = ONE) -> None:
    """The kernel of `p` did not compile: plan() gives the next one from now on."""
    with _lock:
        _rejected[_compiled_for(problem), device, lanes] = (*rejected(problem, device, lanes), (p, why))


def rejected(problem: Problem, device: Device, lanes: Lanes = ONE) -> Failures:
    """Plans that did not compile, and why"""
    return _rejected.get((_compiled_for(problem), device, lanes), ())


def failures() -> int:
    """How many plans did not compile so far, of any problem: what was decided when there were fewer may be out of date"""
    return sum(map(len, tuple(_rejected.values())))


def remaining(plans: Sequence[Any], failed: Failures) -> list[Any]:
    """Those whose kernel is not among the failed ones, of regimes in which not too many have failed"""
    kernels = {_kernel(p) for p, _ in failed}
    tried = Counter(p.regime for p, _ in failed)
    return [p for p in plans if _kernel(p) not in kernels and tried[p.regime] < _TRIES]


def _compiled_for(problem: Problem) -> Problem:
    """The problem as far as kernels depend on it: not on the batch or the models, and backward not on I"""
    return replace(problem, B=1, models=1, I=1 if problem.direction == "backward" else problem.I)


def _kernel(p: Plan) -> Plan:
    """The plan as far as its kernel depends on it"""
    return replace(p, groups=1, reason="") if isinstance(p, CtaGroup) else replace(p, reason="")
