"""The command `check`: the first run on a GPU, or the gate of a suite."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch

from ..command import Answer, Command, budget_argument, case_arguments, cases_of
from ..measure.job import run_check
from .run import first_run


def _check(given: argparse.Namespace, out: Path, deadline: float) -> Answer:
    some = given.suite or given.case
    if given.dry and some:
        raise ValueError("--dry has cases of its own: leave out --suite and --case")
    if given.dry or (torch.cuda.is_available() and not some):
        return first_run(out, deadline - time.monotonic(), given.dry)
    given.suite = given.suite or "check"
    return run_check(cases_of(given), out)


def _arguments(to: argparse.ArgumentParser) -> None:
    case_arguments(to, None)
    budget_argument(to)
    to.add_argument("--dry", action="store_true", help="all of it without a GPU: tiny, by Triton's interpreter")


COMMANDS = (
    Command(
        "check",
        "on a GPU the first thing to run there: protocols, equivalence, speed, constants, faults and graphs, within a "
        "budget; without one, or for a suite or cases: y, hn and all gradients against fp64",
        _arguments, _check,
    ),
)  # fmt: skip
