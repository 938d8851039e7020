"""What `bench check` does, most informative first, as data: the names of cases, and what is chosen of their plans."""

from __future__ import annotations

from ..cases import suites
from ..cases.suites import parse
from ..measure.compiling import choices_of
from .items import Item
from .probes import Equivalence, Exchange, Fault, Speed, Switch

GROUP, STEPS = choices_of(regime="cta_group"), choices_of(regime="per_step")
SENTINEL, COUNTER = (choices_of(regime="cta_group", protocol=name) for name in ("sentinel", "counter"))

# (case, choices, direction): little beside the recurrence, over many steps
PROTOCOLS = (
    ("h1024-i8-b8-t2048-bf16", SENTINEL, "forward"), ("h1024-i8-b8-t2048-bf16", COUNTER, "forward"),
    ("h512-i8-b8-t2048-bf16", SENTINEL, "forward"), ("h512-i8-b8-t2048-bf16", COUNTER, "forward"),
    ("h1024-i8-b8-t2048-bf16", SENTINEL, "backward"), ("h1024-i8-b8-t2048-bf16", COUNTER, "backward"),
    ("h1024-i8-b8-t2048-fp32", SENTINEL, "forward"),
    ("h2048-i8-b8-t1024-bf16", SENTINEL, "forward"), ("h2048-i8-b8-t1024-bf16", COUNTER, "forward"),
    ("h1024-i8-b64-t1024-bf16", SENTINEL, "forward"), ("h1024-i8-b64-t1024-bf16", COUNTER, "forward"),
    ("h1024-i8-b8-t2048-bf16", (*SENTINEL, ("units", 32)), "forward"),
    ("h1024-i8-b8-t2048-bf16", (*SENTINEL, ("units", 64)), "forward"),
    ("h4096-i8-b8-t512-bf16", SENTINEL, "forward"), ("h4096-i8-b8-t512-bf16", COUNTER, "backward"),
    # for the fit of the latency model: its other two regimes
    ("h128-i8-b8-t4096-bf16", (), "forward"), ("h128-i8-b8-t4096-bf16", (), "backward"),
    ("lstm-h1024-i8-b8-t1024-bf16", SENTINEL, "forward"), ("lstm-h1024-i8-b8-t1024-bf16", SENTINEL, "backward"),
    ("gru-h1024-i8-b8-t1024-bf16", SENTINEL, "forward"), ("gru-h1024-i8-b8-t1024-bf16", SENTINEL, "backward"),
    ("lstm-h128-i8-b8-t2048-bf16", (), "forward"), ("lstm-h128-i8-b8-t2048-bf16", (), "backward"),
    ("h128-i8-b8-t512-bf16", STEPS, "forward"), ("h128-i8-b8-t512-bf16", STEPS, "backward"),
)  # fmt: skip

EQUIVALENCE = (
    ("h1024-b8-t6-bf16", SENTINEL), ("h1024-b8-t6-bf16", COUNTER), ("h1024-b8-t6-fp32", SENTINEL),
    ("h384-b16-t6-bf16", SENTINEL), ("h2048-b16-t6-bf16", SENTINEL), ("h4096-b8-t6-bf16", SENTINEL),
    ("h1024-b8-t6-fp16", SENTINEL), ("h512-b8-t6-bf16", STEPS),
    ("h128-b16-t6-bf16", ()), ("h256-b16-t6-fp16", ()), ("h128-b16-t6-fp32", ()),
    ("h1000-b3-t6-bf16", SENTINEL), ("h1024-b300-t6-bf16", SENTINEL), ("h1024-b300-t6-bf16", COUNTER),  # 300: several tiles a group
    ("h384-b5-t6-fp32", COUNTER), ("h512-i50-b8-t6-fp16", COUNTER), ("h320-b1-t6-fp16", SENTINEL),
    ("h1760-b17-t6-bf16", SENTINEL), ("h2048-b8-t6-fp32", SENTINEL), ("h4096-b3-t6-fp16", COUNTER),
    ("h512-i37-b33-t6-fp32", SENTINEL), ("h1000-i1-b9-t6-fp32", COUNTER),
    ("h512-b8-t6-bf16", (*SENTINEL, ("w_ih_home", "shared"))), ("h512-b8-t6-bf16", (*SENTINEL, ("w_ih_home", "gemm"))),
    ("elman_relu-h512-b8-t6-bf16", SENTINEL),
    ("lstm-h1024-b8-t6-bf16", SENTINEL), ("gru-h1024-b8-t6-fp16", COUNTER), ("lstm-h512-b16-t6-fp32", SENTINEL),
    ("gru-h2048-b8-t6-bf16", SENTINEL), ("lstm-h128-b8-t6-bf16", ()), ("gru-h512-b8-t6-bf16", STEPS),
    ("leaky_tanh-h512-b8-t6-bf16", SENTINEL), ("lstm-h512-b8-t6-l2-bf16", ()), ("gru-h512-b8-t6-bi-bf16", ()),
    ("h1024-b16-t6-bf16", (*SENTINEL, ("units", 32), ("block_b", 16))),
    ("h1024-b16-t6-bf16", (*SENTINEL, ("units", 64), ("block_b", 16))),
    ("h1760-b50-t6-fp16", COUNTER), ("h5000-b8-t6-bf16", STEPS), ("h1000-b3-t6-fp32", STEPS),
    ("h320-b16-t6-fp32-ieee", STEPS), ("h1024-i333-b300-t6-fp16", STEPS),
    # several layers or directions a launch, of a CTA each and of groups; one stack in two launches
    ("h512-b8-t6-l4-bf16", ()), ("h128-b8-t6-l2-bf16", ()), ("h1024-b8-t6-l8-fp16", ()), ("h300-b8-t6-l3-fp32", ()),
    ("h2048-b8-t6-l4-bf16", ()), ("h512-b9-t6-bi-bf16", ()), ("h128-b9-t6-l2-bi-fp16", ()), ("h300-b9-t6-l2-bi-fp32", ()),
)  # fmt: skip

# What is chosen by itself, and one change at a time; the first three are all that matters most.
SETTINGS = tuple(
    dict(zip(("x_loads", "look_every", "probe_delay"), values))
    for values in (
        ("behind", 64, 200), ("before", 1, 0), ("behind", 64, 0), ("behind", 1, 200), ("before", 64, 200), ("behind", 64, 100),
        ("behind", 64, 400),
    )
)  # fmt: skip

FAULTS = (
    ("h1024-i8-b8-t16-bf16", SENTINEL, "stuck_launch_ends"), ("h64-i8-b8-t4-bf16", GROUP, "over_subscription_raises"),
    ("h384-i8-b8-t16-fp32", SENTINEL, "stuck_launch_ends"),
)  # fmt: skip


def items() -> list[Item]:
    """On a GPU"""
    return [
        *(Exchange(parse(name), choices, direction) for name, choices, direction in PROTOCOLS),
        *(Equivalence(parse(name), choices) for name, choices in EQUIVALENCE),
        *map(Equivalence, suites.suite("check")),
        *map(Speed, suites.suite("first")),
        *(
            Switch(parse(f"h{H}-b8-t1024-bf16"), (*SENTINEL, *settings.items()), direction)
            for settings in SETTINGS
            for H in (1024, 512, 2048)
            for direction in ("forward", "backward")
            # no x backward: the others are the same twice
            if direction == "forward" or settings["x_loads"] == "behind" or settings["look_every"] == 1
        ),
        *(Fault(parse(name), choices, of) for name, choices, of in FAULTS),
    ]
