"""The roofline of a step: FLOP/s over arithmetic intensity, with the chip's ceilings."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
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
    return 2.0 * rows * shape["H"] * (inputs * (1 + shape["bidirectional"]) + outputs / shape["heads"]) * len(named(shape["cell"]).gates) * (1 if pass_ == "fwd" else 3)


def moved(shape: dict[str, Any], pass_: str, resident: bool) -> float:
    """Bytes a step must move through memory. Forward: every layer's x in and y out. Training: x twice and dx, y twice and
    dy, and what the cell keeps out and in. Where W_hh is not `resident` on chip it is read besides, once each way."""
    rows, inputs, outputs = _sizes(shape)
    cell, times = named(shape["cell"]), 1 if pass_ == "fwd" else 2
    weights = 0 if resident else shape["models"] * outputs * shape["H"] // shape["heads"] * len(cell.gates) * times
    values = inputs + outputs if pass_ == "fwd" else 3 * (inputs + outputs) + 2 * cell.kept * outputs
    return (4 if shape["dtype"] == "fp32" else 2) * (rows * values + weights)


def _sizes(shape: dict[str, Any]) -> tuple[float, int, int]:
    """(the sequences of all models in an average step, the values that all layers take of one, those they give)"""
    real = 1.0 if shape["lengths"] == "full" else float(lengths_of(Case(**shape)).double().mean()) / shape["T"]
    outputs = (1 + shape["bidirectional"]) * shape["H"]  # of a layer
    return shape["B"] * real * shape["models"], shape["I"] + (shape["layers"] - 1) * outputs, shape["layers"] * outputs


MARKERS = {"one_cta": "o", "cta_group": "s", "per_step": "^"}


def roofline(rows: Sequence[Row], width: float, axes: Iterable[str]) -> Iterator[Page]:
    """FLOP/s of a step over its arithmetic intensity, with the chip's ceilings and each case's latency bound"""
    if not (ours := [row for row in rows if row.provider == OURS and row.us]):
        return
    there, index = {(row.pass_, arithmetic(row)) for row in ours}, indexed(rows)
    pairs = [[(pass_, kind) if (pass_, kind) in there else None for kind in kinds(ours)] for pass_ in passes_of(ours)]
    grid = style.side_by_side(pairs, width)
    figure, panels, (across, height) = style.panels([len(line) for line in grid], width)
    legend: dict[str, Any] = {}
    ceilings = {kind: _ceilings(kind, ours) for kind in kinds(ours)}
    places = [c["peak"] / c["DRAM"] for c in ceilings.values() if c]
    heights = [c["peak"] for c in ceilings.values() if c]

    def draw(axis: Any, label: str, points: Sequence[tuple[float, float]], size: float, **look: Any) -> None:
        if points:
            legend.setdefault(label, axis.plot(*zip(*points), markersize=size, linestyle="", **look)[0])
            places.extend(x for x, _ in points)
            heights.extend(y for _, y in points)

    cells = [(axis, *pair) for mine, line in zip(panels, grid) for axis, pair in zip(mine, line)]
    for axis, pass_, kind in cells:
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
                axis.vlines(x, y, bounds[-1][1], color="#bbbbbb", linewidth=0.4, zorder=1)
            reached.setdefault(row.regime or "", []).append((x, y))
        draw(axis, "latency bound: the floor (estimate)", bounds, 3, marker="_", color="#595959", zorder=2)
        draw(axis, "best of cuDNN", cudnn, 2, zorder=3, marker="s", color=style.PROVIDERS["cudnn"][1]["color"], markerfacecolor="none")
        for regime, points in reached.items():
            look = {"marker": MARKERS.get(regime, "D"), "color": style.PROVIDERS[OURS][1]["color"], "zorder": 4}
            draw(axis, f"rnn_triton, {REGIMES.get(regime, 'regime not recorded')}", points, 2, **look)
    left, right = min(places) / 2, max(places) * 2
    for axis, pass_, kind in cells:
        found = ceilings[kind]
        for name, dash in (("DRAM", "-"), ("L2", "--")) if found else ():
            slope = [left, found["peak"] / found[name]], [left * found[name], found["peak"]]
            legend.setdefault(f"{name} bandwidth", axis.plot(*slope, color="black", linewidth=0.8, linestyle=dash)[0])
        if found:
            (flat,) = axis.plot([found["peak"] / found["L2"], right], [found["peak"]] * 2, color="black", linewidth=1.4)
            legend.setdefault("peak of the products", flat)
        style.log_ticks(axis, (left, right), across, True, 0.0)
        style.log_ticks(axis, heights, height)
        first = any(axis is line[0] for line in panels)
        axis.set(xlabel="FLOP per byte" if axis in panels[-1] else "", ylabel="TFLOP/s of a step" if first else "")
        axis.set_title(style.in_lines(f"{kind}, {PASS_TITLES[pass_]}", across))
        axis.tick_params(labelleft=first)
    note = (
        "Intensity: FLOP of a step's products over the bytes it must move, x and y of every layer (training: three times each, and what a cell "
        "with gates keeps, twice) and, where each step is a launch, W_hh. cuDNN is shown at the intensity of ours: what it keeps on chip is not known."
    ) + " Above each case its latency bound, the chain of a step that no bandwidth shortens." * any(row.floor_us_per_step for row in ours)
    peaks = "Ceilings: peak rates of the architecture at the recorded clock, estimates."
    note += f" {peaks if any(ceilings.values()) else 'No ceilings: hardware not recorded.'}"
    yield Page("roofline", "Roofline of a step", note, caption(ours), figure, legend)


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
