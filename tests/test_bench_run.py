"""Cases, command line, workers, the correctness gate, and runs over stub cases."""

import math

import pytest
import torch
from support import bench_stubs
from support.bench_records import ENVIRONMENT

from bench import cases, check, compiling, digits, host, jobs, providers, records, run
from bench.__main__ import main, seconds
from bench.worker import Worker, WorkerError
from rnn_triton.hardware import RECORDS
from rnn_triton.plan import plan

CPU = torch.device("cpu")


# ---- cases and command line -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("suite", cases.SUITES)
def test_every_case_has_a_unique_name_that_parses_back(suite):
    listed = cases.suite(suite)
    assert [cases.parse(case.name) for case in listed] == list(listed)
    assert len({case.name for case in listed}) == len(listed)


def test_the_quick_suite_covers_what_it_should():
    listed = cases.suite("quick")
    for size, values in {"H": (32, 256), "B": (1, 256), "T": (64, 1024)}.items():
        found = [getattr(case, size) for case in listed]
        assert (min(found), max(found)) == values
    assert {case.dtype for case in listed} == set(cases.DTYPES)


@pytest.mark.parametrize(
    "arguments, messages",
    [
        (["list", "--suite", "quik"], ["unknown suite 'quik'", "nearest: quick"]),
        (["check", "--case", "h128-b16-t1024-bf61"], ["unknown case", "nearest: h128-b16-t1024-bf16"]),
        (["check", "--case", "h0-b1-t1-bf16"], ["sizes must be at least 1"]),
        (["check", "--case", "h8-b1-t1-bf16-ieee"], ["unknown case"]),
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
    case = cases.parse(request.param)
    inputs = providers.tensors(case, CPU)
    truth = check.reference(case, inputs)
    result = {name: value.to(providers.DTYPES[case.dtype]) for name, value in truth.items()}
    assert check.compare(case, result, truth).ok
    return case, result, truth


def test_the_reference_agrees_with_torch_in_fp64(judged):
    case, _, truth = judged
    inputs = {name: t.double() for name, t in providers.tensors(case, CPU).items()}
    session = providers.ModuleSession(torch.nn.RNN(case.I, case.H, dtype=torch.float64), inputs)
    for name, value in session.train().items():
        assert torch.allclose(value, truth[name], rtol=1e-12, atol=1e-12), name


@pytest.mark.parametrize("quantity", ["y", "hn", *providers.GRADIENTS])
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
    case = cases.parse("h40-i24-b3-t50-fp32-ieee")
    verdict = check.gate(case, providers.PROVIDERS["torch.nn.RNN"], CPU)
    assert verdict.ok and 0 < verdict.worst() < 0.5


def test_the_gate_refuses_a_provider_that_forgets_the_state():
    class Forgetful(providers.TorchRNN):
        def session(self, case, inputs):
            session = super().session(case, inputs)
            session.module.weight_hh_l0.data.zero_()
            return session

    verdict = check.gate(cases.parse("h16-b3-t5-fp32"), Forgetful(), CPU)
    assert not verdict.ok and "y: relative error" in verdict.message


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


def test_a_worker_has_its_environment_from_the_start():
    with Worker(bench_stubs.environment, {"RNN_TRITON_BENCH": "1"}) as worker:
        assert not worker.is_warm and worker.call("RNN_TRITON_BENCH", 60) == "1" and worker.is_warm
    assert bench_stubs.environment("RNN_TRITON_BENCH") is None


def test_a_hang_and_a_crash_cost_their_case_alone(tmp_path):
    chosen = [cases.case(H, 1, 8, "bf16") for H in (1, 2, 3, 4)]
    with records.Writer(tmp_path / "t.jsonl", "run-1", ENVIRONMENT) as writer:
        found, left = run.run(
            chosen, ("fwd",), writer, math.inf, function=bench_stubs.measure, timeout=5, providers=("rnn_triton",),
            estimate=lambda case, pass_: (0.1, 0.2),
        )  # fmt: skip
    assert [r["status"] for r in found] == ["ok", "timeout", "error", "ok"] and left == []
    assert "planted" in found[2]["message"] and found[0]["floor_us_per_step"] == 0.1
    assert records.read([tmp_path / "t.jsonl"]) == (found, [])


def test_the_budget_leaves_cases_out_and_says_which(tmp_path):
    clock = iter(range(0, 1000, 10))  # every look at the clock is ten seconds later
    chosen = [cases.case(H, 1, 8, "bf16") for H in (1, 4, 5, 6, 7)]
    with records.Writer(tmp_path / "t.jsonl", "run-1", ENVIRONMENT) as writer:
        found, left = run.run(
            chosen, ("fwd",), writer, 55, function=bench_stubs.measure, clock=lambda: next(clock), providers=("rnn_triton",)
        )
    assert [r["case"] for r in found] + [c.name for c in left] == [c.name for c in chosen]
    assert 0 < len(found) < len(chosen)


def test_failures_in_parallel_take_the_place_of_results():
    found = dict(compiling.in_parallel(bench_stubs.misbehave, ["a", "raise"], "testing"))
    assert found[0][1] == "a" and isinstance(found[1], RuntimeError)


# ---- plans ----------------------------------------------------------------------------------------------------------


def test_distinct_plans_tell_grid_kernels_apart():
    """A grid kernel is another for every H, and for every I where it projects x; its number of groups is none of it."""
    found = jobs.distinct_plans("sm_90")
    grids = [(problem, plan(problem, device)) for problem, device in found]
    grids = [(problem, p) for problem, p in grids if p.regime == "grid"]
    sizes = {(problem.direction, problem.H) for problem, _ in grids}
    assert sizes >= {("forward", 384), ("backward", 384), ("forward", 1000), ("forward", 4096)}
    assert {problem.I for problem, p in grids if problem.H == 1024 and p.w_ih_home == "registers"} >= {64, 1024}
    few = jobs.distinct_plans("sm_90", few=True)
    of = [(problem.direction, problem.precision) for problem, device in few if plan(problem, device).regime == "grid"]
    assert len(of) == len(set(of)) == 6 and len(of) < len(few) < len(found) - len(grids)


def test_records_name_the_regime_of_a_plan():
    listed = [cases.parse(name) for name in ("h64-b8-t4-bf16", "h5000-b8-t4-bf16")]
    found = [providers.PROVIDERS["rnn_triton"].plan(case, CPU) for case in listed]
    assert [(f["forward"]["regime"], f["backward"]["regime"]) for f in found] == [("single_cta",) * 2, ("per_step",) * 2]


def test_the_models_table_goes_beyond_one_cta():
    table = jobs.model_table(RECORDS["sm_90"])
    assert "H 128 B 16" in table and "H 1024 B 64" in table and "H 4096 B 16" in table and "no plan" not in table


# ---- the rest -------------------------------------------------------------------------------------------------------


def test_host_cost_runs_no_kernel_and_restores_everything():
    from rnn_triton import op

    before = (op.launch.forward, op.launch.backward, op.gemm.matmul, op.interpreter.active)
    with host.nothing_runs():
        y, hn = op.rnn(*(torch.zeros(s) for s in ((2, 1, 4), (4, 4), (4, 4), (4,), (4,), (1, 4))), "tanh", False, "ieee")
        assert y.shape == (2, 1, 4) and hn.shape == (1, 4)
    assert before == (op.launch.forward, op.launch.backward, op.gemm.matmul, op.interpreter.active)


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
    with records.Writer(tmp_path / "t.jsonl", "run-1", ENVIRONMENT) as writer:
        outcome = digits.train(example, CPU, writer)
    assert len(outcome.failures) == len(failures)
    assert all(text in failure for text, failure in zip(failures, outcome.failures))
    found, problems = records.read([tmp_path / "t.jsonl"])
    assert [(r["implementation"], r["seed"]) for r in found] == [(n, s) for n in ("rnn_triton", "torch") for s in (0, 1)]
    assert problems == []
