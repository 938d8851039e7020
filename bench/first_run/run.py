"""The command `check`: on a GPU the first thing to run there, within a budget; else the gate of a suite.

Kernels are compiled in parallel first.  Then one worker process does item after item (items.py), section by section: recurrences alone; equivalence
of every regime; speed against cuDNN; settings side by side; what must fail, and does.  A record is on disk as soon as it is known.  An item that
raises or hangs costs itself, and the worker is replaced.  A section that takes long leaves the later ones the time that is theirs. """

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..cases.suites import suite
from ..command import Answer
from ..instruments.progress import Progress
from ..instruments.worker import Worker, WorkerError
from ..measure import run
from ..measure.compiling import Call, compile_call, compile_calls
from ..measure.job import run_check
from ..records import environment
from ..records.schema import OURS
from ..records.store import Writer
from .items import Item, perform
from .listed import items
from .tables import table_of

FILE = "first-run.jsonl"
# What part of the budget is gone when a section ends, at the latest.
ENDS = {"compiling": 0.3, "protocols": 0.46, "equivalence": 0.67, "speed": 0.85, "switches": 0.95, "faults": 1.0}
LEAST = 3.0  # seconds that are left when an item begins
START = 60.0  # seconds more for the first item of a worker process: imports, CUDA, libraries


def first_run(
    out: Path, budget: float, todo: Sequence[Item] | None = None, function: Callable[[Any], Any] = perform,
    clock: Callable[[], float] = time.monotonic, settings: Mapping[str, str] = {}, compiler: Callable[[Call], None] = compile_call,
) -> tuple[str, list[str]]:  # fmt: skip
    """(table, failures) after about `budget` seconds at most; records in out/first-run.jsonl as they come.

    `function` runs in the worker, whose environment has the `settings`, and gets the item."""
    began = clock()
    todo = items() if todo is None else todo
    left: list[Item] = []
    calls = [call for item in todo for call in item.calls()]
    failed, cut = compile_calls(calls, budget * ENDS["compiling"], compiler)
    failures = [f"compiling {call.case.name} {dict(call.choices)}: {message}" for call, message in failed.items()]
    if cut:
        print(f"compiling took its {budget * ENDS['compiling']:.0f} s: {cut} calls are left, and compile when they run", flush=True)
    with Writer(out / FILE, environment.new_run(), environment.describe(environment.best_device())) as writer:
        with Worker(function, settings) as worker, Progress("checking", len(todo)) as progress:
            for item in todo:
                used = clock() - began
                if budget * ENDS[item.section] - used < LEAST:
                    left.append(item)
                    continue
                progress.now(f"{item.section}: {item.name}")
                wrong = _do(item, worker, budget - used, writer)
                progress.step(failed=bool(wrong))
                failures += wrong
    return table_of(out / FILE, left), failures


def _do(item: Item, worker: Worker, seconds: float, writer: Writer) -> list[str]:
    """Do an item and write its records; what failed."""
    allowed = min(item.timeout + (0.0 if worker.is_warm else START), seconds)
    try:
        found = worker.call(item, allowed, allowed)
    except WorkerError as error:
        found = item.blank()
        run.fail(found, error.status, str(error))
    written = [writer.write(item.kind, **fields) for fields in found]
    ours = [record for record in written if record.get("provider", OURS) == OURS]
    return [f"{item.section}: {item.name}: {why}" for record in ours if (why := run.fault(record))]


def check_command(given: argparse.Namespace, out: Path, deadline: float) -> Answer:
    if torch.cuda.is_available() and not given.cases:
        return first_run(out, deadline - time.monotonic())
    return run_check(given.cases or suite("check"), out, given.own or [OURS])
