"""The latency model for bench cases."""

import pytest

from bench import cases, model
from rnn_triton import latency
from rnn_triton.hardware import RECORDS

H200 = RECORDS["sm_90"]


@pytest.mark.parametrize("case", cases.suite("quick"), ids=lambda c: c.name)
@pytest.mark.parametrize("pass_", cases.PASSES)
def test_floor_is_below_practical(case, pass_):
    found = model.of_case(case, pass_, H200)
    assert 0 < found.floor_us <= found.practical_us
    assert found.bound in found.parts and min(found.parts.values()) >= 0


@pytest.mark.parametrize("name, part", [("h128", "chain"), ("h1024", "exchange"), ("h100000", "host")])
def test_training_is_forward_and_backward_and_gemms(name, part):
    """in each regime"""
    case = cases.parse(f"{name}-b16-t256-bf16")
    fwd, train = (model.of_case(case, pass_, H200) for pass_ in cases.PASSES)
    assert train.floor_us > fwd.floor_us and train.practical_us > fwd.practical_us
    assert {f"forward {part}", f"backward {part}", "GEMM"} <= set(train.parts)
    forward, backward = model.problems(case)
    parts = [latency.step(p, model.plan(p, H200), H200) for p in (forward, backward)]
    gemms = model.gemms(forward, H200)
    assert train.practical_us == pytest.approx(sum(p.practical_us for p in parts) + gemms[1])
    assert train.floor_us == pytest.approx(sum(p.floor_us for p in parts) + gemms[0])


def test_gemms_after_the_backward_pass():
    forward, _ = model.problems(cases.parse("h4096-b1024-t8-bf16"))
    floor, practical = model.gemms(forward, H200)
    # dx, dw_ih, dw_hh: three products of 2 B H^2 at 4096 FLOP a cycle and SM
    assert floor == pytest.approx(3 * 2 * 1024 * 4096**2 / (132 * 1980 * 4096))
    assert practical == pytest.approx(floor / latency.CONSTANTS.efficiency)
    forward, _ = model.problems(cases.parse("h16-b1024-t8-bf16"))
    floor, practical = model.gemms(forward, H200)
    assert floor == pytest.approx(1024 * 2 * 64 / 4.8e6) and practical > floor / latency.CONSTANTS.efficiency
