"""The sorts of items: a recurrence alone, results against fp64, an ordinary timing, a fault that must be seen."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch

import rnn_triton
from rnn_triton.cells import named
from rnn_triton.launch import dispatch, recurrence
from rnn_triton.plan import latency
from rnn_triton.plan.problem import plan_fields

from ..cases import estimate
from ..cases.case import Case, Job
from ..cases.inputs import tensors
from ..measure import check, run
from ..measure.compiling import Call
from ..providers.loops import formula, projected
from ..providers.ours import plans_on
from ..providers.registry import PROVIDERS
from ..records.schema import BASELINES, OURS, sampled
from .items import Fields, Item, NotHere, Place, Wrong

WEIGHTS = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")


def operands_of(inputs: dict[str, torch.Tensor]) -> Any:
    """Of a forward recurrence: x, w_ih, w_hh, b_ih, b_hh, the first states, each [B,H]"""
    return (inputs["x"], *(inputs[name] for name in WEIGHTS), tuple(inputs[name][0] for name in ("h0", "c0") if name in inputs))


def alone(case: Case, inputs: dict[str, torch.Tensor], direction: str) -> Any:
    """A call of the recurrence alone, of a cell without vectors: {y, hn[1,B,H]} forward, {da} backward from what a forward pass
    leaves, which this runs once."""
    how: Any = (case.cell, False, case.precision)
    *tensors, states = operands_of(inputs)

    def forward() -> dict[str, torch.Tensor]:
        y, (hn, *_), _ = dispatch.forward(*tensors, states, *how)
        return {"y": y, "hn": hn[None]}

    if direction == "forward":
        return forward
    y, _, kept = dispatch.forward(*tensors, states, *how, True)
    dlast = tuple(inputs[name][0] for name in ("dhn", "dcn") if name in inputs)
    return lambda: {"da": dispatch.backward(inputs["weight_hh_l0"], y, kept, inputs["dy"], dlast, *how)[0]}


def pre_activation_gradients(case: Case, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """da[T,B,P*H] in fp64, in the order of Cell.routes: what is added to each pre-activation of the cell's own step has them as its gradient"""
    wide = {name: value.double() for name, value in inputs.items()}
    cell, (x, *weights, states) = named(case.cell), operands_of(wide)
    parts = len(cell.gates) + len(cell.split)
    more = x.new_zeros(case.T, parts, case.B, case.H, requires_grad=True)
    ys = []
    for of_x, more_t in zip(projected(x, tuple(weights)), more):
        states = formula(cell, of_x, states, tuple(weights), more_t)
        ys.append(states[0])
    cotangents = [wide["dy"], *(wide[name][0] for name in ("dhn", "dcn") if name in wide)]
    (da,) = torch.autograd.grad((torch.stack(ys), *states), more, cotangents)
    whole = len(cell.gates) - len(cell.split)
    order = [*range(whole, len(cell.gates)), *range(whole), *range(len(cell.gates), parts)]
    return da[:, order].transpose(1, 2).flatten(2)


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
            if self.direction == "forward":
                truth = check.reference(case, inputs)
                expected = {name: truth[name] for name in ("y", "hn")}
            else:
                expected = {"da": pre_activation_gradients(case, inputs)}
            call = alone(case, inputs, self.direction)
            verdict = check.compare(case, call(), expected)
            record["errors"] = verdict.errors
            if not verdict.ok:
                raise Wrong(verdict.message)
            samples = place.samples(full=call, short=alone(short, few, self.direction))
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
            launch.forward(*operands_of(tensors(many, place.device)))
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
            y, (hn, *_), _ = launch.forward(*operands_of(tensors(case, place.device)))
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
