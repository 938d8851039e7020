"""Jobs that measure: the gate of a suite, timing on a GPU, the host's cost."""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from rnn_triton.interpret import interpreter
from rnn_triton.plan import hardware

from ..cases import case as cases
from ..command import Answer, NeedsGPU
from ..instruments.progress import Progress
from ..instruments.worker import Worker, WorkerError
from ..providers.registry import PROVIDERS, give_up
from ..records import environment, schema
from ..records.environment import PACKAGE
from ..records.rows import Row, rows
from ..records.schema import OURS
from ..records.store import Writer, known, load
from ..show import formats
from ..show.tables import HEADINGS, timing_rows
from . import check, host, profiled, schedule
from .compiling import calls_of, compile_calls
from .run import fault, model_estimate, run

CHECK_TIMEOUT = 120.0  # seconds a case
COMPILING = 0.35  # of a budget, at most, for compiling
ASKING = 60.0  # seconds for a provider to say whether it is here


def check_case(asked: tuple[cases.Case, str]) -> dict[str, Any]:
    """The fields of one check record of a case and provider; runs in a worker."""
    case, name = asked
    device, provider = environment.best_device(), PROVIDERS[name]
    why = {"missing": provider.missing(device), "unsupported": provider.unsupported(case)}
    if status := next(filter(why.get, why), ""):
        return {"status": status, "message": why[status]}
    plan, verdict = provider.plan(case, device), check.gate_of_sizes(case, provider, device)
    if name != OURS:
        ran = provider.label
    elif device.type == "cuda":
        ran = f"Triton kernels on {torch.cuda.get_device_name(device)}"
    else:
        ran = "Triton kernels by the interpreter" if interpreter.active() else "torch on the CPU"
    status = "ok" if verdict.ok else "wrong"
    return {"status": status, "message": verdict.message, "errors": verdict.errors, "implementation": ran, "plan": plan}


def run_check(chosen: Sequence[cases.Case], out: Path, providers: Sequence[str] = (OURS,)) -> tuple[str, list[str]]:
    """(table, failures) of rnn_triton's kernels, or of other providers, against the fp64 reference: on the GPU, or else by the interpreter."""
    todo = [(case, name) for case in chosen for name in providers]
    device = environment.best_device()
    settings = {} if device.type == "cuda" else {"TRITON_INTERPRET": "1"}
    with Writer(out / "check.jsonl", environment.new_run(), environment.describe(device)) as writer:
        with Worker(check_case, settings) as worker, Progress("checking", len(todo)) as progress:
            for case, name in todo:
                progress.now(case.name)
                try:
                    found = worker.call((case, name), CHECK_TIMEOUT)
                except WorkerError as error:
                    found = {"status": error.status, "message": str(error)}
                record = writer.write("check", **schema.blank("check", case=case.name, shape=vars(case), provider=name, **found))
                progress.step(failed=record["status"] != "ok")
    records = load([out / "check.jsonl"])
    bad = [r for r in records if r["status"] not in ("ok", "ok" if r["provider"] == OURS else "unsupported")]
    failures = [f"check: {r['case']}: {r['status']}: {r['message']}" for r in bad]
    verdicts = [(r["case"], check.Verdict(r["errors"], r["message"])) for r in records]
    table = formats.text(("case", "worst", "error", "tolerance", "verdict"), check.summary(verdicts))
    return f"y, hn and all gradients against fp64, {', '.join(sorted({r['implementation'] for r in records}))}:\n{table}", failures


def needs_gpu() -> None:
    """NeedsGPU, with what works without, where there is none."""
    if not torch.cuda.is_available():
        raise NeedsGPU(
            "timing needs a CUDA GPU and there is none; what works without: "
            f"python -m {PACKAGE} check | resources | model | explain | host | figures | report | compare"
        )


def run_timing(
    chosen: Sequence[cases.Case], passes: Sequence[str], providers: Sequence[str], out: Path, deadline: float,
    again: bool = False, repeats: int = 1, alone: float = cases.ALONE,
) -> tuple[list[Row], list[str]]:  # fmt: skip
    """(rows, failures) of the cases on the GPU: those without a record of this source and these versions, the most
    informative first, as many as `deadline` on time.monotonic() allows.  `again`: also those that are recorded.  `repeats`: each
    in so many runs, one run of all after the other.  `alone`: seconds that each provider runs by itself in each pass."""
    needs_gpu()
    began = time.monotonic()
    described = environment.describe(environment.best_device())
    estimate = model_estimate(hardware.of(environment.best_device()))
    before = load(known(out))
    here = providers_here(providers)
    took = schedule.took(before)
    slower = 1.0  # than expected, as seen so far
    found: list[dict[str, Any]] = []
    todo: list[cases.Job] = []

    def seconds(job: cases.Job) -> float:
        return slower * schedule.seconds_of(job, took, runs)

    def runs(name: str, case: cases.Case) -> bool:
        return not here[name].missing and not PROVIDERS[name].unsupported(case)

    for number in range(1, repeats + 1):
        done = frozenset() if again else schedule.done([*before, *found], described, here, number)
        todo = [dataclasses.replace(job, alone=alone) for job in schedule.jobs(chosen, passes, providers, done)]
        waiting = {job.case for job in todo}
        todo = schedule.ordered(todo, [case for case in chosen if case not in waiting])
        which = f"run {number} of {repeats}, " if repeats > 1 else ""
        print(f"{which}{len(chosen)} cases: {len(chosen) - len(todo)} recorded already", flush=True)
        with Writer(out / "timing.jsonl", environment.new_run(), described, fresh=False) as writer:
            while todo:  # wave after wave of what fits, each compiled before it is timed
                budget = deadline - time.monotonic()
                fit, rest = schedule.fitting(todo, (1 - COMPILING / 2) * budget, seconds)
                fit, rest = (fit, rest) if fit or found else (todo[:1], todo[1:])
                if not fit or budget <= 0:
                    break
                print(f"{len(fit)} by estimate fit into {budget:.0f} s, {len(rest)} do not", flush=True)
                _compile(fit, [name for name in here if not here[name].missing], COMPILING * budget)
                start, expected = time.monotonic(), {job: seconds(job) for job in fit}
                of_wave, late = run(fit, writer, deadline, seconds=seconds, estimate=estimate, eager=not found)
                found, todo = [*found, *of_wave], [*late, *rest]
                if not of_wave:
                    break
                slower *= max(1.0, (time.monotonic() - start) / sum(s for job, s in expected.items() if job not in late))
        if todo:
            print(f"the budget ended before {len(todo)} cases, and the same command goes on with them: " + ", ".join(job.case.name for job in todo))
            if (longest := max(map(seconds, todo))) > deadline - began:
                print(f"one of them is expected to take {longest:.0f} s by itself: give it a larger --budget")
            break
    failures = [f"{r['case']} {r['pass']}: {why}" for r in found if r["provider"] == OURS and (why := fault(r))]
    names = {case.name for case in chosen}
    same = [r for r in load(known(out)) if r["kind"] == "timing" and r["environment"]["device"] == described["device"]]
    return [row for row in rows(same) if row.case in names and row.pass_ in passes], failures


def providers_here(names: Iterable[str]) -> dict[str, schedule.Here]:
    """Each provider as it is on this machine, asked in a process of its own: an import can hang, or end its process."""
    found = {}
    with Worker(_here) as worker:
        for name in names:
            try:
                missing = worker.call(name, ASKING)
            except WorkerError as error:
                give_up(name, missing := f"importing it failed: {error}")
            found[name] = schedule.Here(missing, PROVIDERS[name].version())
    return found


def _here(name: str) -> str:
    return PROVIDERS[name].missing(environment.best_device())


def _compile(wave: Sequence[cases.Job], here: Sequence[str], seconds: float) -> None:
    failed, cut = compile_calls(calls_of(wave, here), seconds)
    for call, message in failed.items():
        print(f"compiling {call.case.name} for {call.provider}: {message}", file=sys.stderr)
    if cut:
        print(f"compiling took its time: {cut} calls are left, and compile when they run", flush=True)


def run_host() -> str:
    """A line on own host cost per call, measured here."""
    found = host.measure()
    parts = [
        f"{name} {found[name][1]:.0f} us (target {target:.0f}; an autograd.Function that does nothing: "
        f"{found[f'empty {name}'][1]:.0f}; a module LSTM: {found[f'lstm {name}'][1]:.0f})"
        for name, target in host.TARGETS_US.items()
    ]
    return f"host cost per call on this CPU, launches and GEMMs replaced by torch.empty, medians: {'; '.join(parts)}"


def run_command(given: argparse.Namespace, out: Path, deadline: float) -> Answer:
    needs_gpu()
    providers = tuple(PROVIDERS) if given.providers == "all" else given.own
    if given.profile:
        return profiled.run(given.profile, given.cases[0], given.passes, providers, out)
    how = (given.again, given.repeats, cases.ENERGY if given.energy else cases.ALONE)
    timed, failures = run_timing(given.cases, given.passes, providers, out, deadline, *how)
    return formats.text(HEADINGS, timing_rows(timed)), failures


def host_command(given: argparse.Namespace, out: Path, deadline: float) -> Answer:
    return run_host(), []


def compare_command(given: argparse.Namespace, out: Path, deadline: float) -> Answer:
    from ..records import compare, statistics  # numpy, which only this and fits need

    a, b = (compare.load(name, known(out)) for name in (given.A, given.B))
    found = compare.compare(a, b, None if given.providers == "all" else given.own, given.within or statistics.BAND)
    for problem in (*found.a.problems, *found.b.problems):
        print(f"skipped {problem}", file=sys.stderr)
    text = [formats.text(compare.HEADINGS, compare.body(found)), "", *compare.summary(found)]
    return "\n".join(text), [f"{pair.case} {pair.pass_} {pair.provider}: {pair.verdict}" for pair in found.regressions]
