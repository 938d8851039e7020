"""Launches of kernels/cta_group.py: W_hh over a group of CTAs."""

from __future__ import annotations

import functools
from typing import Any

from ..kernels import facts
from ..kernels.cta_group import cta_group
from ..plan.problem import ONE, SIZES, Bundle, CtaGroup, Problem, row_units
from .launcher import TRITON_DTYPES, Launcher, cell
from .operands import Engine, Operands, Scalars


def engine(problem: Problem, plan: CtaGroup, bundle: Bundle = ONE) -> Engine:
    of = functools.partial(constants, problem, plan, bundle=bundle)
    launch = Launcher(cta_group, (plan.groups * plan.ctas, bundle.count, 1), of, options(plan))
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


def constants(problem: Problem, p: CtaGroup, present: tuple[bool, ...], bundle: Bundle = ONE) -> dict[str, Any]:
    """The constexpr parameters of the kernel, in its order"""
    forward = problem.direction == "forward"
    has_x = present[Operands._fields.index("x")]
    nothing = 0 if bundle.linked else 1
    row, word = row_units(problem.H, problem.dtype), 4 // SIZES[problem.dtype]  # elements
    apart = row if bundle.linked else bundle.count * row
    return dict(
        TILE=facts.GroupTile(
            dtype=TRITON_DTYPES[problem.dtype],
            precision=p.precision,
            block_b=p.block_b,
            form=p.formulation,
            warps=p.warps,
            chains=p.chains,
            w_in_home="none" if p.w_ih_home == "gemm" else p.w_ih_home,
            ctas=p.ctas,
            units=p.units,
            shared_tiles=p.w_hh_shared,
            protocol=p.protocol,
            x_loads=p.x_loads,
            look_every=p.look_every,
            probe_delay=p.probe_delay,
        ),
        SHAPE=facts.GroupShape(
            I=row_units(problem.I, problem.dtype) if has_x else nothing,
            H=problem.H,
            row=row,
            words=row // word,
            apart=apart,
            row_words=apart // word,
            wide_u=forward,
        ),
        HAS=facts.Has.of(Operands._fields, present),
        CELL=cell(problem, p.accuracy),
        SHARE=facts.Share(lanes=bundle.count, linked=bundle.linked, dropout=bundle.dropout),
    )
