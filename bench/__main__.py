"""Command line of the benchmark: python -m bench (checkout) or rnn-triton-bench (installed)."""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from . import cases, environment, jobs, report
from .first_run import first_run
from .providers import PROVIDERS
from .records import rows

# beside the results in a checkout; an installed package is no place to write to
OUT = Path(__file__).resolve().parent / "out" if (environment.root() / "pyproject.toml").exists() else Path("bench-out")


def seconds(text: str) -> float:
    """8m, 90s, 1h or plain seconds."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text)
    if not found or float(found.group(1)) <= 0:
        raise argparse.ArgumentTypeError(f"expected a time such as 8m, 90s or 1h, got {text!r}")
    return float(found.group(1)) * {"": 1, "s": 1, "m": 60, "h": 3600}[found.group(2)]


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="bench", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    top.add_argument("--quick", action="store_true", help="the job of `make bench`")
    _common(top, budget=True)
    commands = top.add_subparsers(dest="command")

    def add(name: str, help: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=help, description=help)

    add_check = add(
        "check",
        "on a GPU the first thing to run: protocols, equivalence, speed, constants, faults and graphs, within a budget; "
        "without one, or for a suite or cases: y, hn and all gradients against fp64",
    )
    _cases(add_check, None)
    _common(add_check, budget=True)
    add_check.add_argument("--dry", action="store_true", help="all of it without a GPU: tiny, by Triton's interpreter")
    add_run = add("run", "time cases on the GPU against torch.nn.RNN on cuDNN")
    _cases(add_run, "quick")
    _common(add_run, budget=True)
    add_run.add_argument("--pass", dest="passes", default=",".join(cases.PASSES), help="fwd,train")
    add_run.add_argument("--dtype", default=",".join(cases.DTYPES), help="bf16,fp16,fp32")
    add_run.add_argument("--providers", default=",".join(PROVIDERS), help=", ".join(PROVIDERS))
    add_resources = add("resources", "what every planned kernel uses, compiled ahead of time; needs no GPU")
    add_resources.add_argument("--arch", default="sm_90", help="sm_80, sm_90, sm_100, ...")
    _common(add_resources)
    add_model = add("model", "estimated floor and practical us/step of the quick suite")
    add_model.add_argument("--arch", default="sm_90")
    add("host", "own Python and dispatcher time per call")
    for name, help in (
        ("figures", "draw the figures of record files (default: those that came with the source)"),
        ("report", "Markdown table of record files (default: those that came with the source)"),
    ):
        with_records = add(name, help)
        with_records.add_argument("records", nargs="*", type=Path)
        if name == "figures":
            _common(with_records)
    add_list = add("list", "the cases of a suite")
    add_list.add_argument("--suite", default="quick", help=", ".join(cases.SUITES))
    return top


def _common(to: argparse.ArgumentParser, budget: bool = False) -> None:
    to.add_argument("--out", type=Path, default=argparse.SUPPRESS, help=f"folder for records and figures ({OUT})")
    if budget:
        to.add_argument("--budget", type=seconds, default=argparse.SUPPRESS, help="time to use, such as 8m (default)")


def _cases(to: argparse.ArgumentParser, suite: str | None) -> None:
    to.add_argument("--suite", default=suite, help=", ".join(cases.SUITES))
    to.add_argument("--case", help="case names, separated by commas, in place of a suite")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; exit status 0, 1 where a gate failed, 2 for wrong usage."""
    top = parser()
    given = top.parse_args(arguments)
    out: Path = getattr(given, "out", OUT)
    began = time.monotonic()
    budget: float = getattr(given, "budget", 480.0)
    try:
        if given.quick and given.command is None:
            failures = jobs.quick(out, budget)
        elif given.command is None:
            top.print_help()
            return 2
        else:
            failures = _command(given, out, began + budget)
    except (ValueError, OSError, jobs.NeedsGPU) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    for failure in failures:
        print(f"FAILED {failure}")
    if given.quick:
        print(f"bench: {'FAILED' if failures else 'passed'} in {time.monotonic() - began:.0f} s; records in {out}")
    return 1 if failures else 0


def _command(given: argparse.Namespace, out: Path, deadline: float) -> list[str]:
    if given.command == "check":
        some = given.suite or given.case
        if given.dry and some:
            raise ValueError("--dry has cases of its own: leave out --suite and --case")
        if given.dry or (torch.cuda.is_available() and not some):
            table, failures = first_run(out, deadline - time.monotonic(), given.dry)
        else:
            given.suite = given.suite or "check"
            table, failures = jobs.run_check(_chosen(given), out)
    elif given.command == "run":
        passes = cases.choose(given.passes, cases.PASSES, "pass")
        providers = cases.choose(given.providers, tuple(PROVIDERS), "provider")
        timed, failures = jobs.run_timing(_chosen(given), passes, providers, out, deadline)
        table = report.text(report.HEADINGS, report.timing_rows(timed))
    elif given.command == "resources":
        table, failures = jobs.run_resources(given.arch, out)
    elif given.command == "model":
        from rnn_triton import hardware

        if given.arch not in hardware.RECORDS:
            raise ValueError(f"unknown architecture {given.arch!r}; known: {', '.join(hardware.RECORDS)}")
        table, failures = jobs.model_table(hardware.RECORDS[given.arch]), []
    elif given.command == "host":
        table, failures = jobs.run_host(), []
    elif given.command == "list":
        table, failures = "\n".join(case.name for case in cases.suite(given.suite)), []
    else:
        found = jobs.load(given.records or jobs.recorded())
        timing = list(rows(found))
        failures = []
        if given.command == "figures":
            table = jobs.make_figures(timing, [r for r in found if r["kind"] == "training"], out)
        else:
            table = report.timing_markdown(timing) if timing else "no timing records"
    print(table)
    return failures


def _chosen(given: argparse.Namespace) -> list[cases.Case]:
    chosen = [cases.parse(name) for name in given.case.split(",")] if given.case else list(cases.suite(given.suite))
    if hasattr(given, "dtype") and not given.case:
        dtypes = cases.choose(given.dtype, cases.DTYPES, "dtype")
        chosen = [case for case in chosen if case.dtype in dtypes]
    return chosen


if __name__ == "__main__":
    sys.exit(main())
