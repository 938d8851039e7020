"""Launches of kernels/cta_group.py: W_hh over a group of CTAs."""

from __future__ import annotations

import functools
from typing import Any

from ..kernels.cta_group import cta_group
from ..plan.problem import ONE, CtaGroup, Lanes, Problem, row_units
from .launcher import CELLS, TRITON_DTYPES, Launcher
from .operands import Engine, Operands, Scalars


def engine(problem: Problem, plan: CtaGroup, lanes: Lanes = ONE) -> Engine:
    of = functools.partial(constants, problem, plan, lanes=lanes)
    launch = Launcher(cta_group, (plan.groups * plan.ctas, lanes.count, 1), of, options(plan))
    unit, row = row_units(1, problem.dtype), row_units(problem.H, problem.dtype)
    return Engine(
        launch, scalars=Scalars._fields.index("per_model"), groups=plan.groups, ctas=plan.ctas, row=row, recurrent=row,
        input=row_units(problem.I, problem.dtype), projected=row, x_unit=unit, u_unit=unit,
    )  # fmt: skip


def options(p: CtaGroup) -> dict[str, Any]:
    # num_stages: pipelined loads would be hoisted above the wait
    return dict(
        num_warps=p.warps, num_stages=1, maxnreg=255 if p.warps <= 8 else 128, launch_cooperative_grid=True
    )


def constants(problem: Problem, p: CtaGroup, present: tuple[bool, ...], lanes: Lanes = ONE) -> dict[str, Any]:
    """The constexpr parameters of the kernel, in its order"""
    forward = problem.direction == "forward"
    has = dict(zip(Operands._fields, present, strict=True))
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
