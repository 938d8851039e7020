"""Runs a layer whose output is projected, h_t = W_hr m_t, m_t what the cell makes (proj_size of torch.nn.LSTM), as one without.

    W_hh h_{t-1} = (W_hh W_hr) m_{t-1}        for all steps but the first

so the recurrence runs on m with W_hh W_hr in place of W_hh, and y is one product behind it.  A given h is no m: it enters the step that
reads it through the input, which gets P columns more, h_0 in the first step of a sequence, the restart state where it begins anew, and zeros
in the others, that W_hh multiplies.  Both products are multiplied as the layer's own are.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from . import checks
from .cells import Cell
from .cells.sequences import Sequences
from .op.product import product


def layer(
    x: Tensor,
    weights: Sequence[Tensor | None],
    states: Sequence[Tensor],
    cell: Cell,
    *,
    one: Callable[..., tuple[Tensor, tuple[Tensor, ...]]],
    reverse: bool = False,
    precision: str | None = None,
    lengths: Tensor | None = None,
    reset: Tensor | None = None,
    reset_state: Sequence[Tensor] = (),
    **options: Any,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Returns (y, last) of a layer: those of functional.layer, with P columns in place of H in y and the first state.

    `weights` are those of functional.layer, w_hh[G*H,P], and behind them w_hr[P,H]; the first of `states` and of `reset_state` is [B,P].
    `one` runs the layer without a projection.
    """
    w_ih, w_hh, *others, w_hr = weights
    assert w_ih is not None and w_hh is not None and w_hr is not None
    if w_hr.dim() != 2 or w_hh.dim() != 2 or w_hh.shape[1] != w_hr.shape[0]:
        raise ValueError(f"w_hr must have shape [P, H] and w_hh [{len(cell.gates)}*H, P], got {list(w_hr.shape)} and {list(w_hh.shape)}")
    checks.check_parameters(x, (w_ih, w_hh, w_hr))
    checks.check_precision(precision)
    times: Callable[[Tensor, Tensor], Tensor] = torch.matmul  # which autocast casts for
    if not (torch._C._is_any_autocast_enabled() and torch.is_autocast_enabled(x.device.type)):
        times = functools.partial(product, precision=checks.precision_of(x.dtype, precision))
    h0 = None
    if states or reset_state:
        P, B = w_hr.shape[0], x.shape[1]
        first, anew = (given[0] if given else None for given in (states, reset_state))
        if first is not None and first.shape != (B, P):
            raise RuntimeError(f"Expected hidden[0] size {(B, P)}, got {list(first.shape)}")
        if anew is not None and anew.shape != (B, P):
            raise ValueError(f"reset_state must have shape [B, P] = {[B, P]} in its first tensor, got {list(anew.shape)}")
        like = first if first is not None else anew
        assert like is not None
        if x.shape[0] and x.shape[-1] == w_ih.shape[-1] and x.device == like.device:  # else `one` refuses them
            h0 = like.new_zeros(B, P) if first is None else first
            columns = _columns(h0, anew, Sequences(lengths, reset), x.shape[0], reverse)
            x = torch.cat([x, columns.to(x.dtype)], -1)
            w_ih = torch.cat([w_ih, w_hh.to(w_ih.dtype)], -1)
        zeros = like.new_zeros(B, w_hr.shape[1])  # in the dtype of h, which `one` checks
        states, reset_state = ((zeros, *given[1:]) if given else () for given in (states, reset_state))
    of_sequences = {} if lengths is None and reset is None else dict(lengths=lengths, reset=reset, reset_state=reset_state)
    weights = w_ih, times(w_hh, w_hr), *others
    m, (last, *rest) = one(x, weights, states, cell, reverse=reverse, precision=precision, **of_sequences, **options)
    hn = times(last, w_hr.T)
    if lengths is not None and h0 is not None:  # of a row without steps h_0 stays
        hn = torch.where((lengths > 0).unsqueeze(1), hn, h0.to(hn.dtype))
    y = times(m, w_hr.T)
    live = Sequences(lengths).live(x.shape[0])
    if live is not None:  # what the gradient of y holds beyond a length, NaN perhaps, must not reach that of W_hr
        y = torch.where(live.unsqueeze(2), y, 0)
    return y, (hn, *rest)


def _columns(h0: Tensor, anew: Tensor | None, sequences: Sequences, T: int, reverse: bool) -> Tensor:
    """Returns [T,B,P]: h0[B,P] in the steps that read it, `anew` (None for zeros) where sequences begin anew, zeros elsewhere."""
    zeros = h0.new_zeros(1, *h0.shape)
    if sequences.lengths is None or not reverse:
        rest = zeros.expand(T - 1, -1, -1)
        columns = torch.cat([rest, h0[None]] if reverse else [h0[None], rest])
    else:
        first = torch.arange(T, device=h0.device).unsqueeze(1) == sequences.lengths - 1
        columns = torch.where(first.unsqueeze(2), h0, 0)
    cuts = sequences.cuts(T, reverse)
    return columns if cuts is None else torch.where(cuts.unsqueeze(2), zeros if anew is None else anew, columns)
