"""What reaches the CUDA driver: the real launch path, Triton's and ours, on a stub libcuda (tests/stub_cuda).

CtaGroup, threads, shared memory, the cooperative flag and every parameter of a launch are compared with the plan, for the
first call of a kernel, which Triton launches, and for the second, which goes to the kept kernel.  The stub process runs
all cases at once; kernels do not run in it.
"""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
from stub_cuda import stub

pytestmark = [pytest.mark.compiled, pytest.mark.together]

ONE_LANE = [0, 0, 0, 0]  # the launch's id, its limit of polls, what is dropped, the number of the bottom layer
ONE_MODEL = [*ONE_LANE, 0, 0, 0]  # which tensors are per model, and how far the models' x and u lie apart
TOO_LARGE = "RuntimeError: Triton Error [CUDA]: too many blocks in cooperative launch"

FORWARD = dict(direction="forward", dtype="bf16", T=3)
BACKWARD = dict(direction="backward", dtype="bf16", T=3)

# Problems by name, which begins with the regime that their plan must have.
PROBLEMS = {
    "one_cta-forward": dict(FORWARD, B=9, I=16, H=32),
    "one_cta-backward": dict(BACKWARD, B=9, I=16, H=32),
    "one_cta-shared": dict(FORWARD, B=8, I=288, H=128),  # W_ih in shared memory: above the 48 KB that are free
    "one_cta-ensemble": dict(FORWARD, B=9, I=16, H=32, M=5),
    "one_cta-ensemble-backward": dict(BACKWARD, B=9, I=16, H=32, M=5),
    "cta_group-forward": dict(FORWARD, B=16, I=32, H=512, override=dict(regime="cta_group", units=16, groups=2)),
    "cta_group-backward": dict(BACKWARD, B=16, I=32, H=512, override=dict(regime="cta_group", groups=2, protocol="counter")),
    "cta_group-stack-forward": dict(FORWARD, B=8, I=64, H=256, layers=4),
    "cta_group-stack-backward": dict(BACKWARD, B=8, I=64, H=256, layers=4),
    "one_cta-stack-forward": dict(FORWARD, B=9, I=16, H=32, layers=3),
    "one_cta-stack-backward": dict(BACKWARD, B=9, I=16, H=32, layers=3),
    "per_step-forward": dict(FORWARD, B=8, I=32, H=320, override=dict(regime="per_step")),
}

# A plan for a GPU twice the size of the stub's: more CTAs than it can run at once.
BEYOND = {"cta_group-beyond": dict(FORWARD, B=40, I=32, H=512, override=dict(regime="cta_group", units=16, groups=5), sms=264)}

# Part of the SMs is another's, which is found out by the first call, or by one that goes to the kept kernel.
RESTRICTED = {
    f"{name}-{when}": dict(case, together=together)
    for name, case in {
        "forward": dict(FORWARD, B=32, I=32, H=1024),
        "backward": dict(BACKWARD, B=32, I=32, H=1024),
        "stack-forward": dict(FORWARD, B=8, I=64, H=512, network=[4, 1]),
        "stack-backward": dict(BACKWARD, B=8, I=64, H=512, network=[4, 1]),
        "stack-of-single-ctas": dict(FORWARD, B=88, I=64, H=64, network=[4, 1]),
        "directions-forward": dict(FORWARD, B=8, I=64, H=1024, network=[1, 2]),
        "directions-backward": dict(BACKWARD, B=8, I=64, H=1024, network=[1, 2]),
    }.items()
    for when, together in {"at-once": [40] * 3, "later": [132, *[40] * 3]}.items()
}

# fp32 products [M, N, K, columns between a's rows] call after call, a being transposed: dw of T B = K, odd ones too
GEMM = {
    "gemm-of-any-size": dict(gemm=[[128, 64, 4096, 128], [128, 64, 4095, 128], [96, 36, 513, 96]]),
    "gemm-of-odd-rows": dict(gemm=[[125, 63, 4096, 125], [125, 63, 4095, 125], [96, 37, 513, 97]]),
}

# A module's first step, forward and backward
STEPS = {
    "first-step-of-RNN": dict(module="RNN", dtype="bf16", T=3, B=9, I=16, H=32),
    "first-step-of-LSTM": dict(module="LSTM", dtype="fp32", T=3, B=9, I=16, H=32),
}

# Launches of a kernel of no use: what the stub does with them.
KERNELS = {
    "plain": dict(grid=4000),
    "cooperative": dict(grid=132, cooperative=True),
    "cooperative-beyond-the-chip": dict(grid=133, cooperative=True),
    "cooperative-after-that": dict(grid=132, cooperative=True),
    "cluster": dict(grid=4, num_ctas=2),
}


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    directory = stub.build(tmp_path_factory.mktemp("stub_cuda"))
    cases = BEYOND | PROBLEMS | RESTRICTED | GEMM | STEPS | KERNELS  # what fails comes first: the launches after it work
    run = subprocess.run(
        [sys.executable, str(Path(stub.__file__).with_name("run.py")), json.dumps(list(cases.values()))],
        env=stub.environment(directory, directory / "log.jsonl"), capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert (run.stdout.count("\n"), run.stderr) == (1, "")  # the answers alone: the first call of a shape says nothing
    return dict(zip(cases, json.loads(run.stdout.splitlines()[-1])["answers"], strict=True))


def launches(call):
    return [record for record in call["driver"] if record["call"] == "cuLaunchKernelEx"]


def named(call, launch):
    """The launch's parameters with addresses replaced by their tensors' names"""
    names = {address: name for name, address in call["tensors"].items()}
    return [names.get(value, value) for value in launch["parameters"]]


def one_cta(problem, plan):
    tiles = math.ceil(problem["B"] / plan["block_b"])
    lanes = problem.get("layers", 1)
    return [dict(kernel="one_cta", grid=[problem.get("M", 1) * tiles, lanes, 1], cooperative=lanes > 1)]


def cta_group(problem, plan):
    lanes = problem.get("layers", 1)
    assert lanes * plan["groups"] * plan["ctas"] <= 132
    return [dict(kernel="cta_group", grid=[plan["groups"] * plan["ctas"], lanes, 1], cooperative=True)]


def per_step(problem, plan):
    tiles = math.ceil(problem["B"] / plan["block_b"]) * math.ceil(problem["H"] / plan["block_h"])
    return [dict(kernel="per_step", grid=[tiles, 1, 1], cooperative=False)] * problem["T"]


# From a problem and its plan to the launches of one call.
EXPECTED = {"one_cta": one_cta, "cta_group": cta_group, "per_step": per_step}


@pytest.mark.parametrize("name", PROBLEMS)
def test_every_call_launches_what_the_plan_says(answers, name):
    answer = answers[name]
    assert answer["plan"]["regime"] == name.split("-")[0]
    for call in answer["calls"]:
        assert call["error"] is None
        expected = EXPECTED[answer["plan"]["regime"]](PROBLEMS[name], answer["plan"])
        for got, want in zip(launches(call), expected, strict=True):
            compiled = answer["calls"][0]["compiled"][str(got["function"])]
            assert compiled["kernel"] == want["kernel"]
            assert got["grid"] == want["grid"]
            # the other dimensions end at 65,535: no more than lanes are there
            assert got["grid"][1:] == [PROBLEMS[name].get("layers", 1), 1]
            assert got["cooperative"] == compiled["cooperative"] == want["cooperative"]
            assert got["block"] == [32 * answer["plan"]["warps"], 1, 1]
            assert compiled["num_warps"] == answer["plan"]["warps"]
            assert got["shared_bytes"] == compiled["shared"]
            assert 16 <= compiled["registers"] <= 255  # the stub reads them from the machine code
            assert got["cluster"] == [1, 1, 1]
            assert got["stream"] == 0
            assert got["result"] == 0


@pytest.mark.parametrize("name", PROBLEMS)
def test_the_kept_kernel_gets_what_triton_gave_it(answers, name):
    first, second = answers[name]["calls"]
    assert first["jit"] > 0
    assert second["jit"] == 0
    assert [record["call"] for record in second["driver"]] == ["cuLaunchKernelEx"] * len(launches(first))
    for one, two in zip(launches(first), launches(second), strict=True):
        assert {**one, "parameters": None} == {**two, "parameters": None}
        assert ours(named(first, one)) == ours(named(second, two))


@pytest.mark.parametrize("name", PROBLEMS)
def test_a_launch_finds_what_was_compiled_ahead(answers, name):
    """in Triton's cache: the same types, alignments, constants and options"""
    compiled = answers[name]["calls"][0]["compiled"].values()
    assert {kernel["hash"] for kernel in compiled} == {answers[name]["ahead"]}


@pytest.mark.parametrize("name", STEPS)
def test_the_first_call_of_a_shape_compiles_four_kernels_at_most(answers, name):
    forward, backward = answers[name]["calls"]
    assert forward["error"] is backward["error"] is None
    assert forward["compiled"] and backward["compiled"]
    assert len(forward["compiled"]) <= 4 and len(backward["compiled"]) <= 4


@pytest.mark.parametrize("name", GEMM)
def test_a_product_of_another_size_takes_the_kept_kernel(answers, name):
    """which is what compiles ahead of time: nothing is compiled for a T B, and Triton's launch path runs once"""
    first, *others = answers[name]["calls"]
    assert [call["error"] for call in answers[name]["calls"]] == [None] * 3
    assert first["jit"] == 1 and all(call["jit"] == 0 for call in others)
    (compiled,) = first["compiled"].values()
    assert compiled["kernel"] == "matmul_kernel" and compiled["hash"] == answers[name]["ahead"]
    unit = 4 if name == "gemm-of-any-size" else 1
    for (M, N, K, apart), call in zip(GEMM[name]["gemm"], answers[name]["calls"], strict=True):
        (launch,) = launches(call)
        assert [r["call"] for r in call["driver"]].count("cuModuleLoadData") == (call is first)
        splits = launch["grid"][1]
        assert launch["result"] == 0 and launch["grid"] == [-(-M // 64) * -(-N // 64), splits, 1]
        assert not launch["cooperative"]
        strides = [0, 1 // unit, apart // unit, 0, N // unit, 1 // unit]  # a stride of 1 is in the kernel
        assert launch["parameters"][3:] == [M // unit, N // unit, K, *strides, 1024 // 32, 0, 0]
        assert named(call, launch)[:2] == ["a", "b"]
        assert -(-K // splits) <= 1024 < K or splits == 1


def ours(parameters):
    """without the addresses of what a call allocates for itself"""
    return ["address" if isinstance(value, int) and value >= 2**32 else value for value in parameters]


def test_the_parameters_of_the_single_cta_kernel(answers):
    """In the kernel's order; out stands for what is absent; behind them Triton's two scratch buffers, unused."""
    for call in answers["one_cta-forward"]["calls"]:
        (launch,) = launches(call)
        tensors = ["x", "w_ih", "w_hh", "b_ih", "b_hh", "h0", "y", "y", "y", "hn", *6 * ["y"]]
        assert named(call, launch) == [*tensors, 3, 9, 0, 9 * 16 // 8, 16 // 8, 0, 0, *ONE_MODEL, 0, 0]
    for call in answers["one_cta-backward"]["calls"]:
        (launch,) = launches(call)
        tensors = ["da", "da", "w_hh", "da", "da", "dhn", "dy", "y", *8 * ["da"]]
        unit = 2 * 32 // 16 // answers["one_cta-backward"]["plan"]["warps"]
        assert named(call, launch) == [*tensors, 3, 9, 1, 0, 0, 9 * 32 // unit, 32 // unit, *ONE_MODEL, 0, 0]


def test_the_parameters_of_an_ensemble(answers):
    """W_ih and h0 are shared; the models' x lie T B I elements apart, dy T B H"""
    for call in answers["one_cta-ensemble"]["calls"]:
        (launch,) = launches(call)
        tensors = ["x", "w_ih", "w_hh", "b_ih", "b_hh", "h0", "y", "y", "y", "hn", *6 * ["y"]]
        strides = [9 * 16 // 8, 16 // 8, 0, 0, *ONE_LANE, 0b01110, 3 * 9 * 16 // 8, 0]
        assert named(call, launch) == [*tensors, 3, 9, 0, *strides, 0, 0]
    for call in answers["one_cta-ensemble-backward"]["calls"]:
        (launch,) = launches(call)
        tensors = ["da", "da", "w_hh", "da", "da", "dhn", "dy", "y", *8 * ["da"]]
        unit = 2 * 32 // 16 // answers["one_cta-ensemble-backward"]["plan"]["warps"]
        strides = [0, 0, 9 * 32 // unit, 32 // unit, *ONE_LANE, 0b10010, 0, 3 * 9 * 32 // unit]
        assert named(call, launch) == [*tensors, 3, 9, 1, *strides, 0, 0]


def test_the_parameters_of_the_grid_kernel(answers):
    """The same, and the synchronisation words (behind y), the error word, the launch's id and its limit of polls"""
    answer = answers["cta_group-forward"]
    for call in answer["calls"]:
        (launch,) = launches(call)
        got = named(call, launch)
        sync, identity, limit = got.pop(10), got.pop(-6), got.pop(-5)
        assert sync == call["tensors"]["y"] + 3 * 16 * 512 * 2
        assert 0 < identity < 2**19
        assert limit >= 2**20
        tensors = ["x", "w_ih", "w_hh", "b_ih", "b_hh", "h0", "y", "y", "y", "hn", "word", *4 * ["y"]]
        assert got == [*tensors, 3, 16, 0, 16 * 32 // 8, 32 // 8, 0, 0, 0, 0, 0, 0]


def test_the_parameters_of_a_stack(answers):
    """Weights and biases come stacked; x of the bottom layer, dy of the top one; seed, what is dropped, the bottom layer's
    number"""
    for name, first, end, reverse, strides in (
        ("forward", ["x", "h0", "y", "y", "y", "hn"], "y", 0, [8 * 64 // 8, 64 // 8, 0, 0]),
        ("backward", ["da", "dhn", "dy", "y", "da", "da"], "da", 1, [0, 0, 8 * 256 // 8, 256 // 8]),
    ):
        for call in answers[f"cta_group-stack-{name}"]["calls"]:
            (launch,) = launches(call)
            got = named(call, launch)
            assert [got[0], *got[5:10], got[11], got[12]] == [*first, "word", "seed"]
            assert got[10] == call["tensors"][end] + 4 * 3 * 8 * 256 * 2
            assert got[16:23] == [3, 8, reverse, *strides]
            assert got[25:] == [100, 5, 0, 0]


def test_the_parameters_of_a_stack_on_one_cta_a_layer(answers):
    """The same tensors; strides of dy in vectors of two units; no models"""
    for name, first, end, reverse, strides in (
        ("forward", ["x", "h0", "y", "y", "y", "hn"], "y", 0, [9 * 16 // 8, 16 // 8, 0, 0]),
        ("backward", ["da", "dhn", "dy", "y", "da", "da"], "da", 1, [0, 0, 9 * 32 // 2, 32 // 2]),
    ):
        for call in answers[f"one_cta-stack-{name}"]["calls"]:
            (launch,) = launches(call)
            got = named(call, launch)
            assert [got[0], *got[5:10], got[11], got[12]] == [*first, "word", "seed"]
            assert got[10] == call["tensors"][end] + -(-3 * 3 * 9 * 32 * 2 // 128) * 128  # a line of its own
            assert got[16:23] == [3, 9, reverse, *strides]
            assert 0 < got[23] < 2**19 and got[24] >= 2**20
            assert got[25:] == [100, 5, 0, 0, 0, 0, 0]


def test_a_plan_beyond_the_chip_raises(answers):
    """that is asked for: by the driver's own check, it cannot hang, and then by the planner"""
    answer = answers["cta_group-beyond"]
    ctas = answer["plan"]["groups"] * answer["plan"]["ctas"]
    assert ctas > 132
    first, second = answer["calls"]
    (launch,) = launches(first)
    assert (launch["grid"], launch["cooperative"], launch["result"]) == ([ctas, 1, 1], True, 720)
    assert launches(second) == []
    for call in (first, second):
        assert call["error"].startswith("ValueError: no plan of")
        assert call["error"].endswith(f"; its cooperative launches have {ctas - 1} CTAs at most")


@pytest.mark.parametrize("name", RESTRICTED)
def test_a_launch_that_does_not_fit_gives_way(answers, name):
    """to a plan of fewer CTAs, once for all later calls; a launch that fits is left as it is"""
    answer = answers[name]
    *before, first, _, last = answer["calls"]  # the second may find other launches of a network better
    for call in answer["calls"]:
        assert call["error"] is None
    for call in before:
        assert launches(call) and all(launch["result"] == 0 for launch in launches(call))
    refused = [launch for launch in launches(first) if launch["result"] == 720]
    if before:
        assert refused[0] == {**launches(before[0])[0], "parameters": refused[0]["parameters"], "result": 720}
    sizes = [math.prod(launch["grid"]) for launch in refused]
    assert sizes == sorted(set(sizes), reverse=True) and sizes[-1] > 40 and all(r["cooperative"] for r in refused)
    ran = [launch for launch in launches(last)]
    assert ran and all(launch["result"] == 0 for launch in ran)
    assert all(math.prod(launch["grid"]) <= 40 for launch in ran if launch["cooperative"])
    assert [r["call"] for r in last["driver"]] == ["cuLaunchKernelEx"] * len(ran), "the last call compiles nothing"
    text = f"H200 lets {sizes[-1] - 1} CTAs at most run at the same time, fewer than its 132 SMs: a cooperative launch of "
    assert f"{text}{sizes[-1]} did not fit. Plans that need more are out." in answer["explained"]


def test_shared_memory_beyond_48_kb_is_asked_for(answers):
    call = answers["one_cta-shared"]["calls"][0]
    (launch,) = launches(call)
    assert launch["shared_bytes"] > 48 * 1024
    asked = [r["value"] for r in call["driver"] if r["call"] == "cuFuncSetAttribute" and r["attribute"] == 8]
    assert asked == [227 * 1024]


def test_a_plain_launch_is_not_cooperative(answers):
    for call in answers["plain"]["calls"]:
        (launch,) = launches(call)
        assert (launch["grid"], launch["cooperative"], launch["result"]) == ([4000, 1, 1], False, 0)
        assert launch["parameters"][:2] == [call["tensors"]["ptr"], 70_000]
        assert call["error"] is None


@pytest.mark.parametrize("name", ["cooperative", "cooperative-after-that"])
def test_a_cooperative_launch_says_so(answers, name):
    for call in answers[name]["calls"]:
        (launch,) = launches(call)
        assert (launch["grid"], launch["cooperative"], launch["result"]) == ([132, 1, 1], True, 0)
        assert call["error"] is None


def test_a_cooperative_launch_beyond_the_chip_raises(answers):
    for call in answers["cooperative-beyond-the-chip"]["calls"]:
        (launch,) = launches(call)
        assert (launch["grid"], launch["cooperative"], launch["result"]) == ([133, 1, 1], True, 720)
        assert call["error"] == TOO_LARGE


def test_clusters_arrive(answers):
    (launch,) = launches(answers["cluster"]["calls"][0])
    assert (launch["grid"], launch["cluster"]) == ([8, 1, 1], [2, 1, 1])


def test_without_a_c_compiler_it_says_so(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    with pytest.raises(RuntimeError, match="no C compiler.*install gcc or clang, or name one in CC"):
        stub.build(tmp_path)


def test_a_compiler_that_fails_is_shown(monkeypatch, tmp_path):
    monkeypatch.setenv("CC", "false")
    with pytest.raises(RuntimeError, match="^false .*libcuda.c .* failed"):
        stub.build(tmp_path)
