"""Items that look for a property of launches: what must fail, and does; equal bits of repeated calls."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

import torch

from ..cases import estimate as model
from ..cases.case import Case
from ..cases.inputs import tensors
from ..measure import check
from ..providers.registry import PROVIDERS
from ..records.schema import OURS
from .items import Choices, Fields, Item, NotHere, Place, Wrong, operands_of

# ---- e, f: what must hold of launches -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Behaviour(Item):
    """A property of launches: `of` names the function below that looks."""

    kind = "behaviour"
    section = "faults"

    of: str = ""

    @property
    def name(self) -> str:
        return f"{self.of.replace('_', ' ')}, {super().name}"

    def fields(self) -> Fields:
        return {"name": self.of}

    def measure(self, place: Place, records: list[Fields]) -> None:
        began = time.monotonic()
        try:
            records[0]["message"] = BEHAVIOURS[self.of](place, self.case, self.choices)
        finally:
            records[0]["seconds"] = time.monotonic() - began


class Replay(Behaviour):
    """A property of calls made again."""

    section = "graphs"


def planner_refuses(place: Place, case: Case, choices: Choices) -> str:
    """No plan is larger than the device, whatever is asked for."""
    problem = model.problems(case)[0]
    with place.choosing(choices):
        plan = place.plan(problem)
    groups = place.record.sms // plan.ctas + 1
    many = replace(case, B=8 * groups)
    from rnn_triton.plan.choose import plan as planned
    from rnn_triton.plan.overriding import overriding

    with overriding(**dict(choices), units=plan.units, groups=groups):
        try:
            found: Any = planned(model.problems(many)[0], place.record)
        except ValueError as error:
            return f"{groups} groups of {plan.ctas} CTAs: {str(error)[:120]}"
    raise Wrong(f"there is a plan of {found.groups} x {found.ctas} CTAs for {place.record.sms} SMs")


def over_subscription_raises(place: Place, case: Case, choices: Choices) -> str:
    """More CTAs than can be on the device at once: the launch raises and the one after it works."""
    from rnn_triton.launch import recurrence

    if place.is_dry:
        raise NotHere("needs a GPU")
    problem = model.problems(case)[0]
    with place.choosing(choices):
        plan = place.plan(problem)
    groups = 32 * place.record.sms // plan.ctas + 1  # an SM holds 32 CTAs at most, be they as small as they are
    many = replace(case, B=plan.block_b * groups)
    launch = recurrence.Recurrence(model.problems(many)[0], replace(plan, groups=groups))
    try:
        _forward(launch, many, place)
    except RuntimeError as error:
        message = str(error)
        if "cooperative" not in message:
            raise
    else:
        raise Wrong(f"{groups} groups of {plan.ctas} CTAs were launched on {place.record.sms} SMs")
    _still_right(place, case, choices)
    return f"{groups * plan.ctas} CTAs: {message}; the next launch is right"


def stuck_launch_ends(place: Place, case: Case, choices: Choices) -> str:
    """A group that lacks a CTA gives up: ExchangeError soon, NaN from the failing step on, the next launch right."""
    import rnn_triton
    from rnn_triton.launch import operands, recurrence

    problem = model.problems(case)[0]
    limit = 64 if place.is_dry else operands.SPIN_LIMIT
    interpreter = dict(max_idle=20 * limit) if place.is_dry else {}
    with place.choosing(choices, **interpreter), mock.patch.object(operands, "SPIN_LIMIT", limit):
        plan = place.plan(problem)
        if plan.ctas < 2 or plan.protocol != "sentinel":
            raise NotHere("needs a plan of several CTAs that exchange by sentinel")
        launch = recurrence.Recurrence(problem, replace(plan, ctas=plan.ctas - 1))
        y, hn = _forward(launch, case, place)
        began = time.monotonic()  # it is compiled, and under way
        try:
            rnn_triton.synchronize(place.device)
        except rnn_triton.ExchangeError as error:
            message = str(error)
        else:
            raise Wrong("rnn_triton.synchronize() reported nothing")
        seconds = time.monotonic() - began
    if "step 1 " not in message:
        raise Wrong(f"the report does not name step 1: {message}")
    there = plan.units * (plan.ctas - 1)  # hidden units that were computed
    truth = check.reference(case, tensors(case, place.device))["y"]
    first = check.compare(case, {"y": y[:1, :, :there]}, {"y": truth[:1, :, :there]})
    if not first.ok:
        raise Wrong(f"the step before: {first.message}")
    if not (y[1:].isnan().all() and hn[:, :there].isnan().all()):
        raise Wrong("outputs after the failing step are not all NaN")
    if seconds > 20 and not place.is_dry:
        raise Wrong(f"it took {seconds:.0f} s")
    _still_right(place, case, choices)
    return f"ended after {seconds:.1f} s; the next launch is right"


def repeats_bitwise(place: Place, case: Case, choices: Choices) -> str:
    """The same call gives the same bits, also beside another stream's work."""
    times = 2 if place.is_dry else 20
    inputs = tensors(case, place.device)
    with place.choosing(choices):
        for problem in model.problems(case):
            place.plan(problem)
        session = PROVIDERS[OURS].session(case, inputs)
        expected = _copies(session.train())
        for number in range(times):
            with _other_work(place):
                _same_bits(session.train(), expected, f"repetition {number + 1}")
    return f"{times} repetitions, forward and backward"


def graph_replays_bitwise(place: Place, case: Case, choices: Choices) -> str:
    """Captured once and replayed on other inputs, forward and backward give the bits that eager calls give."""
    if place.is_dry:
        raise NotHere("needs a GPU")
    inputs = tensors(case, place.device)
    with place.choosing(choices):
        for problem in model.problems(case):
            place.plan(problem)
        session = PROVIDERS[OURS].session(case, inputs)

        def forward() -> dict[str, torch.Tensor]:
            return dict(zip(("y", "hn"), session.forward()))

        for what, eager in (("forward", forward), ("forward and backward", session.train)):
            graph, static = place.clock.capture(eager)
            for replay in range(3):
                inputs["x"].copy_(tensors(case, place.device, seed=replay + 1)["x"])
                expected = _copies(eager())
                for result in static.values():
                    result.fill_(float("nan"))
                graph.replay()
                _same_bits(static, expected, f"{what}, replay {replay + 1}")
    return "3 replays each, on other inputs"


BEHAVIOURS: dict[str, Callable[[Place, Case, Choices], str]] = {
    function.__name__: function
    for function in (
        planner_refuses, over_subscription_raises, stuck_launch_ends, repeats_bitwise, graph_replays_bitwise,
    )
}  # fmt: skip


def _forward(launch: Any, case: Case, place: Place) -> tuple[torch.Tensor, torch.Tensor]:
    inputs = tensors(case, place.device)
    return launch.forward(*operands_of(inputs), False)


def _still_right(place: Place, case: Case, choices: Choices) -> None:
    with place.choosing(choices):
        verdict = check.gate(case, PROVIDERS[OURS], place.device)
    if not verdict.ok:
        raise Wrong(f"the next launch: {verdict.message}")


def _copies(results: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in results.items()}


def _same_bits(results: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], when: str) -> None:
    for name, value in expected.items():
        if not torch.equal(results[name].contiguous().view(torch.uint8), value.contiguous().view(torch.uint8)):
            raise Wrong(f"{when}: {name} differs in some bits")


@contextlib.contextmanager
def _other_work(place: Place) -> Iterator[None]:
    """Another stream is busy meanwhile."""
    if place.is_dry:
        yield
        return
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        a = torch.randn(1024, 1024, device=place.device)
        for _ in range(4):
            a = a @ a
            a = a / a.norm()
    yield
    torch.cuda.current_stream().wait_stream(stream)
