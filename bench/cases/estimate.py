"""The latency model of rnn_triton/plan/latency.py for bench cases. Estimates: nothing here is measured.

A case is layers, directions and models of any cell; latency.py knows one layer in one direction. What is added up, per step of T:

    practical  launch after launch, and the GEMMs of training behind them, as the library runs them: several layers, or both
               directions, share one where that pays (rnn_triton/plan/sharing.py). Models go layer by layer and direction by
               direction; those whose W_hh fits in one CTA run side by side, as rows of one launch, others one after the other; heads are models that share x.
    floor      the chain of a step, and what must pass the chip's products and its DRAM, whichever is larger; perfect
               overlap. Layers of one direction are a wavefront: layer l starts one step after layer l-1, so that the chain
               of L layers is T + L - 1 steps. Directions and models run side by side; a layer of two directions waits for
               both of the layer below.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from rnn_triton.plan import sharing
from rnn_triton.plan.candidates import gates, routes
from rnn_triton.plan.hardware import Device
from rnn_triton.plan.latency import CONSTANTS, Constants, Estimate, floor_us, gemm_us
from rnn_triton.plan.problem import ONE, SIZES, Problem
from rnn_triton.plan.sharing import Launch

from .case import Case
from .inputs import lengths_of


@dataclass(frozen=True)
class Layer:
    """One layer in one direction; both directions have the same sizes."""

    forward: Problem
    backward: Problem  # this recurrence reads no x, so its I is 1


def layers(case: Case) -> tuple[Layer, ...]:
    """The layers of a case, the first first."""
    sizes = (case.H // case.heads, case.dtype, case.precision, case.cell, case.models * case.heads)
    given = () if case.lengths == "full" else ("lengths",)
    inputs = (case.I, *[case.H * case.directions] * (case.layers - 1))
    forward = [Problem("forward", case.B, I, *sizes, sequences=given) for I in inputs]
    return tuple(Layer(problem, replace(problem, direction="backward", I=1)) for problem in forward)


def problems(case: Case) -> tuple[Problem, Problem]:
    """The (forward, backward) problem of the first layer of a case, in one direction and of one model."""
    first = layers(case)[0]
    return first.forward, first.backward


def of_case(case: Case, pass_: str, device: Device, constants: Constants = CONSTANTS) -> Estimate:
    """Estimate per step of T with the plans rnn_triton chooses; UnsupportedError where it has none.

    `parts` of a stack are the sums over its launches and models; of "train" they are named "forward ...",
    "backward ..." and "GEMM". Sequences of different lengths cost as many padded steps as the longest, and "sequences"."""
    network = layers(case)
    train = pass_ == "train"
    practical = 0.0
    parts: dict[str, float] = {}
    for direction in ("forward", "backward")[: 2 if train else 1]:
        for launch in launches(case, device):
            us, limits = launch.step(direction, device, case.T, constants)
            practical += us
            for name, value in limits.items():
                key = f"{direction} {name}" if train else name
                parts[key] = parts.get(key, 0.0) + value
    if train:
        each = sum(gemms(layer.forward, device, constants)[1] for layer in network)
        parts["GEMM"] = case.directions * case.models * case.heads * each
        practical += parts["GEMM"]
    return Estimate(_floor(case, network, train, device, constants), practical, parts)


def largest(parts: Mapping[str, float], count: int) -> str:
    """The largest parts of an estimate, in order: "exchange 0.350, local 0.200"."""
    ordered = sorted(parts.items(), key=lambda part: -part[1])[:count]
    return ", ".join(f"{name} {us:.3f}" for name, us in ordered if us > 0) or "-"


def gemms(problem: Problem, device: Device, constants: Constants = CONSTANTS) -> tuple[float, float]:
    """(floor, practical) per step of the GEMMs after the backward recurrence: dx, dw_ih, dw_hh over all T*B rows."""
    flop = _gemm_flop(problem)
    rows, columns = problem.B * SIZES[problem.dtype], gates(problem) * problem.H
    least = rows * (routes(replace(problem, direction="backward")).published * problem.H + problem.H + 2 * problem.I)
    # three GEMMs that each read two operands or read one and write one
    moved = rows * (3 * columns + problem.H + 2 * problem.I)
    return gemm_us(problem, device, flop, least), gemm_us(problem, device, flop, moved) / constants.efficiency


def shares(case: Case) -> bool:
    """May layers or directions of the case share a launch?"""
    return case.layers * case.directions > 1 and case.models * case.heads == 1


def launches(case: Case, device: Device) -> list[Launch]:
    """Returns the launches of a pass of a case, in order; of models that do not run side by side, those of one."""
    first = layers(case)[0].forward
    bundle = (ONE,) * (case.layers * case.directions)
    if shares(case):
        bundle = sharing.launches(first, case.layers, case.bidirectional, False, device)
    return sharing.placed(first, case.layers, case.bidirectional, bundle)


def _floor(case: Case, network: tuple[Layer, ...], train: bool, device: Device, constants: Constants) -> float:
    """Per step of T: the chain is that of the longest sequence, which has T steps; products and traffic are of real steps."""
    forward, backward = ([getattr(layer, name) for layer in network] for name in ("forward", "backward"))
    real = 1.0 if case.lengths == "full" else float(lengths_of(case).double().mean()) / case.T
    G, every = gates(forward[0]), case.H * case.directions
    kept = routes(forward[0]).kept * case.layers * every  # written forward, read backward
    products = sum(2.0 * p.B * G * p.H * (p.H + p.I) for p in forward)
    busy = _busy(case, products, case.I + (every * case.layers + kept if train else every), device)  # x in, the last y or all y out
    floor = max(_chain(case, forward, device, constants, train), real * busy)
    if not train:
        return floor
    # the recurrence and the GEMMs that follow it: they, too, may overlap
    products = sum(2.0 * p.B * G * p.H * p.H for p in backward) + sum(_gemm_flop(p) for p in forward)
    busy = _busy(case, products, 2 * case.I + every * (case.layers + 1) + kept, device)  # x, every y, dy in and dx out
    return floor + max(_chain(case, backward, device, constants, train), real * busy)


def _chain(case: Case, problems: list[Problem], device: Device, constants: Constants, train: bool) -> float:
    """Of one direction of one model, which has the chip for itself; T steps of the slowest layer and one of each other. Of
    sequences of different lengths one row alone is sure to have T steps."""
    alone = [replace(problem, models=1, B=problem.B if case.lengths == "full" else 1) for problem in problems]
    steps = [floor_us(problem, device, constants, train) for problem in alone]
    if case.bidirectional:
        return sum(steps)
    return max(steps) + (sum(steps) - max(steps)) / case.T


def _busy(case: Case, flop: float, values: float, device: Device) -> float:
    """The products of all directions and models at the chip's peak, or their values through its DRAM"""
    problem = problems(case)[0]
    n = case.directions * case.models * case.heads
    return gemm_us(problem, device, n * flop, case.models * case.B * values * SIZES[case.dtype])


def _gemm_flop(forward: Problem) -> float:
    """dx, dw_ih and dw_hh of one layer, per step"""
    return 2.0 * forward.B * gates(forward) * forward.H * (2 * forward.I + forward.H)
