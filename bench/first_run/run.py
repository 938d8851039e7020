"""The command `check`: on a GPU the first thing to run there, within a budget; else the gate of a suite.

Kernels are compiled in parallel first.  Then one worker process does item after item (items.py), section by section:
recurrences alone; equivalence of every regime; speed against cuDNN; settings side by side; what must fail, and does.  A record is on disk as soon as it is known.  An item that raises or hangs costs itself, and the
worker is replaced.  A section that takes long leaves the later ones the time that is theirs.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from ..command import BUDGET, Answer, Command, argument, case_arguments, cases_of
from ..instruments.progress import Progress
from ..instruments.worker import Worker, WorkerError
from ..measure import run
from ..measure.compiling import Call, compile_ahead, compile_call, compile_calls
from ..measure.job import run_check
from ..records import environment
from ..records.schema import OURS
from ..records.store import DRY_FILE, Writer
from .items import Item, perform
from .listed import dry_items, items
from .tables import table_of

FILE = "first-run.jsonl"
# What part of the budget is gone when a section ends, at the latest.
ENDS = {"compiling": 0.3, "protocols": 0.46, "equivalence": 0.67, "speed": 0.85, "switches": 0.95, "faults": 1.0}
LEAST = 3.0  # seconds that are left when an item begins
START = 60.0  # seconds more for the first item of a worker process: imports, CUDA, libraries


def first_run(
    out: Path,
    budget: float,
    is_dry: bool = False,
    todo: Sequence[Item] | None = None,
    function: Callable[[Any], Any] = perform,
    clock: Callable[[], float] = time.monotonic,
) -> tuple[str, list[str]]:
    """(table, failures) after about `budget` seconds at most; records in out/first-run.jsonl, dry ones in out/dry-run.jsonl, as they come.

    `function` runs in the worker and gets (item, is_dry)."""
    began = clock()
    todo = list(todo if todo is not None else dry_items() if is_dry else items())
    described = environment.describe(torch.device("cpu") if is_dry else environment.best_device())
    if is_dry:
        described |= {"device": "none (dry run)"}
    failures: list[str] = []
    left: list[Item] = []
    path = out / (DRY_FILE if is_dry else FILE)
    with Writer(path, environment.new_run(), described) as writer:
        failures += _compile(todo, budget * ENDS["compiling"], is_dry)
        settings = {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""} if is_dry else {}
        with Worker(function, settings) as worker, Progress("checking", len(todo)) as progress:
            for item in todo:
                used = clock() - began
                if budget * ENDS[item.section] - used < LEAST:
                    left.append(item)
                    continue
                progress.now(f"{item.section}: {item.name}")
                failed = _do(item, is_dry, worker, budget - used, writer)
                progress.step(failed=bool(failed))
                failures += failed
    return table_of(path, left, is_dry), failures


def _compile(todo: Sequence[Item], seconds: float, is_dry: bool) -> list[str]:
    calls: list[Call] = [call for item in todo for call in item.calls()]
    if is_dry:  # nothing runs that was compiled; a grid of each protocol shows that it compiles
        chosen = [call for call in calls if dict(call.choices).get("regime") == "cta_group"]
        calls = list({dict(call.choices).get("protocol"): call for call in chosen}.values())
    failed, cut = compile_calls(calls, seconds, compile_ahead if is_dry else compile_call)
    if cut:
        print(f"compiling took its {seconds:.0f} s: {cut} calls are left, and compile when they run", flush=True)
    return [f"compiling {call.case.name} {dict(call.choices)}: {message}" for call, message in failed.items()]


def _do(item: Item, is_dry: bool, worker: Worker, seconds: float, writer: Writer) -> list[str]:
    """Do an item and write its records; what failed."""
    allowed = min(item.timeout + (0.0 if worker.is_warm else START), seconds)
    try:
        found = worker.call((item, is_dry), allowed, allowed)
    except WorkerError as error:
        found = item.blank()
        run.fail(found, error.status, str(error))
    failures = []
    for fields in found:
        record = writer.write(item.kind, **fields)
        ours = record.get("provider", OURS) == OURS
        if ours and (why := run.fault(record)):
            failures.append(f"{item.section}: {item.name}: {why}")
    return failures


def _check(given: argparse.Namespace, out: Path, deadline: float) -> Answer:
    some = given.suite or given.case
    if given.dry and some:
        raise ValueError("--dry has cases of its own: leave out --suite and --case")
    if given.dry or (torch.cuda.is_available() and not some):
        return first_run(out, deadline - time.monotonic(), given.dry)
    given.suite = given.suite or "check"
    return run_check(cases_of(given), out)


_HELP = """on a GPU the first thing to run there: protocols, equivalence, speed, settings and faults, within a budget; without one, or
for a suite or cases: y, hn and all gradients against fp64"""
_DRY = argument("--dry", action="store_true", help="all of it without a GPU: tiny, by Triton's interpreter")
COMMANDS = (Command("check", _HELP.replace("\n", " "), _check, (*case_arguments(None), BUDGET, _DRY)),)
