"""Reads measured.json, whose rows say which choices were fastest where they were measured; they overrule the latency model."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from .hardware import Device
from .overriding import PLAN_FIELDS, matches
from .problem import DTYPES, Plan, Problem


@dataclass(frozen=True)
class Measured:
    """A row of measured.json: the choices that were fastest for some problems of one model."""

    device: str  # part of the device's name
    direction: str
    dtype: str
    precision: str | None
    H: int
    B: tuple[int, int]  # first and last
    choices: Mapping[str, Any]  # as `overriding` takes them

    def covers(self, problem: Problem, device: Device) -> bool:
        """True if the row is about this problem, of one model, on this device."""
        equal = all(getattr(self, name) == getattr(problem, name) for name in ("direction", "dtype", "precision", "H"))
        return equal and problem.models == 1 and self.device in device.name and self.B[0] <= problem.B <= self.B[1]


def read_measured(text: str) -> list[Measured]:
    """Returns the rows of a table in JSON.  Raises ValueError if a row has wrong names or values, or two rows cover one problem."""
    names = {field.name for field in fields(Measured)}
    rows: list[Measured] = []
    for number, row in enumerate(json.loads(text)):
        where = f"measured choices, row {number}"
        if set(row) != names:
            raise ValueError(f"{where}: expected {', '.join(sorted(names))}, got {', '.join(sorted(row))}")
        for name, allowed in (
            ("direction", ("forward", "backward")),
            ("dtype", tuple(DTYPES.values())),
            ("precision", (None,) if row["dtype"] != "fp32" else ("tf32", "tf32x3", "ieee")),
        ):
            if row[name] not in allowed:
                raise ValueError(f"{where}: {name} must be one of {allowed}, got {row[name]!r}")
        first, last = row["B"]
        if not 1 <= first <= last or row["H"] < 1:
            raise ValueError(f"{where}: H must be positive and B a range from 1, got {row['H']} and {row['B']}")
        if not row["choices"] or set(row["choices"]) - PLAN_FIELDS:
            raise ValueError(f"{where}: choices must be among {', '.join(sorted(PLAN_FIELDS))}, got {row['choices']}")
        new = Measured(**{**row, "B": (first, last)})
        for old in rows:
            apart = new.B[1] < old.B[0] or old.B[1] < new.B[0]
            if replace(new, B=old.B, choices={}) == replace(old, choices={}) and not apart:
                raise ValueError(f"{where}: covers what another row covers: {row}")
        rows.append(new)
    return rows


@functools.cache
def _table() -> list[Measured]:
    return read_measured((Path(__file__).parent / "measured.json").read_text(encoding="utf-8"))


def measured_plans(problem: Problem, device: Device, plans: Sequence[Plan]) -> list[Plan]:
    """Returns the plans that a measured row chooses; none if no row covers the problem, or if no plan has its choices."""
    for row in _table():
        if row.covers(problem, device):
            return [p for p in plans if matches(p, row.choices)]
    return []
