"""Lets a caller choose in place of the planner, by `overriding(name=value)`, and says which plans agree with the choices."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any

from .problem import CtaGroup, OneCta, PerStep, Plan

PLAN_FIELDS = {"regime"} | {field.name for regime in (OneCta, CtaGroup, PerStep) for field in fields(regime)} - {"reason"}
BESIDES = {"recurrences"}  # choices that are no field of a plan
CHOICES = PLAN_FIELDS | BESIDES

Choices = tuple[tuple[str, Any], ...]

_lock = threading.Lock()
_open: list[dict[str, Any]] = []  # the choices of every `overriding` that is open, in order
_overrides: Choices = ()  # all of them combined


@contextlib.contextmanager
def overriding(**choices: Any) -> Iterator[None]:
    """Makes the planner choose only plans with these values, in the whole process, while the block is open.

    Names are `regime` ("one_cta", "cta_group", "per_step"), the fields of a plan, such as block_b, protocol or w_ih_home
    (rnn_triton/plan/problem.py lists them with their values; docs/cta_group.md explains some), and `recurrences`, the most layers
    of a stack, or directions of a layer, that a launch may carry: 1 gives each a launch of its own.  `w_ih_home` concerns forward
    passes only, because backward passes project nothing.  Blocks nest, and the inner value wins.  On CPU tensors nothing is
    planned.

    Raises ValueError on entry if no plan has such a field, and at a call if no plan of its problem has these values."""
    unknown = sorted(set(choices) - CHOICES)
    if unknown:
        raise ValueError(f"a plan has no {', '.join(unknown)}; it has {', '.join(sorted(CHOICES))}")
    for name, value in choices.items():
        if not isinstance(value, str | int):
            raise ValueError(f"{name} must be a string or a number, got {value!r}")
        if name in BESIDES and not (isinstance(value, int) and value >= 1):
            raise ValueError(f"{name} must be an integer of at least 1, got {value!r}")
    with _lock:
        _open.append(choices)
        _combine()
    try:
        yield
    finally:
        with _lock:
            del _open[next(i for i, other in enumerate(_open) if other is choices)]  # threads may close in any order
            _combine()


def _combine() -> None:
    global _overrides
    _overrides = tuple(sorted({name: value for choices in _open for name, value in choices.items()}.items()))


def overrides() -> Choices:
    """Returns the choices of every open `overriding` as a hashable value, which a cache of plans must have in its key."""
    return _overrides


def matches(p: Plan, choices: Mapping[str, Any]) -> bool:
    """True if the plan has the chosen values.  A plan that projects nothing agrees with any `w_ih_home`."""
    for name, value in choices.items():
        if name in BESIDES or (name == "w_ih_home" and p.w_ih_home == "none"):
            continue
        if getattr(p, name, None) != value:
            return False
    return True
