"""The latency model for bench cases."""

from dataclasses import replace

import pytest

from bench.cases import case as cases
from bench.cases import estimate, suites
from bench.cases.inputs import lengths_of
from rnn_triton.plan import choose, latency
from rnn_triton.plan.hardware import RECORDS
from rnn_triton.plan.problem import SIZES, Bundle

H200 = RECORDS["sm_90"]


def one_of_each_kind():
    """The first case of every combination of cell, layers, directions, models and lengths of every suite"""
    seen = {}
    for suite in suites.SUITES.values():
        for c in suite:
            seen.setdefault((c.cell, c.layers, c.bidirectional, c.models, c.heads, c.lengths, c.H > 256), c)
    return list(seen.values())


@pytest.mark.parametrize("case", one_of_each_kind(), ids=lambda c: c.name)
@pytest.mark.parametrize("pass_", cases.PASSES)
def test_floor_is_below_practical_in_every_kind_of_case(case, pass_):
    found = estimate.of_case(case, pass_, H200)
    assert 0 < found.floor_us <= found.practical_us
    assert found.bound in found.parts and min(found.parts.values()) >= 0


@pytest.mark.parametrize("name, part", [("h128", "chain"), ("h1024", "exchange"), ("h100000", "host")])
def test_training_is_forward_and_backward_and_gemms(name, part):
    """in each regime"""
    case = suites.parse(f"{name}-b16-t256-bf16")
    fwd, train = (estimate.of_case(case, pass_, H200) for pass_ in cases.PASSES)
    assert train.floor_us > fwd.floor_us and train.practical_us > fwd.practical_us
    assert {f"forward {part}", f"backward {part}", "GEMM"} <= set(train.parts)
    forward, backward = estimate.problems(case)
    parts = [latency.step(p, choose.plan(p, H200), H200) for p in (forward, backward)]
    assert train.practical_us == pytest.approx(sum(p.practical_us for p in parts) + estimate.gemms(forward, H200)[1])
    # the GEMMs may hide behind the recurrence: no less than both recurrences, no more than one after the other
    least = sum(p.floor_us for p in parts)
    assert least * (1 - 1e-12) <= train.floor_us <= (least + estimate.gemms(forward, H200)[0]) * (1 + 1e-12)


def test_gemms_after_the_backward_pass():
    forward, _ = estimate.problems(suites.parse("h4096-b1024-t8-bf16"))
    floor, practical = estimate.gemms(forward, H200)
    # dx, dw_ih, dw_hh: three products of 2 B H^2 at 4096 FLOP a cycle and SM
    assert floor == pytest.approx(3 * 2 * 1024 * 4096**2 / (132 * 1980 * 4096))
    assert practical == pytest.approx(floor / latency.CONSTANTS.efficiency)
    forward, _ = estimate.problems(suites.parse("h16-b1024-t8-bf16"))
    floor, practical = estimate.gemms(forward, H200)
    assert floor == pytest.approx(1024 * 2 * 64 / 4.8e6) and practical > floor / latency.CONSTANTS.efficiency


@pytest.mark.parametrize("pass_", cases.PASSES)
def test_a_stack_is_the_launch_that_runs(pass_):
    one = cases.case(512, 16, 512, "bf16")
    of_one, of_four = (estimate.of_case(replace(one, layers=n), pass_, H200) for n in (1, 4))
    bundle, longer = Bundle(4, True), (512 + 3) / 512  # T + L - 1 steps of a wavefront
    us = 0.0
    for problem in estimate.problems(one)[: 2 if pass_ == "train" else 1]:
        us += longer * latency.shared_us(problem, choose.shared_plan(problem, bundle, H200), H200, bundle)
    gemms = 4 * estimate.gemms(estimate.problems(one)[0], H200)[1] * (pass_ == "train")
    assert of_four.practical_us == pytest.approx(us + gemms)
    assert of_one.practical_us < of_four.practical_us < 4 * of_one.practical_us
    # bound by the chain
    assert of_four.floor_us == pytest.approx(of_one.floor_us * longer)


def test_a_stack_that_shares_no_launch_runs_layer_after_layer():
    one = cases.case(2048, 128, 512, "bf16")
    for options in (dict(layers=4), dict(layers=2, bidirectional=True)):
        of_one = estimate.of_case(one, "fwd", H200)
        case = replace(one, **options)
        of_all = estimate.of_case(case, "fwd", H200)
        assert len(estimate.launches(case, H200)) == 4
        upper = estimate.of_case(replace(one, I=4096), "fwd", H200) if case.bidirectional else of_one
        assert of_all.practical_us == pytest.approx(2 * of_one.practical_us + 2 * upper.practical_us)
    packed = cases.case(128, 16, 512, "bf16", layers=4, lengths="uniform")
    bundles = [[launch.bundle for launch in estimate.launches(replace(packed, lengths=n), H200)] for n in ("uniform", "full")]
    assert bundles[0] == bundles[1]
    assert len(estimate.launches(packed, H200)) == 1 and len(estimate.launches(replace(packed, models=2), H200)) == 4


def test_throughput_of_a_stack_adds_up():
    one = cases.case(2048, 1024, 64, "bf16")
    products = 2 * 1024 * 2048 * 4096 / (132 * 1980 * 4096)  # 2 B H 2H at 4096 FLOP a cycle and SM, on 132 of them
    of_one, of_four = (estimate.of_case(replace(one, layers=n), "fwd", H200) for n in (1, 4))
    assert products <= of_one.floor_us < 1.1 * products  # and a chain that cannot overlap with them
    assert of_four.floor_us == pytest.approx(4 * products)
    gated = estimate.of_case(replace(one, layers=4, cell="lstm"), "fwd", H200)
    assert gated.floor_us == pytest.approx(4 * 4 * products)


def test_layers_above_the_first_read_both_directions():
    case = cases.case(128, 16, 512, "bf16", 40, layers=3, bidirectional=True)
    assert [(layer.forward.I, layer.backward.I) for layer in estimate.layers(case)] == [(40, 1), (256, 1), (256, 1)]
    assert estimate.problems(case) == (estimate.layers(case)[0].forward, estimate.layers(case)[0].backward)


def test_all_gates_count_and_what_they_keep_does_in_training_alone():
    plain, lstm, gru = (cases.case(4096, 1024, 8, "bf16", cell=cell) for cell in ("elman_tanh", "lstm", "gru"))
    products = [estimate.gemms(estimate.problems(case)[0], H200)[0] for case in (plain, lstm, gru)]
    assert products[1:] == pytest.approx([4 * products[0], 3 * products[0]])
    floors = [estimate.of_case(case, "fwd", H200).floor_us for case in (plain, lstm, gru)]
    assert floors[1:] == pytest.approx([4 * floors[0], 3 * floors[0]], rel=0.01)
    # bound by DRAM: x and y, in training 5 kept tiles more; then dy, these 5, and the gradients of 4 pre-activations
    forward, train = (estimate.of_case(cases.case(16, 2**17, 8, "bf16", cell="gru"), pass_, H200) for pass_ in cases.PASSES)
    row = 2**17 * 16 * 2 / 4.8e6
    assert forward.floor_us == pytest.approx(2 * row)
    assert train.floor_us == pytest.approx((2 + 5 + 1 + 5 + 4) * row)


def test_directions_run_side_by_side():
    one = cases.case(128, 16, 512, "bf16")
    of_one, of_two = (estimate.of_case(replace(one, bidirectional=b), "fwd", H200) for b in (False, True))
    assert of_one.practical_us <= of_two.practical_us < 2 * of_one.practical_us
    assert of_two.floor_us == pytest.approx(of_one.floor_us)
    # the second layer waits for both directions of the first: no wavefront
    of_stack = estimate.of_case(replace(one, bidirectional=True, layers=2), "fwd", H200)
    assert of_stack.floor_us == pytest.approx(2 * of_one.floor_us, rel=0.01)


def test_small_models_share_a_launch_and_large_ones_take_turns():
    small = cases.case(128, 16, 512, "bf16")
    of = {n: estimate.of_case(replace(small, models=n), "fwd", H200) for n in (1, 16, 1024)}
    assert of[16].practical_us == of[1].practical_us  # 32 tiles on 132 SMs
    assert of[1024].practical_us > 4 * of[1].practical_us  # 16 tiles an SM
    # tiles are not shared between models: 8 rows for each, even of B = 1
    rows = [estimate.of_case(replace(small, B=b, models=1024), "fwd", H200).parts["MMA"] for b in (1, 8)]
    assert rows[0] == rows[1]
    large = cases.case(1024, 16, 512, "bf16")
    one, four = (estimate.of_case(replace(large, models=n), "fwd", H200) for n in (1, 4))
    assert four.practical_us == pytest.approx(4 * one.practical_us)
    assert four.floor_us == pytest.approx(one.floor_us)  # side by side, if anything held them


def test_heads_cost_what_models_do_and_read_x_once():
    heads, models = cases.case(512, 16, 512, "bf16", cell="gru", heads=8), cases.case(64, 16, 512, "bf16", 512, cell="gru", models=8)
    for pass_ in cases.PASSES:
        of_heads, of_models = (estimate.of_case(c, pass_, H200) for c in (heads, models))
        assert of_heads.practical_us == of_models.practical_us and of_heads.floor_us <= of_models.floor_us
        assert of_heads.practical_us < estimate.of_case(replace(heads, heads=1), pass_, H200).practical_us
    assert estimate.problems(heads)[0].H == 64 and estimate.problems(heads)[0].I == 512 and len(estimate.launches(heads, H200)) == 1


def test_what_padding_packed_input_costs():
    """The copies of rnn_triton/packed.py in the forward pass, beside its steps: what docs/sequences.md says"""
    shares = []
    for case in [case for case in suites.SUITES["varlen"] if case.lengths != "full"]:
        live = float(lengths_of(case).double().mean()) / case.T
        # zeros of all rows of x are written, read and written again; of those that sequences have, x and y are read and written
        values = case.B * (3 * case.I + live * 2 * (case.I + case.H))
        us = values * SIZES[case.dtype] / (latency.CONSTANTS.fill * latency.rates(H200).dram)
        shares.append(us / estimate.of_case(case, "fwd", H200).practical_us)
    assert 0.005 <= min(shares) < 0.015 and 0.14 <= max(shares) < 0.155


@pytest.mark.parametrize("lengths", ["uniform", "heavy"])
def test_padded_steps_cost_time_but_are_no_part_of_the_floor(lengths):
    full = cases.case(2048, 1024, 64, "bf16")
    whole, ragged = (estimate.of_case(replace(full, lengths=n), "fwd", H200) for n in ("full", lengths))
    assert ragged.practical_us == whole.practical_us
    real = float(lengths_of(replace(full, lengths=lengths)).double().mean()) / 64
    products = 2 * 1024 * 2048 * 4096 / (132 * 1980 * 4096)  # of whole sequences
    assert 0.1 < real < 0.7 and ragged.floor_us == pytest.approx(real * products)
    # with few rows the longest sequence decides, which has T steps
    full = cases.case(128, 16, 64, "bf16")
    whole, ragged = (estimate.of_case(replace(full, lengths=n), "fwd", H200) for n in ("full", lengths))
    assert ragged.floor_us == pytest.approx(whole.floor_us)
    assert ragged.practical_us - whole.practical_us == pytest.approx(ragged.parts["sequences"]) and ragged.parts["sequences"] > 0
