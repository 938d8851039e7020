"""Runs a layer whose W_hh is block-diagonal: each of its N heads of H/N hidden units reads its own units of the state before, and all of x.

A head is a layer of its own on the same x, so the layer is an ensemble of N models that share x: one launch for all heads where one CTA
holds a head's W_hh.  The projections of x are together those of a dense W_ih, multiplication by multiplication.

The rows of w_ih, of biases and of gates lie head by head, and in each head gate by gate, so that a head's are a view:
w_ih[G*H,I], w_hh[N,G*H/N,H/N], b_ih[G*H], b_hh[G*H], vectors and states [..,H].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .cells import Cell


def check(heads: int, hidden_size: int, proj_size: int) -> None:
    """Raises ValueError unless a layer of hidden_size units, projected to proj_size, can have so many heads."""
    if isinstance(heads, bool) or not isinstance(heads, int) or heads < 1 or hidden_size % heads:
        raise ValueError(f"heads must be a positive number that divides hidden_size = {hidden_size}, got {heads!r}")
    if heads > 1 and proj_size:
        raise ValueError(f"heads must be 1 with a proj_size, got heads={heads} and proj_size={proj_size}")


def layer(
    x: Tensor,
    weights: Sequence[Tensor | None],
    states: Sequence[Tensor],
    cell: Cell,
    *,
    one: Callable[..., tuple[Tensor, tuple[Tensor, ...]]],
    heads: int,
    reset_state: Sequence[Tensor] = (),
    **options: Any,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Returns y and the last states of a layer, with the arguments of functional.layer, of which w_hh has a dimension for the heads in
    front.  `one` runs a head, as functional.layer."""
    w_ih, w_hh, *others = weights
    assert w_ih is not None and w_hh is not None
    H = heads * w_hh.shape[-1]
    for state in reset_state:
        if state.shape[-1] != H:  # else the error would name the sizes of a head
            raise ValueError(f"reset_state must have shape [B, H] with H = {H}, got {list(state.shape)}")

    def of_head(
        weights: Sequence[Tensor | None], states: Sequence[Tensor], reset_state: Sequence[Tensor]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        return one(x, weights, states, cell, reset_state=reset_state, **options)

    split = [None if t is None else t.unflatten(0, (heads, -1)) for t in (w_ih, *others)]
    each = [split[0], w_hh, *split[1:]]
    dims = [None if t is None else 0 for t in each]
    of_states = [[t.unflatten(-1, (heads, -1)) for t in some] for some in (states, reset_state)]
    state_dims = [[-2] * len(some) for some in of_states]
    if torch.compiler.is_exporting() or torch.jit.is_tracing():  # neither takes vmap: one head after the other
        each_states = [[[t[..., n, :] for t in some] for some in of_states] for n in range(heads)]
        ys, lasts = zip(*[of_head([None if t is None else t[n] for t in each], *each_states[n]) for n in range(heads)])
        return torch.cat(ys, -1), tuple([torch.cat(parts, -1) for parts in zip(*lasts)])
    y, last = torch.vmap(of_head, in_dims=(dims, *state_dims), out_dims=-2)(each, *of_states)
    return y.flatten(-2), tuple([t.flatten(-2) for t in last])
