"""`bench check`: every sort of item without a GPU, what a failing item costs, the budget, the items themselves, what a number is made of."""

import contextlib
import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest
import torch
import triton
import triton.language as tl
from stub_cuda import stub
from support import bench_dry, bench_stubs
from triton.compiler import CompiledKernel
from triton.runtime.jit import JITFunction

from bench.cases import estimate, suites
from bench.cases.case import DTYPES, case
from bench.cases.inputs import tensors
from bench.first_run import items, listed, probes, tables
from bench.first_run import run as first_run
from bench.measure import check, compiling
from bench.records import schema, store
from rnn_triton import overriding
from rnn_triton.launch import launcher, recurrence
from rnn_triton.plan import hardware
from rnn_triton.plan.choose import plan
from rnn_triton.plan.problem import Problem

H200 = hardware.RECORDS["sm_90"]
TINY = case(24, 3, 3, "bf16", 8)
SENTINEL = (*listed.SENTINEL, ("warps", 4))


# ---- the command ----------------------------------------------------------------------------------------------------


def cpu_seconds():
    """Of this process and of its children that have ended"""
    of = os.times()
    return of.user + of.system + of.children_user + of.children_system


@pytest.mark.long
def test_every_sort_of_item_runs_and_passes(tmp_path):
    """By interpreter"""
    began = cpu_seconds()
    settings = {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    how = {"function": bench_dry.perform, "settings": settings, "compiler": bench_stubs.nothing}
    text, failures, found = done(tmp_path, *bench_dry.dry_items(), **how)
    assert cpu_seconds() - began < 60  # 20 s on a slow core; wall time is the other tests' too
    assert failures == [] and {r["kind"] for r in found} == {"exchange", "check", "timing", "behaviour"}
    assert {r["status"] for r in found} == {"ok"}
    ran = {r["plan"]["forward"]["regime"] for r in found if r["kind"] == "check"}
    assert ran == {"one_cta", "cta_group", "per_step"}
    assert text.count(":\n") == 5 and "not run" not in text  # tables


def test_a_sort_of_item_is_tried_of_each_that_is_listed():
    sorts = [{type(i) for i in f()} for f in (listed.items, bench_dry.dry_items)]
    assert sorts[0] == sorts[1]


# ---- what a failure costs -------------------------------------------------------------------------------------------


def done(tmp_path, *items, budget=600.0, **how):
    how.setdefault("function", bench_stubs.perform)
    table, failures = first_run.first_run(tmp_path, budget, todo=items, **how)
    found, problems = store.read([tmp_path / first_run.FILE])
    assert problems == []
    return table, failures, found


def test_an_item_that_fails_costs_itself_alone(tmp_path):
    Item = bench_stubs.Item
    table, failures, found = done(
        tmp_path,
        Item("a", "faults"), Item("b", "faults", "hang", timeout=0.5), Item("c", "faults"), Item("d", "faults", "crash"),
        Item("e", "faults", "wrong"), Item("f", "faults", "raise"), Item("g", "faults"),
    )  # fmt: skip
    assert [r["status"] for r in found] == ["ok", "timeout", "ok", "error", "wrong", "error", "ok"]
    assert len({r["message"] for r in found if r["status"] == "ok"}) == 3  # processes: after the hang, after the raise
    assert [f.split(": ")[1] for f in failures] == ["b", "d", "e", "f"]
    assert "exit code 17" in failures[1] and "planted" in failures[2]


def test_the_budget_leaves_items_out_and_says_which(tmp_path):
    now = iter(range(0, 10000, 10))  # every look at the clock is ten seconds later
    items = [bench_stubs.Item(f"{section} {i}", section) for section in ("equivalence", "faults") for i in range(6)]
    table, failures, found = done(tmp_path, *items, budget=90.0, clock=lambda: next(now))
    told = table.partition("not run, for the time was up: ")[2].splitlines()[0]
    ran = [r["name"] for r in found]
    assert failures == [] and [i.name for i in items if i.name not in ran] == [t.split(": ")[1] for t in told.split(", ")]
    # a section ends at its share, and the next one has its own time
    assert 0 < sum("equivalence" in name for name in ran) < 6 and 0 < sum("faults" in name for name in ran) < 6


def test_a_kernel_that_does_not_compile_is_a_failure(tmp_path):
    call = compiling.Call(TINY)
    with mock.patch.object(first_run, "compile_calls", lambda *_: ({call: "RuntimeError: ptxas"}, 0)):
        _, failures, _ = done(tmp_path, bench_stubs.Item("a", "faults"))
    assert failures == ["compiling h24-i8-b3-t3-bf16 {}: RuntimeError: ptxas"]


@pytest.mark.long
def test_compiling_ends_in_time_and_says_what_it_left():
    calls = [compiling.Call(case(H, 1, 2, "bf16")) for H in (1, 2, 3, 4, 5, 6)]
    failures, cut = compiling.compile_calls(calls, 4.0, bench_stubs.slow)
    # nothing was begun after the 4 s, and what was begun by then is done
    assert cut >= 2
    assert len(failures) + cut == len(calls) and all("no such luck" in message for message in failures.values())


# ---- the items ------------------------------------------------------------------------------------------------------


def test_items_cover_what_they_should():
    found = listed.items()
    sections = [item.section for item in found]
    order = list(first_run.ENDS)[1:]
    assert list(dict.fromkeys(sections)) == order and sections == sorted(sections, key=order.index)
    names = [(item.section, item.name) for item in found]
    assert len(set(names)) == len(names)
    grids = [i for i in found if i.section == "equivalence" and dict(i.choices).get("regime") == "cta_group"]
    assert {i.case.H for i in grids} >= {320, 384, 512, 1000, 1024, 1760, 2048, 4096}
    assert {(i.case.dtype, dict(i.choices)["protocol"]) for i in grids} == {
        (dtype, protocol) for dtype in DTYPES for protocol in ("sentinel", "counter")
    }
    assert any(i.case.B % 2 for i in grids) and any(i.case.cell == "elman_relu" for i in grids)
    assert {i.case for i in found if i.section == "equivalence"} >= set(suites.suite("check"))
    networks = [i.case for i in found if i.section == "equivalence" and i.case.layers * i.case.directions > 1]
    shared = [[part.bundle.count for part in estimate.launches(c, H200)] for c in networks]
    assert [4] in shared and [8] in shared and [2, 2] in shared and {c.bidirectional for c in networks} == {True, False}
    assert all(max(counts) > 1 for counts, c in zip(shared, networks) if c.H > 128 or c.cell == "elman_tanh")
    assert {i.case.cell for i in found if i.section == "equivalence"} >= {"elman_tanh", "elman_relu", "leaky_tanh", "gru", "lstm"}
    timed = {i.case for i in found if i.section == "speed"}
    assert len(timed) >= 15 and {min(c.H for c in timed), max(c.H for c in timed)} == {64, 4096}
    assert all(suites.parse(i.case.name) == i.case for i in found)


@pytest.mark.parametrize("item", listed.items(), ids=lambda i: i.name)
def test_every_item_has_its_plan_on_an_h200(item):
    with overriding(**dict(item.choices)):
        found = [plan(problem, H200) for problem in estimate.problems(item.case)]
    assert {p.regime for p in found} >= {dict(item.choices).get("regime", found[0].regime)}


def test_the_first_setting_is_the_planners_own():
    """and every other one differs from it"""
    device = hardware.RECORDS["sm_90"]
    for direction in ("forward", "backward"):
        chosen = plan(Problem(direction, 8, 1024, 1024, "bf16", None, "elman_tanh"), device)
        assert {name: getattr(chosen, name) for name in listed.SETTINGS[0]} == listed.SETTINGS[0]
    assert listed.SETTINGS[0] not in listed.SETTINGS[1:]


def test_several_tiles_share_a_group_where_they_should():
    of = {i.name: i for i in listed.items()}["h1024-b300-t6-bf16 protocol=sentinel"]
    with overriding(**dict(of.choices)):
        p = plan(estimate.problems(of.case)[0], H200)
    assert math.ceil(of.case.B / p.block_b) > p.groups > 1


# ---- what a status and a number are made of -------------------------------------------------------------------------


class Fails(probes.Fault):
    def measure(self, place, found):
        from rnn_triton import ExchangeError

        errors = {"w": RuntimeError("broken"), "x": items.Wrong("bad"), "y": items.NotHere("no"), "z": ExchangeError("stuck")}
        if self.choices[0][0] in errors:
            raise errors[self.choices[0][0]]


@pytest.mark.parametrize("what, status", [("x", "wrong"), ("y", "unsupported"), ("w", "error"), ("none", "ok")])
def test_what_is_raised_becomes_a_status(what, status):
    (found,) = bench_dry.perform(Fails(TINY, ((what, 1),)))
    assert found["status"] == status


def test_a_stuck_launch_is_the_fault_of_its_own_item():
    import rnn_triton

    def stuck(device):
        raise rnn_triton.ExchangeError("group 0 got stuck")

    with mock.patch.object(rnn_triton, "synchronize", stuck):
        (found,) = bench_dry.perform(Fails(TINY, (("x", 1),)))
    assert found["status"] == "error" and found["message"] == "group 0 got stuck bad"


def test_a_broken_context_ends_the_worker():
    import rnn_triton

    def broken(device):
        raise RuntimeError("an illegal memory access was encountered")

    with mock.patch.object(rnn_triton, "synchronize", broken), pytest.raises(RuntimeError, match="bad: an illegal"):
        bench_dry.perform(Fails(TINY, (("x", 1),)))


def test_rows_of_the_table():
    exchange = probes.Exchange(TINY, SENTINEL).blank()[0] | {
        "plan": {"protocol": "sentinel", "groups": 2, "ctas": 16}, "practical_us_per_step": 0.5,
        "device_us": schema.sampled([10.0 + 0.7 * 3] * 3), "short_T": 1, "short_us": schema.sampled([10.7] * 3),
    }  # fmt: skip
    (row,) = tables.exchange_rows([exchange])
    assert row[1:] == ("forward", "sentinel", "2 x 16", "700", "500", "ok")
    (row,) = tables.exchange_rows([probes.Exchange(TINY, SENTINEL).blank()[0] | {"status": "timeout", "message": "a\nb"}])
    assert row[3:] == ("-", "-", "-", "TIMEOUT: a")
    fault = probes.Fault(TINY, of="stuck_launch_ends").blank()[0] | {"message": "ended", "seconds": 1.0}
    assert tables.fault_rows([fault]) == [("stuck launch ends", TINY.name, "1.0", "ok: ended")]


# ---- the recurrence alone, and what must hold of launches; by interpreter -------------------------------------------


@pytest.mark.parametrize("cell", ["elman_tanh", "gru", "lstm"])
def test_gradients_of_pre_activations_alone(cell):
    """those for W_hh come first, n r z of a GRU, those for W_ih last"""
    c = case(12, 3, 4, "fp32", 5, ieee=True, cell=cell)
    inputs = {name: t.double() for name, t in tensors(c, torch.device("cpu")).items()}
    da, truth = probes.pre_activation_gradients(c, inputs).flatten(0, 1).sum(0), check.reference(c, inputs)
    rows = len(truth["dbias_ih_l0"])
    assert torch.allclose(da[-rows:], truth["dbias_ih_l0"], rtol=1e-12)
    split = len(da) - rows
    assert torch.allclose(da[:rows].roll(-split), truth["dbias_hh_l0"], rtol=1e-12)


@pytest.mark.interpret
@pytest.mark.parametrize("cell", ["elman_tanh", "gru", "lstm"])
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_a_wrong_exchange_is_seen(direction, cell):
    item = probes.Exchange(replace(TINY, cell=cell), SENTINEL, direction)
    (found,) = bench_dry.perform(item)
    assert found["status"] == "ok" and found["device_us"]["samples"] and set(found["errors"]) <= {"y", "hn", "da"}
    exact = probes.alone

    def wrong(*arguments):
        call = exact(*arguments)
        return lambda: {name: 1.05 * value for name, value in call().items()}

    with mock.patch.object(probes, "alone", wrong):
        (found,) = bench_dry.perform(item)
    assert found["status"] == "wrong" and "relative error" in found["message"]


@pytest.mark.interpret
def test_a_stuck_launch_that_is_not_stuck_is_seen():
    item = probes.Fault(TINY, SENTINEL, of="stuck_launch_ends")
    (found,) = bench_dry.perform(item)
    assert found["status"] == "ok" and "next launch is right" in found["message"]
    whole = recurrence.Recurrence
    with mock.patch.object(recurrence, "Recurrence", lambda problem, p: whole(problem, replace(p, ctas=2))):
        (found,) = bench_dry.perform(item)
    assert found["status"] == "wrong" and "reported nothing" in found["message"]


@pytest.mark.parametrize(
    "error, outcome",
    [
        (RuntimeError("Triton Error [CUDA]: too many blocks in cooperative launch"), "the next launch is right"),
        (RuntimeError("out of memory"), RuntimeError),
        (None, items.Wrong),
    ],
)
def test_over_subscription_must_raise_what_it_should(error, outcome):
    item = probes.Fault(TINY, SENTINEL, of="over_subscription_raises")
    place, found = items.Place(torch.device("cpu"), bench_dry), item.blank()
    with mock.patch.object(recurrence.Recurrence, "forward", mock.Mock(side_effect=error)):
        if isinstance(outcome, str):
            item.measure(place, found)
            assert outcome in found[0]["message"]
        else:
            with pytest.raises(outcome):
                item.measure(place, found)


# ---- compiling: what a launch looks for, and no launch ---------------------------------------------------------------

@triton.jit
def useless(ptr, n, EXTRA: tl.constexpr):
    tl.store(ptr, n + EXTRA)


@pytest.mark.parametrize("compiling_", [True, False])
def test_nothing_is_launched_while_kernels_compile(compiling_):
    """By the launcher that rnn_triton keeps for a kernel, too, which goes around Triton's own path from the second call on"""
    launched, loaded = [], []
    kernel = object.__new__(CompiledKernel)

    def run(function, *arguments, grid, warmup, **options):
        return kernel if warmup else (kernel, launched.append("Triton's"))[0]

    def load(kernel, grid):
        loaded.append(grid)
        return lambda *arguments: launched.append("kept")

    site = launcher.Launcher(useless, (7, 1, 1), lambda present: {"EXTRA": 1}, {})
    out = torch.zeros(1)
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(JITFunction, "run", run))
        stack.enter_context(mock.patch.object(CompiledKernel, "__getitem__", load))
        stack.enter_context(mock.patch.object(torch.cuda, "current_device", lambda: out.device.index))
        with compiling.launches_compile() if compiling_ else contextlib.nullcontext():
            for _ in range(3):
                site((out,), out, (5,))
    assert launched == ([] if compiling_ else ["Triton's", "kept", "kept"])
    assert len(loaded) == (3 if compiling_ else 2)


CASES = """[
    dict(direction="forward", dtype="bf16", T=3, B=8, I=64, H=512),
    dict(direction="backward", dtype="bf16", T=3, B=8, I=64, H=512),
    dict(direction="forward", dtype="bf16", T=3, B=9, I=16, H=32),
    dict(direction="backward", dtype="bf16", T=3, B=8, I=32, H=320, override=dict(regime="per_step")),
]"""
COMPILES = f"""
import contextlib, json, sys
import run, stub
from bench.measure.compiling import launches_compile
stub.install()
log = stub.Log()
with launches_compile() if sys.argv[1] == "compile" else contextlib.nullcontext():
    answers = [run.problem(case, log, run.Observed())["calls"] for case in {CASES}]
launched = [sum(r["call"] == "cuLaunchKernelEx" for call in calls for r in call["driver"]) for calls in answers]
print(json.dumps([launched, [call["error"] for calls in answers for call in calls]]))
"""


@pytest.mark.compiled
@pytest.mark.long  # test_launch_stub.py compares the keys
def test_what_is_compiled_is_what_a_launch_finds(tmp_path):
    """In Triton's cache, by another process, on a stub libcuda"""
    directory = stub.build(tmp_path)
    cache = tmp_path / "cache"
    results = []
    for how in ("compile", "launch"):
        settings = stub.environment(directory, tmp_path / f"{how}.jsonl") | {"TRITON_CACHE_DIR": str(cache)}
        settings["PYTHONPATH"] = os.pathsep.join([settings["PYTHONPATH"], str(Path(stub.__file__).parent)])
        done = subprocess.run(
            [sys.executable, "-c", COMPILES, how], env=settings, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        results.append((*json.loads(done.stdout.splitlines()[-1]), len(list(cache.rglob("*.cubin")))))
    assert results == [([0] * 4, [None] * 8, 4), ([2, 2, 2, 6], [None] * 8, 4)]
