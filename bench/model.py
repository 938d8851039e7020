"""Latency model: the time of one step, estimated from sourced constants. Nothing here is measured.

Two numbers, in microseconds per step, launch cost excluded:

    floor      the step's dependent chain at its smallest published latencies, or the busiest throughput limit of the
               chip, whichever is larger: perfect overlap, the best conceivable tiling. Nothing runs faster.
    practical  a planning number for one plan: the chain with the overheads named below, plus every throughput term
               at EFFICIENCY of its peak, for the plan's batch tile and the CTAs an SM can hold.

One function per regime turns (Problem, Plan, Device) into a practical step; REGIMES names them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from rnn_triton.hardware import Device
from rnn_triton.plan import Plan, Problem

BYTES = {"bf16": 2, "fp16": 2, "fp32": 4, "fp64": 8}


@dataclass(frozen=True)
class Rates:
    """Peak rates of one architecture, per SM and cycle unless said otherwise."""

    mma: float  # FLOP, dense 16-bit operands, fp32 accumulation
    fma: float  # FLOP, fp32 FFMA
    fp64: float  # FLOP, the faster of DFMA and DMMA
    dram: float  # bytes per microsecond, whole chip


# NVIDIA's data sheets and white papers: peak / SMs / boost clock; DRAM is the data sheet's bandwidth.
RATES = {
    80: Rates(mma=2048, fma=128, fp64=128, dram=2.039e6),  # A100 80 GB: 312 TFLOP/s, 108 SMs, 1.41 GHz
    86: Rates(mma=512, fma=256, fp64=4, dram=0.936e6),  # RTX 3090: 71 TFLOP/s, 82 SMs, 1.695 GHz
    89: Rates(mma=512, fma=256, fp64=4, dram=1.008e6),  # RTX 4090: 165 TFLOP/s, 128 SMs, 2.52 GHz
    90: Rates(mma=4096, fma=256, fp64=256, dram=4.8e6),  # H200: 990 TFLOP/s; arXiv 2402.13499 table VIII
    100: Rates(mma=8192, fma=256, fp64=128, dram=8.0e6),  # B200: 2250 TFLOP/s, 148 SMs, 1.85 GHz
}
MUFU = 16.0  # results per cycle and SM: 4 per scheduler (CUDA programming guide, throughput table)
SHARED = 128.0  # bytes per cycle and SM: 32 banks of 4 bytes

# The dependent chain of a step, cycles, each the smallest published for Hopper and used for every architecture:
# MMA result, bias and activation and rounding, then the hand-over of h to the next step's operand.
CHAIN_MMA = 24  # mma.sync m16n8k16, arXiv 2402.13499 table VII
CHAIN_ACTIVATION = {"tanh": 40, "relu": 8}  # ex2, rcp and three dependent FMAs; one FMNMX and the conversion
CHAIN_SHARED = 20 + 38 + 30  # st.shared, bar.sync of 8 warps, ld.shared
CHAIN_WARP = 23  # one warp that holds all of W_hh hands over by shuffle
WARP_WEIGHTS = 192 * 32 * 4  # bytes of W_hh one warp can keep in registers

PRACTICAL_CHAIN_US = 0.20  # layout conversions and a second barrier added: an estimate until a GPU has timed it
EFFICIENCY = 0.75  # of each peak rate, practical
REGISTERS_FOR_WEIGHTS = 0.75  # of the register file
THREADS_PER_SM = 2048


@dataclass(frozen=True)
class Estimate:
    """Microseconds per step; `parts` add up to nothing in particular: each is one limit of the practical number."""

    floor_us: float
    practical_us: float
    parts: dict[str, float]

    @property
    def bound(self) -> str:
        return max(self.parts, key=lambda part: self.parts[part])


def rates(device: Device) -> Rates:
    """Of the device's architecture, or of the newest one that is older."""
    known = [capability for capability in RATES if capability <= device.capability]
    return RATES[max(known)] if known else RATES[min(RATES)]


def step(problem: Problem, plan: Plan, device: Device) -> Estimate:
    """Floor of the problem and practical time of this plan, per step of one recurrence launch."""
    parts = REGIMES[plan.regime](problem, plan, device)
    dram = parts["DRAM"]
    on_chip = sum(value for part, value in parts.items() if part != "DRAM")
    return Estimate(floor_us(problem, device), max(on_chip, dram), parts)


def floor_us(problem: Problem, device: Device) -> float:
    """No plan runs a step of this problem faster."""
    cycle = 1e-3 / device.clock_ghz
    rows = 8 * math.ceil(math.ceil(problem.B / 8) / device.sms)  # 8 is the smallest batch tile of an MMA
    # the projection of x depends on nothing: at best every SM of the chip takes a share of it
    shared_out = 2.0 * problem.B * problem.H * (problem.H + _inputs(problem)) / _flop_rate(problem, device) / device.sms
    throughput = max(*_cycles(problem, rows, 0, device).values(), shared_out)
    held_by_a_warp = problem.H * problem.H * BYTES[problem.dtype] <= WARP_WEIGHTS
    chain = (
        CHAIN_MMA
        + (CHAIN_ACTIVATION[problem.nonlinearity] if problem.direction == "forward" else CHAIN_ACTIVATION["relu"])
        + (CHAIN_WARP if held_by_a_warp else CHAIN_SHARED)
    )
    return max(chain * cycle, throughput * cycle, _traffic(problem) / rates(device).dram)


def gemm_us(problem: Problem, device: Device) -> tuple[float, float]:
    """(floor, practical) per step of the GEMMs after the backward recurrence: dx, dw_ih, dw_hh over all T*B rows."""
    peak = device.sms * device.clock_ghz * 1e3 * _flop_rate(problem, device)  # FLOP per microsecond
    flop = 2 * problem.B * problem.H * (2 * problem.I + problem.H)
    size = BYTES[problem.dtype]
    floor = max(flop / peak, 2 * problem.B * (problem.H + problem.I) * size / rates(device).dram)
    # three GEMMs that each read two operands or read one and write one
    moved = problem.B * size * (2 * (problem.H + problem.I) + 2 * problem.H)
    return floor, max(flop / peak, moved / rates(device).dram) / EFFICIENCY


def training(forward: Estimate, backward: Estimate, gemms: tuple[float, float]) -> Estimate:
    """Forward and backward of one layer: two recurrence launches and the GEMMs, one after the other."""
    parts = {f"forward {k}": v for k, v in forward.parts.items()}
    parts |= {f"backward {k}": v for k, v in backward.parts.items()} | {"GEMM": gemms[1]}
    return Estimate(
        forward.floor_us + backward.floor_us + gemms[0],
        forward.practical_us + backward.practical_us + gemms[1],
        parts,
    )


def of_case(case: Any, pass_: str, device: Device) -> Estimate:
    """Estimate of a bench case with the plan rnn_triton chooses; UnsupportedError where it has none."""
    forward, backward = problems(case)
    first = _planned(forward, device)
    if pass_ == "fwd":
        return first
    return training(first, _planned(backward, device), gemm_us(forward, device))


def problems(case: Any) -> tuple[Problem, Problem]:
    """The (forward, backward) problem of a bench case; the backward recurrence reads no x, so its I is 1."""
    forward = Problem("forward", case.B, case.I, case.H, case.dtype, case.precision, case.nonlinearity)
    return forward, replace(forward, direction="backward", I=1)


def _planned(problem: Problem, device: Device) -> Estimate:
    from rnn_triton.plan import plan

    return step(problem, plan(problem, device), device)


def _single_cta(problem: Problem, plan: Plan, device: Device) -> dict[str, float]:
    """One CTA holds all of W_hh for its batch tile; CTAs that do not fit side by side run in waves."""
    cycle = 1e-3 / device.clock_ghz
    weights = problem.H * (problem.H + _inputs(problem)) * BYTES[problem.dtype]
    capacity = 4 * device.registers * REGISTERS_FOR_WEIGHTS + device.shared_bytes
    resident = max(1, min(THREADS_PER_SM // (32 * plan.warps), int(capacity // weights)))
    per_sm = math.ceil(math.ceil(problem.B / plan.block_b) / device.sms)
    waves = math.ceil(per_sm / resident)
    parts = {"chain": waves * PRACTICAL_CHAIN_US}
    rows = per_sm * 8 * math.ceil(plan.block_b / 8)
    for name, cycles in _cycles(problem, rows, _inputs(problem), device).items():
        parts[name] = cycles * cycle / EFFICIENCY
    parts["DRAM"] = _traffic(problem) / rates(device).dram / EFFICIENCY
    return parts


REGIMES: dict[str, Callable[[Problem, Plan, Device], dict[str, float]]] = {"single_cta": _single_cta}


def _inputs(problem: Problem) -> int:
    """Columns of the input projection in the recurrence launch: the backward one has none."""
    return problem.I if problem.direction == "forward" else 0


def _flop_rate(problem: Problem, device: Device) -> float:
    """Useful FLOP per cycle and SM in the problem's dtype and precision."""
    rate = rates(device)
    if problem.dtype == "fp64":
        return rate.fp64
    if problem.dtype == "fp32":
        # TF32 runs at half the 16-bit rate; tf32x3 takes three products
        return {"tf32": rate.mma / 2, "tf32x3": rate.mma / 6}.get(problem.precision or "ieee", rate.fma)
    return rate.mma


def _cycles(problem: Problem, rows: int, inputs: int, device: Device) -> dict[str, float]:
    """Cycles each unit of an SM is busy in a step over `rows` batch rows, `inputs` columns of W_ih projected too."""
    size = BYTES[problem.dtype]
    activations = problem.H * rows if problem.direction == "forward" and problem.nonlinearity == "tanh" else 0
    return {
        "MMA": 2.0 * problem.H * (problem.H + inputs) * rows / _flop_rate(problem, device),
        "MUFU": activations / MUFU,
        "shared": 2.0 * rows * problem.H * size / SHARED,  # h written and read once
    }


def _traffic(problem: Problem) -> float:
    """Bytes a step must move through DRAM: x and y forward; dy, y and da backward."""
    values = problem.I + problem.H if problem.direction == "forward" else 3 * problem.H
    return problem.B * values * BYTES[problem.dtype]
