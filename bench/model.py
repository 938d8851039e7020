"""The latency model of rnn_triton/latency.py for bench cases. Estimates: nothing here is measured."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from rnn_triton.hardware import Device
from rnn_triton.latency import CONSTANTS, Estimate, gemm_us, step
from rnn_triton.plan import plan
from rnn_triton.plans import SIZES, Problem

__all__ = ["Estimate", "gemms", "of_case", "problems", "step", "training"]


def of_case(case: Any, pass_: str, device: Device) -> Estimate:
    """Estimate of a bench case with the plan rnn_triton chooses; UnsupportedError where it has none."""
    forward, backward = problems(case)
    first = step(forward, plan(forward, device), device)
    if pass_ == "fwd":
        return first
    return training(first, step(backward, plan(backward, device), device), gemms(forward, device))


def problems(case: Any) -> tuple[Problem, Problem]:
    """The (forward, backward) problem of a bench case; the backward recurrence reads no x, so its I is 1."""
    forward = Problem("forward", case.B, case.I, case.H, case.dtype, case.precision, case.nonlinearity)
    return forward, replace(forward, direction="backward", I=1)


def gemms(problem: Problem, device: Device) -> tuple[float, float]:
    """(floor, practical) per step of the GEMMs after the backward recurrence: dx, dw_ih, dw_hh over all T*B rows."""
    flop = 2.0 * problem.B * problem.H * (2 * problem.I + problem.H)
    rows = problem.B * SIZES[problem.dtype]
    least = rows * 2 * (problem.H + problem.I)
    # three GEMMs that each read two operands or read one and write one
    moved = rows * (2 * (problem.H + problem.I) + 2 * problem.H)
    practical = gemm_us(problem, device, flop, moved) / CONSTANTS.efficiency
    return gemm_us(problem, device, flop, least), practical


def training(forward: Estimate, backward: Estimate, gemms: tuple[float, float]) -> Estimate:
    """Forward and backward of one layer: two recurrences and the GEMMs, one after the other."""
    parts = {f"forward {k}": v for k, v in forward.parts.items()}
    parts |= {f"backward {k}": v for k, v in backward.parts.items()} | {"GEMM": gemms[1]}
    return Estimate(
        forward.floor_us + backward.floor_us + gemms[0],
        forward.practical_us + backward.practical_us + gemms[1],
        parts,
    )
