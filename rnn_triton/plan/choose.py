"""Chooses the plan that runs a problem on a device: pure, total, deterministic.

From all plans that fit (candidates.py) it takes first those that `overriding` asks for (overriding.py), then those that a
measurement found fastest (measured.py), then those of one CTA, if it holds W_hh, and at last the one of the smallest practical time
in the latency model (latency.py).  Every problem on a device of compute capability 8.0 or newer has a plan; for an older device
UnsupportedError is raised.
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
from .hardware import Device, too_old
from .measured import measured_plans
from .overriding import BESIDES, Choices, matches, overrides
from .problem import ONE, Bundle, CtaGroup, OneCta, PerStep, Plan, Problem

Failures = tuple[tuple[Plan, str], ...]

_lock = threading.Lock()
_rejected: dict[tuple[Problem, Device, Bundle], Failures] = {}
_TRIES = 4  # plans of a regime that may fail to compile before the regime is given up


def plan(problem: Problem, device: Device, chosen: Choices | None = None) -> Plan:
    """Returns the plan for this problem on this device, under the overrides `chosen`, by default those that are open.

    Raises UnsupportedError if the device is older than Ampere or every plan failed to compile, and ValueError if no plan of the
    problem agrees with the overrides."""
    return _decide(problem, device, overrides() if chosen is None else chosen, rejected(problem, device))


@functools.lru_cache(maxsize=4096)
def _decide(problem: Problem, device: Device, chosen: Choices, failed: Failures) -> Plan:
    if (why := too_old(device)) is not None:
        raise UnsupportedError(why)
    choices = dict(chosen)
    fitting = list(candidates(problem, device, choices))
    plans = [p for p in fitting if matches(p, choices)]
    if not plans:
        raise ValueError(_no_choice(problem, device, choices, fitting))
    plans = remaining(plans, failed)
    if not plans:
        why = "; ".join(dict.fromkeys(why for _, why in (failed[0], failed[-1])))
        raise UnsupportedError(f"no plan for {problem} compiles on {device.name}: {why}")
    plans = measured_plans(problem, device, plans) or plans
    # The rule until a GPU has measured it: one CTA, which exchanges nothing, wherever it holds W_hh.
    plans = [p for p in plans if p.regime == "one_cta"] or plans
    return best(problem, device, plans)


# A GEMM before the launch costs another launch and T*B*H values in memory: it has to be worth them.
_GEMM_ADVANTAGE = 1.05
# What a launch per step is estimated to cost is mostly the host's time for it, the least certain constant of the model;
# until it is measured the host must not decide a near tie against keeping W_hh on chip.
_PER_STEP_ADVANTAGE = 1.2


def best(problem: Problem, device: Device, plans: Sequence[Plan]) -> Plan:
    """Returns the plan of least practical time; among equals the one of fewest CTAs, then the first."""

    def cost(p: Plan) -> tuple[float, int]:
        us = latency.practical_us(problem, p, device)
        if isinstance(p, CtaGroup):
            return us * (_GEMM_ADVANTAGE if p.w_ih_home == "gemm" else 1.0), p.groups * p.ctas
        return us * (_PER_STEP_ADVANTAGE if isinstance(p, PerStep) else 1.0), 0

    return min(plans, key=cost)


def shared_plan(problem: Problem, bundle: Bundle, device: Device, chosen: Choices | None = None) -> OneCta | CtaGroup | None:
    """Returns the plan of least estimated time for a launch of these recurrences; None if no plan fits, or none compiles.
    `problem` is that of the first recurrence."""
    chosen = overrides() if chosen is None else chosen
    return _shared_plan(problem, bundle, device, chosen, rejected(problem, device, bundle))


@functools.lru_cache(maxsize=4096)
def _shared_plan(problem: Problem, bundle: Bundle, device: Device, chosen: Choices, failed: Failures) -> OneCta | CtaGroup | None:
    if too_old(device) is not None:
        return None
    choices = dict(chosen)
    fitting: list[OneCta | CtaGroup] = [*one_cta(problem, device, choices, bundle), *cta_group(problem, device, choices, bundle)]
    plans = remaining([p for p in fitting if matches(p, choices)], failed)

    def cost(p: OneCta | CtaGroup) -> tuple[float, int]:
        return latency.shared_us(problem, p, device, bundle), p.groups * p.ctas if isinstance(p, CtaGroup) else 0

    return min(plans, key=cost, default=None)


def _no_choice(problem: Problem, device: Device, choices: Mapping[str, Any], fitting: Sequence[Plan]) -> str:
    """Returns the message that no plan agrees with the choices, and which values plans of each regime have."""
    choices = {name: value for name, value in choices.items() if name not in BESIDES}
    wanted = ", ".join(f"{name}={value!r}" for name, value in choices.items())
    regimes = []
    for regime in dict.fromkeys(p.regime for p in fitting):
        plans = [p for p in fitting if p.regime == regime]
        values = {name: sorted({str(getattr(p, name)) for p in plans if hasattr(p, name)}) for name in choices}
        regimes.append(f"{regime}: " + ", ".join(f"{name} {' | '.join(v)}" for name, v in values.items() if v))
    fewer = f"; its cooperative launches have {device.together} CTAs at most" if device.together is not None else ""
    return f"no plan of {problem} on {device.name} has {wanted}; there are {'; '.join(regimes)}{fewer}"


# ---- plans that failed ----------------------------------------------------------------------------------------------


def reject(problem: Problem, device: Device, p: Plan, why: str, bundle: Bundle = ONE) -> None:
    """Records that the kernel of `p` did not compile, so that plan() and shared_plan() return another plan from now on."""
    with _lock:
        _rejected[_compiled_for(problem), device, bundle] = (*rejected(problem, device, bundle), (p, why))


def rejected(problem: Problem, device: Device, bundle: Bundle = ONE) -> Failures:
    """Returns the plans of a problem that did not compile, each with the reason."""
    return _rejected.get((_compiled_for(problem), device, bundle), ())


def failures() -> int:
    """Returns the number of plans, for any problem, that failed to compile so far.  It is part of cache keys, because a decision
    made before the last failure may be stale."""
    return sum(map(len, tuple(_rejected.values())))


def remaining(plans: Sequence[Any], failed: Failures) -> list[Any]:
    """Returns the plans whose kernel has not failed, from regimes in which fewer than _TRIES plans have failed."""
    kernels = {_kernel(p) for p, _ in failed}
    tried = Counter(p.regime for p, _ in failed)
    return [p for p in plans if _kernel(p) not in kernels and tried[p.regime] < _TRIES]


def _compiled_for(problem: Problem) -> Problem:
    """Returns the problem without what kernels do not depend on: the batch, the models, and I in the backward pass."""
    return replace(problem, B=1, models=1, I=1 if problem.direction == "backward" else problem.I)


def _kernel(p: Plan) -> Plan:
    """Returns the plan without what its kernel does not depend on."""
    return replace(p, groups=1, reason="") if isinstance(p, CtaGroup) else replace(p, reason="")
