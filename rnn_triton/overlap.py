"""A backward pass in chunks of time: the GEMMs over a chunk's da run beside the recurrence of the next chunks.

The recurrence leaves SMs idle where its groups do not fill the chip, and the GEMMs over da (gradients.py) need not wait for
its last step.  So a pass may be cut into launches (kernels/grid.py, "Chunks"), which follow one another on a stream of
their own, while the GEMMs of what is through already run on the caller's.  `schedule` decides into how many, from the latency
model alone; `backward` carries it out.  da is the same to the last bit; sums over time are added up chunk by chunk, in a
fixed order: their rounding depends on the number of chunks, and on nothing that differs from run to run.

What is estimated here was not measured.  Not in the model: that both sides share L2 and DRAM, and the chip's power.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from . import hardware, latency
from .hardware import Device
from .plan import overrides
from .plans import SIZES, Grid, Lanes, Plan, Problem

COUNTS = (1, 2, 4, 8)
# A model that nothing has been measured for must not decide about less: of what recurrence and GEMMs take in turn, and us.
LEAST_SHARE = 0.1
LEAST_US = 30.0
_TILE = 128  # rows and columns of a GEMM's output tile, an estimate


class Work(Protocol):
    """What is to be done with da (gradients.Layer, gradients.Layers)"""

    @property
    def widths(self) -> tuple[int, ...]:
        """Of every product over all time steps, the size other than H"""

    def take(self, da: Tensor, begin: int, end: int) -> None:
        """Do the part of steps begin .. end - 1, in launch order, and all before.  da is final there."""


def all_widths(lanes: Lanes, I: int, H: int) -> tuple[int, ...]:
    """The `widths` of a launch where all gradients are asked for; I: columns of x of its first layer.  Each layer has dw_ih and
    dw_hh.  dx of the first layer alone is a product of its own: between layers it is part of the recurrence, and that of two
    directions waits for both."""
    if lanes.linked:
        return (I, I, H) + (lanes.count - 1) * (H, H)
    return (I, I, H) if lanes.count == 1 else 2 * (I, H)


# ---- the decision ---------------------------------------------------------------------------------------------------


class Schedule(NamedTuple):
    chunks: int
    us: float  # recurrence and GEMMs, estimated
    in_turn_us: float  # the same in one launch, one after the other

    @property
    def saved_us(self) -> float:
        return self.in_turn_us - self.us


def schedule(
    problem: Problem,
    plan: Plan,
    lanes: Lanes,
    device: Device,
    T: int,
    widths: Sequence[int],
    asked: int | None = None,
    constants: latency.Constants = latency.CONSTANTS,
) -> Schedule | None:
    """Into how many launches a backward pass of T steps is cut, and the GEMMs of these `widths` with it; None where a plan's
    launches cannot be.  `asked`: so many, T at most.  Pure."""
    if not can_chunk(plan):
        return None
    assert isinstance(plan, Grid)
    counts = {1, min(asked, T)} if asked else {n for n in COUNTS if n <= T} if device.cooperative else {1}
    times = {n: _pipeline_us(problem, plan, lanes, device, T, widths, n, constants) for n in sorted(counts)}
    best = min(asked, T) if asked else min(times, key=lambda n: times[n])
    if not asked and times[1] - times[best] < max(LEAST_US, LEAST_SHARE * times[1]):
        best = 1
    return Schedule(best, times[best], times[1])


def asked_chunks() -> int | None:
    """by `overriding`"""
    return dict(overrides()).get("chunks")


def can_chunk(plan: Plan) -> bool:
    """Can a launch go on where an earlier one ended?  The state must be in memory."""
    return isinstance(plan, Grid)


def _pipeline_us(
    problem: Problem, plan: Grid, lanes: Lanes, device: Device, T: int, widths: Sequence[int], chunks: int,
    c: latency.Constants,
) -> float:  # fmt: skip
    """Recurrence and GEMMs of n chunks.  Beside the recurrence the GEMMs have the SMs that it leaves; what is left of them
    when it is through has the chip."""
    step = latency.lanes_step(problem, plan, device, lanes, c)[0]
    fill = latency.fill(plan, lanes)  # by each launch
    recurrence = (T / chunks + fill) * step
    gemms = [_gemm_us(problem, device, T, n, c) / chunks for n in widths]
    free = max(0.0, 1 - lanes.count * plan.groups * plan.ctas / device.sms)
    between = _between_us(problem, lanes, device, widths, gemms, c)
    us, left = recurrence, sum(gemms)
    for _ in range(chunks - 1):
        us += between + recurrence
        left = max(0.0, left - free * (between + recurrence)) + sum(gemms)
    host = c.host_us * chunks * (1 + 2 * len(widths))  # a launch; a GEMM and an addition each
    return us + left if chunks == 1 else max(us + left, host)


def _between_us(
    problem: Problem, lanes: Lanes, device: Device, widths: Sequence[int], gemms: Sequence[float], c: latency.Constants
) -> float:
    """From one chunk's recurrence to the next: a cooperative launch, W_hh and W_in again; and the SMs that a GEMM has taken
    in the meantime, for as long as its programs run: all of it, or of more output tiles than SMs its part."""
    weights = lanes.count * problem.H * problem.H * (2 if lanes.linked else 1) * SIZES[problem.dtype]
    loading = weights / latency.rates(device).dram
    waves = [max(1.0, math.ceil(problem.H / _TILE) * math.ceil(n / _TILE) / device.sms) for n in widths]
    program = max((us / wave for us, wave in zip(gemms, waves, strict=True)), default=0.0)
    return c.node_us + c.cooperative_us + loading + program


def _gemm_us(problem: Problem, device: Device, T: int, width: int, c: latency.Constants) -> float:
    """Of da[T*B,H] by a matrix of T*B rows, or H, and `width` columns: three such tensors are read or written but one that is
    small"""
    rows = T * problem.B
    flop = 2.0 * rows * problem.H * width
    return latency.gemm_us(problem, device, flop, rows * (problem.H + width) * SIZES[problem.dtype]) / c.efficiency


# ---- carrying it out ------------------------------------------------------------------------------------------------


def backward(work: Work, site: Any, *arguments: Any) -> Tensor:
    """da of site.backward(*arguments), and `work` done with it"""
    if not hasattr(site, "start_backward"):  # one launch, or one a step
        da: Tensor = site.backward(*arguments)
        work.take(da, 0, da.shape[-3])
        return da
    started = site.start_backward(*arguments)
    da, T = started.da, started.T
    chunks = _chunks(site, T, work.widths, da.device)
    steps = list(pairwise(k * T // chunks for k in range(chunks + 1)))
    if da.is_cuda and chunks > 1:
        _beside(started, steps, work)
        return da
    for begin, end in steps:
        started.launch(begin, end)
        work.take(da, begin, end)
    return da


def _chunks(site: Any, T: int, widths: tuple[int, ...], device: torch.device) -> int:
    key = T, widths, asked_chunks()
    found: int | None = site.chunks.get(key)
    if found is None:
        best = schedule(site.problem, site.plan, site.lanes, hardware.of(device), *key)
        if len(site.chunks) >= 1024:  # as many as sites are kept; of sequences of ever different length
            site.chunks.clear()
        found = site.chunks[key] = 1 if best is None else best.chunks
    return found


def _beside(started: Any, steps: Sequence[tuple[int, int]], work: Work) -> None:
    """The recurrence on a stream of its own, `work` on the current one, each chunk behind an event.

    Memory.  Everything is allocated on the current stream.  The other one begins behind what that has done so far, so a
    block's former user is through; and before this function ends, however it ends, the current stream waits for the last
    launch.  `started` holds the tensors of the launches until then.  So a block that is freed later and given out again is
    used on the current stream behind every launch that used it, as if all had run there: no record_stream, which would
    delay the reuse, and in the capture of a CUDA graph prevent it.

    Capture.  The fork and the join are events, which a graph takes as edges.  Nothing here waits on the host."""
    current = torch.cuda.current_stream(started.da.device)
    side = _side(current)
    side.wait_stream(current)
    done = []
    try:
        with torch.cuda.stream(side):
            for begin, end in steps:  # all of them first: the recurrence must not wait for the host
                started.launch(begin, end)
                done.append(side.record_event())
        for (begin, end), event in zip(steps, done, strict=True):
            current.wait_event(event)
            work.take(started.da, begin, end)
    except BaseException:
        current.wait_stream(side)
        raise


# By the current stream: one for all would make streams of the caller wait for each other, and draw what one of them does into
# the capture of another.  torch hands out 32 streams of a priority in turn, so beyond as many callers that happens all the same:
# slower, and in the order that it must have.
_sides: dict[tuple[int, int], torch.cuda.Stream] = {}


def _side(current: torch.cuda.Stream) -> torch.cuda.Stream:
    """Of high priority: where programs of both wait for an SM, those of the recurrence go first"""
    key = current.device_index, current.cuda_stream
    found = _sides.get(key)
    if found is None:
        found = _sides[key] = torch.cuda.Stream(current.device, priority=-1)
    return found
