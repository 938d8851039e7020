"""What a run does within its time: resuming, order, budget, with a fake clock and stub measurements."""

import dataclasses
import functools
import math

import pytest
from support import bench_records, bench_stubs
from support.bench_records import ENVIRONMENT, timing

from bench.__main__ import DEFAULT_BUDGET
from bench.cases import case as cases
from bench.cases import suites
from bench.instruments.progress import Progress
from bench.measure import job as measure_job
from bench.measure import run, schedule
from bench.providers.registry import PROVIDERS
from bench.records import schema, store

BOTH = ("rnn_triton", "cudnn")
CASE = cases.case(128, 16, 256, "bf16")


HERE = {name: schedule.Here("", None) for name in (*BOTH, "loop")}


def recorded(providers=BOTH, **changes):
    return [timing(CASE, p, name, 1.0) | changes for p in cases.PASSES for name in providers]


def all_done(environment=ENVIRONMENT, **changes):
    return schedule.done(recorded(**changes), environment, HERE)


# ---- what is recorded already ---------------------------------------------------------------------------------------


def test_a_recorded_case_of_the_same_source_and_versions_is_not_repeated():
    assert schedule.jobs([CASE], cases.PASSES, BOTH, all_done()) == []
    assert schedule.jobs([CASE], cases.PASSES, BOTH) == [cases.Job(CASE, cases.PASSES, BOTH)]


@pytest.mark.parametrize("name", schedule.VERSIONS)
def test_another_source_device_or_version_is_another_case(name):
    assert all_done(ENVIRONMENT | {name: "another"}) == frozenset()


def test_another_commit_of_the_same_source_is_the_same():
    """A commit of records, or of a text, does not make what was measured out of date."""
    assert all_done(ENVIRONMENT | {"commit": "another", "dirty": True, "clocks": {}}) == all_done()


def test_what_is_settled_is_told_apart_by_pass_and_provider():
    for status in ("ok", "wrong", "unsupported"):
        assert schedule.jobs([CASE], cases.PASSES, BOTH, all_done(status=status)) == []
    done = all_done() - {(CASE.name, "train", "cudnn")}
    assert schedule.jobs([CASE], cases.PASSES, BOTH, done) == [cases.Job(CASE, ("train",), BOTH)]


@pytest.mark.parametrize("status", ["error", "timeout"])
def test_what_failed_is_tried_once_more(status):
    """too little memory or a cold compilation may have passed"""
    assert all_done(status=status) == frozenset()
    again = recorded(status=status, run="run-2")
    assert len(schedule.done(recorded(status=status) + again, ENVIRONMENT, HERE)) == 4
    assert len(schedule.done(recorded(status=status) + recorded(run="run-2"), ENVIRONMENT, HERE)) == 4


def test_a_provider_that_was_missing_is_measured_when_it_is_there_with_all_it_is_compared_with():
    peers = (*BOTH, "flashrnn")
    here = HERE | {"flashrnn": schedule.Here("not installed", None)}
    found = recorded() + recorded(["flashrnn"], status="missing")
    assert schedule.jobs([CASE], cases.PASSES, peers, schedule.done(found, ENVIRONMENT, here)) == []
    for version in (None, "1.0"):  # the package was there, and lacked a compiler, or was not
        found = recorded() + recorded(["flashrnn"], status="missing", version=version)
        done = schedule.done(found, ENVIRONMENT, HERE | {"flashrnn": schedule.Here("", "1.0")})
        assert schedule.jobs([CASE], cases.PASSES, peers, done) == [cases.Job(CASE, cases.PASSES, peers)]
    found = recorded() + recorded(["flashrnn"], version="1.0")
    assert len(schedule.done(found, ENVIRONMENT, HERE | {"flashrnn": schedule.Here("", "1.0")})) == 6
    assert len(schedule.done(found, ENVIRONMENT, HERE | {"flashrnn": schedule.Here("", "2.0")})) == 4


# ---- order ----------------------------------------------------------------------------------------------------------


def order(chosen, known=()):
    return [job.case for job in schedule.ordered(schedule.jobs(chosen, ("fwd",), BOTH), known)]


def test_the_first_listed_comes_first_then_the_farthest():
    line = [cases.case(2**k, 16, 256, "bf16") for k in range(5, 12)]
    found = order(line)
    assert found[:3] == [line[0], line[-1], line[3]]
    assert sorted(found, key=line.index) == line


def test_what_is_recorded_counts_as_seen():
    line = [cases.case(2**k, 16, 256, "bf16") for k in range(5, 12)]
    assert order(line[1:-1], known=[line[0], line[-1]])[0] == line[3]


def test_sizes_count_by_doublings_and_inputs_by_their_ratio_to_the_hidden_size():
    a = cases.case(128, 16, 256, "bf16")
    assert schedule.distance(a, a) == 0
    assert schedule.distance(a, cases.case(256, 16, 256, "bf16")) == 1
    assert schedule.distance(a, cases.case(128, 16, 256, "bf16", 64)) == 1
    assert schedule.distance(a, cases.case(128, 16, 256, "bf16", layers=4)) == 2
    b = cases.case(128, 64, 256, "fp16")
    assert schedule.distance(a, b) == schedule.distance(b, a) == pytest.approx(math.sqrt(4 + 1))


@pytest.mark.parametrize("suite", ["medium", "scaling"])
def test_half_a_suite_covers_its_range(suite):
    """The corners and every dtype come early."""
    chosen = suites.suite(suite)
    found = order(chosen)[: len(chosen) // 2]
    for size in ("H", "B", "T"):
        values = [getattr(case, size) for case in chosen]
        some = [getattr(case, size) for case in found]
        assert (min(some), max(some)) == (min(values), max(values)), size
    assert {case.dtype for case in found} == {case.dtype for case in chosen}


# ---- time -----------------------------------------------------------------------------------------------------------


def test_what_fits_is_taken_in_order_and_what_is_too_long_passed_over():
    todo = schedule.jobs([cases.case(H, 1, 8, "bf16") for H in (1, 2, 3, 4)], ("fwd",), BOTH)
    cost = {1: 5.0, 2: 100.0, 3: 4.0, 4: 2.0}
    fit, rest = schedule.fitting(todo, 10.0, lambda job: cost[job.case.H])
    assert [job.case.H for job in fit] == [1, 3] and [job.case.H for job in rest] == [2, 4]
    assert schedule.fitting(todo, 0.0, lambda job: 1.0) == ([], todo)


def test_expected_seconds_grow_with_steps_layers_providers_and_passes():
    def of(T=1024, providers=BOTH, passes=cases.PASSES, **options):
        return schedule.seconds_of(cases.Job(cases.case(128, 16, T, "bf16", **options), passes, providers))

    assert of() < of(T=16384) and of() < of(layers=8) and of() < of(models=8)
    # models are calls of cuDNN's, and one call of ours
    assert of(providers=("rnn_triton",), models=256) == of(providers=("rnn_triton",))
    assert of() < of(providers=(*BOTH, "loop")) and of(passes=("fwd",)) < of()
    assert of() < 10  # twelve cases of the quick suite with two providers in two minutes


def test_what_is_not_here_or_too_slow_to_be_timed_costs_little():
    job = cases.Job(cases.case(128, 8, 512, "bf16", models=256), cases.PASSES, ("rnn_triton", "cudnn", "flashrnn", "loop"))
    fewer = cases.Job(job.case, cases.PASSES, ("rnn_triton", "cudnn", "loop"))
    assert schedule.seconds_of(job, runs=lambda name, case: name != "flashrnn") == schedule.seconds_of(fewer)
    assert schedule.seconds_of(fewer) < 60  # cuDNN's 256 calls of 5 ms each


@pytest.mark.parametrize("suite", [name for name in suites.SUITES if name != "check"])
def test_every_case_fits_into_the_usual_budget(suite):
    """With every provider there is, or it would never be reached."""
    for case in suites.suite(suite):
        assert schedule.seconds_of(cases.Job(case, cases.PASSES, tuple(PROVIDERS))) < 0.8 * DEFAULT_BUDGET, case.name


def test_the_quick_suite_takes_two_minutes_with_ours_and_cudnn():
    jobs = schedule.jobs(suites.suite("quick"), cases.PASSES, BOTH)
    assert sum(schedule.seconds_of(job) for job in jobs) < 120


def test_what_a_case_took_before_is_what_it_is_expected_to_take():
    found = [timing(CASE, p, name, 1.0, seconds=7.0) for p in cases.PASSES for name in BOTH]
    took = schedule.took(found)
    assert schedule.seconds_of(cases.Job(CASE, cases.PASSES, BOTH), took) == 7.0
    assert schedule.seconds_of(cases.Job(CASE, ("fwd",), BOTH), took) == 3.5
    fewer = cases.Job(CASE, cases.PASSES, ("rnn_triton",))
    assert schedule.seconds_of(fewer, took) == schedule.seconds_of(fewer)
    later = [r | {"seconds": 9.0, "run": "run-2", "date": "2026-02-01T00:00:00Z"} for r in found if r["pass"] == "fwd"]
    assert schedule.took(found + later) == {(CASE.name, tuple(sorted(BOTH))): 18.0}
    with_missing = found + [timing(CASE, p, "xma", 0.0, status="missing") for p in cases.PASSES]
    assert schedule.took(with_missing) == schedule.took(found)


# ---- runs under a budget --------------------------------------------------------------------------------------------


class Clock:
    """Time passes when a job runs: as many seconds as its case's B"""

    def __init__(self):
        self.time = 0.0

    def __call__(self):
        return self.time


class Instant:
    """A worker that takes what a job takes of a clock's time, and cuts it off as a real one does."""

    def __init__(self, clock):
        self.clock = clock

    def __call__(self, function):
        return self

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    is_warm = True

    def call(self, job, timeout, total):
        allowed = min(timeout, total)
        if job.case.B > allowed:
            self.clock.time += allowed
            raise run.WorkerError("timeout", "no answer")
        self.clock.time += job.case.B
        try:
            return bench_stubs.measure(job)
        except RuntimeError as error:
            raise run.WorkerError("error", str(error)) from error


def go(tmp_path, monkeypatch, seconds_each, budget, expected, timeout=1000.0):
    """Cases that take `seconds_each`, expected to take `expected`: (cases recorded, cases left, time used)."""
    clock = Clock()
    monkeypatch.setattr(run, "Worker", Instant(clock))
    chosen = [cases.case(16 + i, B, 8, "bf16") for i, B in enumerate(seconds_each)]
    path = tmp_path / "t.jsonl"
    with store.Writer(path, "run-1", ENVIRONMENT, fresh=False) as writer:
        jobs = schedule.jobs(chosen, ("fwd",), ("rnn_triton",), schedule.done(store.read([path])[0], ENVIRONMENT, HERE))
        found, left = run.run(jobs, writer, budget, seconds=lambda job: expected, clock=clock, timeout=timeout)
    return [r["case"] for r in found], [job.case.name for job in left], clock.time


def test_a_budget_is_kept_and_the_next_run_goes_on(tmp_path, monkeypatch):
    every = [10] * 7
    first, left, used = go(tmp_path, monkeypatch, every, 45, expected=10)
    assert len(first) == 4 and len(left) == 3 and used <= 45
    second, left, used = go(tmp_path, monkeypatch, every, 45, expected=10)
    assert len(second) == 3 and left == [] and not set(first) & set(second)
    assert go(tmp_path, monkeypatch, every, 45, expected=10) == ([], [], 0.0)


def test_expectations_are_corrected_by_what_cases_take(tmp_path, monkeypatch):
    """Expected one second, they take ten: after the first two the rest is known not to fit."""
    done, left, used = go(tmp_path, monkeypatch, [10] * 7, 38, expected=1)
    assert len(done) == 3 and used == 30  # not a fourth one that would be cut off


def test_a_case_that_the_budget_cuts_off_is_left_and_not_recorded(tmp_path, monkeypatch):
    done, left, used = go(tmp_path, monkeypatch, [10, 100, 10], 50, expected=1)
    assert done == [cases.case(16, 10, 8, "bf16").name] and used == 50
    assert left == [cases.case(17, 100, 8, "bf16").name, cases.case(18, 10, 8, "bf16").name]
    found, problems = store.read([tmp_path / "t.jsonl"])
    assert len(found) == 1 and not problems


def test_a_case_that_takes_too_long_by_itself_is_recorded_as_that(tmp_path, monkeypatch):
    done, left, _ = go(tmp_path, monkeypatch, [10, 100, 10], 500, expected=1, timeout=60)
    assert len(done) == 3 and left == []
    found, _ = store.read([tmp_path / "t.jsonl"])
    assert [r["status"] for r in found] == ["ok", "timeout", "ok"]


def test_progress_says_how_long_by_the_weights_of_what_is_left(capsys):
    clock = Clock()
    progress = Progress("measuring", 3, weights=[1.0, 3.0, 6.0], clock=clock)
    progress.now("first")
    clock.time = 10.0
    progress.step(failed=True)
    progress.now("second")
    clock.time = 40.0
    progress.step()
    progress.now("third")
    progress.close()
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "measuring 0/3  first", "measuring 1/3, 90 s left, 1 failed  second", "measuring 2/3, 60 s left, 1 failed  third",
        "measuring: 2/3 in 40 s, 1 failed",
    ]  # fmt: skip


def test_synthetic_records_are_valid():
    for record in bench_records.suite("quick"):
        schema.validate(record)
        assert cases.Case(**record["shape"]) == suites.parse(record["case"])
        assert set(record["shape"]) == {f.name for f in dataclasses.fields(cases.Case)}


# ---- the whole of a run ---------------------------------------------------------------------------------------------


@pytest.fixture
def gpu(monkeypatch, tmp_path):
    """Runs believe there is a GPU; a case takes as many seconds of `clock` as its B, and nothing is compiled."""
    clock = Clock()
    monkeypatch.setattr(measure_job, "needs_gpu", lambda: None)
    monkeypatch.setattr(measure_job.environment, "describe", lambda device: ENVIRONMENT)
    monkeypatch.setattr(measure_job, "compile_calls", lambda calls, seconds: ({}, 0))
    monkeypatch.setattr(measure_job, "providers_here", lambda names: {name: schedule.Here("", None) for name in names})
    monkeypatch.setattr(store, "RESULTS", tmp_path / "none")
    monkeypatch.setattr(measure_job.time, "monotonic", clock)
    monkeypatch.setattr(run, "Worker", Instant(clock))
    monkeypatch.setattr(measure_job, "run", functools.partial(run.run, clock=clock))
    return clock


def test_a_run_measures_records_and_goes_on_where_it_ended(gpu, tmp_path, capsys):
    chosen = [cases.case(16 + i, 20, 8, "bf16") for i in range(4)]
    rows, failures = measure_job.run_timing(chosen, ("fwd",), ("cudnn", "loop"), tmp_path, deadline=50.0)
    said = capsys.readouterr().out
    assert "4 cases: 0 recorded already" in said and "the budget ended before 2 cases" in said
    assert len(rows) == 4 and failures == [] and gpu.time == 40
    first = {row.case for row in rows}
    rows, _ = measure_job.run_timing(chosen, ("fwd",), ("cudnn", "loop"), tmp_path, deadline=1000.0)
    assert "4 cases: 2 recorded already" in capsys.readouterr().out
    assert gpu.time == 80 and {row.case for row in rows} == {case.name for case in chosen} > first
    measure_job.run_timing(chosen, ("fwd",), ("cudnn", "loop"), tmp_path, deadline=1000.0)
    assert gpu.time == 80 and "4 recorded already" in capsys.readouterr().out
    measure_job.run_timing(chosen[:1], ("fwd",), ("cudnn", "loop"), tmp_path, deadline=1000.0, again=True)
    assert gpu.time == 100
    found, problems = store.read([tmp_path / "timing.jsonl"])
    assert len(found) == 10 and not problems and len({r["run"] for r in found}) == 3


def test_repeats_are_runs_of_all_cases_one_after_the_other(gpu, tmp_path, capsys):
    chosen = [cases.case(16 + i, 20, 8, "bf16") for i in range(2)]

    def go(deadline, **how):
        measure_job.run_timing(chosen, ("fwd",), BOTH, tmp_path, deadline=deadline, **how)
        found, problems = store.read([tmp_path / "timing.jsonl"])
        assert not problems
        return [(r["run"], r["case"]) for r in found if r["provider"] == "cudnn"]

    go(1000.0)
    found = go(70.0, repeats=3)  # the first run is there already, half of the second fits
    said = capsys.readouterr().out
    assert "run 1 of 3, 2 cases: 2 recorded already" in said and "run 2 of 3, 2 cases: 0 recorded already" in said
    assert "run 3" not in said and len({run for run, _ in found}) == 2 and len(found) == 3
    found = go(1000.0, repeats=3)
    assert len({run for run, _ in found}) >= 3 and sorted(case for _, case in found) == sorted([c.name for c in chosen] * 3)
    assert go(1000.0, repeats=3) == found
    assert len(go(1000.0, repeats=2, again=True)) == 6 + 4


@pytest.mark.parametrize("status, after", [("ok", 3), ("wrong", 1), ("unsupported", 1), ("error", 2)])
def test_what_is_timed_is_repeated_and_what_is_wrong_is_not(status, after):
    for runs in range(1, 4):
        made = [r for i in range(runs) for r in recorded(status=status, run=f"run-{i}")]
        assert bool(schedule.done(made, ENVIRONMENT, HERE, 3)) == (runs >= after)


def test_a_failure_of_ours_fails_the_run_and_one_of_a_peer_does_not(gpu, tmp_path):
    chosen = [cases.case(3, 1, 8, "bf16")]  # the stub raises
    _, failures = measure_job.run_timing(chosen, ("fwd",), ("cudnn",), tmp_path, deadline=100.0)
    assert failures == []
    _, failures = measure_job.run_timing(chosen, ("fwd",), ("rnn_triton",), tmp_path, deadline=100.0)
    assert failures == ["h3-b1-t8-bf16 fwd: error: planted"]
