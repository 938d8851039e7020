"""Cells of several gates, of a state that is carried, and of saved tiles, on one CTA: by interpreter against torch in fp64, and what the
compiler makes of them.  The cells are tests/support/gated.py's.

Tolerances are test_kernels.py's, relative, in the Frobenius norm; in 16 bits the tiles that the forward pass saves are rounded,
too, each once, and errors add in quadrature:

    4 * (u_state * sqrt(1 + kept) + 2 u_product) * sqrt(T + 1)
"""

import pytest
import torch
from support import gated
from support.gated import CELLS

from bench.compiled import resources
from rnn_triton.cells import cell

KINDS = {
    "bf16": (torch.bfloat16, None, 2.0**-8, 0.0),
    "fp16": (torch.float16, None, 2.0**-11, 0.0),
    "tf32": (torch.float32, "tf32", 2.0**-24, 2.0**-11),
    "tf32x3": (torch.float32, "tf32x3", 2.0**-24, 2.0**-24),
    "ieee": (torch.float32, "ieee", 2.0**-24, 2.0**-24),
    "fp64": (torch.float64, None, 2.0**-53, 2.0**-53),
}


@pytest.fixture(autouse=True)
def known(monkeypatch):
    """The cells have their names, as rnn_triton's have."""
    monkeypatch.setattr(cell, "_KNOWN", {**cell._KNOWN, **CELLS})


def inputs(name, T, B, I, H, dtype):
    g = torch.Generator().manual_seed(0)
    gates = len(CELLS[name].gates)

    def uniform(*shape):
        return ((torch.rand(*shape, generator=g) * 2 - 1) / H**0.5).to(dtype)

    def normal(*shape):
        return torch.randn(*shape, generator=g).to(dtype)

    weights = uniform(gates, H, I), uniform(gates, H, H), uniform(gates, H), uniform(gates, H)
    vectors = (torch.rand(1, H, generator=g) * 0.8 + 0.1).to(torch.promote_types(dtype, torch.float32)) if CELLS[name].vectors else None
    return (normal(T, B, I), *weights, normal(B, H), normal(B, H)), vectors, (normal(T, B, H), normal(B, H), normal(B, H))


def reference(name, tensors, vectors, cotangents, reverse):
    """(y, hn, cn), gradients of x, W_ih, W_hh, b_ih, b_hh, h0, c0, vectors, in fp64"""
    leaves = [t.double().requires_grad_() for t in (*tensors, *([] if vectors is None else vectors))]
    x, w_ih, w_hh, b_ih, b_hh, h, c, *vectors = leaves
    ys = []
    of = CELLS[name]
    states = (h, c)[: len(of.states)]
    together = len(of.gates) - len(of.split)
    for x_t in x.flip(0) if reverse else x:
        of_x = torch.einsum("bi,ghi->gbh", x_t, w_ih) + b_ih[:, None]
        of_h = torch.einsum("bk,ghk->gbh", states[0], w_hh) + b_hh[:, None]
        a = (*(of_x[:together] + of_h[:together]), *of_h[together:], *of_x[together:])
        states = of.step(a, states, tuple(vectors))
        ys.append(states[0])
    y = torch.stack(ys[::-1] if reverse else ys)
    loss = sum((value * given.double()).sum() for value, given in zip((y, *states), cotangents, strict=False))
    return (y, *states), torch.autograd.grad(loss, leaves, allow_unused=True)


def check(device, name, kind, T, B, I, H, reverse=False, chains=1, **changes):
    dtype, precision, u_state, u_product = KINDS[kind]
    tensors, vectors, (dy, dhn, dcn) = inputs(name, T, B, I, H, dtype)
    x, w_ih, w_hh, _, _, h0, c0 = tensors
    lstm = name == "lstm"
    if not lstm:
        dcn = torch.zeros_like(dcn)  # of what is carried there is no gradient but that of h
    (y_, hn_, *cn_), gradients = reference(name, tensors, vectors, (dy, dhn, dcn), reverse)
    wide = torch.promote_types(dtype, torch.float32)
    carried = (c0 if lstm else h0).to(device, wide)[None].clone()
    there = [t.to(device) for t in tensors]
    vectors = None if vectors is None else vectors.to(device)
    y, hn, carried, kept = gated.forward(
        name, *there[:6], carried, vectors, precision, reverse, chains=chains, **changes
    )
    da, dcarried = gated.backward(
        name, there[2], y, kept, dy.to(device), dhn.to(device), dcn.to(device, wide)[None].clone(), vectors, precision, reverse,
        chains=chains,
    )  # fmt: skip
    y, hn, carried, kept, da, dcarried = (t.cpu() for t in (y, hn, carried, kept, da, dcarried))

    d_hh, d_ih = gated.gradients_of_gates(name, da.double())
    before = torch.cat([y[1:], h0[None]] if reverse else [h0[None], y[:-1]]).double()
    dh0 = torch.einsum("bgh,ghk->bk", d_hh[-1 if reverse else 0], w_hh.double())
    found = [
        torch.einsum("tbgh,ghi->tbi", d_ih, w_ih.double()), torch.einsum("tbgh,tbi->ghi", d_ih, x.double()),
        torch.einsum("tbgh,tbk->ghk", d_hh, before), d_ih.sum((0, 1)), d_hh.sum((0, 1)),
        dh0 if lstm else dh0 + dcarried[0].double(),
    ]  # fmt: skip
    limit = 4 * (u_state * (1 + kept.shape[2]) ** 0.5 + 2 * u_product) * (2 * T + 1) ** 0.5
    values = [(y, y_), (hn, hn_), (carried[0], cn_[0] if lstm else hn_), *zip(found, gradients[:6], strict=True)]
    if lstm:
        values.append((dcarried[0], gradients[6]))
    values += zip(dcarried[1:].sum(1), gradients[7:], strict=True)
    for k, (value, expected) in enumerate(values):
        error = (value.double() - expected).norm() / expected.norm()
        assert error <= limit, f"number {k}: error {error:.2e} > {limit:.2e}"


# one chain and two; x from registers, behind the step, and by a GEMM; padding of H; two batch tiles; both ways through time
@pytest.mark.executed("ptx-bf16-4-3-24-32-how0-gru", "ptx-tf32-4-3-16-64-how2-lstm", "ptx-fp16-3-9-7-30-how1-leaky")
@pytest.mark.parametrize("name", list(CELLS))
@pytest.mark.parametrize("kind, T, B, I, H, how", [
    ("bf16", 4, 3, 24, 32, dict(chains=2)),
    ("fp16", 3, 9, 7, 30, dict(reverse=True)),
    ("tf32", 4, 3, 16, 64, dict(chains=2, w_ih_home="gemm", x_depth=2)),
    ("tf32x3", 3, 9, 9, 29, dict(w_ih_home="shared", x_depth=0, reverse=True)),
    ("ieee", 3, 2, 5, 20, dict(w_ih_home="shared", x_depth=1)),
    ("fp64", 3, 2, 5, 20, dict(w_ih_home="gemm", x_depth=1, reverse=True)),
])  # fmt: skip
def test_values_and_gradients(name, kind, T, B, I, H, how, device):
    check(device, name, kind, T, B, I, H, **how)


@pytest.mark.interpret
@pytest.mark.parametrize("name", list(CELLS))
def test_the_first_backward_step_has_no_product(name):
    """There is no state yet, and 0 * W_hh would be NaN where W_hh is infinite."""
    _, vectors, (dy, dhn, _) = inputs(name, 1, 3, 1, 20, torch.float32)
    gates = len(CELLS[name].gates)
    kept = torch.full((1, 3, CELLS[name].kept, 20), 0.5)
    found = [
        gated.backward(name, torch.full((gates, 20, 20), of), dy, kept, dy, dhn, torch.ones(1, 3, 20), vectors, "tf32")
        for of in (0.0, float("inf"))
    ]
    assert all(torch.equal(a, b) and a.isfinite().all() for a, b in zip(*found, strict=True))


@pytest.mark.compiled
@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("name", ["gru", "lstm"])
def test_what_is_compiled(name, direction):
    """The largest layer of 16 bits whose weights fit: no spills, no shuffles, two barriers a step"""
    changes = dict(w_ih_home="gemm", x_depth=1) if direction == "forward" else {}
    kernel = gated.compiled(name, direction, 128, "bf16", None, chains=2, **changes)
    r = resources.analyze(kernel)
    assert (r.spill_stores, r.spill_loads, r.shuffles, r.barriers) == (0, 0, 0, 2)
    assert r.mma == 8 * len(CELLS[name].gates)
