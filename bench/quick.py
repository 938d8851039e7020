"""The job of `make bench`: correctness, then measurements (or compiled resources and estimates), training, the page."""

from __future__ import annotations

import time
from pathlib import Path

import torch

from .cases import case as cases
from .cases import suites
from .compiled.job import run_resources
from .measure import digits
from .measure.job import run_check, run_host, run_timing
from .model.job import architecture, fit_table, model_table
from .records import environment
from .records.rows import rows
from .records.store import RESULTS, Writer, known, load
from .show import formats, tables
from .show.job import make_report

AFTER_TIMING = 60.0  # seconds of a budget kept for training, host cost, figures
QUICK_PROVIDERS = ("rnn_triton", "cudnn", "cudnn-layers")  # of `make bench`


def quick(out: Path, budget: float) -> list[str]:
    """The job of `make bench`, within about `budget` seconds; prints as it goes and returns the failures."""
    deadline = time.monotonic() + budget
    out.mkdir(parents=True, exist_ok=True)
    sections, failures = [], []
    gpu = torch.cuda.is_available()

    def show(text: str) -> None:
        sections.append(text)
        print(f"\n{text}", flush=True)

    table, failed = run_check(suites.suite("check"), out)
    show(table)
    failures += failed

    if gpu:
        _, failed = run_timing(suites.suite("quick"), cases.PASSES, QUICK_PROVIDERS, out, deadline - AFTER_TIMING)
        failures += failed
    else:
        table, failed = run_resources("sm_90", out, few=True)
        show(table)
        failures += failed
        show(model_table(architecture("sm_90"), suites.suites("quick,stack")))

    table, failed = _train(out)
    show(table)
    failures += failed
    show(run_host())

    found = load(known(out))
    timing = rows(found)
    if timing:
        show(fit_table(found))
        source = "measured by this run or recorded earlier" if gpu else "recorded earlier, not measured by this run"
        print(f"\nrnn_triton against torch.nn.RNN on cuDNN, {source}:")
        print(formats.text(tables.HEADINGS, tables.timing_rows(timing)))
        for table_ in (tables.summary(timing), tables.losses(timing), tables.far_from_floor(timing)):
            print(f"\n{table_.title}:\n{formats.text(table_.headings, table_.body) if table_.body else 'none'}")
    else:
        show(f"no recorded GPU results in bench/{RESULTS.name}: no speed is shown, and no figures of speed")
    print(f"\n{make_report(found, out, sections)}")
    return failures


def _train(out: Path) -> tuple[str, list[str]]:
    """(what training says, what failed)"""
    path = digits.example()
    if path is None:
        return "examples/digits.py is not here (an installed wheel has no examples): nothing was trained", []
    device = environment.best_device()
    with Writer(out / "training.jsonl", environment.new_run(), environment.describe(device)) as writer:
        outcome = digits.train(digits.load(path), device, writer)
    return _training_text(outcome), outcome.failures


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
