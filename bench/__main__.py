"""Command line of the benchmark: python -m bench (checkout) or rnn-triton-bench (installed)."""

from __future__ import annotations

import argparse
import importlib
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import command
from .cases.case import DTYPES, PASSES, choose, nearest
from .cases.suites import SUITES
from .command import Argument, Command, argument
from .providers import registry
from .providers.registry import PROVIDERS
from .records.environment import needs

DEFAULT_BUDGET = 480.0  # seconds


def read(given: argparse.Namespace) -> None:
    """Put what names mean in the place of the names, before anything that takes time is imported; an argument means the same in every
    command.  ValueError with the nearest names."""
    own = [registry.add(where) for where in getattr(given, "provider", ())]
    if getattr(given, "arch", None) and given.arch not in command.ARCHITECTURES:
        raise ValueError(f"unknown architecture {given.arch!r}; known: {', '.join(command.ARCHITECTURES)}")
    if getattr(given, "only", None):
        given.only = choose(given.only, command.FIGURES, "figure")
    if "axis" in given:
        given.axis = choose(given.axis, command.AXES, "axis") if given.axis else None
        given.dtypes = choose(given.dtypes, DTYPES, "dtype") if given.dtypes else DTYPES
    if "what" in given:
        given.what = given.what or ("cases" if given.suite else "suites")
        if given.what not in command.LISTS:
            raise ValueError(f"unknown list {given.what!r}; {nearest(given.what, command.LISTS)}")
    if "passes" in given:
        given.passes = choose(given.passes, PASSES, "pass")
    if getattr(given, "providers", "all") != "all":
        own = [*choose(given.providers, tuple(PROVIDERS), "provider"), *own]
    given.own = list(dict.fromkeys(own))
    if "suite" in given or "case" in given:
        given.cases = command.cases_of(given)
    if getattr(given, "profile", None) and len(given.cases) != 1:
        raise ValueError(f"--profile is of one case, got {len(given.cases)}: name it by --case")


_PROVIDERS = argument("--providers", default="all", help=f"all (default), or separated by commas: {', '.join(PROVIDERS)}")
_SIDE = "a record file, a folder of them, or a commit that has records"
_SUITE = argument("--suite", help=", ".join(SUITES))
# As data: what a command runs is imported when it runs, for torch takes seconds, and --help, lists and typos are to be fast.
_COMMANDS = (
    Command("run", "time cases on the GPU: ours, cuDNN and every peer that is installed", "measure.job:run_command", (
        *command.case_arguments("quick"), command.BUDGET, command.PROVIDER, _PROVIDERS,
        argument("--pass", dest="passes", default=",".join(PASSES), help="fwd,train"),
        argument("--dtype", default=",".join(DTYPES), help="bf16,fp16,fp32"),
        argument("--repeats", type=command.count, default=1, metavar="N", help="runs of each case, for compare (default 1)"),
        argument("--again", action="store_true", help="also what is recorded already"),
        argument("--energy", action="store_true", help="run each provider alone for seconds more, which tells the energy of a step"),
        argument("--profile", choices=("nsys", "ncu"), help="one case under NVIDIA's profiler, with a range for each provider and pass"),
    )),
    Command(
        "check", "on a GPU the first thing to run there: protocols, equivalence, speed, settings and faults, within a budget; without "
        "one, or for a suite or cases: y, hn and all gradients against fp64", "first_run.run:check_command",
        (*command.case_arguments(None), command.BUDGET, command.PROVIDER),
    ),
    Command("compare", "ratios of two sides with intervals; exit status 1 where B got slower or broke", "measure.job:compare_command", (
        argument("A", help=_SIDE),
        argument("B", help=_SIDE),
        argument("--providers", default="rnn_triton", help="all, or names (default: rnn_triton)"),
        argument("--within", type=command.share, help="the band around 1 beyond which a change counts, such as 2%% (default)"),
    )),
    Command("host", "own Python and dispatcher time per call", "measure.job:host_command"),
    Command(
        "figures", "draw figures of records: PNG, SVG and PDF", "show.job:figures_command",
        (
            command.RECORDS, argument("--only", help=", ".join(command.FIGURES)), _SUITE, argument("--dtype", dest="dtypes", help="bf16,fp16,fp32"),
            argument("--paper", choices=command.PAPERS, default="text", help="3.35 inches wide, 7, or 9 for a page turned on its side"),
            argument("--pass", dest="passes", default=",".join(PASSES), help="fwd,train"),
            argument("--providers", dest="shown", help="these alone; a speedup stays over cuDNN"),
            argument("--axis", help=f"figures over these sizes alone: {', '.join(command.AXES)}"),
        ),
    ),
    Command("report", "one HTML page of records, with tables as Markdown, LaTeX and CSV beside it", "show.job:report_command", (command.RECORDS,)),
    Command(
        "explain", "a case: its plan, estimates, cuDNN's algorithm, what is recorded and published", "model.job:explain_command",
        (argument("case"), argument("--arch", help="of a GPU that need not be here: sm_80, sm_90, sm_100, ...")),
    ),
    Command(
        "model", "estimated floor and practical us/step of a suite; fitted to records, bottlenecks of what was measured",
        "model.job:model_command", (command.RECORDS, command.ARCH, argument("--suite", default="quick", help=", ".join(SUITES))),
    ),
    Command(
        "list", "suites, the cases of a suite, providers, figures, recorded results", "listing:list_command",
        (argument("what", nargs="?", help=", ".join(command.LISTS)), _SUITE, command.PROVIDER),
    ),
    Command("resources", "what every planned kernel uses, compiled ahead of time; needs no GPU", "compiled.job:resources_command", (command.ARCH,)),
)  # fmt: skip
COMMANDS = {one.name: one for one in _COMMANDS}


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="bench", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    top.add_argument("--quick", action="store_true", help="the job of `make bench`")
    _add(top, (command.OUT_ARGUMENT, command.BUDGET))
    commands = top.add_subparsers(dest="command")
    for name, one in COMMANDS.items():
        _add(commands.add_parser(name, help=one.help, description=one.help), (*one.arguments, command.OUT_ARGUMENT))
    return top


def _add(to: argparse.ArgumentParser, arguments: Sequence[Argument]) -> None:
    for names, how in arguments:
        to.add_argument(*names, **how)


def _function(where: str) -> Any:
    """Of "module:function" in this package"""
    module, _, name = where.partition(":")
    return getattr(importlib.import_module(f".{module}", __package__), name)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; exit status 0, 1 where a gate failed or something got slower, 2 for wrong usage and for a package that is
    not installed, 130 when it was interrupted."""
    top = parser()
    given = top.parse_args(_joined(sys.argv[1:] if arguments is None else arguments))
    out: Path = getattr(given, "out", command.OUT)
    began = time.monotonic()
    budget: float = getattr(given, "budget", DEFAULT_BUDGET)
    try:
        if given.command is not None:
            read(given)
            text, failures = _function(COMMANDS[given.command].run)(given, out, began + budget)
            print(text)
        elif given.quick:
            failures = _function("quick:quick")(out, budget)
        else:
            top.print_help()
            return 2
    except (ValueError, OSError, command.NeedsGPU) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        print(f"bench: {needs(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\nbench: interrupted after {time.monotonic() - began:.0f} s; what was done is kept in {out}", file=sys.stderr)
        return 130
    for failure in () if given.quick else failures:
        print(f"FAILED {failure}")
    if given.quick:
        print(f"bench: {'FAILED' if failures else 'passed'} in {time.monotonic() - began:.0f} s; records in {out}")
    return 1 if failures else 0


def _joined(arguments: Sequence[str]) -> list[str]:
    """A value like -5m in one word with its option, or argparse takes it for an option, and says that a value is missing"""
    found: list[str] = []
    for word in arguments:
        if found and re.fullmatch(r"--[a-z]+", found[-1]) and re.match(r"-[\d.]", word):
            found[-1] += f"={word}"
        else:
            found.append(word)
    return found


if __name__ == "__main__":
    sys.exit(main())
