"""Jobs of the latency model: its estimates, its fit to records, a case explained."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rnn_triton.plan import hardware

from ..cases import case as cases
from ..cases import estimate as model
from ..command import Answer, records_of
from ..records import store
from ..records.environment import needs
from ..records.rows import rows
from ..records.schema import OURS
from ..show import formats
from . import explaining


def model_table(device: Any, chosen: Sequence[cases.Case]) -> str:
    """Floor and practical us/step of cases on a device, by the latency model, and what limits the practical one."""
    body = []
    for case in chosen:
        line = [case.name]
        for pass_ in cases.PASSES:
            try:
                found = model.of_case(case, pass_, device)
                line += [f"{found.floor_us:.2f}", f"{found.practical_us:.2f}", found.bound]
            except NotImplementedError:
                line += ["no plan", "-", "-"]
        body.append(line)
    headings = ["case", *(f"{pass_} {what}" for pass_ in cases.PASSES for what in ("floor", "practical", "bound"))]
    title = f"latency model, {device.name}, us per step, launch cost excluded. ESTIMATES, not measured:"
    return f"{title}\n{formats.text(headings, body)}"


def fit_table(records: Sequence[dict[str, Any]]) -> str:
    """The latency model fitted to the records of each device, and the bottleneck of every measured case; what is missing where
    that is numpy, which only this and `compare` need."""
    try:
        from . import fit
    except ModuleNotFoundError as error:
        return f"the latency model was not fitted: {needs(error)}"

    names = sorted({r["environment"]["device"] for r in records if r["kind"] in ("timing", "exchange")})
    parts = []
    for name in names:
        found = fit.fit([r for r in records if r["environment"]["device"] == name])
        parts += [
            f"latency model fitted to {found.device}: {found.refused or 'the constants below'}",
            *(f"left out: {n} records, {why}" for why, n in found.skipped.items()),
            formats.text(HEADINGS, constants_body(found)), "", formats.text(ERROR_HEADINGS, errors_body(found)), "",
        ]  # fmt: skip
    if bound := bottlenecks(records):
        parts += ["what was measured, the farthest from its floor first:", formats.text(BOTTLENECK_HEADINGS, bound)]
    return "\n".join(parts) or "no timing records: the latency model was fitted to nothing"


BOTTLENECK_HEADINGS = ("case", "pass", "device", "us/step", "model", "floor", "of floor", "largest parts of the model")


def bottlenecks(records: Iterable[dict[str, Any]], parts: int = 3) -> list[tuple[str, ...]]:
    """A line per measured case of ours under BOTTLENECK_HEADINGS, the farthest from its floor first.

    `parts`: how many of the practical estimate's parts, the largest first, in microseconds per step; each is one limit, and
    they add up to nothing in particular. Model, floor and parts are estimates, of when it was measured."""
    found = [row for row in rows(records) if row.provider == OURS and row.us_per_step is not None]
    found.sort(key=lambda row: (math.inf if row.fraction_of_floor is None else row.fraction_of_floor, row.case, row.pass_))
    out: list[tuple[str, ...]] = []
    for row in found:
        times = (row.us_per_step, row.practical_us_per_step, row.floor_us_per_step)
        reached = "-" if row.fraction_of_floor is None else f"{row.fraction_of_floor:.0%}"
        numbers = ("-" if us is None else f"{us:.3f}" for us in times)
        out.append((row.case, row.pass_, row.environment["device"], *numbers, reached, model.largest(row.parts_us_per_step, parts)))
    return out


HEADINGS = ("constant", "old", "new", "95 % interval", "records", "why it stays")
ERROR_HEADINGS = ("regime", "records", "error before", "after", "90 % before", "after")


def constants_body(found: Any) -> list[tuple[str, ...]]:
    """A line per constant under HEADINGS."""
    ends = [f"{v.new / v.factor:.4g} to {v.new * v.factor:.4g}" if v.factor else "-" for v in found.values]
    changed = ["-" if v.new == v.old else f"{v.new:.4g}" for v in found.values]
    return [(v.name, f"{v.old:.4g}", *words, str(v.records), v.why or "fitted") for v, *words in zip(found.values, changed, ends)]


def errors_body(found: Any) -> list[tuple[str, ...]]:
    """A line per regime under ERROR_HEADINGS: median and 90 % of |model / measured - 1|."""
    both = {regime: (before, found.after.get(regime)) for regime, before in found.before.items()}
    parts = [[f"{getattr(g, part):.1%}" if g else "-" for part in ("median", "p90") for g in each] for each in both.values()]
    return [(regime, str(each[0].records), *words) for (regime, each), words in zip(both.items(), parts)]


def model_command(given: argparse.Namespace, out: Path, deadline: float) -> Answer:
    return f"{model_table(hardware.RECORDS[given.arch], given.cases)}\n\n{fit_table(records_of(given, out))}", []


def explain_command(given: argparse.Namespace, out: Path, deadline: float) -> Answer:
    device = hardware.RECORDS[given.arch] if given.arch else None
    return explaining.explain(given.cases[0], device, store.load(store.known(out))), []
