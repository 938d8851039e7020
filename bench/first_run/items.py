"""What `bench check` does on a GPU, item by item: an item knows its records' fields, what it compiles, how it measures.

Items are data, sent to a worker process; `perform` runs one there.  An item that raises, hangs or dies costs itself. """

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

import rnn_triton
from rnn_triton.plan import hardware
from rnn_triton.plan.choose import plan

from ..cases.case import Case
from ..instruments import timing
from ..instruments.worker import in_words
from ..measure import run
from ..measure.compiling import Call, Choices, named
from ..records import schema

Fields = dict[str, Any]
SECONDS = 0.2  # of measuring a call


class Wrong(Exception):
    """It ran, and what came of it is wrong."""


class NotHere(Exception):
    """It cannot run on this device; no fault."""


@dataclass(frozen=True)
class Place:
    """Where items run, and the functions of timing.py"""

    device: torch.device
    clock: Any = timing

    @property
    def record(self) -> hardware.Device:
        return hardware.of(self.device)

    @property
    def name(self) -> str:
        return torch.cuda.get_device_name(self.device)

    def choosing(self, choices: Choices) -> contextlib.AbstractContextManager[Any]:
        """Plans have these values."""
        return rnn_triton.overriding(**dict(choices))

    def plan(self, problem: Any) -> Any:
        """Of a problem, under the open choices; NotHere where there is none."""
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
        return {"shape": vars(self.case)}

    def calls(self) -> list[Call]:
        """What it compiles"""
        return [Call(self.case, "train", self.choices)]

    def measure(self, place: Place, records: list[Fields]) -> None:
        """Fill the fields in.  Wrong, NotHere: say so in the records."""
        raise NotImplementedError


def perform(item: Item, place: Place | None = None) -> list[Fields]:
    """The records of an item, in a worker"""
    place = place or Place(torch.device("cuda", torch.cuda.current_device()))
    records = item.blank()
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
