"""What stands in for a GPU: Triton's interpreter, and a clock with the functions of bench/instruments/timing.py, whose times mean nothing.

Groups of CTAs run by the interpreter that keeps all programs of a launch alive (tests/cooperative)."""

import contextlib
import math
import sys
from dataclasses import dataclass
from unittest import mock

import torch

from bench.cases.suites import parse
from bench.first_run import items, listed, probes
from bench.instruments.timing import Timed
from bench.measure import run
from rnn_triton.launch import operands

CLOCK = sys.modules[__name__]
SPINS = 64  # of a launch that is to get stuck


@dataclass(frozen=True)
class Place(items.Place):
    """The programs of a group run side by side; `stuck`: one that waits gives up soon."""

    stuck: bool = False
    name = "the interpreter"

    @contextlib.contextmanager
    def choosing(self, choices):
        from cooperative import cooperate

        group = dict(choices).get("regime") == "cta_group"
        options = {"max_idle": 20 * SPINS} if self.stuck else {}
        limit = SPINS if self.stuck else operands.SPIN_LIMIT
        # the tests of the kernels look for races; here the numbers do
        beside = cooperate(races="off", **options) if group else contextlib.nullcontext()
        with mock.patch.object(operands, "SPIN_LIMIT", limit), super().choosing(choices), beside:
            yield


def perform(item):
    """As items.perform, without a GPU; in a worker with TRITON_INTERPRET=1"""
    with mock.patch.object(run, "MOST_SECONDS", math.inf):  # of wall time, which on a busy machine says nothing: a call is made once
        return items.perform(item, Place(torch.device("cpu"), CLOCK, isinstance(item, probes.Fault)))


def dry_items():
    """An item of every sort, tiny"""
    tiny, odd, one = (parse(name) for name in ("h24-i8-b3-t4-bf16", "h20-i5-b9-t3-fp32", "h16-i8-b3-t3-bf16"))
    sentinel, counter = (*listed.SENTINEL, ("warps", 4)), (*listed.COUNTER, ("warps", 4))
    return [
        probes.Exchange(tiny, sentinel), probes.Exchange(tiny, counter, "backward"), probes.Exchange(one),
        probes.Exchange(one, listed.STEPS, "backward"), probes.Equivalence(tiny, counter), probes.Equivalence(odd, sentinel),
        probes.Equivalence(one, listed.STEPS), probes.Equivalence(one), probes.Speed(one.at(4)),
        probes.Switch(tiny, (*sentinel, *listed.SETTINGS[1].items())), probes.Fault(tiny, sentinel, "stuck_launch_ends"),
    ]  # fmt: skip


# ---- the functions of timing.py: every call is made once and said to take 10 us, and 1 us a thousand values it returns --


def Flush(device):
    return lambda spin_us=0.0: None


def device_us(calls, flush, budget_s, announce=None):
    return {name: Timed(us, 0.0, 0) for name, us in wall_us(calls).items()}


def wall_us(calls, budget_s=0.0, announce=None):
    return {name: [10.0 + 1e-3 * _values(call())] for name, call in calls.items()}


class Telemetry(contextlib.nullcontext):
    def __init__(self, device):
        super().__init__(self)

    def alone(self, key, call, seconds, us):
        pass

    def fields(self, key):
        return {}


def others(device):
    return None


def capture(call):
    raise RuntimeError("a CUDA graph needs a GPU")


def synchronize():
    pass


def peak_bytes(call):
    return None


def kernels(call):
    return []


def _values(result):
    if isinstance(result, torch.Tensor):
        return result.numel()
    if isinstance(result, dict):
        result = result.values()
    return 0 if result is None else sum(_values(part) for part in result)
