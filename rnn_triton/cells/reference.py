"""The recurrence and its derivatives in plain torch: what every other implementation is tested against.

    a_t = x_t W_ih^T + b_ih + h_{t-1} W_hh^T + b_hh        h_t = f(a_t),  f = tanh or relu

Any dtype, fp64 included; every function is differentiable to any order. `backward` and `jvp` speak in terms
of what the forward pass saved (its inputs and y); double backward and forward-mode AD run them.
Shapes: x[T,B,I], w_ih[H,I], w_hh[H,H], b_ih[H], b_hh[H], h0[B,H], y[T,B,H], hn[B,H]. Biases and h0 may be
None.
`reverse` runs from t = T-1 to 0; y stays in the order of x, and hn is the state after the last step taken.
"""

from __future__ import annotations

import torch
from torch import Tensor

_ACTIVATION = {"tanh": torch.tanh, "relu": torch.relu}


def _slope(y: Tensor, nonlinearity: str) -> Tensor:
    """f'(a) from y = f(a). As torch has it: relu's is 0 at 0, and 1 where y is NaN."""
    return 1 - y * y if nonlinearity == "tanh" else (~(y <= 0)).to(y.dtype)


def _previous(y: Tensor, h0: Tensor | None) -> Tensor:
    """h_{t-1} for every t, y being in the order of the steps."""
    return torch.cat([(torch.zeros_like(y[0]) if h0 is None else h0).unsqueeze(0), y[:-1]])


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
    """(y, hn), one step at a time."""
    h = x.new_zeros(x.shape[1], w_hh.shape[0]) if h0 is None else h0
    ys = []
    for x_t in reversed(x.unbind(0)) if reverse else x.unbind(0):
        a = x_t @ w_ih.T + h @ w_hh.T
        for bias in (b_ih, b_hh):
            if bias is not None:
                a = a + bias
        h = _ACTIVATION[nonlinearity](a)
        ys.append(h)
    return torch.stack(ys[::-1] if reverse else ys), h


def backward(
    x: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    h0: Tensor | None,
    y: Tensor,
    dy: Tensor | None,
    dhn: Tensor | None,
    nonlinearity: str = "tanh",
    reverse: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Back-propagation through time: (dx, dw_ih, dw_hh, db, dh0); db is the gradient of either bias.

    dh_t = dy_t + da_{t+1} W_hh (+ dhn at the last step),  da_t = dh_t * f'(a_t).  dy or dhn may be None.
    """
    if reverse:
        x, y, dy = x.flip(0), y.flip(0), None if dy is None else dy.flip(0)
    slope = _slope(y, nonlinearity)
    dh = torch.zeros_like(y[0]) if dhn is None else dhn
    steps = []
    for t in range(y.shape[0] - 1, -1, -1):
        if dy is not None:
            dh = dh + dy[t]
        steps.append(dh * slope[t])
        dh = steps[-1] @ w_hh
    da = torch.stack(steps[::-1])
    rows = da.flatten(0, 1)
    dx = da @ w_ih
    dw_ih = rows.T @ x.flatten(0, 1)
    dw_hh = rows.T @ _previous(y, h0).flatten(0, 1)
    return dx.flip(0) if reverse else dx, dw_ih, dw_hh, rows.sum(0), dh


def jvp(
    x: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    h0: Tensor | None,
    y: Tensor,
    tangents: tuple[Tensor | None, ...],
    nonlinearity: str = "tanh",
    reverse: bool = False,
) -> tuple[Tensor, Tensor]:
    """Tangents of (y, hn) for `tangents` of (x, w_ih, w_hh, b_ih, b_hh, h0), None for zero."""
    tx, tw_ih, tw_hh, tb_ih, tb_hh, th0 = tangents
    if reverse:
        x, y, tx = x.flip(0), y.flip(0), None if tx is None else tx.flip(0)
    slope = _slope(y, nonlinearity)
    ta = torch.zeros_like(y)
    if tx is not None:
        ta = ta + tx @ w_ih.T
    if tw_ih is not None:
        ta = ta + x @ tw_ih.T
    if tw_hh is not None:
        ta = ta + _previous(y, h0) @ tw_hh.T
    for tb in (tb_ih, tb_hh):
        if tb is not None:
            ta = ta + tb
    th = torch.zeros_like(y[0]) if th0 is None else th0
    steps = []
    for t in range(y.shape[0]):
        th = slope[t] * (ta[t] + th @ w_hh.T)
        steps.append(th)
    return torch.stack(steps[::-1] if reverse else steps), th
