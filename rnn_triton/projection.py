"""Runs a layer whose output is projected, h_t = W_hr m_t, m_t what the cell makes (proj_size of torch.nn.LSTM), as one without.

    W_hh h_{t-1} = (W_hh W_hr) m_{t-1}        for all steps but the first

so the recurrence runs on m with W_hh W_hr in place of W_hh, and y is one product behind it.  A given h_0 is no m: it enters the first
step through the input, which gets P columns more, h_0 in the first step of a sequence and zeros in the others, that W_hh multiplies.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .cells import Cell


def layer(
    x: Tensor,
    weights: Sequence[Tensor | None],
    states: Sequence[Tensor],
    cell: Cell,
    *,
    one: Callable[..., tuple[Tensor, tuple[Tensor, ...]]],
    pieces: Sequence[tuple[int, int]] | None = None,
    reverse: bool = False,
    **options: Any,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Returns (y, last) of a layer: those of functional.layer, with P columns in place of H in y and the first state.

    `weights` are those of functional.layer, w_hh[G*H,P], and behind them w_hr[P,H]; the first of `states` is [B,P].  `one` runs the
    layer without a projection.  With `pieces`, those of packed.py, x and y are packed rows.
    """
    w_ih, w_hh, *others, w_hr = weights
    assert w_ih is not None and w_hh is not None and w_hr is not None
    if w_hr.dim() != 2 or w_hh.dim() != 2 or w_hh.shape[1] != w_hr.shape[0]:
        raise ValueError(f"w_hr must have shape [P, H] and w_hh [{len(cell.gates)}*H, P], got {list(w_hr.shape)} and {list(w_hh.shape)}")
    if states:
        h0, *rest = states
        P, B = w_hr.shape[0], x.shape[1] if pieces is None else pieces[0][1]
        if h0.shape != (B, P):
            raise RuntimeError(f"Expected hidden[0] size {(B, P)}, got {list(h0.shape)}")
        if x.shape[0] and x.shape[-1] == w_ih.shape[-1] and x.device == h0.device:  # else `one` refuses them
            first = _first_steps(h0, [(x.shape[0], B)] if pieces is None else pieces, reverse)
            x = torch.cat([x, first.view(*x.shape[:-1], P).to(x.dtype)], -1)
            w_ih = torch.cat([w_ih, w_hh.to(w_ih.dtype)], -1)
        states = [h0.new_zeros(B, w_hr.shape[1]), *rest]  # in the dtype of h0, which `one` checks
    m, (last, *rest) = one(x, (w_ih, w_hh @ w_hr, *others), states, cell, reverse=reverse, **options)
    return m @ w_hr.T, (last @ w_hr.T, *rest)


def _first_steps(h0: Tensor, pieces: Sequence[tuple[int, int]], reverse: bool) -> Tensor:
    """Returns h0[B,P] where sequences start, as rows [N,P] that lie as `pieces` says; zeros elsewhere."""
    rows = sum([steps * size for steps, size in pieces])
    if not reverse:
        return torch.cat([h0, h0.new_zeros(rows - h0.shape[0], h0.shape[1])])
    parts = []
    for n, (steps, size) in enumerate(pieces):  # a sequence starts where it ends, in the last step that it has
        longer = pieces[n + 1][1] if n + 1 < len(pieces) else 0
        parts += [h0.new_zeros((steps - 1) * size + longer, h0.shape[1]), h0[longer:size]]
    return torch.cat(parts)
