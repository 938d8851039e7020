"""Cases, command line, workers, the correctness gate, and runs over stub cases."""

import importlib
import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

import pytest
import torch
from support import bench_dry, bench_stubs
from support.bench_records import ENVIRONMENT

from bench.__main__ import main
from bench.cases import case as cases
from bench.cases import estimate, suites
from bench.cases.inputs import DTYPES, tensors
from bench.command import seconds
from bench.compiled import job as compiled_job
from bench.instruments import timing, worker
from bench.instruments.worker import Worker, WorkerError
from bench.measure import check, digits, host, run
from bench.measure import job as measure_job
from bench.model import job as model_job
from bench.providers import registry, sessions, torch_nn
from bench.records import schema, store
from bench.records.rows import rows as rows_of
from rnn_triton import cells
from rnn_triton.cells.elman import ELMAN
from rnn_triton.cells.leaky import LEAKY
from rnn_triton.plan.choose import plan
from rnn_triton.plan.hardware import RECORDS

CPU = torch.device("cpu")


# ---- cases and command line -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("suite", suites.SUITES)
def test_every_case_has_a_unique_name_that_parses_back(suite):
    listed = suites.suite(suite)
    assert [suites.parse(case.name) for case in listed] == list(listed)
    assert len({case.name for case in listed}) == len(listed)


def test_the_cells_of_cases_are_those_that_are_registered():
    assert {name: len(cells.named(name).gates) for name in cases.CELLS} == cases.CELLS
    assert {c.name for c in (*ELMAN.values(), *LEAKY.values(), cells.named("gru"), cells.named("lstm"))} == set(cases.CELLS)
    assert {case.cell for case in suites.suite("check")} <= set(cases.CELLS)


def test_the_quick_suite_covers_what_it_should():
    """15 points across the regimes, every dtype, and the cells that cuDNN has"""
    listed = suites.suite("quick")
    assert len(listed) == 15 and {case.dtype for case in listed} == set(cases.DTYPES)
    assert {case.cell for case in listed} == {"elman_tanh", "gru", "lstm"}
    regimes = [plan(estimate.problems(case)[0], RECORDS["sm_90"]).regime for case in listed]
    assert {name: regimes.count(name) >= 1 for name in regimes} == dict.fromkeys(("one_cta", "cta_group", "per_step"), True)


@pytest.mark.parametrize(
    "suite, size, values",
    [
        ("small-h", "H", (32, 256)), ("small-h", "B", (1, 4096)), ("small-h", "T", (64, 2048)), ("cliff", "H", (256, 392)),
        ("medium", "H", (512, 1024)), ("medium", "B", (1, 128)), ("large", "H", (1536, 4096)), ("large", "B", (1, 64)),
        ("deepbench", "T", (50, 500)), ("stack", "layers", (1, 8)), ("scaling", "T", (64, 16384)), ("scaling", "H", (64, 8192)),
        ("scaling", "B", (1, 1024)), ("scaling", "layers", (1, 16)), ("odd", "I", (1, 1000)), ("ensemble", "models", (1, 256)),
        ("streaming", "H", (64, 1024)), ("streaming", "B", (1, 1)), ("streaming", "T", (1, 20)), ("heads", "models", (1, 48)),
        ("heads", "heads", (1, 48)), ("varlen", "heads", (1, 1)),
    ],
)  # fmt: skip
def test_suites_reach_from_the_smallest_to_the_largest(suite, size, values):
    found = [getattr(case, size) for case in suites.suite(suite)]
    assert (min(found), max(found)) == values


def test_suites_can_be_named_together_and_share_cases():
    both = suites.suites("quick,first")
    assert len(both) < len(suites.suite("quick")) + len(suites.suite("first")) and len(set(both)) == len(both)
    assert set(suites.suites("all")) >= set(suites.suite("odd")) and not set(suites.suites("all")) & set(suites.suite("check"))
    assert all(case.models * case.H == 768 for case in suites.suite("flashrnn-paper"))
    assert {case.models * case.H for case in suites.suite("heads")} == {768, 512}
    # what is timed as models is timed as heads of a layer, too
    of_models, of_heads = ({(c.cell, n) for c in suites.suite("heads") if (n := getattr(c, kind)) > 1} for kind in ("models", "heads"))
    assert of_models == of_heads
    assert all(case.H % 8 or case.I % 8 or case.B % 8 for case in suites.suite("odd"))


def test_a_name_says_all_that_is_unusual():
    name = "gru-h128-i64-b16-t256-l4-bi-m8-heavy-fp32-ieee"
    case = suites.parse(name)
    assert case.name == name and case == cases.case(
        128, 16, 256, "fp32", 64, ieee=True, cell="gru", layers=4, bidirectional=True, models=8, lengths="heavy"
    )
    assert suites.parse("elman_relu-h128-b16-t256-bf16").cell == "elman_relu"
    of_heads = suites.parse("gru-h512-b16-t64-n8-uniform-bf16")
    assert of_heads == cases.case(512, 16, 64, "bf16", cell="gru", heads=8, lengths="uniform") and suites.parse(of_heads.name) == of_heads


@pytest.mark.parametrize(
    "arguments, messages",
    [
        (["list", "--suite", "quik"], ["unknown suite 'quik'", "nearest: quick"]),
        (["check", "--case", "h128-b16-t1024-bf61"], ["unknown case", "nearest: h128-b16-t1024-bf16"]),
        (["check", "--case", "h0-b1-t1-bf16"], ["sizes must be at least 1"]),
        (["explain", "h1024"], ["nearest: h1024-b1-t1-bf16, h1024-b1-t1-fp32"]),
        (["explain", "h1000-b16-bf16"], ["nearest: h1024-b16-t"]),
        (["explain", "gru-h700"], ["nearest: gru-h768-b16-t1024"]),
        (["explain", "h999999999-b1-t1-bf16"], ["'h999999999-b1-t1-bf16': its tensors take 3.64e+06 TiB, more than any GPU has"]),
        (["explain", "h8-b1-t999999999999-bf16"], ["its tensors take"]),
        (["check", "--case", "h8-b1-t1-bf16-ieee"], ["unknown case"]),
        (["check", "--case", "elman_tanh-h8-b1-t1-bf16"], ["unknown case", "form: [CELL-]h128"]),
        (["check", "--case", "mgu-h8-b1-t1-bf16"], ["unknown cell 'mgu'; "]),
        (["check", "--case", "h8-b1-t1-m0-bf16"], ["sizes must be at least 1"]),
        (["check", "--case", "h8-b1-t1-n3-bf16"], ["3 heads do not divide H = 8"]),
        (["check", "--case", "h8-b1-t1-m2-n2-bf16"], ["unknown case", "[-m8|-n8]"]),
        (["list", "--suite", "quick,medum"], ["unknown suite 'medum'", "nearest: medium"]),
        (["list", "suits"], ["unknown list 'suits'", "nearest: suites"]),
        (["explain", "h128-b16-t1024-bf61"], ["unknown case", "nearest: h128-b16-t1024-bf16"]),
        (["figures", "--only", "spedup"], ["unknown figure 'spedup'", "nearest: speedup"]),
        (["compare", "nowhere", "neither"], ["nowhere"]),
        (["run", "--pass", "forward"], ["unknown pass 'forward'"]),
        (["run", "--dtype", "bf61"], ["unknown dtype 'bf61'", "bf16"]),
        (["run", "--providers", "rnn_tritn"], ["unknown provider", "nearest: rnn_triton"]),
        (["model", "--arch", "sm_1"], ["unknown architecture 'sm_1'"]),
        (["resources", "--arch", "sm_1"], ["sm_1", "sm_90"]),
        (["report", "nowhere.jsonl"], ["nowhere.jsonl"]),
    ],
)
def test_wrong_use_is_answered_with_what_would_be_right(arguments, messages, capsys):
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert all(message in error for message in messages), error


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_timing_without_a_gpu_says_what_works(capsys, tmp_path):
    assert main(["run", "--out", str(tmp_path)]) == 2
    assert "check | resources | model" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["run", "--budget", "-5m"], "expected a time such as 8m, 90s or 1h, got '-5m'"),
        (["--quick", "--budget", "-5"], "expected a time such as 8m, 90s or 1h, got '-5'"),
        (["compare", "a", "b", "--within", "-2%"], "expected a share between 0 and 1 such as 2% or 0.02, got '-2%'"),
        (["run", "--repeats", "-1"], "expected a whole number from 1 on, got '-1'"),
        (["run", "--repeats", "0"], "expected a whole number from 1 on, got '0'"),
    ],
)
def test_a_number_that_cannot_be_is_named(arguments, message, capsys):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2 and capsys.readouterr().err.splitlines()[-1].endswith(message)


def test_every_listed_case_is_one_that_a_gpu_can_hold():
    assert all(suites._bytes(case) < 2**32 for listed in suites.SUITES.values() for case in listed)


def test_compare_without_numpy_says_what_to_install(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "numpy", None)
    for name in ("records.compare", "model.fit"):
        monkeypatch.delitem(sys.modules, f"bench.{name}", raising=False)
        monkeypatch.delattr(f"bench.{name}", raising=False)
    assert main(["compare", "a", "b"]) == 2
    assert capsys.readouterr().err == "bench: this needs numpy, which is not installed: pip install numpy\n"
    assert "not fitted: this needs numpy" in model_job.fit_table([])
    assert main(["explain", "h128-b16-t256-bf16", "--out", str(tmp_path)]) == 0  # needs none
    monkeypatch.setattr(measure_job, "run_host", lambda: importlib.import_module("bench.nothing_like_it"))
    with pytest.raises(ModuleNotFoundError, match="nothing_like_it"):  # a fault of ours is shown as one
        main(["host"])


def test_an_interrupt_is_one_line_and_its_own_status(tmp_path, monkeypatch, capsys):
    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr(measure_job, "run_host", interrupted)
    assert main(["--out", str(tmp_path), "host"]) == 130
    assert capsys.readouterr().err == f"\nbench: interrupted after 0 s; what was done is kept in {tmp_path}\n"


@pytest.mark.long
@pytest.mark.parametrize("arguments", [["check", "--suite", "check"], ["resources", "--arch", "sm_80"]], ids=" ".join)
def test_ctrl_c_ends_every_process_with_one_line(arguments, tmp_path):
    """A terminal sends SIGINT to all processes of a group"""
    command = [sys.executable, "-m", "bench", *arguments, "--out", str(tmp_path)]
    root = Path(__file__).parents[1]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=root, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored in what a shell runs in the background
    )  # fmt: skip
    said = []
    for line in process.stderr:
        said.append(line)
        if re.search(r"(checking|compiling.*) [1-9]\d*/", line) or len(said) == 3:
            break
    os.killpg(process.pid, signal.SIGINT)
    out, rest = process.communicate(timeout=600)
    said += rest.splitlines()
    assert process.returncode == 130 and "Traceback" not in "".join(said) + out, (out, said)
    assert sum("bench: interrupted after" in line for line in said) == 1
    deadline = time.monotonic() + 60
    while alive(process.pid) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not alive(process.pid)
    for path in tmp_path.glob("*.jsonl"):
        assert store.read([path])[1] == []  # whole lines


def alive(group):
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_no_command_prints_the_help(capsys):
    assert main([]) == 2 and "--quick" in capsys.readouterr().out


def test_budget_forms():
    assert [seconds(t) for t in ("8m", "90s", "1h", "30", "1.5m")] == [480, 90, 3600, 30, 90]
    for text in ("", "8 min", "-3", "0", "m"):
        with pytest.raises(Exception, match="expected a time"):
            seconds(text)


# ---- the gate -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["h24-i10-b3-t20-fp32-ieee", "h24-i10-b3-t20-bf16", "h24-i10-b3-t20-fp32"])
def judged(request):
    case = suites.parse(request.param)
    inputs = tensors(case, CPU)
    truth = check.reference(case, inputs)
    result = {name: value.to(DTYPES[case.dtype]) for name, value in truth.items()}
    assert check.compare(case, result, truth).ok
    return case, result, truth


def test_the_reference_agrees_with_torch_in_fp64(judged):
    case, _, truth = judged
    inputs = {name: t.double() for name, t in tensors(case, CPU).items()}
    session = sessions.ModuleSession(torch.nn.RNN(case.I, case.H, dtype=torch.float64), inputs)
    for name, value in session.train().items():
        assert torch.allclose(value, truth[name], rtol=1e-12, atol=1e-12), name


WEIGHTS = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")


@pytest.mark.parametrize("quantity", ["y", "hn", "dx", "dh0", *(f"d{name}" for name in WEIGHTS)])
@pytest.mark.parametrize("fault", ["one element", "scaled", "nan", "zero", "shape"])
def test_the_gate_refuses_wrong_numbers(judged, quantity, fault):
    case, result, truth = judged
    value = result[quantity].clone()
    if fault == "one element":
        index = value.abs().flatten().argmax()
        value.view(-1)[index] = 0
    elif fault == "scaled":
        value *= 1 + 3 * check.tolerance(case, quantity)[0]
    elif fault == "nan":
        value.view(-1)[0] = math.nan
    elif fault == "zero":
        value.zero_()
    else:
        value = value[..., :-1]
    verdict = check.compare(case, result | {quantity: value}, truth)
    assert not verdict.ok and verdict.message.startswith(quantity)


def test_the_gate_passes_torch_in_fp32():
    case = suites.parse("h40-i24-b3-t50-fp32-ieee")
    verdict = check.gate(case, registry.PROVIDERS["cudnn"], CPU)
    assert verdict.ok and 0 < verdict.worst() < 0.5


def test_the_gate_refuses_a_provider_that_forgets_the_state():
    class Forgetful(torch_nn.TorchRNN):
        def session(self, case, inputs):
            session = super().session(case, inputs)
            session.module.weight_hh_l0.data.zero_()
            return session

    verdict = check.gate(suites.parse("h16-b3-t5-fp32"), Forgetful(), CPU)
    assert not verdict.ok and "y: relative error" in verdict.message


def test_a_part_that_is_next_to_nothing_widens_no_other_ones_tolerance():
    """fp16 has no relative precision for such states of a layer; those of the other one have theirs."""
    case = suites.parse("h40-b3-t9-l2-fp16")
    hn = torch.randn(2, 3, 40, generator=torch.Generator().manual_seed(0)).double()
    hn[1] *= 1e-7
    assert check.compare(case, {"hn": hn.half()}, {"hn": hn}).ok
    for layer, by, ok in ((0, 1.05, False), (1, 1.05, True), (1, 1e3, False), (0, math.nan, False), (1, math.nan, False)):
        wrong = hn.clone()
        wrong[layer] *= by
        assert check.compare(case, {"hn": wrong}, {"hn": hn}).ok is ok


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_the_gate_of_small_signals_refuses_what_loses_them(dtype):
    """States rounded to multiples of a small number, which the usual gate does not see"""
    small = {"fp32": 1e-7, "bf16": 1e-4, "fp16": 1e-4}[dtype]

    class Lossy(torch_nn.TorchRNN):
        def session(self, case, inputs):
            session = super().session(case, inputs)
            train, forward = session.train, session.forward
            session.train = lambda: (r := train()) | {"y": lost(r["y"])}
            session.forward = lambda: (lost((r := forward())[0]), r[1])
            return session

    def lost(y):
        return (y / small).round() * small

    case = suites.parse(f"h40-i24-b3-t9-{dtype}")
    assert check.gate_of_sizes(case, registry.PROVIDERS["cudnn"], CPU).ok
    assert check.gate(case, Lossy(), CPU).ok
    verdict = check.gate_of_sizes(case, Lossy(), CPU)
    assert verdict.message.startswith("of small signals: ") and "y: relative error" in verdict.message
    assert "dx of small signals" in verdict.errors


# ---- workers and runs -----------------------------------------------------------------------------------------------


def test_a_worker_survives_what_its_calls_do():
    with Worker(bench_stubs.misbehave) as worker:
        first, answer = worker.call("fine", 60)
        assert answer == "fine" and worker.call("again", 60)[0] == first  # kept warm
        for what, status, message in (
            ("raise", "error", "RuntimeError: no such luck (bench_stubs.py:"),
            ("crash", "error", "exit code 17"),
            ("hang", "timeout", "no answer within 0 s"),
        ):
            with pytest.raises(WorkerError) as failure:
                worker.call(what, 60 if what != "hang" else 0.3)
            assert failure.value.status == status and message in str(failure.value)
        second, answer = worker.call("alive", 60)
        assert answer == "alive" and second != first


def test_a_worker_hears_nothing_of_ctrl_c():
    with Worker(bench_stubs.misbehave) as worker:
        first, _ = worker.call("fine", 60)
        os.kill(first, signal.SIGINT)
        assert worker.call("again", 60) == (first, "again")
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())  # and this process does


def test_no_call_is_begun_when_nobody_waits_for_it(tmp_path):
    found = worker.in_parallel(bench_stubs.mark, [tmp_path / str(i) for i in range(200)], "testing")
    next(found)
    found.close()
    time.sleep(0.5)
    begun = len(list(tmp_path.iterdir()))
    time.sleep(1.0)
    assert len(list(tmp_path.iterdir())) == begun < 200


def test_a_worker_has_its_environment_from_the_start():
    with Worker(bench_stubs.environment, {"RNN_TRITON_BENCH": "1"}) as worker:
        assert not worker.is_warm and worker.call("RNN_TRITON_BENCH", 60) == "1" and worker.is_warm
    assert bench_stubs.environment("RNN_TRITON_BENCH") is None


BOTH = ("rnn_triton", "cudnn")


def jobs_of(*sizes, providers=BOTH):
    return [cases.Job(cases.case(H, 1, 8, "bf16"), ("fwd",), providers) for H in sizes]


def run_stub(tmp_path, jobs, **options):
    """{(H, provider): record} of a run whose worker is a stub"""
    with store.Writer(tmp_path / "t.jsonl", "run-1", ENVIRONMENT) as writer:
        found, left = run.run(jobs, writer, math.inf, function=bench_stubs.measure, **options)
    assert left == [] and store.read([tmp_path / "t.jsonl"]) == (found, [])
    return {(r["shape"]["H"], r["provider"]): r for r in found}


def test_a_hang_and_a_crash_cost_their_case_alone(tmp_path):
    estimated = {"floor_us_per_step": 0.1, "practical_us_per_step": 0.2, "parts_us_per_step": {"exchange": 0.2}}
    found = run_stub(
        tmp_path, jobs_of(1, 2, 3, 4, providers=("rnn_triton",)), timeout=2.0, estimate=lambda case, pass_: estimated
    )
    assert [found[H, "rnn_triton"]["status"] for H in (1, 2, 3, 4)] == ["ok", "timeout", "error", "ok"]
    assert "planted" in found[3, "rnn_triton"]["message"] and found[2, "rnn_triton"]["seconds"] > 2
    assert all(record["floor_us_per_step"] == 0.1 for record in found.values())


def test_a_provider_that_dies_and_can_be_told_costs_itself_alone(tmp_path):
    found = run_stub(tmp_path, jobs_of(7), estimate=lambda case, pass_: {"floor_us_per_step": 0.1})
    assert found[7, "rnn_triton"]["status"] == "ok" and found[7, "rnn_triton"]["device_us"]["samples"]
    assert found[7, "cudnn"]["status"] == "error" and "exit code 17" in found[7, "cudnn"]["message"]
    assert (found[7, "rnn_triton"]["floor_us_per_step"], found[7, "cudnn"]["floor_us_per_step"]) == (0.1, None)


def test_one_that_dies_without_a_word_costs_itself_alone_too(tmp_path):
    found = run_stub(tmp_path, jobs_of(8, providers=(*BOTH, "loop", "compile")))
    status = {name: record["status"] for (_, name), record in found.items()}
    assert status == {"rnn_triton": "ok", "cudnn": "ok", "loop": "error", "compile": "ok"}


def test_what_is_nobodys_fault_is_not_tried_again(tmp_path):
    found = run_stub(tmp_path, jobs_of(9, providers=(*BOTH, "loop")))
    assert {record["status"] for record in found.values()} == {"error"} and len(found) == 3


def test_time_runs_from_the_last_sign_of_life(tmp_path):
    found = run_stub(tmp_path, jobs_of(1, 10, providers=("rnn_triton",)), timeout=2.5)
    assert found[10, "rnn_triton"]["status"] == "ok"


def test_a_worker_tells_where_it_was():
    with Worker(bench_stubs.measure) as worker, pytest.raises(WorkerError) as failure:
        worker.call(jobs_of(7)[0], 60)
    assert failure.value.at == "cudnn"
    with Worker(bench_stubs.misbehave) as worker, pytest.raises(WorkerError) as failure:
        worker.call("raise", 60)
    assert failure.value.at is None
    with Worker(bench_stubs.measure) as worker, pytest.raises(WorkerError) as failure:
        worker.call(jobs_of(10)[0], 60, 2.0)
    assert failure.value.status == "timeout" and failure.value.at in (None, "rnn_triton")


def measured(name, chosen, passes=cases.PASSES):
    """Records of a case on the CPU, by (provider, pass); times are a stub's."""
    found = run.measure(cases.Job(suites.parse(name), passes, chosen), CPU, bench_dry)
    for fields in found:
        schema.validate(fields | {"schema": schema.SCHEMA, "kind": "timing", "run": "r", "date": "d", "environment": ENVIRONMENT})
    return {(r["provider"], r["pass"]): r for r in found}


def test_measuring_fills_every_field_of_a_record():
    found = measured("h24-i10-b3-t20-l2-fp32", ("cudnn", "cudnn-layers", "loop"))
    assert set(found) == {(p, pass_) for p in ("cudnn", "cudnn-layers", "loop") for pass_ in cases.PASSES}
    for record in found.values():
        assert record["status"] == "ok" and record["short_T"] == 5 and record["seconds"] > 0
        for field in ("device_us", "short_us", "wall_us"):
            assert len(record[field]["samples"]) == 1
        assert record["graph_us"]["samples"] == [] and "graph capture failed: a CUDA graph needs a GPU" in record["message"]
    whole, layers = found["cudnn", "train"], found["cudnn-layers", "train"]
    # the stub's times count values returned: the same, and more of them with gradients and over more steps
    assert whole["device_us"] == layers["device_us"] and layers["plan"] == {"calls": 2}
    assert whole["device_us"]["median"] > found["cudnn", "fwd"]["device_us"]["median"] > found["cudnn", "fwd"]["short_us"]["median"]
    assert set(whole["errors"]) > {"y", "hn", "dx", "dweight_hh_l1"} and set(found["cudnn", "fwd"]["errors"]) == {"y", "hn"}


def test_what_is_not_here_or_does_not_fit_says_so():
    found = measured("h24-b3-t20-fp32", ("cudnn", "cudnn-layers", "graph"), passes=("fwd",))
    assert found["cudnn", "fwd"]["status"] == "ok"
    assert found["cudnn-layers", "fwd"]["status"] == "unsupported" and "the same as" in found["cudnn-layers", "fwd"]["message"]
    assert found["graph", "fwd"]["status"] == "missing" and "GPU" in found["graph", "fwd"]["message"]


class Broken(torch_nn.TorchRNN):
    """Wrong gradients, or an error when it runs"""

    def __init__(self, fault):
        self.fault = fault

    def session(self, case, inputs):
        session = super().session(case, inputs)
        train = session.train
        if self.fault == "gradient":
            session.train = lambda: (result := train()) | {"dx": 2 * result["dx"]}
        elif self.fault == "inaccurate":
            by = 1 + 4 * check.tolerance(case, "dx")[0]
            session.train = lambda: (result := train()) | {"dx": by * result["dx"]}
        elif self.fault == "forward":
            session.forward = lambda: (torch.zeros_like(train()["y"]), train()["hn"])
        else:
            session.train = self.fail
        return session

    def fail(self):
        raise NotImplementedError("no such plan") if self.fault == "unsupported" else RuntimeError("out of luck")


@pytest.mark.parametrize(
    "fault, fwd, train, said",
    [
        ("gradient", "ok", "wrong", "dx: relative error"), ("forward", "wrong", "ok", "without gradients: y"),
        ("unsupported", "ok", "unsupported", "no such plan"), ("raises", "ok", "error", "out of luck"),
    ],
)  # fmt: skip
def test_a_provider_that_is_wrong_is_recorded_as_that_and_costs_no_other(fault, fwd, train, said, monkeypatch):
    monkeypatch.setitem(registry.PROVIDERS, "loop", Broken(fault))
    found = measured("h24-b3-t20-fp32", ("loop", "cudnn"))
    assert (found["loop", "fwd"]["status"], found["loop", "train"]["status"]) == (fwd, train)
    assert said in found["loop", "train" if train != "ok" else "fwd"]["message"]
    assert all(found["cudnn", p]["status"] == "ok" and found["cudnn", p]["device_us"]["samples"] for p in cases.PASSES)
    rows = rows_of(
        [r | {"schema": schema.SCHEMA, "kind": "timing", "run": "r", "date": "d", "environment": ENVIRONMENT} for r in found.values()]
    )
    assert all((row.us is None) == (row.status != "ok") for row in rows)


def test_gradients_that_are_inaccurate_keep_their_times(monkeypatch):
    monkeypatch.setitem(registry.PROVIDERS, "loop", Broken("inaccurate"))
    found = measured("h24-b3-t20-bf16", ("loop", "cudnn"))
    records = [r | {"schema": schema.SCHEMA, "kind": "timing", "run": "r", "date": "d", "environment": ENVIRONMENT} for r in found.values()]
    rows = {(row.provider, row.pass_): row for row in rows_of(records)}
    row = rows["loop", "train"]
    assert row.status == "inaccurate" and row.message.startswith("dx: relative error") and "after it was timed" not in row.message
    assert row.us is None and row.speedup is None and row.inaccurate_us and rows["cudnn", "train"].peer == "cudnn"
    assert rows["loop", "fwd"].status == "ok" and rows["loop", "fwd"].peer_speedup


class Fragile:
    """A clock of a GPU that is broken once the gate has judged `who`"""

    def __init__(self, who):
        self.who, self.told = who, []

    def __getattr__(self, name):
        return getattr(bench_dry, name)

    def synchronize(self):
        if self.told.count(self.who) == 2:  # the first time it was asked whether it is here
            raise RuntimeError("an illegal memory access was encountered")


def test_a_broken_context_is_blamed_on_who_broke_it(monkeypatch):
    """What a peer's kernel does to the context shows at the next synchronization: that must be its own."""
    clock = Fragile("loop")
    monkeypatch.setattr(run, "at", clock.told.append)
    job = cases.Job(suites.parse("h24-b3-t20-fp32"), ("fwd",), ("cudnn", "loop", "rnn_triton"))
    with pytest.raises(RuntimeError, match="illegal memory access"):
        run.measure(job, CPU, clock)
    assert clock.told[-1] == "loop"


def test_every_step_taken_for_a_provider_is_told(monkeypatch):
    told = []
    monkeypatch.setattr(run, "at", told.append)
    run.measure(cases.Job(suites.parse("h24-b3-t20-fp32"), ("fwd",), ("cudnn", "loop")), CPU, bench_dry)
    # here?, the reference, judged; kernels and memory; alone; judged again; a graph
    assert told == ["cudnn", "loop", run.NOBODY, *["cudnn", "loop"] * 5, None]


def test_one_too_slow_to_be_timed_says_so(monkeypatch):
    monkeypatch.setattr(run, "MOST_SECONDS", 0.0)
    found = measured("h24-b3-t20-fp32", ("cudnn",), ("fwd",))["cudnn", "fwd"]
    assert found["status"] == "timeout" and "not timed: a call takes" in found["message"] and found["errors"]


def test_a_call_of_many_providers_takes_as_many_calls_as_it_is_said_to():
    """counts(), warm-ups and captures of timing.py and a last look, added up"""
    for each, warm, fewest in ((0.01, timing.WARMUP, timing.FEWEST), (0.3, 1, timing.FEWEST_LONG)):
        samples = timing.counts({"a": 1e6 * each}, 0.0)["a"]
        assert samples == fewest
        alone = max(1, 0.25 / each)
        expected = (warm + 1 + samples) * 1.25 + (1 + samples) + (warm + warm + 1 + samples) + 1 + alone
        assert run.calls_of_a_pass(each) == expected


def test_failures_in_parallel_take_the_place_of_results(monkeypatch):
    """A crash and a hang cost themselves, too."""
    monkeypatch.setattr(worker, "CALL_TIMEOUT", 8.0)
    found = dict(worker.in_parallel(bench_stubs.misbehave, ["a", "raise", "crash", "b", "hang", "c"], "testing"))
    assert [found[i][1] for i in (0, 3, 5)] == ["a", "b", "c"]
    assert "no such luck" in str(found[1]) and "exit code 17" in str(found[2]) and "no answer within 8 s" in str(found[4])


def test_what_is_compiling_when_the_time_is_up_is_ended():
    began = time.monotonic()
    assert list(worker.in_parallel(bench_stubs.misbehave, ["hang"] * 3, "testing", 2.0)) == []
    assert time.monotonic() - began < bench_stubs.HANG


def test_a_provider_is_asked_in_a_process_of_its_own():
    found = measure_job.providers_here(["cudnn", "xma"])
    assert found["cudnn"].missing == "" and found["cudnn"].version is None and "not installed" in found["xma"].missing


# ---- plans ----------------------------------------------------------------------------------------------------------


def test_distinct_plans_tell_grid_kernels_apart():
    """A grid kernel is another for every H, and for every I where it projects x; its number of groups is none of it."""
    found = compiled_job.distinct_plans("sm_90")
    grids = [(problem, plan(problem, device)) for problem, device in found]
    grids = [(problem, p) for problem, p in grids if p.regime == "cta_group"]
    sizes = {(problem.direction, problem.H) for problem, _ in grids}
    assert sizes >= {("forward", 384), ("backward", 384), ("forward", 1000), ("forward", 4096)}
    assert {problem.I for problem, p in grids if problem.H == 1024 and p.w_ih_home == "registers"} >= {64, 1024}
    few = compiled_job.distinct_plans("sm_90", few=True)
    of = [(problem.direction, problem.precision) for problem, device in few if plan(problem, device).regime == "cta_group"]
    assert len(of) == len(set(of)) == 6 and len(of) < len(few) < len(found) - len(grids)


def test_records_name_the_regime_of_a_plan():
    listed = [suites.parse(name) for name in ("h64-b8-t4-bf16", "h5000-b8-t4-bf16")]
    found = [registry.PROVIDERS["rnn_triton"].plan(case, CPU) for case in listed]
    assert [(f["forward"]["regime"], f["backward"]["regime"]) for f in found] == [("one_cta",) * 2, ("per_step",) * 2]


def test_the_models_table_goes_beyond_one_cta():
    table = model_job.model_table(RECORDS["sm_90"], suites.suites("quick,stack"))
    for name in ("h128-b16-t1024-bf16", "h4096-b8-t128-bf16", "h1024-b16-t512-l8-fp32"):
        assert name in table
    assert "no plan" not in table


# ---- the rest -------------------------------------------------------------------------------------------------------


def test_host_cost_runs_no_kernel_and_restores_everything():
    import rnn_triton
    from rnn_triton import rnn
    from rnn_triton.interpret import interpreter
    from rnn_triton.launch import dispatch, gemm

    before = (dispatch.forward, dispatch.backward, gemm.matmul, gemm.wide, interpreter.active)
    shapes = ((2, 1, 4), (4, 4), (4, 4), (4,), (4,), (1, 4))
    tensors = [torch.zeros(s, dtype=torch.bfloat16, requires_grad=True) for s in shapes]
    multiplied = mock.Mock(side_effect=AssertionError("a product runs"))
    with host.nothing_runs(), mock.patch.object(torch, "mm", multiplied), mock.patch.object(torch, "bmm", multiplied):
        y, hn = rnn(*tensors)
        assert y.shape == (2, 1, 4) and hn.shape == (1, 4)
        gradients = torch.autograd.grad(y.sum(), tensors)
        lstm = rnn_triton.LSTM(16, 16, dtype=torch.bfloat16)
        y, _ = lstm(torch.zeros(2, 1, 16, dtype=torch.bfloat16))
        torch.autograd.grad(y.sum(), list(lstm.parameters()))
    assert [g.shape for g in gradients] == [t.shape for t in tensors]
    with mock.patch.object(host, "host_us", lambda call: (call(), (1.0, 2.0, 3.0))[1]):
        assert set(host.measure()) == {f"{prefix}{name}" for prefix in ("", "empty ", "lstm ") for name in host.TARGETS_US}
    assert before == (dispatch.forward, dispatch.backward, gemm.matmul, gemm.wide, interpreter.active)


class StubExample:
    """Stands in for examples/digits.py."""

    SEEDS = (0, 1)

    def __init__(self, ours=0.97, theirs=0.97, losses=0.0, weights=0.0):
        self.values, self.differences = {"rnn_triton": ours, "torch": theirs}, (losses, weights)

    def run(self, implementation, seed, device, progress):
        progress(1, 1, 0.5)
        return {"accuracy": self.values[implementation], "losses": [0.5], "seconds": 1.0, "ran": implementation}

    def kernel_steps(self, device):
        losses, weights = self.differences
        return {"loss_difference": losses, "weight_difference": weights, "tolerance": 1e-5, "ran": "stub"}


@pytest.mark.parametrize(
    "example, failures",
    [
        (StubExample(), []),
        (StubExample(0.95, 0.95), ["below 96%"]),
        (StubExample(0.97, 0.98), ["differ by more than 0.5 points"]),
        (StubExample(losses=1.0), ["three kernel steps: loss"]),
        (StubExample(weights=math.nan), ["three kernel steps: weight"]),
    ],
)
def test_the_digits_gate(example, failures, tmp_path):
    with store.Writer(tmp_path / "t.jsonl", "run-1", ENVIRONMENT) as writer:
        outcome = digits.train(example, CPU, writer)
    assert len(outcome.failures) == len(failures)
    assert all(text in failure for text, failure in zip(failures, outcome.failures))
    found, problems = store.read([tmp_path / "t.jsonl"])
    # on the CPU both run torch, and one seed is enough
    assert [(r["implementation"], r["seed"]) for r in found] == [("rnn_triton", 0), ("torch", 0)] and outcome.seeds == 1
    assert problems == []
