"""What `bench check` does, most informative first, as data."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ..cases import case as cases
from ..cases import suites
from .behaviours import Behaviour, Replay
from .constants import Gather, Launch, Rate, Slope
from .items import Item, grid, per_step
from .probes import Equivalence, Exchange, Speed, Switch

# ---- what is done, most informative first ---------------------------------------------------------------------------


def items() -> list[Item]:
    """On a GPU"""
    return [*_protocols(), *_equivalence(), *_speed(), *_switches(), *_constants(), *fault_items(), *_graphs()]


def _protocols() -> Iterable[Item]:
    case = cases.case
    both = ("sentinel", "counter")
    for H in (1024, 512):
        for protocol in both:
            yield Exchange(case(H, 8, 2048, "bf16", 8), grid(protocol=protocol))
    for protocol in both:
        yield Exchange(case(1024, 8, 2048, "bf16", 8), grid(protocol=protocol), "backward")
    yield Exchange(case(1024, 8, 2048, "fp32", 8), grid(protocol="sentinel"))
    for H, B in ((2048, 8), (1024, 64)):
        for protocol in both:
            yield Exchange(case(H, B, 1024, "bf16", 8), grid(protocol=protocol))
    for units in (32, 64):
        yield Exchange(case(1024, 8, 2048, "bf16", 8), grid(protocol="sentinel", units=units))
    yield Exchange(case(4096, 8, 512, "bf16", 8), grid(protocol="sentinel"))
    yield Exchange(case(4096, 8, 512, "bf16", 8), grid(protocol="counter"), "backward")


def _equivalence() -> Iterable[Item]:
    T = 6

    def of(H: int, B: int, dtype: str, choices: Any, I: int | None = None, **how: Any) -> Item:
        return Equivalence(cases.case(H, B, T, dtype, I, **how), choices)

    sentinel, counter = grid(protocol="sentinel"), grid(protocol="counter")
    yield of(1024, 8, "bf16", sentinel)
    yield of(1024, 8, "bf16", counter)
    yield of(1024, 8, "fp32", sentinel)
    yield of(384, 16, "bf16", sentinel)
    yield of(2048, 16, "bf16", sentinel)
    yield of(4096, 8, "bf16", sentinel)
    yield of(1024, 8, "fp16", sentinel)
    yield of(512, 8, "bf16", per_step())
    yield of(128, 16, "bf16", ())
    yield of(256, 16, "fp16", ())
    yield of(128, 16, "fp32", ())
    yield of(1000, 3, "bf16", sentinel)
    yield of(1024, 300, "bf16", sentinel)  # several tiles a group
    yield of(1024, 300, "bf16", counter)
    yield of(384, 5, "fp32", counter)
    yield of(512, 8, "fp16", counter, 50)
    yield of(320, 1, "fp16", sentinel)
    yield of(1760, 17, "bf16", sentinel)
    yield of(2048, 8, "fp32", sentinel)
    yield of(4096, 3, "fp16", counter)
    yield of(512, 33, "fp32", sentinel, 37)
    yield of(1000, 9, "fp32", counter, 1)
    for home in ("shared", "gemm"):
        yield of(512, 8, "bf16", grid(protocol="sentinel", w_ih_home=home), 512)
    yield of(512, 8, "bf16", sentinel, relu=True)
    for units in (32, 64):
        yield of(1024, 16, "bf16", grid(protocol="sentinel", units=units, block_b=16))
    yield of(1760, 50, "fp16", counter)
    yield of(5000, 8, "bf16", per_step())
    yield of(1000, 3, "fp32", per_step())
    yield of(320, 16, "fp32", per_step(), ieee=True)
    yield of(1024, 300, "fp16", per_step(), 333)
    # several layers or directions a launch, of a CTA each and of groups; one stack in two launches
    for H, dtype, layers in ((512, "bf16", 4), (128, "bf16", 2), (1024, "fp16", 8), (300, "fp32", 3), (2048, "bf16", 4)):
        yield of(H, 8, dtype, (), layers=layers)
    for H, dtype, layers in ((512, "bf16", 1), (128, "fp16", 2), (300, "fp32", 2)):
        yield of(H, 9, dtype, (), layers=layers, bidirectional=True)
    for listed in suites.suite("check"):
        yield Equivalence(listed)


def _speed() -> Iterable[Item]:
    for listed in suites.suite("first"):
        yield Speed(listed)


# What is chosen by itself, and one change at a time; the first three are all that matters most.
SETTINGS = (
    {"x_loads": "behind", "look_every": 64, "probe_delay": 200},
    {"x_loads": "before", "look_every": 1, "probe_delay": 0},
    {"x_loads": "behind", "look_every": 64, "probe_delay": 0},
    {"x_loads": "behind", "look_every": 1, "probe_delay": 200},
    {"x_loads": "before", "look_every": 64, "probe_delay": 200},
    {"x_loads": "behind", "look_every": 64, "probe_delay": 100},
    {"x_loads": "behind", "look_every": 64, "probe_delay": 400},
)


def _switches() -> Iterable[Item]:
    for settings in SETTINGS:
        for H in (1024, 512, 2048):
            yield Switch(cases.case(H, 8, 1024, "bf16"), grid(protocol="sentinel", **settings))
            if settings["x_loads"] == "behind" or settings["look_every"] == 1:  # no x there: the others are the same twice
                yield Switch(cases.case(H, 8, 1024, "bf16"), grid(protocol="sentinel", **settings), "backward")


def _constants() -> Iterable[Item]:
    case = cases.case
    small = case(128, 8, 1, "bf16", 8)
    wide = case(512, 8, 1, "bf16", 8)
    yield Slope(small, constant="local_us")
    for protocol in ("sentinel", "counter"):
        for units in (16, 64):
            chosen = grid(protocol=protocol, units=units, groups=1)
            yield Slope(wide, chosen, constant=f"{protocol}_us", steps=(256, 2048))
    yield Gather(
        case(2048, 8, 64, "bf16", 8), grid(protocol="sentinel", groups=1, block_b=8), constant="L2 gather",
        unit="bytes a cycle, CTA",
    )
    yield Launch(wide, grid(), constant="launch of a grid")
    yield Launch(small, constant="launch of one CTA")
    yield Slope(small, per_step(), constant="host_us", steps=(64, 512), by="wall")
    yield Slope(small, per_step(), constant="node_us", steps=(64, 512), by="graph")
    yield Rate(small, constant="GEMM", unit="TFLOP/s", size=8192)
    yield Rate(small, constant="fill", unit="TB/s", size=2**28)


def fault_items() -> Iterable[Item]:
    case = cases.case
    yield Behaviour(case(1024, 8, 16, "bf16", 8), grid(protocol="sentinel"), of="stuck_launch_ends")
    yield Behaviour(case(64, 8, 4, "bf16", 8), grid(), of="over_subscription_raises")
    yield Behaviour(case(1024, 8, 4, "bf16", 8), grid(), of="planner_refuses")
    yield Behaviour(case(384, 8, 16, "fp32", 8), grid(protocol="sentinel"), of="stuck_launch_ends")


def _graphs() -> Iterable[Item]:
    case = cases.case
    calls = [
        (case(1024, 8, 64, "bf16"), grid(protocol="sentinel")),
        (case(1024, 8, 64, "bf16"), grid(protocol="counter")),
        (case(512, 64, 32, "fp32"), grid(protocol="sentinel")),
        (case(512, 8, 32, "bf16"), per_step()),
        (case(128, 16, 64, "bf16"), ()),
    ]
    for of in ("graph_replays_bitwise", "repeats_bitwise"):
        for chosen, choices in calls:
            yield Replay(chosen, choices, of=of)


def dry_items() -> list[Item]:
    """By interpreter: an item of every sort, tiny"""
    case = cases.case
    tiny, odd = case(24, 3, 3, "bf16", 8), case(20, 9, 3, "fp32", 5)
    sentinel, counter = grid(protocol="sentinel", warps=4), grid(protocol="counter", warps=4)
    return [
        Exchange(tiny.at(4), sentinel),
        Exchange(tiny.at(4), counter, "backward"),
        Switch(tiny.at(4), grid(protocol="sentinel", warps=4, **SETTINGS[1])),
        Equivalence(tiny, counter),
        Equivalence(odd, sentinel),
        Equivalence(case(20, 3, 3, "fp16", 8), per_step()),
        Equivalence(case(16, 3, 3, "bf16", 8)),
        Speed(case(16, 3, 4, "bf16", 8)),
        Slope(case(16, 3, 1, "bf16", 8), constant="local_us", steps=(2, 4)),
        Slope(tiny, sentinel, constant="sentinel_us", steps=(2, 4)),
        Slope(case(16, 3, 1, "bf16", 8), per_step(), constant="host_us", steps=(2, 4), by="wall"),
        Slope(case(16, 3, 1, "bf16", 8), per_step(), constant="node_us", steps=(2, 4), by="graph"),
        Gather(case(24, 8, 2, "bf16", 8), grid(groups=1, block_b=8, warps=4), constant="L2 gather", tiles=(1, 2)),
        Launch(tiny, sentinel, constant="launch of a grid"),
        Rate(tiny, constant="GEMM", unit="TFLOP/s", size=32),
        Rate(tiny, constant="fill", unit="TB/s", size=1024),
        Behaviour(tiny, sentinel, of="stuck_launch_ends"),
        Behaviour(tiny, sentinel, of="over_subscription_raises"),
        Behaviour(tiny, sentinel, of="planner_refuses"),
        Replay(tiny, sentinel, of="graph_replays_bitwise"),
        Replay(tiny, sentinel, of="repeats_bitwise"),
    ]
