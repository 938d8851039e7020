"""Runs cases: gates, times, and writes a record as soon as each is known."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch

from ..cases import estimate as model
from ..cases.case import ALONE, Case, Job
from ..cases.inputs import tensors
from ..instruments import timing
from ..instruments.progress import Progress
from ..instruments.worker import Worker, WorkerError, at, in_words
from ..providers.registry import PROVIDERS
from ..records import schema
from ..records.schema import BASELINES, OURS, sampled
from ..records.store import Writer
from . import check

TIMEOUT = 90.0  # seconds without a sign of life, which a worker gives at every step it takes for a provider
START = 60.0  # seconds more for the first one of a process: imports, CUDA, libraries
SAMPLE_SECONDS = 0.25  # of measuring per (case, pass, kind of time), all providers together
MOST_SECONDS = 25.0  # of measuring one provider and pass: one that is too slow for that is not timed
MOST_PROFILED = 0.1  # seconds of a call under the profiler, which notes every kernel of it

Fields = dict[str, Any]
Key = tuple[str, str]  # provider, pass
NOBODY = "inputs and reference"  # where a worker is when no provider is to blame


def short_of(case: Case) -> Case:
    """The same problem over a quarter of the steps: the slope between both is free of launch cost."""
    return case.at(max(1, case.T // 4))


def measure(job: Job, device: torch.device = torch.device("cuda"), clock: Any = timing) -> list[Fields]:
    """The fields of one timing record per (provider, pass) of a case; runs in the worker.

    `clock`: timing.py, or what has its functions."""
    began = time.monotonic()
    case, short = job.case, short_of(job.case)
    records = {(name, pass_): blank(case, pass_, name) for name in job.providers for pass_ in job.passes}
    ready = []
    for name in job.providers:
        at(name)  # importing a library can fail in any way
        why = {"missing": PROVIDERS[name].missing(device), "unsupported": PROVIDERS[name].unsupported(case)}
        if status := next(filter(why.get, why), ""):
            fail([records[name, p] for p in job.passes], status, why[status])
        else:
            ready.append(name)
    if ready:
        at(NOBODY)
        inputs, few = tensors(case, device), tensors(short, device)
        truth = check.reference(case, inputs)
        clock.synchronize()
        calls: dict[Key, tuple[Call, Call]] = {}
        for name in ready:
            at(name)
            of = {p: records[name, p] for p in job.passes}
            calls |= {(name, p): both for p, both in _judged(name, case, short, inputs, few, truth, of, clock).items()}
        flush = clock.Flush(device)
        with clock.Telemetry(device) as telemetry:
            for pass_ in job.passes:
                _time({n: both for (n, p), both in calls.items() if p == pass_}, pass_, records, short.T, clock, flush)
            for (name, pass_), (full, _) in calls.items():
                at(name)
                telemetry.alone((name, pass_), full, job.alone, records[name, pass_]["device_us"]["median"])
        others = {"other_processes": clock.others(device)}
        for (name, pass_), (full, _) in calls.items():
            at(name)
            records[name, pass_] |= {**telemetry.fields((name, pass_)), **others}
            if said := _against(records[name, pass_], case, check.judged(case, full(), pass_, truth)):
                fail([records[name, pass_]], "wrong", f"after it was timed: {said}")
        for pass_ in job.passes:
            _replay(case, {n: full for (n, p), (full, _) in calls.items() if p == pass_}, pass_, truth, records, clock, flush)
        at(None)
        clock.synchronize()
    for record in records.values():
        record["seconds"] = time.monotonic() - began
    return list(records.values())


Call = Callable[[], object]


def _judged(
    name: str, case: Case, short: Case, inputs: Any, few: Any, truth: Any, records: dict[str, Fields], clock: Any
) -> dict[str, tuple[Call, Call]]:
    """pass -> (a call of the case, one over fewer steps), of what is right, or inaccurate, and fast enough to be timed; the records
    say why the others are not."""
    provider, calls = PROVIDERS[name], {}
    sessions: list[Any] = []
    for pass_, record in records.items():
        try:
            if not sessions:
                sessions = [provider.session(case, inputs), provider.session(short, few)]
            record["plan"] = provider.plan(case, inputs["x"].device)
            verdict = check.judge(case, sessions[0], pass_, truth)
            record["errors"] = verdict.errors
            full, brief = (s.forward if pass_ == "fwd" else s.train for s in sessions)
            brief()
            clock.synchronize()
            began = time.monotonic()
            full()
            clock.synchronize()
            needed = calls_of_a_pass(seconds := time.monotonic() - began) * seconds
            record |= {"status": verdict.status(case, pass_, name), "message": verdict.message}
            if record["status"] == "wrong":
                continue
            if needed > MOST_SECONDS:
                why = f"not timed: a call takes {seconds:.1f} s, and those it takes to time it {needed:.0f} s"
                record |= {"status": "timeout", "message": why}
            else:
                calls[pass_] = full, brief
        except NotImplementedError as error:  # UnsupportedError is one
            fail([record], "unsupported", str(error))
        except Exception as error:  # compilers and libraries raise their own
            fail([record], "error", in_words(error))
        finally:
            clock.synchronize()  # raises where the context is broken: the worker is then replaced, and this provider to blame
    return calls


def _against(record: Fields, case: Case, verdict: check.Verdict) -> str:
    """What a verdict on something that was timed says; empty where it is what the record says already"""
    return "" if verdict.status(case, record["pass"], record["provider"]) in ("ok", record["status"]) else verdict.message


def calls_of_a_pass(seconds: float, alone: float = ALONE) -> float:
    """How many calls it takes at least to time one that takes `seconds`: device time, that of a quarter of the steps, wall time,
    a graph's capture and replays, each with a warm-up and a trial, one whose results are looked at, and those alone"""
    slow = seconds * 1e6 > timing.LONG_US
    warm, fewest = (1, timing.FEWEST_LONG) if slow else (timing.WARMUP, timing.FEWEST)
    return 1.25 * (warm + 1 + fewest) + (1 + fewest) + (2 * warm + 1 + fewest) + 1 + max(1.0, alone / max(seconds, 1e-9))


def _time(calls: dict[str, tuple[Call, Call]], pass_: str, records: dict[Key, Fields], short_T: int, clock: Any, flush: Any) -> None:
    """Fill the records of a pass with times, memory and kernels."""
    full, brief = ({name: both[i] for name, both in calls.items()} for i in (0, 1))
    samples = clock.device_us(full, flush, SAMPLE_SECONDS, at)
    short_samples = clock.device_us(brief, flush, SAMPLE_SECONDS / 2, at)
    wall = clock.wall_us(full, SAMPLE_SECONDS / 2, at)
    for name in calls:
        at(name)
        timed, of_short = samples[name], short_samples[name].us
        profiled = min(of_short) * 1e-6 <= MOST_PROFILED
        records[name, pass_] |= {
            "device_us": sampled(timed.us), "spin_us": timed.spin_us, "late": timed.late,
            "short_T": short_T, "short_us": sampled(of_short),
            "wall_us": sampled(wall[name]), "kernels": clock.kernels(brief[name]) if profiled else [],
            # a replay allocates nothing
            "peak_bytes": None if PROVIDERS[name].captured else clock.peak_bytes(full[name]),
        }  # fmt: skip


WRONG_REPLAY = "the replay of a graph is wrong: "


def _replay(case: Case, calls: dict[str, Call], pass_: str, truth: Any, records: dict[Key, Fields], clock: Any, flush: Any) -> None:
    """Times of a pass by CUDA graphs, last of all: a capture that fails can leave its mark on what comes after.  One whose last
    replay did not leave right results in the memory of the captured call has no time."""
    graphs, results = {}, {}
    for name, call in calls.items():
        if PROVIDERS[name].captured or records[name, pass_]["status"] not in ("ok", "inaccurate"):
            continue
        at(name)
        try:
            graph, results[name] = clock.capture(call)
        except RuntimeError as error:
            _say(records[name, pass_], f"graph capture failed: {error}")
            continue
        graphs[name] = graph.replay
        for tensor in _tensors(results[name]):
            tensor.fill_(math.nan)
    for name, timed in clock.device_us(graphs, flush, SAMPLE_SECONDS, at).items():
        at(name)
        if said := _against(records[name, pass_], case, check.judged(case, results[name], pass_, truth)):
            _say(records[name, pass_], WRONG_REPLAY + said)
        else:
            records[name, pass_]["graph_us"] = sampled(timed.us)


def _tensors(of: Any) -> Iterator[torch.Tensor]:
    """Those in dicts, lists and tuples"""
    if isinstance(of, torch.Tensor):
        yield of
    else:
        for part in of.values() if isinstance(of, dict) else of:
            yield from _tensors(part)


def _say(record: Fields, what: str) -> None:
    record["message"] = f"{record['message']}; {what}" if record["message"] else what


def fault(record: Fields) -> str:
    """What is wrong with a record of ours; empty where nothing is. No plan yet is none."""
    bad = record["status"] not in ("ok", "unsupported") or WRONG_REPLAY in record["message"]
    return f"{record['status']}: {record['message']}" if bad else ""


def blank(case: Case, pass_: str, provider: str) -> Fields:
    """The fields of a timing record with nothing measured"""
    shape, version = dataclasses.asdict(case), PROVIDERS[provider].version()
    return schema.blank("timing", case=case.name, shape=shape, pass_=pass_, provider=provider, version=version)


def fail(records: Iterable[Fields], status: str, message: str) -> None:
    for record in records:
        record |= {"status": status, "message": message}


def run(
    jobs: Sequence[Job], writer: Writer, deadline: float, *, seconds: Callable[[Job], float] = lambda job: 1.0,
    function: Callable[[Job], list[Fields]] = measure, estimate: Callable[[Case, str], Fields] = lambda case, pass_: {},
    timeout: float = TIMEOUT, clock: Callable[[], float] = time.monotonic, eager: bool = True,
) -> tuple[list[Fields], list[Job]]:  # fmt: skip
    """(records, jobs left out because `deadline`, on `clock`, came first). A failed case costs itself alone.

    `function` runs in the worker.  `seconds`: how long a job is expected to take; what those that are done took corrects it, and a job that
    no longer fits is left out for shorter ones after it; never the first if `eager`, or one whose expected time is beyond every budget
    would never be tried.  `estimate`: the latency model's fields of a case and pass. """
    records: list[Fields] = []
    left: list[Job] = []
    expected = [seconds(job) for job in jobs]
    behind = took = 0.0  # of the jobs that are done, expected and real; less the first one, which pays for the start of CUDA
    with Worker(function) as worker, Progress("measuring", len(jobs), weights=expected, clock=clock) as progress:
        for number, job in enumerate(jobs):
            began, found = clock(), None
            scale = took / behind if behind else 1.0
            if began < deadline and (eager and number == 0 or began + scale * expected[number] <= deadline):
                progress.now(job.case.name)
                found = _attempts(job, worker, timeout, lambda: deadline - clock())
            if found is None:
                left.append(job)
                progress.step()
                continue
            failed = False
            for fields in found:
                if fields["provider"] == OURS:
                    fields |= estimate(job.case, fields["pass"])
                records.append(writer.write("timing", **fields))
                failed |= records[-1]["status"] not in ("ok", "unsupported", "missing")
            if number:
                behind, took = behind + expected[number], took + clock() - began
            progress.step(failed)
    return records, left


def _attempts(job: Job, worker: Worker, timeout: float, left: Callable[[], float]) -> list[Fields] | None:
    """The fields of every (provider, pass) of a job; None where the time that is `left` ended first.

    A provider that crashes or hangs costs itself: the others are measured again without it.  Where it is not known whose fault
    it was, ours and cuDNN are measured without the others, and these each by itself."""
    began = time.monotonic()
    try:
        return worker.call(job, timeout + (0.0 if worker.is_warm else START), max(0.0, left()))
    except WorkerError as error:
        if error.status == "timeout" and left() <= 0:
            return None
        everyone = error.at == NOBODY or len(job.providers) == 1
        guilty = tuple(name for name in job.providers if everyone or name == error.at)
        failed = [blank(job.case, pass_, name) for name in guilty for pass_ in job.passes]
        for fields in failed:
            fields |= {"status": error.status, "message": str(error), "seconds": time.monotonic() - began}
        if guilty:
            parts = [tuple(name for name in job.providers if name not in guilty)]
        else:
            trusted = tuple(name for name in job.providers if name in (OURS, *BASELINES))
            alone = [(name,) for name in job.providers if name not in trusted or trusted == job.providers]
            parts = [*([trusted] if trusted != job.providers else []), *alone]
    for part in filter(None, parts):
        found = _attempts(dataclasses.replace(job, providers=part), worker, timeout, left)
        if found is None:
            return None
        failed += found
    return failed


def model_estimate(device: Any) -> Callable[[Case, str], Fields]:
    """`estimate` of run() by the latency model, for a hardware.Device; nothing where rnn_triton has no plan."""

    def estimate(case: Case, pass_: str) -> Fields:
        try:
            found = model.of_case(case, pass_, device)
        except NotImplementedError:
            return {}
        fields = zip(("floor_us_per_step", "practical_us_per_step", "parts_us_per_step"), (found.floor_us, found.practical_us, found.parts))
        return dict(fields)

    return estimate
