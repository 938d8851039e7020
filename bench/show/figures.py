"""Figures from records, and from nothing else.

FIGURES names them; each gives the pages the rows of one device allow.  A series runs over the cases that differ in one
size alone, found in the rows, not listed here.  A line is broken where a value was not
measured; what cannot be shown gives no page.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..cases.case import nearest
from ..records.rows import Row
from ..records.schema import OURS
from . import style
from .formats import label
from .over_sizes import COMPARED, accuracy, memory, speedup_over, step
from .panels import Page
from .roofline import roofline
from .rows_in_words import EVERYTHING, PASS_TITLES, arithmetic, by_device, by_suite, caption
from .sweeps import indexed, kinds, passes_of
from .tables import missing


def draw(rows: Sequence[Row], out: Path, names: Sequence[str] | None = None) -> list[Path]:
    """Every figure of `names` (all of FIGURES) the data allows, as PNG, SVG and PDF in `out`; returns the files.

    Nothing to draw: no files. ValueError for a name that is none."""
    with style.context():
        return [file for page in pages(rows, names) for file in style.save(page.figure, out / page.name)]


def pages(rows: Sequence[Row], names: Sequence[str] | None = None) -> Iterator[Page]:
    """The pages, drawn one after another inside style.context(), in the order of FIGURES. With several devices each has
    pages of its own, whose names begin with it."""
    for name in names or ():
        if name not in FIGURES:
            raise ValueError(f"unknown figure {name!r}; {nearest(name, FIGURES)}")
    devices = by_device(rows)
    for name in FIGURES if names is None else [name for name in FIGURES if name in names]:
        for device, here in devices.items():
            prefix = "" if len(devices) == 1 else f"{label(device)}-"
            for page in FIGURES[name](here):
                style.finish(page.figure, page.title, f"{page.note} {page.source}", page.legend)
                yield replace(page, name=prefix + page.name)


BARS = 60  # cases; of more than that those with the extremes are shown


def speedup(rows: Sequence[Row]) -> Iterator[Page]:
    """Bars: the speedup of every case, suite by suite, a panel a pass; of more than BARS cases those with the extremes"""
    index, passes, there = indexed(rows), passes_of(rows), kinds(rows)
    if not any(row.us for row in rows if row.provider == OURS):
        return
    suites = by_suite(rows)
    kind_of = {row.case: arithmetic(row) for mine in suites.values() for row in mine}
    cases, every = list(kind_of), "every case"
    most = max((row.speedup for row in rows if row.provider == OURS and row.speedup), default=1.0)
    looks = {kind: {"facecolor": style.ARITHMETIC[kind]["color"], "hatch": style.HATCHES[kind]} for kind in there}
    lacking = len({line[2] for line in missing(rows).body if line[-1] == EVERYTHING})
    note = f"{COMPARED[0].upper()}{COMPARED[1:]}; the line is 1x."
    if len(cases) > BARS:
        chosen = extremes(suites.values(), BARS)
        every = f"{len(chosen)} of {len(cases)} cases"
        note += " Of each suite the cases with the lowest and the highest speedup, then those with the lowest of all: the "
        note += f"other {len(cases) - len(chosen)} are in the tables alone."
        cases = [name for name in cases if name in chosen]
    note += f" Of the cases of these suites {lacking} have no record." if lacking else ""
    figure, axes = style.panels(1, len(passes), 3.6, 0.7 + 0.185 * max(len(cases), 3), sharey=True)
    text: dict[str, Any] = {"va": "center", "fontsize": 6.5, "bbox": {"color": "white", "pad": 0.3}}
    for axis, pass_ in zip(axes[0], passes):
        for i, name in enumerate(cases):
            row = index.get((name, pass_, OURS))
            if row is not None and row.speedup is not None:
                axis.barh(i, row.speedup, 0.78, edgecolor="black", linewidth=0.5, **looks[kind_of[name]])
                at = {"xytext": (3, 0), "textcoords": "offset points"}
                axis.annotate(f"{row.speedup:.2f}", (row.speedup, i), **at, **text)
            else:
                reason = "not measured" if row is None else row.gap or row.status
                axis.text(0.02 * most, i, reason, style="italic", **text)
        axis.axvline(1, color="black", linewidth=1)
        axis.set(xlim=(0, 1.18 * max(most, 1.0)), title=PASS_TITLES[pass_], xlabel="speedup over cuDNN")
    axes[0][0].set_yticks(range(len(cases)), cases, fontsize=7)
    axes[0][0].set_ylim(len(cases) - 0.4, -0.6)
    legend = {kind: style.patch(**look) for kind, look in looks.items()}
    yield Page("speedup", f"Speedup of {every}", note, caption(rows), figure, legend)


def extremes(suites: Iterable[Sequence[Row]], count: int) -> set[str]:
    """About `count` cases of ours: with the lowest and the highest speedup of each suite, then with the lowest of all; those
    without one last"""
    chosen: dict[str, None] = {}
    lowest: dict[str, float] = {}
    for rows in suites:
        found = sorted((row.speedup or math.inf, row.case) for row in rows if row.provider == OURS)
        compared = [pair for pair in found if pair[0] < math.inf]
        chosen |= dict.fromkeys(name for _, name in (*compared[:1], *compared[-1:]))
        for value, name in found:
            lowest[name] = min(value, lowest.get(name, math.inf))
    rest = [name for name in sorted(lowest, key=lambda name: lowest[name]) if name not in chosen]
    return {*chosen, *rest[: max(0, count - len(chosen))]}


FIGURES: dict[str, Callable[[Sequence[Row]], Iterator[Page]]] = {
    "speedup": speedup, "speedup-over": speedup_over, "step": step, "roofline": roofline, "memory": memory,
    "accuracy": accuracy,
}  # fmt: skip
