"""How figures look and how they are written: widths, colours, marks, ticks, legends; PNG, SVG and PDF.  Readable in print, in grey
and for colour-blind readers: Okabe-Ito colours whose lightness differs, and a marker and a dash of its own for every series.  Equal
figures give equal files.  matplotlib is imported when something is drawn."""

from __future__ import annotations

import contextlib
import io
import math
import textwrap
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..records.schema import OURS

SUFFIXES, DPI = (".png", ".svg", ".pdf"), 150
PAPERS = {"column": 3.35, "text": 7.0, "page": 9.0}  # inches: a column of two, both, a page turned on its side, which is 6.2 high
PANEL = 1.6  # inches, the least width of a panel with its share of the labels
Style = dict[str, Any]


def _look(color: str, marker: str, linestyle: Any, **more: Any) -> Style:
    return {"color": color, "marker": marker, "linestyle": linestyle, **more}


# A line of a case's arithmetic: rows_in_words.arithmetic.  Lightness (CIE L*) 45, 71, 58 and 21.
ARITHMETIC: dict[str, Style] = {
    "bf16": _look("#0072B2", "o", "-"), "fp16": _look("#E69F00", "s", "--"), "fp32 (TF32)": _look("#009E73", "^", "-."),
    "fp32 (IEEE)": _look("#333333", "D", ":"),
}  # fmt: skip
_BLUE, _RED, _GREEN = "#0072B2", "#D55E00", "#009E73"
# provider -> (its name in figures, its style), wherever it is drawn; hollow marks of peers mean that they are inaccurate (panels.py)
PROVIDERS: dict[str, tuple[str, Style]] = {
    OURS: ("rnn_triton", _look(_BLUE, "o", "-", linewidth=1.8)), "cudnn": ("cuDNN", _look(_RED, "s", "--")),
    "rnn_triton-layers": ("rnn_triton, by layer", _look(_BLUE, "o", ":", markerfacecolor="white")),
    "rnn_triton-recompute": ("rnn_triton, recompute", _look(_BLUE, "D", "--", markerfacecolor="white")),
    "rnn_triton-packed": ("rnn_triton, packed", _look(_BLUE, "s", (0, (3, 1)), markerfacecolor="white")),
    "cudnn-layers": ("cuDNN, by layer", _look(_RED, "d", "-.")),
    "flashrnn": ("FlashRNN", _look("#56B4E9", "P", "-")), "xma": ("XMA", _look("#CC79A7", "v", (0, (6, 1, 1, 1)))),
    "graph": ("CUDA graph of loop", _look("#000000", "X", (0, (1, 1)))),
    "compile": ("torch.compile of loop", _look(_GREEN, "^", (0, (3, 1, 1, 1, 1, 1)))),
    "compile-graph": ("compiled loop in a graph", _look(_GREEN, "X", (0, (6, 2)))),
    "hoisted": ("loop, x projected before", _look("#8A7A00", "h", (0, (4, 2)))), "loop": ("eager loop", _look("#8A7A00", "*", (0, (1, 2)))),
    "flaggems": ("FlagGems", _look("#7F7F7F", "p", (0, (4, 1, 1, 1, 1, 1)))), "torchrl": ("TorchRL", _look("#E69F00", "<", (0, (5, 2)))),
}  # fmt: skip
_COLOURS, _MARKERS = ("#6A3D9A", "#A6761D", "#1B7837", "#B2182B", "#4D4D4D", "#2166AC", "#762A83"), (">", "h", "H", "8", "d", "D", "^", "v")
_DASHES = ((0, (2, 1)), (0, (7, 2)), (0, (5, 1, 2, 1)), (0, (2, 1, 1, 1)), "-")
TOLERANCE: Style = {"color": "#000000", "marker": "_", "markersize": 5, "linestyle": (0, (1, 2)), "linewidth": 1.0}

SIZE = 7  # points, of all text
_RC: dict[Any, Any] = {
    "svg.hashsalt": "rnn_triton", "svg.fonttype": "none", "pdf.fonttype": 42, "font.size": SIZE, "axes.titlesize": SIZE,
    "axes.titlepad": 3, "axes.labelpad": 2, "axes.linewidth": 0.6, "legend.fontsize": SIZE, "xtick.labelsize": SIZE, "ytick.labelsize": SIZE,
    "xtick.major.size": 2.5, "ytick.major.size": 2.5, "xtick.major.width": 0.6, "ytick.major.width": 0.6, "xtick.minor.size": 1.5,
    "xtick.major.pad": 2, "ytick.major.pad": 2, "lines.linewidth": 1.0, "lines.markersize": 3.5, "lines.markeredgewidth": 0.7,
    # widths of text are the same at every resolution; a name in a record may hold dollar signs
    "text.hinting": "no_hinting", "text.parse_math": False,
}  # fmt: skip


class MissingMatplotlib(RuntimeError):
    """Figures need matplotlib; tables and records do not."""


@contextlib.contextmanager
def context() -> Iterator[None]:
    """matplotlib's own defaults and this project's choices, whatever a user's matplotlibrc says; restored afterwards."""
    try:
        import matplotlib
    except ImportError as error:
        raise MissingMatplotlib("figures need matplotlib: pip install matplotlib") from error
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_RC)
        yield


def providers(names: Iterable[str]) -> dict[str, tuple[str, Style]]:
    """(name in figures, style) of each, ours and cuDNN first.  A style follows from the name alone: one that is not in
    PROVIDERS has one of 280 by its digest."""
    there = set(names)
    found = {name: PROVIDERS[name] for name in PROVIDERS if name in there}
    for name in sorted(there - set(PROVIDERS)):
        at = zlib.crc32(name.encode())
        found[name] = (name, _look(_COLOURS[at % 7], _MARKERS[at // 7 % 8], _DASHES[at // 56 % 5]))
    return found


def side_by_side(lines: Sequence[Sequence[Any]], width: float) -> list[list[Any]]:
    """Lines of what gets a panel each, without those that are None and without empty lines; lines and columns change places
    where that fills the width better or the columns are too many for it."""
    most, across = int(width / PANEL), max(map(len, lines), default=0)
    if (across > most or across < len(lines)) and 1 < len(lines) <= most:
        lines = list(zip(*lines))
    found = [[panel for panel in line if panel is not None] for line in lines]
    return [line[i : i + most] for line in found for i in range(0, len(line), most)]


def panels(
    counts: Sequence[int], width: float, height: float | None = None, left: float = 0.5, **how: Any
) -> tuple[Any, list[list[Any]], tuple[float, float]]:
    """(figure, its axes, the inches of one) in lines of counts[i] panels, without frames above and at the right; `height` in
    inches, by default by the width; `left`: what labels at the left take."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    across = (width - left) / max(counts) - 0.15
    height = height or min(0.25 + 0.6 * across, 1.9)
    figure = Figure(figsize=(width, len(counts) * (height + 0.35)), dpi=DPI, layout=ConstrainedLayoutEngine(w_pad=0.03, h_pad=0.03))
    grid = figure.subplots(len(counts), max(counts), squeeze=False, **how)
    for count, line in zip(counts, grid):
        for axis in line[count:]:
            axis.remove()
        for axis in line[:count]:
            axis.spines[["top", "right"]].set_visible(False)
    return figure, [list(line[:count]) for count, line in zip(counts, grid)], (across, height)


def in_lines(title: str, across: float) -> str:
    """A title broken to `across` inches"""
    return textwrap.fill(title, max(int(across * 19), 9), break_long_words=False)


def finish(figure: Any, handles: Mapping[str, Any]) -> None:
    """Puts the legend below the panels, in as many columns as the width holds; the figure grows by its height."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    renderer = FigureCanvasAgg(figure).get_renderer()
    width, height = figure.get_size_inches()
    for columns in range(len(handles), 0, -1):
        how = {"borderaxespad": 0.1, "borderpad": 0.1, "handlelength": 2.2, "handletextpad": 0.4, "columnspacing": 0.8, "labelspacing": 0.25}
        legend = figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=columns, frameon=False, **how)
        box = legend.get_window_extent(renderer)
        if columns == 1 or box.width < (width - 0.1) * figure.dpi:
            figure.set_size_inches(width, height + box.height / figure.dpi)
            break
        legend.remove()
    figure.get_layout_engine().execute(figure)
    figure.set_layout_engine(None)  # else every figure is drawn twice when it is saved


STEPS = ((1,), (2, 5), (3,), (1.5, 7), (1.2, 2.5, 4, 6, 8, 9))  # of a decade, round ones first


def log_ticks(axis: Any, values: Iterable[float], inches: float, across: bool = False, room: float = 0.06, unit: str = "", only: bool = False) -> None:
    """A log axis of `inches`, vertical or horizontal (`across`), that holds `values` with `room` (of its span) at either end, and
    ticks as far apart as their labels need: at least 2 round numbers, or the values alone (`only`), the others of them unlabelled."""
    one, values = "x" if across else "y", sorted(set(values))
    span = max(math.log10(values[-1] / values[0]), 0.02 if only else 0.3)
    middle = math.log10(values[-1] * values[0]) / 2
    low, high = (10 ** (middle + sign * span * (0.5 + room)) for sign in (-1, 1))
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    rounds = [[step * 10.0**decade for decade in decades for step in steps] for steps in STEPS]
    found: list[float] = []
    for candidates in [[values[-1], *values]] if only else rounds:  # the largest first: a sweep's end is what a reader looks for
        for tick in candidates:
            need = 0.05 + 0.058 * max(len(f"{tick:g}{unit}"), 2) if across else 0.14
            if low <= tick <= high and all(abs(math.log10(tick / other)) * inches >= need * span * (1 + 2 * room) for other in found):
                found.append(tick)
        if len(found) >= 4:
            break
    axis.set(**{f"{one}scale": "log", f"{one}lim": (low, high)})
    getattr(axis, f"set_{one}ticks")(sorted(found), [f"{value:g}{unit}" for value in sorted(found)])
    getattr(axis, f"set_{one}ticks")(sorted(set(values) - set(found)) if only else [], minor=True)
    getattr(axis, f"{one}axis").set_minor_formatter("")
    if not only:
        axis.grid(axis=one, color="#dddddd", linewidth=0.4)
        axis.set_axisbelow(True)


def save(figure: Any, stem: Path) -> list[Path]:
    """The figure as stem.png, stem.svg and stem.pdf, without a date or a random id."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    files = [stem.with_name(stem.name + suffix) for suffix in SUFFIXES]
    for file, dates in zip(files, (("Software",), ("Date",), ("CreationDate", "ModDate"))):
        figure.savefig(whole := io.BytesIO(), format=file.suffix[1:], dpi=DPI, metadata=dict.fromkeys(dates))
        file.write_bytes(whole.getvalue())  # at once: who interrupts finds no half of a file
    return files
