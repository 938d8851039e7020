"""The sorts of items: a recurrence alone, results against fp64, an ordinary timing, a fault that must be seen."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch

import rnn_triton
from rnn_triton.cells.elman import ELMAN
from rnn_triton.launch import dispatch, recurrence
from rnn_triton.plan import latency
from rnn_triton.plan.problem import plan_fields

from ..cases import estimate
from ..cases.case import Case, Job
from ..cases.inputs import tensors
from ..measure import check, run
from ..measure.compiling import Call
from ..providers.ours import plans_on
from ..providers.registry import PROVIDERS
from ..records.schema import BASELINES, OURS, sampled
from .items import Fields, Item, NotHere, Place, Wrong

WEIGHTS = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")


def operands_of(inputs: dict[str, torch.Tensor]) -> Any:
    """Of a forward recurrence: x, w_ih, w_hh, b_ih, b_hh, h0[B,H]"""
    return (inputs["x"], *(inputs[name] for name in WEIGHTS), inputs["h0"][0])


def alone(case: Case, inputs: dict[str, torch.Tensor], direction: str, y: torch.Tensor) -> Any:
    """A call of the recurrence alone: {y, hn[1,B,H]} forward, {da} backward from the given y."""
    how: Any = (ELMAN[case.nonlinearity].name, False, case.precision)

    def forward() -> dict[str, torch.Tensor]:
        *tensors, h0 = operands_of(inputs)
        y, (hn,), _ = dispatch.forward(*tensors, (h0,), *how)
        return {"y": y, "hn": hn[None]}

    def backward() -> dict[str, torch.Tensor]:
        return {"da": dispatch.backward(inputs["weight_hh_l0"], y, None, inputs["dy"], (inputs["dhn"][0],), *how)[0]}

    return forward if direction == "forward" else backward


def pre_activation_gradients(case: Case, inputs: dict[str, torch.Tensor], y: torch.Tensor) -> torch.Tensor:
    """da[T,B,H] in fp64, of the y that a launch is given"""
    w_hh, dy, dh, y = (t.double() for t in (inputs["weight_hh_l0"], inputs["dy"], inputs["dhn"][0], y))
    slope = 1 - y * y if case.nonlinearity == "tanh" else (y > 0).double()
    da = torch.empty_like(y)
    for t in reversed(range(len(y))):
        da[t] = (dh + dy[t]) * slope[t]
        dh = da[t] @ w_hh
    return da


@dataclass(frozen=True)
class Exchange(Item):
    """A recurrence over many steps with little else in it: right or not, and the time of a step."""

    kind = "exchange"
    section = "protocols"

    direction: str = "forward"

    @property
    def name(self) -> str:
        return f"{super().name} {self.direction}"

    def fields(self) -> Fields:
        return super().fields() | {"direction": self.direction}

    def calls(self) -> list[Call]:
        return [Call(self.case, "fwd" if self.direction == "forward" else "train", self.choices)]

    def measure(self, place: Place, records: list[Fields]) -> None:
        (record,) = records
        case, short = self.case, run.short_of(self.case)
        problem = estimate.problems(case)[self.direction == "backward"]
        with place.choosing(self.choices):
            plan = place.plan(problem)
            record["plan"] = plan_fields(plan)
            record["practical_us_per_step"] = latency.practical_us(problem, plan, place.record)
            inputs, few = (tensors(c, place.device) for c in (case, short))
            truth = check.reference(case, inputs)
            y = truth["y"].to(inputs["x"].dtype)
            if self.direction == "forward":
                expected = {name: truth[name] for name in ("y", "hn")}
            else:
                expected = {"da": pre_activation_gradients(case, inputs, y)}
            call = alone(case, inputs, self.direction, y)
            verdict = check.compare(case, call(), expected)
            record["errors"] = verdict.errors
            if not verdict.ok:
                raise Wrong(verdict.message)
            samples = place.samples(full=call, short=alone(short, few, self.direction, y[: short.T]))
        record |= {"device_us": sampled(samples["full"]), "short_T": short.T, "short_us": sampled(samples["short"])}


@dataclass(frozen=True)
class Switch(Exchange):
    """One setting of what a plan of a group can be told and the latency model does not know (CtaGroup)"""

    section = "switches"


@dataclass(frozen=True)
class Equivalence(Item):
    """y, hn and all gradients against fp64."""

    kind = "check"
    section = "equivalence"

    def measure(self, place: Place, records: list[Fields]) -> None:
        (record,) = records
        with place.choosing(self.choices):
            try:
                record["plan"] = plans_on(self.case, place.record)
            except (ValueError, NotImplementedError) as error:
                raise NotHere(str(error)) from error
            verdict = check.gate_of_sizes(self.case, PROVIDERS[OURS], place.device)
        record |= {"errors": verdict.errors, "implementation": f"Triton kernels on {place.name}"}
        if not verdict.ok:
            raise Wrong(verdict.message)


@dataclass(frozen=True)
class Speed(Item):
    """An ordinary timing of a case in every pass: ours and torch.nn on cuDNN."""

    kind = "timing"
    section = "speed"
    timeout = 90.0

    passes: tuple[str, ...] = ("fwd", "train")
    providers: ClassVar[tuple[str, ...]] = (OURS, BASELINES[0])

    def blank(self) -> list[Fields]:
        return [run.blank(self.case, pass_, name) for name in self.providers for pass_ in self.passes]

    def measure(self, place: Place, records: list[Fields]) -> None:
        records[:] = run.measure(Job(self.case, self.passes, self.providers), place.device, place.clock)
        for fields in records:
            if fields["provider"] == OURS:
                fields |= run.model_estimate(place.record)(self.case, fields["pass"])


@dataclass(frozen=True)
class Fault(Item):
    """A fault that must be seen: `of` names the method that makes it."""

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
            records[0]["message"] = getattr(self, self.of)(place)
        finally:
            records[0]["seconds"] = time.monotonic() - began

    def over_subscription_raises(self, place: Place) -> str:
        """More CTAs than can be on the device at once: the launch raises and the one after it works."""
        with place.choosing(self.choices):
            plan = place.plan(estimate.problems(self.case)[0])
        groups = 32 * place.record.sms // plan.ctas + 1  # an SM holds 32 CTAs at most, be they as small as they are
        many = replace(self.case, B=plan.block_b * groups)
        launch: Any = recurrence.Recurrence(estimate.problems(many)[0], replace(plan, groups=groups))
        try:
            *given, h0 = operands_of(tensors(many, place.device))
            launch.forward(*given, (h0,))
        except RuntimeError as error:
            message = str(error)
            if "cooperative" not in message:
                raise
        else:
            raise Wrong(f"{groups} groups of {plan.ctas} CTAs were launched on {place.record.sms} SMs")
        self.still_right(place)
        return f"{groups * plan.ctas} CTAs: {message}; the next launch is right"

    def stuck_launch_ends(self, place: Place) -> str:
        """A group that lacks a CTA gives up: ExchangeError soon, NaN from the failing step on, the next launch right."""
        case, problem = self.case, estimate.problems(self.case)[0]
        with place.choosing(self.choices):
            plan = place.plan(problem)
            if plan.ctas < 2 or plan.protocol != "sentinel":
                raise NotHere("needs a plan of several CTAs that exchange by sentinel")
            launch: Any = recurrence.Recurrence(problem, replace(plan, ctas=plan.ctas - 1))
            *given, h0 = operands_of(tensors(case, place.device))
            y, (hn,), _ = launch.forward(*given, (h0,))
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
        if seconds > 20:
            raise Wrong(f"it took {seconds:.0f} s")
        self.still_right(place)
        return f"ended after {seconds:.1f} s; the next launch is right"

    def still_right(self, place: Place) -> None:
        with place.choosing(self.choices):
            verdict = check.gate(self.case, PROVIDERS[OURS], place.device)
        if not verdict.ok:
            raise Wrong(f"the next launch: {verdict.message}")
