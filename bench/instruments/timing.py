"""Time on a GPU: raw samples of several callables, taken in turn (A B A B ...) so that drift meets all alike.

Before each sample a buffer larger than the L2 cache is overwritten, so that every callable starts from the same cache state,
and then the stream spins for longer than the host takes to queue the call: the clock starts when all of it waits, and no
gap of the host's is timed as the device's.
"""

from __future__ import annotations

import contextlib
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch

from rnn_triton.plan import hardware

from ..records.environment import smi_name
from ..records.schema import TELEMETRY, quantiles

Calls = Mapping[str, Callable[[], object]]
Announce = Callable[[str], object]  # str: says nothing
WARMUP = 3
FEWEST, MOST = 10, 200  # samples per callable
LONG_US, FEWEST_LONG = 2e5, 5  # a call that takes longer: one warm-up, and as few samples as compare.py takes, will do
SPIN = 2.0  # times what queueing the call took when it was tried
# No longer: a stream holds about a thousand launches, and a host that has queued them waits for the spin to end.
LONGEST_SPIN_US = 2e4


class Timed(NamedTuple):
    """Samples of a call in microseconds, the spin before each, and how many are `late`: their clock started before the whole
    call was queued, and the host may have kept the device waiting."""

    us: list[float]
    spin_us: float
    late: int


class Flush:
    """Overwrites four times the L2 cache, then keeps the stream busy for some microseconds."""

    def __init__(self, device: torch.device):
        size = 4 * torch.cuda.get_device_properties(device).L2_cache_size
        self._buffer = torch.empty(size, dtype=torch.int8, device=device)
        self._cycles = 1e3 * hardware.of(device).clock_ghz  # a microsecond, at the highest clock: never too short

    def __call__(self, spin_us: float = 0.0) -> None:
        self._buffer.zero_()
        torch.cuda._sleep(int(spin_us * self._cycles))


def device_us(calls: Calls, flush: Callable[[float], None], budget_s: float, announce: Announce = str) -> dict[str, Timed]:
    """Device time of each call, by events around it; about budget_s seconds for all of them.

    `announce` is told whose turn it is, outside of what is timed."""
    costs, spins = {}, {}
    for name, call in calls.items():
        announce(name)
        for _ in range(WARMUP):
            if _sample(call, flush)[0] > LONG_US:
                break
        cost, queued = _sample(call, flush)
        spins[name] = min(SPIN * queued, LONGEST_SPIN_US)
        costs[name] = cost + spins[name]
    pairs: dict[str, list[tuple[torch.cuda.Event, torch.cuda.Event]]] = {name: [] for name in calls}
    late = dict.fromkeys(calls, 0)
    for name in turns(counts(costs, budget_s)):
        announce(name)
        flush(spins[name])
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        calls[name]()
        end.record()
        late[name] += start.query()
        pairs[name].append((start, end))
    torch.cuda.synchronize()
    samples = {name: [start.elapsed_time(end) * 1e3 for start, end in events] for name, events in pairs.items()}
    return {name: Timed(samples[name], spins[name], late[name]) for name in calls}


def counts(costs_us: Mapping[str, float], budget_s: float) -> dict[str, int]:
    """How many samples of each callable: as many as its equal share of the budget holds, FEWEST to MOST."""
    share = budget_s * 1e6 / max(1, len(costs_us))
    fewest = {name: FEWEST if cost <= LONG_US else FEWEST_LONG for name, cost in costs_us.items()}
    return {name: max(fewest[name], min(MOST, int(share / max(cost, 1.0)))) for name, cost in costs_us.items()}


def turns(wanted: Mapping[str, int]) -> Iterator[str]:
    """Names in the order they are called: in turn, and those called less often spread evenly over the whole time."""
    rounds = max(wanted.values(), default=0)
    for i in range(rounds):
        for name, times in wanted.items():
            if (i + 1) * times // rounds > i * times // rounds:
                yield name


def _sample(call: Callable[[], object], flush: Callable[[float], None]) -> tuple[float, float]:
    """Microseconds of wall time that one sample takes, and that its call takes to return"""
    begin = time.perf_counter()
    flush(0.0)
    called = time.perf_counter()
    call()
    returned = time.perf_counter()
    torch.cuda.synchronize()
    return (time.perf_counter() - begin) * 1e6, (returned - called) * 1e6


def wall_us(calls: Calls, budget_s: float = 0.1, announce: Announce = str) -> dict[str, list[float]]:
    """Host wall time of each call in microseconds, from the call until the GPU is idle again."""
    samples: dict[str, list[float]] = {name: [] for name in calls}

    def once(name: str) -> float:
        announce(name)
        torch.cuda.synchronize()
        begin = time.perf_counter()
        calls[name]()
        torch.cuda.synchronize()
        return (time.perf_counter() - begin) * 1e6

    for name in turns(counts({name: once(name) for name in calls}, budget_s)):
        samples[name].append(once(name))
    return samples


CLOCKS = ("clocks.sm", "clocks.mem", "power.draw", "temperature.gpu")  # TELEMETRY as nvidia-smi calls it


@contextlib.contextmanager
def telemetry(device: torch.device) -> Iterator[dict[str, float]]:
    """Medians by the names in TELEMETRY, as far as nvidia-smi tells them every 100 ms while this is open; filled in at its end."""
    command = ["nvidia-smi", f"--query-gpu={','.join(CLOCKS)}", "--format=csv,noheader,nounits", "-lms", "100", "-i", smi_name(device)]
    medians: dict[str, float] = {}
    process = None
    with contextlib.suppress(OSError):  # no nvidia-smi: nothing is known
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        yield medians
    finally:
        if process is not None:
            process.terminate()
            medians |= telemetry_medians(process.communicate()[0])


def telemetry_medians(lines: str) -> dict[str, float]:
    """Of nvidia-smi's lines, one a sample; what it calls [N/A], and a line cut short, count for nothing."""
    columns: list[list[float]] = [[] for _ in TELEMETRY]
    for line in lines.splitlines():
        parts = line.split(",")
        if len(parts) == len(columns):
            for column, part in zip(columns, parts):
                with contextlib.suppress(ValueError):
                    column.append(float(part))
    return {name: statistics.median(column) for name, column in zip(TELEMETRY, columns) if column}


def capture(call: Callable[[], Any]) -> tuple[torch.cuda.CUDAGraph, Any]:
    """`call` as a CUDA graph, warmed up on a side stream as capture needs it, and its results, which each replay writes."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARMUP):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = call()
    return graph, result


def synchronize() -> None:
    """Wait for the GPU; raises what an earlier launch has broken."""
    torch.cuda.synchronize()


def peak_bytes(call: Callable[[], object]) -> int:
    """Most memory allocated during a call beyond what was allocated before it, its results included."""
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def kernels(call: Callable[[], object]) -> list[dict[str, object]]:
    """The GPU kernels of one call by torch.profiler: name, count, microseconds; longest first."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        call()
        torch.cuda.synchronize()
    return [
        {"name": event.key, "count": event.count, "us": event.device_time_total}
        for event in sorted(profiler.key_averages(), key=lambda e: e.device_time_total, reverse=True)
        if event.device_time_total > 0
    ]


def host_us(call: Callable[[], object], rounds: int = 50, calls: int = 20) -> tuple[float, float, float]:
    """(p20, median, p80) host microseconds per call: `rounds` samples of `calls` calls each."""
    samples = []
    for _ in range(calls):
        call()
    for _ in range(rounds):
        begin = time.perf_counter()
        for _ in range(calls):
            call()
        samples.append((time.perf_counter() - begin) * 1e6 / calls)
    return quantiles(samples) or (0.0, 0.0, 0.0)
