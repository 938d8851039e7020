"""Time on a GPU: raw samples of several callables, taken in turn (A B A B ...) so that drift meets all alike.

Before each sample a buffer larger than the L2 cache is overwritten: every callable starts from the same cache state,
and the GPU is busy long enough for the host to have queued the call before the clock starts.
"""

from __future__ import annotations

import contextlib
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping

import torch

from .environment import smi_name
from .records import quantiles

Calls = Mapping[str, Callable[[], object]]
Announce = Callable[[str], None]
WARMUP = 3
FEWEST, MOST = 10, 200  # samples per callable
LONG_US, FEWEST_LONG = 2e5, 5  # a call that takes longer: one warm-up, and as few samples as compare.py takes, will do


def _silently(name: str) -> None:
    pass


class Flush:
    """Overwrites four times the L2 cache."""

    def __init__(self, device: torch.device):
        size = 4 * torch.cuda.get_device_properties(device).L2_cache_size
        self._buffer = torch.empty(size, dtype=torch.int8, device=device)

    def __call__(self) -> None:
        self._buffer.zero_()


def device_us(
    calls: Calls, flush: Callable[[], None], budget_s: float, announce: Announce = _silently
) -> dict[str, list[float]]:
    """Device time of each call in microseconds, by events around it; about budget_s seconds for all of them.

    `announce` is told whose turn it is, outside of what is timed."""
    costs = {}
    for name, call in calls.items():
        announce(name)
        for _ in range(WARMUP):
            costs[name] = _sample(call, flush)
            if costs[name] > LONG_US:
                break
        costs[name] = _sample(call, flush)
    pairs: dict[str, list[tuple[torch.cuda.Event, torch.cuda.Event]]] = {name: [] for name in calls}
    for name in turns(counts(costs, budget_s)):
        announce(name)
        flush()
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        calls[name]()
        end.record()
        pairs[name].append((start, end))
    torch.cuda.synchronize()
    return {name: [start.elapsed_time(end) * 1e3 for start, end in events] for name, events in pairs.items()}


def counts(costs_us: Mapping[str, float], budget_s: float, fewest: int = FEWEST) -> dict[str, int]:
    """How many samples of each callable: as many as its equal share of the budget holds, FEWEST to MOST."""
    share = budget_s * 1e6 / max(1, len(costs_us))
    return {
        name: max(fewest if cost <= LONG_US else FEWEST_LONG, min(MOST, int(share / max(cost, 1.0))))
        for name, cost in costs_us.items()
    }


def turns(wanted: Mapping[str, int]) -> Iterator[str]:
    """Names in the order they are called: in turn, and those called less often spread evenly over the whole time."""
    rounds = max(wanted.values(), default=0)
    for i in range(rounds):
        for name, times in wanted.items():
            if (i + 1) * times // rounds > i * times // rounds:
                yield name


def _sample(call: Callable[[], object], flush: Callable[[], None]) -> float:
    """Microseconds of wall time one sample takes."""
    begin = time.perf_counter()
    flush()
    call()
    torch.cuda.synchronize()
    return (time.perf_counter() - begin) * 1e6


def wall_us(calls: Calls, budget_s: float = 0.1, announce: Announce = _silently) -> dict[str, list[float]]:
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


class Telemetry:
    """Clocks, power and temperature while it is open, asked of nvidia-smi every 100 ms.

    `medians` afterwards: sm_mhz, memory_mhz, power_w, temperature_c, as far as they could be read."""

    FIELDS = {"sm_mhz": "clocks.sm", "memory_mhz": "clocks.mem", "power_w": "power.draw", "temperature_c": "temperature.gpu"}

    def __init__(self, device: torch.device):
        self.medians: dict[str, float] = {}
        self._process: subprocess.Popen[str] | None = None
        self._name = smi_name(device)

    def __enter__(self) -> Telemetry:
        command = [
            "nvidia-smi", f"--query-gpu={','.join(self.FIELDS.values())}", "--format=csv,noheader,nounits", "-lms", "100",
            "-i", self._name,
        ]  # fmt: skip
        with contextlib.suppress(OSError):  # no nvidia-smi: nothing is known
            self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.terminate()
            self.medians = telemetry_medians(self._process.communicate()[0])


def telemetry_medians(lines: str) -> dict[str, float]:
    """Of nvidia-smi's lines, one a sample; what it calls [N/A], and a line cut short, count for nothing."""
    columns: list[list[float]] = [[] for _ in Telemetry.FIELDS]
    for line in lines.splitlines():
        parts = line.split(",")
        if len(parts) == len(columns):
            for column, part in zip(columns, parts):
                with contextlib.suppress(ValueError):
                    column.append(float(part))
    return {name: statistics.median(column) for name, column in zip(Telemetry.FIELDS, columns) if column}


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
