"""Runs cases: gates, times, and writes a record as soon as each is known."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

from . import check, model, timing
from .cases import Case, Job
from .progress import Progress
from .providers import PROVIDERS, tensors
from .records import Writer
from .worker import Worker, WorkerError

CASE_TIMEOUT = 120.0  # seconds, every provider and pass of one case, a first CUDA start-up included
SAMPLE_SECONDS = 0.25  # of measuring per (case, pass, kind of time), all providers together


def measure(job: Job, device: torch.device = torch.device("cuda"), clock: Any = timing) -> list[dict[str, Any]]:
    """The fields of one timing record per (provider, pass) of a case; runs in the worker.

    `clock`: timing.py, or what has its functions."""
    case, short = job.case, max(1, job.case.T // 4)
    inputs = tensors(case, device)
    truth = check.reference(case, inputs)
    records = {}
    sessions, short_sessions = {}, {}
    for name in job.providers:
        provider = PROVIDERS[name]
        fields = [blank(case, pass_, name) for pass_ in job.passes]
        for record in fields:
            records[name, record["pass"]] = record
        if reason := provider.missing(device):
            fail(fields, "unsupported", reason)
            continue
        try:
            sessions[name] = provider.session(case, inputs)
            short_sessions[name] = provider.session(case.at(short), tensors(case.at(short), device))
            plan = provider.plan(case, device)
            verdict = check.compare(case, sessions[name].train(), truth)
        except RuntimeError as error:  # NotImplementedError, of which UnsupportedError is one, is a RuntimeError
            unsupported = isinstance(error, NotImplementedError)
            fail(fields, "unsupported" if unsupported else "error", str(error))
            sessions.pop(name, None)
            continue
        for record in fields:
            record |= {"plan": plan, "errors": verdict.errors}
            if not verdict.ok:
                record |= {"status": "wrong", "message": verdict.message}
    flush = clock.Flush(device)
    for pass_ in job.passes:
        method = "forward" if pass_ == "fwd" else "train"
        calls = {name: getattr(session, method) for name, session in sessions.items()}
        short_calls = {name: getattr(short_sessions[name], method) for name in sessions}
        samples = clock.device_us(calls, flush, SAMPLE_SECONDS)
        short_samples = clock.device_us(short_calls, flush, SAMPLE_SECONDS / 2)
        wall = clock.wall_us(calls)
        for name, call in calls.items():
            record = records[name, pass_]
            record |= {
                "device_us": samples[name], "short_T": short, "short_us": short_samples[name], "wall_us": wall[name],
                "peak_bytes": clock.peak_bytes(call), "kernels": clock.kernels(call),
            }  # fmt: skip
        graphs = {}
        for name, call in calls.items():
            try:
                graphs[name] = clock.capture(call).replay
            except RuntimeError as error:
                records[name, pass_]["message"] += f" graph capture failed: {error}"
        for name, times in clock.device_us(graphs, flush, SAMPLE_SECONDS).items():
            records[name, pass_]["graph_us"] = times
    clock.synchronize()  # raises where a failure above broke the context: the worker is then replaced
    return list(records.values())


def blank(case: Case, pass_: str, provider: str) -> dict[str, Any]:
    """The fields of a timing record with nothing measured"""
    return {
        "case": case.name, "shape": dataclasses.asdict(case), "pass": pass_, "provider": provider,
        "status": "ok", "message": "", "device_us": [], "graph_us": [], "wall_us": [], "short_T": None,
        "short_us": [], "peak_bytes": None, "errors": {}, "plan": None, "kernels": [], "floor_us_per_step": None,
        "practical_us_per_step": None,
    }  # fmt: skip


def fail(records: Iterable[dict[str, Any]], status: str, message: str) -> None:
    for record in records:
        record |= {"status": status, "message": message}


def run(
    cases: Sequence[Case],
    passes: Sequence[str],
    writer: Writer,
    deadline: float,
    *,
    providers: Sequence[str] = tuple(PROVIDERS),
    function: Callable[[Job], list[dict[str, Any]]] = measure,
    estimate: Callable[[Case, str], tuple[float | None, float | None]] = lambda case, pass_: (None, None),
    timeout: float = CASE_TIMEOUT,
    clock: Callable[[], float] = time.monotonic,
) -> tuple[list[dict[str, Any]], list[Case]]:
    """(records, cases left out because `deadline`, on `clock`, came first). A failed case costs itself alone.

    `function` runs in the worker; `estimate` gives (floor, practical) microseconds per step of a case and pass.
    """
    records: list[dict[str, Any]] = []
    longest = 0.0
    with Worker(function) as worker, Progress("measuring", len(cases)) as progress:
        for number, case in enumerate(cases):
            began = clock()
            if began + longest > deadline:
                return records, list(cases[number:])
            progress.now(case.name)
            try:
                found = worker.call(Job(case, tuple(passes), tuple(providers)), min(timeout, deadline - began))
            except WorkerError as error:
                found = [blank(case, pass_, name) for name in providers for pass_ in passes]
                fail(found, error.status, str(error))
            for fields in found:
                floor, practical = estimate(case, fields["pass"])
                fields |= {"floor_us_per_step": floor, "practical_us_per_step": practical}
                records.append(writer.write("timing", **fields))
            if number:  # the first one paid for the start of CUDA
                longest = max(longest, clock() - began)
            progress.step(failed=any(fields["status"] not in ("ok", "unsupported") for fields in found))
    return records, []


def model_estimate(device: Any) -> Callable[[Case, str], tuple[float | None, float | None]]:
    """`estimate` of run() by the latency model, for a hardware.Device."""

    def estimate(case: Case, pass_: str) -> tuple[float | None, float | None]:
        try:
            found = model.of_case(case, pass_, device)
        except NotImplementedError:
            return None, None
        return found.floor_us, found.practical_us

    return estimate
