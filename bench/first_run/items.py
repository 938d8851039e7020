"""What `bench check` does on a GPU, item by item: an item knows its records' fields, what it compiles, how it measures.

Items are data, sent to a worker process; `perform` runs one there.  An item that raises, hangs or dies costs itself.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any, ClassVar
from unittest import mock

import torch

from ..cases import estimate as model
from ..cases.case import Case, Job
from ..instruments import timing
from ..instruments.worker import in_words
from ..measure import check, run
from ..measure.compiling import Call, choices_of, named
from ..providers.registry import PROVIDERS, plans_on, tensors
from ..records.schema import BASELINES, OURS, quantiles, sampled
from . import dry

Fields = dict[str, Any]
Choices = tuple[tuple[str, Any], ...]
SECONDS = 0.2  # of measuring a call
WEIGHTS = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")


class Wrong(Exception):
    """It ran, and what came of it is wrong."""


class NotHere(Exception):
    """It cannot run on this device; no fault."""


@dataclass(frozen=True)
class Place:
    """Where items run: the GPU, timed by events, or (dry) the interpreter, timed by nothing."""

    device: torch.device
    clock: ModuleType
    is_dry: bool

    @property
    def record(self) -> Any:
        from rnn_triton.plan import hardware

        return hardware.of(self.device)

    @property
    def name(self) -> str:
        return "the interpreter" if self.is_dry else torch.cuda.get_device_name(self.device)

    @contextlib.contextmanager
    def choosing(self, choices: Choices, **interpreter: Any) -> Iterator[None]:
        """Plans have these values; in the interpreter, a grid's programs run side by side."""
        import rnn_triton

        grid = dict(choices).get("regime") == "cta_group"
        if self.is_dry and grid and not dry.has_cooperative_interpreter():
            raise NotHere("planned and compiled only: running it needs tests/cooperative, of a checkout")
        beside = dry.all_programs_alive(**interpreter) if self.is_dry and grid else contextlib.nullcontext()
        with rnn_triton.overriding(**dict(choices)), beside:
            yield

    def plan(self, problem: Any) -> Any:
        """Of a problem, under the open choices; NotHere where there is none."""
        from rnn_triton.plan.choose import plan

        try:
            return plan(problem, self.record)
        except (ValueError, NotImplementedError) as error:
            raise NotHere(str(error)) from error

    def samples(self, **calls: Callable[[], object]) -> dict[str, list[float]]:
        """Device microseconds of calls, taken in turn"""
        found = self.clock.device_us(calls, self.clock.Flush(self.device), SECONDS * len(calls))
        return {name: timed.us for name, timed in found.items()}


@dataclass(frozen=True)
class Item:
    """One thing to find out about one case under choices of a plan."""

    kind: ClassVar[str]
    section: ClassVar[str]
    judges: ClassVar[bool] = True  # whether a failure of it is a failure of the check
    timeout: ClassVar[float] = 30.0  # seconds; the first item of a process has the start of CUDA on top

    case: Case
    choices: Choices = ()

    @property
    def name(self) -> str:
        return named(self.case.name, self.choices)

    def blank(self) -> list[Fields]:
        """The fields of its records, nothing measured yet"""
        return [{"case": self.case.name, "choices": dict(self.choices), "status": "ok", "message": ""}]

    def calls(self) -> list[Call]:
        """What it compiles"""
        return [Call(self.case, "train", self.choices)]

    def measure(self, place: Place, records: list[Fields]) -> None:
        """Fill the fields in.  Wrong, NotHere: say so in the records."""
        raise NotImplementedError


@functools.cache
def _place(is_dry: bool) -> Place:
    if is_dry:
        return Place(torch.device("cpu"), dry, True)
    return Place(torch.device("cuda", torch.cuda.current_device()), timing, False)


def perform(order: tuple[Item, bool]) -> list[Fields]:
    """The records of an item, in a worker; `order`: the item, and whether it is to run dry."""
    import rnn_triton

    item, is_dry = order
    place, records = _place(is_dry), item.blank()
    try:
        item.measure(place, records)
    except NotHere as why:
        run.fail(records, "unsupported", str(why))
    except Wrong as why:
        run.fail(records, "wrong", str(why))
    except Exception as error:  # the process can go on: a new one would cost more than most items take
        run.fail(records, "error", in_words(error))
    said = records[0]["message"]
    try:
        rnn_triton.synchronize(place.device)
    except rnn_triton.ExchangeError as error:  # no later item is to hear of it
        run.fail(records, "error", f"{error} {said}".strip())
    except RuntimeError as error:  # the CUDA context is broken: the worker is to be replaced
        raise RuntimeError(f"{said or 'afterwards'}: {error}") from error
    return records


# ---- a: the protocols alone -----------------------------------------------------------------------------------------


def operands_of(inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """Of a forward recurrence: x, w_ih, w_hh, b_ih, b_hh, h0[B,H]"""
    return (inputs["x"], *(inputs[name] for name in WEIGHTS), inputs["h0"][0])


def recurrence(case: Case, inputs: dict[str, torch.Tensor], direction: str, y: torch.Tensor | None) -> Any:
    """A call of the recurrence alone: {y, hn[1,B,H]} forward, {da} backward from the given y."""
    from rnn_triton.launch import dispatch as launch

    if direction == "forward":
        operands = (*operands_of(inputs), case.nonlinearity, False, case.precision)
        forward: Any = launch.forward

        def call() -> dict[str, torch.Tensor]:
            y, hn = forward(*operands)
            return {"y": y, "hn": hn[None]}
    else:
        assert y is not None
        of_y = (inputs["weight_hh_l0"], y, inputs["dy"], inputs["dhn"][0])

        def call() -> dict[str, torch.Tensor]:
            return {"da": launch.backward(*of_y, case.nonlinearity, False, case.precision)}

    return call


def pre_activation_gradients(case: Case, inputs: dict[str, torch.Tensor], y: torch.Tensor) -> torch.Tensor:
    """da[T,B,H] in fp64"""
    from rnn_triton.cells import reference

    wide = {name: value.double() for name, value in inputs.items()}
    one = torch.eye(case.H, dtype=torch.float64, device=y.device)  # dx = da W_ih
    wide_y = y.double()
    return reference.backward(
        wide_y, one, wide["weight_hh_l0"], wide["h0"][0], wide_y, wide["dy"], wide["dhn"][0], case.nonlinearity
    )[0]


@dataclass(frozen=True)
class Exchange(Item):
    """A recurrence over many steps with little else in it: right or not, and the time of a step."""

    kind = "exchange"
    section = "protocols"

    direction: str = "forward"

    @property
    def name(self) -> str:
        return f"{super().name} {self.direction}"

    def blank(self) -> list[Fields]:
        more: Fields = {
            "shape": dataclasses.asdict(self.case), "direction": self.direction, "plan": None, "errors": {},
            "device_us": sampled(), "short_T": None, "short_us": sampled(), "practical_us_per_step": None,
        }  # fmt: skip
        return [fields | more for fields in super().blank()]

    def calls(self) -> list[Call]:
        return [Call(self.case, "fwd" if self.direction == "forward" else "train", self.choices)]

    def measure(self, place: Place, records: list[Fields]) -> None:
        from rnn_triton.plan import latency
        from rnn_triton.plan import problem as plans

        (record,) = records
        case, short = self.case, self.case.at(max(1, self.case.T // 4))
        forward, backward = model.problems(case)
        problem = forward if self.direction == "forward" else backward
        with place.choosing(self.choices):
            plan = place.plan(problem)
            record["plan"] = plans.fields(plan)
            record["practical_us_per_step"] = latency.practical_us(problem, plan, place.record)
            inputs, few = (tensors(c, place.device) for c in (case, short))
            truth = check.reference(case, inputs)
            y = truth["y"].to(inputs["x"].dtype)
            if self.direction == "forward":
                expected = {name: truth[name] for name in ("y", "hn")}
            else:
                expected = {"da": pre_activation_gradients(case, inputs, y)}
            call = recurrence(case, inputs, self.direction, y)
            verdict = check.compare(case, call(), expected)
            record["errors"] = verdict.errors
            if not verdict.ok:
                raise Wrong(verdict.message)
            samples = place.samples(full=call, short=recurrence(short, few, self.direction, y[: short.T]))
        record |= {"device_us": sampled(samples["full"]), "short_T": short.T, "short_us": sampled(samples["short"])}


@dataclass(frozen=True)
class Switch(Exchange):
    """One setting of what a plan of a group can be told and the latency model does not know (plans.CtaGroup)"""

    section = "switches"


# ---- b: equivalence -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Equivalence(Item):
    """y, hn and all gradients against fp64."""

    kind = "check"
    section = "equivalence"

    def blank(self) -> list[Fields]:
        more: Fields = {
            "shape": dataclasses.asdict(self.case), "provider": OURS, "implementation": "none", "errors": {},
            "plan": None,
        }  # fmt: skip
        return [fields | more for fields in super().blank()]

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

    def blank(self) -> list[Fields]:
        more: Fields = {
            "name": self.constant, "unit": self.unit, "plan": None, "value": None, "model": None, "x": [], "us": [],
        }  # fmt: skip
        return [fields | more for fields in super().blank()]

    def calls(self) -> list[Call]:
        return [Call(self.case, "fwd", self.choices)]

    def forward(self, place: Place, case: Case) -> Callable[[], object]:
        return recurrence(case, tensors(case, place.device), "forward", None)


@dataclass(frozen=True)
class Slope(Constant):
    """What a step of a launch costs, by the slope over `steps`, less everything else the model has in a step."""

    steps: tuple[int, ...] = (512, 4096)
    by: str = "device"  # "device", "wall", "graph": replayed

    def measure(self, place: Place, records: list[Fields]) -> None:
        from rnn_triton.plan import latency
        from rnn_triton.plan import problem as plans

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
            "plan": plans.fields(plan), "value": slope - (practical - estimate), "model": estimate, "x": list(self.steps),
            "us": middle, "message": f"a step takes {slope:.3f} us, by the model {practical:.3f}",
        }  # fmt: skip


@dataclass(frozen=True)
class Gather(Constant):
    """Bytes a cycle that each CTA of a group gathers: the slope over batch tiles that one group takes in turn.

    A lower bound: all that a CTA does for a tile is in it."""

    tiles: tuple[int, ...] = (8, 24)

    def measure(self, place: Place, records: list[Fields]) -> None:
        from rnn_triton.plan import latency
        from rnn_triton.plan import problem as plans
        from rnn_triton.plan.problem import SIZES

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
            "plan": plans.fields(plan), "x": list(self.tiles), "us": middle,
            "value": gathered / (tile_us * clock) if tile_us > 0 else None,
            "model": latency.gather_rate(plan, c),
            "message": f"a lower bound; a tile of {gathered // 1024} KB takes {tile_us:.3f} us, {plan.ctas} CTAs at once",
        }  # fmt: skip


@dataclass(frozen=True)
class Launch(Constant):
    """A call of one step from the host's call until the GPU is idle, against the model's launch and step."""

    def measure(self, place: Place, records: list[Fields]) -> None:
        from rnn_triton.plan import latency
        from rnn_triton.plan import problem as plans

        (record,) = records
        case = self.case.at(1)
        problem = model.problems(case)[0]
        with place.choosing(self.choices):
            plan = place.plan(problem)
            us = _median(place.clock.wall_us({"call": self.forward(place, case)})["call"])
        once = latency.launch_us(problem, plan, place.record, 1) + latency.practical_us(problem, plan, place.record)
        record |= {"plan": plans.fields(plan), "value": us, "model": once, "x": [1], "us": [us]}


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

    def blank(self) -> list[Fields]:
        return [fields | {"name": self.of, "seconds": 0.0} for fields in super().blank()]

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
    from rnn_triton.launch import cta_group as grid

    if place.is_dry:
        raise NotHere("needs a GPU")
    problem = model.problems(case)[0]
    with place.choosing(choices):
        plan = place.plan(problem)
    groups = 32 * place.record.sms // plan.ctas + 1  # an SM holds 32 CTAs at most, be they as small as they are
    many = replace(case, B=plan.block_b * groups)
    site = grid.Site(model.problems(many)[0], replace(plan, groups=groups))
    try:
        _forward(site, many, place)
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
    from rnn_triton.launch import cta_group as grid
    from rnn_triton.launch import operands

    problem = model.problems(case)[0]
    limit = 64 if place.is_dry else operands.SPIN_LIMIT
    interpreter = dict(max_idle=20 * limit) if place.is_dry else {}
    with place.choosing(choices, **interpreter), mock.patch.object(operands, "SPIN_LIMIT", limit):
        plan = place.plan(problem)
        if plan.ctas < 2 or plan.protocol != "sentinel":
            raise NotHere("needs a plan of several CTAs that exchange by sentinel")
        site = grid.Site(problem, replace(plan, ctas=plan.ctas - 1))
        y, hn = _forward(site, case, place)
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


def _forward(site: Any, case: Case, place: Place) -> tuple[torch.Tensor, torch.Tensor]:
    inputs = tensors(case, place.device)
    return site.forward(*operands_of(inputs), False)


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


def grid(**choices: Any) -> Choices:
    """Choices of a grid plan"""
    return choices_of(regime="cta_group", **choices)


def per_step(**choices: Any) -> Choices:
    return choices_of(regime="per_step", **choices)
