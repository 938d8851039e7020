"""Says in words which plan runs a problem, why, and what torch would have run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch

from ..cells import named
from ..checks import check_precision, elman, precision_of
from ..errors import UnsupportedError
from ..interpret import interpreter
from . import hardware, latency
from .candidates import candidates, count, gates, kind
from .choose import best, plan, rejected
from .cudnn import cudnn_algorithm, torch_module
from .hardware import Device
from .overriding import overrides
from .problem import DTYPES, ONE, Bundle, CtaGroup, OneCta, PerStep, Plan, Problem
from .sharing import Launch, launches, placed


def explain(
    T: int, B: int, I: int, H: int, *, dtype: torch.dtype = torch.float32, device: torch.device | str | Device | None = None,
    nonlinearity: str = "tanh", cell: str | None = None, precision: str | None = None, direction: str = "forward", models: int = 1,
    num_layers: int = 1, bidirectional: bool = False, dropout: float = 0.0, lengths: bool = False, reset: bool = False,
) -> str:  # fmt: skip
    """Returns a text that says how a pass over x[T,B,I] with hidden size H runs, and why.

    Its lines give the plan and the reason for it, the estimated time per step of the best plan of each regime (in us), the plans
    that failed to compile, and the algorithm that cuDNN would have run. For more than one layer or direction they give each
    launch of the pass: its layers and directions, its CTAs, how they overlap, and its estimated time.

    `direction` is the pass, "forward" or "backward". `models` is the size of an ensemble, as torch.vmap over weights makes it; B
    is then the batch of one model. `num_layers`, `bidirectional` and `dropout` are those of rnn_triton.RNN. `device` is a torch
    device, a hardware.Device record, or None for the current GPU (an H200 where there is none). `precision` is that of
    rnn_triton.rnn. `lengths` and `reset` say whether a call gives them. `cell` is the name of a registered cell, such as "lstm" or "gru"; `nonlinearity` is then ignored.

    Raises ValueError for an argument that no layer can have. Where no plan runs the problem the text says so.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(map(str, DTYPES))}, got {dtype}")
    sizes = (("T", T, 1), ("B", B, 0), ("I", I, 1), ("H", H, 1), ("models", models, 1), ("num_layers", num_layers, 1))
    for name, size, least in sizes:
        if size < least:
            raise ValueError(f"{name} must be at least {least}, got {size}")
    described = elman(nonlinearity) if cell is None else named(cell)
    check_precision(precision)
    precision = precision_of(dtype, precision)
    if direction not in ("forward", "backward"):
        raise ValueError(f"direction must be 'forward' or 'backward', got {direction!r}")
    if not 0 <= dropout <= 1:
        raise ValueError(f"dropout must be in [0, 1], got {dropout}")
    if not isinstance(device, Device):
        if device is None:
            device = "cuda" if torch.cuda.is_available() else "meta"
        device = torch.device(device)
        if device.type == "cpu" and not interpreter.active():
            return (
                f"{direction} of {dtype} T={T} B={B} I={I} H={H} on CPU tensors: torch's own operators, step by step "
                "(set TRITON_INTERPRET=1 before importing rnn_triton to run the kernels by interpreter)."
            )
        device = hardware.of(device)
    sequences = ("lengths",) * lengths + ("reset",) * reset
    problem = Problem(direction, B, I, H, DTYPES[dtype], precision, described.name, models, sequences=sequences)
    if B == 0:
        return f"{direction} of {problem.dtype} T={T} B=0 I={I} H={H}: empty results, nothing is launched."
    what = f"{direction} of {problem.dtype}{f' ({precision})' if precision else ''} T={T} B={B} I={I} H={H}"
    what += f" of each of {models} models" if models > 1 else ""
    what += f", with {' and '.join(sequences)}" if sequences else ""
    try:
        if num_layers > 1 or bidirectional:
            lines = _network(T, problem, device, num_layers, bidirectional, dropout > 0)
            lines[0] = f"{what}, {count(num_layers, 'layer')}{' in both directions' * bidirectional}, on {device.name}: {lines[0]}"
            return "\n".join([*lines, _cudnn(problem, num_layers, bidirectional)])
        p = plan(problem, device)
    except UnsupportedError as e:
        return f"{what} on {device.name}: no plan, {e}."
    lines = [f"{what} on {device.name}: {_ran(problem, p, T)}, because {p.reason}.", _estimates(problem, p, device)]
    lines += [*_fewer(device), *(_refused(other, why) for other, why in rejected(problem, device))]
    lines += _sequences(problem, latency.step(problem, p, device).practical_us - latency.practical_us(problem, p, device), [p])
    return "\n".join([*lines, _cudnn(problem)])


def _refused(p: Plan, why: str) -> str:
    """Says that a plan failed to compile."""
    return f"rejected: {_name(p)}, for it did not compile: {why}"


def _fewer(device: Device) -> list[str]:
    """Returns a line that says that other work takes a part of the device's SMs, if a launch has found that out."""
    if device.together is None:
        return []
    return [
        f"{device.name} lets {count(device.together, 'CTA')} at most run at the same time, fewer than its {device.sms} SMs: a "
        f"cooperative launch of {device.together + 1} did not fit. Plans that need more are out."
    ]


def _sequences(problem: Problem, us: float, plans: Sequence[Plan]) -> list[str]:
    """Returns a line about rows that end or begin anew within a launch, if there are any.  `us`: of an estimated step, for them alone, of
    launches with these plans."""
    if not problem.sequences:
        return []
    where = f"{' and '.join(problem.sequences)}: inside the same launches, on the device"
    if all(isinstance(p, PerStep) for p in plans):
        cost = "; what that costs is not estimated"
    else:
        cost = f", for {f'{us:.3f} us' if us >= 0.0005 else 'less than 0.001 us'} of a step, estimated; before each launch of many steps a "
        cost += "small kernel finds where rows begin and end"
    return [f"{where}{cost}. Steps beyond a length are computed and left out."]


def _cudnn(problem: Problem, layers: int = 1, bidirectional: bool = False) -> str:
    """Says what torch.nn's module would run, and why."""
    module = torch_module(problem.cell)[0]
    if not module:
        return f"torch.nn has no module of {problem.cell}."
    algorithm = cudnn_algorithm(problem, layers=layers, bidirectional=bidirectional)
    models = " for one model after the other" if problem.models > 1 else ""
    return f"torch.nn.{module}: cuDNN's {algorithm.name}{models}, because {algorithm.rule}."


# ---- stacks and directions ------------------------------------------------------------------------------------------


def _network(T: int, problem: Problem, device: Device, layers: int, bidirectional: bool, dropout: bool) -> list[str]:
    """Describes each launch of a pass of several layers or directions in a line. The first line gives their number and total
    time."""
    directions = 2 if bidirectional else 1
    sharing = (ONE,) * layers * directions
    if problem.models == 1 and not (dropout and layers > 1 and problem.dtype == "fp64"):  # whose masks are torch's
        forward = replace(problem, direction="forward")
        sharing = launches(forward, layers, bidirectional, dropout, device)
    parts = placed(problem, layers, bidirectional, sharing)
    us = sum(launch.step(problem.direction, device, T)[0] for launch in parts)
    without = placed(replace(problem, sequences=()), layers, bidirectional, sharing)
    more = us - sum(launch.step(problem.direction, device, T)[0] for launch in without)
    order = ", one after the other" if len(parts) > 1 else ""
    lines = [f"{count(len(parts), 'launch', 'launches')}{order}, {us:.2f} us per step of T, estimated."]
    for launch in parts if problem.direction == "forward" else parts[::-1]:
        where = _where(launch, directions)
        one, p = launch.plan(problem.direction, device)
        us = launch.step(problem.direction, device, T)[0]
        if launch.bundle.count > 1:
            assert isinstance(p, OneCta | CtaGroup)
            where += f": {_shared(one, launch.bundle, p, T)}"
        else:
            where += f": {_ran(one, p, T)}"
        lines.append(f"{where}; {us:.2f} us per step, estimated")
        lines += [_refused(other, why) for other, why in rejected(one, device, launch.bundle)]
    if problem.models == 1 and not bidirectional and len(parts) > 1:
        why = f"fewer launches of more layers each do not fit on {device.name}'s {device.coresident} SMs, or are estimated to be slower"
        if "recurrences" in dict(overrides()):
            why = "overriding(recurrences=...) lets no launch hold more"
        elif kind(problem) in ("ieee", "fp64"):
            why = "layers share a launch in bf16, fp16, tf32 and tf32x3"
        lines.append(f"{len(parts)} launches, because {why}.")
    if problem.models == 1 and any(bundle.count > 1 for bundle in sharing):
        lines.append("Ensembles, and dropout under torch.func, take a launch for each layer and direction.")
    return lines + _fewer(device) + _sequences(problem, more, [launch.plan(problem.direction, device)[1] for launch in parts])


def _where(launch: Launch, directions: int) -> str:
    """Names the layers and directions that a launch carries."""
    layer, direction = divmod(launch.first, directions)
    if launch.bundle.linked:
        return f"layers {layer} to {layer + launch.bundle.count - 1}"
    if launch.bundle.count > 1:
        return f"layer {layer}, both directions"
    return f"layer {layer}" + f", {('forwards', 'backwards')[direction]} in time" * (directions > 1)


def _shared(problem: Problem, bundle: Bundle, p: OneCta | CtaGroup, T: int) -> str:
    """Describes a launch of several layers or directions; `problem` is that of the first one."""
    what, overlap = "directions", "side by side"
    if bundle.linked:
        behind = "a step" if isinstance(p, CtaGroup) else "two steps"
        what, overlap = "layers", f"each {behind} behind the one before it, {T + latency.fill(p, bundle)} steps for {T}"
    if isinstance(p, CtaGroup):
        ctas = p.groups * p.ctas
        shape = f"{p.groups} x {p.ctas} (groups x CTAs of {p.units} hidden units{_gates(problem)}), {overlap}"
        shape += f"; the state is exchanged by the {p.protocol} protocol"
    else:
        ctas = math.ceil(problem.B / p.block_b)
        shape = f"{count(ctas, 'CTA')}, each {p.block_b} batch rows and all of W_hh, {overlap}; the state stays in the CTA"
    before = "a GEMM for x, then " if latency.projects_before(problem, p, bundle) else ""
    launch = f"one launch of {count(bundle.count * ctas, 'CTA')} of {count(p.warps, 'warp')}"
    return f"{before}{launch}, {bundle.count} {what} of {shape}"


def _ran(problem: Problem, p: Plan, T: int) -> str:
    """Describes how a plan runs one layer in one direction: its launches and what each CTA computes."""
    warps = count(p.warps, "warp")
    if isinstance(p, OneCta):
        ctas = problem.models * math.ceil(problem.B / p.block_b)
        return (
            f"{'a GEMM for x, then ' if p.w_ih_home == 'gemm' else ''}one launch of {count(ctas, 'CTA')} of {warps} for all {T} steps"
            f"{' after a copy that pads W_hh' if p.pad_w_hh else ''}, each CTA {p.block_b} batch rows and all of W_hh"
            f"{' of one model' if problem.models > 1 else ''} ({p.formulation} products)"
        )
    if problem.models > 1:
        return f"{problem.models} models, one after the other: {_ran(replace(problem, models=1), p, T)}"
    if isinstance(p, CtaGroup):
        rounds = math.ceil(math.ceil(problem.B / p.block_b) / p.groups)
        return (
            f"one launch of {count(p.groups * p.ctas, 'CTA')} of {warps} for all {T} steps, "
            f"{count(p.groups, 'group')} of {p.ctas} that exchange h by the {p.protocol} protocol, each CTA {p.units} "
            f"hidden units{_gates(problem)} and {count(rounds, 'tile')} of {p.block_b} batch rows ({p.formulation} products)"
        )
    tiles = math.ceil(problem.B / p.block_b) * math.ceil(problem.H / p.block_h)
    return (
        f"{'a GEMM for x, then ' if p.w_ih_home == 'gemm' else ''}{count(T, 'launch', 'launches')}, one a step, of "
        f"{count(tiles, 'CTA')} of {warps}, each {p.block_h} hidden units and {p.block_b} batch rows"
    )


def _estimates(problem: Problem, chosen: Plan, device: Device) -> str:
    """Gives the estimated time per step of the best plan of every regime that has one, and the floor."""
    fitting = list(candidates(problem, device))
    estimates = []
    for regime in latency.REGIMES:
        plans = [chosen] if regime == chosen.regime else [p for p in fitting if p.regime == regime]
        text = "none that fits"
        if plans:
            estimate = latency.step(problem, best(problem, device, plans), device)
            text = f"{estimate.practical_us:.2f} (mostly {estimate.bound}){', chosen' * (regime == chosen.regime)}"
        estimates.append(f"{regime} {text}")
    return f"us per step, estimates: {'; '.join(estimates)}; floor {latency.floor_us(problem, device):.2f}."


def _name(p: Plan) -> str:
    """Names a plan by its regime and sizes."""
    if isinstance(p, CtaGroup):
        return (
            f"cta_group of {p.groups} x {p.ctas} CTAs, {p.units} units, {p.warps} warps, {p.block_b} rows, "
            f"{p.w_hh_shared} K tiles of W_hh shared, W_ih {p.w_ih_home}, {p.protocol}"
        )
    if isinstance(p, PerStep):
        return f"per_step of {p.block_h} units, {p.block_b} rows, {p.warps} warps, {p.stages} stages"
    return f"one_cta of {p.h_pad} units, {p.block_b} rows, {p.warps} warps, W_ih {p.w_ih_home}"


def _gates(problem: Problem) -> str:
    """Says how many gates a hidden unit has, if it is more than one."""
    number = gates(problem)
    return f" of {number} gates each" if number > 1 else ""
