"""The planner: every problem has a plan whose resources fit, and says why."""

import dataclasses
import json
import math
import random
import threading

import pytest
import torch
from support.planned import planned_otherwise

from bench.compiled.planned import planned
from rnn_triton.errors import UnsupportedError
from rnn_triton.plan import candidates, latency
from rnn_triton.plan import choose as planner
from rnn_triton.plan.choose import plan
from rnn_triton.plan.cudnn import cudnn_algorithm
from rnn_triton.plan.explain import explain
from rnn_triton.plan.hardware import RECORDS
from rnn_triton.plan.measured import _table, read_measured
from rnn_triton.plan.overriding import overrides, overriding
from rnn_triton.plan.problem import SIZES, CtaGroup, OneCta, PerStep, Problem, plan_fields, row_units

H200 = RECORDS["sm_90"]
KINDS = [("bf16", None), ("fp16", None), ("fp32", "tf32"), ("fp32", "tf32x3"), ("fp32", "ieee"), ("fp64", None)]
SIZES_BEYOND = (320, 384, 512, 768, 1000, 1024, 1536, 1760, 2048, 2560, 3072, 4096)


def problem(H=1024, B=64, I=None, dtype="bf16", precision=None, direction="forward", nonlinearity="tanh"):
    return Problem(direction, B, I or H, H, dtype, precision, f"elman_{nonlinearity}")


@pytest.fixture(autouse=True)
def nothing_is_left():
    yield
    assert overrides() == ()
    planner._rejected.clear()


def check_one_cta(p, of, device):
    assert p.h_pad >= of.H and p.h_pad in (16, 32, 64, 128, 256) and p.warps == min(8, p.h_pad // 16)
    assert p.h_pad**2 * SIZES[of.dtype] <= 4 * device.registers
    assert p.pad_w_hh is False or p.w_ih_home in ("gemm", "none")


def check_grid(p, of, device):
    """Written down from the kernel's needs, not from candidates.py"""
    assert p.groups * p.ctas <= device.sms, "CTAs that wait for each other must all run at once"
    assert (p.ctas - 1) * p.units < row_units(of.H, of.dtype) <= p.ctas * p.units
    tiles = math.ceil(of.B / p.block_b)
    rounds = math.ceil(tiles / p.groups)
    assert 1 <= p.groups <= tiles
    assert (p.units, p.block_b, p.warps) in {(u, b, w) for u in (16, 32, 64) for b in (8, 16, 32) for w in (4, 8, 16)}
    assert p.units * p.block_b <= 256 * p.warps, "the sums over warps take two passes"
    size, per_warp = (2, 32) if of.dtype in ("bf16", "fp16") else (4, 16)
    k_tiles = math.ceil(of.H / (per_warp * p.warps))
    x_tiles = math.ceil(of.I / (per_warp * p.warps))
    assert 0 <= p.w_hh_shared <= k_tiles
    tile = p.units * per_warp * p.warps * size
    shared = p.w_hh_shared * tile + (x_tiles * tile if p.w_ih_home == "shared" else 0)
    assert shared + p.warps * p.units * p.block_b * 4 <= device.shared_bytes
    held = (k_tiles - p.w_hh_shared + (x_tiles if p.w_ih_home == "registers" else 0)) * tile
    state = (
        (k_tiles + (x_tiles if p.w_ih_home in ("registers", "shared") else 0)) * p.block_b * per_warp * p.warps * size
    )
    of_thread = 255 if p.warps <= 8 else 127
    assert (held + state) // (p.warps * 32 * 4) <= of_thread - 40 and p.warps * 32 * of_thread <= device.registers
    assert (p.w_ih_home == "none") == (of.direction == "backward")
    assert p.chains == (2 if k_tiles >= 4 and p.block_b < 32 else 1)
    return rounds


def check_per_step(p, of, device):
    assert p.stages * (p.block_b + p.block_h) * p.block_k * SIZES[of.dtype] <= device.shared_bytes
    assert p.w_ih_home == ("gemm" if of.direction == "forward" else "none")
    assert {p.block_b, p.block_h, p.block_k} <= {16, 32, 64}


CHECKS = {OneCta: check_one_cta, CtaGroup: check_grid, PerStep: check_per_step}


@pytest.mark.parametrize("record", RECORDS.values(), ids=RECORDS)
def test_every_problem_has_a_plan_that_fits(record):
    draw = random.Random(record.capability)
    regimes = set()
    for _ in range(120):
        dtype, precision = draw.choice(KINDS)
        H, I, B = (int(2 ** draw.uniform(0, top)) for top in (13.5, 13.5, 14))
        of = problem(H, B, I, dtype, precision, draw.choice(["forward", "backward"]), draw.choice(["tanh", "relu"]))
        p = plan(of, record)
        CHECKS[type(p)](p, of, record)
        regimes.add(p.regime)
    assert regimes == {"one_cta", "cta_group", "per_step"}


@pytest.mark.parametrize("record", RECORDS.values(), ids=RECORDS)
@pytest.mark.parametrize("dtype, precision", KINDS)
def test_every_candidate_fits(dtype, precision, record):
    for H, B, I in ((40, 20, 8), (320, 65, 320), (1000, 8, 33), (2048, 1, 4096), (4096, 300, 64)):
        for direction in ("forward", "backward"):
            of = problem(H, B, I, dtype, precision, direction)
            found = list(candidates.candidates(of, record))
            assert len(found) == len(set(found))
            assert [p.regime for p in found].count("per_step") == 1
            for p in found:
                CHECKS[type(p)](p, of, record)
                assert p.accuracy == plan(of, record).accuracy and p.reason
                if p.regime == "cta_group":  # rounds are as few as the SMs allow, and no group idles in all of them
                    rounds, tiles = check_grid(p, of, record), math.ceil(B / p.block_b)
                    assert rounds == math.ceil(tiles / min(tiles, record.sms // p.ctas))
                    assert p.groups == math.ceil(tiles / rounds)


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("H", SIZES_BEYOND)
def test_the_sizes_beyond_one_cta_stay_on_chip(H, direction):
    """bf16 and fp16 to 4096, tf32 to 2048, with an input of any size"""
    for I in (64, H):
        for B in (1, 8):
            for dtype in ("bf16", "fp16"):
                assert plan(problem(H, B, I, dtype, direction=direction), H200).regime == "cta_group"
            if H <= 2048:
                assert plan(problem(H, B, I, "fp32", "tf32", direction), H200).regime == "cta_group"


def test_other_devices_hold_what_their_sms_hold():
    largest = {}
    for name, device in RECORDS.items():
        on_chip = [H for H in SIZES_BEYOND if plan(problem(H, 8), device).regime == "cta_group"]
        assert on_chip == list(SIZES_BEYOND[: len(on_chip)]), name
        largest[name] = on_chip[-1]
    assert largest["sm_100"] == largest["sm_90"] == 4096
    assert 2048 <= largest["sm_86"] <= largest["sm_80"] < 4096


def test_weights_stay_in_registers_where_they_fit():
    for H in SIZES_BEYOND:
        of = problem(H, 8, direction="backward")
        for p in candidates.cta_group(of, H200, {}):
            if p.w_hh_shared:
                fewer = dataclasses.replace(p, w_hh_shared=p.w_hh_shared - 1)
                assert candidates.group_registers(of, fewer) > (255 if p.warps <= 8 else 127)


def test_one_cta_wherever_it_holds_w_hh():
    for H, dtype, precision in ((256, "bf16", None), (128, "fp32", "tf32"), (64, "fp64", None)):
        assert plan(problem(H, 8, dtype=dtype, precision=precision), H200).regime == "one_cta"
        assert plan(problem(H + 1, 8, dtype=dtype, precision=precision), H200).regime != "one_cta"


def test_the_fastest_by_the_model_is_chosen():
    for B, regime in ((8, "cta_group"), (8192, "per_step")):
        of = problem(1024, B, direction="backward")
        p = plan(of, H200)
        assert p.regime == regime
        assert latency.practical_us(of, p, H200) == min(
            latency.practical_us(of, q, H200) for q in candidates.candidates(of, H200)
        )
    assert plan(problem(1024, 8), H200).protocol == "sentinel"


def test_of_equally_fast_plans_the_one_of_fewer_ctas_is_chosen(monkeypatch):
    monkeypatch.setattr(latency, "practical_us", lambda *_: 1.0)
    of = problem(1024, 64, direction="backward")
    found = list(candidates.cta_group(of, H200, {}))
    assert planner.best(of, H200, found) == planner.best(of, H200, found[::-1]) or len(
        {p.ctas * p.groups for p in found}
    ) < len(found)
    p = planner.best(of, H200, found)
    assert p.ctas * p.groups == min(q.ctas * q.groups for q in found)


def test_plans_are_deterministic_and_cached():
    of = problem(1000, 24)
    assert plan(of, H200) is plan(dataclasses.replace(of), H200)
    assert planner._decide.__wrapped__(of, H200, (), ()) == plan(of, H200)
    assert plan_fields(plan(of, H200))["regime"] == "cta_group"


def test_what_does_not_run_all_programs_at_once_gets_no_grid():
    device = dataclasses.replace(H200, cooperative=False)
    assert plan(problem(), device).regime == "per_step"
    with overriding(regime="cta_group"):
        assert plan(problem(), device) == plan(problem(), H200)  # as asked: tests run it by an interpreter of their own
    with overriding(protocol="counter"), pytest.raises(ValueError, match="no plan of"):
        plan(problem(), device)


def test_a_device_with_few_sms_gets_another_plan():
    few = dataclasses.replace(H200, sms=12)
    assert plan(problem(1024, 8), few).regime == "per_step"
    p = plan(problem(384, 64), few)
    assert p.regime == "cta_group" and p.ctas * p.groups <= 12


def test_devices_before_ampere_are_not_supported():
    with pytest.raises(UnsupportedError, match="^V100 has compute capability 7.0; the kernels need 8.0"):
        plan(problem(), dataclasses.replace(H200, name="V100", capability=70))


# ---- overriding -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "choices",
    [
        {"regime": "per_step"},
        {"protocol": "counter"},
        {"units": 64, "warps": 16},
        {"block_b": 16, "regime": "cta_group"},
        {"w_ih_home": "shared"},
        {"w_hh_shared": 2, "units": 16},
        {"groups": 1},
        {"groups": 2, "units": 16, "warps": 8, "block_b": 8, "w_ih_home": "registers"},
        {"chains": 1, "regime": "cta_group"},
        {"regime": "per_step", "block_b": 16, "block_h": 32, "block_k": 32, "stages": 2, "warps": 8},
    ],
    ids=str,
)
def test_overriding_restricts(choices):
    free = plan(problem(), H200)
    with overriding(**choices):
        p = plan(problem(), H200)
        assert all(getattr(p, name) == value for name, value in choices.items())
        if p.regime == "cta_group" and "chains" not in choices:
            check_grid(p, problem(), H200)
        assert plan(problem(), H200) is p, "cached"
        # w_ih_home is about forward passes
        assert plan(problem(direction="backward"), H200).w_ih_home == "none"
    assert plan(problem(), H200) is free


def test_overriding_reaches_one_cta():
    with overriding(regime="cta_group", protocol="counter"):
        p = plan(problem(32, 20), H200)
    assert p.regime == "cta_group" and p.protocol == "counter" and p.ctas <= 2
    with overriding(regime="per_step"):
        assert plan(problem(32, 20, dtype="fp64"), H200).regime == "per_step"


def test_one_cta_has_the_gemm_for_any_input_size():
    assert plan(problem(64, 8, I=8), H200).w_ih_home == "registers"
    with overriding(w_ih_home="gemm"):
        p = plan(problem(64, 8, I=8), H200)
    assert (p.regime, p.w_ih_home) == ("one_cta", "gemm")


def test_overriding_nests_and_ends_with_an_exception():
    with overriding(regime="cta_group", units=16):
        outer = plan(problem(), H200)
        with pytest.raises(KeyError), overriding(units=32):
            inner = plan(problem(), H200)
            raise KeyError
        assert plan(problem(), H200) is outer
    assert (outer.units, inner.units, inner.regime) == (16, 32, "cta_group")


def test_overriding_holds_in_other_threads():
    """Autograd runs the backward pass in one."""
    seen = []
    with overriding(regime="per_step"):
        thread = threading.Thread(target=lambda: seen.append(plan(problem(), H200).regime))
        thread.start()
        thread.join()
    assert seen == ["per_step"]


def test_overriding_says_what_there_is():
    with (
        pytest.raises(ValueError, match="^a plan has no colour; it has .*block_b.*regime.*w_ih_home"),
        overriding(colour=1),
    ):
        pass
    with pytest.raises(ValueError, match="a plan has no reason"), overriding(reason=""):
        pass
    with (
        overriding(units=48),
        pytest.raises(ValueError, match=r"no plan of .*H=1024.* on H200 has units=48; .*16 \| 32 \| 64"),
    ):
        plan(problem(), H200)
    with (
        overriding(regime="one_cta"),
        pytest.raises(ValueError, match="regime='one_cta'; .*per_step: regime per_step"),
    ):
        plan(problem(), H200)
    for impossible in ({"groups": 9}, {"groups": 0}, {"w_hh_shared": 99}, {"w_hh_shared": -1}):
        with overriding(**impossible), pytest.raises(ValueError, match="no plan of"):
            plan(problem(), H200)


# ---- plans that do not compile --------------------------------------------------------------------------------------


def test_a_rejected_plan_gives_way_to_the_next():
    of = problem(2048, 8, dtype="bf16")
    first = plan(of, H200)
    planner.reject(of, H200, first, "out of registers")
    second = plan(of, H200)
    assert second != first and second.regime == "cta_group"
    planner.reject(of, H200, second, "out of shared memory")
    assert plan(of, H200) not in (first, second)
    assert plan(dataclasses.replace(of, B=7), H200).regime == "cta_group"  # others keep theirs
    said = explain(10, 8, 2048, 2048, dtype=torch.bfloat16, device=H200).splitlines()
    rejected = [line for line in said if line.startswith("rejected: ")]
    assert len(rejected) == 2 and "out of registers" in rejected[0] and f"{first.units} units" in rejected[0]
    assert "out of shared memory" in rejected[1]


def test_every_plan_rejected():
    of = problem(2048, 8, dtype="fp64")
    with overriding(stages=3):
        planner.reject(of, H200, plan(of, H200), "no luck")
        with pytest.raises(UnsupportedError, match="compiles on H200: no luck"):
            plan(of, H200)
    assert "no plan, no plan for" in explain(10, 8, 2048, 2048, dtype=torch.float64, device=H200)


# ---- measured choices -----------------------------------------------------------------------------------------------

ROW = {
    "device": "H200", "direction": "forward", "dtype": "bf16", "precision": None, "H": 1024, "B": [33, 64],
    "choices": {"regime": "cta_group", "units": 32, "warps": 16},
}  # fmt: skip


@pytest.fixture
def measured(monkeypatch):
    def use(*rows):
        table = read_measured(json.dumps(rows))
        monkeypatch.setattr("rnn_triton.plan.measured._table", lambda: table)

    return use


def decide(of, device=H200):
    return planner._decide.__wrapped__(of, device, overrides(), ())  # past the cache


def test_the_committed_table_is_valid():
    assert isinstance(_table(), list)


def test_a_measured_choice_comes_before_the_model(measured):
    free = decide(problem(1024, 64))
    measured(ROW)
    p = decide(problem(1024, 64))
    assert (p.units, p.warps) == (32, 16) != (free.units, free.warps)
    named = dataclasses.replace(H200, name="NVIDIA H200 NVL")
    assert decide(problem(1024, 33), named).warps == 16
    for other in (
        problem(1024, 32),
        problem(1024, 65),
        problem(1000, 64),
        problem(dtype="fp16"),
        problem(direction="backward"),
    ):
        before = decide(other)
        measured()
        assert decide(other) == before, "no row covers it"
        measured(ROW)
    a100 = decide(problem(1024, 64), RECORDS["sm_80"])
    measured()
    assert decide(problem(1024, 64), RECORDS["sm_80"]) == a100


def test_a_measured_choice_may_leave_one_cta(measured):
    measured({**ROW, "H": 256, "choices": {"regime": "cta_group"}})
    assert decide(problem(256, 64)).regime == "cta_group"


def test_a_measured_choice_that_is_gone_leaves_the_model(measured):
    free = decide(problem(1024, 64))
    measured({**ROW, "choices": {"units": 48}})
    assert decide(problem(1024, 64)) == free


def test_an_override_comes_before_a_measured_choice(measured):
    measured(ROW)
    with overriding(units=16):
        assert decide(problem(1024, 64)).units == 16
    with overriding(protocol="counter"):
        p = decide(problem(1024, 64))
    assert (p.units, p.warps, p.protocol) == (32, 16, "counter")


@pytest.mark.parametrize(
    "change, message",
    [
        ({"dtype": "int8"}, "dtype must be one of"),
        ({"direction": "up"}, "direction must be one of"),
        ({"precision": "tf32"}, "precision must be one of"),
        ({"dtype": "fp32"}, "precision must be one of"),
        ({"B": [9, 8]}, r"B a range from 1, got 1024 and \[9, 8\]"),
        ({"B": [0, 8]}, "B a range from 1"),
        ({"H": 0}, "H must be positive"),
        ({"choices": {"colour": 1}}, "choices must be among"),
        ({"choices": {}}, "choices must be among"),
        ({"extra": 1}, "row 1: expected B, H"),
    ],
    ids=str,
)
def test_a_table_is_checked(change, message):
    with pytest.raises(ValueError, match=message):
        read_measured(json.dumps([{**ROW, "B": [1, 32]}, {**ROW, **change}]))


def test_rows_must_not_overlap():
    assert len(read_measured(json.dumps([ROW, {**ROW, "B": [1, 32]}, {**ROW, "dtype": "fp16"}]))) == 3
    with pytest.raises(ValueError, match="row 1: covers what another row covers"):
        read_measured(json.dumps([ROW, {**ROW, "B": [64, 70], "choices": {"units": 16}}]))


# ---- what is compiled ahead -----------------------------------------------------------------------------------------


def test_planned_reaches_the_grid():
    assert planned() is planned()
    found = {}
    for of, device in planned():
        p = plan(of, device)
        if p.regime == "cta_group":
            found.setdefault((device.capability, of.dtype, of.precision, of.direction), []).append((of.H, p.w_ih_home))
    for direction in ("forward", "backward"):
        assert {H for H, _ in found[90, "bf16", None, direction]} == set(SIZES_BEYOND)
        assert max(H for H, _ in found[90, "fp32", "tf32", direction]) == 2048
        assert (90, "fp16", None, direction) in found and (90, "fp32", "tf32x3", direction) in found
        for capability in (80, 86, 89, 100):
            assert (capability, "bf16", None, direction) in found
    assert {"registers", "shared", "gemm"} == {home for _, home in found[90, "bf16", None, "forward"]}


def test_planned_otherwise_can_be_planned():
    kinds = set()
    for of, device, choices in planned_otherwise():
        with overriding(**choices):
            p = plan(of, device)
        kinds.add((p.protocol, p.w_ih_home, of.direction))
    assert {
        ("counter", "registers", "forward"),
        ("counter", "none", "backward"),
        ("sentinel", "shared", "forward"),
    } <= kinds


# ---- explain --------------------------------------------------------------------------------------------------------


def test_explain_one_cta():
    first, estimates, torchs = explain(50, 16, 8, 128, precision="tf32", device=H200).splitlines()
    assert first.startswith(
        "forward of fp32 (tf32) T=50 B=16 I=8 H=128 on H200: one launch of 2 CTAs of 8 warps for all 50 steps"
    )
    assert first.endswith(
        "because W_hh (64 KB as padded to 128 units) fits in the registers of one CTA, W_ih in registers."
    )
    assert estimates.startswith("us per step, estimates: one_cta ") and ", chosen; cta_group " in estimates
    assert torchs == "torch.nn.RNN: cuDNN's PERSIST_STATIC_SMALL_H, because H <= 384 in the forward pass."


def test_explain_a_grid():
    first, estimates, torchs = explain(1000, 8, 1024, 1024, dtype=torch.bfloat16, device=H200).splitlines()
    p = plan(problem(1024, 8), H200)
    assert f"one launch of {p.ctas} CTAs of {p.warps} warps for all 1000 steps, 1 group of {p.ctas}" in first
    assert f"by the sentinel protocol, each CTA {p.units} hidden units and 1 tile of {p.block_b} batch rows" in first
    assert (
        first.endswith(f"because {p.reason}.")
        and "KB of W_hh a CTA stay on chip (registers), W_ih in registers" in first
    )
    found = latency.step(problem(1024, 8), p, H200)
    assert "one_cta none that fits" in estimates and f"floor {found.floor_us:.2f}" in estimates
    assert f"cta_group {found.practical_us:.2f} (mostly {found.bound}), chosen; per_step " in estimates
    assert torchs == "torch.nn.RNN: cuDNN's STANDARD, because PERSIST_STATIC is for fp16, not bf16."


def test_explain_a_launch_a_step():
    said = explain(7, 8, 64, 8192, dtype=torch.bfloat16, device=H200)
    assert ": a GEMM for x, then 7 launches, one a step, of 256 CTAs of 4 warps" in said
    assert "because W_hh (131072 KB) does not fit on the chip beside h." in said
    said = explain(7, 8192, 64, 1024, dtype=torch.bfloat16, device=H200, direction="backward").splitlines()[0]
    assert "GEMM" not in said and "estimated to cost less than exchanging h" in said
    assert "run bf16, fp16, tf32 and tf32x3" in explain(7, 8, 64, 300, dtype=torch.float64, device=H200)
    apart = dataclasses.replace(H200, cooperative=False)
    assert "CTAs do not run at the same time here" in explain(7, 8, 64, 300, dtype=torch.bfloat16, device=apart)


def test_explain_says_what_lengths_and_resets_cost():
    how = dict(dtype=torch.bfloat16, device=H200)
    of = dataclasses.replace(problem(128, 16), sequences=("lengths", "reset"))
    found = latency.step(of, plan(of, H200), H200)
    _, estimates, said, _ = explain(50, 16, 128, 128, lengths=True, reset=True, **how).splitlines()
    assert f"one_cta {found.practical_us:.2f} (" in estimates and found.practical_us > latency.practical_us(of, plan(of, H200), H200)
    assert said.startswith("lengths and reset: ") and f"{found.parts['sequences']:.3f} us of a step, estimated" in said
    # of two directions, in a launch
    us = [float(explain(50, 16, 128, 128, bidirectional=True, lengths=n, **how).split(" us per step of T")[0].split()[-1]) for n in (False, True)]
    said = explain(50, 16, 128, 128, bidirectional=True, lengths=True, **how).split("lengths: ")[1]
    assert us[1] - us[0] == pytest.approx(float(said.split("on the device, for ")[1].split()[0]), abs=0.011) and us[1] > us[0]
    assert "for less than 0.001 us of a step" in explain(50, 16, 512, 512, lengths=True, **how)  # hidden behind the exchange of a group
    assert "on the device; what that costs is not estimated" in explain(50, 2048, 512, 512, lengths=True, **how)  # a launch a step


def test_explain_without_a_plan_or_a_launch():
    old = dataclasses.replace(H200, name="V100", capability=70)
    assert explain(5, 4, 3, 2, device=old).endswith(
        "on V100: no plan, V100 has compute capability 7.0; the kernels need 8.0 (Ampere) or newer."
    )
    assert explain(5, 0, 3, 2, precision="ieee", device=H200).endswith(
        "B=0 I=3 H=2: empty results, nothing is launched."
    )


def test_explain_checks_its_arguments():
    for arguments, message in (
        (dict(T=0), "T must be at least 1, got 0"),
        (dict(H=0), "H must be at least 1, got 0"),
        (dict(dtype=torch.int8), "dtype must be one of"),
        (dict(nonlinearity="gelu"), "Unknown nonlinearity 'gelu'"),
        (dict(precision="bf16"), "precision must be None, 'tf32'"),
        (dict(precision="tf32", dtype=torch.float64), "precision must be None unless"),
        (dict(direction="up"), "direction must be 'forward' or 'backward', got 'up'"),
    ):
        with pytest.raises(ValueError, match=message):
            explain(**{**dict(T=1, B=1, I=1, H=1, device=H200), **arguments})


def test_explain_says_what_cells_with_gates_run():
    text = explain(100, 8, 512, 512, dtype=torch.bfloat16, device=H200, cell="lstm")
    assert "16 hidden units of 4 gates each" in text and "cta_group" in text
    assert "torch.nn.LSTM: cuDNN's STANDARD" in text
    text = explain(100, 8, 128, 128, dtype=torch.bfloat16, device=H200, cell="gru", direction="backward")
    assert "as padded to 128 units of 3 gates" in text and "torch.nn.GRU: cuDNN's PERSIST_STATIC_SMALL_H" in text
    text = explain(100, 8, 512, 5000, dtype=torch.bfloat16, device=H200, cell="gru")
    assert "launches, one a step" in text and "does not fit on the chip beside h" in text
    text = explain(100, 8, 64, 64, dtype=torch.bfloat16, device=H200, cell="lstm", num_layers=2, bidirectional=True)
    assert text.count("one launch of 1 CTA") == 4 or "2 directions" in text
    with pytest.raises(ValueError, match="cell must be one of"):
        explain(1, 1, 1, 1, device=H200, cell="gated")


# ---- cuDNN ----------------------------------------------------------------------------------------------------------

FIT = dict(H=1024, B=64, I=256, dtype="fp16")  # meets every condition of PERSIST_STATIC


@pytest.mark.parametrize(
    "changes, options, name, rule",
    [
        ({}, {}, "PERSIST_STATIC", "one in fp16"),
        ({}, {"packed": True}, "STANDARD", "the input is packed"),
        ({"H": 128}, {"packed": True}, "STANDARD", "the input is packed"),
        ({"H": 384, "dtype": "bf16"}, {}, "PERSIST_STATIC_SMALL_H", "H <= 384 in the forward pass"),
        ({"H": 385, "dtype": "bf16"}, {}, "STANDARD", "for fp16, not bf16"),
        ({"H": 256, "direction": "backward"}, {"layers": 2}, "PERSIST_STATIC_SMALL_H", "H <= 256 in the backward pass"),
        ({"H": 384, "direction": "backward"}, {}, "PERSIST_STATIC", "one in fp16"),
        ({"H": 257, "direction": "backward"}, {}, "STANDARD", "H a multiple of 128, not 257"),
        ({"H": 64, "dtype": "fp64"}, {}, "STANDARD", "for fp16, not fp64"),
        ({"dtype": "fp32", "precision": "tf32"}, {}, "STANDARD", "for fp16, not fp32"),
        ({}, {"layers": 2}, "STANDARD", "for one layer, not 2"),
        ({}, {"bidirectional": True}, "STANDARD", "for one direction"),
        ({"H": 1152}, {}, "STANDARD", "H <= 1024, not 1152"),
        ({"H": 1000}, {}, "STANDARD", "H a multiple of 128, not 1000"),
        ({"I": 200}, {}, "STANDARD", "I a multiple of 128, not 200"),
        ({"B": 63}, {}, "STANDARD", "B a multiple of 8, not 63"),
        ({"B": 136, "H": 512}, {}, "STANDARD", "B <= 128, not 136"),
        ({"B": 128, "H": 768}, {}, "PERSIST_STATIC", "one in fp16"),
        ({"B": 96, "H": 896}, {}, "STANDARD", "B < 96 or H < 896"),
        ({"B": 88, "H": 896}, {}, "PERSIST_STATIC", "one in fp16"),
        ({"H": 192, "cell": "lstm"}, {}, "PERSIST_STATIC_SMALL_H", "H <= 192 in the forward pass"),
        ({"H": 193, "cell": "gru", "dtype": "bf16"}, {}, "STANDARD", "runs no GRU"),
        ({"H": 128, "cell": "gru", "direction": "backward"}, {}, "PERSIST_STATIC_SMALL_H", "H <= 128 in the backward pass"),
        ({"H": 256, "cell": "lstm", "direction": "backward"}, {}, "PERSIST_STATIC", "one in fp16"),
        ({"H": 1024, "cell": "gru"}, {}, "STANDARD", "runs no GRU"),
        ({"H": 1024, "B": 96, "cell": "lstm", "dtype": "fp16"}, {}, "PERSIST_STATIC", "sizes that cuDNN holds"),  # B < 96 is torch.nn.RNN's
    ],
    ids=str,
)  # fmt: skip
def test_cudnn_algorithm(changes, options, name, rule):
    sizes = {**FIT, **changes}
    cell = sizes.pop("cell", "elman_tanh")
    found = cudnn_algorithm(dataclasses.replace(problem(**sizes), cell=cell), **options)
    assert found.name == name and rule in found.rule


def test_overrides_may_close_in_any_order():
    """two threads' blocks overlap"""
    first, second = overriding(units=16), overriding(warps=4)
    first.__enter__()
    second.__enter__()
    assert overrides() == (("units", 16), ("warps", 4))
    first.__exit__(None, None, None)
    assert overrides() == (("warps", 4),)
    second.__exit__(None, None, None)
    assert overrides() == ()


def test_an_override_is_a_string_or_a_number():
    with pytest.raises(ValueError, match=r"^units must be a string or a number, got \[16\]"):
        with overriding(units=[16]):
            pass


def test_a_rejected_kernel_is_rejected_for_every_batch():
    planner._rejected.clear()
    try:
        of = Problem("backward", 8, 1, 1024, "bf16", None, "elman_tanh")
        first = plan(of, H200)
        planner.reject(of, H200, first, "no")
        other = dataclasses.replace(of, B=16, I=5)
        assert planner._kernel(first) not in [planner._kernel(plan(p, H200)) for p in (of, other)]
    finally:
        planner._rejected.clear()
