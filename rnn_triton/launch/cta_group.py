"""Prepares launches of kernels/cta_group.py, in which a group of CTAs holds W_hh."""

from __future__ import annotations

import functools
from typing import Any

from ..kernels import facts
from ..kernels.cta_group import cta_group
from ..plan.problem import ONE, SIZES, Bundle, CtaGroup, Problem, row_units
from .launcher import Launcher, cell, tile
from .operands import OF_SEQUENCES, Engine, Operands, Scalars


def engine(problem: Problem, plan: CtaGroup, bundle: Bundle = ONE) -> Engine:
    """Returns the kernel of a plan, ready for a launch of these recurrences."""
    facts_of = functools.partial(constants, problem, plan, bundle=bundle)
    launch = Launcher(cta_group, (plan.groups * plan.ctas, bundle.count, 1), facts_of, options(plan), OF_SEQUENCES)
    unit, row = row_units(1, problem.dtype), row_units(problem.H, problem.dtype)
    return Engine(
        launch, scalars=Scalars._fields.index("per_model"), groups=plan.groups, ctas=plan.ctas, row=row, recurrent=row,
        input=row_units(problem.I, problem.dtype), projected=row, x_unit=unit, u_unit=unit, gathers=True,
    )  # fmt: skip


def options(p: CtaGroup) -> dict[str, Any]:
    registers = 255 if p.warps <= 8 else 128
    # num_stages: pipelined loads would be hoisted above the wait
    return dict(num_warps=p.warps, num_stages=1, maxnreg=registers, launch_cooperative_grid=True)


def constants(problem: Problem, p: CtaGroup, present: tuple[bool, ...], bundle: Bundle = ONE) -> dict[str, Any]:
    """Returns the constexpr parameters of the kernel, in its order.  `present` says of each of Operands whether it is there."""
    has_x = present[Operands._fields.index("x")]
    row, word = row_units(problem.H, problem.dtype), 4 // SIZES[problem.dtype]  # elements
    side_by_side = 1 if bundle.linked else bundle.count
    of_cell = cell(problem, p.accuracy)
    routes = of_cell.routes.plain
    return dict(
        TILE=tile(facts.GroupTile, problem, p),
        SHAPE=facts.GroupShape(
            I=row_units(problem.I, problem.dtype) if has_x else 0 if bundle.linked else 1, H=problem.H, row=row,
            words=row // word, state_words=routes["exchanged"] * row // word,
            row_words=side_by_side * routes["published"] * row // word, apart=side_by_side * row,
            wide_u=problem.direction == "forward",
        ),  # fmt: skip
        HAS=facts.Has.of(Operands._fields, present),
        CELL=of_cell,
        SHARE=facts.Share(lanes=bundle.count, linked=bundle.linked, dropout=bundle.dropout),
    )
