"""Time on a GPU: raw samples of several callables, taken in blocks of a random order and its reverse (A C B, B C A) so that drift meets all alike;
then clocks, power and what throttles, of each alone.

Before each sample a buffer larger than the L2 cache is overwritten, so that every callable starts from the same cache state, and then the stream
spins for longer than the host takes to queue the call: the clock starts when all of it waits, and no gap of the host's is timed as the device's. """

from __future__ import annotations

import contextlib
import functools
import random
import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import Any, NamedTuple

import torch

from rnn_triton.plan import hardware

from ..records.environment import _output, smi_name
from ..records.schema import TELEMETRY, quantiles

Calls = Mapping[str, Callable[[], object]]
Announce = Callable[[str], object]  # str: says nothing
WARMUP = 3
FEWEST, MOST = 10, 200  # samples per callable
LONG_US, FEWEST_LONG = 2e5, 5  # a call that takes longer: one warm-up, and as few samples as compare.py takes, will do
SPIN = 2.0  # times what queueing the call took when it was tried
# No longer: a stream holds about a thousand launches, and a host that has queued them waits for the spin to end.
LONGEST_SPIN_US = 2e4
SEED = 0  # of the order in which callables take turns


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
    """Names in the order they are called: round after round, those called less often spread evenly over the whole time.

    Two rounds are a block, a random order and its reverse: what drifts evenly within it meets all alike, and none always comes
    after the same other one, whose heat and L2 it would inherit.  The seed is fixed, so the order can be had again."""
    rounds, order, generator = max(wanted.values(), default=0), list(wanted), random.Random(SEED)
    for i in range(rounds):
        if i % 2:
            order.reverse()
        else:
            generator.shuffle(order)
        yield from (name for name in order if (i + 1) * wanted[name] // rounds > i * wanted[name] // rounds)


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
INTERVAL_MS = 100  # between two samples of them
# Bits of what nvidia-smi calls clock event reasons; an idle GPU, and what users set, throttle nothing.
THROTTLES = {0x4: "power cap", 0x8: "hardware slowdown", 0x20: "thermal", 0x40: "thermal (hardware)", 0x80: "power brake"}
SETTLING, STEADY = 1.5, 10  # seconds until power is that of a call; samples after them that it takes to tell an energy
BATCH_US = 1e4  # of calls that are queued before the host waits for them


class Telemetry(contextlib.AbstractContextManager["Telemetry"]):
    """What nvidia-smi tells, of each call by itself; nothing where there is no nvidia-smi."""

    def __init__(self, device: torch.device):
        self._columns: dict[Hashable, list[tuple[float, str]]] = {}
        self._energy: dict[Hashable, float | None] = {}
        self._who: Hashable = None
        command = f"nvidia-smi --query-gpu={','.join((*CLOCKS, _reasons()))} --format=csv,noheader,nounits -lms {INTERVAL_MS} -i"
        self._process: Any = None
        with contextlib.suppress(OSError):
            self._process = subprocess.Popen([*command.split(), smi_name(device)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
            self._reader = threading.Thread(target=self._read, daemon=True)
            self._reader.start()

    def _read(self) -> None:
        for line in self._process.stdout:
            self._columns.setdefault(self._who, []).append((time.perf_counter(), line))

    def alone(self, key: Hashable, call: Callable[[], object], seconds: float, us: float) -> None:
        """Make calls, which take `us` each, for so many seconds, and note what nvidia-smi says meanwhile."""
        torch.cuda.synchronize()
        self._who, begin, calls = key, time.perf_counter(), 0
        batch = max(1, int(BATCH_US / us))
        while not calls or time.perf_counter() - begin < seconds:
            for _ in range(batch):
                call()
            calls += batch
            torch.cuda.synchronize()
        self._who, took = None, time.perf_counter() - begin
        later = "".join(line for when, line in self._columns.get(key, ()) if when - begin > SETTLING)
        watts = columns_of(later)[CLOCKS.index("power.draw")]
        self._energy[key] = statistics.mean(watts) * took / calls if len(watts) >= STEADY else None

    def fields(self, key: Hashable) -> dict[str, Any]:
        """Of a record: medians of TELEMETRY, what throttled, and the energy of a call in joules, where it ran for long enough"""
        *columns, reasons = columns_of("".join(line for _, line in self._columns.get(key, ())))
        seen = functools.reduce(int.__or__, map(int, reasons), 0)
        return {
            "telemetry": {name: statistics.median(column) for name, column in zip(TELEMETRY, columns) if column},
            "throttled": [word for bit, word in THROTTLES.items() if seen & bit] if reasons else None, "joules": self._energy.get(key),
        }  # fmt: skip

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.terminate()
            self._reader.join()
            self._process.wait()


@functools.cache
def _reasons() -> str:
    """What this nvidia-smi calls the reasons for its clocks: drivers from 535 on have the newer name"""
    newer = "clocks_event_reasons.active"
    return newer if newer in (_output("nvidia-smi", "--help-query-gpu") or "") else "clocks_throttle_reasons.active"


def columns_of(lines: str) -> list[list[float]]:
    """The numbers of each of CLOCKS, and of the reasons, in nvidia-smi's lines, one a sample; what it calls [N/A], and a line cut
    short, count for nothing."""
    columns: list[list[float]] = [[] for _ in (*CLOCKS, "reasons")]
    for line in lines.splitlines():
        parts = line.split(",")
        if len(parts) == len(columns):
            for column, part in zip(columns, parts):
                with contextlib.suppress(ValueError):
                    column.append(float(int(part, 16)) if "0x" in part else float(part))
    return columns


def others(device: torch.device) -> int | None:
    """How many processes have the GPU besides this one; None where nvidia-smi does not see even this one"""
    seen = (_output("nvidia-smi", "--query-compute-apps=pid", "--format=csv,noheader", "-i", smi_name(device)) or "").splitlines()
    return len(seen) - 1 if seen else None


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
