"""Launches of kernels/cta_group.py: W_hh over a group of CTAs."""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..kernels.cta_group import cta_group
from ..kernels.exchange import LINE
from ..plan.hardware import Device
from ..plan.problem import ONE, CtaGroup, Lanes, Problem, row_units
from . import faults, gemm, operands
from .launcher import CELLS, TRITON_DTYPES, Launcher, compiled_ahead
from .operands import TENSORS, Engine, described, rows, strided, units, whole


def engine(problem: Problem, plan: CtaGroup, lanes: Lanes = ONE) -> Engine:
    of = functools.partial(constants, problem, plan, lanes=lanes)
    launch = Launcher(cta_group, (plan.groups * plan.ctas, lanes.count, 1), of, options(plan))
    unit = row_units(1, problem.dtype)
    return Engine(launch, plan.groups, plan.ctas, unit, unit)


class Cooperative:
    """A cooperative launch, as far as it is known from its problem, plan and lanes alone."""

    def __init__(
        self, problem: Problem, plan: Any, lanes: Lanes = ONE, first: int = 0, of: Engine | None = None
    ) -> None:
        """`first`: the number of the lanes' bottom layer, for reports and masks.  `of`: another kernel than this file's"""
        self.problem = problem
        self.plan = plan
        self.lanes = lanes
        self.first = first
        self.row = row_units(problem.H, problem.dtype)
        self.padding = self.row - problem.H
        self.engine = engine(problem, plan, lanes) if of is None else of
        groups, ctas = self.engine.groups, self.engine.ctas
        # error words of the groups, counters of the tiles
        self.sync_words = int(LINE.value) * lanes.count * (groups + math.ceil(problem.B / plan.block_b))
        p = problem
        name = f"{p.direction} of {p.dtype} B={p.B} I={p.I} H={p.H} over {groups} groups of {ctas} CTAs"
        self.id = faults.register(name, groups, lanes.names(p.direction, first))

    def _words(self, like: Tensor, *shape: int) -> tuple[Tensor, Tensor]:
        return operands.words(like, self.row, shape, self.sync_words, self.engine.waits)

    def _units(self, words: Tensor, dtype: torch.dtype) -> Tensor:
        return units(words, dtype, self.problem.H)

    def _run(
        self, tensors: tuple[Tensor | None, ...], out: Tensor, sync: Tensor, scalars: tuple[int, ...],
        seed: Tensor | None = None, dropped: int = 0,
    ) -> None:  # fmt: skip
        all_scalars = (*scalars, self.id, operands.poll_limit(), dropped, self.first, *self.engine.more)
        self.engine.launch((*tensors, sync, faults.word(out.device), seed), out, all_scalars)
        faults.after_launch(out.device)


class Site(Cooperative):
    """A layer in one direction"""

    def __init__(self, problem: Problem, plan: CtaGroup) -> None:
        super().__init__(problem, plan)
        self.input_padding = row_units(problem.I, problem.dtype) - problem.I

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
        out, sync = self._words(x, T, B)
        hn = torch.empty((B, out.shape[2]), dtype=torch.int32, device=x.device)
        w_rec = rows(w_hh, self.padding, self.padding)
        first = None if h0 is None else rows(h0, self.padding)
        if self.padding:  # before the projection: its operands are smaller than u
            w_ih = pad(w_ih, (0, 0, 0, self.padding))
            b_ih, b_hh = (None if b is None else pad(b, (0, self.padding)) for b in (b_ih, b_hh))
        if self.plan.w_ih_home == "gemm":
            u, stride_t, stride_b = strided(gemm.project(x, w_ih, b_ih, b_hh, self.problem.precision), self.engine.u_unit)
            given: tuple[Tensor | None, ...] = (None, None, w_rec, None, None, first, u)
            strides = (0, 0, stride_t, stride_b)
        else:
            if self.input_padding:
                x, w_ih = (pad(t, (0, self.input_padding)) for t in (x, w_ih))
            x, stride_t, stride_b = strided(x, self.engine.x_unit)
            bias = [None if b is None else whole(b) for b in (b_ih, b_hh)]
            given = (x, whole(w_ih), w_rec, *bias, first, None)
            strides = (stride_t, stride_b, 0, 0)
        self._run((*given, None, out, hn), out, sync, (T, B, int(reverse), *strides))
        return self._units(out, w_hh.dtype), self._units(hn, w_hh.dtype)

    def backward(self, w_hh: Tensor, y: Tensor, dy: Tensor | None, dhn: Tensor | None, reverse: bool) -> Tensor:
        """da[T,B,H], a view of longer rows"""
        T, B, _ = y.shape
        out, sync = self._words(y, T, B)
        stride_t = stride_b = 0
        if dy is not None:
            dy, stride_t, stride_b = strided(pad(dy, (0, self.padding)) if self.padding else dy, self.engine.u_unit)
        first = None if dhn is None else rows(dhn, self.padding)
        w_rec = rows(w_hh.t(), self.padding, self.padding)
        tensors = (None, None, w_rec, None, None, first, dy, rows(y, self.padding), out, None)
        self._run(tensors, out, sync, (T, B, int(not reverse), 0, 0, stride_t, stride_b))
        return out.view(y.dtype)[..., : self.problem.H]


def compile_ahead(problem: Problem, plan: CtaGroup, device: Device, lanes: Lanes = ONE) -> Any:
    present, parameter = described(problem, plan.w_ih_home, lanes)
    return compiled_ahead(cta_group, constants(problem, plan, present, lanes), parameter, options(plan), device.capability)


def options(p: CtaGroup) -> dict[str, Any]:
    # num_stages: pipelined loads would be hoisted above the wait
    return dict(
        num_warps=p.warps, num_stages=1, maxnreg=255 if p.warps <= 8 else 128, launch_cooperative_grid=True
    )


def constants(problem: Problem, p: CtaGroup, present: tuple[bool, ...], lanes: Lanes = ONE) -> dict[str, Any]:
    """The constexpr parameters of the kernel, in its order"""
    forward = problem.direction == "forward"
    has = dict(zip(TENSORS, present, strict=True))
    projected = p.w_ih_home in ("gemm", "none")
    nothing = 0 if lanes.linked else 1
    return dict(
        I=row_units(problem.I, problem.dtype) if has["x"] else nothing,
        H=problem.H,
        ROW=row_units(problem.H, problem.dtype),
        CELL=CELLS[problem.nonlinearity, problem.direction],
        ACCURACY=p.accuracy,
        FIRST_IS_STATE=forward,
        HAS_BIAS0=has["bias0"],
        HAS_BIAS1=has["bias1"],
        HAS_FIRST=has["first"],
        HAS_U=has["u"],
        HAS_SAVED=has["saved"],
        HAS_LAST=has["last"],
        WIDE_U=forward,
        DTYPE=TRITON_DTYPES[problem.dtype],
        FORM=p.formulation,
        PRECISION=p.precision,
        W_IN_HOME="none" if projected else p.w_ih_home,
        CTAS=p.ctas,
        UNITS=p.units,
        BLOCK_B=p.block_b,
        WARPS=p.warps,
        SHARED_TILES=p.w_hh_shared,
        CHAINS=p.chains,
        PROTOCOL=p.protocol,
        X_LOADS=p.x_loads,
        LOOK_EVERY=p.look_every,
        PROBE_DELAY=p.probe_delay,
        LANES=lanes.count,
        LINKED=lanes.linked,
        DROPOUT=lanes.dropout,
    )
