"""Items that measure constants of the latency model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from ..cases import estimate as model
from ..cases.case import Case
from ..cases.inputs import tensors
from ..measure.compiling import Call
from ..records.schema import quantiles
from . import items
from .items import Fields, Item, NotHere, Place

# ---- d: constants of the latency model ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Constant(Item):
    """A constant of the latency model; a failure costs a number, not the verdict."""

    kind = "constant"
    section = "constants"
    judges = False

    constant: str = ""
    unit: str = "us"

    @property
    def name(self) -> str:
        return f"{self.constant}, {super().name}"

    def fields(self) -> Fields:
        return {"name": self.constant, "unit": self.unit}

    def calls(self) -> list[Call]:
        return [Call(self.case, "fwd", self.choices)]

    def forward(self, place: Place, case: Case) -> Callable[[], object]:
        return items.recurrence(case, tensors(case, place.device), "forward", None)


@dataclass(frozen=True)
class Slope(Constant):
    """What a step of a launch costs, by the slope over `steps`, less everything else the model has in a step."""

    steps: tuple[int, ...] = (512, 4096)
    by: str = "device"  # "device", "wall", "graph": replayed

    def measure(self, place: Place, records: list[Fields]) -> None:
        from rnn_triton.plan import latency
        from rnn_triton.plan.problem import plan_fields

        (record,) = records
        problem = model.problems(self.case)[0]
        with place.choosing(self.choices):
            plan = place.plan(problem)
            calls = {str(T): self.forward(place, self.case.at(T)) for T in self.steps}
            if self.by == "graph":
                if place.is_dry:
                    raise NotHere("needs a GPU")
                graphs = {name: place.clock.capture(call)[0] for name, call in calls.items()}
                calls = {name: graph.replay for name, graph in graphs.items()}
            samples = place.clock.wall_us(calls) if self.by == "wall" else place.samples(**calls)
        middle = [_median(samples[str(T)]) for T in self.steps]
        slope = (middle[-1] - middle[0]) / (self.steps[-1] - self.steps[0])
        held = getattr(latency.CONSTANTS, self.constant)
        constants = latency.CONSTANTS
        if self.by == "graph":
            constants = replace(constants, host_us=0.0)  # no host in a replay
        practical = latency.practical_us(problem, plan, place.record, constants)
        estimate = held[1] if isinstance(held, tuple) else held
        record |= {
            "plan": plan_fields(plan), "value": slope - (practical - estimate), "model": estimate, "x": list(self.steps),
            "us": middle, "message": f"a step takes {slope:.3f} us, by the model {practical:.3f}",
        }  # fmt: skip


@dataclass(frozen=True)
class Gather(Constant):
    """Bytes a cycle that each CTA of a group gathers: the slope over batch tiles that one group takes in turn.

    A lower bound: all that a CTA does for a tile is in it."""

    tiles: tuple[int, ...] = (8, 24)

    def measure(self, place: Place, records: list[Fields]) -> None:
        from rnn_triton.plan import latency
        from rnn_triton.plan.problem import SIZES, plan_fields

        (record,) = records
        T = self.case.T
        with place.choosing(self.choices):
            middle = []
            for tiles in self.tiles:
                case = replace(self.case, B=8 * tiles)
                plan = place.plan(model.problems(case)[0])
                call = self.forward(place, case)
                short = self.forward(place, case.at(T // 2))
                samples = place.samples(full=call, short=short)
                middle.append((_median(samples["full"]) - _median(samples["short"])) / (T - T // 2))
        tile_us = (middle[-1] - middle[0]) / (self.tiles[-1] - self.tiles[0])
        c, clock = latency.CONSTANTS, place.record.clock_ghz * 1e3
        gathered = plan.block_b * self.case.H * SIZES[self.case.dtype]
        record |= {
            "plan": plan_fields(plan), "x": list(self.tiles), "us": middle,
            "value": gathered / (tile_us * clock) if tile_us > 0 else None,
            "model": latency.gather_rate(plan, c),
            "message": f"a lower bound; a tile of {gathered // 1024} KB takes {tile_us:.3f} us, {plan.ctas} CTAs at once",
        }  # fmt: skip


@dataclass(frozen=True)
class Launch(Constant):
    """A call of one step from the host's call until the GPU is idle, against the model's launch and step."""

    def measure(self, place: Place, records: list[Fields]) -> None:
        from rnn_triton.plan import latency
        from rnn_triton.plan.problem import plan_fields

        (record,) = records
        case = self.case.at(1)
        problem = model.problems(case)[0]
        with place.choosing(self.choices):
            plan = place.plan(problem)
            us = _median(place.clock.wall_us({"call": self.forward(place, case)})["call"])
        once = latency.launch_us(problem, plan, place.record, 1) + latency.practical_us(problem, plan, place.record)
        record |= {"plan": plan_fields(plan), "value": us, "model": once, "x": [1], "us": [us]}


@dataclass(frozen=True)
class Rate(Constant):
    """A torch kernel over `size` values: "GEMM", a bf16 product of size x size matrices, or "fill"."""

    size: int = 8192

    @property
    def name(self) -> str:
        return self.constant

    def calls(self) -> list[Call]:
        return []

    def measure(self, place: Place, records: list[Fields]) -> None:
        from rnn_triton.plan import latency

        (record,) = records
        c, rates = latency.CONSTANTS, latency.rates(place.record)
        if self.constant == "GEMM":
            generator = torch.Generator(place.device).manual_seed(0)
            a, b = (
                torch.randn(self.size, self.size, generator=generator, device=place.device).bfloat16() for _ in range(2)
            )
            work, peak = 2.0 * self.size**3, place.record.sms * place.record.clock_ghz * 1e3 * rates.mma * c.efficiency
            us = _median(place.samples(call=lambda: a @ b)["call"])
        else:
            out = torch.empty(self.size, dtype=torch.int32, device=place.device)
            work, peak = out.nbytes, c.fill * rates.dram
            us = _median(place.samples(call=lambda: out.fill_(-1))["call"])
        record |= {"value": work / us * 1e-6, "model": peak * 1e-6, "x": [self.size], "us": [us]}


def _median(samples: list[float]) -> float:
    found = quantiles(samples)
    assert found is not None
    return found[1]
