"""Time on a GPU: raw samples of several callables, taken in turn (A B A B ...) so that drift meets all alike.

Before each sample a buffer larger than the L2 cache is overwritten: every callable starts from the same cache state,
and the GPU is busy long enough for the host to have queued the call before the clock starts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import torch

from .records import quantiles

Calls = Mapping[str, Callable[[], object]]
WARMUP = 3
FEWEST, MOST = 10, 200  # samples per callable


class Flush:
    """Overwrites four times the L2 cache."""

    def __init__(self, device: torch.device):
        size = 4 * torch.cuda.get_device_properties(device).L2_cache_size
        self._buffer = torch.empty(size, dtype=torch.int8, device=device)

    def __call__(self) -> None:
        self._buffer.zero_()


def device_us(calls: Calls, flush: Callable[[], None], budget_s: float) -> dict[str, list[float]]:
    """Device time of each call in microseconds, by events around it; about budget_s seconds for all of them."""
    for call in calls.values():
        for _ in range(WARMUP):
            call()
    torch.cuda.synchronize()
    once = sum(_sample(call, flush) for call in calls.values())
    rounds = max(FEWEST, min(MOST, int(budget_s * 1e6 / max(once, 1.0))))
    pairs: dict[str, list[tuple[torch.cuda.Event, torch.cuda.Event]]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            flush()
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            call()
            end.record()
            pairs[name].append((start, end))
    torch.cuda.synchronize()
    return {name: [start.elapsed_time(end) * 1e3 for start, end in events] for name, events in pairs.items()}


def _sample(call: Callable[[], object], flush: Callable[[], None]) -> float:
    """Microseconds of wall time one sample takes."""
    begin = time.perf_counter()
    flush()
    call()
    torch.cuda.synchronize()
    return (time.perf_counter() - begin) * 1e6


def wall_us(calls: Calls, rounds: int = 30) -> dict[str, list[float]]:
    """Host wall time of each call in microseconds, from the call until the GPU is idle again."""
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            torch.cuda.synchronize()
            begin = time.perf_counter()
            call()
            torch.cuda.synchronize()
            samples[name].append((time.perf_counter() - begin) * 1e6)
    return samples


def capture(call: Callable[[], object]) -> torch.cuda.CUDAGraph:
    """`call` as a CUDA graph, warmed up on a side stream as capture needs it."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARMUP):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph


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
    found = quantiles(samples)
    assert found is not None
    return found
