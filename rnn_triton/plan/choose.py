"""From a problem and a device to the plan that runs it: pure, total, deterministic.

The choice is, in this order: what `overriding` asks for; what measured.json says for the problem; one CTA where it holds
W_hh; the smallest practical time of the latency model (latency.py) over all plans that fit (candidates.py).  Every problem
on a device of compute capability 8.0 or newer has a plan; UnsupportedError says which device is older.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from dataclasses import fields as fields_of
from pathlib import Path
from typing import Any

from ..errors import UnsupportedError
from . import hardware, latency
from .candidates import _FORMS, _Form, candidates, kind
from .hardware import Device
from .problem import DTYPES, ONE, SIZES, CtaGroup, Lanes, OneCta, PerStep, Plan, Problem

__all__ = [
    "DTYPES", "PLANNED", "PLANNED_OTHERWISE", "SIZES", "Plan", "Problem", "candidates", "overriding", "overrides", "plan",
    "reject", "rejected", "_FORMS", "_Form",
]  # fmt: skip

_OF_PLANS = {"regime"} | {f.name for regime in (OneCta, CtaGroup, PerStep) for f in fields_of(regime)} - {"reason"}
BESIDES = {"lanes"}  # what is no plan's: how many layers or directions a launch takes at most
CHOICES = _OF_PLANS | BESIDES

Choices = tuple[tuple[str, Any], ...]
Failures = tuple[tuple[Plan, str], ...]

_lock = threading.Lock()
_open: list[dict[str, Any]] = []  # of every `overriding` that is open, in order
_overrides: Choices = ()  # all of them together
_rejected: dict[tuple[Problem, Device, Lanes], Failures] = {}
_TRIES = 4  # plans of a regime that may fail to compile before the regime is given up


# ---- the choice -----------------------------------------------------------------------------------------------------


def plan(problem: Problem, device: Device, chosen: Choices | None = None) -> Plan:
    """The configuration for this problem on this device, under the overrides `chosen`, by default those that are open.

    UnsupportedError: the device is older than Ampere, or everything failed to compile.  ValueError: an override that no
    plan of the problem satisfies."""
    return _decide(problem, device, _overrides if chosen is None else chosen, rejected(problem, device))


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
    found = _measured(problem, device, found) or found
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


# ---- overrides ------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def overriding(**choices: Any) -> Iterator[None]:
    """While open, plans of the whole process have these values: `regime` ("one_cta", "cta_group", "per_step"), `lanes`, and the
    fields of a plan, such as block_b, protocol or w_ih_home (all, with their values: rnn_triton/plan/problem.py; docs/cta_group.md).

    `lanes`: how many layers of a stack, or directions, a launch holds at most; 1: each has its own.  `w_ih_home` is about
    forward passes: backward ones project nothing.  Blocks nest; the inner value wins.  On CPU tensors nothing is planned.
    ValueError: on entry if no plan has such a field, at a call if no plan of its problem has these values."""
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
    """The choices of the open `overriding`, hashable: what a cache of plans must have in its key."""
    return _overrides


def matches(p: Plan, choices: Mapping[str, Any]) -> bool:
    for name, value in choices.items():
        if name in BESIDES or (name == "w_ih_home" and p.w_ih_home == "none"):
            continue
        if getattr(p, name, None) != value:
            return False
    return True


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


# ---- measured choices -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Measured:
    """The choices that were fastest where they were measured, for one model: a row of measured.json."""

    device: str  # part of the device's name
    direction: str
    dtype: str
    precision: str | None
    H: int
    B: tuple[int, int]  # first and last
    choices: Mapping[str, Any]  # as of `overriding`

    def covers(self, problem: Problem, device: Device) -> bool:
        same = (self.direction, self.dtype, self.precision, self.H) == (
            problem.direction, problem.dtype, problem.precision, problem.H,
        )  # fmt: skip
        return same and problem.models == 1 and self.device in device.name and self.B[0] <= problem.B <= self.B[1]


def read_measured(text: str) -> list[Measured]:
    """The rows of a table; ValueError where one is not as it should be, or where two cover the same problem."""
    names = {f.name for f in fields_of(Measured)}
    rows: list[Measured] = []
    for number, row in enumerate(json.loads(text)):
        where = f"measured choices, row {number}"
        if set(row) != names:
            raise ValueError(f"{where}: expected {', '.join(sorted(names))}, got {', '.join(sorted(row))}")
        for name, allowed in (
            ("direction", ("forward", "backward")),
            ("dtype", tuple(DTYPES.values())),
            ("precision", (None,) if row["dtype"] != "fp32" else ("tf32", "tf32x3", "ieee")),
        ):
            if row[name] not in allowed:
                raise ValueError(f"{where}: {name} must be one of {allowed}, got {row[name]!r}")
        first, last = row["B"]
        if not 1 <= first <= last or row["H"] < 1:
            raise ValueError(f"{where}: H must be positive and B a range from 1, got {row['H']} and {row['B']}")
        if not row["choices"] or set(row["choices"]) - _OF_PLANS:
            raise ValueError(f"{where}: choices must be among {', '.join(sorted(_OF_PLANS))}, got {row['choices']}")
        new = Measured(**{**row, "B": (first, last)})
        for old in rows:
            apart = new.B[1] < old.B[0] or old.B[1] < new.B[0]
            if replace(new, B=old.B, choices={}) == replace(old, choices={}) and not apart:
                raise ValueError(f"{where}: covers what another row covers: {row}")
        rows.append(new)
    return rows


@functools.cache
def _table() -> list[Measured]:
    return read_measured((Path(__file__).parent / "measured.json").read_text(encoding="utf-8"))


def _measured(problem: Problem, device: Device, plans: Sequence[Plan]) -> list[Plan]:
    """Those of the plans that a measured row chooses; none where no row covers the problem or its choice is gone"""
    for row in _table():
        if row.covers(problem, device):
            return [p for p in plans if matches(p, row.choices)]
    return []


# ---- what is compiled ahead of time ---------------------------------------------------------------------------------

PLANNED: list[tuple[Problem, Device]]  # problems that reach every kind of plan
PLANNED_OTHERWISE: list[
    tuple[Problem, Device, dict[str, Any]]
]  # and plans for overriding(**choices): what none chooses


def __getattr__(name: str) -> Any:
    planned: dict[str, Callable[[], Iterator[Any]]] = {"PLANNED": _planned, "PLANNED_OTHERWISE": _planned_otherwise}
    if name in planned:  # a second's work: not at import
        value = globals()[name] = list(planned[name]())
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _planned() -> Iterator[tuple[Problem, Device]]:
    yield from _planned_single_cta()
    yield from _planned_grid()


def _planned_single_cta() -> Iterator[tuple[Problem, Device]]:
    """The largest I of each home of W_ih, the smallest, and ragged shapes."""
    small = hardware.RECORDS["sm_86"]  # 99 KB of shared memory, the least of all
    for problem in (
        Problem("forward", 8, 128, 128, "fp32", "ieee", "tanh"),
        Problem("backward", 8, 128, 128, "fp32", "ieee", "tanh"),
        Problem("forward", 8, 512, 128, "bf16", None, "tanh"),
        Problem("forward", 8, 256, 256, "bf16", None, "tanh"),
        Problem("forward", 8, 64, 128, "fp32", "tf32x3", "tanh"),
        Problem("forward", 8, 1000, 64, "fp64", None, "tanh"),
    ):
        yield problem, small
    for capability in (90, 80, 100):
        device = hardware.RECORDS[f"sm_{capability}"]
        kinds = [("bf16", None), ("fp32", "tf32"), ("fp32", "tf32x3"), ("fp32", "ieee"), ("fp64", None)]
        if capability == 90:
            kinds.append(("fp16", None))  # bf16's plans with another tanh
        for dtype, precision in kinds:
            form = _FORMS[kind(Problem("forward", 8, 1, 16, dtype, precision, "tanh"))]
            for h_pad in (16, 64, 128, 256):
                if h_pad > form.h_max:
                    continue
                wide = int(h_pad == 256)
                for B in (8, 4096) if dtype == "bf16" and not wide else (8,):
                    homes = set()
                    for I in (form.registers[wide] * form.chunk, form.shared[wide] * form.chunk, 1000, 8):
                        problem = Problem("forward", B, I, h_pad, dtype, precision, "tanh")
                        if I and (I == 8 or plan(problem, device).w_ih_home not in homes):
                            homes.add(plan(problem, device).w_ih_home)
                            yield problem, device
                    yield Problem("backward", B, h_pad, h_pad, dtype, precision, "tanh"), device
                    if wide:  # padded, but in whole vectors
                        yield Problem("forward", B, 64, h_pad - 4, dtype, precision, "tanh"), device
                        yield Problem("backward", B, 64, h_pad - 4, dtype, precision, "tanh"), device
                    if h_pad >= 64:
                        yield Problem("forward", B, h_pad - 1, h_pad - 3, dtype, precision, "relu"), device
                        yield Problem("backward", B, h_pad - 1, h_pad - 3, dtype, precision, "relu"), device


_GRID_SIZES = (320, 384, 512, 768, 1000, 1024, 1536, 1760, 2048, 2560, 3072, 4096)


def _planned_grid() -> Iterator[tuple[Problem, Device]]:
    """Sizes beyond one CTA wherever the planner keeps W_hh on chip, each different kernel once"""
    seen = set()
    for device in hardware.RECORDS.values():
        kinds = [("bf16", None, _GRID_SIZES, (8, 64)), ("fp32", "tf32", (384, 1000, 1024, 2048), (8,))]
        kinds += [("bf16", None, (1000, 1024), (256,)), ("bf16", None, (512,), (1024,))]  # batch tiles of 32 rows
        if device.capability == 90:
            kinds.append(("fp16", None, (384, 1000, 1024, 4096), (8,)))
            kinds.append(("fp32", "tf32x3", (384, 1000, 1024, 1536), (8,)))
        for dtype, precision, sizes, batches in kinds:
            for H, B in itertools.product(sizes, batches):
                for direction, I in (("forward", H), ("forward", 64), ("backward", H)):
                    problem = Problem(direction, B, I, H, dtype, precision, "tanh")
                    p = plan(problem, device)
                    if not isinstance(p, CtaGroup):
                        continue
                    projected = p.w_ih_home not in ("gemm", "none")
                    kernel = replace(problem, B=0, I=I if projected else 0), replace(p, groups=0, reason=""), device
                    if kernel not in seen:
                        seen.add(kernel)
                        yield problem, device


def _planned_otherwise() -> Iterator[tuple[Problem, Device, dict[str, Any]]]:
    for device in hardware.RECORDS.values():
        for direction, H, dtype, precision, choices in (
            ("forward", 1024, "bf16", None, {"protocol": "counter"}),
            ("backward", 1024, "bf16", None, {"protocol": "counter"}),
            ("forward", 384, "fp32", "tf32", {"protocol": "counter"}),
            ("forward", 1024, "bf16", None, {"regime": "cta_group", "w_ih_home": "shared"}),
            ("forward", 384, "fp32", "tf32", {"regime": "cta_group", "w_ih_home": "shared"}),
            ("forward", 512, "bf16", None, {"regime": "cta_group", "block_b": 32}),
            ("backward", 384, "fp32", "tf32", {"block_b": 32}),
            ("forward", 384, "fp32", "tf32x3", {"block_b": 32}),
            ("forward", 1024, "bf16", None, {"x_loads": "before", "look_every": 1, "probe_delay": 0}),
            ("backward", 1024, "bf16", None, {"look_every": 1, "probe_delay": 0}),
        ):
            yield Problem(direction, 8, H, H, dtype, precision, "tanh"), device, choices
