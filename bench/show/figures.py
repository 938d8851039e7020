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
from ..cases.suites import LEAST_ACCURACY
from ..records.rows import APART, Row
from ..records.schema import OURS
from . import style
from .over_sizes import COMPARED, accuracy, memory, scaling, speedup_over, step
from .panels import Page
from .roofline import roofline
from .rows_in_words import EVERYTHING, PASS_TITLES, REGIMES, arithmetic, by_device, by_suite, caption
from .style import MissingMatplotlib
from .sweeps import in_words, indexed, kinds, order_of, passes_of
from .tables import missing

__all__ = ["FIGURES", "MissingMatplotlib", "Page", "draw", "pages"]


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


# ---- figures: all cases ---------------------------------------------------------------------------------------------

BARS, BAR_PAGES = 36, 2  # cases of a page; of more pages than that one remains


def speedup(rows: Sequence[Row]) -> Iterator[Page]:
    """Bars: the speedup of every case, suite by suite, a panel a pass, BARS cases a page; of more than BAR_PAGES pages one
    with the extremes"""
    index, passes, there = indexed(rows), passes_of(rows), kinds(rows)
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

    ranked = sorted(planes.items(), key=lambda item: order_of(dict(item[0])))
    # the one with most cells of those at least half filled
    chosen, plane = max(ranked, key=lambda item: size(item[1]), default=((), []))
    if not plane or not size(plane)[0]:
        return
    # lightest at 1x; a win goes to dark blue, a loss to an orange that is lighter, so that grey tells them apart as well
    colours = LinearSegmentedColormap.from_list("speedup", ["#D55E00", "#F6C08A", "#F7F7F7", "#56A0D0", "#00396B"])
    Hs, Bs = (sorted({row.shape[name] for row in plane}) for name in "HB")
    passes, there = passes_of(plane), kinds(plane)
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


PANELS = 12  # of the figure of distributions


def distribution(rows: Sequence[Row]) -> Iterator[Page]:
    """Empirical distribution of the raw samples, a panel a case, a line a provider, a page a pass"""
    for pass_ in passes_of(rows):
        mine = [row for row in rows if row.pass_ == pass_]
        cases = list(dict.fromkeys(row.case for row in mine if row.samples))
        if not cases:
            continue
        count = min(PANELS, len(cases))
        chosen = [cases[i * (len(cases) - 1) // max(count - 1, 1)] for i in range(count)]
        columns = min(3, count)
        lines = math.ceil(count / columns)
        figure, axes = style.panels(lines, columns, 2.9, 1.6)
        index, looks = indexed(mine), style.providers(row.provider for row in mine)
        legend: dict[str, Any] = {}
        for axis, name in zip(axes.flat, chosen):
            lacking = []
            low, high = math.inf, 0.0
            for provider, look in looks.items():
                row = index.get((name, pass_, provider))
                label = style.LABELS.get(provider, provider)
                if row is None or not row.samples:
                    lacking.append(f"{label}: {row.status if row and row.status != 'ok' else 'not measured'}")
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
