"""Plans that the planner takes only where it is told to, beside those of bench/compiled/planned.py."""

import functools

from rnn_triton.plan import hardware
from rnn_triton.plan.problem import Problem


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
