"""Launches of several lanes: the layers of a stack as a wavefront, or both directions of a layer.  Of kernels/one_cta.py
where one CTA holds a layer, else of kernels/cta_group.py."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..plan.problem import CtaGroup, Lanes, OneCta, Problem, is_wide, row_units
from . import gemm, one_cta
from .cta_group import Cooperative
from .operands import rows, strided

Biases = Sequence[Tensor] | None


class _Lanes(Cooperative):
    def __init__(self, problem: Problem, plan: OneCta | CtaGroup, lanes: Lanes, first: int = 0) -> None:
        of = one_cta.engine(problem, plan, lanes) if isinstance(plan, OneCta) else None
        super().__init__(problem, plan, lanes, first, of)

    def _stacked(self, weights: Sequence[Tensor], columns: int) -> Tensor:
        """[.., H, k] of every lane, k <= columns, as [N, row, columns] with zeros in what is not there"""
        sizes = [(columns - w.shape[1], self.row - w.shape[0]) for w in weights]
        return torch.stack([pad(w, (0, k, 0, h)) if k or h else w for w, (k, h) in zip(weights, sizes, strict=True)])

    def _biases(self, biases: Biases) -> Tensor | None:
        """[N, row]"""
        if biases is None:
            return None
        stacked = torch.stack(list(biases))
        return pad(stacked, (0, self.padding)) if self.padding else stacked

    def _x(self, x: Tensor) -> tuple[Tensor, int, int]:
        """x with rows of whole vectors, and its strides as the kernel takes them"""
        missing = row_units(x.shape[2], self.problem.dtype) - x.shape[2]
        return strided(pad(x, (0, missing)) if missing else x, self.engine.x_unit)


class Wavefront(_Lanes):
    """Layers of a stack in one direction.  What passes between layers is dropped, where the lanes have dropout, by `seed`
    (int64 [1] on the device) and `dropped` (of 65536)."""

    def forward(
        self,
        x: Tensor,
        w_ih: Sequence[Tensor],
        w_hh: Sequence[Tensor],
        b_ih: Biases,
        b_hh: Biases,
        h0: Tensor | None,
        seed: Tensor | None = None,
        dropped: int = 0,
    ) -> tuple[Tensor, Tensor]:
        """y[L,T,B,H] of every layer and hn[L,B,H].  x[T,B,I], w_ih of L layers, h0[L,B,H]."""
        T, B, I = x.shape
        out, sync = self._words(x, len(w_hh), T, B)
        hn = torch.empty((len(w_hh), B, out.shape[3]), dtype=torch.int32, device=x.device)
        given: Tensor | None = None
        u: Tensor | None = None
        strides: tuple[int, int, int, int]
        if not is_wide(I, self.problem.H, self.problem.dtype):
            given, stride_t, stride_b = self._x(x)
            strides = (stride_t, stride_b, 0, 0)
            first_w = w_ih[0]
        else:  # x of the first layer comes projected
            wide = pad(w_ih[0], (0, 0, 0, self.padding)) if self.padding else w_ih[0]
            u, stride_t, stride_b = strided(gemm.project(x, wide, None, None, self.problem.precision), self.engine.u_unit)
            strides = (0, 0, stride_t, stride_b)
            first_w = w_hh[0].new_zeros(self.row, self.row)
        w_in = self._stacked([first_w, *w_ih[1:]], self.row)
        w_rec = self._stacked(w_hh, self.row)
        first = None if h0 is None else rows(h0, self.padding)
        tensors = (given, w_in, w_rec, self._biases(b_ih), self._biases(b_hh), first, u, None, out, hn)
        self._run(tensors, out, sync, (T, B, 0, *strides), seed, dropped)
        return self._units(out, w_hh[0].dtype), self._units(hn, w_hh[0].dtype)

    def backward(
        self,
        w_ih: Sequence[Tensor],
        w_hh: Sequence[Tensor],
        y: Tensor,
        dy: Tensor | None,
        dhn: Tensor | None,
        seed: Tensor | None = None,
        dropped: int = 0,
    ) -> Tensor:
        """da of every layer, [L,T,B,H], a view of longer rows, from y[L,T,B,H], dy[T,B,H] of the last layer and dhn[L,B,H]; dy
        or dhn may be None, not both."""
        L, T, B, _ = y.shape
        out, sync = self._words(y, L, T, B)
        stride_t = stride_b = 0
        if dy is not None:
            dy, stride_t, stride_b = strided(pad(dy, (0, self.padding)) if self.padding else dy, self.engine.u_unit)
        top = w_hh[0].new_zeros(self.row, self.row)  # nothing comes from above the last layer but dy
        w_in = self._stacked([*[w.t() for w in w_ih[1:]], top], self.row)
        w_rec = self._stacked([w.t() for w in w_hh], self.row)
        first = None if dhn is None else rows(dhn, self.padding)
        tensors = (None, w_in, w_rec, None, None, first, dy, rows(y, self.padding), out, None)
        self._run(tensors, out, sync, (T, B, 1, 0, 0, stride_t, stride_b), seed, dropped)
        return out.view(y.dtype)[..., : self.problem.H]


class BothDirections(_Lanes):
    """A layer in both directions at once; weights, biases, h0[2,B,H] and dhn[2,B,H] of the forward one first."""

    def forward(
        self,
        x: Tensor,
        w_ih: Sequence[Tensor],
        w_hh: Sequence[Tensor],
        b_ih: Biases,
        b_hh: Biases,
        h0: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """y[T,B,2H] and hn[2,B,H]"""
        T, B, I = x.shape
        out, sync = self._words(x, T, B, 2)
        hn = torch.empty((B, 2, out.shape[3]), dtype=torch.int32, device=x.device)
        biases = self._biases(b_ih), self._biases(b_hh)
        columns = I if self.plan.w_ih_home == "gemm" else row_units(I, self.problem.dtype)
        w_in = self._stacked(w_ih, columns)
        given: tuple[Tensor | None, ...]
        if self.plan.w_ih_home == "gemm":
            b_ih_rows, b_hh_rows = (None if b is None else b.flatten() for b in biases)
            u = gemm.project(x, w_in.flatten(0, 1), b_ih_rows, b_hh_rows, self.problem.precision)
            u, stride_t, stride_b = strided(u, self.engine.u_unit)
            given, strides = (None, None, None, None), (0, 0, stride_t, stride_b)
        else:
            x, stride_t, stride_b = self._x(x)
            given, strides, u = (x, w_in, *biases), (stride_t, stride_b, 0, 0), None
        x_in, w_in_given, *bias = given
        first = None if h0 is None else rows(h0.transpose(0, 1), self.padding)
        tensors = (x_in, w_in_given, self._stacked(w_hh, self.row), *bias, first, u, None, out, hn)
        self._run(tensors, out, sync, (T, B, 0, *strides))
        y = self._units(out, w_hh[0].dtype).view(T, B, -1)
        hn = self._units(hn, w_hh[0].dtype).transpose(0, 1).contiguous()
        return y.detach(), hn.detach()  # no views, whose in-place changes autograd would refuse

    def backward(self, w_hh: Sequence[Tensor], y: Tensor, dy: Tensor | None, dhn: Tensor | None) -> Tensor:
        """da[T,B,2,H], a view of longer rows, from y[T,B,2H], dy[T,B,2H] and dhn[2,B,H]; dy or dhn may be None, not both."""
        T, B, _ = y.shape
        out, sync = self._words(y, T, B, 2)
        stride_t = stride_b = 0
        if dy is not None:
            padded = rows(dy.unflatten(2, (2, -1)), self.padding).flatten(2) if self.padding else dy
            dy, stride_t, stride_b = strided(padded, self.engine.u_unit)
        first = None if dhn is None else rows(dhn.transpose(0, 1), self.padding)
        w_rec = self._stacked([w.t() for w in w_hh], self.row)
        saved = rows(y.unflatten(2, (2, -1)), self.padding)
        tensors = (None, None, w_rec, None, None, first, dy, saved, out, None)
        self._run(tensors, out, sync, (T, B, 1, 0, 0, stride_t, stride_b))
        return out.view(y.dtype)[..., : self.problem.H]
