"""The recurrence in plain torch, one step of a cell after the other: what every other implementation is tested against, and what
derivatives beyond the first, and those of forward mode, are made of.

Any dtype, fp64 included; differentiable to any order.  Shapes: x[T,B,I], w_ih[G*H,I], w_hh[G*H,H], b_ih[G*H] and b_hh[G*H] of a cell
with G gates, each of its vectors [H], each of its states [B,H], y[T,B,H].  Biases may be None; no states stand for zeros.  `reverse`
runs from t = T-1 to 0; y stays in the order of x, and the last states are those after the last step taken.

`sequences` says where rows end and begin anew.  What stands beyond an end reaches no result and no gradient, NaN neither: where selects
what a step reads as well as what it gives, because the gradient of what is not selected is zero times a derivative that may be NaN.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .cell import Cell, Tensors
from .elman import ELMAN
from .sequences import Sequences


def recurrence(
    x: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
    states: Tensors,
    cell: Cell,
    reverse: bool = False,
    vectors: Tensors = (),
    sequences: Sequences = Sequences(),
) -> tuple[Tensor, Tensors]:
    """Returns y and the last states of one layer of `cell` in one direction."""
    T, B, _ = x.shape
    zeros = (x.new_zeros(B, w_hh.shape[1]),) * len(cell.states)
    states, restart = states or zeros, sequences.restart or zeros
    live, cuts = sequences.live(T), sequences.cuts(T, reverse)
    if live is not None:
        x = torch.where(live.unsqueeze(2), x, 0)
    whole = len(cell.gates) - len(cell.split)
    ys = []
    steps = list(enumerate(x.unbind(0)))
    for t, x_t in reversed(steps) if reverse else steps:
        if cuts is not None:
            states = _chosen(cuts[t], restart, states)
        before = states if live is None else _chosen(live[t], states, zeros)
        x_part, h_part = x_t @ w_ih.T, before[0] @ w_hh.T
        x_part, h_part = x_part if b_ih is None else x_part + b_ih, h_part if b_hh is None else h_part + b_hh
        parts = list(zip(x_part.chunk(len(cell.gates), -1), h_part.chunk(len(cell.gates), -1)))
        a = [i + h for i, h in parts[:whole]] + [h for _, h in parts[whole:]] + [i for i, _ in parts[whole:]]
        after = cell.step(tuple(a), before, vectors)
        states = after if live is None else _chosen(live[t], after, states)
        ys.append(after[0] if live is None else torch.where(live[t].unsqueeze(1), after[0], 0))
    return torch.stack(ys[::-1] if reverse else ys), states


def _chosen(rows: Tensor, some: Tensors, others: Tensors) -> Tensors:
    """Returns the states of `some` in the rows that are True, those of `others` in the rest."""
    return tuple([torch.where(rows.unsqueeze(1), *pair) for pair in zip(some, others, strict=True)])


def rnn(
    x: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
    h0: Tensor | None = None,
    nonlinearity: str = "tanh",
    reverse: bool = False,
) -> tuple[Tensor, Tensor]:
    """Returns (y, hn) of an Elman layer, with the arguments of functional.rnn."""
    y, (hn,) = recurrence(x, w_ih, w_hh, b_ih, b_hh, () if h0 is None else (h0,), ELMAN[nonlinearity], reverse)
    return y, hn
