"""Computing again what the forward pass keeps (launch/recompute.py): the same tiles as the forward pass's, but for the order of sums and for
carried states that were rounded."""

import pytest
import torch
from test_gated_launches import DEVICE, Case, Network, all_cells, grouped

from rnn_triton import overriding
from rnn_triton.cells import named
from rnn_triton.launch import dispatch, elementwise, recompute
from rnn_triton.plan.candidates import accuracy
from rnn_triton.plan.problem import Problem


def both_ways(case, forward=None):
    """(y, last, kept) of a forward pass, and what is computed again of one that keeps states"""
    settings = (case.name, case.reverse, case.precision)

    def run(keep):
        if forward is None:
            return dispatch.forward(case.x, *case.weights, case.states, *settings, keep, case.vectors)
        with forward():
            return dispatch.forward(case.x, *case.weights, case.states, *settings, keep, case.vectors)

    y, last, kept = run(True)
    y_, last_, saved = run("states")
    assert torch.equal(y, y_) and all(map(torch.equal, last, last_))
    unseen = len(case.cell.unseen)
    assert saved is None if unseen == 0 else saved.shape == (case.T, case.B, unseen, case.H)
    again = recompute.kept(case.x, *case.weights, y, case.states, saved, *settings, case.vectors)
    assert again.shape == kept.shape and again.dtype == kept.dtype and again.is_contiguous()
    return kept, again


def assert_same(kept, again, case):
    """Two roundings to the storage dtype, of what is carried and of the tile; operands of products as they were"""
    state, product = case.roundoff
    for n in range(case.cell.kept):
        error = (kept[..., n, :].double() - again[..., n, :].double()).norm() / kept[..., n, :].double().norm()
        assert error <= 4 * (state + product), f"number {n}: error {error:.2e}"


@pytest.mark.interpret
@all_cells
@pytest.mark.parametrize("regime", ["one_cta", "per_step"])
@pytest.mark.parametrize("kind, T, B, I, H", [("bf16", 4, 3, 24, 29), ("tf32", 3, 9, 7, 16), ("fp64", 3, 2, 5, 13)])
def test_what_is_kept(name, kind, T, B, I, H, regime):
    with overriding(regime=regime):
        case = Case(name, kind, T, B, I, H, reverse=kind == "tf32", first=kind != "fp64")
        assert_same(*both_ways(case), case)


@pytest.mark.interpret
@all_cells
def test_what_a_group_keeps(name):
    with overriding(regime="cta_group", warps=4, units=16, block_b=8, protocol="sentinel"):
        case = Case(name, "fp16", 3, 9, 8, 30)
        assert_same(*both_ways(case, lambda: grouped("forward")), case)


@pytest.mark.interpret
def test_pieces(monkeypatch):
    """of few steps, both ways through time, and of models: the bits of one piece"""
    for reverse in (False, True):
        case = Case("lstm", "bf16", 6, 3, 8, 16, reverse)
        whole = both_ways(case)[1]
        with monkeypatch.context() as patch:
            patch.setattr(recompute, "_PIECE_BYTES", 2 * 8 * 4 * 3 * 16)
            assert torch.equal(both_ways(case)[1], whole)
        settings = (case.name, reverse, None)
        two = [torch.stack([t, t]) for t in (case.x, *case.weights)]
        states = tuple(torch.stack([s, s]) for s in case.states)
        y, _, saved = dispatch.forward(*two, states, *settings, "states")
        assert torch.equal(recompute.kept(*two, y, states, saved, *settings), torch.stack([whole, whole]))


@pytest.mark.interpret
@pytest.mark.parametrize("linked", [True, False])
def test_of_a_launch_of_several(linked):
    """What each of them keeps is put in its place."""
    with overriding(regime="cta_group", warps=4, units=16, block_b=8):
        net = Network("lstm", linked, 3, 3, 24, 29)

        def run(keep):
            with grouped("forward"):
                return dispatch.forward(net.x, *net.columns, net.states, "lstm", False, None, keep, None, (net.bundle, 0))

        (y, _, kept), (_, _, saved) = run(True), run("states")
        again = torch.empty_like(kept)
        for n, weights in enumerate(zip(*net.columns)):
            x, of_n = (y[n - 1] if linked and n else net.x), y[n] if linked else y.chunk(2, -1)[n]
            given = tuple(s[n] for s in net.states)
            recompute.kept(x, *weights, of_n, given, saved[n], "lstm", not linked and n == 1, None, None, again[n])
        error = (kept.double() - again.double()).norm() / kept.double().norm()
        assert error <= 4 * 2.0**-8


@pytest.mark.interpret
@pytest.mark.parametrize("name", ["lstm", "gru"])
def test_gradients_from_what_is_computed_again(name):
    """as accurate as those from what was kept, within what test_gated_launches.py allows"""
    case = Case(name, "bf16", 4, 3, 24, 29)
    forward = dispatch.forward
    with pytest.MonkeyPatch.context() as patch:

        def saving(x, w_ih, w_hh, b_ih, b_hh, states, cell, reverse, precision, keep, vectors, **_):
            y, last, saved = forward(x, w_ih, w_hh, b_ih, b_hh, states, cell, reverse, precision, "states", vectors)
            return y, last, recompute.kept(x, w_ih, w_hh, b_ih, b_hh, y, states, saved, cell, reverse, precision, vectors)

        patch.setattr(dispatch, "forward", saving)
        case.check()


@pytest.mark.compiled
@pytest.mark.parametrize("name", ["lstm", "gru", "leaky_tanh"])
@pytest.mark.parametrize("dtype, precision", [("bf16", None), ("fp32", "tf32"), ("fp64", None)])
def test_it_compiles(name, dtype, precision):
    exactness = accuracy(Problem("forward", 8, 64, 100, dtype, precision, name))
    kernel = elementwise.compile_ahead(named(name), True, 100, dtype, exactness, DEVICE.capability)
    assert kernel.metadata.name == f"elementwise_forward_{name}_H100_{dtype}"
    for forward in (True, False):  # as a cell is checked
        assert elementwise.compile_ahead(named(name), forward, 16, "fp64", "double", DEVICE.capability, ())
