"""Prepares launches of kernels/per_step.py: projects x by a GEMM, then launches the kernel for every time step.

They are plain launches on the current stream: not a CUDA graph, but nothing keeps them from being captured in one.
"""

from __future__ import annotations

import functools
import itertools
import math
from typing import Any, NamedTuple

from torch import Tensor
from triton.runtime import driver

from ..interpret import interpreter
from ..kernels import facts
from ..kernels.per_step import per_step
from ..plan.hardware import Device
from ..plan.problem import SIZES, PerStep, Problem, row_units
from . import gemm
from .launcher import POINTERS, Launcher, cell, compiled_ahead, current, tile
from .operands import NOTHING, States, empty, missing, padded, strided, unpadded, whole


class Operands(NamedTuple):
    """The tensors of a launch, in the order of the kernel's pointer parameters.  None stands for an absent one, never read."""

    u: Tensor | None = None
    w_rec: Tensor | None = None
    state: Tensor | None = None
    first: Tensor | None = None
    saved: Tensor | None = None
    out: Tensor | None = None


new_operands = functools.partial(Operands.__new__, Operands)  # as in operands.py
FORWARD = tuple(name not in ("first", "saved") for name in Operands._fields)
BACKWARD = (True,) * len(Operands._fields)


class Steps:
    """The launches of a call, prepared for a problem and a plan, to be called as recurrence.py's Recurrence is."""

    def __init__(self, problem: Problem, plan: PerStep) -> None:
        self.problem = problem
        self.plan = plan
        self.row = row_units(problem.H, problem.dtype)
        lacking = self.row - problem.H
        self.state, self.recurrent, self.rows = missing(lacking), missing(lacking, lacking), missing(0, lacking)
        self.unit = _unit(problem)
        grid = (math.ceil(problem.B / plan.block_b) * math.ceil(self.row / plan.block_h), 1, 1)
        self.launch = Launcher(per_step, grid, functools.partial(constants, problem, plan), options(problem, plan))

    def forward(
        self, x: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor | None, b_hh: Tensor | None, states: States,
        reverse: bool = False, keep: bool = False, vectors: Tensor | None = None,
    ) -> tuple[Tensor, tuple[Tensor, ...], Tensor | None]:  # fmt: skip
        (h0,), (T, B, _) = states, x.shape
        # Padding the smallest operands of the projection gives u whole rows.
        w_ih = padded(w_ih, self.rows)
        b_ih, b_hh = (None if b is None else padded(b, self.state) for b in (b_ih, b_hh))
        u, *strides, _ = strided(gemm.project(x, w_ih, b_ih, b_hh, self.problem.precision), self.unit)
        # Without h0 zeros are multiplied, as in torch: 0 * W_hh is NaN where W_hh is infinite.
        before = x.new_zeros(B, self.row) if h0 is None else whole(h0, self.state)
        y = empty(x, T, B, self.row)
        self._run(y, before, self.row, reverse, strides, u=u, w_rec=whole(w_hh, self.recurrent))
        y = unpadded(y, self.state)
        return y, (y[0 if reverse else T - 1].clone(),), None

    def backward(
        self, w_hh: Tensor, y: Tensor, kept: Tensor | None, dy: Tensor | None, dstates: States, reverse: bool = False,
        vectors: Tensor | None = None,
    ) -> tuple[Tensor, States]:  # fmt: skip
        (dhn,), (T, B, _) = dstates, y.shape
        strides = [0, 0]
        if dy is not None:
            dy, *strides, _ = strided(padded(dy, self.state), self.unit)
        dhn = None if dhn is None else whole(dhn, self.state)
        da = empty(y, T, B, self.row)
        saved = whole(y, self.state)
        w_rec = whole(w_hh, self.recurrent)
        self._run(da, da, 0, not reverse, strides, u=dy, w_rec=w_rec, first=dhn, saved=saved)
        return unpadded(da, self.state), NOTHING

    def _run(
        self, out: Tensor, state: Tensor, first_k: int, descending: bool, strides: list[int], **others: Tensor | None
    ) -> None:
        """Launches all steps, which write `out`.  The first step reads `state` and multiplies `first_k` columns of W_rec; each
        later one reads what the step before it has written, and multiplies all of W_rec."""
        T, B, row = out.shape
        times = range(T - 1, -1, -1) if descending else range(T)
        self.launch(new_operands(state=state, out=out, **others), out, (times[0], 0, first_k, B, *strides))
        tensors = new_operands(state=out, out=out, **others)
        kept = self.launch.kept.get(tuple([t is not None for t in tensors]))
        if kept is None or max(strides) >= 2**31:  # such strides are arguments of another type, and of another kernel
            with interpreter.accurate():
                for before, t in itertools.pairwise(times):
                    self.launch(tensors, out, (t, before, row, B, *strides))
            return
        # All further steps need what the launcher would look up for each of them.  Addresses may stand for tensors, and Triton
        # then need not ask the driver whose they are.
        kernel, constexprs = kept
        addresses = [(out if t is None else t).data_ptr() for t in tensors]
        with current(out.device):
            launch = kernel[self.launch.grid]
            stream = driver.active.get_current_stream(driver.active.get_current_device())
            for before, t in itertools.pairwise(times):
                launch(*addresses, t, before, row, B, *strides, *constexprs, stream=stream)


def compile_ahead(problem: Problem, plan: PerStep, device: Device) -> Any:
    """Returns the compiled kernel of a plan for a device, which need not be present: the variant with every optional tensor."""
    forward, pointer = problem.direction == "forward", POINTERS[problem.dtype]
    types = {"u_ptr": "*fp32"} if forward and problem.dtype != "fp64" else {}
    return compiled_ahead(
        per_step, constants(problem, plan, FORWARD if forward else BACKWARD),
        lambda name: types.get(name, pointer) if name.endswith("_ptr") else "i32", options(problem, plan), device.capability,
    )  # fmt: skip


def options(problem: Problem, p: PerStep) -> dict[str, int]:
    options = dict(num_warps=p.warps, num_stages=p.stages)
    if problem.dtype != "fp64" and problem.precision != "ieee":  # there ptxas would hoist loads until it runs out
        options["maxnreg"] = 255  # else ptxas spills a few registers to fit one more CTA on an SM
    return options


def constants(problem: Problem, p: PerStep, present: tuple[bool, ...]) -> dict[str, Any]:
    """Returns the constexpr parameters of the kernel, in its order.  `present` says of each of Operands whether it is there."""
    return dict(
        TILE=tile(facts.StepTile, problem, p),
        SHAPE=facts.StepShape(H=problem.H, row=row_units(problem.H, problem.dtype), u_unit=_unit(problem)),
        HAS=facts.Has.of(Operands._fields, present),
        CELL=cell(problem, p.accuracy),
    )


def _unit(problem: Problem) -> int:
    """Returns the elements in a 16-byte vector of u: forward the projected x, in fp32 or fp64; backward dy."""
    size = max(4, SIZES[problem.dtype]) if problem.direction == "forward" else SIZES[problem.dtype]
    return 16 // size
