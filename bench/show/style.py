"""How figures look and how they are written: colours, marks, ticks, titles and captions, PNG, SVG and PDF.

Readable in grey and for colour-blind readers: Okabe-Ito colours whose lightness differs, and a marker, a dash or a
hatch of its own for every series.  Equal figures give equal files.  matplotlib is imported when something is drawn.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..records.schema import OURS

SUFFIXES = (".png", ".svg", ".pdf")
DPI = 150
Style = dict[str, Any]

# A line of a case's arithmetic: tables.arithmetic.  Lightness (CIE L*) 45, 71, 58 and 21.
ARITHMETIC: dict[str, Style] = {
    "bf16": {"color": "#0072B2", "marker": "o", "linestyle": "-"},
    "fp16": {"color": "#E69F00", "marker": "s", "linestyle": "--"},
    "fp32 (TF32)": {"color": "#009E73", "marker": "^", "linestyle": "-."},
    "fp32 (IEEE)": {"color": "#333333", "marker": "D", "linestyle": ":"},
}
HATCHES = {"bf16": "", "fp16": "///", "fp32 (TF32)": "...", "fp32 (IEEE)": "xxx"}
PROVIDERS: dict[str, Style] = {
    OURS: {"color": "#0072B2", "marker": "o", "linestyle": "-"},
    "rnn_triton-layers": {"color": "#0072B2", "marker": "o", "linestyle": ":", "markerfacecolor": "white"},
    "rnn_triton-recompute": {"color": "#0072B2", "marker": "D", "linestyle": "--", "markerfacecolor": "white"},
    "cudnn": {"color": "#D55E00", "marker": "s", "linestyle": "--"},
    "cudnn-layers": {"color": "#E69F00", "marker": "D", "linestyle": "-."},
}
_OTHERS: tuple[Style, ...] = (
    {"color": "#009E73", "marker": "^", "linestyle": ":"},
    {"color": "#CC79A7", "marker": "v", "linestyle": (0, (6, 1, 1, 1))},
    {"color": "#56B4E9", "marker": "P", "linestyle": (0, (3, 1))},
    {"color": "#000000", "marker": "X", "linestyle": (0, (1, 1))},
    {"color": "#8A7A00", "marker": "*", "linestyle": (0, (6, 2, 2, 2))},
    {"color": "#7F7F7F", "marker": "p", "linestyle": (0, (4, 1, 1, 1, 1, 1))},
)
LABELS = {
    OURS: "rnn_triton", "rnn_triton-layers": "rnn_triton, a launch a layer", "rnn_triton-recompute": "rnn_triton, gates again",
    "cudnn": "torch.nn on cuDNN", "cudnn-layers": "cuDNN, a module a layer",
}  # fmt: skip
FLOOR: Style = {"color": "#595959", "marker": "", "linestyle": ":", "linewidth": 1.4}
TOLERANCE: Style = {"color": "#000000", "marker": "_", "markersize": 9, "linestyle": (0, (1, 2)), "linewidth": 1.2}

_RC: dict[Any, Any] = {
    "svg.hashsalt": "rnn_triton", "hatch.linewidth": 0.5, "font.size": 9, "axes.titlesize": 9, "legend.fontsize": 8,
    "text.parse_math": False,  # a name in a record may hold dollar signs
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


def providers(names: Iterable[str]) -> dict[str, Style]:
    """A style for each of the names, ours and cuDNN first, the others by name; all different for up to nine."""
    present = set(names)
    known = {name: style for name, style in PROVIDERS.items() if name in present}
    return known | dict(zip(sorted(present - set(PROVIDERS)), itertools.cycle(_OTHERS)))


def panels(lines: int, columns: int, width: float, height: float, **how: Any) -> tuple[Any, Any]:
    """(figure, axes[lines, columns]), each panel `width` x `height` inches, without a frame above and at the right."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(max(0.9 + columns * width, 6.4), lines * height))
    axes = figure.subplots(lines, columns, squeeze=False, **how)
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes


def line(**how: Any) -> Any:
    """What a legend shows of a line"""
    from matplotlib.lines import Line2D

    return Line2D([], [], **how)


def patch(**how: Any) -> Any:
    """What a legend shows of a bar or a cell"""
    from matplotlib.patches import Patch

    how.setdefault("edgecolor", "black")
    return Patch(linewidth=0.5, **how)


def finish(figure: Any, title: str, text: str, handles: Mapping[str, Any]) -> None:
    """Title and legend above the panels, the caption below; the figure grows by what they take."""
    width, height = figure.get_size_inches()
    titles = textwrap.wrap(title, int(width * 13.5))  # characters of 10 points
    caption = textwrap.wrap(text, int(width * 17.5))  # of 7 points
    longest = max(map(len, handles), default=0)
    columns = max(1, min(len(handles), int((width - 0.2) / (0.62 + 0.075 * longest))))
    rows = math.ceil(len(handles) / columns)
    head, legend, foot = 0.08 + 0.19 * len(titles), 0.158 * rows + 0.06 * bool(rows), 0.1 + 0.135 * len(caption)
    total = height + head + legend + foot
    figure.set_size_inches(width, total)
    figure.text(0.08 / width, 1 - 0.06 / total, "\n".join(titles), fontsize=10, va="top")
    figure.text(0.08 / width, 0.06 / total, "\n".join(caption), fontsize=7, color="#404040", va="bottom")
    if handles:
        figure.legend(
            handles.values(), handles.keys(), loc="upper left", bbox_to_anchor=(0, 1 - head / total), ncols=columns,
            frameon=False, borderaxespad=0.2, handlelength=3.2, columnspacing=1.2, labelspacing=0.35,
        )  # fmt: skip
    figure.tight_layout(rect=(0, foot / total, 1, 1 - (head + legend) / total), w_pad=1.6)
    figure.set_layout_engine(None)  # what tight_layout leaves behind has every figure drawn twice when it is saved


def value_ticks(axis: Any, values: Sequence[float], inches: float) -> None:
    """A log axis over `values` (base 2), `inches` wide: a tick at each, labelled where there is room."""
    low, high = min(values), max(values)
    axis.set_xscale("log", base=2)
    span = math.log2(high / low) if high > low else 1.0
    axis.set_xlim(low / 2 ** (0.07 * span), high * 2 ** (0.07 * span))
    labelled: list[float] = []
    for value in [high, *values]:  # the largest first: a sweep's end is what a reader looks for
        text = 0.02 + 0.075 * max(len(f"{value:g}"), 2)
        if all(abs(math.log2(value / other)) / (1.14 * span) * inches > text for other in labelled):
            labelled.append(value)
    axis.set_xticks(sorted(labelled), [f"{value:g}" for value in sorted(labelled)])
    axis.set_xticks(sorted(set(values) - set(labelled)), minor=True)
    axis.xaxis.set_minor_formatter(lambda value, position: "")


def log_ticks(axis: Any, values: Iterable[float], room: float = 0.12, across: bool = False) -> None:
    """A log axis, vertical or horizontal (`across`), that holds `values` with `room` (of its span) at either end, and at
    least 2 ticks at round numbers, as far apart as their labels need."""
    from matplotlib.ticker import NullLocator

    values = list(values)
    low, high = min(values), max(values)
    span = max(math.log10(high / low), 0.3)
    middle = math.log10(high * low) / 2
    low, high = (10 ** (middle + sign * span * (0.5 + room)) for sign in (-1, 1))
    apart = (math.log10(high) - math.log10(low)) * (0.2 if across else 0.09)  # that labels need
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found: list[float] = []
    for steps in ((1,), (2, 5), (3,), (1.5, 7), (1.2, 2.5, 4, 6, 8, 9)):
        for tick in (step * 10.0**decade for decade in decades for step in steps):
            if low <= tick <= high and all(abs(math.log10(tick / other)) >= apart for other in found):
                found.append(tick)
        if len(found) >= 4:
            break
    found.sort()
    one = "x" if across else "y"
    axis.set(**{f"{one}scale": "log", f"{one}lim": (low, high)})
    (axis.set_xticks if across else axis.set_yticks)(found, [f"{value:g}" for value in found])
    (axis.xaxis if across else axis.yaxis).set_minor_locator(NullLocator())
    axis.grid(axis="y", color="#dddddd", linewidth=0.5)


def say(axis: Any, text: str, height: float = 0.5) -> None:
    """In the middle of an empty panel, at `height` of it: why it is empty."""
    axis.text(0.5, height, text, transform=axis.transAxes, ha="center", va="center", style="italic", fontsize=8)
    axis.set_xticks([])


def save(figure: Any, stem: Path) -> list[Path]:
    """The figure as stem.png, stem.svg and stem.pdf, without a date or a random id."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    metadata: dict[str, dict[str, Any]] = {
        ".png": {"Software": None}, ".svg": {"Date": None}, ".pdf": {"CreationDate": None, "ModDate": None},
    }  # fmt: skip
    files = [stem.with_name(stem.name + suffix) for suffix in SUFFIXES]
    for file in files:
        figure.savefig(file, dpi=DPI, metadata=metadata[file.suffix])
    return files
