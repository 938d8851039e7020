"""The job of `make bench`: correctness, then measurements (or compiled resources and estimates), training, the page."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from rnn_triton.plan import hardware

from .cases import case as cases
from .cases import suites
from .compiled.job import run_resources
from .measure import digits
from .measure.job import run_check, run_host, run_timing
from .model.job import fit_table, model_table
from .records import environment
from .records.rows import Row, geomean, rows
from .records.schema import OURS
from .records.store import RESULTS, Writer, known, load
from .show import formats, tables
from .show.job import make_report
from .show.rows_in_words import PASS_TITLES, arithmetic

AFTER_TIMING = 60.0  # seconds of a budget kept for training, host cost, figures
QUICK_PROVIDERS = ("rnn_triton", "cudnn", "cudnn-layers")  # of `make bench`
IN_SHORT = "IN SHORT"
NAMED = 3  # cases and failures that the summary names


def quick(out: Path, budget: float) -> list[str]:
    """The job of `make bench`, within about `budget` seconds; says what it does first, prints as it goes, ends with a summary of 40
    lines at most, and returns the failures."""
    deadline = time.monotonic() + budget
    out.mkdir(parents=True, exist_ok=True)
    sections, failures = [], []
    gpu = torch.cuda.is_available()
    small = suites.suite("check")
    second = f"times of 15 networks, ours and cuDNN: {max(1.0, (budget - AFTER_TIMING) / 60):.0f} minutes at most"
    parts = (
        f"{len(small)} small networks against fp64: {'seconds' if gpu else 'about 2 minutes, by an interpreter, for there is no GPU'}",
        second if gpu else "the kernels compiled for an H200, and what a model expects of them, nothing timed: about 2 minutes",
        "handwritten digits, trained with ours and with torch: about a minute", "what Python takes for a call: seconds",
        f"one page of all records, with tables and figures, in {out}: seconds",
    )  # fmt: skip
    print("what follows, in this order, with times that are estimates:", *(f"  {i}. {part}" for i, part in enumerate(parts, 1)), sep="\n", flush=True)

    def show(text: str) -> None:
        sections.append(text)
        print(f"\n{text}", flush=True)

    table, failed = run_check(small, out)
    show(table)
    failures += failed
    short = [f"correct: {len(small) - len(failed)} of {len(small)} small networks agree with fp64, in y, hn and every gradient"]

    if gpu:
        _, failed = run_timing(suites.suite("quick"), cases.PASSES, QUICK_PROVIDERS, out, deadline - AFTER_TIMING)
    else:
        table, failed = run_resources("sm_90", out, few=True)
        show(table)
        short.append(f"compiled: the kernels of an H200, {len(failed) or 'none'} of them with spills or errors")
        show(model_table(hardware.RECORDS["sm_90"], suites.suites("quick,stack")))
    failures += failed

    table, failed, outcome = _train(out)
    show(table)
    failures += failed
    if outcome:
        short.append("digits: test accuracy " + ", ".join(f"{100 * share:.1f} % with {name}" for name, share in outcome.accuracy.items()))
    show(run_host())

    found = load(known(out))
    timing = rows(found)
    if timing:
        show(fit_table(found))
        source = "measured by this run or recorded earlier" if gpu else "recorded earlier, not measured by this run"
        print(f"\nrnn_triton against torch.nn.RNN on cuDNN, {source}:")
        print(formats.text(tables.HEADINGS, tables.timing_rows(timing)))
        short += [f"speed, {source}:", *_speed(timing)]
    else:
        short.append(f"no recorded GPU results in bench/{RESULTS.name}: no speed is shown, and no figures of speed")
    page = make_report(found, out, sections)
    named = [*failures[:NAMED], *[f"and {len(failures) - NAMED} more, listed above"] * (len(failures) > NAMED)]
    short += [f"failed: {'; '.join(named) or 'nothing'}", page]
    print("\n".join(("", *(f"FAILED {failure}" for failure in failures), IN_SHORT, *(line for text in short for line in textwrap.wrap(text, formats.WIDTH, subsequent_indent="    ")[:4]))))
    return failures


def _speed(timing: Sequence[Row]) -> list[str]:
    """A line for each pass and arithmetic of how ours compares with the best of cuDNN, and one of where it loses"""
    ours = [row for row in timing if row.provider == OURS]
    groups: dict[str, list[Row]] = {}
    for row in ours:
        groups.setdefault(f"{PASS_TITLES[row.pass_]}, {arithmetic(row)}", []).append(row)
    lines = []
    for name, mine in sorted(groups.items()):
        if mean := geomean(mine):
            compared = [row.speedup for row in mine if row.speedup]
            ends = f" ({mean[1][0]:.2f} to {mean[1][1]:.2f})" if mean[1] else ""
            lines.append(
                f"  {name}: as fast as cuDNN {mean[0]:.2f} times{ends} in the geometric mean of {len(compared)} networks, "
                f"from {min(compared):.2f} to {max(compared):.2f}"
            )
    slow = sorted((row.speedup, f"{row.case} {row.pass_} ({row.speedup:.2f})") for row in ours if row.speedup and row.speedup < 1)
    return lines + [f"  slower than cuDNN: {len(slow)}, the slowest {', '.join(name for _, name in slow[:NAMED])}" if slow else "  slower than cuDNN: none"]


def _train(out: Path) -> tuple[str, list[str], digits.Outcome | None]:
    """(what training says, what failed, the outcome)"""
    path = digits.example()
    if path is None:
        return "examples/digits.py is not here (an installed wheel has no examples): nothing was trained", [], None
    device = environment.best_device()
    with Writer(out / "training.jsonl", environment.new_run(), environment.describe(device)) as writer:
        outcome = digits.train(digits.load(path), device, writer)
    return _training_text(outcome), outcome.failures, outcome


def _training_text(outcome: digits.Outcome) -> str:
    body = [(name, f"{accuracy:.2%}", f"{outcome.seconds[name]:.1f} s") for name, accuracy in outcome.accuracy.items()]
    ran = "".join(f"\n{name} ran: {what}" for name, what in outcome.ran.items())
    steps = outcome.steps
    return (
        f"handwritten digits, mean over {outcome.seeds} seed(s), same initial weights, batches and recipe:\n"
        + formats.text(("net", "test accuracy", "training"), body)
        + ran
        + f"\ndifference {100 * outcome.difference:+.2f} points; three steps, {steps['ran']}: losses within "
        f"{steps['loss_difference']:.1e}, weights within {steps['weight_difference']:.1e} of fp64 torch.nn.RNN "
        f"(tolerance {steps['tolerance']:.1e})"
    )
