"""Runs sequences of unequal lengths, as a PackedSequence has them, as rows of a batch that end early.

The data of a PackedSequence lie step by step: the rows of all sequences that have step 0, then those that have step 1, and so on.  They
are copied into x[T,B,I], zeros beyond each end, and the rows of y are picked out of y[T,B,H], while a layer, a stack or both directions
still take one launch.  Kernels that read packed rows where they lie would save these copies, estimated at 1 to 15 % of the forward steps
(docs/sequences.md), and would look up an address in every step.  Nothing waits for the device: the CPU knows how many sequences a step has.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import torch
from torch import Tensor


class Packed(NamedTuple):
    """Where the N rows of a PackedSequence of B sequences, the longest of which has T steps, lie in a batch."""

    rows: Tensor  # [N], of [T*B]
    lengths: Tensor  # [B], the longest one first
    T: int

    @classmethod
    def of(cls, data: Tensor, batch_sizes: Tensor) -> Packed:
        """Raises ValueError unless batch_sizes, on the CPU, never grow and sum to the rows of data[N,..]."""
        sizes, N = batch_sizes.tolist(), data.shape[0]
        if not sizes or sizes[-1] < 0 or sizes != sorted(sizes, reverse=True) or sum(sizes) != N:
            raise ValueError(f"batch_sizes of a PackedSequence must never grow and sum to its {N} rows of data, got {sizes}")
        T, B = len(sizes), sizes[0]
        if data.is_cuda and torch.cuda.is_current_stream_capturing():  # a graph would copy what it was captured from, if it is still there
            sized = [data.new_full((sum(1 for _ in steps),), size, dtype=torch.int64) for size, steps in itertools.groupby(sizes)]
            number = torch.cat(sized)
        else:
            number = batch_sizes.to(data.device, non_blocking=True)
        steps = torch.arange(T, device=data.device).repeat_interleave(number, output_size=N)
        first = (number.cumsum(0) - number).index_select(0, steps)  # the first row of each row's step
        rows = steps * B + torch.arange(N, device=data.device) - first
        return cls(rows, (number.unsqueeze(1) > torch.arange(B, device=data.device)).sum(0), T)

    def pad(self, data: Tensor) -> Tensor:
        """Returns [T,B,I] of data[N,I], zeros beyond each sequence."""
        B = self.lengths.shape[0]
        return data.new_zeros(self.T * B, data.shape[1]).index_copy(0, self.rows, data).view(self.T, B, data.shape[1])

    def pick(self, y: Tensor) -> Tensor:
        """Returns the rows [N,H] of y[T,B,H] that sequences have."""
        return y.flatten(0, 1).index_select(0, self.rows)
