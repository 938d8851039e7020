"""Sweeps: rows of cases that differ in one size alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ..cases.case import DTYPES, PASSES, USUAL
from ..records.rows import Row
from .rows_in_words import arithmetic

# axis -> (the field that varies, the label of the axis)
AXES = {
    "H": ("H", "hidden size H"), "B": ("B", "batch B"), "T": ("T", "time steps T"), "L": ("layers", "layers L"),
    "models": ("models", "independent models"), "head": ("H", "head dimension"),
}  # fmt: skip
MOST_SWEEPS = 3  # side by side


@dataclass(frozen=True)
class Sweep:
    """Cases that differ in one size (and dtype) alone; `names`: (arithmetic, value) -> case."""

    axis: str
    held: dict[str, Any]
    values: tuple[int, ...]
    names: dict[tuple[str, int], str]

    @property
    def label(self) -> str:
        return AXES[self.axis][1]

    @property
    def title(self) -> str:
        return in_words(self.held)


def in_words(held: dict[str, Any]) -> str:
    """The sizes of a case or of what cases share, the usual ones left out: "B 16, T 512, lstm"."""
    parts = [f"{name} {held[name]}" for name in "HBT" if name in held]
    parts += [f"I {held['I']}"] if "I" in held and held["I"] not in ("H", held.get("H")) else []
    parts += [f"L {held['layers']}"] if held.get("layers", 1) != 1 else []
    models = held.get("models", 1)
    parts += [f"{models} models" if isinstance(models, int) else str(models)] if models != 1 else []
    parts += ["both directions"] if held.get("bidirectional") else []
    usual = {"cell": USUAL, "lengths": "full"}
    return ", ".join(parts + [str(held[name]) for name, value in usual.items() if held.get(name, value) != value])


def sweeps(rows: Iterable[Row], axis: str) -> list[Sweep]:
    """Of all sweeps over an axis those with the most measured values, if they have three (or, where none has, two); of
    more than MOST_SWEEPS the first, the last and one between."""
    field = AXES[axis][0]
    found: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        held = {name: value for name, value in row.shape.items() if name not in ("dtype", "precision")}
        if held["I"] == held["H"] and field != "I":
            held["I"] = "H"
        if axis == "head":
            held["models"] = f"heads x dimension {held['models'] * held['H']}"
        held.pop(field)
        found.setdefault(tuple(held.items()), []).append(row)
    candidates = []
    for key, mine in found.items():
        measured = {(arithmetic(row), row.shape[field]) for row in mine if row.us}
        count = len({value for _, value in measured})
        names = {(arithmetic(row), row.shape[field]): row.case for row in mine}
        several = axis != "head" or len({row.shape["models"] for row in mine}) > 1
        if count >= 2 and several:
            values = tuple(sorted({value for _, value in names}))
            candidates.append(((count >= 3, count, len(measured)), Sweep(axis, dict(key), values, names)))
    most = max((score for score, _ in candidates), default=None)
    best = sorted((sweep for score, sweep in candidates if score == most), key=lambda s: order_of(s.held))
    return best if len(best) <= MOST_SWEEPS else [best[0], best[len(best) // 2], best[-1]]


def order_of(held: dict[str, Any]) -> list[tuple[bool, float, str]]:
    """Sorts numbers as such and all else as text"""
    return [(isinstance(v, str), 0.0, v) if isinstance(v, str) else (False, float(v), "") for v in held.values()]


def kinds(rows: Iterable[Row]) -> list[str]:
    """The arithmetics that occur, bf16 first"""
    return sorted({arithmetic(row) for row in rows}, key=lambda kind: (DTYPES.index(kind[:4]), kind))


Index = dict[tuple[str, str, str], Row]


def indexed(rows: Iterable[Row]) -> Index:
    return {(row.case, row.pass_, row.provider): row for row in rows}


def passes_of(rows: Iterable[Row]) -> list[str]:
    there = {row.pass_ for row in rows}
    return [pass_ for pass_ in PASSES if pass_ in there]


def middle_sweep(rows: Sequence[Row], axis: str) -> Sweep | None:
    """Of the sweeps with most values the middle one"""
    found = sweeps(rows, axis)
    return found[len(found) // 2] if found else None
