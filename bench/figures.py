"""Figures from records, and from nothing else. matplotlib is imported when a figure is drawn.

Readable in grey and for colour-blind readers: Okabe-Ito colours whose lightness differs, and a marker, line style or
hatch of their own for each series. A value that was not measured leaves a gap that says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from .cases import DTYPES, PASSES, QUICK_SHAPES, case
from .records import BASELINE, Row

OURS = "rnn_triton"
PASS_TITLES = {"fwd": "forward", "train": "forward + backward"}
COLOURS = {"bf16": "#0072B2", "fp16": "#E69F00", "fp32": "#B8B8B8"}  # dark, middle and light in grey
HATCHES = {"bf16": "", "fp16": "///", "fp32": "..."}
LINES: dict[str, dict[str, Any]] = {
    OURS: {"color": "#0072B2", "marker": "o", "linestyle": "-", "label": "rnn_triton"},
    BASELINE: {"color": "#D55E00", "marker": "s", "linestyle": "--", "label": "torch.nn.RNN (cuDNN)"},
    "floor": {"color": "#595959", "marker": "", "linestyle": ":", "label": "floor (estimate)"},
}
# axis of a figure -> (what is held, the cases' other sizes)
SWEEPS = {"H": "B = 16, T = 1024", "B": "H = 128, T = 1024", "T": "H = 128, B = 16"}


class MissingMatplotlib(RuntimeError):
    """Figures need matplotlib; tables and records do not."""


def draw(rows: Sequence[Row], training: Sequence[dict[str, Any]], out: Path) -> list[Path]:
    """Every figure the data allows, as PNG and SVG in `out`; returns the files. Nothing to draw: no files."""
    if not any(r.us for r in rows) and not training:
        return []
    pyplot = _pyplot()
    files = []
    devices = sorted({row.environment["device"] for row in rows if row.us})
    for device in devices:
        here = [row for row in rows if row.environment["device"] == device]
        prefix = "" if len(devices) == 1 else f"{''.join(c if c.isalnum() else '-' for c in device).lower()}-"
        files += _save(speedup(pyplot, here), out / f"{prefix}speedup")
        for axis in SWEEPS:
            files += _save(step_time(pyplot, here, axis), out / f"{prefix}step-over-{axis}")
    if training:
        files += _save(learning(pyplot, training), out / "digits")
    return files


def caption(rows: Iterable[Row]) -> str:
    """On what the rows were measured: every version that occurs is named."""
    rows = [row for row in rows if row.us]

    def all_of(field: str) -> str:
        return ", ".join(sorted({str(row.environment[field])[:10] for row in rows}))

    device = ", ".join(sorted({row.environment["device"] for row in rows}))
    return (
        f"{device}, driver {all_of('driver')}; torch {all_of('torch')}, triton {all_of('triton')}, "
        f"cuDNN {all_of('cudnn')}; commit {all_of('commit')}; {all_of('date')}\n"
        "median device time by CUDA events, input projection and launches included; fp32 is TF32"
    )


def speedup(pyplot: Any, rows: Sequence[Row]) -> Any:
    """Bars: speedup over cuDNN, a group a shape, a bar a dtype, a panel a pass."""
    ours = {(r.case, r.pass_): r for r in rows if r.provider == OURS}
    shapes = [
        shape for shape in sorted(QUICK_SHAPES) if any((case(*shape, d).name, p) in ours for d in DTYPES for p in PASSES)
    ]
    passes = [p for p in PASSES if any(key[1] == p for key in ours)]
    figure, axes = pyplot.subplots(
        1, len(passes), figsize=(1.6 + 4.2 * len(passes), 1.6 + 0.5 * len(shapes)), sharey=True, squeeze=False
    )
    height = 0.8 / len(DTYPES)
    for axis, pass_ in zip(axes[0], passes):
        for k, dtype in enumerate(DTYPES):
            for i, shape in enumerate(shapes):
                row = ours.get((case(*shape, dtype).name, pass_))
                position = i + (k - (len(DTYPES) - 1) / 2) * height
                if row is not None and row.speedup is not None:
                    axis.barh(
                        position, row.speedup, height * 0.92, color=COLOURS[dtype], hatch=HATCHES[dtype],
                        edgecolor="black", linewidth=0.5,
                    )  # fmt: skip
                    axis.annotate(
                        f"{row.speedup:.2f}", (row.speedup, position), (4, 0), textcoords="offset points", va="center",
                        fontsize=7, bbox={"color": "white", "pad": 0.4},  # legible on the line at 1
                    )  # fmt: skip
                else:
                    reason = "not measured" if row is None else row.status if row.status != "ok" else "no cuDNN time"
                    axis.text(0.02, position, f"{dtype}: {reason}", va="center", fontsize=7, style="italic")
        axis.axvline(1, color="black", linewidth=1)
        axis.margins(x=0.14)
        axis.set_xlim(left=0)
        axis.set_title(PASS_TITLES[pass_])
        axis.set_xlabel("speedup over torch.nn.RNN (cuDNN), x")
        axis.spines[["top", "right"]].set_visible(False)
    axes[0][0].set_yticks(range(len(shapes)), [f"H {H}  B {B}  T {T}" for H, B, T in shapes])
    axes[0][0].set_ylim(len(shapes) - 0.5, -0.5)
    handles = [
        pyplot.Rectangle((0, 0), 1, 1, facecolor=COLOURS[d], hatch=HATCHES[d], edgecolor="black", linewidth=0.5)
        for d in DTYPES
    ]
    figure.legend(handles, DTYPES, loc="upper center", ncols=len(DTYPES), frameon=False)
    _caption(figure, rows, top=0.97)
    return figure


def step_time(pyplot: Any, rows: Sequence[Row], axis_name: str) -> Any:
    """Lines: us/step of both providers and the floor over H, B or T; a column a dtype, a row a pass."""
    base = {"H": 128, "B": 16, "T": 1024}
    shapes = sorted(
        {
            (H, B, T)
            for H, B, T in QUICK_SHAPES
            if all(v == base[n] for n, v in zip("HBT", (H, B, T)) if n != axis_name)
        }
    )
    by_key = {(r.case, r.pass_, r.provider): r for r in rows}
    passes = [p for p in PASSES if any(r.pass_ == p for r in rows)]
    figure, axes = pyplot.subplots(
        len(passes), len(DTYPES), figsize=(10, 1.6 + 2.7 * len(passes)), squeeze=False, sharex=True, sharey="row"
    )
    values = [shape["HBT".index(axis_name)] for shape in shapes]
    for line, pass_ in enumerate(passes):
        for column, dtype in enumerate(DTYPES):
            axis = axes[line][column]
            names = [case(*shape, dtype).name for shape in shapes]
            for provider in (OURS, BASELINE):
                found = [(v, by_key.get((n, pass_, provider)), s) for v, n, s in zip(values, names, shapes)]
                points = [(v, [q / s[2] for q in row.us]) for v, row, s in found if row is not None and row.us]
                if points:
                    middles = [p[1] for _, p in points]
                    spread = [[p[1] - p[0] for _, p in points], [p[2] - p[1] for _, p in points]]
                    axis.errorbar([v for v, _ in points], middles, yerr=spread, capsize=2, **LINES[provider])
            floors = [(v, by_key.get((n, pass_, OURS))) for v, n in zip(values, names)]
            floor = [(v, row.floor_us_per_step) for v, row in floors if row is not None and row.floor_us_per_step]
            if floor:
                axis.plot(*zip(*floor), **LINES["floor"])
            if not axis.lines:
                axis.text(0.5, 0.5, "not measured", transform=axis.transAxes, ha="center", style="italic")
            axis.set_xscale("log", base=2)
            axis.set_yscale("log")
            axis.set_xticks(values, [str(v) for v in values])
            axis.minorticks_off()
            axis.yaxis.set_major_formatter(pyplot.FuncFormatter(lambda v, _: f"{v:g}"))
            axis.yaxis.set_major_locator(pyplot.LogLocator(base=10, subs=(1, 2, 5)))
            axis.grid(axis="y", color="#dddddd", linewidth=0.5)
            axis.spines[["top", "right"]].set_visible(False)
            if line == 0:
                axis.set_title("fp32 (TF32)" if dtype == "fp32" else dtype)
            if line == len(passes) - 1:
                axis.set_xlabel(axis_name)
        axes[line][0].set_ylabel(f"{PASS_TITLES[pass_]}\nus per step")
    handles: dict[str, Any] = {}
    for axis in axes.flat:
        handles |= {label: handle for handle, label in zip(*axis.get_legend_handles_labels())}
    figure.legend(handles.values(), handles.keys(), loc="upper center", ncols=len(LINES), frameon=False)
    _caption(figure, rows, top=0.96, title=SWEEPS[axis_name], note=", whiskers p20 to p80")
    return figure


def learning(pyplot: Any, training: Sequence[dict[str, Any]]) -> Any:
    """Digits: training loss over epochs, a line a seed, and the test accuracy of each run."""
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.8), width_ratios=(3, 2))
    styles = {OURS: LINES[OURS], "torch": LINES[BASELINE] | {"label": "torch.nn.RNN"}}
    positions: list[str] = []
    for offset, (name, style) in enumerate(styles.items()):
        runs = [r for r in training if r["implementation"] == name]
        for number, record in enumerate(runs):
            epochs = range(1, len(record["loss"]) + 1)
            label = style["label"] if number == 0 else None
            left.plot(
                epochs, record["loss"], color=style["color"], linestyle=style["linestyle"], linewidth=1.2, label=label
            )
            right.plot(
                number + (offset - 0.5) * 0.25, 100 * record["accuracy"], color=style["color"], marker=style["marker"],
                linestyle="", markersize=8,
            )  # fmt: skip
        positions = positions or [f"seed {record['seed']}" for record in runs]
    left.set(xlabel="epoch", ylabel="training loss", yscale="log")
    left.xaxis.set_major_locator(pyplot.MaxNLocator(integer=True))
    for ticks in (left.yaxis.set_major_formatter, left.yaxis.set_minor_formatter):
        ticks(pyplot.FuncFormatter(lambda v, _: f"{v:g}"))
    left.legend(frameon=False)
    right.set_xticks(range(len(positions)), positions)
    right.set_xlim(-0.6, len(positions) - 0.4)
    lowest = min(100 * r["accuracy"] for r in training)
    right.set_ylim(min(95.0, lowest - 0.5), 100)
    right.axhline(96, color="black", linewidth=1, linestyle=":")
    right.text(-0.55, 96, "required of the mean", fontsize=7, va="bottom")
    right.set_ylabel("test accuracy, %")
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
    environment = training[0]["environment"]
    figure.text(
        0.01, 0.01,
        f"handwritten digits, 8 rows of 8 pixels; {environment['device']}; torch {environment['torch']}, "
        f"triton {environment['triton']}; {environment['date'][:10]}",
        fontsize=7, color="#404040",
    )  # fmt: skip
    figure.tight_layout(rect=(0, 0.04, 1, 1))
    return figure


def _caption(figure: Any, rows: Sequence[Row], top: float, title: str = "", note: str = "") -> None:
    """Title and caption, and everything else between them: from 5 % to `top` of the height."""
    if title:
        figure.text(0.01, 0.99, title, fontsize=10, va="top")
    figure.text(0.01, 0.01, caption(rows) + note, fontsize=7, color="#404040", va="bottom")
    figure.tight_layout(rect=(0, 0.05, 1, top))


def _pyplot() -> Any:
    try:
        import matplotlib
    except ImportError as error:
        raise MissingMatplotlib("figures need matplotlib: pip install matplotlib") from error
    matplotlib.use("Agg")
    # equal records give equal files: no random ids; hatches thin enough to keep numbers legible
    matplotlib.rcParams.update({"svg.hashsalt": "rnn_triton", "hatch.linewidth": 0.5, "font.size": 9})
    from matplotlib import pyplot

    return pyplot


def _save(figure: Any, stem: Path) -> list[Path]:
    stem.parent.mkdir(parents=True, exist_ok=True)
    files = [stem.with_name(stem.name + suffix) for suffix in (".png", ".svg")]
    figure.savefig(files[0], dpi=150, metadata={"Software": None})
    figure.savefig(files[1], metadata={"Date": None})
    from matplotlib import pyplot

    pyplot.close(figure)
    return files
