"""What follows from da: the gradients of a layer's inputs and weights, products over all time steps at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..cells.sequences import Sequences
from ..launch import gemm
from ..launch.sequences import ALL
from ..launch.sequences import before as states_before

# Gradients that are asked for, added up in `needs`: what is frozen, or needs no gradient, costs no GEMM.
DX, DW_IH, DW_HH, DB, DH0, DV = 1, 2, 4, 8, 16, 32  # DH0: of all first states, DV: of all vectors

Gradients = tuple[Tensor | None, ...]


@dataclass(slots=True)
class Saved:
    """A layer in one direction as its backward pass finds it; shapes as in functional.rnn, those of an ensemble with M in front."""

    x: Tensor | Callable[[], Tensor]  # or a function that makes it, called where DW_IH is asked for; finite beyond a length
    w_ih: Tensor
    w_hh: Tensor
    h0: Tensor | None
    y: Tensor
    reverse: bool
    precision: str | None
    needs: int
    sequences: Sequences = ALL
    read: Tensor | None = None  # [..,T,B,H], h that each step read, where it is given and not to be found in y and h0
    shared: bool = False  # an ensemble's models share x, whose gradient is the sum of theirs

    def gradients(
        self, da: Tensor, pieces: int | None = None, carried: Tensor | None = None, dhn: Tensor | None = None
    ) -> Gradients:
        """Returns (dx, dw_ih, dw_hh, db, dh0) from da[..,T,B,P*H], each None unless `needs` asks for it:

            dx = da W_ih    dh0 = da_first W_hh    dw_ih = sum over t of da_t^T x_t    dw_hh = sum of da_t^T h_{t-1}    db = sum of da_t

        W_hh has G gates.  A cell whose last S = P - G gates are split publishes the gradients of their recurrent parts first, then those
        of all gates; its biases have gradients of their own, (dx, dw_ih, dw_hh, db_ih, db_hh, dh0).  `carried` is what dh0 has
        besides, if it carries h: the launch's, [..,B,H].

        Of `sequences` h_{t-1} is h0 in the first step of a row and the restart state where it begins anew, and da_first is that of the
        row's first step.  Rows without steps leave h0 as it is: their dh0 is `dhn`, the gradient of the last h, None for zeros.

        With `pieces` = N the batch is N equal parts, and dw_ih[..,N,G*H,I], dw_hh[..,N,G*H,H] and db[..,N,G*H] come separately for each.

        Weight gradients and dh0 are accumulated in fp32 and rounded once: into 16 bits cuBLAS may add up parts of a long sum,
        T B of them, that it has rounded to 16 bits.

        dx of models that share x is one product of all their da side by side, in a copy, unless a model's dx is no larger than its da:
        then dx is the sum of one product for each model.  So it takes for a moment the memory of the smaller one."""
        if pieces is not None:
            return self._in_pieces(da, pieces, carried, dhn)
        needs, precision = self.needs, self.precision
        dx = dw_ih = dw_hh = db = dh0 = None
        gates = self.w_hh.shape[-2]  # times H, as all of these
        split = da.shape[-1] - gates
        rows = da.flatten(-3, -2)  # [T*B,P*H]: a view, as those of x and y are unless their strides forbid it
        by_x, by_h = (rows.narrow(-1, split, gates), rows.narrow(-1, 0, gates)) if split else (rows, rows)
        w_ih = self.w_ih
        if beside := self.shared and needs & DX and w_ih.shape[-1] > gates:  # [M,T*B,G*H] as [T*B,M*G*H]
            by_x, w_ih = by_x.movedim(0, 1).flatten(1), w_ih.flatten(0, 1)
        if needs & DX:
            dx = gemm.matmul(by_x, w_ih, precision)
            dx = dx.sum(0) if self.shared and not beside else dx
            dx = dx.view(*da.shape[1 if self.shared else 0 : -1], -1)
        if needs & DW_IH:
            x = _rows(self.x if isinstance(self.x, Tensor) else self.x())
            dw_ih = gemm.wide(by_x.mT, x[0] if beside else x, precision).to(da.dtype)
            dw_ih = dw_ih.view(self.w_ih.shape) if beside else dw_ih
        if needs & DW_HH:
            read = self._read() if self.read is None else self.read
            if read is None:
                dw_hh = self._dw_hh(by_h, da.shape[-2])
            else:
                dw_hh = gemm.wide(by_h.mT, read.flatten(-3, -2), precision).to(da.dtype)
        if needs & DB:
            db = rows.sum(-2)
        if needs & DH0:
            first = da.select(-3, -1 if self.reverse else 0) if self.sequences is ALL else self._first(da)
            dh0 = gemm.wide(first.narrow(-1, 0, gates) if split else first, self._split_first(split), precision)
            dh0 = dh0 if carried is None else dh0 + carried
            if self.sequences.lengths is not None and dhn is not None:
                dh0 = dh0 + torch.where((self.sequences.lengths == 0).unsqueeze(-1), dhn, 0)
            dh0 = dh0.to(da.dtype)
        if not split:
            return dx, dw_ih, dw_hh, db, dh0
        # the split gates come last in weights
        dw_hh = None if dw_hh is None else dw_hh.roll(-split, -2)
        db_ih, db_hh = (None, None) if db is None else (db[..., split:].clone(), db[..., :gates].roll(-split, -1))
        return dx, dw_ih, dw_hh, db_ih, db_hh, dh0

    def _split_first(self, split: int) -> Tensor:
        """Returns W_hh with its last `split` rows, those of split gates, before all others."""
        return self.w_hh.roll(split, -2) if split else self.w_hh

    def _first(self, da: Tensor) -> Tensor:
        """Returns da of the step of each row that read h0; zeros where none did."""
        lengths, reset, _ = self.sequences
        if self.reverse and lengths is not None:
            at = (lengths.long() - 1).clamp_min(0)
            first = da.gather(-3, at.view(-1, 1).expand(*da.shape[:-3], 1, -1, da.shape[-1])).squeeze(-3)
        else:
            first = da.select(-3, -1 if self.reverse else 0)
        if reset is not None and not self.reverse:  # backwards in time the first step of a row never begins anew
            first = torch.where(reset[0].unsqueeze(-1), 0, first)
        return first

    def _read(self) -> Tensor | None:
        """Returns h_{t-1} as each step read it, in a copy; None if it is y of the step before, and h0 in the first step of all rows.

        A copy of y costs a pass over T*B*H values; to correct a product with y would cost another product, as nobody knows on the host
        where sequences begin anew, and da, of which rows could be masked instead, has as many columns for each gate."""
        lengths, reset, restart = self.sequences
        # beyond a length y is zero, so in reverse only h0 is not found in it
        if reset is None and (lengths is None or not self.reverse or self.h0 is None):
            return None
        return states_before(self.y, self._entering(), restart[0] if restart else None, self.sequences, self.reverse)

    def _entering(self) -> Tensor | None:
        """Returns h0, with zeros in rows without steps: what stands there, NaN perhaps, is multiplied with zeros in dw_hh."""
        if self.h0 is None or self.sequences.lengths is None:
            return self.h0
        return torch.where((self.sequences.lengths > 0).unsqueeze(-1), self.h0, 0)

    def _in_pieces(self, da: Tensor, pieces: int, carried: Tensor | None, dhn: Tensor | None) -> Gradients:
        def parts(t: Tensor, dims: int) -> Tensor:
            """Returns the last `dims` dimensions of t, the batch (next to last) in equal parts: [M G,..]"""
            return t.unflatten(-2, (pieces, t.shape[-2] // pieces)).movedim(-3, -dims - 1).flatten(0, -dims - 1)

        dx, *_, dh0 = replace(self, needs=self.needs & (DX | DH0)).gradients(da, None, carried, dhn)
        x = self.x if isinstance(self.x, Tensor) else self.x()
        h0 = self._entering()
        h0 = None if h0 is None else parts(h0, 2)
        read = self._read()
        apart = replace(
            self, x=parts(x, 3), h0=h0, y=parts(self.y, 3), needs=self.needs & ~(DX | DH0), sequences=ALL,
            read=None if read is None else parts(read, 3),
        )  # fmt: skip
        dweights = apart.gradients(parts(da, 3))[1:-1]
        return dx, *(g if g is None else g.unflatten(0, (*da.shape[:-3], pieces)) for g in dweights), dh0

    def _dw_hh(self, rows: Tensor, B: int) -> Tensor:
        """h_{t-1} is y, B rows further up (in reverse: down), which is a view; h0 has a term of its own"""
        y, columns, n = self.y, rows.mT, rows.shape[-2] - B
        parts = []
        if n:
            before = y.flatten(-3, -2).narrow(-2, B if self.reverse else 0, n)
            parts.append(gemm.wide(columns.narrow(-1, 0 if self.reverse else B, n), before, self.precision))
        h0 = self._entering()
        if h0 is not None:
            parts.append(gemm.wide(columns.narrow(-1, n if self.reverse else 0, B), h0, self.precision))
        if not parts:
            return y.new_zeros(*y.shape[:-3], rows.shape[-1], y.shape[-1])
        total = parts[0]
        for part in parts[1:]:
            total += part
        return total.to(y.dtype)


def _rows(x: Tensor) -> Tensor:
    """x[..,T,B,I] as [..,T*B,I]: a view, or a copy, as of a batch_first x; never one for each model that shares it"""
    if x.dim() == 4 and x.stride(0) == 0:
        return x[0].flatten(0, 1).expand(x.shape[0], -1, -1)
    return x.flatten(-3, -2)
