"""Recurrent networks as loops: the cells' formulas, a loop over steps, and layers and directions around any
recurrence.

Shapes of a recurrence: x[T,B,I], state (h[B,H], and an LSTM's c[B,H]), weights (w_ih[G*H,I], w_hh[G*H,H],
b_ih[G*H], b_hh[G*H]) with gates in torch.nn's order: r, z, n of a GRU and i, f, g, o of an LSTM. Any number of
leading dimensions, which are models, if all have them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..cases.case import Case

State = tuple[Tensor, ...]
Weights = tuple[Tensor, ...]
Cell = Callable[[Tensor, State], State]  # x_t[B,I] and the state before it -> the state after it
# (which of the recurrences, x, initial state) -> (h of every step, last state)
Recurrence = Callable[[int, Any, State], tuple[Any, State]]


def formula(kind: str, x: Tensor, state: State, weights: Weights) -> State:
    """One step of a cell, in plain operators; kind: tanh, relu, gru or lstm. As torch.nn documents its cells."""
    w_ih, w_hh, b_ih, b_hh = weights
    h = state[0]
    of_x = x @ w_ih.mT + b_ih.unsqueeze(-2)
    of_h = h @ w_hh.mT + b_hh.unsqueeze(-2)
    if kind == "gru":
        (xr, xz, xn), (hr, hz, hn) = of_x.chunk(3, -1), of_h.chunk(3, -1)
        r, z = torch.sigmoid(xr + hr), torch.sigmoid(xz + hz)
        n = torch.tanh(xn + r * hn)
        return ((1 - z) * n + z * h,)
    if kind == "lstm":
        i, f, g, o = (of_x + of_h).chunk(4, -1)
        c = torch.sigmoid(f) * state[1] + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(c), c
    return (torch.tanh(of_x + of_h) if kind == "tanh" else torch.relu(of_x + of_h),)


def kind_of(case: Case) -> str:
    """Of `formula`"""
    return case.nonlinearity if case.cell == "rnn" else case.cell


def over_steps(cell: Cell, x: Tensor, state: State) -> tuple[Tensor, State]:
    """A cell's h of every step, and its last state."""
    states = []
    for x_t in x.unbind(-3):
        state = cell(x_t, state)
        states.append(state[0])
    return torch.stack(states, -3), state


def over_layers(case: Case, recurrence: Recurrence, x: Any, state: State) -> tuple[Any, State]:
    """(y[T,B,D*H], (hn[L*D,B,H], cn)) of all layers and directions; the reverse ones run over flipped time.

    x may be anything that the recurrence takes, where there is one direction."""
    last: list[State] = []
    for layer in range(case.layers):
        outputs = []
        for direction in range(case.directions):
            k = layer * case.directions + direction
            y, final = recurrence(k, x.flip(-3) if direction else x, tuple(s.select(-3, k) for s in state))
            outputs.append(y.flip(-3) if direction else y)
            last.append(final)
        x = torch.cat(outputs, -1) if case.bidirectional else outputs[0]
    return x, tuple(torch.stack(parts, -3) if len(parts) > 1 else parts[0].unsqueeze(-3) for parts in zip(*last))
