"""Figures over one size at a time: speedup, time of a step, memory, accuracy."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from ..cases.case import CELLS, USUAL
from ..records.rows import Row
from ..records.schema import OURS
from . import style
from .panels import Page, Panel, Point, Series, draw_lines
from .rows_in_words import PASS_TITLES, arithmetic
from .sweeps import AXES, Index, Sweep, indexed, kinds, middle_sweep, passes_of, sweeps

COMPARED = "over the faster of torch.nn on cuDNN and one module per layer, in the newest run that timed both with the code and versions of ours"


def _each(rows: Sequence[Row], axes: Iterable[str]) -> Iterator[tuple[str, str, list[Row]]]:
    """(axis, end of a page's name, rows) of every axis and cell"""
    for axis in axes:
        for cell in dict.fromkeys((*CELLS, *sorted({row.shape["cell"] for row in rows}))):
            if mine := [row for row in rows if row.shape["cell"] == cell]:
                yield axis, axis if cell == USUAL else f"{axis}-{cell.replace('_', '-')}", mine


def speedup_over(rows: Sequence[Row], width: float, axes: Iterable[str]) -> Iterator[Page]:
    """Speedup over H, B, T, L, ...: a line an arithmetic, a panel a pass and sweep"""
    for axis, name, mine in _each(rows, axes):
        index, found = indexed(mine), sweeps([row for row in mine if row.provider == OURS], axis)

        def panel(pass_: str, sweep: Sweep) -> Panel:
            lines = {kind: _over(index, sweep, kind, pass_, OURS, lambda r: r.speedup) for kind in kinds(mine)}
            series = [Series(kind, style.ARITHMETIC[kind], points) for kind, points in lines.items()]
            return Panel(f"{PASS_TITLES[pass_]}: {sweep.title}", sweep.label, sweep.values, series)

        lines = [[panel(pass_, sweep) for sweep in found] for pass_ in passes_of(mine)]
        title, level = f"Speedup against {AXES[axis][1]}", (1.0, "as fast as cuDNN")
        yield from draw_lines(f"speedup-over-{name}", title, f"Speedup {COMPARED}.", "speedup over cuDNN", lines, width, level)


def _by_provider(
    name: str, title: str, label: str, note: str, value: Callable[[Row], Any], of: Iterable[str] = tuple(AXES), times: bool = True
) -> Callable[[Sequence[Row], float, Iterable[str]], Iterator[Page]]:
    """A figure of value(row) over each of the axes `of`: a series a provider, a panel a pass and arithmetic; of `times` with the floor"""
    def pages(rows: Sequence[Row], width: float, axes: Iterable[str]) -> Iterator[Page]:
        for axis, end, mine in _each(rows, [axis for axis in axes if axis in of]):
            if not (sweep := middle_sweep([row for row in mine if value(row)], axis)):
                continue
            index, looks = indexed(mine), style.providers(row.provider for row in mine)

            def panel(pass_: str, kind: str) -> Panel:
                series = [Series(said, look, _over(index, sweep, kind, pass_, provider, value)) for provider, (said, look) in looks.items()]
                floor = _over(index, sweep, kind, pass_, OURS, lambda r: r.floor_us_per_step) if times else ()
                return Panel(f"{kind}, {PASS_TITLES[pass_]}", sweep.label, sweep.values, series, floor)

            lines = [[panel(pass_, kind) for kind in kinds(mine)] for pass_ in passes_of(mine)]
            yield from draw_lines(f"{name}-over-{end}", f"{title} against {sweep.label} ({sweep.title})", note, label, lines, width, times=times)

    return pages


def _step_quantiles(row: Row) -> list[float] | None:
    us = row.us or row.inaccurate_us
    return [q / row.shape["T"] for q in us] if us else None


step = _by_provider("step", "Time of a step", "µs per step", "Whiskers: 20th to 80th percentile.", _step_quantiles)
memory = _by_provider(
    "memory", "Peak memory", "peak memory, MiB", "The most a call allocated beyond what was allocated before it, its results included.",
    lambda row: (row.peak_bytes or 0) / 2**20 or None, ("T", "H"), False,
)  # fmt: skip


def accuracy(rows: Sequence[Row], width: float, axes: Iterable[str]) -> Iterator[Page]:
    """Relative error against fp64 over T: of y and of the worst gradient, every provider, with the gate's tolerance"""
    note = (
        "Relative norm of the difference from an fp64 reference with the same rounded inputs, of the worse pass; an error below "
        f"{LEAST_ERROR:g} would be drawn there."
    )
    for _, end, mine in _each([row for row in rows if row.errors], [axis for axis in axes if axis == "T"]):
        if not (sweep := middle_sweep(mine, "T")):
            continue
        chosen = [row for row in mine if row.case in sweep.names.values()]

        def panel(label: str, wanted: Sequence[str] | None, kind: str) -> Panel:
            here = [row for row in chosen if arithmetic(row) == kind]
            several = [
                Series(said, look, _error_points([row for row in here if row.provider == provider], wanted))
                for provider, (said, look) in style.providers(row.provider for row in here).items()
            ]
            tolerances = {r.shape["T"]: e["rel_tol"] for r in here for e in _of(r, wanted).values() if e["rel_tol"] > 0}
            several.append(Series("tolerance", style.TOLERANCE, [Point(*pair) for pair in sorted(tolerances.items())]))
            return Panel(f"{label}, {kind}", sweep.label, sweep.values, several)

        lines = [[panel(label, wanted, kind) for kind in kinds(chosen)] for label, wanted in (("y", ("y",)), ("worst gradient", None))]
        title = f"Accuracy against {sweep.label} ({sweep.title})"
        yield from draw_lines(f"accuracy-over-{end}", title, note, "relative error", lines, width, times=False)


def _of(row: Row, wanted: Sequence[str] | None) -> dict[str, dict[str, float]]:
    return {name: e for name, e in row.errors.items() if (name in wanted if wanted else name not in ("y", "hn"))}


LEAST_ERROR, MOST_ERROR = 1e-9, 1e9  # what the axis can show; 0 is drawn as the least


def _error_points(rows: Sequence[Row], wanted: Sequence[str] | None) -> list[Point]:
    """A point a case, the worst of its passes and of the wanted quantities"""
    worst: dict[str, Point] = {}
    for row in rows:
        for error in _of(row, wanted).values():
            y = max(error["rel"], LEAST_ERROR) if error["rel"] < MOST_ERROR else None  # nor can it show NaN
            wrong = not (error["rel"] <= error["rel_tol"] and error["max"] <= error["max_tol"])
            if row.case not in worst or (y or math.inf) > (worst[row.case].y or math.inf):
                worst[row.case] = Point(row.shape["T"], y, wrong=wrong, row=row)
    return sorted(worst.values(), key=lambda p: p.x)


def _over(index: Index, sweep: Sweep, kind: str, pass_: str, provider: str, value: Callable[[Row], Any]) -> list[Point]:
    """A point a size; value(row): one number or (p20, median, p80)"""
    found = []
    for size in sweep.values:
        row = index.get((sweep.names.get((kind, size), ""), pass_, provider))
        at = value(row) if row is not None and row.status in ("ok", "inaccurate") else None
        low, y, high = at if isinstance(at, list) else (None, at, None)
        found.append(Point(size, y, low, high, row=row))
    return found
