"""Launches of kernels/one_cta.py: one CTA holds all of W_hh."""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import Tensor

from ..kernels.one_cta import one_cta
from ..plan.hardware import Device
from ..plan.problem import ONE, SIZES, Lanes, OneCta, Problem, row_units
from . import gemm
from .launcher import CELLS, POINTERS, TRITON_DTYPES, Launcher, compiled_ahead
from .operands import TENSORS, Engine, described, empty, shared, strided, strided_models, whole

FORWARD = tuple(name not in ("u", "saved", *TENSORS[-3:]) for name in TENSORS)
PROJECTED = tuple(name not in ("x", "w_in", "saved", *TENSORS[-3:]) for name in TENSORS)
BACKWARD = tuple(name in ("w_rec", "first", "u", "saved", "out") for name in TENSORS)

_NOTHING = (None, None, None)  # of a single lane: sync, report, seed
_NO_LINK = (0, 0, 0, 0)  # launch, limit, dropped, bottom


class Site:
    """What is known of a call from its problem and plan alone.  Every tensor of an ensemble's call has M in front."""

    def __init__(self, problem: Problem, plan: OneCta) -> None:
        self.problem = problem
        self.plan = plan
        self.input_unit = _input_unit(problem, plan)
        self.state_unit = _state_unit(plan)
        grid = (problem.models * math.ceil(problem.B / plan.block_b), 1, 1)
        self.launch = Launcher(one_cta, grid, functools.partial(constants, problem, plan), options(plan, ONE))

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
        projected = self.plan.w_ih_home == "gemm"
        unit = self.input_unit
        if projected:  # then x stands for u from here on
            unit = self.state_unit
            if H % unit and _pads_u(self.plan):
                w_ih = torch.nn.functional.pad(w_ih, (0, 0, 0, -H % unit))
            x = gemm.project(x, w_ih, None, None, self.problem.precision)
        per_model = stride_m = 0
        if M:
            x, stride_t, stride_b, stride_m = strided_models(x, unit)
            (w_ih, w_hh, b_ih, b_hh, h0), per_model = _per_model(w_ih, w_hh, b_ih, b_hh, h0)
        else:
            x, stride_t, stride_b = strided(x, unit)
        b_ih = None if b_ih is None else whole(b_ih)
        b_hh = None if b_hh is None else whole(b_hh)
        h0 = None if h0 is None else whole(h0)
        y = empty(w_hh, *M, T, B, H)
        hn = empty(w_hh, *M, B, H)
        inputs: tuple[Tensor | None, ...]
        strides: tuple[int, ...]
        if projected:
            inputs, strides, strides_m = (None, None, x), (0, 0, stride_t, stride_b), (0, stride_m)
        else:
            inputs, strides, strides_m = (x, whole(w_ih), None), (stride_t, stride_b, 0, 0), (stride_m, 0)
        tensors = (*inputs[:2], self._w_rec(w_hh), b_ih, b_hh, h0, inputs[2], None, y, hn, *_NOTHING)
        scalars = (T, B, int(reverse), *strides, *_NO_LINK, per_model, *strides_m)
        self.launch(tensors, y, scalars)
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
        tensors = (None, None, self._w_rec(w_hh), None, None, dhn, dy, whole(y), da, None, *_NOTHING)
        self.launch(tensors, da, (T, B, int(not reverse), 0, 0, stride_t, stride_b, *_NO_LINK, per_model, 0, stride_m))
        return da

    def _w_rec(self, w_hh: Tensor) -> Tensor:
        """W_hh as the plan wants it in global memory"""
        if self.plan.pad_w_hh:
            missing = self.plan.h_pad - w_hh.shape[-1]
            w_hh = torch.nn.functional.pad(w_hh, (0, missing, 0, missing))
        return whole(w_hh)


def engine(problem: Problem, plan: OneCta, lanes: Lanes) -> Engine:
    """Of a launch of several lanes, a group for each batch tile.  Only linked lanes wait for each other."""
    tiles = math.ceil(problem.B / plan.block_b)
    of = functools.partial(constants, problem, plan, lanes=lanes)
    launch = Launcher(one_cta, (tiles, lanes.count, 1), of, options(plan, lanes))
    units = _input_unit(problem, plan), _state_unit(plan)
    return Engine(launch, tiles, 1, *units, waits=lanes.linked, more=(0, 0, 0))  # it has no models


def _per_model(*tensors: Tensor | None) -> tuple[tuple[Any, ...], int]:
    """w_in, w_rec, bias0, bias1 and first of an ensemble, without M where the models share one; bit i: the i-th has it."""
    parts = tuple([shared(t) for t in tensors])
    return parts, sum(1 << i for i, (t, part) in enumerate(zip(tensors, parts, strict=True)) if part is t is not None)


def compile_ahead(problem: Problem, plan: OneCta, device: Device, lanes: Lanes = ONE) -> Any:
    present, parameter = described(problem, plan.w_ih_home, lanes)
    if lanes.count == 1:
        projected = plan.w_ih_home == "gemm"
        present = BACKWARD if problem.direction == "backward" else PROJECTED if projected else FORWARD
        pointers = {"u_ptr": POINTERS["fp64" if problem.dtype == "fp64" else "fp32"]} if projected else {}
        of = POINTERS[problem.dtype]
        parameter = lambda name: pointers.get(name, of) if name.endswith("_ptr") else "i32"  # noqa: E731
    constexprs = constants(problem, plan, present, lanes)
    return compiled_ahead(one_cta, constexprs, parameter, options(plan, lanes), device.capability)


def options(p: OneCta, lanes: Lanes) -> dict[str, Any]:
    options: dict[str, Any] = dict(num_warps=p.warps, num_stages=1)  # pipelined loads would be hoisted above the stores of a step
    if p.formulation != "fma" or p.accuracy == "double":  # fp32: there ptxas would hoist loads until it runs out
        options["maxnreg"] = 255  # else ptxas spills a few registers to fit one more CTA on an SM
    if lanes.linked:
        options["launch_cooperative_grid"] = True
    return options


def constants(problem: Problem, p: OneCta, present: tuple[bool, ...], lanes: Lanes = ONE) -> dict[str, Any]:
    """The constexpr parameters of the kernel, in its order"""
    forward = problem.direction == "forward"
    has = dict(zip(TENSORS, present, strict=True))
    several = lanes.count > 1
    I, row = problem.I if has["x"] else 1, problem.H  # not read without a projection: one kernel for every I
    if several:
        I, row = row_units(I, problem.dtype), row_units(row, problem.dtype)
    if lanes.linked and not has["x"]:
        I = 0
    inputs = (row if lanes.linked else I) % _input_unit(problem, p) == 0
    units = row % _state_unit(p) == 0
    return dict(
        I=I,
        H=row,
        UNITS=problem.H,
        CELL=CELLS[problem.nonlinearity, problem.direction],
        ACCURACY=p.accuracy,
        FIRST_IS_STATE=forward,
        TRANSPOSED=not forward and not several,
        HAS_BIAS0=has["bias0"],
        HAS_BIAS1=has["bias1"],
        HAS_FIRST=has["first"],
        HAS_U=has["u"],
        HAS_SAVED=has["saved"],
        HAS_LAST=has["last"],
        WIDE_U=forward,
        MODELS=problem.models > 1,
        X_ALIGNED=inputs,
        W_ALIGNED=inputs,
        W_REC_ALIGNED=p.pad_w_hh or units,
        W_ROWS=p.h_pad if p.pad_w_hh else row,
        U_ALIGNED=units or (forward and _pads_u(p)),
        S_ALIGNED=units,
        DTYPE=TRITON_DTYPES[problem.dtype],
        FORM=p.formulation,
        PRECISION=p.precision,
        W_IN_HOME="none" if p.w_ih_home == "gemm" else p.w_ih_home,
        H_PAD=p.h_pad,
        BLOCK_B=p.block_b,
        WARPS=p.warps,
        CHUNK=p.chunk,
        CHAINS=p.chains,
        X_DEPTH=p.x_depth,
        LANES=lanes.count,
        LINKED=lanes.linked,
        DROPOUT=lanes.dropout,
    )


def _pads_u(p: OneCta) -> bool:
    """True if rows of what a GEMM makes of x are padded to whole vectors.  In the fma form they are not: loads of two units save
    next to nothing there, and with them fp64 spills where H is odd (relu, sm_86 and sm_100)."""
    return p.w_ih_home == "gemm" and p.formulation != "fma"


def _input_unit(problem: Problem, p: OneCta) -> int:
    """Elements of x in one 16-byte vector; the fma form counts strides in elements."""
    return 1 if p.formulation == "fma" else 16 // SIZES[problem.dtype]


def _state_unit(p: OneCta) -> int:
    """Neighbouring hidden units a thread owns"""
    return p.h_pad // (8 * p.warps)
