"""Which layers and directions of a network share a launch, and the plan of such a launch.

Where a wavefront (lanes.py) of all layers fits the device it is one launch forward and one backward; where it does not, or
where the latency model finds more launches faster, the stack is cut into runs of layers as equal as can be.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from ..errors import UnsupportedError
from . import latency
from .choose import failures, lane_plan, plan
from .hardware import Device
from .overriding import Choices, overrides
from .problem import ONE, CtaGroup, Lanes, OneCta, Plan, Problem


def launches(
    problem: Problem, layers: int, bidirectional: bool, dropout: bool, device: Device, chosen: Choices | None = None
) -> tuple[Lanes, ...]:
    """What each launch of a pass holds, bottom layer first: layers, or both directions of one, or a layer in one direction
    (ONE).  `problem`: the bottom layer's, of either pass, with its I.  Both passes have the same launches, chosen for the
    time of both, so that inference runs what training runs."""
    chosen = overrides() if chosen is None else chosen
    return _launches(problem, layers, bidirectional, dropout, device, chosen, failures())


@functools.lru_cache(maxsize=1024)
def _launches(
    problem: Problem, layers: int, bidirectional: bool, dropout: bool, device: Device, chosen: Choices, failed: int
) -> tuple[Lanes, ...]:
    if bidirectional:
        each = [replace(problem, I=I) for I in (problem.I, *[2 * problem.H] * (layers - 1))]
        both = [together(of, device, chosen) for of in each]
        return tuple(lanes for of in both for lanes in ([Lanes(2)] if of else [ONE, ONE]))
    sizes = runs(problem, layers, dropout, device, chosen)
    return tuple(ONE if size == 1 else Lanes(size, True, dropout) for size in sizes)


def runs(problem: Problem, layers: int, dropout: bool, device: Device, chosen: Choices) -> tuple[int, ...]:
    """How many layers of one direction each launch takes, bottom layer first."""
    above = replace(problem, I=problem.H)  # of every run but the bottom one

    @functools.cache
    def us(of: Problem, size: int) -> float:
        if size == 1:
            return _alone(of, device, chosen)
        return _shared(of, Lanes(size, True, dropout), device, chosen)

    best, least = (1,) * layers, math.inf
    for count in range(layers, 0, -1):
        n, more = divmod(layers, count)
        sizes = (n + 1,) * more + (n,) * (count - more)
        total = us(problem, sizes[0]) + sum(us(above, size) for size in sizes[1:])
        if total <= least and total < math.inf:
            best, least = sizes, total
    return best


def together(problem: Problem, device: Device, chosen: Choices) -> bool:
    """Do both directions of a layer run in one launch?"""
    us = _shared(problem, Lanes(2), device, chosen)
    return us < math.inf and us <= 2 * _alone(problem, device, chosen)


class Part(NamedTuple):
    """A launch for each pass"""

    lanes: Lanes
    first: int  # layer, or layer and direction in the order of h_n
    problem: Problem  # forward, of the first lane

    def plan(self, direction: str, device: Device) -> tuple[Problem, Plan]:
        """What runs in one of the passes: the problem of a lane, and the configuration"""
        of = of_direction(self.problem, direction)
        if self.lanes.count == 1:
            return of, plan(of, device)
        p = lane_plan(of, self.lanes, device)
        assert p is not None, "launches() takes lanes that have a plan in both passes"
        return of, p

    def step(
        self, direction: str, device: Device, T: int, constants: latency.Constants = latency.CONSTANTS
    ) -> tuple[float, dict[str, float]]:
        """Estimated us per step of T, and its parts; T steps of a wavefront take `latency.fill` more"""
        of, p = self.plan(direction, device)
        if self.lanes.count == 1:
            found = latency.step(of, p, device, constants)
            return found.practical_us, found.parts
        assert isinstance(p, OneCta | CtaGroup)
        us, parts = latency.lanes_step(of, p, device, self.lanes, constants)
        longer = (T + latency.fill(p, self.lanes)) / T
        return us * longer, {name: value * longer for name, value in parts.items()}


def parts(problem: Problem, layers: int, bidirectional: bool, sharing: Sequence[Lanes]) -> list[Part]:
    """The launches that hold `sharing`, in order.  `problem`: the bottom layer's, forward"""
    directions = 2 if bidirectional else 1
    found: list[Part] = []
    at = 0
    for lanes in sharing:
        I = problem.I if at < directions else directions * problem.H
        found.append(Part(lanes, at, replace(problem, I=I)))
        at += lanes.count
    assert at == layers * directions, (at, layers, directions)
    return found


def of_direction(problem: Problem, direction: str) -> Problem:
    """The problem of one of the passes, of one in the forward pass, or in either for linked lanes"""
    return replace(problem, direction=direction, I=problem.I if direction == "forward" else 1)


def _shared(problem: Problem, lanes: Lanes, device: Device, chosen: Choices) -> float:
    """Estimated time of a step forward and one backward, where a launch of these lanes has a plan for both; else inf"""
    if lanes.count > dict(chosen).get("lanes", lanes.count):
        return math.inf
    total = 0.0
    for direction in ("forward", "backward"):
        of = of_direction(problem, direction)
        p = lane_plan(of, lanes, device, chosen)
        total += math.inf if p is None else latency.lanes_us(of, p, device, lanes)
    return total


def _alone(problem: Problem, device: Device, chosen: Choices) -> float:
    """The same of one layer in one direction; inf where the overrides ask for what one of the passes does not have"""
    of = [of_direction(problem, direction) for direction in ("forward", "backward")]
    try:
        return sum(latency.practical_us(each, plan(each, device, chosen), device) for each in of)
    except (ValueError, UnsupportedError):
        return math.inf
