"""Items that judge or time a case: the exchange protocols alone, equivalence, speed."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

from ..cases import estimate as model
from ..cases.case import Job
from ..cases.inputs import tensors
from ..measure import check, run
from ..measure.compiling import Call
from ..providers.ours import plans_on
from ..providers.registry import PROVIDERS
from ..records.schema import BASELINES, OURS, sampled
from . import items
from .items import Fields, Item, NotHere, Place, Wrong, pre_activation_gradients


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
        return {"shape": dataclasses.asdict(self.case), "direction": self.direction}

    def calls(self) -> list[Call]:
        return [Call(self.case, "fwd" if self.direction == "forward" else "train", self.choices)]

    def measure(self, place: Place, records: list[Fields]) -> None:
        from rnn_triton.plan import latency
        from rnn_triton.plan.problem import plan_fields

        (record,) = records
        case, short = self.case, self.case.at(max(1, self.case.T // 4))
        forward, backward = model.problems(case)
        problem = forward if self.direction == "forward" else backward
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
            call = items.recurrence(case, inputs, self.direction, y)
            verdict = check.compare(case, call(), expected)
            record["errors"] = verdict.errors
            if not verdict.ok:
                raise Wrong(verdict.message)
            samples = place.samples(full=call, short=items.recurrence(short, few, self.direction, y[: short.T]))
        record |= {"device_us": sampled(samples["full"]), "short_T": short.T, "short_us": sampled(samples["short"])}


@dataclass(frozen=True)
class Switch(Exchange):
    """One setting of what a plan of a group can be told and the latency model does not know (CtaGroup)"""

    section = "switches"


# ---- b: equivalence -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Equivalence(Item):
    """y, hn and all gradients against fp64."""

    kind = "check"
    section = "equivalence"

    def fields(self) -> Fields:
        return {"shape": dataclasses.asdict(self.case)}

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


# ---- c: speed -------------------------------------------------------------------------------------------------------


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
        found = run.measure(Job(self.case, self.passes, self.providers), place.device, place.clock)
        estimate = run.model_estimate(place.record)
        for fields in found:
            if fields["provider"] == OURS:
                fields |= estimate(self.case, fields["pass"])
        records[:] = found
