"""Launches of kernels/per_step.py: x projected by a GEMM, then one launch a time step on the current stream.

They are plain launches: no CUDA graph of their own, and nothing that keeps them from being captured in one.
"""

from __future__ import annotations

import functools
import itertools
import math
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from triton.runtime import driver

from ..interpret import interpreter
from ..kernels.per_step import per_step
from ..plan.hardware import Device
from ..plan.problem import SIZES, PerStep, Problem, row_units
from . import gemm
from .launcher import CELLS, POINTERS, TRITON_DTYPES, Launcher, compiled_ahead, current
from .operands import empty, strided, whole

# The pointer parameters of the kernel, in order; an absent tensor is never read.
TENSORS = ("u", "w_rec", "state", "first", "saved", "out")
FORWARD = tuple(name not in ("first", "saved") for name in TENSORS)
BACKWARD = (True,) * len(TENSORS)


class Site:
    """What is known of a call from its problem and plan alone."""

    def __init__(self, problem: Problem, plan: PerStep) -> None:
        self.problem = problem
        self.plan = plan
        self.row = row_units(problem.H, problem.dtype)
        self.padding = self.row - problem.H
        self.unit = _unit(problem)
        grid = (math.ceil(problem.B / plan.block_b) * math.ceil(self.row / plan.block_h), 1, 1)
        self.launch = Launcher(per_step, grid, functools.partial(constants, problem, plan), options(problem, plan))

    def forward(
        self,
        x: Tensor,
        w_ih: Tensor,
        w_hh: Tensor,
        b_ih: Tensor | None,
        b_hh: Tensor | None,
        h0: Tensor | None,
        reverse: bool,
    ) -> tuple[Tensor, Tensor]:
        T, B, _ = x.shape
        if self.padding:  # the smallest operands of the projection, so that u has whole rows
            w_ih = pad(w_ih, (0, 0, 0, self.padding))
            b_ih, b_hh = (None if b is None else pad(b, (0, self.padding)) for b in (b_ih, b_hh))
        u, *strides = strided(gemm.project(x, w_ih, b_ih, b_hh, self.problem.precision), self.unit)
        # Without h0 zeros are multiplied, as in torch: 0 * W_hh is NaN where W_hh is infinite.
        before = x.new_zeros(B, self.row) if h0 is None else whole(self._rows(h0))
        y = empty(x, T, B, self.row)
        self._run((u, self._w_rec(w_hh), before, None, None, y), y, self.row, reverse, strides)
        y = self._units(y)
        return y, y[0 if reverse else T - 1].clone()

    def backward(
        self, w_hh: Tensor, y: Tensor, dy: Tensor | None, dhn: Tensor | None, reverse: bool
    ) -> Tensor:
        T, B, _ = y.shape
        strides = [0, 0]
        if dy is not None:
            dy, *strides = strided(self._rows(dy), self.unit)
        dhn = None if dhn is None else whole(self._rows(dhn))
        da = empty(y, T, B, self.row)
        self._run((dy, self._w_rec(w_hh), da, dhn, whole(self._rows(y)), da), da, 0, not reverse, strides)
        return self._units(da)

    def _rows(self, t: Tensor) -> Tensor:
        """t[.., H] -> [.., ROW], padded with zeros"""
        return pad(t, (0, self.padding)) if self.padding else t

    def _w_rec(self, w_hh: Tensor) -> Tensor:
        return whole(pad(w_hh, (0, self.padding, 0, self.padding)) if self.padding else w_hh)

    def _units(self, t: Tensor) -> Tensor:
        """t[.., ROW] -> [.., H], contiguous, no view"""
        if self.padding:
            return t[..., : self.problem.H].clone(memory_format=torch.contiguous_format).detach()
        return t

    def _run(
        self, tensors: tuple[Tensor | None, ...], out: Tensor, first_k: int, descending: bool, strides: list[int]
    ) -> None:
        """All steps into `out`; `tensors` and first_k, the columns of W_rec to multiply, are the first step's."""
        T, B, row = out.shape
        times = range(T - 1, -1, -1) if descending else range(T)
        self.launch(tensors, out, (times[0], 0, first_k, B, *strides))
        tensors = tuple([out if name == "state" else t for name, t in zip(TENSORS, tensors, strict=True)])
        known = self.launch.kept.get(tuple([t is not None for t in tensors]))
        if known is None or max(strides) >= 2**31:  # such strides are arguments of another type, and of another kernel
            with interpreter.accurate():
                for before, t in itertools.pairwise(times):
                    self.launch(tensors, out, (t, before, row, B, *strides))
            return
        # What the launcher looks up on every call is the same for all that follow.  Addresses may stand for tensors, and
        # Triton then need not ask the driver whose they are.
        kernel, constexprs = known
        addresses = [(out if t is None else t).data_ptr() for t in tensors]
        with current(out.device):
            launch = kernel[self.launch.grid]
            stream = driver.active.get_current_stream(driver.active.get_current_device())
            for before, t in itertools.pairwise(times):
                launch(*addresses, t, before, row, B, *strides, *constexprs, stream=stream)


def compile_ahead(problem: Problem, plan: PerStep, device: Device) -> Any:
    """The compiled kernel of a plan for a device, which need not be present: the variant with every optional tensor."""
    present = FORWARD if problem.direction == "forward" else BACKWARD
    pointer = POINTERS[problem.dtype]
    projected = pointer if problem.direction == "backward" or problem.dtype == "fp64" else "*fp32"
    kinds = {"u_ptr": projected}
    return compiled_ahead(
        per_step, constants(problem, plan, present), lambda n: kinds.get(n, pointer) if n.endswith("_ptr") else "i32",
        options(problem, plan), device.capability,
    )  # fmt: skip


def options(problem: Problem, p: PerStep) -> dict[str, int]:
    options = dict(num_warps=p.warps, num_stages=p.stages)
    if problem.dtype != "fp64" and problem.precision != "ieee":  # there ptxas would hoist loads until it runs out
        options["maxnreg"] = 255  # else ptxas spills a few registers to fit one more CTA on an SM
    return options


def constants(problem: Problem, p: PerStep, present: tuple[bool, ...]) -> dict[str, Any]:
    """The constexpr parameters of the kernel, in its order"""
    has = dict(zip(TENSORS, present, strict=True))
    return dict(
        H=problem.H,
        ROW=row_units(problem.H, problem.dtype),
        CELL=CELLS[problem.nonlinearity, problem.direction],
        ACCURACY=p.accuracy,
        TRANSPOSED=problem.direction == "backward",
        HAS_U=has["u"],
        HAS_FIRST=has["first"],
        HAS_SAVED=has["saved"],
        U_UNIT=_unit(problem),
        DTYPE=TRITON_DTYPES[problem.dtype],
        PRECISION=p.precision,
        BLOCK_B=p.block_b,
        BLOCK_H=p.block_h,
        BLOCK_K=p.block_k,
    )


def _unit(problem: Problem) -> int:
    """Elements of a 16-byte vector of u: the projection's in the forward pass, fp32 or fp64; dy's in the backward pass"""
    size = max(4, SIZES[problem.dtype]) if problem.direction == "forward" else SIZES[problem.dtype]
    return 16 // size
