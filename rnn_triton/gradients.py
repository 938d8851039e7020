"""What follows from da: the gradients of a layer's inputs and weights, of all time steps at once or chunk by chunk."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from . import gemm

# Gradients that are asked for, added up in `needs`: what is frozen, or needs no gradient, costs no GEMM.
DX, DW_IH, DW_HH, DB, DH0 = 1, 2, 4, 8, 16

Below = Tensor | Callable[[int, int], Tensor]


def times(begin: int, end: int, T: int, reverse: bool) -> tuple[int, int]:
    """The time steps [t0, t1) of a backward pass's steps begin .. end - 1, which are in launch order: the newest first, of a
    layer that is `reverse` the oldest."""
    return (begin, end) if reverse else (T - end, T - begin)


class Layer:
    """Of one layer in one direction:

        dx = da W_ih    dh0 = da_first W_hh    dw_ih = sum over t of da_t^T x_t    dw_hh = sum of da_t^T h_{t-1}    db = sum of da_t

    da comes by `take`, all of it or in chunks of time one after the other from the last step to the first.  Chunks are added
    up in that order, in the dtype that products are accumulated in, and rounded once.  Shapes as in op.py: an ensemble's have
    M in front."""

    def __init__(
        self,
        x: Below,
        w_ih: Tensor,
        w_hh: Tensor,
        h0: Tensor | None,
        y: Tensor,
        reverse: bool,
        precision: str | None,
        needs: int,
    ) -> None:
        """x: or a function of (t0, t1) that gives x of those time steps, where no DX is asked for."""
        self.x, self.w_ih, self.w_hh, self.h0, self.y = x, w_ih, w_hh, h0, y
        self.reverse, self.precision, self.needs = reverse, precision, needs
        self.T = y.shape[-3]
        self.dx: Tensor | None = None
        self.dh0: Tensor | None = None
        self.dw_ih: Tensor | None = None  # the sums so far
        self.dw_hh: Tensor | None = None
        self.db: Tensor | None = None

    @property
    def widths(self) -> tuple[int, ...]:
        """Of every product over all time steps that `needs` asks for, the size other than H: what it multiplies da by"""
        I, H = self.w_ih.shape[-1], self.y.shape[-1]
        return tuple(n for which, n in ((DX, I), (DW_IH, I), (DW_HH, H)) if self.needs & which)

    def take(self, da: Tensor, begin: int, end: int) -> None:
        """The part of steps begin .. end - 1, in launch order; da[..,T,B,H] is final there and before."""
        T, needs, reverse, precision = self.T, self.needs, self.reverse, self.precision
        t0, t1 = times(begin, end, T, reverse)
        whole = t1 - t0 == T
        # [T*B,H]: a view, as those of x and y are unless their strides forbid it
        rows = (da if whole else da.narrow(-3, t0, t1 - t0)).flatten(-3, -2)
        columns = rows.mT
        multiply = gemm.matmul if whole else gemm.wide
        if needs & DX:
            self._dx(rows, t0, t1)
        if needs & DH0 and end == T:
            self.dh0 = gemm.matmul(da.select(-3, -1 if reverse else 0), self.w_hh, precision)
        if needs & DW_IH:
            x = self.x(t0, t1) if not isinstance(self.x, Tensor) else self.x if whole else self.x.narrow(-3, t0, t1 - t0)
            self.dw_ih = _added(self.dw_ih, multiply(columns, _rows(x), precision))
        if needs & DW_HH:
            # h_{t-1} is y, B rows further up (in reverse: down), which is a view; h0 has a term of its own
            B = da.shape[-2]
            at_h0 = end == T  # it comes before the last step of all
            n = (t1 - t0 - at_h0) * B
            first = 0 if reverse or not at_h0 else B
            if n > 0:
                before = self.y.flatten(-3, -2).narrow(-2, t0 * B + first + (B if reverse else -B), n)
                self.dw_hh = _added(self.dw_hh, multiply(columns.narrow(-1, first, n), before, precision))
            if at_h0 and self.h0 is not None:
                of_h0 = multiply(columns.narrow(-1, n if reverse else 0, B), self.h0, precision)
                self.dw_hh = _added(self.dw_hh, of_h0)
        if needs & DB:
            narrow = not whole and rows.element_size() == 2
            self.db = _added(self.db, rows.sum(-2, dtype=torch.float32) if narrow else rows.sum(-2))

    def gradients(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """(dx, dw_ih, dw_hh, db, dh0), each empty unless `needs` asks for it"""
        y = self.y
        M = y.shape[:-3]

        def rounded(t: Tensor | None) -> Tensor:
            return y.new_empty(*M, 0) if t is None else t if t.dtype is y.dtype else t.to(y.dtype)

        dw_hh = self.dw_hh
        if dw_hh is None and self.needs & DW_HH:  # T = 1 without h0
            dw_hh = y.new_zeros(*M, y.shape[-1], y.shape[-1])
        # a tensor each for what is not needed: the outputs of an op must not alias
        dx, dh0 = (y.new_empty(0) if t is None else t for t in (self.dx, self.dh0))
        return dx, rounded(self.dw_ih), rounded(dw_hh), rounded(self.db), dh0

    def _dx(self, rows: Tensor, t0: int, t1: int) -> None:
        assert isinstance(self.x, Tensor)
        if t1 - t0 == self.T:
            self.dx = gemm.matmul(rows, self.w_ih, self.precision).view_as(self.x)
            return
        if self.dx is None:
            self.dx = rows.new_empty(self.x.shape)
        gemm.matmul(rows, self.w_ih, self.precision, self.dx.narrow(-3, t0, t1 - t0).flatten(-3, -2))


class Layers:
    """The layers, or directions, of one launch, whose da has dimension `dim` of them."""

    def __init__(self, layers: Sequence[Layer], dim: int) -> None:
        self.layers, self.dim = layers, dim

    @property
    def widths(self) -> tuple[int, ...]:
        return tuple(n for layer in self.layers for n in layer.widths)

    def take(self, da: Tensor, begin: int, end: int) -> None:
        for layer, part in zip(self.layers, da.unbind(self.dim), strict=True):
            layer.take(part, begin, end)


def _added(total: Tensor | None, part: Tensor) -> Tensor:
    return part if total is None else total.add_(part)


def _rows(x: Tensor) -> Tensor:
    """x[..,T,B,I] as [..,T*B,I]: a view, or a copy, as of a batch_first x; never one for each model that shares it"""
    if x.dim() == 4 and x.stride(0) == 0:
        return x[0].flatten(0, 1).expand(x.shape[0], -1, -1)
    return x.flatten(-3, -2)
