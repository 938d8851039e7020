"""Figures from records, and from nothing else.

FIGURES names them; each gives the pages the rows of one device allow.  A series runs over the cases that differ in one
size alone, found in the rows, not listed here.  A value that was not measured leaves a gap with a mark that says why;
what cannot be shown gives no page.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..cases.case import DTYPES, PASSES, Case, nearest
from ..records.schema import APART, BASELINES, HARDWARE, OURS, Row
from . import style
from .style import MissingMatplotlib
from .tables import (
    EVERYTHING,
    FLOOR_MARK,
    PASS_TITLES,
    REGIMES,
    arithmetic,
    by_device,
    by_suite,
    caption,
    missing,
)

__all__ = ["FIGURES", "MissingMatplotlib", "Page", "draw", "pages"]


@dataclass(frozen=True)
class Page:
    """One figure, drawn. `name` is the stem of its files; `note` says how to read it, `source` what it was measured on."""

    name: str
    title: str
    note: str
    source: str
    figure: Any
    legend: dict[str, Any]  # label -> what the legend shows before it


def draw(
    rows: Sequence[Row], training: Sequence[dict[str, Any]], out: Path, names: Sequence[str] | None = None
) -> list[Path]:
    """Every figure of `names` (all of FIGURES) the data allows, as PNG, SVG and PDF in `out`; returns the files.

    Nothing to draw: no files. ValueError for a name that is none."""
    files: list[Path] = []
    with style.context():
        for page in pages(rows, training, names):
            files += style.save(page.figure, out / page.name)
    return files


def pages(
    rows: Sequence[Row], training: Sequence[dict[str, Any]], names: Sequence[str] | None = None
) -> Iterator[Page]:
    """The pages, drawn one after another inside style.context(), in the order of FIGURES. With several devices each has
    pages of its own, whose names begin with it."""
    for name in names or ():
        if name not in FIGURES:
            raise ValueError(f"unknown figure {name!r}; {nearest(name, FIGURES)}")
    timed = by_device(rows)
    trained: dict[str, list[dict[str, Any]]] = {}
    for record in training:
        trained.setdefault(record["environment"]["device"], []).append(record)
    for name, function in FIGURES.items():
        if names is not None and name not in names:
            continue
        data: dict[str, Any] = dict(sorted(trained.items())) if name in OF_TRAINING else timed
        for device, here in data.items():
            prefix = "" if len(data) == 1 else f"{''.join(c if c.isalnum() else '-' for c in device).lower()}-"
            for page in function(here):
                style.finish(page.figure, page.title, f"{page.note} {page.source}", page.legend)
                yield replace(page, name=prefix + page.name)


# ---- sweeps ---------------------------------------------------------------------------------------------------------

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
    """The sizes of a case or of what cases share, the usual ones left out: "B 16, T 512, relu"."""
    parts = [f"{name} {held[name]}" for name in "HBT" if name in held]
    parts += [f"I {held['I']}"] if "I" in held and held["I"] not in ("H", held.get("H")) else []
    parts += [f"L {held['layers']}"] if held.get("layers", 1) != 1 else []
    models = held.get("models", 1)
    parts += [f"{models} models" if isinstance(models, int) else str(models)] if models != 1 else []
    parts += ["both directions"] if held.get("bidirectional") else []
    usual = {"cell": "rnn", "lengths": "full", "nonlinearity": "tanh"}
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
    if not candidates:
        return []
    most = max(score for score, _ in candidates)
    best = sorted((sweep for score, sweep in candidates if score == most), key=lambda s: _order(s.held))
    if len(best) > MOST_SWEEPS:
        best = [best[0], best[len(best) // 2], best[-1]]
    return best


def _order(held: dict[str, Any]) -> list[tuple[bool, float, str]]:
    """Sorts numbers as such and all else as text"""
    return [(isinstance(v, str), 0.0, v) if isinstance(v, str) else (False, float(v), "") for v in held.values()]


def kinds(rows: Iterable[Row]) -> list[str]:
    """The arithmetics that occur, bf16 first"""
    return sorted({arithmetic(row) for row in rows}, key=lambda kind: (DTYPES.index(kind[:4]), kind))


Index = dict[tuple[str, str, str], Row]


def _index(rows: Iterable[Row]) -> Index:
    return {(row.case, row.pass_, row.provider): row for row in rows}


def _passes(rows: Iterable[Row]) -> list[str]:
    there = {row.pass_ for row in rows}
    return [pass_ for pass_ in PASSES if pass_ in there]


# ---- panels of lines ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Point:
    """`y` None: there is none, for the reason `gap` (a key of style.GAPS); with both, a value that is marked."""

    x: float
    y: float | None
    low: float | None = None
    high: float | None = None
    gap: str = ""


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


def _drawable(line: Line) -> bool:
    return any(p.y is not None for _, several in line.panels for s in several for p in s.points)


def _point(row: Row | None, x: float, value: Callable[[Row], float | Sequence[float] | None]) -> Point:
    """value(row): one number or (p20, median, p80)"""
    found = value(row) if row is not None and row.status == "ok" else None
    if found is None:
        return Point(x, None, gap=_gap(row))
    if isinstance(found, (int, float)):
        return Point(x, float(found))
    return Point(x, found[1], found[0], found[2])


def _gap(row: Row | None) -> str:
    status = "not measured" if row is None else row.status
    return {"error": "failed", "timeout": "failed"}.get(status, status if status in style.GAPS else "not measured")


def _lines(
    lines: Sequence[Line], axes: Sequence[tuple[str, Sequence[float]]], width: float = 2.9
) -> tuple[Any, dict[str, Any]]:
    """(figure, what its legend shows) of a grid of panels; `axes`: the label and the values below each column."""
    heights = [1.25 if line.percent else 2.3 for line in lines]
    figure, panels = style.panels(
        len(lines), len(axes), width, sum(heights) / len(heights), gridspec_kw={"height_ratios": heights}
    )
    legend: dict[str, Any] = {}
    gaps: set[str] = set()
    for line, across in zip(lines, panels):
        numbers = [line.level[0]] if line.level else []
        for _, several in line.panels:
            numbers += [v for s in several for p in s.points for v in (p.y, p.low, p.high) if v is not None]
        slots = max(
            (
                i + 1
                for _, several in line.panels
                for i, s in enumerate(several)
                if any(p.y is None for p in s.points)
            ),
            default=0,
        )
        for axis, (title, several), (label, values) in zip(across, line.panels, axes):
            axis.set_title(textwrap.fill(title, int(width * 10)))
            for slot, series in enumerate(several):
                gaps |= _series(axis, series, slot, legend)
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
                style.log_ticks(axis, numbers, 0.12 + 0.06 * slots)
            axis.set_xlabel(label if line is lines[-1] else "")
        across[0].set_ylabel(line.label)
        for axis in across[1:]:
            axis.tick_params(labelleft=False)
    legend |= {
        gap: style.line(color="black", marker=mark, linestyle="") for gap, mark in style.GAPS.items() if gap in gaps
    }
    return figure, legend


def _series(axis: Any, series: Series, slot: int, legend: dict[str, Any]) -> set[str]:
    """Draws one; breaks the line at a gap and marks it at the lower edge of the panel. Returns the gaps there were."""
    look = {"markersize": 4.5, "linewidth": 1.3} | series.style
    runs: list[list[Point]] = [[]]
    for point in series.points:
        if point.y is None:
            runs.append([])
        else:
            runs[-1].append(point)
    for run in filter(None, runs):
        axis.plot([p.x for p in run], [p.y for p in run], **look)
        spread = [p for p in run if p.low is not None]
        if spread:
            x, low, high = [p.x for p in spread], [p.low for p in spread], [p.high for p in spread]
            axis.vlines(x, low, high, color=series.style["color"], linewidth=1)
            axis.plot([*x, *x], [*low, *high], linestyle="", marker="_", markersize=4, color=series.style["color"])
    if any(runs):
        legend.setdefault(series.label, style.line(**look))
    for point in series.points:
        if point.gap:
            where = (point.x, 0.035 + 0.06 * slot) if point.y is None else (point.x, point.y)
            transform = {"transform": axis.get_xaxis_transform()} if point.y is None else {}
            axis.plot(
                *([v] for v in where), marker=style.GAPS[point.gap], linestyle="", color=series.style["color"],
                markersize=6 if point.y is None else 9, markeredgewidth=1.4, **transform,
            )  # fmt: skip
    return {point.gap for point in series.points if point.gap}


# ---- figures: one size at a time ------------------------------------------------------------------------------------


COMPARED = (
    "over the faster of torch.nn on cuDNN and a module for each layer, in the newest run that timed both with the code and "
    "versions of ours"
)


def speedup_over(rows: Sequence[Row]) -> Iterator[Page]:
    """Speedup over H, B, T, L: a line an arithmetic, a panel a pass and sweep"""
    index = _index(rows)
    for axis in AXES:
        found = sweeps([row for row in rows if row.provider == OURS], axis)
        lines: list[Line] = []
        for pass_ in _passes(rows):
            panels = [
                (
                    "" if lines else sweep.title,
                    [
                        Series(kind, style.ARITHMETIC[kind], _compared(index, sweep, kind, pass_))
                        for kind in kinds(rows)
                    ],
                )
                for sweep in found
            ]
            lines.append(Line(f"{PASS_TITLES[pass_]}\nspeedup", panels, level=(1.0, "1x: as fast as cuDNN")))
        if not any(map(_drawable, lines)):
            continue
        figure, legend = _lines(lines, [(sweep.label, sweep.values) for sweep in found])
        note = f"Speedup {COMPARED}."
        yield Page(f"speedup-over-{axis}", f"Speedup over {found[0].label}", note, caption(rows), figure, legend)


def _compared(index: Index, sweep: Sweep, kind: str, pass_: str) -> list[Point]:
    """Speedups; where ours was timed and not compared, why."""
    found = [index.get((sweep.names.get((kind, v), ""), pass_, OURS)) for v in sweep.values]
    points = [_point(row, v, lambda r: r.speedup) for row, v in zip(found, sweep.values)]
    return [replace(p, gap=row.gap) if row is not None and row.gap else p for row, p in zip(found, points)]


def step(rows: Sequence[Row]) -> Iterator[Page]:
    """us per step of every provider with the floor, and below it the part of the floor that is reached"""
    index = _index(rows)
    ours = {key: row for key, row in index.items() if row.provider == OURS}
    for axis in AXES:
        if not (sweep := _middle(rows, axis)):
            continue
        lines: list[Line] = []
        for pass_ in _passes(rows):
            times, parts = [], []
            for kind in kinds(rows):
                several = _providers(index, sweep, kind, pass_, _step_quantiles)
                floor = _over(index, sweep, kind, pass_, OURS, lambda r: r.floor_us_per_step)
                several.append(Series("floor (estimate)", style.FLOOR, [p for p in floor if p.y is not None]))
                times.append(("" if lines else kind, several))
                parts.append(("", _providers(ours, sweep, kind, pass_, lambda r: r.fraction_of_floor)))
            lines.append(Line(f"{PASS_TITLES[pass_]}\nus per step", times))
            level = (FLOOR_MARK, f"{FLOOR_MARK:.0%} of the floor")
            lines.append(Line("of the floor", parts, level=level, percent=True))
        figure, legend = _lines(lines, [(sweep.label, sweep.values)] * len(kinds(rows)))
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
    index = _index(rows)
    for axis in ("T", "H"):
        sweep = _middle([row for row in rows if row.peak_bytes], axis)
        if not sweep:
            continue
        lines: list[Line] = []
        for pass_ in _passes(rows):
            panels = [
                (
                    "" if lines else kind,
                    _providers(index, sweep, kind, pass_, lambda r: (r.peak_bytes or 0) / 2**20 or None),
                )
                for kind in kinds(rows)
            ]
            lines.append(Line(f"{PASS_TITLES[pass_]}\npeak memory, MiB", panels))
        figure, legend = _lines(lines, [(sweep.label, sweep.values)] * len(kinds(rows)))
        title = f"Peak memory over {sweep.label}: {sweep.title}"
        note = "The most a call allocated beyond what was allocated before it, its results included."
        yield Page(f"memory-over-{axis}", title, note, caption(rows), figure, legend)


SLOPES = {"T": 1, "B": 1, "H": 2, "L": 1, "models": 1, "head": 1}  # of the work of a call over the size


def scaling(rows: Sequence[Row]) -> Iterator[Page]:
    """The cost of a call over each size alone, as a multiple of the smallest one's, beside what the work grows by"""
    index = _index(rows)
    found = [sweep for axis in AXES if (sweep := _middle([r for r in rows if r.provider == OURS and r.us], axis))]
    if not found:
        return
    lines: list[Line] = []
    for pass_ in _passes(rows):
        panels = []
        for sweep in found:
            several = []
            for kind in kinds(rows):
                ours, theirs = (_relative(index, sweep, kind, pass_, name) for name in (OURS, BASELINES[0]))
                look = style.ARITHMETIC[kind]
                several.append(Series(kind, look, ours))
                hollow = look | {"markerfacecolor": "white", "linewidth": 0.8}
                several.append(Series(f"{kind}, cuDNN", hollow, [p for p in theirs if p.y is not None]))
            ends = (sweep.values[0], sweep.values[-1])
            guide = [Point(v, (v / ends[0]) ** SLOPES[sweep.axis]) for v in ends]
            panels.append(
                ("" if lines else sweep.title, [*several, Series("proportional to the work", style.GUIDE, guide)])
            )
        lines.append(Line(f"{PASS_TITLES[pass_]}\ntime of a call, relative", panels))
    figure, legend = _lines(lines, [(sweep.label, sweep.values) for sweep in found], width=2.6)
    note = (
        "Median device time over that of the axis's smallest size; what was not measured there is not drawn. Work grows with T, B, "
        "L and the number of models as they do, with H squared, with the head dimension as it does where heads x dimension is held. Hollow: torch.nn on cuDNN."
    )
    yield Page("scaling", "Cost against one size at a time", note, caption(rows), figure, legend)


def _relative(index: Index, sweep: Sweep, kind: str, pass_: str, provider: str) -> list[Point]:
    """Median times of a call over that of the sweep's smallest size; none without it"""
    first, *rest = _over(index, sweep, kind, pass_, provider, lambda r: r.us[1] if r.us else None)
    if first.y is None:
        return []
    return [Point(p.x, None if p.y is None else p.y / first.y, gap=p.gap) for p in (first, *rest)]


def accuracy(rows: Sequence[Row]) -> Iterator[Page]:
    """Relative error against fp64 over T: of y and of the worst gradient, every provider, with the gate's tolerance"""
    judged = [row for row in rows if row.errors]
    sweep = _middle([row for row in judged if row.us], "T")
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
                points = _error_points([row for row in mine if row.provider == provider], wanted)
                if points:
                    look = look if sweep else look | {"linestyle": ""}
                    several.append(Series(style.LABELS.get(provider, provider), look, points))
            tolerances = {
                row.shape["T"]: e["rel_tol"]
                for row in mine
                for name, e in _of(row, wanted).items()
                if e["rel_tol"] > 0
            }
            if tolerances:
                points = [Point(t, tolerance) for t, tolerance in sorted(tolerances.items())]
                several.append(Series("tolerance", style.TOLERANCE, points))
            panels.append((kind if not lines else "", several))
        lines.append(Line(label, panels))
    if any(map(_drawable, lines)):
        figure, legend = _lines(list(filter(_drawable, lines)), [("time steps T", values)] * len(kinds(rows)))
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
            y = max(error["rel"], LEAST_ERROR) if error["rel"] < MOST_ERROR else None  # NaN neither: the mark alone
            right = error["rel"] <= error["rel_tol"] and error["max"] <= error["max_tol"]
            point = Point(row.shape["T"], y, gap="" if right and y is not None else "wrong")
            if row.case not in worst or (point.y or math.inf) > (worst[row.case].y or math.inf):
                worst[row.case] = point
    return sorted(worst.values(), key=lambda p: p.x)


def _middle(rows: Sequence[Row], axis: str) -> Sweep | None:
    """Of the sweeps with most values the middle one"""
    found = sweeps(rows, axis)
    return found[len(found) // 2] if found else None


def _over(
    index: Index, sweep: Sweep, kind: str, pass_: str, provider: str, value: Callable[[Row], Any]
) -> list[Point]:
    return [_point(index.get((sweep.names.get((kind, v), ""), pass_, provider)), v, value) for v in sweep.values]


def _providers(index: Index, sweep: Sweep, kind: str, pass_: str, value: Callable[[Row], Any]) -> list[Series]:
    """A series a provider that has a record anywhere"""
    return [
        Series(style.LABELS.get(name, name), look, _over(index, sweep, kind, pass_, name, value))
        for name, look in style.providers(provider for _, _, provider in index).items()
    ]


# ---- figures: all cases ---------------------------------------------------------------------------------------------

BARS, BAR_PAGES = 36, 2  # cases of a page; of more pages than that one remains


def speedup(rows: Sequence[Row]) -> Iterator[Page]:
    """Bars: the speedup of every case, suite by suite, a panel a pass, BARS cases a page; of more than BAR_PAGES pages one
    with the extremes"""
    index, passes, there = _index(rows), _passes(rows), kinds(rows)
    if not any(row.us for row in rows if row.provider == OURS):
        return
    suites = by_suite(rows)
    kind_of = {row.case: arithmetic(row) for mine in suites.values() for row in mine}
    cases, every = list(kind_of), "every case"
    most = max((row.speedup for row in rows if row.provider == OURS and row.speedup), default=1.0)
    legend = {
        kind: style.patch(facecolor=style.ARITHMETIC[kind]["color"], hatch=style.HATCHES[kind]) for kind in there
    }
    lacking = len({line[2] for line in missing(rows).body if line[-1] == EVERYTHING})
    note = f"{COMPARED[0].upper()}{COMPARED[1:]}; the line is 1x."
    if len(cases) > BARS * BAR_PAGES:
        chosen = extremes(suites.values(), BARS)
        every = f"{len(chosen)} of {len(cases)} cases"
        note += " Of each suite the cases with the lowest and the highest speedup, then those with the lowest of all: the "
        note += f"other {len(cases) - len(chosen)} are in the tables alone."
        cases = [name for name in cases if name in chosen]
    note += f" Of the cases of these suites {lacking} have no record." if lacking else ""
    chunks = [cases[i : i + BARS] for i in range(0, len(cases), BARS)]
    for number, chunk in enumerate(chunks):
        figure, axes = style.panels(1, len(passes), 3.6, 0.7 + 0.185 * max(len(chunk), 3), sharey=True)
        for axis, pass_ in zip(axes[0], passes):
            for i, name in enumerate(chunk):
                row, kind = index.get((name, pass_, OURS)), kind_of[name]
                text: dict[str, Any] = {"va": "center", "fontsize": 6.5, "bbox": {"color": "white", "pad": 0.3}}
                if row is not None and row.speedup is not None:
                    look = {"color": style.ARITHMETIC[kind]["color"], "hatch": style.HATCHES[kind]}
                    axis.barh(i, row.speedup, 0.78, edgecolor="black", linewidth=0.5, **look)
                    at = {"xytext": (3, 0), "textcoords": "offset points"}
                    axis.annotate(f"{row.speedup:.2f}", (row.speedup, i), **at, **text)
                else:
                    reason = "not measured" if row is None else row.gap or row.status
                    axis.text(0.02 * most, i, reason, style="italic", **text)
            axis.axvline(1, color="black", linewidth=1)
            axis.set_xlim(0, 1.18 * max(most, 1.0))
            axis.set_title(PASS_TITLES[pass_])
            axis.set_xlabel("speedup over cuDNN")
        axes[0][0].set_yticks(range(len(chunk)), chunk, fontsize=7)
        axes[0][0].set_ylim(len(chunk) - 0.4, -0.6)
        name = f"speedup-{number + 1}" if number else "speedup"
        title = f"Speedup of {every}" + (f", page {number + 1} of {len(chunks)}" if len(chunks) > 1 else "")
        yield Page(name, title, note, caption(rows), figure, legend)


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


LETTERS = {"one_cta": "C", "cta_group": "G", "per_step": "S"}
WIDEST = 8.0  # the speedup, and its inverse, at which the colours of the heat map end


def heat_map(rows: Sequence[Row]) -> Iterator[Page]:
    """Speedup over H x B, a panel an arithmetic and pass, with the regime of the plan in each cell"""
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.patches import Rectangle

    ours = [row for row in rows if row.provider == OURS]
    planes: dict[tuple[Any, ...], list[Row]] = {}
    for row in ours:
        held = {k: v for k, v in row.shape.items() if k not in ("dtype", "precision", "H", "B")}
        held["I"] = "H" if row.shape["I"] == row.shape["H"] else held["I"]
        planes.setdefault(tuple(held.items()), []).append(row)

    def size(mine: list[Row]) -> tuple[int, ...]:
        sizes = [len({row.shape[name] for row in mine if row.speedup}) for name in "HB"]
        filled = len({(row.shape["H"], row.shape["B"]) for row in mine if row.speedup})
        return (min(sizes) >= 2 and filled >= max(4, sizes[0] * sizes[1] // 2), filled, len(mine))

    ranked = sorted(planes.items(), key=lambda item: _order(dict(item[0])))
    # the one with most cells of those at least half filled
    chosen, plane = max(ranked, key=lambda item: size(item[1]), default=((), []))
    if not plane or not size(plane)[0]:
        return
    # lightest at 1x; a win goes to dark blue, a loss to an orange that is lighter, so that grey tells them apart as well
    colours = LinearSegmentedColormap.from_list("speedup", ["#D55E00", "#F6C08A", "#F7F7F7", "#56A0D0", "#00396B"])
    Hs, Bs = (sorted({row.shape[name] for row in plane}) for name in "HB")
    passes, there = _passes(plane), kinds(plane)
    cell = 0.52
    figure, axes = style.panels(len(passes), len(there), 0.7 + cell * len(Bs), 0.75 + 0.4 * len(Hs))
    by_cell = {(arithmetic(r), r.pass_, r.shape["H"], r.shape["B"]): r for r in plane}
    for line, pass_ in enumerate(passes):
        for axis, kind in zip(axes[line], there):
            for i, H in enumerate(Hs):
                for j, B in enumerate(Bs):
                    found = by_cell.get((kind, pass_, H, B))
                    look: dict[str, Any] = {"facecolor": "white", "edgecolor": "#999999", "linewidth": 0.5}
                    text, ink = _cell(found), "black"
                    if found is not None and found.speedup:
                        place = max(-1.0, min(1.0, math.log(found.speedup) / math.log(WIDEST)))
                        look |= {"facecolor": colours((place + 1) / 2)}
                        look |= {"hatch": "\\\\\\", "edgecolor": "#8A3B00"} if found.speedup < 1 else {}
                        ink = "white" if place > 0.7 else "black"
                    elif found is not None:
                        look |= {"facecolor": "#DDDDDD", "hatch": "xx"}
                    axis.add_patch(Rectangle((j - 0.5, i - 0.5), 1, 1, **look))
                    back = (
                        {"facecolor": look["facecolor"], "edgecolor": "none", "pad": 0.6} if "hatch" in look else None
                    )
                    axis.text(j, i, text, ha="center", va="center", fontsize=6.5, color=ink, bbox=back)
            axis.set_xlim(-0.5, len(Bs) - 0.5)
            axis.set_ylim(len(Hs) - 0.5, -0.5)
            axis.set_xticks(range(len(Bs)), Bs, fontsize=7.5)
            axis.set_yticks(range(len(Hs)), Hs, fontsize=7.5)
            axis.spines[:].set_visible(False)
            axis.tick_params(length=0)
            if line == 0:
                axis.set_title(kind)
            if line == len(passes) - 1:
                axis.set_xlabel("batch B")
        axes[line][0].set_ylabel(f"{PASS_TITLES[pass_]}\nH")
    legend = {
        f"{text}x": style.patch(facecolor=colours(place), edgecolor="#999999", hatch="\\\\\\" if place < 0.5 else "")
        for text, place in ((f"1/{WIDEST:g}", 0.0), ("1/2", 0.5 - 0.5 * math.log(2, WIDEST)), ("1", 0.5),
                            ("2", 0.5 + 0.5 * math.log(2, WIDEST)), (f"{WIDEST:g}", 1.0))
    }  # fmt: skip
    legend["no speedup, for the reason named"] = style.patch(facecolor="#DDDDDD", edgecolor="#999999", hatch="xx")
    regimes = sorted({row.regime for row in plane if row.regime})
    letters = ", ".join(f"{LETTERS.get(r, r)}: {REGIMES.get(r, r)}" for r in regimes)
    note = (
        f"Speedup {COMPARED} (other run: none did); below 1x hatched; a dash: not measured; n/a: unsupported. Second line, the "
        "forward plan's regime: "
        f"{letters or 'not recorded'}."
    )
    title = f"Speedup over H and B: {in_words(dict(chosen))}"
    yield Page("heat-map", title, note, caption(rows), figure, legend)


def _cell(row: Row | None) -> str:
    if row is None:
        return "–"
    letter = LETTERS.get(row.regime or "", row.regime or "")
    if row.speedup:
        number = f"{row.speedup:.2f}" if row.speedup < 9.995 else f"{row.speedup:.3g}"
        return f"{number}\n{letter}" if letter else number
    return {"unsupported": "n/a", "ok": "other\nrun" if row.gap == APART else "no\ncuDNN"}.get(row.status, row.status)


def flop(shape: dict[str, Any], pass_: str) -> float:
    """Floating-point operations of the products of a step, all layers, directions, gates and models; of packed sequences those
    of an average step, padding left out. Training: three times those of the forward pass (dh and dx, dW_hh and dW_ih)."""
    directions = 2 if shape["bidirectional"] else 1
    gates = {"rnn": 1, "gru": 3, "lstm": 4}[shape["cell"]]
    inputs = shape["I"] + (shape["layers"] - 1) * directions * shape["H"]
    columns = inputs + shape["layers"] * shape["H"]
    rows = shape["B"] * _real(shape) * shape["models"]
    return 2.0 * rows * shape["H"] * columns * gates * directions * (1 if pass_ == "fwd" else 3)


def _real(shape: dict[str, Any]) -> float:
    """The part of B x T steps that is no padding"""
    if shape["lengths"] == "full":
        return 1.0
    from ..cases.inputs import lengths_of

    return float(lengths_of(Case(**shape)).double().mean()) / shape["T"]


def moved(shape: dict[str, Any], pass_: str, resident: bool) -> float:
    """Bytes a step must move through memory. Forward: every layer's x in and y out. Training: x twice and dx, y twice and
    dy. Where W_hh is not `resident` on chip it is read besides, once each way."""
    directions = 2 if shape["bidirectional"] else 1
    gates = {"rnn": 1, "gru": 3, "lstm": 4}[shape["cell"]]
    size = 4 if shape["dtype"] == "fp32" else 2
    outputs = shape["layers"] * directions * shape["H"]
    inputs = shape["I"] + (shape["layers"] - 1) * directions * shape["H"]
    weights = 0 if resident else outputs * shape["H"] * gates * (1 if pass_ == "fwd" else 2)
    rows = shape["B"] * _real(shape)
    return size * shape["models"] * (rows * (inputs + outputs) * (1 if pass_ == "fwd" else 3) + weights)


MARKERS = {"one_cta": "o", "cta_group": "s", "per_step": "^"}


def roofline(rows: Sequence[Row]) -> Iterator[Page]:
    """FLOP/s of a step over its arithmetic intensity, with the chip's ceilings and each case's latency bound"""
    ours = [row for row in rows if row.provider == OURS and row.us_per_step and row.us]
    if not ours:
        return
    index = _index(rows)
    passes, there = _passes(ours), kinds(ours)
    figure, axes = style.panels(len(passes), len(there), 2.9, 2.6)
    colour = style.PROVIDERS[OURS]["color"]
    legend: dict[str, Any] = {}
    for line, pass_ in enumerate(passes):
        shown: dict[Any, list[float]] = {}  # axis -> the intensities there
        heights: list[float] = []
        for axis, kind in zip(axes[line], there):
            mine = [row for row in ours if row.pass_ == pass_ and arithmetic(row) == kind]
            reached: dict[str, list[tuple[float, float]]] = {}  # regime -> (x, y)
            bounds, cudnn = [], []
            for row in mine:
                work = flop(row.shape, pass_) * 1e-6  # FLOP per microsecond are 1e-6 TFLOP/s
                x = work * 1e6 / moved(row.shape, pass_, row.regime != "per_step")
                y = work / (row.us_per_step or math.nan)
                theirs = [r for name in BASELINES if (r := index.get((row.case, pass_, name))) and r.us_per_step]
                best = min((r.us_per_step for r in theirs if r.us_per_step), default=None)
                if row.floor_us_per_step:
                    bounds.append((x, y, work / row.floor_us_per_step))
                if best:
                    cudnn.append((x, work / best))
                reached.setdefault(row.regime or "", []).append((x, y))
                shown.setdefault(axis, []).append(x)
            if bounds:
                xs, ys, tops = zip(*bounds)
                axis.vlines(xs, ys, tops, color="#999999", linewidth=0.6, zorder=1)
                look = {"marker": "_", "color": "#595959", "linestyle": ""}
                axis.plot(xs, tops, markersize=7, zorder=2, **look)
                legend.setdefault("latency bound: the floor (estimate)", style.line(**look))
                heights += tops
            if cudnn:
                look = {"marker": "s", "color": style.PROVIDERS["cudnn"]["color"], "markerfacecolor": "none", "linestyle": ""}
                axis.plot(*zip(*cudnn), markersize=3.5, zorder=3, **look)
                legend.setdefault("best of cuDNN", style.line(**look))
                heights += [y for _, y in cudnn]
            for regime, points in reached.items():
                look = {"marker": MARKERS.get(regime, "D"), "color": colour, "linestyle": ""}
                axis.plot(*zip(*points), markersize=4.5, zorder=4, **look)
                legend.setdefault(f"rnn_triton, {REGIMES.get(regime, 'regime not recorded')}", style.line(**look))
                heights += [y for _, y in points]
        ceilings = {axis: _ceilings(kind, ours) for axis, kind in zip(axes[line], there)}
        places = [x for several in shown.values() for x in several]
        places += [c["peak"] / c["DRAM"] for c in ceilings.values() if c]
        left, right = min(places) / 2, max(places) * 2
        for axis, kind in zip(axes[line], there):
            found = ceilings[axis]
            if found:
                for (name, rate), dash in zip((("DRAM", found["DRAM"]), ("L2", found["L2"])), ("-", "--")):
                    axis.plot(
                        [left, found["peak"] / rate],
                        [left * rate, found["peak"]],
                        color="black",
                        linewidth=1,
                        linestyle=dash,
                    )
                    legend.setdefault(f"{name} bandwidth", style.line(color="black", linewidth=1, linestyle=dash))
                axis.plot([found["peak"] / found["L2"], right], [found["peak"]] * 2, color="black", linewidth=1.8)
                legend.setdefault("peak of the products", style.line(color="black", linewidth=1.8))
                heights.append(found["peak"])
            else:
                axis.text(
                    0.03,
                    0.96,
                    "no ceilings: hardware not recorded",
                    transform=axis.transAxes,
                    va="top",
                    fontsize=7,
                    style="italic",
                )
            if axis not in shown:
                style.say(axis, "not measured")
            style.log_ticks(axis, (left, right), 0.0, across=True)
            axis.set_title(kind if line == 0 else "")
            axis.set_xlabel("FLOP per byte")
        for axis in axes[line]:
            style.log_ticks(axis, heights)
        axes[line][0].set_ylabel(f"{PASS_TITLES[pass_]}\nTFLOP/s of a step")
        for axis in axes[line][1:]:
            axis.tick_params(labelleft=False)
    note = (
        "Intensity: FLOP of a step's products over the bytes it must move, x and y of every layer (training: three times each) "
        "and, where each step is a launch, W_hh; with W_hh on chip its bytes are not moved. cuDNN is shown at the intensity of "
        "ours: what it keeps on chip is not known. Above each case its latency bound, the chain of a step that no bandwidth "
        "shortens. Ceilings: peak rates of rnn_triton.latency for the architecture and the recorded clock, estimates."
    )
    yield Page("roofline", "Roofline of a step", note, caption(rows), figure, legend)


def _ceilings(kind: str, rows: Sequence[Row]) -> dict[str, float]:
    """TFLOP/s of the products and, of DRAM and L2, TFLOP/s for each FLOP per byte; empty where no record has the hardware"""
    from rnn_triton.plan.hardware import Device
    from rnn_triton.plan.latency import CONSTANTS, gemm_us, rates
    from rnn_triton.plan.problem import Problem

    for row in rows:
        hardware = row.environment["hardware"]
        if hardware and arithmetic(row) == kind:
            device, shape = Device(**{name: hardware[name] for name in HARDWARE}), row.shape
            problem = Problem("forward", 1, 1, 1, shape["dtype"], shape["precision"], shape["nonlinearity"])
            peak = 1e6 / gemm_us(problem, device, 1e12, 0.0)
            return {"peak": peak, "DRAM": rates(device).dram * 1e-6, "L2": CONSTANTS.l2 * device.clock_ghz * 1e-3}
    return {}


PANELS = 12  # of the figure of distributions


def distribution(rows: Sequence[Row]) -> Iterator[Page]:
    """Empirical distribution of the raw samples, a panel a case, a line a provider, a page a pass"""
    for pass_ in _passes(rows):
        mine = [row for row in rows if row.pass_ == pass_]
        cases = list(dict.fromkeys(row.case for row in mine if row.samples))
        if not cases:
            continue
        count = min(PANELS, len(cases))
        chosen = [cases[i * (len(cases) - 1) // max(count - 1, 1)] for i in range(count)]
        columns = min(3, count)
        lines = math.ceil(count / columns)
        figure, axes = style.panels(lines, columns, 2.9, 1.6)
        index, looks = _index(mine), style.providers(row.provider for row in mine)
        legend: dict[str, Any] = {}
        for axis, name in zip(axes.flat, chosen):
            lacking = []
            low, high = math.inf, 0.0
            for provider, look in looks.items():
                row = index.get((name, pass_, provider))
                label = style.LABELS.get(provider, provider)
                if row is None or not row.samples:
                    lacking.append(f"{label}: {_gap(row)}")
                    continue
                ordered = sorted(row.samples)
                parts = [i / len(ordered) for i in range(len(ordered) + 1)]
                look = look | {"marker": "", "linewidth": 1.4}
                axis.plot([ordered[0], *ordered], parts, drawstyle="steps-post", **look)
                legend.setdefault(label, style.line(**look))
                low, high = min(low, ordered[0]), max(high, ordered[-1])
            axis.set_xscale("log")
            _few_ticks(axis, low, high)
            axis.set_ylim(-0.03, 1.03)
            axis.set_yticks([0, 0.5, 1], ["0", "50 %", "100 %"])
            axis.set_title(name, fontsize=8)
            if lacking:
                axis.text(0.5, 0.25, "\n".join(lacking), transform=axis.transAxes, ha="center", fontsize=6.5, style="italic",
                          bbox={"color": "white", "pad": 0.5})  # fmt: skip
        for axis in axes.flat[count:]:
            axis.remove()
        for axis in axes[-1]:
            axis.set_xlabel("us per call")
        for line in range(lines):
            axes[line][0].set_ylabel("of samples")
        some = (
            f", {count} of {len(cases)} cases, evenly spaced in the order of the records"
            if count < len(cases)
            else ""
        )
        note = "The share of a case's raw samples of device time that took no longer."
        title = f"Latency of a call, {PASS_TITLES[pass_]}{some}"
        yield Page(f"distribution-{pass_}", title, note, caption(mine), figure, legend)


def _few_ticks(axis: Any, low: float, high: float) -> None:
    """Three or so labelled ticks on a horizontal log axis from low to high"""
    room = max((high / low) ** 0.05, 1.006)  # more than a tick is rounded by
    axis.set_xlim(low / room, high * room)
    ends = [float(f"{value:.3g}") for value in (low, math.sqrt(low * high), high)]
    ticks = [tick for tick in dict.fromkeys(ends) if low / room <= tick <= high * room]
    axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks], fontsize=7.5)
    axis.minorticks_off()


# ---- training -------------------------------------------------------------------------------------------------------


def learning(training: Sequence[dict[str, Any]]) -> Iterator[Page]:
    """Digits: training loss over epochs, a line a seed, and the test accuracy of each run"""
    from matplotlib.ticker import MaxNLocator

    from ..measure.digits import LEAST_ACCURACY

    figure, axes = style.panels(1, 2, 3.9, 3.2, width_ratios=(3, 2))
    left, right = axes[0]
    cudnn = style.PROVIDERS["cudnn"]
    looks = {OURS: style.PROVIDERS[OURS] | {"label": "rnn_triton"}, "torch": cudnn | {"label": "torch.nn.RNN"}}
    legend = {}
    seeds = sorted({record["seed"] for record in training})
    for offset, (name, look) in enumerate(looks.items()):
        for record in training:
            if record["implementation"] != name:
                continue
            line = {"color": look["color"], "linestyle": look["linestyle"], "linewidth": 1.2}
            left.plot(range(1, len(record["loss"]) + 1), record["loss"], **line)
            place = seeds.index(record["seed"]) + (offset - 0.5) * 0.25
            right.plot(
                [place],
                [100 * record["accuracy"]],
                color=look["color"],
                marker=look["marker"],
                linestyle="",
                markersize=7,
            )
            legend[look["label"]] = style.line(marker=look["marker"], **line)
    left.set(xlabel="epoch", ylabel="training loss")
    left.xaxis.set_major_locator(MaxNLocator(integer=True))
    style.log_ticks(left, [loss for record in training for loss in record["loss"] if 0 < loss < math.inf] or [1.0])
    least = 100 * LEAST_ACCURACY
    right.set_xticks(range(len(seeds)), [f"seed {seed}" for seed in seeds])
    right.set_xlim(-0.6, len(seeds) - 0.4)
    right.set_ylim(min(least - 1, min(100 * r["accuracy"] for r in training) - 0.5), 100)
    right.axhline(least, color="black", linewidth=1, linestyle=":")
    legend[f"required of the mean: {least:g} %"] = style.line(color="black", linewidth=1, linestyle=":")
    right.set_ylabel("test accuracy, %")
    note = "Handwritten digits, 8 rows of 8 pixels; same initial weights, batches and recipe on both sides."
    environments = [record["environment"] for record in training]
    versions = ", ".join(
        f"{name} {' and '.join(sorted({str(e[name]) for e in environments}))}" for name in ("torch", "triton")
    )
    dates = sorted({str(record["date"])[:10] for record in training})
    source = f"{environments[0]['device']}; {versions}; {' to '.join(dict.fromkeys((dates[0], dates[-1])))}."
    yield Page("digits", "Training on handwritten digits", note, source, figure, legend)


FIGURES: dict[str, Callable[[Any], Iterator[Page]]] = {
    "speedup": speedup, "speedup-over": speedup_over, "step": step, "heat-map": heat_map, "roofline": roofline,
    "memory": memory, "scaling": scaling, "accuracy": accuracy, "distribution": distribution, "digits": learning,
}  # fmt: skip
OF_TRAINING = {"digits"}  # these read training records, the others rows
