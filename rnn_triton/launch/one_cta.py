"""Prepares launches of kernels/one_cta.py, in which one CTA holds all of W_hh."""

from __future__ import annotations

import functools
import math
from typing import Any

from ..kernels import facts
from ..kernels.one_cta import one_cta
from ..plan.candidates import gates
from ..plan.problem import ONE, SIZES, Bundle, OneCta, Problem, row_units
from .launcher import Launcher, cell, tile
from .operands import OF_SEQUENCES, Engine, Operands, Scalars


def engine(problem: Problem, plan: OneCta, bundle: Bundle = ONE) -> Engine:
    """Returns the kernel of a plan, ready for a launch of these recurrences, with a group of one CTA for each batch tile.

    Only linked recurrences wait for each other.  A single one is padded only where the plan or a GEMM's product needs it."""
    tiles = math.ceil(problem.B / plan.block_b)
    several = bundle.count > 1
    row, inputs = problem.H, problem.I
    if several:
        row, inputs = row_units(row, problem.dtype), row_units(inputs, problem.dtype)
    facts_of = functools.partial(constants, problem, plan, bundle=bundle)
    launch = Launcher(one_cta, (problem.models * tiles, bundle.count, 1), facts_of, options(plan, bundle), OF_SEQUENCES)
    unit = _state_unit(plan)
    return Engine(
        launch, scalars=len(Scalars._fields), groups=tiles, ctas=1, row=row, recurrent=plan.h_pad if plan.pad_w_hh else row,
        input=inputs, projected=row + (-row % unit if _pads_u(plan) else 0), x_unit=_input_unit(problem, plan), u_unit=unit,
        words=several, waits=bundle.linked, transposes=not several or gates(problem) > 1,
    )  # fmt: skip


def options(p: OneCta, bundle: Bundle) -> dict[str, Any]:
    options: dict[str, Any] = dict(num_warps=p.warps, num_stages=1)  # pipelined loads would be hoisted above the stores of a step
    if p.formulation != "fma" or p.accuracy == "double":  # fp32: there ptxas would hoist loads until it runs out
        options["maxnreg"] = 255  # else ptxas spills a few registers to fit one more CTA on an SM
    if bundle.linked:
        options["launch_cooperative_grid"] = True
    return options


def constants(problem: Problem, p: OneCta, present: tuple[bool, ...], bundle: Bundle = ONE) -> dict[str, Any]:
    """Returns the constexpr parameters of the kernel, in its order.  `present` says of each of Operands whether it is there."""
    forward = problem.direction == "forward"
    has_x = present[Operands._fields.index("x")]
    several = bundle.count > 1
    I, row = problem.I if has_x else 1, problem.H  # not read without a projection: one kernel for every I
    if several:
        I, row = row_units(I, problem.dtype), row_units(row, problem.dtype)
    if bundle.linked and not has_x:
        I = 0
    k_in = I
    if bundle.linked:  # forward the layer below publishes h, backward the one above the gradients of all gates
        k_in = row if forward else gates(problem) * row
    inputs = k_in % _input_unit(problem, p) == 0
    unit = _state_unit(p)
    whole_vectors = row % unit == 0
    u_aligned = whole_vectors or (forward and _pads_u(p))
    apart = row if bundle.linked else bundle.count * row
    step = cell(problem, p.accuracy)
    routes = step.plain["routes"]
    return dict(
        TILE=tile(facts.OneCtaTile, problem, p),
        SHAPE=facts.OneCtaShape(
            I=I, H=problem.H, row=row, k_in=k_in, w_rows=p.h_pad if p.pad_w_hh else row,
            w_aligned=inputs, w_rec_aligned=p.pad_w_hh or whole_vectors,
            x=facts.Stored(length=k_in, aligned=inputs, written=bundle.linked),
            u=facts.Stored(length=-(-row // unit) * unit if u_aligned else row, aligned=u_aligned, wide=forward),
            s=facts.Stored(length=row, aligned=whole_vectors, apart=apart),
            out=facts.Stored(length=row, aligned=whole_vectors, apart=apart * routes.plain["published"]),
            kept=facts.Stored(length=row, aligned=whole_vectors, apart=row * routes.plain["kept"]),
            carried=facts.Stored(length=row, aligned=whole_vectors, apart=row),
        ),  # fmt: skip
        HAS=facts.Has.of(Operands._fields, present),
        CELL=step,
        SHARE=facts.Share(models=problem.models > 1, lanes=bundle.count, linked=bundle.linked, dropout=bundle.dropout),
    )


def _pads_u(p: OneCta) -> bool:
    """True if rows of what a GEMM makes of x are padded to whole vectors.  In the fma form they are not: loads of two units save
    next to nothing there, and with them fp64 spills where H is odd (relu, sm_86 and sm_100)."""
    return p.w_ih_home == "gemm" and p.formulation != "fma"


def _input_unit(problem: Problem, p: OneCta) -> int:
    """Returns the number of elements of x in one 16-byte vector; 1 in the fma form, which counts strides in elements."""
    return 1 if p.formulation == "fma" else 16 // SIZES[problem.dtype]


def _state_unit(p: OneCta) -> int:
    """Returns the number of neighbouring hidden units that a thread owns."""
    return p.h_pad // (8 * p.warps)
