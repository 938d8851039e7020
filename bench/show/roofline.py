"""The roofline of a step: FLOP/s over arithmetic intensity, with the chip's ceilings."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import fields
from typing import Any

from ..cases.case import Case
from ..records.rows import Row
from ..records.schema import BASELINES, OURS, Hardware
from . import style
from .panels import Page
from .rows_in_words import PASS_TITLES, REGIMES, arithmetic, caption
from .sweeps import indexed, kinds, passes_of


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
    index = indexed(rows)
    passes, there = passes_of(ours), kinds(ours)
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
    from rnn_triton.cells.elman import ELMAN
    from rnn_triton.plan.hardware import Device
    from rnn_triton.plan.latency import CONSTANTS, gemm_us, rates
    from rnn_triton.plan.problem import Problem

    for row in rows:
        hardware = row.environment["hardware"]
        if hardware and arithmetic(row) == kind:
            device, shape = Device(**{f.name: hardware[f.name] for f in fields(Hardware) if f.name in hardware}), row.shape
            problem = Problem("forward", 1, 1, 1, shape["dtype"], shape["precision"], ELMAN[shape["nonlinearity"]].name)
            peak = 1e6 / gemm_us(problem, device, 1e12, 0.0)
            return {"peak": peak, "DRAM": rates(device).dram * 1e-6, "L2": CONSTANTS.l2 * device.clock_ghz * 1e-3}
    return {}
