"""The gradients that follow from da (rnn_triton/op/gradients.py), against fp64."""

import itertools

import pytest
import torch

from rnn_triton.op.gradients import DB, DH0, DW_HH, DW_IH, DX, Saved

T, B, I, H = 7, 3, 5, 4
NEEDS = (DX, DW_IH, DW_HH, DB, DH0)


def of_layer(dtype, reverse, has_h0, needs, steps=T, x_as=lambda x: x):
    """(gradients, the exact ones in fp64)"""
    g = torch.Generator().manual_seed(1)
    da, x, y = (torch.randn(steps, B, n, generator=g).to(dtype) for n in (H, I, H))
    w_ih, w_hh, h0 = (torch.randn(*shape, generator=g).to(dtype) for shape in ((H, I), (H, H), (B, H)))
    layer = Saved(x_as(x), w_ih, w_hh, h0 if has_h0 else None, y, reverse, "ieee", needs)
    results = layer.gradients(da)
    da, x, y, w_ih, w_hh, h0 = (t.double() for t in (da, x, y, w_ih, w_hh, h0))
    first = h0[None] if has_h0 else torch.zeros(1, B, H, dtype=torch.float64)
    before = torch.cat([y[1:], first] if reverse else [first, y[:-1]])
    exact = (
        da @ w_ih, torch.einsum("tbh,tbi->hi", da, x), torch.einsum("tbh,tbk->hk", da, before), da.sum((0, 1)),
        da[-1 if reverse else 0] @ w_hh,
    )  # fmt: skip
    return results, exact


@pytest.mark.parametrize("steps", [T, 1])
@pytest.mark.parametrize("reverse, has_h0", list(itertools.product([False, True], repeat=2)))
def test_gradients_of_every_subset(steps, reverse, has_h0):
    """In fp64: the difference is the order of at most 21 additions of values up to about 10, 1e-16 each"""
    for subset in itertools.product([0, 1], repeat=5):
        needs = sum(n for n, wanted in zip(NEEDS, subset, strict=True) if wanted)
        results, exact = of_layer(torch.float64, reverse, has_h0, needs, steps)
        for got, want, wanted in zip(results, exact, subset, strict=True):
            if wanted:
                assert got.shape == want.shape and (got - want).abs().max() < 1e-12
            else:
                assert got is None
        assert len({t.data_ptr() for t in results if t is not None}) == sum(subset)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("dtype, unit", [(torch.bfloat16, 2.0**-9), (torch.float16, 2.0**-12), (torch.float32, 0.0)])
def test_sums_over_time_are_rounded_once(dtype, unit, reverse):
    """Half a unit in the last place, and fp32's rounding of 21 products of values up to about 4, added up: 21 16 2^-24"""
    results, exact = of_layer(dtype, reverse, False, DW_IH | DW_HH | DB)
    for got, want in zip(results[1:4], exact[1:4], strict=True):
        assert got.dtype is dtype
        assert ((got.double() - want).abs() <= 1.0001 * unit * 2 ** want.abs().log2().ceil() + 21 * 16 * 2.0**-24).all()


def test_x_that_is_made_when_it_is_needed():
    made = []

    def of(x):
        return lambda: made.append(0) or x

    results, exact = of_layer(torch.float64, False, True, DX | DW_IH, x_as=of)
    assert all((got - want).abs().max() < 1e-12 for got, want in zip(results[:2], exact[:2], strict=True))
    assert len(made) == 1
    of_layer(torch.float64, False, True, DX | DB, x_as=of)
    assert len(made) == 1


@pytest.mark.parametrize("reverse, has_h0", list(itertools.product([False, True], repeat=2)))
@pytest.mark.parametrize("split", [0, 1])
def test_gradients_of_several_gates(split, reverse, has_h0):
    """of three, the last one in two parts or not: published come those of its recurrent part first; in fp64, as above"""
    gates = 3
    g = torch.Generator().manual_seed(2)

    def normal(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    by_h, by_x = normal(T, B, gates, H), normal(T, B, gates, H)
    if not split:
        by_x = by_h
    published = torch.cat([by_h[:, :, 2:], by_h[:, :, :2], by_x[:, :, 2:]] if split else [by_h], 2)
    by_x = torch.cat([by_h[:, :, :2], by_x[:, :, 2:]], 2).flatten(2)
    by_h = by_h.flatten(2)
    x, y, w_ih, w_hh, h0, carried = normal(T, B, I), normal(T, B, H), normal(gates * H, I), normal(gates * H, H), normal(B, H), normal(B, H)
    layer = Saved(x, w_ih, w_hh, h0 if has_h0 else None, y, reverse, "ieee", sum(NEEDS))
    first = h0[None] if has_h0 else torch.zeros(1, B, H, dtype=torch.float64)
    before = torch.cat([y[1:], first] if reverse else [first, y[:-1]])
    biases = (by_x.sum((0, 1)), by_h.sum((0, 1))) if split else (by_h.sum((0, 1)),)
    exact = (
        by_x @ w_ih, torch.einsum("tbh,tbi->hi", by_x, x), torch.einsum("tbh,tbk->hk", by_h, before), *biases,
        by_h[-1 if reverse else 0] @ w_hh + carried,
    )  # fmt: skip
    results = layer.gradients(published.flatten(2), None, carried)
    assert all(got.shape == want.shape and (got - want).abs().max() < 1e-12 for got, want in zip(results, exact, strict=True))
    assert len({t.data_ptr() for t in results}) == len(exact)
    of_parts = layer.gradients(published.flatten(2), B, carried)
    for got, want in zip(of_parts[1:-1], exact[1:-1], strict=True):
        assert (got.sum(0) - want).abs().max() < 1e-12
