"""A page, and panels of lines on it."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ..records.rows import Row
from . import style


@dataclass(frozen=True)
class Page:
    """One figure, drawn. `name` is the stem of its files; `note` says how to read it, `source` what it was measured on."""

    name: str
    title: str
    note: str
    source: str
    figure: Any
    legend: dict[str, Any]  # label -> what the legend shows before it


@dataclass(frozen=True)
class Point:
    """`y` None: there is none, and the line is broken."""

    x: float
    y: float | None
    low: float | None = None
    high: float | None = None
    wrong: bool = False  # marked as such


@dataclass(frozen=True)
class Series:
    label: str
    style: style.Style
    points: list[Point]


@dataclass(frozen=True)
class Line:
    """A line of panels: each (title, series); `level`: (value, label) of a horizontal line through all of them."""

    label: str
    panels: list[tuple[str, list[Series]]]
    level: tuple[float, str] | None = None
    percent: bool = False  # a linear axis from 0 to 100 %, else a logarithmic one


def drawable(line: Line) -> bool:
    return any(p.y is not None for _, several in line.panels for s in several for p in s.points)


def point_of(row: Row | None, x: float, value: Callable[[Row], float | Sequence[float] | None]) -> Point:
    """value(row): one number or (p20, median, p80)"""
    found = value(row) if row is not None and row.status == "ok" else None
    if found is None or isinstance(found, (int, float)):
        return Point(x, found)
    return Point(x, found[1], found[0], found[2])


def draw_lines(lines: Sequence[Line], axes: Sequence[tuple[str, Sequence[float]]]) -> tuple[Any, dict[str, Any]]:
    """(figure, what its legend shows) of a grid of panels; `axes`: the label and the values below each column."""
    width, heights = 2.9, [1.25 if line.percent else 2.3 for line in lines]
    how = {"gridspec_kw": {"height_ratios": heights}}
    figure, panels = style.panels(len(lines), len(axes), width, sum(heights) / len(heights), **how)
    legend: dict[str, Any] = {}
    for line, across in zip(lines, panels):
        numbers = [line.level[0]] if line.level else []
        for _, several in line.panels:
            numbers += [v for s in several for p in s.points for v in (p.y, p.low, p.high) if v is not None]
        for axis, (title, several), (label, values) in zip(across, line.panels, axes):
            axis.set_title(textwrap.fill(title, int(width * 10)))
            for series in several:
                _draw(axis, series, legend)
            if line.level:
                axis.axhline(line.level[0], color="black", linewidth=0.9, zorder=1.6)  # above the grid
                legend.setdefault(line.level[1], style.line(color="black", linewidth=0.9))
            if not any(p.y is not None for s in several for p in s.points):
                style.say(axis, "not measured", 0.75 if line.percent else 0.5)
            style.value_ticks(axis, values, width - 0.75)
            if line.percent:
                axis.set_ylim(0, 1.08 * max([1.0, *numbers]))
                axis.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", "", "50 %", "", "100 %"])
            elif numbers:
                style.log_ticks(axis, numbers)
            axis.set_xlabel(label if line is lines[-1] else "")
        across[0].set_ylabel(line.label)
        for axis in across[1:]:
            axis.tick_params(labelleft=False)
    return figure, legend


def _draw(axis: Any, series: Series, legend: dict[str, Any]) -> None:
    """Draws one, its line broken where there is no value."""
    if not any(p.y is not None for p in series.points):
        return
    look = {"markersize": 4.5, "linewidth": 1.3} | series.style
    axis.plot([p.x for p in series.points], [math.nan if p.y is None else p.y for p in series.points], **look)
    spread = [p for p in series.points if p.low is not None]
    if spread:
        x, low, high = [p.x for p in spread], [p.low for p in spread], [p.high for p in spread]
        axis.vlines(x, low, high, color=series.style["color"], linewidth=1)
        axis.plot([*x, *x], [*low, *high], linestyle="", marker="_", markersize=4, color=series.style["color"])
    legend.setdefault(series.label, style.line(**look))
    wrong = [p for p in series.points if p.wrong and p.y is not None]
    if wrong:
        mark = {"marker": "x", "linestyle": "", "markersize": 9, "markeredgewidth": 1.4}
        axis.plot([p.x for p in wrong], [p.y for p in wrong], color=series.style["color"], **mark)
        legend.setdefault("wrong", style.line(color="black", marker="x", linestyle=""))
