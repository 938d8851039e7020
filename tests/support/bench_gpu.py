"""A GPU of one stream, its host and its memory, as far as bench/instruments/timing.py sees them: time passes when something is done.

`GPU.installed(timing)` puts it in the place of torch and of the clock in that module.
"""

import contextlib
from types import SimpleNamespace
from unittest import mock

L2 = 1000  # bytes
CLOCK_GHZ = 2.0


class GPU:
    """Times in microseconds since the start. `log`: what was done, in order."""

    def __init__(self):
        self.now = self.idle = 0.0  # on the host; when the stream has done what is queued
        self.log, self.l2_is_cold, self.capturing, self.side = [], True, None, False
        self.allocated = self.peak = 0
        properties = SimpleNamespace(L2_cache_size=L2)
        self.cuda = SimpleNamespace(
            Event=lambda enable_timing: Event(self), synchronize=self.synchronize, _sleep=self.sleep,
            get_device_properties=lambda device: properties, memory_allocated=lambda: self.allocated,
            max_memory_allocated=lambda: self.peak, reset_peak_memory_stats=self.reset, CUDAGraph=lambda: Graph(self),
            graph=self.capture, Stream=lambda: Stream(self), current_stream=lambda: Stream(self), stream=self.on_side,
        )  # fmt: skip

    @contextlib.contextmanager
    def installed(self, timing):
        fake = SimpleNamespace(cuda=self.cuda, int8=None, empty=lambda size, dtype, device: Buffer(self, size))
        clock = SimpleNamespace(perf_counter=lambda: self.now * 1e-6)
        of = SimpleNamespace(of=lambda device: SimpleNamespace(clock_ghz=CLOCK_GHZ))
        with mock.patch.multiple(timing, torch=fake, time=clock, hardware=of):
            yield self

    def host(self, us):
        self.now += us

    def launch(self, us):
        """A kernel: into the graph that is captured, or into the stream"""
        if self.capturing is not None:
            self.capturing.append(us)
        else:
            self.idle = max(self.now, self.idle) + us

    def sleep(self, cycles):
        self.log.append("spin")
        self.launch(cycles / (1e3 * CLOCK_GHZ))

    def synchronize(self):
        self.now = max(self.now, self.idle)

    def allocate(self, size):
        self.allocated += size
        self.peak = max(self.peak, self.allocated)

    def reset(self):
        self.peak = self.allocated

    @contextlib.contextmanager
    def capture(self, graph):
        self.capturing = graph.kernels
        yield
        self.capturing = None

    @contextlib.contextmanager
    def on_side(self, stream):
        self.side = True
        yield
        self.side = False


class Buffer:
    def __init__(self, gpu, size):
        self.gpu, self.size = gpu, size

    def zero_(self):
        self.gpu.log.append("flush")
        self.gpu.launch(self.size / 100)
        self.gpu.l2_is_cold |= self.size >= 2 * L2


class Event:
    def __init__(self, gpu):
        self.gpu = gpu

    def record(self):
        self.at = max(self.gpu.now, self.gpu.idle)

    def query(self):
        return self.at <= self.gpu.now

    def elapsed_time(self, end):
        if not (self.query() and end.query()):
            raise RuntimeError("device not ready")
        return (end.at - self.at) * 1e-3


class Stream:
    def __init__(self, gpu):
        self.gpu = gpu

    def wait_stream(self, other):
        pass


class Graph:
    def __init__(self, gpu):
        self.gpu, self.kernels = gpu, []

    def replay(self):
        self.gpu.host(3.0)
        for us in self.kernels:
            self.gpu.launch(us)


class Call:
    """Launches `kernels` kernels of `us` each, after `host` microseconds of the host's each. The first `cold` calls take a
    second more on the host and run ten times as long; a cold L2 costs MISSES more. `holds` bytes are allocated and freed."""

    MISSES = 7.0

    def __init__(self, gpu, name="call", kernels=1, us=100.0, host=4.0, cold=3, holds=0):
        self.gpu, self.name, self.kernels, self.us, self.each, self.cold, self.holds = gpu, name, kernels, us, host, cold, holds

    def __call__(self):
        gpu = self.gpu
        gpu.log.append(self.name)
        gpu.allocate(self.holds)
        slow = self.cold > 0
        if slow:
            if gpu.capturing is not None:
                raise RuntimeError("operation not permitted when stream is capturing")
            self.cold -= 1
            gpu.host(1e3)
        if gpu.l2_is_cold:
            gpu.launch(self.MISSES)
            gpu.l2_is_cold = False
        for _ in range(self.kernels):
            gpu.host(self.each)
            gpu.launch(self.us * (10 if slow else 1))
        gpu.allocate(-self.holds)
