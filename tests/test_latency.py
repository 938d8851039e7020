"""The latency model: floor below practical, and both grow with the work."""

import dataclasses
import itertools

import pytest

from rnn_triton import overriding
from rnn_triton.plan import latency
from rnn_triton.plan.candidates import candidates
from rnn_triton.plan.choose import plan, shared_plan
from rnn_triton.plan.hardware import RECORDS
from rnn_triton.plan.problem import Bundle, Problem
from rnn_triton.plan.sharing import launches

H200 = RECORDS["sm_90"]
KINDS = [("bf16", None), ("fp16", None), ("fp32", "tf32"), ("fp32", "tf32x3"), ("fp32", "ieee"), ("fp64", None)]


def chosen(problem, **choices):
    with overriding(**choices):
        return plan(problem, H200)


def practical(problem, **choices):
    return latency.practical_us(problem, chosen(problem, **choices), H200)


@pytest.mark.parametrize("record", RECORDS.values(), ids=RECORDS)
@pytest.mark.parametrize("dtype, precision", KINDS)
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_floor_is_below_practical(direction, dtype, precision, record):
    """of every candidate of every regime"""
    for H, I, B in itertools.product((48, 256, 1000, 4096), (8, 1024), (1, 300)):
        problem = Problem(direction, B, I, H, dtype, precision, "elman_tanh")
        floor = latency.floor_us(problem, record)
        for p in candidates(problem, record):
            found = latency.step(problem, p, record)
            assert 0 < found.floor_us == floor <= found.practical_us == latency.practical_us(problem, p, record), p
            assert found.bound in found.parts and min(found.parts.values()) >= 0
            # what a step takes is neither less than its longest part nor more than all of them and a wait
            assert max(found.parts.values()) <= found.practical_us * 1.0001 or p.regime == "one_cta"
            assert found.practical_us <= sum(found.parts.values()) + latency.CONSTANTS.counter_us[1]


@pytest.mark.parametrize("size", ["B", "H", "I"])
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_the_floor_never_falls_with_size(size, direction):
    start = Problem(direction, 16, 64, 64, "bf16", None, "elman_tanh")
    sizes = (8, 16, 64, 200, 256, 300, 512, 2048, 4096, 8192, 65536)
    floors = [latency.floor_us(dataclasses.replace(start, **{size: n}), H200) for n in sizes]
    assert all(a <= b for a, b in itertools.pairwise(floors))
    assert floors[-1] > floors[0] or (size == "I" and direction == "backward")


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("H", [384, 1024, 2048])
def test_more_rows_never_take_less_time(direction, H):
    """the best plan for them, whichever regime"""
    times = []
    for B in (1, 8, 16, 64, 128, 512, 4096):
        problem = Problem(direction, B, H, H, "bf16", None, "elman_tanh")
        times.append(min(latency.practical_us(problem, p, H200) for p in candidates(problem, H200)))
    assert all(a <= b for a, b in itertools.pairwise(times)) and times[-1] > times[0]


def test_precision_costs_what_its_products_cost():
    floors, times = [], []
    for precision in ("tf32", "tf32x3", "ieee"):
        problem = Problem("forward", 4096, 512, 512, "fp32", precision, "elman_tanh")
        floors.append(latency.floor_us(problem, H200))
        times.append(practical(problem, regime="per_step"))
    assert floors == sorted(floors) and times == sorted(times)
    # 3 products for 1; FFMA's 256 FLOP a cycle for mma.sync's 2471 / 6
    parts = [
        latency.step(p, chosen(p, regime="per_step"), H200).parts["MMA"]
        for p in (
            Problem("backward", 4096, 1, 512, "fp32", precision, "elman_tanh") for precision in ("tf32", "tf32x3", "ieee")
        )
    ]
    assert parts[1] / parts[0] == pytest.approx(3) and parts[2] / parts[1] == pytest.approx(2471 / 6 / 256)


def test_a_large_batch_is_bound_by_memory_traffic():
    problem = Problem("forward", 1 << 20, 8, 8, "bf16", None, "elman_relu")
    assert latency.floor_us(problem, H200) == pytest.approx((1 << 20) * 16 * 2 / 4.8e6)


def test_a_single_cta_hands_over_on_chip():
    """The model of one CTA: the chain, and no more than one wave of it at a small batch"""
    problem = Problem("forward", 8, 64, 64, "bf16", None, "elman_tanh")
    found = latency.step(problem, plan(problem, H200), H200)
    assert found.parts["chain"] == latency.CONSTANTS.local_us
    assert found.practical_us < practical(problem, regime="cta_group") < practical(problem, regime="per_step")


def test_gates_leave_room_for_one_cta_on_an_sm():
    """Of which the threads have more than 128 registers: two tiles an SM are two rounds"""
    one, two = (Problem("forward", 8 * 132 * n, 128, 128, "bf16", None, "lstm") for n in (1, 2))
    chains = [latency.step(p, plan(p, H200), H200).parts["chain"] for p in (one, two)]
    assert chains == [latency.CONSTANTS.local_us, 2 * latency.CONSTANTS.local_us]


def grid(problem, **changes):
    return dataclasses.replace(chosen(problem, regime="cta_group", w_ih_home="registers"), **changes)


def test_what_makes_a_grid_slower():
    problem = Problem("forward", 64, 512, 512, "bf16", None, "elman_tanh")
    base = grid(problem)
    time = latency.practical_us(problem, base, H200)
    slower = {
        "the counter's fence and poll": dict(protocol="counter"),
        "fewer groups, each more tiles": dict(groups=base.groups // 2),
        "W_hh read from shared memory": dict(w_hh_shared=2),
        "one chain of products": dict(chains=1),
    }
    for why, changes in slower.items():
        assert latency.practical_us(problem, dataclasses.replace(base, **changes), H200) > time, why
    counter = dataclasses.replace(base, protocol="counter")
    sentinel, by_counter = latency.CONSTANTS.sentinel_us[1], latency.CONSTANTS.counter_us[1]
    assert latency.practical_us(problem, counter, H200) - time == pytest.approx(by_counter - sentinel)


def test_the_exchange_hides_the_projection_and_the_other_tiles():
    constants = latency.CONSTANTS
    problem = Problem("forward", 8, 64, 512, "bf16", None, "elman_tanh")
    one = latency.step(problem, grid(problem), H200)
    assert one.parts["projection"] < constants.sentinel_us[1] - constants.sentinel_busy_us
    none = dataclasses.replace(problem, direction="backward", cell="elman_relu")
    p = dataclasses.replace(grid(problem), w_ih_home="none")
    # less than that in the shadow costs nothing: the difference is tanh, which the backward pass does not evaluate
    assert one.practical_us - latency.practical_us(none, p, H200) == pytest.approx(one.parts["MUFU"])
    wide = dataclasses.replace(problem, I=4096)
    assert latency.practical_us(wide, grid(problem, w_ih_home="shared"), H200) > one.practical_us + 0.1
    # two tiles in a group take less than twice the time of one: a hand-over passes meanwhile
    two = dataclasses.replace(problem, B=16)
    time = latency.practical_us(two, grid(problem), H200)
    assert one.practical_us < time < 2 * one.practical_us


def test_the_constants_can_be_replaced():
    """as a fit to measurements would"""
    problem = Problem("forward", 8, 512, 512, "bf16", None, "elman_tanh")
    base = grid(problem)
    fitted = dataclasses.replace(latency.CONSTANTS, sentinel_us=(0.1, 0.6))
    before, after = (latency.practical_us(problem, base, H200, c) for c in (latency.CONSTANTS, fitted))
    assert after - before == pytest.approx(0.25)
    assert latency.floor_us(problem, H200, fitted) < latency.floor_us(problem, H200)


def test_a_launch_a_step_costs_the_launch_and_waves_of_tiles():
    problem = Problem("backward", 8, 1, 512, "bf16", None, "elman_tanh")
    assert practical(problem, regime="per_step") == latency.CONSTANTS.host_us
    big = dataclasses.replace(problem, B=8192, H=4096)
    p = chosen(big, regime="per_step")
    waves = -(-(8192 // p.block_b) * (4096 // p.block_h) // H200.sms)
    flop = waves * 2 * p.block_b * p.block_h * 4096
    expected = flop / latency.RATES[90].mma_sync / (H200.clock_ghz * 1e3) / latency.CONSTANTS.efficiency
    assert latency.step(big, p, H200).parts["MMA"] == pytest.approx(expected)


def test_what_a_launch_costs_besides_its_steps():
    problem = Problem("forward", 64, 1024, 1024, "bf16", None, "elman_tanh")
    grids = [chosen(problem, regime="cta_group", w_ih_home="shared"), chosen(problem, regime="cta_group", w_ih_home="gemm")]
    costs = [[latency.launch_us(problem, p, H200, T) for T in (1, 1001)] for p in grids]
    y = 1000 * 64 * 1024 * 2  # bytes filled
    for short, long in costs:
        assert long - short == pytest.approx(y / (latency.CONSTANTS.fill * 4.8e6))
    assert min(min(c) for c in costs) > latency.CONSTANTS.cooperative_us
    step = chosen(problem, regime="per_step")
    assert latency.launch_us(problem, step, H200, 1) == latency.launch_us(problem, step, H200, 1000)
    small = Problem("forward", 8, 64, 64, "bf16", None, "elman_tanh")
    assert latency.launch_us(small, plan(small, H200), H200, 10) < min(min(c) for c in costs)


LANES = [Bundle(), Bundle(2), Bundle(2, True)]


def step_with(problem, p, bundle, sequences):
    """(us, parts) of a step of a launch"""
    problem = dataclasses.replace(problem, sequences=sequences)
    if bundle.count > 1:
        return latency.shared_step(problem, p, H200, bundle)
    found = latency.step(problem, p, H200)
    return found.practical_us, found.parts


@pytest.mark.parametrize("bundle", LANES, ids=str)
@pytest.mark.parametrize("given", [("lengths",), ("reset",), ("lengths", "reset", "restart")], ids="-".join)
def test_lengths_and_resets_cost_instructions_zeros_and_a_kernel_before(given, bundle):
    constants, cycle = latency.CONSTANTS, 1e-3 / H200.clock_ghz
    for direction, published in (("forward", 1), ("backward", 4)):
        for regime, H in (("one_cta", 32), ("cta_group", 512)):
            problem = Problem(direction, 16, H if direction == "forward" else 1, H, "bf16", None, "lstm")
            with overriding(regime=regime):
                p = plan(problem, H200) if bundle.count == 1 else shared_plan(problem, bundle, H200)
            us, parts = step_with(problem, p, bundle, ())
            more_us, more = step_with(problem, p, bundle, given)
            expected = 0.0
            if regime == "one_cta":  # of each SM one tile, and nothing to hide behind
                expected = 11 * p.warps / 4 / constants.efficiency * cycle
                if "lengths" in given:
                    expected += bundle.count * published * 16 * H * 2 / (constants.fill * 4.8e6)
            else:  # a small batch waits for the exchange, not for instructions
                assert more["issue"] == pytest.approx(1.11 * parts["issue"])
            assert parts["sequences"] == 0 and more["sequences"] == pytest.approx(expected) and more_us - us == pytest.approx(expected)
            again, with_them = (latency.launch_us(dataclasses.replace(problem, sequences=s), p, H200, 9) for s in ((), given))
            kernels = 2 if regime == "one_cta" and "lengths" in given else 1
            assert with_them - again == pytest.approx(kernels * (constants.host_us + constants.node_us) + constants.events_cycles * cycle)


def test_a_group_that_is_bound_by_instructions_takes_longer_for_lengths():
    problem = Problem("forward", 64, 64, 512, "bf16", None, "elman_tanh")
    p, slow = grid(problem), dataclasses.replace(latency.CONSTANTS, issue=0.1)
    found, more = (latency.step(dataclasses.replace(problem, sequences=s), p, H200, slow) for s in ((), ("lengths",)))
    assert found.bound == "issue" and more.practical_us - more.parts["sequences"] == pytest.approx(1.11 * found.practical_us)
    given = dataclasses.replace(problem, sequences=("lengths",))  # of which the choice of a plan knows nothing
    assert latency.practical_us(given, p, H200, slow) == found.practical_us
    assert latency.shared_us(given, p, H200, LANES[1]) == latency.shared_us(problem, p, H200, LANES[1])


def test_a_launch_a_step_looks_for_no_events():
    problem = Problem("forward", 16, 64, 512, "bf16", None, "gru")
    p = chosen(problem, regime="per_step")
    assert step_with(problem, p, LANES[0], ("lengths", "reset")) == step_with(problem, p, LANES[0], ())


@pytest.mark.parametrize("cell", ["elman_tanh", "lstm"])
@pytest.mark.parametrize("dtype, precision", [("bf16", None), ("fp32", "tf32"), ("fp32", "ieee")])
def test_lengths_and_resets_do_not_change_the_plan(dtype, precision, cell):
    for direction, H, B in itertools.product(("forward", "backward"), (64, 512, 1024), (8, 64, 2048)):
        problem = Problem(direction, B, H if direction == "forward" else 1, H, dtype, precision, cell)
        given = dataclasses.replace(problem, sequences=("lengths", "reset"))
        assert plan(given, H200) == plan(problem, H200)
        for bundle in LANES[1:]:
            assert shared_plan(given, bundle, H200) == shared_plan(problem, bundle, H200)
    for H, layers in ((128, 3), (1024, 2)):
        problem = Problem("forward", 16, H, H, dtype, precision, cell)
        given = dataclasses.replace(problem, sequences=("lengths", "reset"))
        for both in (False, True):
            assert launches(given, layers, both, False, H200) == launches(problem, layers, both, False, H200)


def test_an_unknown_architecture_takes_the_rates_of_an_older_one():
    assert latency.rates(dataclasses.replace(H200, capability=120)) == latency.RATES[100]
    assert latency.rates(dataclasses.replace(H200, capability=87)) == latency.RATES[86]


# us a step, forward with the projection and backward, of the design's own model, whose CTAs may have 8 units and whose L2 is at its peak
GATES = {
    (512, 8): ((0.92, 1.17), (0.88, 1.02)), (768, 16): ((1.32, 1.56), (1.13, 1.32)), (1024, 8): ((1.21, 1.75), (1.16, 1.46)),
    (1024, 32): ((2.50, 3.18), (2.13, 2.28)), (2048, 8): ((2.90, 4.78), (2.28, 3.47)),
}  # fmt: skip


@pytest.mark.parametrize("H, B", list(GATES))
def test_cells_with_gates_take_what_their_design_says(H, B):
    for cell, expected in zip(("lstm", "gru"), GATES[H, B], strict=True):
        for direction, us in zip(("forward", "backward"), expected, strict=True):
            of = Problem(direction, B, H if direction == "forward" else 1, H, "bf16", None, cell)
            found = latency.practical_us(of, plan(of, H200), H200)
            assert us <= 1.05 * found <= 1.3 * us
