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
        self.sums: list[Tensor | None] = [None, None, None]  # dw_ih, dw_hh, db

    @property
    def widths(self) -> tuple[int, ...]:
        """Of every product over all time steps that `needs` asks for, the size other than H: what it multiplies da by"""
        I, H = self.w_ih.shape[-1], self.y.shape[-1]
        return tuple(n for which, n in ((DX, I), (DW_IH, I), (DW_HH, H)) if self.needs & which)

    def take(self, da: Tensor, begin: int, end: int) -> None:
        """The part of steps begin .. end - 1, in launch order; da[..,T,B,H] is final there and before."""
        t0, t1 = times(begin, end, self.T, self.reverse)
        whole = t1 - t0 == self.T
        rows = da.narrow(-3, t0, t1 - t0).flatten(-3, -2)  # [T*B,H]; a view, as those of x and y unless strides forbid it
        if self.needs & DX:
            self._dx(rows, t0, t1)
        if self.needs & DH0 and end == self.T:
            self.dh0 = gemm.matmul(da.select(-3, -1 if self.reverse else 0), self.w_hh, self.precision)
        multiply = gemm.matmul if whole else gemm.wide
        if self.needs & DW_IH:
            x = self.x.narrow(-3, t0, t1 - t0) if isinstance(self.x, Tensor) else self.x(t0, t1)
            self._add(0, multiply(rows.mT, _rows(x), self.precision))
        if self.needs & DW_HH:
            self._dw_hh(da, t0, t1, multiply)
        if self.needs & DB:
            self._add(2, rows.sum(-2, dtype=rows.dtype if whole or rows.element_size() > 2 else torch.float32))

    def gradients(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """(dx, dw_ih, dw_hh, db, dh0), each empty unless `needs` asks for it"""
        y, (dw_ih, dw_hh, db) = self.y, self.sums
        M = y.shape[:-3]
        if dw_hh is None and self.needs & DW_HH:  # T = 1 without h0
            dw_hh = y.new_zeros(*M, y.shape[-1], y.shape[-1])
        # a tensor each for what is not needed: the outputs of an op must not alias
        weights = [y.new_empty(*M, 0) if t is None else t.to(y.dtype) for t in (dw_ih, dw_hh, db)]
        dx, dh0 = (y.new_empty(0) if t is None else t for t in (self.dx, self.dh0))
        return dx, weights[0], weights[1], weights[2], dh0

    def _dx(self, rows: Tensor, t0: int, t1: int) -> None:
        assert isinstance(self.x, Tensor)
        if t1 - t0 == self.T:
            self.dx = gemm.matmul(rows, self.w_ih, self.precision).view_as(self.x)
            return
        if self.dx is None:
            self.dx = rows.new_empty(self.x.shape)
        gemm.matmul(rows, self.w_ih, self.precision, self.dx.narrow(-3, t0, t1 - t0).flatten(-3, -2))

    def _dw_hh(self, da: Tensor, t0: int, t1: int, multiply: Callable[..., Tensor]) -> None:
        # h_{t-1} is y a step further down in time (in reverse: up), which is a view; h0 has a term of its own
        first = self.T - 1 if self.reverse else 0  # the step that h0 comes before
        has_first = t0 <= first < t1
        n = t1 - t0 - has_first
        start = t0 + (has_first and not self.reverse)
        if n > 0:
            before = self.y.narrow(-3, start + (1 if self.reverse else -1), n).flatten(-3, -2)
            self._add(1, multiply(da.narrow(-3, start, n).flatten(-3, -2).mT, before, self.precision))
        if has_first and self.h0 is not None:
            self._add(1, multiply(da.select(-3, first).mT, self.h0, self.precision))

    def _add(self, which: int, part: Tensor) -> None:
        total = self.sums[which]
        self.sums[which] = part if total is None else total.add_(part)


class Layers:
    """The layers of one launch: `parts` gives da of each from the launch's da."""

    def __init__(self, layers: Sequence[Layer], parts: Callable[[Tensor], Sequence[Tensor]]) -> None:
        self.layers, self.parts = layers, parts

    @property
    def widths(self) -> tuple[int, ...]:
        return tuple(n for layer in self.layers for n in layer.widths)

    def take(self, da: Tensor, begin: int, end: int) -> None:
        for layer, part in zip(self.layers, self.parts(da), strict=True):
            layer.take(part, begin, end)


def _rows(x: Tensor) -> Tensor:
    """x[..,T,B,I] as [..,T*B,I]: a view, or a copy, as of a batch_first x; never one for each model that shares it"""
    if x.dim() == 4 and x.stride(0) == 0:
        return x[0].flatten(0, 1).expand(x.shape[0], -1, -1)
    return x.flatten(-3, -2)
