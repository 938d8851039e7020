"""The latency model: floor below practical, and both grow with the work."""

import dataclasses
import itertools

import pytest

from bench import cases, model
from rnn_triton.errors import UnsupportedError
from rnn_triton.hardware import RECORDS
from rnn_triton.plan import Problem

H200 = RECORDS["sm_90"]


@pytest.mark.parametrize("case", cases.suite("quick"), ids=lambda c: c.name)
@pytest.mark.parametrize("pass_", cases.PASSES)
def test_floor_is_below_practical(case, pass_):
    try:
        found = model.of_case(case, pass_, H200)
    except UnsupportedError:
        assert case.dtype == "fp32" and case.H == 256  # more than one CTA holds
        return
    assert 0 < found.floor_us <= found.practical_us
    assert found.bound in found.parts and min(found.parts.values()) >= 0


@pytest.mark.parametrize("size", ["B", "H", "I"])
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_the_floor_never_falls_with_size(size, direction):
    start = Problem(direction, 16, 64, 64, "bf16", None, "tanh")
    floors = [model.floor_us(dataclasses.replace(start, **{size: n}), H200) for n in (8, 16, 64, 200, 256, 4096, 65536)]
    assert all(a <= b for a, b in itertools.pairwise(floors))
    assert floors[-1] > floors[0] or (size == "I" and direction == "backward")


def test_precision_costs_what_its_products_cost():
    floors = {}
    for precision in ("tf32", "tf32x3", "ieee"):
        problem = Problem("forward", 4096, 256, 256, "fp32", precision, "tanh")
        floors[precision] = model.floor_us(problem, H200)
    assert floors["tf32"] <= floors["tf32x3"] <= floors["ieee"]


def test_a_large_batch_is_bound_by_memory_traffic():
    problem = Problem("forward", 1 << 20, 8, 8, "bf16", None, "relu")
    assert model.floor_us(problem, H200) == pytest.approx((1 << 20) * 16 * 2 / 4.8e6)


def test_training_is_forward_and_backward_and_gemms():
    case = cases.parse("h128-b16-t256-bf16")
    fwd, train = (model.of_case(case, pass_, H200) for pass_ in cases.PASSES)
    assert train.floor_us > fwd.floor_us and train.practical_us > fwd.practical_us
    assert {"forward chain", "backward chain", "GEMM"} <= set(train.parts)


def test_an_unplanned_problem_has_no_estimate():
    with pytest.raises(UnsupportedError):
        model.of_case(cases.parse("h100000-b1-t8-bf16"), "fwd", H200)


def test_an_unknown_architecture_takes_the_rates_of_an_older_one():
    assert model.rates(dataclasses.replace(H200, capability=120)) == model.RATES[100]
    assert model.rates(dataclasses.replace(H200, capability=87)) == model.RATES[86]
