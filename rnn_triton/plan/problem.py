"""Defines what the planner decides about: problems, and the plans that run them.  Data only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch

DTYPES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32", torch.float64: "fp64"}
SIZES = {"bf16": 2, "fp16": 2, "fp32": 4, "fp64": 8}


@dataclass(frozen=True)
class Problem:
    """One pass of one layer in one direction; T does not matter to a plan."""

    direction: str  # "forward", "backward"
    B: int
    I: int
    H: int
    dtype: str  # "bf16", "fp16", "fp32", "fp64"
    precision: str | None  # "tf32", "tf32x3", "ieee" for fp32, else None
    cell: str  # its name in cells/: "elman_tanh", "gru", "lstm" and so on
    models: int = 1  # of an ensemble: problems of the same sizes, each with weights of its own
    recompute: bool = False  # forward: no more is saved than launch/recompute.py needs to compute again what the cell keeps
    sequences: tuple[str, ...] = ()  # of "lengths", "reset" and "restart", in this order, those that a call gives (cells/sequences.py)


@dataclass(frozen=True)
class OneCta:
    """A launch of kernels/one_cta.py: one CTA holds all of W_hh for its batch rows."""

    regime: ClassVar[str] = "one_cta"
    ensembles: ClassVar[bool] = True  # one launch runs all models

    block_b: int  # batch rows of a CTA
    warps: int
    formulation: str  # kernels/fragments.py: "mma16", "mma32", "fma"
    precision: str  # of tl.dot
    accuracy: str  # kernels/activations.py
    h_pad: int
    w_ih_home: str  # "registers", "shared", "gemm" (projected before the launch), "none" (backward)
    chunk: int  # inputs a tile of the projection
    chains: int  # independent accumulators of the recurrent product
    x_depth: int  # forward: number of steps whose x, or what the GEMM made of it, a thread holds before it is used
    pad_w_hh: bool  # the launch pads W_hh to h_pad x h_pad in global memory first
    reason: str


@dataclass(frozen=True)
class CtaGroup:
    """A cooperative launch of kernels/cta_group.py: `groups` groups of `ctas` CTAs, each CTA `units` rows of W_hh."""

    regime: ClassVar[str] = "cta_group"
    ensembles: ClassVar[bool] = False

    block_b: int  # batch rows of a tile
    warps: int  # each takes a part of K
    formulation: str  # kernels/fragments.py: "mma16", "mma32"
    precision: str  # of tl.dot
    accuracy: str  # kernels/activations.py
    units: int  # hidden units a CTA computes
    ctas: int  # of a group
    groups: int  # of batch tiles; tile i belongs to group i % groups
    w_hh_shared: int  # K tiles of W_hh in shared memory, the rest in registers
    w_ih_home: str  # "registers", "shared", "gemm" (projected before the launch), "none" (backward)
    protocol: str  # "sentinel", "counter"
    x_loads: str  # of the next x: "before" the gather of the state, "behind" it
    look_every: int  # tiles and steps from one look at the error word to the next, a power of 2
    probe_delay: int  # cycles from publishing a tile to the next gather of it, at least, where a group has one tile
    chains: int  # independent accumulators
    reason: str


@dataclass(frozen=True)
class Bundle:
    """The recurrences that a launch of kernels/one_cta.py or kernels/cta_group.py carries, along the second axis of its programs:
    layers of a stack, both directions of a layer, or one recurrence alone."""

    count: int = 1
    linked: bool = False  # layers, each fed by the one before it; else directions
    dropout: bool = False  # between linked recurrences

    def names(self, direction: str, first: int = 0) -> tuple[str, ...]:
        """Returns what the recurrences are called, in the order in which they run.  `first` is the number of the bottom layer."""
        if not self.linked:
            return ("",) if self.count == 1 else (f"layer {first} forwards", f"layer {first} backwards in time")
        layers = [f"layer {first + n}" for n in range(self.count)]
        return tuple(layers if direction == "forward" else layers[::-1])


ONE = Bundle()


@dataclass(frozen=True)
class PerStep:
    """A launch of kernels/per_step.py for every time step, x projected before by a GEMM: W_hh is read again every step."""

    regime: ClassVar[str] = "per_step"
    ensembles: ClassVar[bool] = False

    block_b: int  # rows and
    block_h: int  # columns of a program's tile of h_t
    block_k: int
    warps: int
    stages: int
    formulation: str  # "tiles": Triton's own layouts
    precision: str  # of tl.dot
    accuracy: str  # kernels/activations.py
    w_ih_home: str  # "gemm", "none" (backward)
    reason: str


Plan = OneCta | CtaGroup | PerStep


def plan_fields(plan: Plan) -> dict[str, Any]:
    """Returns the plan as a record's JSON object."""
    return {"regime": plan.regime, **asdict(plan)}


def plan_from_fields(values: Mapping[str, Any]) -> Plan:
    """Returns the plan with these `plan_fields`.  Raises ValueError if no plan of this version has them."""
    regimes: dict[str, type[Plan]] = {regime.regime: regime for regime in (OneCta, CtaGroup, PerStep)}
    values = dict(values)
    regime = values.pop("regime", None)
    if regime not in regimes:
        raise ValueError(f"regime must be one of {', '.join(regimes)}, got {regime!r}")
    try:
        return regimes[regime](**values)
    except TypeError as error:  # it names the field
        raise ValueError(f"not the fields of a {regime} plan: {error}") from None


def row_units(H: int, dtype: str) -> int:
    """Returns H rounded up to whole 16-byte vectors: the row length, in elements, of what a group exchanges."""
    vector = 16 // SIZES[dtype]
    return -(-H // vector) * vector


def is_wide(I: int, H: int, dtype: str) -> bool:
    """True if x has more columns than the layers of a stack, counted in whole vectors.  Then a GEMM projects it before a launch of
    several linked recurrences, whose W_in all have H columns."""
    return row_units(I, dtype) > row_units(H, dtype)
