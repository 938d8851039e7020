"""The recurrence in plain torch, one step of a cell after the other: what every other implementation is tested against, and what
derivatives beyond the first, and those of forward mode, are made of.

Any dtype, fp64 included; differentiable to any order.  Shapes: x[T,B,I], w_ih[G*H,I], w_hh[G*H,H], b_ih[G*H] and b_hh[G*H] of a cell
with G gates, each of its vectors [H], each of its states [B,H], y[T,B,H].  Biases may be None; no states stand for zeros.  `reverse`
runs from t = T-1 to 0; y stays in the order of x, and the last states are those after the last step taken.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .cell import Cell, Tensors
from .elman import ELMAN


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
) -> tuple[Tensor, Tensors]:
    """Returns y and the last states of one layer of `cell` in one direction."""
    states = states or (x.new_zeros(x.shape[1], w_hh.shape[1]),) * len(cell.states)
    whole = len(cell.gates) - len(cell.split)
    ys = []
    for x_t in reversed(x.unbind(0)) if reverse else x.unbind(0):
        x_part, h_part = x_t @ w_ih.T, states[0] @ w_hh.T
        x_part, h_part = x_part if b_ih is None else x_part + b_ih, h_part if b_hh is None else h_part + b_hh
        parts = list(zip(x_part.chunk(len(cell.gates), -1), h_part.chunk(len(cell.gates), -1)))
        a = [i + h for i, h in parts[:whole]] + [h for _, h in parts[whole:]] + [i for i, _ in parts[whole:]]
        states = cell.step(tuple(a), states, vectors)
        ys.append(states[0])
    return torch.stack(ys[::-1] if reverse else ys), states


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
