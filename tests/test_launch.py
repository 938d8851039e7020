"""The way from a call to a regime: what fails to compile gives way, results are the caller's own, forced plans end."""

import dataclasses
import math

import pytest
import torch
from cooperative import cooperate
from support.problems import problem
from support.stacks import example

import rnn_triton
from rnn_triton import ExchangeError, UnsupportedError, cells, functional, overriding
from rnn_triton.cells import reference
from rnn_triton.launch import dispatch, faults, launcher
from rnn_triton.plan import choose, hardware

pytestmark = pytest.mark.interpret


@pytest.fixture(autouse=True)
def forget(monkeypatch):
    monkeypatch.setattr(choose, "_rejected", {})
    dispatch._launch_for.cache_clear()
    yield
    dispatch._launch_for.cache_clear()


def call(T, B, I, H, regime, **choices):
    """(y, hn) with autograd of a layer on one regime, and the reference's"""
    tensors = [t.detach().to(torch.bfloat16) for t in problem(T, B, I, H)]
    leaves = [t.clone().requires_grad_() for t in tensors]
    channels = dict(channels=("out_ptr",)) if regime == "cta_group" else {}
    with overriding(regime=regime, **choices), cooperate(races="off", **channels):
        y, hn = rnn_triton.rnn(*leaves)
    return (y, hn), reference.rnn(*[t.double() for t in tensors])


REGIMES = [("one_cta", 24), ("cta_group", 24), ("cta_group", 21), ("per_step", 24), ("per_step", 21)]


@pytest.mark.parametrize("T, B", [(3, 2), (2, 1), (1, 1)])
@pytest.mark.parametrize("regime, H", REGIMES)
def test_results_are_the_callers_own(regime, H, T, B):
    """contiguous, no views, and an in-place change is what autograd allows of any output"""
    outputs, expected = call(T, B, 8, H, regime)
    for got, true in zip(outputs, expected, strict=True):
        assert not got._is_view()
        assert got.stride() == true.stride() == torch.empty(true.shape).stride()
        assert (got.double() - true).abs().max() < 0.05  # two or three steps of bf16, 2^-8 each, of values up to 1
        got.add_(1)


@pytest.mark.parametrize("regime, H", REGIMES)
def test_what_does_not_compile_gives_way(regime, H, monkeypatch):
    """to another plan, once; and where there is none, to an error that names the last reason and the first"""
    original, failing, tried = launcher.Launcher.__call__, 1, []

    def refuse(self, *arguments):
        tried.append(self)
        if len(tried) <= failing:
            raise launcher.DoesNotCompile(f"out of patience, {len(tried)}")
        return original(self, *arguments)

    monkeypatch.setattr(launcher.Launcher, "__call__", refuse)
    if regime == "cta_group":
        outputs, expected = call(3, 2, 8, H, regime)
        assert len(tried) == 2
        assert (outputs[0].double() - expected[0]).abs().max() < 0.05
    failing, tried[:] = 1000, []
    choose._rejected.clear()
    dispatch._launch_for.cache_clear()
    with pytest.raises(UnsupportedError, match="out of patience, 1") as raised:
        call(3, 2, 8, H, regime)
    assert isinstance(raised.value.__cause__, launcher.DoesNotCompile)
    assert len(tried) <= choose._TRIES


@pytest.fixture
def restricted(monkeypatch):
    """In launches of more CTAs than 12 that wait for each other the driver sees too many"""
    original = launcher.Launcher.__call__

    def refuse(self, *arguments):
        if "launch_cooperative_grid" in self.options and math.prod(self.grid) > 12:
            raise launcher.DoesNotFit(math.prod(self.grid))
        return original(self, *arguments)

    monkeypatch.setattr(launcher.Launcher, "__call__", refuse)
    monkeypatch.setattr(hardware, "_together", {})


@pytest.mark.parametrize("layers, directions", [(1, 1), (3, 1), (1, 2)])
def test_results_of_plans_that_fit(layers, directions, restricted, monkeypatch):
    """are the same, forward and backward, where part of the device is another's"""
    B, H = 17, 72  # three groups of five CTAs of 16 units for each layer and direction
    monkeypatch.setattr(hardware, "_record", lambda device: dataclasses.replace(hardware.RECORDS["sm_90"], sms=132))
    x, weights, h0, expected = example(layers, directions, 8, H, T=2, B=B)
    flat = [t for layer in weights for t in layer]
    exchange = dict(races="off", channels=("out_ptr",))
    with overriding(regime="cta_group"):
        with cooperate(**exchange):
            y, (hn,) = functional.network(x, flat, [h0], cells.named("elman_tanh"), bidirectional=directions == 2)
        with cooperate(**exchange):
            got = [y, hn, *torch.autograd.grad(y.sum() + hn.sum(), [x, h0, *flat])]
    assert hardware.of(torch.device("cpu")).coresident < 132, "nothing was too large"
    for ours, theirs in zip(got, expected(), strict=True):
        assert (ours.double() - theirs).norm() <= 4 * 2.0**-8 * 5**0.5 * layers**0.5 * theirs.norm()


def test_a_forced_grid_ends_where_programs_run_in_turn():
    """Triton's own interpreter: the first program waits for one that has not begun."""
    tensors = [t.detach().to(torch.bfloat16) for t in problem(2, 1, 8, 24)]
    with overriding(regime="cta_group", units=16):
        rnn_triton.rnn(*tensors)
        with pytest.raises(ExchangeError, match="forward of bf16"):
            faults.synchronize("cpu")
    y, hn = rnn_triton.rnn(*tensors)  # the one after it is right
    assert y.isfinite().all() and hn.isfinite().all()
