"""Figures over one size at a time: speedup, time of a step, memory, accuracy."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ..records.rows import Row
from ..records.schema import OURS
from . import style
from .panels import Line, Page, Point, Series, draw_lines, drawable, point_of
from .rows_in_words import PASS_TITLES, arithmetic, caption
from .sweeps import AXES, Index, Sweep, indexed, kinds, middle_sweep, passes_of, sweeps
from .tables import FLOOR_MARK

COMPARED = (
    "over the faster of torch.nn on cuDNN and a module for each layer, in the newest run that timed both with the code and "
    "versions of ours"
)


def speedup_over(rows: Sequence[Row]) -> Iterator[Page]:
    """Speedup over H, B, T, L: a line an arithmetic, a panel a pass and sweep"""
    index = indexed(rows)
    for axis in AXES:
        found = sweeps([row for row in rows if row.provider == OURS], axis)
        lines: list[Line] = []
        for pass_ in passes_of(rows):
            panels = []
            for sweep in found:
                points = {kind: _over(index, sweep, kind, pass_, OURS, lambda r: r.speedup) for kind in kinds(rows)}
                panels.append(("" if lines else sweep.title, [Series(k, style.ARITHMETIC[k], p) for k, p in points.items()]))
            lines.append(Line(f"{PASS_TITLES[pass_]}\nspeedup", panels, level=(1.0, "1x: as fast as cuDNN")))
        if not any(map(drawable, lines)):
            continue
        figure, legend = draw_lines(lines, [(sweep.label, sweep.values) for sweep in found])
        note = f"Speedup {COMPARED}."
        yield Page(f"speedup-over-{axis}", f"Speedup over {found[0].label}", note, caption(rows), figure, legend)


def step(rows: Sequence[Row]) -> Iterator[Page]:
    """us per step of every provider with the floor, and below it the part of the floor that is reached"""
    index = indexed(rows)
    ours = {key: row for key, row in index.items() if row.provider == OURS}
    for axis in AXES:
        if not (sweep := middle_sweep(rows, axis)):
            continue
        lines: list[Line] = []
        for pass_ in passes_of(rows):
            times, parts = [], []
            for kind in kinds(rows):
                several = _providers(index, sweep, kind, pass_, _step_quantiles)
                floor = _over(index, sweep, kind, pass_, OURS, lambda r: r.floor_us_per_step)
                several.append(Series("floor (estimate)", style.FLOOR, floor))
                times.append(("" if lines else kind, several))
                parts.append(("", _providers(ours, sweep, kind, pass_, lambda r: r.fraction_of_floor)))
            lines.append(Line(f"{PASS_TITLES[pass_]}\nus per step", times))
            level = (FLOOR_MARK, f"{FLOOR_MARK:.0%} of the floor")
            lines.append(Line("of the floor", parts, level=level, percent=True))
        figure, legend = draw_lines(lines, [(sweep.label, sweep.values)] * len(kinds(rows)))
        title = f"Time of a step over {sweep.label}: {sweep.title}"
        note = (
            "Whiskers: 20th to 80th percentile. The floor is the latency model's lower bound, an estimate; below, the part of "
            "it reached, floor over measured time."
        )
        yield Page(f"step-over-{axis}", title, note, caption(rows), figure, legend)


def _step_quantiles(row: Row) -> list[float] | None:
    return [q / row.shape["T"] for q in row.us] if row.us else None


def memory(rows: Sequence[Row]) -> Iterator[Page]:
    """Peak memory of a call over T and H, every provider"""
    def mebibytes(row: Row) -> float | None:
        return (row.peak_bytes or 0) / 2**20 or None

    index = indexed(rows)
    for axis in ("T", "H"):
        sweep = middle_sweep([row for row in rows if row.peak_bytes], axis)
        if not sweep:
            continue
        lines: list[Line] = []
        for pass_ in passes_of(rows):
            panels = [("" if lines else kind, _providers(index, sweep, kind, pass_, mebibytes)) for kind in kinds(rows)]
            lines.append(Line(f"{PASS_TITLES[pass_]}\npeak memory, MiB", panels))
        figure, legend = draw_lines(lines, [(sweep.label, sweep.values)] * len(kinds(rows)))
        title = f"Peak memory over {sweep.label}: {sweep.title}"
        note = "The most a call allocated beyond what was allocated before it, its results included."
        yield Page(f"memory-over-{axis}", title, note, caption(rows), figure, legend)


def accuracy(rows: Sequence[Row]) -> Iterator[Page]:
    """Relative error against fp64 over T: of y and of the worst gradient, every provider, with the gate's tolerance"""
    judged = [row for row in rows if row.errors]
    sweep = middle_sweep([row for row in judged if row.us], "T")
    if not judged:
        return
    chosen = [row for row in judged if sweep is None or row.case in sweep.names.values()]
    values = sorted({row.shape["T"] for row in chosen})
    looks = style.providers(row.provider for row in judged)
    lines: list[Line] = []
    for label, wanted in (("error of y", ("y",)), ("largest error\nof a gradient", None)):
        panels = []
        for kind in kinds(rows):
            mine = [row for row in chosen if arithmetic(row) == kind]
            several = []
            for provider, look in looks.items():
                if points := _error_points([row for row in mine if row.provider == provider], wanted):
                    look = look if sweep else look | {"linestyle": ""}
                    several.append(Series(style.LABELS.get(provider, provider), look, points))
            tolerances = {r.shape["T"]: e["rel_tol"] for r in mine for e in _of(r, wanted).values() if e["rel_tol"] > 0}
            if tolerances:
                several.append(Series("tolerance", style.TOLERANCE, [Point(*pair) for pair in sorted(tolerances.items())]))
            panels.append((kind if not lines else "", several))
        lines.append(Line(label, panels))
    if any(map(drawable, lines)):
        figure, legend = draw_lines(list(filter(drawable, lines)), [("time steps T", values)] * len(kinds(rows)))
        note = (
            "Relative norm of the difference from an fp64 reference with the same rounded inputs; above the tolerance a result "
            f"is wrong and has no time. An error below {LEAST_ERROR:g}, and none at all, is drawn there."
        )
        title = f"Accuracy over T: {sweep.title if sweep else 'all cases'}"
        yield Page("accuracy", title, note, caption(rows), figure, legend)


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
            point = Point(row.shape["T"], y, wrong=wrong)
            if row.case not in worst or (point.y or math.inf) > (worst[row.case].y or math.inf):
                worst[row.case] = point
    return sorted(worst.values(), key=lambda p: p.x)


def _over(index: Index, sweep: Sweep, kind: str, pass_: str, provider: str, value: Callable[[Row], Any]) -> list[Point]:
    return [point_of(index.get((sweep.names.get((kind, v), ""), pass_, provider)), v, value) for v in sweep.values]


def _providers(index: Index, sweep: Sweep, kind: str, pass_: str, value: Callable[[Row], Any]) -> list[Series]:
    """A series a provider that has a record anywhere"""
    return [
        Series(style.LABELS.get(name, name), look, _over(index, sweep, kind, pass_, name, value))
        for name, look in style.providers(provider for _, _, provider in index).items()
    ]
