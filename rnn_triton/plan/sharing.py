"""Which layers and directions of a network share a launch.

Where a wavefront (launch/recurrence.py) of all layers fits the device it is one launch forward and one backward; where it does
not, or where the latency model finds more launches faster, the stack is cut into launches whose numbers of
layers are as equal as can be.
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
    """Returns what each launch of a pass carries, bottom layer first: layers, both directions of one, or a layer in one direction
    (ONE).  `problem` is the bottom layer's, of either pass, with its I.  Both passes have the same launches, chosen for the
    time of both, so that inference runs what training runs."""
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
    """Returns how many layers of one direction each launch takes, bottom layer first."""
    above = replace(problem, I=problem.H)  # for every launch but the bottom one

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
    """What one launch of each pass carries."""

    bundle: Bundle
    first: int  # layer, or layer and direction in the order of h_n
    problem: Problem  # forward, of the first layer or direction

    def plan(self, direction: str, device: Device) -> tuple[Problem, Plan]:
        """Returns what runs in one of the passes: the problem of each layer or direction, and the plan."""
        problem = in_direction(self.problem, direction)
        if self.bundle.count == 1:
            return problem, plan(problem, device)
        p = shared_plan(problem, self.bundle, device)
        assert p is not None, "launches() takes recurrences that have a plan in both passes"
        return problem, p

    def step(
        self, direction: str, device: Device, T: int, constants: latency.Constants = latency.CONSTANTS
    ) -> tuple[float, dict[str, float]]:
        """Returns the estimated us per step of T, what a wavefront takes besides T steps included, and its parts."""
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
    the bottom layer's, forward."""
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
    """Returns the problem of one of the passes, made of one in the forward pass (or, for linked recurrences, in either)."""
    return replace(problem, direction=direction, I=problem.I if direction == "forward" else 1)


def _shared(problem: Problem, bundle: Bundle, device: Device, chosen: Choices) -> float:
    """Returns the estimated us of a step forward and one backward of a launch of these recurrences; inf if a pass has no plan for it."""
    if bundle.count > dict(chosen).get("recurrences", bundle.count):
        return math.inf
    total = 0.0
    for direction in ("forward", "backward"):
        one = in_direction(problem, direction)
        p = shared_plan(one, bundle, device, chosen)
        total += math.inf if p is None else latency.shared_us(one, p, device, bundle)
    return total


def _alone(problem: Problem, device: Device, chosen: Choices) -> float:
    """Returns the estimated us of a step forward and one backward of one layer in one direction; inf if the overrides ask for what
    one of the passes does not have."""
    passes = [in_direction(problem, direction) for direction in ("forward", "backward")]
    try:
        return sum(latency.practical_us(one, plan(one, device, chosen), device) for one in passes)
    except (ValueError, UnsupportedError):
        return math.inf
