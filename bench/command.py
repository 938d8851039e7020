"""What a command of the benchmark is: a name, what it does, its arguments; and arguments that several commands share."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .cases.case import DTYPES, Case, choose
from .cases.suites import FORM, SUITES, parse, suites
from .records import environment, store

# beside the results in a checkout; an installed package is no place to write to
OUT = Path(__file__).resolve().parent / "out" if (environment.root() / "pyproject.toml").exists() else Path("bench-out")

Answer = tuple[str, list[str]]  # (what to show, what failed)
# Written down, so that a typo is told without importing what has them.
FIGURES = ("profile", "speedup", "speedup-over", "step", "roofline", "memory", "accuracy")
AXES, PAPERS = ("H", "B", "T", "L", "models", "heads", "head"), ("column", "text", "page")
ARCHITECTURES = ("sm_80", "sm_86", "sm_89", "sm_90", "sm_100")
LISTS = ("suites", "cases", "providers", "figures", "results")


class NeedsGPU(RuntimeError):
    """The job measures a GPU and there is none."""


Argument = tuple[tuple[str, ...], dict[str, Any]]  # of ArgumentParser.add_argument


def argument(*names: str, **how: Any) -> Argument:
    return names, how


@dataclass(frozen=True)
class Command:
    """`run`: "module:function" of this package, which takes the arguments, the folder for files and the end of the budget on
    time.monotonic(), and gives an Answer."""

    name: str
    help: str
    run: str
    arguments: Sequence[Argument] = ()


def seconds(text: str) -> float:
    """8m, 90s, 1h or plain seconds."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text)
    if not found or float(found.group(1)) <= 0:
        raise argparse.ArgumentTypeError(f"expected a time such as 8m, 90s or 1h, got {text!r}")
    return float(found.group(1)) * {"": 1, "s": 1, "m": 60, "h": 3600}[found.group(2)]


def share(text: str) -> float:
    """2% or 0.02."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)(%?)", text)
    value = float(found.group(1)) / (100 if found.group(2) else 1) if found else 0.0
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"expected a share between 0 and 1 such as 2% or 0.02, got {text!r}")
    return value


def count(text: str) -> int:
    """1, 2, 3, ..."""
    if not re.fullmatch(r"0*[1-9]\d{0,5}", text):
        raise argparse.ArgumentTypeError(f"expected a whole number from 1 on, got {text!r}")
    return int(text)


OUT_ARGUMENT = argument("--out", type=Path, default=argparse.SUPPRESS, help=f"folder for records and figures ({OUT})")
BUDGET = argument("--budget", type=seconds, default=argparse.SUPPRESS, help="time to use, such as 8m (default)")
RECORDS = argument("records", nargs="*", type=Path, help="record files (default: those that came with the source and those in --out)")
ARCH = argument("--arch", default="sm_90", help="sm_80, sm_90, sm_100, ...")
PROVIDER = argument("--provider", action="append", default=[], metavar="FILE.py:CLASS", help="one of your own, beside the others (docs/benchmarks.md)")


def case_arguments(suite: str | None) -> tuple[Argument, Argument]:
    return (
        argument("--suite", default=suite, help=f"separated by commas, or all: {', '.join(SUITES)}"),
        argument("--case", help=f"case names, separated by commas, in place of a suite and dtypes: {FORM}"),
    )


def records_of(given: argparse.Namespace, out: Path) -> list[dict[str, Any]]:
    """The records that RECORDS names"""
    return store.load(given.records or store.known(out))


def cases_of(given: argparse.Namespace) -> list[Case]:
    """The cases that case_arguments name, of the dtypes named where there is such an argument; none where nothing is named"""
    if getattr(given, "case", None):
        return list(dict.fromkeys(parse(name.strip()) for name in given.case.split(",")))
    chosen = list(suites(given.suite)) if getattr(given, "suite", None) else []
    if hasattr(given, "dtype"):
        dtypes = choose(given.dtype, DTYPES, "dtype")
        chosen = [case for case in chosen if case.dtype in dtypes]
        if not chosen:
            raise ValueError(f"no case of {given.suite} is in {given.dtype}")
    return chosen
