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
from .records import Writer, sampled
from .worker import Worker, WorkerError, at, in_words

CASE_TIMEOUT = 120.0  # seconds, every provider and pass of one case, a first CUDA start-up included
SAMPLE_SECONDS = 0.25  # of measuring per (case, pass, kind of time), all providers together

Fields = dict[str, Any]


# ---- one case, in a worker ------------------------------------------------------------------------------------------


def measure(job: Job, device: torch.device = torch.device("cuda"), clock: Any = timing) -> list[Fields]:
    """The fields of one timing record per (provider, pass) of a case; runs in the worker.

    `clock`: timing.py, or what has its functions."""
    began = time.monotonic()
    case, short = job.case, job.case.at(max(1, job.case.T // 4))
    records = {(name, pass_): blank(case, pass_, name) for name in job.providers for pass_ in job.passes}
    ready = [name for name in job.providers if _is_here(name, case, device, [records[name, p] for p in job.passes])]
    if ready:
        inputs, few = tensors(case, device), tensors(short, device)
        truth = check.reference(case, inputs)
        sessions = {}
        for name in ready:
            at(name)
            found = _session(name, case, short, inputs, few, truth, device, [records[name, p] for p in job.passes])
            if found is not None:
                sessions[name] = found
        at(None)
        flush = clock.Flush(device)
        with clock.Telemetry(device) as telemetry:
            for pass_ in job.passes:
                of_pass = {name: records[name, pass_] for name in sessions}
                _time(pass_, sessions, of_pass, short.T, clock, flush)
        clock.synchronize()  # raises where a failure above broke the context: the worker is then replaced
        for name in sessions:
            for pass_ in job.passes:
                records[name, pass_]["telemetry"] = telemetry.medians
    for record in records.values():
        record["seconds"] = time.monotonic() - began
    return list(records.values())


def _is_here(name: str, case: Case, device: torch.device, records: list[Fields]) -> bool:
    """Can the provider run the case?  The records say why not."""
    provider = PROVIDERS[name]
    for status, why in (("missing", provider.missing(device)), ("unsupported", provider.unsupported(case))):
        if why:
            fail(records, status, why)
            return False
    return True


def _session(
    name: str, case: Case, short: Case, inputs: Any, few: Any, truth: Any, device: torch.device, records: list[Fields]
) -> tuple[Any, Any] | None:
    """A session of the case and one of it over fewer steps, judged; None where there is none, and the records say why."""
    provider = PROVIDERS[name]
    try:
        sessions = provider.session(case, inputs), provider.session(short, few)
        plan = provider.plan(case, device)
        verdicts = {record["pass"]: check.judge(case, sessions[0], record["pass"], truth) for record in records}
        for record in records:
            _call(sessions[1], record["pass"])()  # what cannot run fails here, where it is known whose it is
    except NotImplementedError as error:  # UnsupportedError is one
        fail(records, "unsupported", str(error))
        return None
    except Exception as error:  # compilers and libraries raise their own
        fail(records, "error", in_words(error))
        return None
    for record in records:
        verdict = verdicts[record["pass"]]
        record |= {"plan": plan, "errors": verdict.errors}
        if not verdict.ok:
            record |= {"status": "wrong", "message": verdict.message}
    return sessions


def _time(pass_: str, sessions: Any, records: dict[str, Fields], short_T: int, clock: Any, flush: Any) -> None:
    """Fill the records of a pass with times, memory and kernels."""
    calls = {name: _call(full, pass_) for name, (full, _) in sessions.items()}
    short_calls = {name: _call(few, pass_) for name, (_, few) in sessions.items()}
    samples = clock.device_us(calls, flush, SAMPLE_SECONDS)
    short_samples = clock.device_us(short_calls, flush, SAMPLE_SECONDS / 2)
    wall = clock.wall_us(calls, SAMPLE_SECONDS / 2)
    graphs = {}
    for name, call in calls.items():
        captured = PROVIDERS[name].captured
        records[name] |= {
            "device_us": sampled(samples[name]), "short_T": short_T, "short_us": sampled(short_samples[name]),
            "wall_us": sampled(wall[name]), "kernels": clock.kernels(call),
            "peak_bytes": None if captured else clock.peak_bytes(call),  # a replay allocates nothing
        }  # fmt: skip
        if not captured:
            try:
                graphs[name] = clock.capture(call).replay
            except RuntimeError as error:
                records[name]["message"] += f" graph capture failed: {error}"
    for name, times in clock.device_us(graphs, flush, SAMPLE_SECONDS).items():
        records[name]["graph_us"] = sampled(times)


def _call(session: Any, pass_: str) -> Callable[[], object]:
    return session.forward if pass_ == "fwd" else session.train


def blank(case: Case, pass_: str, provider: str) -> Fields:
    """The fields of a timing record with nothing measured"""
    return {
        "case": case.name, "shape": dataclasses.asdict(case), "pass": pass_, "provider": provider,
        "status": "ok", "message": "", "version": PROVIDERS[provider].version(), "device_us": sampled(), "graph_us": sampled(),
        "wall_us": sampled(), "short_T": None, "short_us": sampled(), "peak_bytes": None, "errors": {}, "plan": None,
        "kernels": [], "floor_us_per_step": None, "practical_us_per_step": None, "parts_us_per_step": {},
        "telemetry": {}, "seconds": 0.0,
    }  # fmt: skip


def fail(records: Iterable[Fields], status: str, message: str) -> None:
    for record in records:
        record |= {"status": status, "message": message}


# ---- many cases, from outside ---------------------------------------------------------------------------------------


def run(
    jobs: Sequence[Job],
    writer: Writer,
    deadline: float,
    *,
    seconds: Callable[[Job], float] = lambda job: 1.0,
    function: Callable[[Job], list[Fields]] = measure,
    estimate: Callable[[Case, str], Fields] = lambda case, pass_: {},
    timeout: float = CASE_TIMEOUT,
    clock: Callable[[], float] = time.monotonic,
) -> tuple[list[Fields], list[Job]]:
    """(records, jobs left out because `deadline`, on `clock`, came first). A failed case costs itself alone.

    `function` runs in the worker.  `seconds`: how long a job is expected to take; what those that are done took corrects
    it, and a job that no longer fits is left out for shorter ones after it.  `estimate`: the latency model's fields of a
    case and pass.
    """
    records: list[Fields] = []
    left: list[Job] = []
    expected = [seconds(job) for job in jobs]
    behind = took = 0.0  # of the jobs that are done, expected and real; less the first one, which pays for the start of CUDA
    with Worker(function) as worker, Progress("measuring", len(jobs), weights=expected, clock=clock) as progress:
        for number, job in enumerate(jobs):
            began = clock()
            scale = took / behind if behind else 1.0
            if began + scale * expected[number] > deadline:
                left.append(job)
                progress.step()
                continue
            progress.now(job.case.name)
            failed = False
            found = _attempts(job, worker, timeout, lambda: deadline - clock())
            if found is None:
                left.append(job)
                progress.step()
                continue
            for fields in found:
                if fields["provider"] == "rnn_triton":
                    fields |= estimate(job.case, fields["pass"])
                records.append(writer.write("timing", **fields))
                failed |= fields["status"] not in ("ok", "unsupported", "missing")
            if number:
                behind, took = behind + expected[number], took + clock() - began
            progress.step(failed)
    return records, left


def _attempts(job: Job, worker: Worker, timeout: float, left: Callable[[], float]) -> list[Fields] | None:
    """The fields of every (provider, pass) of a job; None where the time that is `left` ended first.

    A provider that crashes or hangs, if it can be told, costs itself: the others are measured again without it."""
    failed: list[Fields] = []
    providers = job.providers
    while providers:
        allowed = min(timeout, max(0.0, left()))
        try:
            return failed + worker.call(dataclasses.replace(job, providers=providers), allowed)
        except WorkerError as error:
            if error.status == "timeout" and allowed < timeout:
                return None
            guilty = [error.at] if error.at in providers else list(providers)
            those = [blank(job.case, pass_, name) for name in guilty for pass_ in job.passes]
            fail(those, error.status, str(error))
            failed += those
            providers = tuple(name for name in providers if name not in guilty)
    return failed


def model_estimate(device: Any) -> Callable[[Case, str], Fields]:
    """`estimate` of run() by the latency model, for a hardware.Device; nothing where rnn_triton has no plan."""

    def estimate(case: Case, pass_: str) -> Fields:
        try:
            found = model.of_case(case, pass_, device)
        except NotImplementedError:
            return {}
        return {
            "floor_us_per_step": found.floor_us, "practical_us_per_step": found.practical_us,
            "parts_us_per_step": found.parts,
        }  # fmt: skip

    return estimate
