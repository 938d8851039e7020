"""Command line of the benchmark: python -m bench (checkout) or rnn-triton-bench (installed)."""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from . import listing, quick
from .command import BUDGET, OUT, OUT_ARGUMENT
from .compiled import job as of_compiled
from .first_run import run as of_first_run
from .measure import job as of_measure
from .model import job as of_model
from .records.environment import needs
from .show import job as of_show

DEFAULT_BUDGET = 480.0  # seconds
_JOBS = (of_measure, of_first_run, of_show, of_model, listing, of_compiled)
COMMANDS = {command.name: command for job in _JOBS for command in job.COMMANDS}


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="bench", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    top.add_argument("--quick", action="store_true", help="the job of `make bench`")
    for names, how in (OUT_ARGUMENT, BUDGET):
        top.add_argument(*names, **how)
    commands = top.add_subparsers(dest="command")
    for name, command in COMMANDS.items():
        added = commands.add_parser(name, help=command.help, description=command.help)
        for names, how in (*command.arguments, OUT_ARGUMENT):
            added.add_argument(*names, **how)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; exit status 0, 1 where a gate failed or something got slower, 2 for wrong usage and for a package that is
    not installed, 130 when it was interrupted."""
    top = parser()
    given = top.parse_args(_joined(sys.argv[1:] if arguments is None else arguments))
    out: Path = getattr(given, "out", OUT)
    began = time.monotonic()
    budget: float = getattr(given, "budget", DEFAULT_BUDGET)
    try:
        if given.quick and given.command is None:
            failures = quick.quick(out, budget)
        elif given.command is None:
            top.print_help()
            return 2
        else:
            text, failures = COMMANDS[given.command].run(given, out, began + budget)
            print(text)
    except (ValueError, OSError, of_measure.NeedsGPU) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        print(f"bench: {needs(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\nbench: interrupted after {time.monotonic() - began:.0f} s; what was done is kept in {out}", file=sys.stderr)
        return 130
    for failure in failures:
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
