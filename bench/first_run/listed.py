"""What `bench check` does, most informative first, as data: the names of cases, and what is chosen of their plans."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ..cases import suites
from ..cases.suites import parse
from ..measure.compiling import Choices, choices_of
from .items import Item
from .probes import Equivalence, Exchange, Fault, Speed, Switch

GROUP, STEPS = choices_of(regime="cta_group"), choices_of(regime="per_step")
SENTINEL, COUNTER = (choices_of(regime="cta_group", protocol=name) for name in ("sentinel", "counter"))


def _lines(kind: str) -> Iterator[tuple[list[str], Choices]]:
    """(words, choices) of the lines of listed.txt that begin with `kind`"""
    for line in Path(__file__).with_suffix(".txt").read_text(encoding="utf-8").splitlines():
        first, *words = line.split()
        if first == kind:
            pairs = (word.split("=") for word in words if "=" in word)
            yield [word for word in words if "=" not in word], tuple((name, int(v) if v.isdigit() else v) for name, v in pairs)


PROTOCOLS = tuple((name, choices, direction) for (direction, name), choices in _lines("protocol"))
EQUIVALENCE = tuple((name, choices) for (name,), choices in _lines("equivalence"))

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
