"""Layers and directions of one network, as so many single layers in turn.

The one place that knows of more than one layer: what ran a whole stack in one launch would stand in for `rnn` here.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from . import functional, packed


def rnn(
    x: Tensor,
    weights: Sequence[Tensor],
    h0: Tensor | None = None,
    *,
    bias: bool = True,
    nonlinearity: str = "tanh",
    bidirectional: bool = False,
    dropout: float = 0.0,
    precision: str | None = None,
    runs: list[tuple[int, int]] | None = None,
) -> tuple[Tensor, Tensor]:
    """(y[T,B,D*H], h_n[L*D,B,H]) of x[T,B,I] and h0[L*D,B,H] (zeros if None): L layers in D directions.

    `weights` are w_ih, w_hh and, with `bias`, b_ih, b_hh of every layer and direction in the order of h_n: layer by
    layer, in each first forwards, then, if `bidirectional`, backwards in time. A layer takes the outputs of both
    directions of the one below, each element zeroed with probability `dropout` and else scaled by 1 / (1 - dropout).

    With `runs` (see packed.runs_of), x and y are packed rows, [N,I] and [N,D*H].
    """
    layer: Callable[..., tuple[Tensor, Tensor]] = functional.rnn
    if runs is not None:
        layer = functools.partial(packed.rnn, runs=runs)
    each = 4 if bias else 2
    if len(weights) == each:
        h = None if h0 is None else h0[0]
        y, hn = layer(x, *weights, h0=h, nonlinearity=nonlinearity, precision=precision)
        return y, hn[None]

    states = [None] * (len(weights) // each) if h0 is None else h0.unbind(0)
    directions = 2 if bidirectional else 1
    h_n: list[Tensor] = []
    while len(h_n) < len(states):
        if h_n and dropout:
            x = nn.functional.dropout(x, dropout)
        ys = []
        for direction in range(directions):
            i = len(h_n)
            y, hn = layer(
                x,
                *weights[i * each : (i + 1) * each],
                h0=states[i],
                nonlinearity=nonlinearity,
                reverse=direction == 1,
                precision=precision,
            )
            ys.append(y)
            h_n.append(hn)
        x = torch.cat(ys, -1) if bidirectional else y
    return x, torch.stack(h_n)
