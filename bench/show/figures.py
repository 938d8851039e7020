"""Figures from records, and from nothing else.

FIGURES names them; each gives the pages the rows of one device allow, for paper of a width.  A series runs over the cases that
differ in one size alone, found in the rows; it is broken where a value was not measured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from .. import command
from ..cases.case import nearest
from ..instruments.progress import Progress
from ..records.rows import Row
from ..records.schema import OURS
from . import style
from .formats import label, latex_escape
from .over_sizes import COMPARED, accuracy, memory, speedup_over, step
from .panels import Page
from .roofline import roofline
from .rows_in_words import PASS_TITLES, arithmetic, by_device, by_suite, caption
from .sweeps import AXES, kinds, passes_of, words_of

FLOATS = {"column": "figure", "text": "figure*", "page": "sidewaysfigure*"}  # of LaTeX, for each of style.PAPERS


def draw(
    rows: Sequence[Row], out: Path, names: Sequence[str] | None = None, paper: str = "text", axes: Iterable[str] = tuple(AXES)
) -> list[tuple[Page, list[Path]]]:
    """Every figure of `names` (all of FIGURES) the data allows, for one of style.PAPERS, as PNG, SVG and PDF in `out`, and their
    captions in captions.md and captions.tex there; returns the pages with their files.  Says on standard error how far it is; what is written
    stays, whatever ends it.  Nothing to draw: no files. ValueError for a name that is none."""
    found: list[tuple[Page, list[Path]]] = []
    kind, tex, plain = FLOATS[paper], ["% needs graphicx, a page rotating; where this is read from another folder, \\graphicspath"], []
    units, axes = _units(rows, names), tuple(axes)
    with style.context(), Progress("drawing", len(units), weights=[len(axes) if name in OVER_SIZES else 1 for name, *_ in units]) as progress:
        for unit in units:
            progress.now(unit[0])
            for page in _pages(*unit, paper, axes):
                progress.now(page.name)
                found.append((page, style.save(page.figure, out / page.name)))
                image = f"\\begin{{{kind}}}\n\\centering\n\\includegraphics{{{page.name}.pdf}}\n\\caption{{{latex_escape(page.caption)}}}\n"
                tex.append(f"{image}\\label{{fig:{page.name}}}\n\\end{{{kind}}}\n")
                plain.append(f"**{page.name}**: {page.caption}\n")
                (out / "captions.tex").write_text("\n".join(tex), "utf-8")
                (out / "captions.md").write_text("\n".join(plain), "utf-8")
            progress.step()
    return found


def pages(rows: Sequence[Row], names: Sequence[str] | None = None, paper: str = "text", axes: Iterable[str] = tuple(AXES)) -> Iterator[Page]:
    """The pages, drawn one after another inside style.context(), in the order of FIGURES. With several devices each has
    pages of its own, whose names begin with it.  `axes`: those of AXES that figures over a size are drawn for."""
    for unit in _units(rows, names):
        yield from _pages(*unit, paper, tuple(axes))


def _units(rows: Sequence[Row], names: Sequence[str] | None) -> list[tuple[str, str, list[Row]]]:
    """(name of a figure, what its pages begin with, the rows of a device)"""
    for name in names or ():
        if name not in FIGURES:
            raise ValueError(f"unknown figure {name!r}; {nearest(name, FIGURES)}")
    devices = by_device(rows)
    prefixes = {device: f"{label(device)}-" * (len(devices) > 1) for device in devices}
    return [(name, prefixes[device], here) for name in FIGURES if names is None or name in names for device, here in devices.items()]


def _pages(name: str, prefix: str, rows: Sequence[Row], paper: str, axes: Sequence[str]) -> Iterator[Page]:
    for page in FIGURES[name](rows, style.PAPERS[paper], axes):
        style.finish(page.figure, page.legend)
        yield replace(page, name=prefix + page.name)


FACTOR, SHAPES, TURNED = 100.0, 60, 34  # how far a profile goes; shapes on one page, and on one turned on its side
HIGH, GAP, SLOWER = 0.115, 0.5, "#f3e7dd"  # inches a shape; lines between groups; the ground where ours is


def profile(rows: Sequence[Row], width: float, axes: Iterable[str]) -> Iterator[Page]:
    """The share of cases that each provider runs within a factor of the fastest, a panel a pass"""
    timed = [row for row in rows if row.us and not row.provider.startswith(f"{OURS}-")]  # not ours in another setting
    passes, looks = passes_of(timed), style.providers(row.provider for row in timed)
    if len(looks) < 2:
        return
    figure, (panels,), (across, _) = style.panels([len(passes)], width, sharey=True)
    legend, best = dict[str, Any](), []
    for axis, pass_ in zip(panels, passes):
        times: dict[str, dict[str, float]] = {}  # case -> provider -> time
        for case, provider, us in [(r.case, r.provider, us) for r in timed if r.pass_ == pass_ and (us := r.us)]:
            times.setdefault(case, {})[provider] = us[1]
        for provider, (name, look) in looks.items():
            factors = sorted(of[provider] / min(of.values()) for of in times.values() if provider in of)
            shares = [100 * (i + 1) / len(times) for i in range(len(factors))]
            if factors:
                x, y = [1.0, *factors, max(FACTOR, factors[-1])], [0.0, *shares, shares[-1]]
                legend.setdefault(name, axis.step(x, y, where="post", **look | {"marker": ""})[0])
        won = sum(of.get(OURS) == min(of.values()) for of in times.values())
        best.append(f"{PASS_TITLES[pass_]} in {won} of {len(times)} cases")
        style.log_ticks(axis, (1.0, FACTOR), across, True, 0.02, "×")
        axis.set(title=PASS_TITLES[pass_], ylim=(0, 104), xlabel="time over the fastest")
    panels[0].set_ylabel("% of cases")
    note = f"What a provider does not support, or gets wrong or inaccurate, counts as slower than any factor. {OURS} is the fastest "
    title = "Share of the cases that a provider runs within a factor of the fastest"
    yield Page("profile", title, f"{note}{' and '.join(best)}.", caption(timed), figure, legend)


def speedup(rows: Sequence[Row], width: float, axes: Iterable[str]) -> Iterator[Page]:
    """Dots: the speedup of every case of a suite, a line a shape with a dot an arithmetic, a panel a pass"""
    for suite, mine in by_suite([row for row in rows if row.provider == OURS]).items():
        shapes, most = {shape_of(row): row.shape for row in mine if row.speedup}, TURNED if width == style.PAPERS["page"] else SHAPES
        for part in range(0, len(shapes), most):
            chosen = list(shapes)[part : part + most]
            drawn = [row for row in mine if row.speedup and shape_of(row) in chosen]
            held, labels, new = words_of([shapes[name] for name in chosen])
            places = {name: i + GAP * sum(new[: i + 1]) for i, name in enumerate(chosen)}
            passes, last, left = passes_of(drawn), places[chosen[-1]], 0.2 + 0.045 * max(map(len, labels))
            figure, (panels,), (across, _) = style.panels([len(passes)], width, HIGH * (last + 3), left, sharey=True)
            legend: dict[str, Any] = {}
            for axis, pass_ in zip(panels, passes):
                here = [(places[shape_of(row)], row) for row in drawn if row.pass_ == pass_]
                ends = {at: sorted(row.speedup or 1.0 for place, row in here if place == at) for at, _ in here}
                axis.hlines(list(ends), [s[0] for s in ends.values()], [s[-1] for s in ends.values()], color="#bbbbbb", linewidth=1.2, zorder=2)
                for kind in kinds(drawn):
                    points = [(row.speedup, place) for place, row in here if arithmetic(row) == kind]
                    look = style.ARITHMETIC[kind] | {"linestyle": "", "markersize": 3, "zorder": 3}
                    legend.setdefault(kind, axis.plot(*(zip(*points) if points else ([], [])), **look)[0])
                    sure = [(place, *row.speedup_interval) for place, row in here if arithmetic(row) == kind and row.speedup_interval]
                    axis.hlines(*(zip(*sure) if sure else ([], [], [])), color=look["color"], linewidth=0.7, zorder=2.5)
                style.log_ticks(axis, [1.0, *(row.speedup or 1.0 for row in drawn)], across, True, 0.08, "×")
                ground = axis.axvspan(axis.get_xlim()[0], 1, color=SLOWER, linewidth=0, zorder=0.3)
                axis.axvline(1, color="black", linewidth=0.8)
                axis.set(title=style.in_lines(PASS_TITLES[pass_], across), xlabel="speedup", ylim=(last + 0.8, -0.3))
            panels[0].set_yticks(list(places.values()), labels)
            legend["slower than cuDNN"] = ground
            lacking = len({row.case for row in mine} - {row.case for row in mine if row.speedup})
            note = f"Speedup {COMPARED}." + f" All have {held}." * bool(held)
            note += " Coloured lines: 95 % intervals." * any(row.speedup_interval for row in drawn)
            note += f" Cases of the suite without a speedup, for which the tables say why: {lacking}." * bool(lacking)
            name = f"speedup-{label(suite)}" + f"-{part // most + 1}" * bool(part)
            yield Page(name, f"Speedup of {len({row.case for row in drawn})} cases, suite {suite}", note, caption(drawn), figure, legend)


def shape_of(row: Row) -> str:
    """A case's name without its arithmetic"""
    return row.case.removesuffix("-ieee").rpartition("-")[0]


FIGURES: dict[str, Callable[[Sequence[Row], float, Iterable[str]], Iterator[Page]]] = dict(
    zip(command.FIGURES, (profile, speedup, speedup_over, step, roofline, memory, accuracy))
)
OVER_SIZES = ("speedup-over", "step", "memory", "accuracy")  # those with an axis
