"""Runs one layer over sequences of unequal lengths, in the layout of a PackedSequence.

Rows of a PackedSequence lie step by step. Neighbouring steps with equally many sequences form a dense piece [t,b,I]: one call of
`functional.rnn` takes it as a view and hands its state to the next piece. Nothing is padded, so no step is computed that no
sequence has, and nothing can leak out of padding. Nothing waits for the device, because the CPU knows how many sequences a step
has. There are as many pieces as different lengths, at most the batch size.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor

from . import functional


def pieces_of(batch_sizes: list[int], rows: int) -> list[tuple[int, int]]:
    """Returns (steps, sequences) of each piece. Raises ValueError unless batch_sizes never grow and sum to `rows`."""
    pieces = [(sum(1 for _ in steps), size) for size, steps in itertools.groupby(batch_sizes)]
    sizes = [size for _, size in pieces]
    if not sizes or sizes[-1] < 0 or sizes != sorted(sizes, reverse=True) or sum(batch_sizes) != rows:
        raise ValueError(
            f"batch_sizes of a PackedSequence must never grow and sum to its {rows} rows of data, got {batch_sizes}"
        )
    return pieces


def rnn(
    data: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor | None = None, b_hh: Tensor | None = None, h0: Tensor | None = None,
    *, pieces: list[tuple[int, int]], reverse: bool = False, **options: Any,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Returns (y[N,H], hn[B,H]) of data[N,I], whose rows lie as `pieces` says, and h0[B,H] (zeros if None).

    B is the size of the first piece. Each sequence starts from its row of h0 at its own first step (with `reverse`, at
    its own last one), and hn has its state after the other end. `options` are those of functional.rnn.
    """
    weights = (w_ih, w_hh, b_ih, b_hh)
    parts = data.split([steps * size for steps, size in pieces])
    # how many sequences end with each piece; rows of h0 and hn are ordered by length, the longest first
    ending = [size - after for (_, size), (_, after) in itertools.pairwise([*pieces, (0, 0)])]
    ys: list[Tensor] = []
    if not reverse:
        h = h0
        ended: list[Tensor] = []
        for part, (steps, size), n in zip(parts, pieces, ending):
            y, hn = functional.rnn(part.unflatten(0, (steps, size)), *weights, h, **options)
            ys.append(y.flatten(0, 1))
            h, last = hn.split([size - n, n])
            ended.append(last)
        return _joined(ys), _joined(ended[::-1])
    starts = [None] * len(pieces) if h0 is None else h0.split(ending[::-1])
    for part, (steps, size), n, start in zip(parts[::-1], pieces[::-1], ending[::-1], starts):
        if ys:
            start = torch.cat([hn, hn.new_zeros(n, hn.shape[1]) if start is None else start])
        y, hn = functional.rnn(part.unflatten(0, (steps, size)), *weights, start, reverse=True, **options)
        ys.append(y.flatten(0, 1))
    return _joined(ys[::-1]), hn


def _joined(parts: list[Tensor]) -> Tensor:
    """Returns the parts joined along the first dimension; a single part as it is, without a copy."""
    return torch.cat(parts) if len(parts) > 1 else parts[0]
