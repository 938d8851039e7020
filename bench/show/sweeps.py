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
    "models": ("models", "independent models"), "heads": ("heads", "heads of a layer"),
    "head": ("H", "head dimension"),
}  # fmt: skip
LEAST_POINTS, MOST_SWEEPS = 3, 3  # of a sweep and of a line, for fewer show no course; side by side
NAMES = {"elman_tanh": "Elman", "elman_relu": "Elman relu", "leaky_tanh": "leaky", "leaky_relu": "leaky relu", "gru": "GRU", "lstm": "LSTM"}


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
        return ", ".join(in_words(self.held))


def in_words(held: dict[str, Any], always: Sequence[str] = ()) -> list[str]:
    """Sizes in words, what goes without saying left out unless its name is in `always`: ["LSTM", "B 16", "T 512"]"""
    usual = {"cell": (USUAL,), "lengths": ("full",), "layers": (1,), "bidirectional": (False,), "I": ("H", held.get("H")), "models": (1,), "heads": (1,)}
    forms = {"cell": "{}", "lengths": "{} lengths", "layers": "L {}", "bidirectional": "both directions", "models": "{} models", "heads": "{} heads"}
    said = [(name, held[name]) for name in ORDER if name in held and (name in always or held[name] not in usual.get(name, ()))]
    return [str(value) if " x " in str(value) else forms.get(name, f"{name} {{}}").format(NAMES.get(value, value)) for name, value in said]


ORDER = ("cell", "lengths", "layers", "bidirectional", "H", "I", "B", "T", "heads", "models")  # what a list of cases varies last comes last


def words_of(shapes: Sequence[dict[str, Any]]) -> tuple[str, list[str], list[bool]]:
    """(the sizes that all have; how each differs from others, but for words with which the one before begins, too; whether it
    begins with another word than that)"""
    if all(shape["I"] == shape["H"] for shape in shapes):
        shapes = [shape | {"I": "H"} for shape in shapes]
    varied = [name for name in ORDER if len({shape[name] for shape in shapes}) > 1]
    shared = {name: value for name, value in shapes[0].items() if name not in varied}
    words = [in_words({name: shape[name] for name in varied}, ("cell", "lengths", "layers")) for shape in shapes]
    same = [next((i for i, (a, b) in enumerate(zip(before, line)) if a != b), 0) for before, line in zip([[], *words], words)]
    return ", ".join(in_words(shared)), [", ".join(line[i:]) for i, line in zip(same, words)], [i == 0 for i in same]


def sweeps(rows: Iterable[Row], axis: str) -> list[Sweep]:
    """Of all sweeps over an axis those with the most measured values, LEAST_POINTS or more; of more than MOST_SWEEPS the first,
    the last and one between."""
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
        if count >= LEAST_POINTS and several:
            candidates.append(((count, len(measured)), Sweep(axis, dict(key), tuple(sorted({value for _, value in names})), names)))
    most = max((score for score, _ in candidates), default=None)
    best = sorted((sweep for score, sweep in candidates if score == most), key=lambda s: [f"{v:>9}" for v in s.held.values()])
    return best if len(best) <= MOST_SWEEPS else [best[0], best[len(best) // 2], best[-1]]


def kinds(rows: Iterable[Row]) -> list[str]:
    """The arithmetics that occur, bf16 first"""
    return sorted({arithmetic(row) for row in rows}, key=lambda kind: (DTYPES.index(kind[:4]), kind))


Index = dict[tuple[str, str, str], Row]


def indexed(rows: Iterable[Row]) -> Index:
    return {(row.case, row.pass_, row.provider): row for row in rows}


def passes_of(rows: Iterable[Row]) -> list[str]:
    return sorted({row.pass_ for row in rows}, key=PASSES.index)


def middle_sweep(rows: Sequence[Row], axis: str) -> Sweep | None:
    """Of the sweeps with most values the middle one"""
    found = sweeps(rows, axis)
    return found[len(found) // 2] if found else None
