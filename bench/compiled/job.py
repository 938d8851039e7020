"""The job that compiles planned kernels and takes them apart; needs no GPU."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

import torch

from rnn_triton.launch.dispatch import compile_ahead
from rnn_triton.plan import latency
from rnn_triton.plan.choose import plan
from rnn_triton.plan.problem import plan_fields

from ..command import Answer
from ..instruments.worker import in_parallel
from ..records import environment
from ..records.store import Writer
from ..show import formats, tables
from . import resources
from .planned import planned

FEW_H, FEW_ONE_CTA = 1024, 128  # what `make bench` compiles of the plans over a group of CTAs, and of one


def compiled(item: tuple[Any, Any]) -> dict[str, Any]:
    """The fields of one resources record of a planned (Problem, Device)."""
    problem, device = item
    chosen = plan(problem, device)
    estimate = latency.step(problem, chosen, device)
    out = {
        "problem": dataclasses.asdict(problem), "plan": plan_fields(chosen), "resources": {}, "status": "ok",
        "message": "", "floor_us_per_step": estimate.floor_us, "practical_us_per_step": estimate.practical_us,
    }  # fmt: skip
    try:
        out["resources"] = resources.analyze(compile_ahead(problem, chosen, device)).as_dict()
    except Exception as error:  # ptxas, LLVM and MLIR each raise their own
        out |= {"status": "error", "message": f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"}
    return out


def distinct_plans(arch: str, few: bool = False) -> list[tuple[Any, Any]]:
    """One planned (Problem, Device) for each different kernel of an architecture; fp16's are bf16's.

    `few`: one for each direction and sort of product, over a group of CTAs of H = FEW_H and in one CTA of H = FEW_ONE_CTA."""
    architectures = sorted({f"sm_{device.capability}" for _, device in planned()})
    if arch not in architectures:
        raise ValueError(f"no plan is listed for {arch!r}; known: {', '.join(architectures)}")
    chosen: dict[Any, tuple[Any, Any]] = {}
    for problem, device in planned():
        if f"sm_{device.capability}" != arch:
            continue
        found: Any = plan(problem, device)
        group = found.regime == "cta_group"
        if few and (problem.H != (FEW_H if group else FEW_ONE_CTA) or (not group and problem.I in (8, 1000))):
            continue
        alike = dataclasses.replace(found, reason="", accuracy="", **({"groups": 0} if group else {}))
        sizes = (problem.H, problem.I if found.w_ih_home not in ("gemm", "none") else 0) if group else ()
        key = (found.regime, found.formulation, found.precision) if few else (alike, *sizes)
        chosen.setdefault((problem.direction, key), (problem, device))
    return list(chosen.values())


def run_resources(arch: str, out: Path, few: bool = False) -> tuple[str, list[str]]:
    """(table, failures) of every plan's kernel on an architecture, compiled here; needs no GPU. `few`: distinct_plans."""
    items = distinct_plans(arch, few)
    found, failures = {}, []
    with Writer(out / "resources.jsonl", environment.new_run(), environment.describe(torch.device("cpu"))) as writer:
        for i, fields in in_parallel(compiled, items, f"compiling for {arch}"):
            if isinstance(fields, BaseException):
                failures.append(f"resources: {items[i][0]}: {type(fields).__name__}: {fields}")
                continue
            found[i] = record = writer.write("resources", **fields)
            spilled = sum(record["resources"].get(name, 0) for name in ("spill_stores", "spill_loads"))
            if record["status"] != "ok" or spilled:
                failures.append(f"resources: {items[i][0]}: {record['message'] or f'{spilled} spill instructions'}")
    table = formats.text(tables.RESOURCE_HEADINGS, tables.resource_rows(found[i] for i in sorted(found)))
    return f"compiled for {arch}, counts of one warp and one step (*: estimates, nothing was timed):\n{table}", failures


def resources_command(given: argparse.Namespace, out: Path, deadline: float) -> Answer:
    return run_resources(given.arch, out)
