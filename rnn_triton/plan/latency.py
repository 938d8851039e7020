"""Estimates the time of a step, from constants with a source. Nothing here is measured.

Two numbers, in microseconds per step, launch cost excluded:

    floor      the step's dependent chain at its smallest published latencies, or the busiest throughput limit of the
               chip, whichever is larger: perfect overlap, the best conceivable tiling, the best of the three regimes
               (one CTA; CTAs that hand h over through L2; a launch a step). Nothing built that way runs faster.
    practical  a planning number for one plan: the chain with the overheads named below, plus every throughput term at
               `efficiency` of its peak, for the plan's tiles and the CTAs that run side by side.

One function per regime turns (Problem, Plan, Device, Constants) into a practical step; REGIMES names them.

What lengths and resets cost is a part of a step, but not of the times by which plans are chosen (`practical_us`, `shared_us`): a call with
them has the plan of one without.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from .. import cells
from .candidates import (
    blocks,
    gates,
    k_tiles,
    linked_columns,
    routes,
    simple,
    state_tiles,
    tile_bytes,
)
from .hardware import Device
from .problem import SIZES, Bundle, CtaGroup, OneCta, PerStep, Plan, Problem, is_wide, row_units


@dataclass(frozen=True)
class Rates:
    """Peak rates of one architecture, per SM and cycle unless said otherwise."""

    mma: float  # FLOP, dense 16-bit operands, fp32 accumulation
    mma_sync: float  # FLOP of these products by mma.sync, to which those of a group of CTAs compile
    fma: float  # FLOP, fp32 FFMA
    fp64: float  # FLOP, the faster of DFMA and DMMA
    dram: float  # bytes per microsecond, whole chip


# NVIDIA's data sheets and white papers: peak / SMs / boost clock; DRAM is the data sheet's bandwidth. mma.sync reaches the
# peak before Hopper; there 494.4 TFLOP/s on 114 SMs at 1.755 GHz (arXiv 2402.13499 table VII), sm_100 as sm_90 (estimate).
RATES = {
    80: Rates(mma=2048, mma_sync=2048, fma=128, fp64=128, dram=2.039e6),  # A100 80 GB: 312 TFLOP/s, 108 SMs, 1.41 GHz
    86: Rates(mma=512, mma_sync=512, fma=256, fp64=4, dram=0.936e6),  # RTX 3090: 71 TFLOP/s, 82 SMs, 1.695 GHz
    89: Rates(mma=512, mma_sync=512, fma=256, fp64=4, dram=1.008e6),  # RTX 4090: 165 TFLOP/s, 128 SMs, 2.52 GHz
    90: Rates(mma=4096, mma_sync=2471, fma=256, fp64=256, dram=4.8e6),  # H200: 990 TFLOP/s; arXiv 2402.13499 table VIII
    100: Rates(mma=8192, mma_sync=2471, fma=256, fp64=128, dram=8.0e6),  # B200: 2250 TFLOP/s, 148 SMs, 1.85 GHz
}


@dataclass(frozen=True)
class Constants:
    """The constants of the model, for every architecture unless Rates says otherwise: cycles of an SM ("_cycles"), microseconds
    ("_us"), rates per cycle. They are one object, so that constants fitted to records can take the place of all of them."""

    mufu: float = 16.0  # results per SM: 4 per scheduler (CUDA programming guide, throughput table)
    shared: float = 128.0  # bytes per SM: 32 banks of 4 bytes
    issue: float = 4.0  # instructions of a warp per SM: one per scheduler
    l2_port: float = 64.0  # bytes into one SM
    l2: float = 5120.0  # bytes out of L2, whole chip: A100 white paper; 38 a SM with all SMs reading
    l2_read: float = 3134.0  # bytes out of L2 that plain reads reach: 5.5 TB/s of an H100 PCIe at 1.755 GHz (Chips and Cheese)

    # The dependent chain of a step, each the smallest published for Hopper: MMA result, bias and activation and
    # rounding, then the hand-over of h to the next step's operand.
    mma_cycles: float = 24  # mma.sync m16n8k16, arXiv 2402.13499 table VII
    tanh_cycles: float = 40  # ex2, rcp and three dependent FMAs
    relu_cycles: float = 8  # one FMNMX and the conversion
    hand_over_cycles: float = 20 + 38 + 30  # st.shared, bar.sync of 8 warps, ld.shared
    shuffle_cycles: float = 23  # one warp that holds all of W_hh hands over by shuffle
    warp_weights: float = 192 * 32 * 4  # bytes of W_hh one warp can keep in registers

    # One CTA to another through L2, (floor, practical).
    # Floor of the sentinel: a CAS ping-pong, 161 ns a hand-over on an H100 PCIe (Chips and Cheese 2023), 158 on a GH200
    # (arXiv 2408.11556). Practical: an estimate; the last of many lines, the far L2 partition, the period of the polls.
    sentinel_us: tuple[float, float] = (0.161, 0.35)
    # Floor of the counter: fence and arrival 0.26, poll 0.16, load 0.13, an estimate. Practical: 1.18 to 1.22 us an
    # iteration with about 130 CTAs on an H200 (RRZE-HPC/gpu-benches, gpu-small-kernels/h200_pt.txt).
    counter_us: tuple[float, float] = (0.55, 1.18)
    # The part that the work on other tiles cannot hide, because a CTA takes its tiles in order: a load of what is in L2 already
    # (a hit, 260 cycles, arXiv 2501.12084 table IV); with a counter also the fence and the poll.
    sentinel_busy_us: float = 0.13
    counter_busy_us: float = 0.55

    local_us: float = 0.20  # practical chain inside a CTA of 8 warps: layout conversions, a second barrier. An estimate
    warp_cycles: float = 6  # in addition, for every further warp that both barriers wait for, an estimate
    efficiency: float = 0.75  # of each peak rate, practical
    weight_registers: float = 0.75  # of the register file, for weights
    threads_per_sm: int = 2048

    # Instructions that a warp issues in a step of a tile, fitted to compiled kernels (sm_90, 16-bit): a base, some for every hidden
    # unit and row of the CTA, some for every K tile and 8 rows, one for every mma.
    instructions: float = 112
    instructions_unit_row: float = 0.08
    instructions_tile: float = 9
    instructions_cell: float = 100  # more for a cell of several gates or carried states

    # What lengths and resets add. The most of what is counted: instructions that a warp issues in a step on one CTA (docs/engine.md), the
    # part of a turn's in a group (docs/cta_group.md). Of kernels/events.py, an estimate: a warp issues about 570 instructions (sm_90, with
    # both) in 3 cycles each, and waits for a load from DRAM.
    sequences_instructions: float = 11
    sequences_turn: float = 0.11
    events_cycles: float = 570 * 3 + 600

    # Kernel launches.
    node_us: float = 1.31  # from one small kernel to the next, GPU side (RRZE-HPC/gpu-benches, h200_graph.txt)
    host_us: float = 6.0  # a launch of a kept Triton kernel from Python, an estimate
    k_loop_cycles: float = 100  # an iteration of a pipelined K loop that waits for its loads, an estimate
    cooperative_us: float = 4.0  # of a cooperative launch, beyond those of a plain one, an estimate
    fill: float = 0.8  # of the DRAM rate, for a fill, an estimate


CONSTANTS = Constants()


@dataclass(frozen=True)
class Estimate:
    """Microseconds per step. Each of `parts` is one limit of the practical number; they do not add up to it."""

    floor_us: float
    practical_us: float
    parts: dict[str, float]

    @property
    def bound(self) -> str:
        return max(self.parts, key=lambda part: self.parts[part])


def rates(device: Device) -> Rates:
    """Returns the rates of the device's architecture, or of the newest one that is older."""
    older = [capability for capability in RATES if capability <= device.capability]
    return RATES[max(older)] if older else RATES[min(RATES)]


def step(problem: Problem, plan: Plan, device: Device, constants: Constants = CONSTANTS) -> Estimate:
    """Estimates the floor of the problem and the practical time of this plan, for a step of all its launches together."""
    practical, parts = _practical(problem, plan, device, constants)
    more = _sequences_us(problem, plan, device, constants)
    return Estimate(floor_us(problem, device, constants), practical + more, {**parts, "sequences": more})


def practical_us(problem: Problem, plan: Plan, device: Device, constants: Constants = CONSTANTS) -> float:
    """Estimates the practical time of this plan per step, in us, by which plans are chosen: without lengths and resets."""
    return _practical(_without_sequences(problem), plan, device, constants)[0]


def _practical(problem: Problem, plan: Plan, device: Device, c: Constants) -> tuple[float, dict[str, float]]:
    if problem.models == 1 or plan.ensembles:
        return REGIMES[plan.regime](problem, plan, device, c)
    us, parts = REGIMES[plan.regime](replace(problem, models=1), plan, device, c)  # one model after the other
    return problem.models * us, {name: problem.models * value for name, value in parts.items()}


def shared_step(
    problem: Problem, plan: OneCta | CtaGroup, device: Device, bundle: Bundle, constants: Constants = CONSTANTS
) -> tuple[float, dict[str, float]]:
    """Returns (practical us, parts) of a step of all recurrences of a launch, which share L2 and DRAM, and of the GEMMs for x
    before it.

    A step of a stack takes as long as its slowest layer, which is one fed by another; T steps of x take T + `fill` of them."""
    shared = replace(constants, l2=constants.l2 / bundle.count, l2_read=constants.l2_read / bundle.count)
    # batch tiles of two directions, on one CTA each, take what batch tiles of two models take
    models = not bundle.linked and isinstance(plan, OneCta)
    more = _sequences_us(problem, plan, device, constants, bundle.count)
    gemm = 0.0  # in addition to the GEMM that `_practical` counts, of one recurrence or of all models
    if projects_before(problem, plan, bundle) and not models:
        gemm = _projection_us(problem, device, constants)
    if bundle.linked:  # both passes project what comes from the other layer
        problem = replace(problem, direction="forward" if simple(problem) else problem.direction, I=linked_columns(problem))
    programs = replace(problem, models=bundle.count) if models else problem
    us, parts = _practical(programs, plan, device, shared)
    dram = bundle.count * _traffic(problem) / rates(device).dram / constants.efficiency
    parts = {**parts, "DRAM": max(parts.get("DRAM", 0.0), dram), "projection": parts.get("projection", 0.0) + gemm, "sequences": more}
    return max(us, dram) + gemm + more, parts


def projects_before(problem: Problem, plan: OneCta | CtaGroup, bundle: Bundle) -> bool:
    """True if a GEMM projects x before a launch of several recurrences: for layers, if x has more columns than they; for
    directions, if the plan says so."""
    gemm = is_wide(problem.I, problem.H, problem.dtype) if bundle.linked else plan.w_ih_home == "gemm"
    return problem.direction == "forward" and gemm


def shared_us(problem: Problem, plan: OneCta | CtaGroup, device: Device, bundle: Bundle) -> float:
    """Estimates the practical time of a step of all recurrences of a launch, in us, by which plans are chosen: without lengths and resets."""
    return shared_step(_without_sequences(problem), plan, device, bundle)[0]


def _without_sequences(problem: Problem) -> Problem:
    return replace(problem, sequences=()) if problem.sequences else problem


def _sequences_us(problem: Problem, plan: Plan, device: Device, c: Constants, recurrences: int = 1) -> float:
    """Estimates the us that lengths and resets add to a step on one CTA: of its instructions, and of the zeros that its output has before.
    In a group they are a part of "issue", and a launch a step has none.  Steps in which something happens to rows are taken for rare and
    not counted."""
    if not problem.sequences or not isinstance(plan, OneCta):
        return 0.0
    number = recurrences * problem.models
    per_sm = math.ceil(number * math.ceil(problem.B / plan.block_b) / device.sms)
    us = per_sm * plan.warps * c.sequences_instructions / c.issue / c.efficiency * 1e-3 / device.clock_ghz
    if "lengths" in problem.sequences:
        us += number * problem.B * routes(problem).published * problem.H * SIZES[problem.dtype] / (c.fill * rates(device).dram)
    return us


def fill(plan: OneCta | CtaGroup, bundle: Bundle) -> int:
    """Returns how many steps, at least, the last of linked recurrences is behind the first.  On one CTA each step waits for the x
    of the next one, so every layer is a step further back."""
    return (bundle.count - 1) * (1 if isinstance(plan, CtaGroup) else 2) if bundle.linked else 0


def launch_us(problem: Problem, plan: Plan, device: Device, T: int, constants: Constants = CONSTANTS) -> float:
    """Estimates the us that T steps of one model take in addition: to launch, to fill what CTAs exchange, to load the weights."""
    c, dram, size = constants, rates(device).dram, SIZES[problem.dtype]
    gemm = c.host_us * (plan.w_ih_home == "gemm")
    if plan.regime == "per_step":
        return gemm
    resident = gates(problem) * problem.H * (problem.H + (problem.I if plan.w_ih_home in ("registers", "shared") else 0)) * size
    loading = resident / dram + c.node_us
    if problem.sequences:  # kernels before the launch: events.py, zeros
        before = 1 + ("lengths" in problem.sequences and plan.regime == "one_cta")
        loading += before * (c.host_us + c.node_us) + c.events_cycles * 1e-3 / device.clock_ghz
    if plan.regime == "one_cta":
        return c.host_us + gemm + loading
    filled = routes(problem).published * T * problem.B * row_units(problem.H, problem.dtype) * size
    return 2 * c.host_us + c.cooperative_us + gemm + filled / (c.fill * dram) + loading


# ---- floor ----------------------------------------------------------------------------------------------------------


def floor_us(problem: Problem, device: Device, constants: Constants = CONSTANTS, keep: bool = True) -> float:
    """Returns a bound in us: no plan of the three regimes runs a step of this problem in less time.  Without `keep`, as in inference,
    the forward pass saves nothing for the backward one."""
    regimes = (_floor_one_cta, _floor_cta_group, _floor_per_step)
    return max(min(floor(problem, device, constants) for floor in regimes), _traffic(problem, keep) / rates(device).dram)


def _floor_one_cta(problem: Problem, device: Device, c: Constants) -> float:
    weights = gates(problem) * problem.H * problem.H * SIZES[problem.dtype]
    if weights > 4 * device.registers + device.shared_bytes:
        return math.inf
    rows = 8 * math.ceil(problem.models * math.ceil(problem.B / 8) / device.sms)  # 8 is the smallest batch tile of an MMA
    chain = _chain(problem, c) + (c.shuffle_cycles if weights <= c.warp_weights else c.hand_over_cycles)
    throughput = max(*_cycles(problem, rows, 0, device, c).values(), _shared_out(problem, device))
    return max(chain, throughput) * 1e-3 / device.clock_ghz


def _floor_cta_group(problem: Problem, device: Device, c: Constants) -> float:
    """Adds up the chain and the largest limit of what must pass every group's CTAs; groups have as few CTAs as hold W_hh.

    For an ensemble this is the floor of one of its models, which the others can only delay."""
    size = SIZES[problem.dtype]
    ctas = max(1, math.ceil(gates(problem) * problem.H**2 * size / (4 * device.registers + device.shared_bytes)))
    if ctas > device.sms:
        return math.inf
    row = routes(problem).exchanged * problem.H * size
    gathered = problem.B * row  # by every CTA of a group, all groups together
    rows = max(1.0, problem.B * ctas / device.sms)  # of a group
    throughput = (
        rows * row / c.l2_port,
        ctas * gathered / c.l2,
        _shared_out(problem, device),
        problem.B * problem.H * _special(problem) / c.mufu / device.sms,
    )
    cycles = _chain(problem, c) + c.hand_over_cycles + max(throughput)
    return c.sentinel_us[0] + cycles * 1e-3 / device.clock_ghz


def _floor_per_step(problem: Problem, device: Device, c: Constants) -> float:
    cycle = 1e-3 / device.clock_ghz
    weights = gates(problem) * problem.H**2 * SIZES[problem.dtype]
    reading = weights / c.l2 * cycle
    if weights > device.l2_bytes:
        reading = max(reading, (weights - device.l2_bytes) / rates(device).dram)
    return c.node_us + max(reading, _shared_out(problem, device) * cycle)


def _chain(problem: Problem, c: Constants) -> float:
    """Returns the cycles from the last operand of a product to a rounded state."""
    return c.mma_cycles + (c.tanh_cycles if _special(problem) else c.relu_cycles)


def _shared_out(problem: Problem, device: Device) -> float:
    """Returns the cycles of all products of a step if every SM takes an equal share."""
    rows = problem.models * problem.B
    return 2.0 * rows * gates(problem) * problem.H * (problem.H + _inputs(problem)) / _flop_rate(problem, device) / device.sms


# ---- practical ------------------------------------------------------------------------------------------------------


def _one_cta(problem: Problem, plan: OneCta, device: Device, c: Constants) -> tuple[float, dict[str, float]]:
    """Estimates a step of CTAs that each hold all of W_hh for a batch tile; those that do not fit side by side run in rounds."""
    cycle = 1e-3 / device.clock_ghz
    gemm = _projection_us(problem, device, c) if plan.w_ih_home == "gemm" else 0.0
    inputs = 0 if gemm else _inputs(problem)
    weights = gates(problem) * problem.H * (problem.H + inputs) * SIZES[problem.dtype]
    capacity = 4 * device.registers * c.weight_registers + device.shared_bytes
    # ptxas gives a thread of a cell with gates up to 256 registers; one of a simple cell as many as let two CTAs or more share an SM
    threads = c.threads_per_sm if simple(problem) else device.registers // 256
    resident = max(1, min(threads // (32 * plan.warps), int(capacity // weights)))
    per_sm = math.ceil(problem.models * math.ceil(problem.B / plan.block_b) / device.sms)
    parts = {"chain": math.ceil(per_sm / resident) * c.local_us}
    rows = per_sm * 8 * math.ceil(plan.block_b / 8)
    for name, cycles in _cycles(problem, rows, inputs, device, c).items():
        parts[name] = cycles * cycle / c.efficiency
    on_chip = sum(parts.values())
    parts["DRAM"] = _traffic(problem) / rates(device).dram / c.efficiency
    us = max(on_chip, parts["DRAM"]) + gemm
    return us, {**parts, "projection": gemm}


def _cta_group(problem: Problem, plan: CtaGroup, device: Device, c: Constants) -> tuple[float, dict[str, float]]:
    """Estimates a step of a group, whose CTAs take their batch tiles through it one after the other.

    Either a tile waits for its state of the step before, or there are tiles enough to hide that hand-over."""
    cycle, size = 1e-3 / device.clock_ghz, SIZES[problem.dtype]
    rounds = math.ceil(math.ceil(problem.B / plan.block_b) / plan.groups)
    cell, gated = routes(problem), not simple(problem)
    tiles, rows = state_tiles(problem, plan.warps), blocks(problem) * plan.units
    depth = 64 * plan.warps // size  # columns of a K tile
    rate = _flop_rate(problem, device, sync=True)
    l2 = gather_rate(plan, c)
    tile = tile_bytes(problem, plan.units, plan.warps)
    fragments = rows // 16 * plan.block_b // 8  # of the result, in each warp
    products = 2  # of a K tile: K = 32 in halves of 16, or 16 in halves of 8

    def us(cycles: float) -> float:
        return cycles * cycle / c.efficiency

    evaluated = plan.units * plan.block_b
    if gated:  # every thread evaluates the cell in halves of the units, twice what there are where they are fewer than the threads
        evaluated = max(evaluated, 64 * plan.warps)
    work = {
        "L2": plan.block_b * cell.exchanged * row_units(problem.H, problem.dtype) * size / l2 * cycle,
        "MMA": us(2.0 * rows * tiles * depth * plan.block_b / rate),
        "shared": us((plan.w_hh_shared * tile + 8.0 * plan.warps * cell.parts * plan.units * plan.block_b) / c.shared),
        "MUFU": us(evaluated * _special(problem) / c.mufu),
    }
    # dependent products beyond the first, in cycles that no other warp's work fills; several pre-activations are as many chains
    dependent = max(0, products * tiles // max(plan.chains, min(cell.parts, 2)) - 1)
    local = c.local_us + (c.mma_cycles * dependent + c.warp_cycles * (plan.warps - 8)) * cycle
    sentinel = plan.protocol == "sentinel"
    exchange = (c.sentinel_us if sentinel else c.counter_us)[1]
    busy = c.sentinel_busy_us if sentinel else c.counter_busy_us

    # x is loaded a step ahead, so its bytes only occupy the port to L2; its products and W_ih take the CTA's time
    projection = ahead = 0.0
    if plan.w_ih_home in ("registers", "shared"):
        x_tiles = k_tiles(problem.I, plan.warps, problem.dtype)
        row = row_units(problem.I, problem.dtype) * size
        ahead = plan.block_b * row / l2 * cycle
        projection = us(2.0 * rows * x_tiles * depth * plan.block_b / rate)
        if plan.w_ih_home == "shared":
            projection += us(x_tiles * tile / c.shared)

    instructions = c.instructions + c.instructions_cell * gated + c.instructions_unit_row * plan.units * plan.block_b
    instructions += tiles * (c.instructions_tile * plan.block_b / 8 + products * fragments)
    instructions *= 1 + c.sequences_turn * bool(problem.sequences)
    issue = us(plan.warps * instructions / c.issue)
    own = local + sum(work.values())
    chain = own + max(exchange, projection + busy)
    throughput = rounds * max(own + projection + busy, issue, work["L2"] + ahead)
    dram = _traffic(problem) / rates(device).dram / c.efficiency
    gemm = _projection_us(problem, device, c) if plan.w_ih_home == "gemm" else 0.0
    parts = {name: rounds * value for name, value in work.items()}
    parts |= {"local": rounds * local, "issue": rounds * issue, "DRAM": dram, "projection": gemm or rounds * projection}
    parts["exchange"] = exchange if chain >= throughput else rounds * busy
    return max(chain, throughput, dram) + gemm, parts


def gather_rate(plan: CtaGroup, c: Constants = CONSTANTS) -> float:
    """Returns the bytes per cycle that each CTA of a group reaches in practice when all of them read from L2."""
    return min(c.efficiency * c.l2_port, c.l2_read / (plan.groups * plan.ctas))


def _per_step(problem: Problem, plan: PerStep, device: Device, c: Constants) -> tuple[float, dict[str, float]]:
    """Estimates a step that is a launch: the host issues it, W_hh is read, the SMs compute the tiles of h_t in rounds."""
    cycle = 1e-3 / device.clock_ghz
    weights = gates(problem) * problem.H**2 * SIZES[problem.dtype]
    tiles = math.ceil(problem.B / plan.block_b) * math.ceil(problem.H / plan.block_h)
    rounds = math.ceil(tiles / device.sms)
    depth = math.ceil(routes(problem).exchanged * problem.H / plan.block_k)
    columns = blocks(problem) * depth * plan.block_k
    read = weights * math.ceil(problem.B / plan.block_b) / c.l2_read * cycle
    if weights > device.l2_bytes:
        read = max(read, weights / rates(device).dram)
    flop = 2.0 * rounds * plan.block_b * plan.block_h * columns
    parts = {
        "host": c.host_us,
        "W_hh": read / c.efficiency,
        "MMA": flop / _flop_rate(problem, device, sync=True) * cycle / c.efficiency,
        "K loop": c.k_loop_cycles * depth * cycle,
    }
    kernel = c.node_us + max(parts["W_hh"], parts["MMA"], parts["K loop"])
    on_gpu = max(kernel, _traffic(problem) / rates(device).dram / c.efficiency)
    parts["launch"] = c.node_us
    parts["projection"] = _projection_us(problem, device, c) if plan.w_ih_home == "gemm" else 0.0
    return max(c.host_us, on_gpu) + parts["projection"], parts


REGIMES: dict[str, Callable[[Problem, Any, Device, Constants], tuple[float, dict[str, float]]]] = {
    "one_cta": _one_cta,
    "cta_group": _cta_group,
    "per_step": _per_step,
}


def gemm_us(problem: Problem, device: Device, flop: float, moved: float) -> float:
    """Returns the us of a GEMM at the peak rate of the whole chip, or of moving its bytes, whichever takes longer."""
    peak = device.sms * device.clock_ghz * 1e3 * _flop_rate(problem, device)  # FLOP per microsecond
    return max(flop / peak, moved / rates(device).dram)


def _projection_us(problem: Problem, device: Device, c: Constants) -> float:
    """Estimates the us per step of x W_ih^T over all T*B rows before the recurrence, which then reads the result."""
    wide = 4 if SIZES[problem.dtype] < 8 else 8
    rows = problem.models * problem.B
    columns = gates(problem) * problem.H
    moved = rows * (problem.I * SIZES[problem.dtype] + 2 * columns * wide)
    return gemm_us(problem, device, 2.0 * rows * columns * problem.I, moved) / c.efficiency


def _inputs(problem: Problem) -> int:
    """Returns the number of columns of x that a step projects: none in the backward pass."""
    return problem.I if problem.direction == "forward" else 0


def _special(problem: Problem) -> int:
    """Returns how many values of tanh, exp or the like a step evaluates for each hidden unit and batch row."""
    return cells.named(problem.cell).special if problem.direction == "forward" else 0


def _flop_rate(problem: Problem, device: Device, sync: bool = False) -> float:
    """Returns the useful FLOP per cycle and SM in the problem's dtype and precision."""
    rate = rates(device)
    if problem.dtype == "fp64":
        return rate.fp64
    mma = rate.mma_sync if sync else rate.mma
    if problem.dtype == "fp32":
        # TF32 runs at half the 16-bit rate; tf32x3 takes three products
        return {"tf32": mma / 2, "tf32x3": mma / 6}.get(problem.precision or "ieee", rate.fma)
    return mma


def _cycles(problem: Problem, rows: int, inputs: int, device: Device, c: Constants) -> dict[str, float]:
    """Returns the cycles that each unit of an SM is busy in a step over `rows` batch rows that projects `inputs` columns of x."""
    size, cell = SIZES[problem.dtype], routes(problem)
    return {
        "MMA": 2.0 * gates(problem) * problem.H * (problem.H + inputs) * rows / _flop_rate(problem, device),
        "MUFU": problem.H * rows * _special(problem) / c.mufu,
        "shared": 2.0 * rows * cell.exchanged * problem.H * size / c.shared,  # what is exchanged, written and read once
    }


def _traffic(problem: Problem, keep: bool = True) -> float:
    """Returns the bytes that a step must move through DRAM: x (of each model), y and what is kept forward; dy, y or what was kept, and
    da backward."""
    cell = routes(problem)
    tiles = 1 + cell.kept * keep + (0 if problem.direction == "forward" else cell.reads_y + cell.published)
    values = _inputs(problem) + tiles * problem.H
    return problem.models * problem.B * values * SIZES[problem.dtype]
