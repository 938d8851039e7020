"""What `bench check` does on a GPU, item by item: an item knows its records' fields, what it compiles, how it measures.

Items are data, sent to a worker process; `perform` runs one there.  An item that raises, hangs or dies costs itself.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any, ClassVar

import torch

from ..cases.case import Case
from ..instruments import timing
from ..instruments.worker import in_words
from ..measure import run
from ..measure.compiling import Call, choices_of, named
from ..records import schema
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
        return [schema.blank(self.kind, case=self.case.name, choices=dict(self.choices), **self.fields())]

    def fields(self) -> Fields:
        """What a record of its kind needs besides"""
        return {}

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
    from rnn_triton.cells.elman import ELMAN
    from rnn_triton.launch import dispatch as launch

    cell = ELMAN[case.nonlinearity].name

    if direction == "forward":
        operands = (*operands_of(inputs), cell, False, case.precision)
        forward: Any = launch.forward

        def call() -> dict[str, torch.Tensor]:
            y, hn = forward(*operands)
            return {"y": y, "hn": hn[None]}
    else:
        assert y is not None
        of_y = (inputs["weight_hh_l0"], y, inputs["dy"], inputs["dhn"][0])

        def call() -> dict[str, torch.Tensor]:
            return {"da": launch.backward(*of_y, cell, False, case.precision)}

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


def grid(**choices: Any) -> Choices:
    """Choices of a grid plan"""
    return choices_of(regime="cta_group", **choices)


def per_step(**choices: Any) -> Choices:
    return choices_of(regime="per_step", **choices)
