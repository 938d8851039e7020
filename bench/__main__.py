"""Command line of the benchmark: python -m bench (checkout) or rnn-triton-bench (installed)."""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from . import quick
from .cases import case as cases
from .cases import suites
from .compiled import job as compiled_job
from .first_run.run import first_run
from .measure import job as measure_job
from .model import job as model_job
from .providers.registry import PROVIDERS
from .records import environment, store
from .show import figures, formats, tables
from .show import job as show_job

# beside the results in a checkout; an installed package is no place to write to
OUT = Path(__file__).resolve().parent / "out" if (environment.root() / "pyproject.toml").exists() else Path("bench-out")
BUDGET = 480.0  # seconds
LISTS = ("suites", "cases", "providers", "figures", "results")


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


# ---- arguments ------------------------------------------------------------------------------------------------------


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="bench", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    top.add_argument("--quick", action="store_true", help="the job of `make bench`")
    _common(top, budget=True)
    commands = top.add_subparsers(dest="command")

    def add(name: str, function: Command, help: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=help, description=help)
        added.set_defaults(function=function)
        return added

    with_records = argparse.ArgumentParser(add_help=False)
    with_records.add_argument(
        "records", nargs="*", type=Path, help="record files (default: those that came with the source and those in --out)"
    )
    _common(with_records)

    to_run = add("run", _run, "time cases on the GPU: ours, cuDNN and every peer that is installed")
    _cases(to_run, "quick")
    _common(to_run, budget=True)
    to_run.add_argument("--pass", dest="passes", default=",".join(cases.PASSES), help="fwd,train")
    to_run.add_argument("--dtype", default=",".join(cases.DTYPES), help="bf16,fp16,fp32")
    to_run.add_argument("--providers", default=",".join(PROVIDERS), help=", ".join(PROVIDERS))
    to_run.add_argument("--repeats", type=count, default=1, metavar="N", help="runs of each case, for compare (default 1)")
    to_run.add_argument("--again", action="store_true", help="also what is recorded already")

    to_check = add(
        "check", _check,
        "on a GPU the first thing to run there: protocols, equivalence, speed, constants, faults and graphs, within a "
        "budget; without one, or for a suite or cases: y, hn and all gradients against fp64",
    )  # fmt: skip
    _cases(to_check, None)
    _common(to_check, budget=True)
    to_check.add_argument("--dry", action="store_true", help="all of it without a GPU: tiny, by Triton's interpreter")

    to_draw = commands.add_parser("figures", parents=[with_records], help="draw figures of records: PNG, SVG and PDF")
    to_draw.set_defaults(function=_figures)
    to_draw.add_argument("--only", help=", ".join(figures.FIGURES))
    commands.add_parser(
        "report", parents=[with_records], help="one HTML page of records, with tables as Markdown, LaTeX and CSV beside it"
    ).set_defaults(function=_report)

    to_compare = add("compare", _compare, "ratios of two sides with intervals; exit status 1 where B got slower or broke")
    for side in ("A", "B"):
        to_compare.add_argument(side, help="a record file, a folder of them, or a commit that has records")
    _common(to_compare)
    to_compare.add_argument("--providers", default="rnn_triton", help="all, or names (default: rnn_triton)")
    to_compare.add_argument("--within", type=share, help="the band around 1 beyond which a change counts, such as 2%% (default)")

    to_explain = add("explain", _explain, "a case: its plan, estimates, cuDNN's algorithm, what is recorded and published")
    to_explain.add_argument("case")
    to_explain.add_argument("--arch", help="of a GPU that need not be here: sm_80, sm_90, sm_100, ...")
    _common(to_explain)

    to_list = add("list", _list, "suites, the cases of a suite, providers, figures, recorded results")
    to_list.add_argument("what", nargs="?", help=", ".join(LISTS))
    to_list.add_argument("--suite", help=", ".join(suites.SUITES))
    _common(to_list)

    to_compile = add("resources", _resources, "what every planned kernel uses, compiled ahead of time; needs no GPU")
    to_compile.add_argument("--arch", default="sm_90", help="sm_80, sm_90, sm_100, ...")
    _common(to_compile)
    to_model = commands.add_parser(
        "model", parents=[with_records],
        help="estimated floor and practical us/step of a suite; fitted to records, bottlenecks of what was measured",
    )  # fmt: skip
    to_model.set_defaults(function=_model)
    to_model.add_argument("--arch", default="sm_90")
    to_model.add_argument("--suite", default="quick", help=", ".join(suites.SUITES))
    add("host", _host, "own Python and dispatcher time per call")
    return top


def _common(to: argparse.ArgumentParser, budget: bool = False) -> None:
    to.add_argument("--out", type=Path, default=argparse.SUPPRESS, help=f"folder for records and figures ({OUT})")
    if budget:
        to.add_argument("--budget", type=seconds, default=argparse.SUPPRESS, help="time to use, such as 8m (default)")


def _cases(to: argparse.ArgumentParser, suite: str | None) -> None:
    to.add_argument("--suite", default=suite, help=f"separated by commas, or all: {', '.join(suites.SUITES)}")
    to.add_argument("--case", help=f"case names, separated by commas, in place of a suite and dtypes: {suites.FORM}")


# ---- commands -------------------------------------------------------------------------------------------------------

# (arguments, folder, end of the budget on time.monotonic()) -> (what to show, what failed)
Command = Callable[[argparse.Namespace, Path, float], tuple[str, list[str]]]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; exit status 0, 1 where a gate failed or something got slower, 2 for wrong usage and for a package that is
    not installed, 130 when it was interrupted."""
    top = parser()
    given = top.parse_args(_joined(sys.argv[1:] if arguments is None else arguments))
    out: Path = getattr(given, "out", OUT)
    began = time.monotonic()
    budget: float = getattr(given, "budget", BUDGET)
    try:
        if given.quick and given.command is None:
            failures = quick.quick(out, budget)
        elif given.command is None:
            top.print_help()
            return 2
        else:
            text, failures = given.function(given, out, began + budget)
            print(text)
    except (ValueError, OSError, measure_job.NeedsGPU) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        print(f"bench: {environment.needs(error)}", file=sys.stderr)
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


def _run(given: argparse.Namespace, out: Path, deadline: float) -> tuple[str, list[str]]:
    passes = cases.choose(given.passes, cases.PASSES, "pass")
    providers = cases.choose(given.providers, tuple(PROVIDERS), "provider")
    rows, failures = measure_job.run_timing(_chosen(given), passes, providers, out, deadline, given.again, given.repeats)
    return formats.text(tables.HEADINGS, tables.timing_rows(rows)), failures


def _check(given: argparse.Namespace, out: Path, deadline: float) -> tuple[str, list[str]]:
    some = given.suite or given.case
    if given.dry and some:
        raise ValueError("--dry has cases of its own: leave out --suite and --case")
    if given.dry or (torch.cuda.is_available() and not some):
        return first_run(out, deadline - time.monotonic(), given.dry)
    given.suite = given.suite or "check"
    return measure_job.run_check(_chosen(given), out)


def _figures(given: argparse.Namespace, out: Path, deadline: float) -> tuple[str, list[str]]:
    names = cases.choose(given.only, tuple(figures.FIGURES), "figure") if given.only else None
    return show_job.make_figures(store.load(given.records or store.known(out)), out, names), []


def _report(given: argparse.Namespace, out: Path, deadline: float) -> tuple[str, list[str]]:
    return show_job.make_report(store.load(given.records or store.known(out)), out), []


def _compare(given: argparse.Namespace, out: Path, deadline: float) -> tuple[str, list[str]]:
    from .records import (
        compare,
        statistics,  # numpy, which only this and fits need
    )

    providers = None if given.providers == "all" else cases.choose(given.providers, tuple(PROVIDERS), "provider")
    known = store.known(out)
    found = compare.compare(compare.load(given.A, known), compare.load(given.B, known), providers, given.within or statistics.BAND)
    for problem in (*found.a.problems, *found.b.problems):
        print(f"skipped {problem}", file=sys.stderr)
    text = [formats.text(compare.HEADINGS, compare.body(found)), "", *compare.summary(found)]
    return "\n".join(text), [f"{pair.case} {pair.pass_} {pair.provider}: {pair.verdict}" for pair in found.regressions]


def _explain(given: argparse.Namespace, out: Path, deadline: float) -> tuple[str, list[str]]:
    from .model import explaining

    device = model_job.architecture(given.arch) if given.arch else None
    return explaining.explain(suites.parse(given.case), device, store.load(store.known(out))), []


def _list(given: argparse.Namespace, out: Path, deadline: float) -> tuple[str, list[str]]:
    what = given.what or ("cases" if given.suite else "suites")
    if what not in LISTS:
        raise ValueError(f"unknown list {what!r}; {cases.nearest(what, LISTS)}")
    if what == "cases":
        return "\n".join(case.name for case in suites.suites(given.suite or "all")), []
    if what == "figures":
        return "\n".join(figures.FIGURES), []
    if what == "providers":
        return quick.providers_table(), []
    return (quick.results_table(out) if what == "results" else quick.suites_table()), []


def _resources(given: argparse.Namespace, out: Path, deadline: float) -> tuple[str, list[str]]:
    return compiled_job.run_resources(given.arch, out)


def _model(given: argparse.Namespace, out: Path, deadline: float) -> tuple[str, list[str]]:
    device = model_job.architecture(given.arch)
    found = store.load(given.records or store.known(out))
    return f"{model_job.model_table(device, suites.suites(given.suite))}\n\n{model_job.fit_table(found)}", []


def _host(given: argparse.Namespace, out: Path, deadline: float) -> tuple[str, list[str]]:
    return measure_job.run_host(), []


def _chosen(given: argparse.Namespace) -> list[cases.Case]:
    if given.case:
        return list(dict.fromkeys(suites.parse(name.strip()) for name in given.case.split(",")))
    chosen = list(suites.suites(given.suite))
    if hasattr(given, "dtype"):
        dtypes = cases.choose(given.dtype, cases.DTYPES, "dtype")
        chosen = [case for case in chosen if case.dtype in dtypes]
        if not chosen:
            raise ValueError(f"no case of {given.suite} is in {given.dtype}")
    return chosen


if __name__ == "__main__":
    sys.exit(main())
