"""Decides which layers and directions of a network share a launch.

If all layers fit the device as one wavefront (launch/recurrence.py), they take one launch in each pass.  If they do not fit, or
if the latency model finds more launches faster, the stack is cut into launches with as equal numbers of layers as possible.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from ..errors import UnsupportedError
from . import latency
from .choose import failures, plan, shared_plan
from .hardware import Device
from .overriding import Choices, overrides
from .problem import ONE, Bundle, CtaGroup, OneCta, Plan, Problem


def launches(
    problem: Problem, layers: int, bidirectional: bool, dropout: bool, device: Device, chosen: Choices | None = None
) -> tuple[Bundle, ...]:
    """Returns what each launch of a pass carries, bottom layer first: layers, both directions of a layer, or one recurrence (ONE).

    `problem` is that of the bottom layer, in either pass, with its I.  The launches of the backward pass are those of the forward
    pass, chosen for the time of both, so that inference runs what training runs."""
    chosen = overrides() if chosen is None else chosen
    return _launches(problem, layers, bidirectional, dropout, device, chosen, failures())


@functools.lru_cache(maxsize=1024)
def _launches(
    problem: Problem, layers: int, bidirectional: bool, dropout: bool, device: Device, chosen: Choices, failed: int
) -> tuple[Bundle, ...]:
    if bidirectional:
        inputs = (problem.I, *[2 * problem.H] * (layers - 1))
        shared = [share_directions(replace(problem, I=I), device, chosen) for I in inputs]
        return tuple(bundle for both in shared for bundle in ([Bundle(2)] if both else [ONE, ONE]))
    sizes = layers_per_launch(problem, layers, dropout, device, chosen)
    return tuple(ONE if size == 1 else Bundle(size, True, dropout) for size in sizes)


def layers_per_launch(problem: Problem, layers: int, dropout: bool, device: Device, chosen: Choices) -> tuple[int, ...]:
    """Returns the number of layers that each launch carries, bottom layer first."""
    above = replace(problem, I=problem.H)  # of every launch but the bottom one

    @functools.cache
    def us(first: Problem, size: int) -> float:
        if size == 1:
            return _alone(first, device, chosen)
        return _shared(first, Bundle(size, True, dropout), device, chosen)

    best, least = (1,) * layers, math.inf
    for count in range(layers, 0, -1):
        n, more = divmod(layers, count)
        sizes = (n + 1,) * more + (n,) * (count - more)
        total = us(problem, sizes[0]) + sum(us(above, size) for size in sizes[1:])
        if total <= least and total < math.inf:
            best, least = sizes, total
    return best


def share_directions(problem: Problem, device: Device, chosen: Choices) -> bool:
    """True if both directions of a layer run in one launch."""
    us = _shared(problem, Bundle(2), device, chosen)
    return us < math.inf and us <= 2 * _alone(problem, device, chosen)


class Launch(NamedTuple):
    """A launch of each pass, and what it carries."""

    bundle: Bundle
    first: int  # the number of its first layer, or of its first recurrence in the order of h_n
    problem: Problem  # the forward problem of that layer or recurrence

    def plan(self, direction: str, device: Device) -> tuple[Problem, Plan]:
        """Returns the problem of a recurrence in this pass, and the plan of the launch."""
        problem = in_direction(self.problem, direction)
        if self.bundle.count == 1:
            return problem, plan(problem, device)
        p = shared_plan(problem, self.bundle, device)
        assert p is not None, "launches() takes recurrences that have a plan in both passes"
        return problem, p

    def step(
        self, direction: str, device: Device, T: int, constants: latency.Constants = latency.CONSTANTS
    ) -> tuple[float, dict[str, float]]:
        """Returns the estimated us per step of T, which include the steps that a wavefront takes in addition, and their parts."""
        problem, p = self.plan(direction, device)
        if self.bundle.count == 1:
            estimate = latency.step(problem, p, device, constants)
            return estimate.practical_us, estimate.parts
        assert isinstance(p, OneCta | CtaGroup)
        us, parts = latency.shared_step(problem, p, device, self.bundle, constants)
        longer = (T + latency.fill(p, self.bundle)) / T
        return us * longer, {name: value * longer for name, value in parts.items()}


def placed(problem: Problem, layers: int, bidirectional: bool, sharing: Sequence[Bundle]) -> list[Launch]:
    """Returns the launches that carry `sharing`, in order, each with its first layer and the problem of that layer.  `problem` is
    the forward problem of the bottom layer."""
    directions = 2 if bidirectional else 1
    launches: list[Launch] = []
    first = 0
    for bundle in sharing:
        I = problem.I if first < directions else directions * problem.H
        launches.append(Launch(bundle, first, replace(problem, I=I)))
        first += bundle.count
    assert first == layers * directions, (first, layers, directions)
    return launches


def in_direction(problem: Problem, direction: str) -> Problem:
    """Returns the problem in this pass of the recurrence whose forward problem is given (or, if it is linked, whose either)."""
    return replace(problem, direction=direction, I=problem.I if direction == "forward" else 1)


def _shared(problem: Problem, bundle: Bundle, device: Device, chosen: Choices) -> float:
    """Returns the estimated us of a forward and a backward step of a launch that carries `bundle`; inf if a pass has no plan."""
    if bundle.count > dict(chosen).get("recurrences", bundle.count):
        return math.inf
    total = 0.0
    for direction in ("forward", "backward"):
        one = in_direction(problem, direction)
        p = shared_plan(one, bundle, device, chosen)
        total += math.inf if p is None else latency.shared_us(one, p, device, bundle)
    return total


def _alone(problem: Problem, device: Device, chosen: Choices) -> float:
    """Returns the estimated us of a forward and a backward step of one recurrence; inf if a pass has no plan under the
    overrides."""
    passes = [in_direction(problem, direction) for direction in ("forward", "backward")]
    try:
        return sum(latency.practical_us(one, plan(one, device, chosen), device) for one in passes)
    except (ValueError, UnsupportedError):
        return math.inf
