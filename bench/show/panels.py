"""A page, and panels of lines on it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..records.rows import Row
from . import style
from .rows_in_words import caption
from .sweeps import LEAST_POINTS


@dataclass(frozen=True)
class Page:
    """One figure, drawn. `name` is the stem of its files; `title` says what it shows, `note` how to read it, `source` what was
    measured on what: of the rows that are drawn, and no others."""

    name: str
    title: str
    note: str
    source: str
    figure: Any
    legend: dict[str, Any]  # label -> what the legend shows before it

    @property
    def caption(self) -> str:
        return f"{self.title}. {self.note} {self.source}"


@dataclass(frozen=True)
class Point:
    """`y` None: there is none, and the line is broken."""

    x: float
    y: float | None
    low: float | None = None
    high: float | None = None
    wrong: bool = False  # marked as such
    row: Row | None = None  # where it is from


@dataclass(frozen=True)
class Series:
    label: str
    style: style.Style
    points: list[Point]


@dataclass(frozen=True)
class Panel:
    """Series over `values`; `floor`: points below which is shaded"""

    title: str
    axis: str
    values: Sequence[float]
    series: Sequence[Series]
    floor: Sequence[Point] = ()


def draw_lines(
    name: str, title: str, note: str, label: str, lines: Sequence[Sequence[Panel]], width: float, level: tuple[float, str] | None = None,
    times: bool = True,
) -> Iterator[Page]:  # fmt: skip
    """A page: a grid of panels with one vertical axis, logarithmic, called `label`; `level`: (value, name) of a horizontal line through
    all of them.  A series of fewer than LEAST_POINTS and a panel without series are left out; no page where nothing is left."""
    def kept(panel: Panel) -> Panel | None:
        series = [s for s in panel.series if _enough(s.points)]
        return replace(panel, series=series, floor=panel.floor if _enough(panel.floor) else ()) if any(p.row for s in series for p in s.points) else None

    grid = style.side_by_side([[kept(panel) for panel in line] for line in lines], width)
    if not (shown := [panel for line in grid for panel in line]):
        return
    figure, axes, (across, height) = style.panels([len(line) for line in grid], width)
    points = [p for panel in shown for s in panel.series for p in s.points if p.y is not None]
    numbers = [v for p in points for v in (p.y, p.low, p.high) if v is not None] + ([level[0]] if level else [])
    numbers += [max(p.y or 0.0 for p in panel.floor) / 1.3 for panel in shown if panel.floor]  # its highest part is in sight
    legend: dict[str, Any] = {}
    for i, (line, mine) in enumerate(zip(grid, axes)):
        for j, (panel, axis) in enumerate(zip(line, mine)):
            style.log_ticks(axis, numbers, height)
            style.log_ticks(axis, panel.values, across, True, only=True)
            for series in panel.series:
                _draw(axis, series, legend)
            if level:
                legend.setdefault(level[1], axis.axhline(level[0], color="black", linewidth=0.8, zorder=1.6))  # above the grid
            if panel.floor:
                x, y = zip(*((p.x, p.y) for p in panel.floor if p.y is not None))
                legend.setdefault(BELOW, axis.fill_between(x, axis.get_ylim()[0], y, zorder=0.4, color="#e4e4e4", linewidth=0))
            axis.set(title=style.in_lines(panel.title, across), xlabel=panel.axis if j >= len((*axes, [])[i + 1]) else "")
            axis.tick_params(labelleft=j == 0)
        mine[0].set_ylabel(label)
    note += "".join(said for entry, said in SAID.items() if entry in legend)
    yield Page(name, title, note, caption([p.row for p in points if p.row], times), figure, legend)


BELOW, WRONG, INACCURATE = "below floor (estimate)", "wrong", "inaccurate"
SAID = {  # in the caption, where the legend has the entry
    BELOW: " Shaded: below the latency model's lower bound, an estimate.",
    WRONG: " A cross: over the tolerance, or over that of single elements.",
    INACCURATE: " Hollow, of peers: gradients in 16 bits miss the tolerance.",
}


def _enough(points: Sequence[Point]) -> bool:
    return sum(point.y is not None for point in points) >= LEAST_POINTS


def _draw(axis: Any, series: Series, legend: dict[str, Any]) -> None:
    """Draws one, its line broken where there is no value."""
    (line,) = axis.plot([p.x for p in series.points], [math.nan if p.y is None else p.y for p in series.points], **series.style)
    legend.setdefault(series.label, line)
    spread = [p for p in series.points if p.low is not None]
    axis.vlines([p.x for p in spread], [p.low for p in spread], [p.high for p in spread], color=series.style["color"], linewidth=0.8)
    if hollow := [p for p in series.points if p.row and p.row.status == "inaccurate" and p.y is not None and not p.wrong]:
        look = series.style | {"linestyle": "", "markerfacecolor": "white"}
        legend.setdefault(INACCURATE, axis.plot([p.x for p in hollow], [p.y for p in hollow], **look)[0])
    if wrong := [p for p in series.points if p.wrong and p.y is not None]:
        mark = {"color": series.style["color"], "marker": "x", "linestyle": "", "markersize": 7, "markeredgewidth": 1.1}
        legend.setdefault(WRONG, axis.plot([p.x for p in wrong], [p.y for p in wrong], **mark)[0])
