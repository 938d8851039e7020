"""Launches of kernels/recurrence.py: one CTA holds all of W_hh."""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import Tensor

from .hardware import Device
from .kernels.recurrence import recurrence
from .launcher import (
    CELLS,
    POINTERS,
    TRITON_DTYPES,
    Launcher,
    compiled_ahead,
    empty,
    shared,
    strided,
    strided_models,
    whole,
)
from .plans import SIZES, Problem, SingleCta

# The pointer parameters of the kernel, in order; an absent tensor is never read.
TENSORS = ("x", "w_in", "w_rec", "bias0", "bias1", "first", "u", "saved", "out", "last")
FORWARD = tuple(name not in ("u", "saved") for name in TENSORS)
BACKWARD = tuple(name in ("w_rec", "first", "u", "saved", "out") for name in TENSORS)


class Site:
    """What is known of a call from its problem and plan alone.  Every tensor of an ensemble's call has M in front."""

    def __init__(self, problem: Problem, plan: SingleCta) -> None:
        self.problem = problem
        self.plan = plan
        self.input_unit = _input_unit(problem, plan)
        self.state_unit = _state_unit(plan)
        grid = (problem.models * math.ceil(problem.B / plan.block_b), 1, 1)
        self.launch = Launcher(recurrence, grid, functools.partial(constants, problem, plan), options(plan))

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
        *M, T, B, _ = x.shape
        H = w_hh.shape[-1]
        per_model = stride_m = 0
        if M:
            x, stride_t, stride_b, stride_m = strided_models(x, self.input_unit)
            (w_ih, w_hh, b_ih, b_hh, h0), per_model = _per_model(w_ih, w_hh, b_ih, b_hh, h0)
        else:
            x, stride_t, stride_b = strided(x, self.input_unit)
        b_ih = None if b_ih is None else whole(b_ih)
        b_hh = None if b_hh is None else whole(b_hh)
        h0 = None if h0 is None else whole(h0)
        y = empty(x, *M, T, B, H)
        hn = empty(x, *M, B, H)
        tensors = (x, whole(w_ih), self._w_rec(w_hh), b_ih, b_hh, h0, None, None, y, hn)
        self.launch(tensors, y, (T, B, int(reverse), stride_t, stride_b, 0, 0, per_model, stride_m, 0))
        return y, hn

    def backward(
        self, w_hh: Tensor, y: Tensor, dy: Tensor | None, dhn: Tensor | None, reverse: bool
    ) -> Tensor:
        *M, T, B, H = y.shape
        per_model = stride_t = stride_b = stride_m = 0
        if M:
            (_, w_hh, _, _, dhn), per_model = _per_model(None, w_hh, None, None, dhn)
            if dy is not None:
                dy, stride_t, stride_b, stride_m = strided_models(dy, self.state_unit)
        elif dy is not None:
            dy, stride_t, stride_b = strided(dy, self.state_unit)
        dhn = None if dhn is None else whole(dhn)
        da = empty(y, *M, T, B, H)
        tensors = (None, None, self._w_rec(w_hh), None, None, dhn, dy, whole(y), da, None)
        self.launch(tensors, da, (T, B, int(not reverse), 0, 0, stride_t, stride_b, per_model, 0, stride_m))
        return da

    def _w_rec(self, w_hh: Tensor) -> Tensor:
        """W_hh as the plan wants it in global memory"""
        if self.plan.pad_w_hh:
            missing = self.plan.h_pad - w_hh.shape[-1]
            w_hh = torch.nn.functional.pad(w_hh, (0, missing, 0, missing))
        return whole(w_hh)


def _per_model(*tensors: Tensor | None) -> tuple[tuple[Any, ...], int]:
    """w_in, w_rec, bias0, bias1 and first of an ensemble, without M where the models share one; bit i: the i-th has it."""
    parts = tuple([shared(t) for t in tensors])
    return parts, sum(1 << i for i, (t, part) in enumerate(zip(tensors, parts, strict=True)) if part is t is not None)


def compile_ahead(problem: Problem, plan: SingleCta, device: Device) -> Any:
    present = FORWARD if problem.direction == "forward" else BACKWARD
    pointer = POINTERS[problem.dtype]
    return compiled_ahead(
        recurrence, constants(problem, plan, present), lambda n: pointer if n.endswith("_ptr") else "i32",
        options(plan), device.capability,
    )  # fmt: skip


def options(p: SingleCta) -> dict[str, int]:
    options = dict(num_warps=p.warps, num_stages=1)  # pipelined loads would be hoisted above the stores of a step
    if p.formulation != "fma":  # there ptxas would hoist loads until it runs out
        options["maxnreg"] = 255  # else ptxas spills a few registers to fit one more CTA on an SM
    return options


def constants(problem: Problem, p: SingleCta, present: tuple[bool, ...]) -> dict[str, Any]:
    """The constexpr parameters of the kernel, in its order"""
    forward = problem.direction == "forward"
    inputs = problem.I % _input_unit(problem, p) == 0
    units = problem.H % _state_unit(p) == 0
    has = dict(zip(TENSORS, present, strict=True))
    return dict(
        I=problem.I if forward else 1,  # not read without a projection: one kernel for every I
        H=problem.H,
        CELL=CELLS[problem.nonlinearity, problem.direction],
        ACCURACY=p.accuracy,
        FIRST_IS_STATE=forward,
        TRANSPOSED=not forward,
        HAS_BIAS0=has["bias0"],
        HAS_BIAS1=has["bias1"],
        HAS_FIRST=has["first"],
        HAS_U=has["u"],
        HAS_SAVED=has["saved"],
        HAS_LAST=has["last"],
        MODELS=problem.models > 1,
        X_ALIGNED=inputs,
        W_ALIGNED=inputs,
        W_REC_ALIGNED=p.pad_w_hh or units,
        W_ROWS=p.h_pad if p.pad_w_hh else problem.H,
        U_ALIGNED=units,
        S_ALIGNED=units,
        DTYPE=TRITON_DTYPES[problem.dtype],
        FORM=p.formulation,
        PRECISION=p.precision,
        W_IN_HOME=p.w_ih_home,
        H_PAD=p.h_pad,
        BLOCK_B=p.block_b,
        WARPS=p.warps,
        CHUNK=p.chunk,
        CHAINS=p.chains,
        X_DEPTH=p.x_depth,
        STREAM_UNROLL=p.stream_unroll,
    )


def _input_unit(problem: Problem, p: SingleCta) -> int:
    """Elements of x in one 16-byte vector; the fma form counts strides in elements."""
    return 1 if p.formulation == "fma" else 16 // SIZES[problem.dtype]


def _state_unit(p: SingleCta) -> int:
    """Neighbouring hidden units a thread owns"""
    return p.h_pad // (8 * p.warps)
