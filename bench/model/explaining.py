"""`bench explain CASE`: what runs a case and why, what the model expects, what is recorded of it, what others published."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch

import rnn_triton
from rnn_triton.errors import UnsupportedError
from rnn_triton.plan import hardware
from rnn_triton.plan.cudnn import cudnn_algorithm, torch_module
from rnn_triton.plan.hardware import Device
from rnn_triton.plan.problem import DTYPES, Problem

from ..cases import estimate, published
from ..cases.case import PASSES, Case
from ..records.rows import Row, rows
from ..show import formats, rows_in_words, tables
from ..show.sweeps import in_words

_TORCH = {name: dtype for dtype, name in DTYPES.items()}
RECORD_HEADINGS = ("device", "pass", "provider", "us/step", "p20 to p80", "speedup", "of floor", "bound (estimate)", "date")
PUBLISHED_HEADINGS = ("pass", "us/step", "device", "what", "source")


def explain(case: Case, device: Device | None, records: Iterable[dict[str, Any]], command: str = "python -m bench") -> str:
    """Text on a case: plans, estimates, cuDNN's algorithm, recorded and published times.

    `device`: what plans and estimates are for; None means the GPU at hand, or an H200. `command` starts the benchmark."""
    if device is None:
        device = hardware.of(torch.device("cuda" if torch.cuda.is_available() else "meta"))
    sections = [
        _plans(case, device), f"latency model, {device.name}, ESTIMATES in us per step of T:\n" + "\n".join(_estimates(case, device)),
        "\n".join(_cudnn(case)),
        _recorded(case, list(rows(r for r in records if r["kind"] == "timing" and r["case"] == case.name)), command), _published(case),
    ]  # fmt: skip
    words = [*in_words(vars(case), ("cell",)), case.dtype + (f" ({case.precision})" if case.precision else "")]
    return f"{case.name}: {', '.join(words)}\n\n" + "\n\n".join(section for section in sections if section)


def _plans(case: Case, device: Device) -> str:
    """What rnn_triton.explain says of the launches of a network, or of each different layer where it runs layer by layer, forward
    and backward; cuDNN's line is left to _cudnn, which knows more of the case"""
    inputs = [layer.forward.I for layer in estimate.layers(case)]
    whole: dict[str, Any] = {}
    if estimate.shares(case):
        inputs = inputs[:1]
        whole = {"num_layers": case.layers, "bidirectional": case.bidirectional}
    lines = []
    for I in dict.fromkeys(inputs):
        where = [str(i) for i, of in enumerate(inputs) if of == I]
        if case.layers > 1 and not whole:
            lines.append(f"layer{'s' * (len(where) > 1)} {', '.join(where)}{', each direction' * case.bidirectional}:")
        for direction in ("forward", "backward"):
            text = rnn_triton.explain(
                case.T, case.B, I, case.H // case.heads, models=case.models * case.heads, dtype=_TORCH[case.dtype], device=device,
                cell=case.cell, precision=case.precision, direction=direction, lengths=case.lengths != "full", **whole,
            )  # fmt: skip
            lines += [line for line in text.splitlines() if not line.startswith("torch.nn")]
    return "\n".join(lines)


def _estimates(case: Case, device: Device) -> list[str]:
    lines = []
    for pass_ in PASSES:
        try:
            found = estimate.of_case(case, pass_, device)
        except UnsupportedError:
            return ["none: no plan"]
        parts = estimate.largest(found.parts, len(found.parts))
        lines.append(f"{pass_}: floor {found.floor_us:.3f}, practical {found.practical_us:.3f}; largest limits: {parts}")
    return lines


def _cudnn(case: Case) -> list[str]:
    module, _ = torch_module(case.cell)
    if not module:
        return [f"torch.nn has no module of {case.cell}"]
    lines = []
    for direction, problem in zip(("forward", "backward"), estimate.problems(case)):
        # PyTorch decides by the input size in both passes
        asked = Problem(direction, case.B, case.I, problem.H, problem.dtype, problem.precision, problem.cell)
        how: Any = {"layers": case.layers, "bidirectional": case.bidirectional, "packed": case.lengths != "full"}
        found = cudnn_algorithm(asked, **how)
        lines.append(f"torch.nn.{module}, {direction}: cuDNN's {found.name}, because {found.rule}.")
    return lines


def _recorded(case: Case, found: Sequence[Row], command: str) -> str:
    if not found:
        return f"recorded: nothing; `{command} run --case {case.name}` measures it on a GPU"
    body = []
    for row in sorted(found, key=lambda r: (r.environment["device"], PASSES.index(r.pass_), r.provider)):
        bound = (row.bound or "-") if row.provider == "rnn_triton" else "-"
        times: tuple[str, ...] = (f"{row.status}: {row.message}", "-", "-", "-", "-")
        if row.us is not None and row.us_per_step is not None:
            p20, _, p80 = (us / case.T for us in row.us)
            times = (
                f"{row.us_per_step:.3f}", f"{p20:.3f} to {p80:.3f}", row.gap or f"{row.speedup:.2f}x over {row.baseline}",
                "-" if row.fraction_of_floor is None else f"{row.fraction_of_floor:.0%}", bound,
            )  # fmt: skip
        body.append((row.environment["device"], row.pass_, row.provider, *times, row.date[:10]))
    ran = tables.kernels(found)
    parts = ["recorded:\n" + formats.text(RECORD_HEADINGS, body), rows_in_words.clocks(found)]
    if ran.body:
        table = formats.text(ran.headings[:2] + ran.headings[4:], [line[:2] + line[4:] for line in ran.body])  # less the case
        parts.append(f"{ran.title.lower()}, by the profiler:\n{table}")
    return "\n".join(part for part in parts if part)


def _published(case: Case) -> str:
    found = [(pass_, p) for pass_ in PASSES for p in published.of(case.name, pass_)]
    if not found:
        return ""
    body = [(pass_, f"{p.us_per_step:.3f}", p.device, p.what, p.source) for pass_, p in found]
    return "published by others, not measured here:\n" + formats.text(PUBLISHED_HEADINGS, body)
