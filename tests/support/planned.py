"""Problems whose kernels are compiled ahead of time beside those of bench/compiled/planned.py."""

import functools
import itertools

from rnn_triton.plan import hardware
from rnn_triton.plan.choose import plan
from rnn_triton.plan.problem import PerStep, Problem


@functools.cache
def planned_otherwise():
    """Returns (problem, device, choices) of further plans, which the planner takes only under `overriding(**choices)`."""
    return tuple(_otherwise())


def _otherwise():
    for device in hardware.RECORDS.values():
        for direction, H, dtype, precision, choices in (
            ("forward", 1024, "bf16", None, {"protocol": "counter"}),
            ("backward", 1024, "bf16", None, {"protocol": "counter"}),
            ("forward", 384, "fp32", "tf32", {"protocol": "counter"}),
            ("forward", 1024, "bf16", None, {"regime": "cta_group", "w_ih_home": "shared"}),
            ("forward", 384, "fp32", "tf32", {"regime": "cta_group", "w_ih_home": "shared"}),
            ("forward", 512, "bf16", None, {"regime": "cta_group", "block_b": 32}),
            ("backward", 384, "fp32", "tf32", {"block_b": 32}),
            ("forward", 384, "fp32", "tf32x3", {"block_b": 32}),
            ("forward", 1024, "bf16", None, {"x_loads": "before", "look_every": 1, "probe_delay": 0}),
            ("backward", 1024, "bf16", None, {"look_every": 1, "probe_delay": 0}),
        ):
            yield Problem(direction, 8, H, H, dtype, precision, "elman_tanh"), device, choices


@functools.cache
def gated():
    """Returns (problem, device) of cells with gates, which nothing but a launch reaches yet: on one CTA with x projected by a GEMM and
    on chip, in groups with all of W_hh in registers and with a part of it in shared memory."""
    jobs = []
    for capability, cell, direction in itertools.product((90, 80, 100), ("lstm", "gru"), ("forward", "backward")):
        device = hardware.RECORDS[f"sm_{capability}"]
        sizes = [("bf16", None, 64, 64), ("bf16", None, 128, 128), ("bf16", None, 128, 125), ("fp32", "tf32", 64, 64)]
        sizes += [("bf16", None, 512, 512), ("bf16", None, 1000, 1000), ("fp32", "tf32", 512, 512)]
        if capability == 90:
            sizes += [("fp16", None, 128, 128), ("fp32", "tf32", 32, 32), ("fp32", "tf32x3", 32, 32), ("fp32", "ieee", 32, 32)]
            sizes += [("fp64", None, 16, 16), ("bf16", None, 1024, 1024), ("bf16", None, 2048, 2048)]
        for dtype, precision, I, H in sizes:
            problem = Problem(direction, 8, I if direction == "forward" else 1, H, dtype, precision, cell)
            if not isinstance(plan(problem, device), PerStep):
                jobs.append((problem, device))
    # where registers are short for a cell of one gate: the largest W_hh, and W_ih beside it
    for precision, I, H in (("ieee", 8, 128), ("tf32x3", 96, 32), ("tf32x3", 112, 32)):
        jobs.append((Problem("forward", 8, I, H, "fp32", precision, "leaky_tanh"), hardware.RECORDS["sm_90"]))
    return tuple(jobs)
