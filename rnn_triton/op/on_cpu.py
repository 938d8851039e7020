"""One layer in one direction on CPU tensors, where no kernels run: torch's own layer forward, a loop over the steps backward.

Functions have the arguments of those of launch/dispatch.py.  `precision` is not looked at: a CPU multiplies fp32 as it is.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import _VF, Tensor

from ..cells import named
from ..errors import UnsupportedError


def forward(
    x: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
    h0: Tensor | None,
    cell: str,
    reverse: bool,
    precision: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Returns y[T,B,H] and hn[B,H], no views; of an ensemble with M in front, as its inputs have."""
    if x.dim() == 4:
        run: Any = forward
        columns: Any = [[None] * len(x) if t is None else t for t in (x, w_ih, w_hh, b_ih, b_hh, h0)]
        y, hn = (torch.stack(parts) for parts in zip(*[run(*model, cell, reverse) for model in zip(*columns)]))
        return y, hn
    weights = [w_ih, w_hh]
    if b_ih is not None or b_hh is not None:
        weights += [w_hh.new_zeros(w_hh.shape[0]) if b is None else b for b in (b_ih, b_hh)]
    if h0 is None:
        h0 = x.new_zeros(x.shape[1], w_hh.shape[1])
    layer = getattr(_VF, named(cell).aten)
    y, hn = layer(x.flip(0) if reverse else x, h0.unsqueeze(0), weights, len(weights) == 4, 1, 0.0, False, False, False)
    # detach: torch marks y as a view of something, and autograd would then refuse in-place changes to it
    return (y.flip(0) if reverse else y).detach(), hn.squeeze(0).detach()


def backward(
    w_hh: Tensor,
    y: Tensor,
    dy: Tensor | None,
    dhn: Tensor | None,
    cell: str,
    reverse: bool,
    precision: str | None = None,
) -> Tensor:
    """Returns da[T,B,H], the gradient of every pre-activation; dy or dhn may be None, not both.

    UnsupportedError: the cell's gradients do not follow from y."""
    step = named(cell).derivative
    if step is None:
        raise UnsupportedError(f"cells of which y does not say the gradients have no backward pass on CPU tensors, got {cell!r}")
    wide = torch.float32 if y.element_size() == 2 else y.dtype  # what dh accumulates in, as in the kernels
    w_hh, h = w_hh.to(wide), y.movedim(-3, 0).to(wide)  # time first, as below: before the models of an ensemble
    dh = torch.zeros_like(h[0]) if dhn is None else dhn.to(wide)
    da = torch.empty_like(y, memory_format=torch.contiguous_format)
    dy, da_t = None if dy is None else dy.movedim(-3, 0), da.movedim(-3, 0)
    steps = range(h.shape[0])
    with torch.autocast("cpu", enabled=False):  # backward() may be called under it: it would round fp32
        for t in steps if reverse else reversed(steps):
            if dy is not None:
                dh = dh + dy[t]
            da_t[t] = step(dh, h[t])
            dh = da_t[t].to(wide) @ w_hh
    return da
