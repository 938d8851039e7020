"""The roofline of a step: FLOP/s over arithmetic intensity, with the chip's ceilings."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import fields
from typing import Any

from rnn_triton.cells import named
from rnn_triton.plan.hardware import Device
from rnn_triton.plan.latency import CONSTANTS, gemm_us, rates
from rnn_triton.plan.problem import Problem

from ..cases.case import Case
from ..cases.inputs import lengths_of
from ..records.rows import Row
from ..records.schema import BASELINES, OURS, Hardware
from . import style
from .panels import Page
from .rows_in_words import PASS_TITLES, REGIMES, arithmetic, caption
from .sweeps import indexed, kinds, passes_of


def flop(shape: dict[str, Any], pass_: str) -> float:
    """Floating-point operations of the products of a step, all layers, directions, gates and models; of packed sequences those
    of an average step, padding left out. Training: three times those of the forward pass (dh and dx, dW_hh and dW_ih)."""
    rows, inputs, outputs = _sizes(shape)
    return 2.0 * rows * shape["H"] * (inputs * _directions(shape) + outputs) * len(named(shape["cell"]).gates) * (1 if pass_ == "fwd" else 3)


def moved(shape: dict[str, Any], pass_: str, resident: bool) -> float:
    """Bytes a step must move through memory. Forward: every layer's x in and y out. Training: x twice and dx, y twice and
    dy, and what the cell keeps out and in. Where W_hh is not `resident` on chip it is read besides, once each way."""
    rows, inputs, outputs = _sizes(shape)
    cell, times = named(shape["cell"]), 1 if pass_ == "fwd" else 2
    weights = 0 if resident else shape["models"] * outputs * shape["H"] * len(cell.gates) * times
    values = inputs + outputs if pass_ == "fwd" else 3 * (inputs + outputs) + 2 * cell.kept * outputs
    return (4 if shape["dtype"] == "fp32" else 2) * (rows * values + weights)


def _directions(shape: dict[str, Any]) -> int:
    return 2 if shape["bidirectional"] else 1


def _sizes(shape: dict[str, Any]) -> tuple[float, int, int]:
    """(the sequences of all models in an average step, the values that all layers take of one, those they give)"""
    real = 1.0 if shape["lengths"] == "full" else float(lengths_of(Case(**shape)).double().mean()) / shape["T"]
    inputs = shape["I"] + (shape["layers"] - 1) * _directions(shape) * shape["H"]
    return shape["B"] * real * shape["models"], inputs, shape["layers"] * _directions(shape) * shape["H"]


MARKERS = {"one_cta": "o", "cta_group": "s", "per_step": "^"}


def roofline(rows: Sequence[Row]) -> Iterator[Page]:
    """FLOP/s of a step over its arithmetic intensity, with the chip's ceilings and each case's latency bound"""
    ours = [row for row in rows if row.provider == OURS and row.us_per_step and row.us]
    if not ours:
        return
    index = indexed(rows)
    passes, there = passes_of(ours), kinds(ours)
    figure, axes = style.panels(len(passes), len(there), 2.9, 2.6)
    legend: dict[str, Any] = {}
    def draw(axis: Any, label: str, points: Sequence[tuple[float, float]], size: float, **look: Any) -> None:
        if points:
            axis.plot(*zip(*points), markersize=size, linestyle="", **look)
            legend.setdefault(label, style.line(linestyle="", **look))

    for line, pass_ in enumerate(passes):
        ceilings = [_ceilings(kind, ours) for kind in there]
        places = [c["peak"] / c["DRAM"] for c in ceilings if c]
        heights = [c["peak"] for c in ceilings if c]
        for axis, kind in zip(axes[line], there):
            reached: dict[str, list[tuple[float, float]]] = {}  # regime -> (x, y)
            bounds, cudnn = [], []
            for row in [row for row in ours if row.pass_ == pass_ and arithmetic(row) == kind]:
                work = flop(row.shape, pass_) * 1e-6  # FLOP per microsecond are 1e-6 TFLOP/s
                x = work * 1e6 / moved(row.shape, pass_, row.regime != "per_step")
                y = work / (row.us_per_step or math.nan)
                theirs = [r.us_per_step for name in BASELINES if (r := index.get((row.case, pass_, name))) and r.us_per_step]
                cudnn += [(x, work / min(theirs))] if theirs else []
                if row.floor_us_per_step:
                    bounds.append((x, work / row.floor_us_per_step))
                    axis.vlines(x, y, bounds[-1][1], color="#999999", linewidth=0.6, zorder=1)
                reached.setdefault(row.regime or "", []).append((x, y))
            draw(axis, "latency bound: the floor (estimate)", bounds, 7, marker="_", color="#595959", zorder=2)
            hollow = {"marker": "s", "color": style.PROVIDERS["cudnn"]["color"], "markerfacecolor": "none"}
            draw(axis, "best of cuDNN", cudnn, 3.5, zorder=3, **hollow)
            for regime, points in reached.items():
                look = {"marker": MARKERS.get(regime, "D"), "color": style.PROVIDERS[OURS]["color"], "zorder": 4}
                draw(axis, f"rnn_triton, {REGIMES.get(regime, 'regime not recorded')}", points, 4.5, **look)
            drawn = [*bounds, *cudnn, *(point for points in reached.values() for point in points)]
            heights += [y for _, y in drawn]
            places += [x for x, _ in drawn]
            if not drawn:
                style.say(axis, "not measured")
        left, right = min(places) / 2, max(places) * 2
        for axis, kind, found in zip(axes[line], there, ceilings):
            for name, dash in (("DRAM", "-"), ("L2", "--")) if found else ():
                look = {"color": "black", "linewidth": 1, "linestyle": dash}
                axis.plot([left, found["peak"] / found[name]], [left * found[name], found["peak"]], **look)
                legend.setdefault(f"{name} bandwidth", style.line(**look))
            if found:
                axis.plot([found["peak"] / found["L2"], right], [found["peak"]] * 2, color="black", linewidth=1.8)
                legend.setdefault("peak of the products", style.line(color="black", linewidth=1.8))
            else:
                text = {"va": "top", "fontsize": 7, "style": "italic"}
                axis.text(0.03, 0.96, "no ceilings: hardware not recorded", transform=axis.transAxes, **text)
            style.log_ticks(axis, (left, right), 0.0, across=True)
            style.log_ticks(axis, heights)
            axis.set_title(kind if line == 0 else "")
            axis.set_xlabel("FLOP per byte")
            axis.tick_params(labelleft=axis is axes[line][0])
        axes[line][0].set_ylabel(f"{PASS_TITLES[pass_]}\nTFLOP/s of a step")
    note = (
        "Intensity: FLOP of a step's products over the bytes it must move, x and y of every layer (training: three times each, and what a "
        "cell with gates keeps, twice) and, where each step is a launch, W_hh; with W_hh on chip its bytes are not moved. cuDNN is shown at the intensity of "
        "ours: what it keeps on chip is not known. Above each case its latency bound, the chain of a step that no bandwidth "
        "shortens. Ceilings: peak rates of rnn_triton.latency for the architecture and the recorded clock, estimates."
    )
    yield Page("roofline", "Roofline of a step", note, caption(rows), figure, legend)


def _ceilings(kind: str, rows: Sequence[Row]) -> dict[str, float]:
    """TFLOP/s of the products and, of DRAM and L2, TFLOP/s for each FLOP per byte; empty where no record has the hardware"""
    for row in rows:
        hardware = row.environment["hardware"]
        if hardware and arithmetic(row) == kind:
            device, shape = Device(**{f.name: hardware[f.name] for f in fields(Hardware) if f.name in hardware}), row.shape
            problem = Problem("forward", 1, 1, 1, shape["dtype"], shape["precision"], shape["cell"])
            peak = 1e6 / gemm_us(problem, device, 1e12, 0.0)
            return {"peak": peak, "DRAM": rates(device).dram * 1e-6, "L2": CONSTANTS.l2 * device.clock_ghz * 1e-3}
    return {}
