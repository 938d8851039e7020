"""Runs one layer over sequences of unequal lengths, in the layout of a PackedSequence.

Rows of a PackedSequence lie step by step. Neighbouring steps with equally many sequences form a dense piece [t,b,I]: one call of
`functional.layer` takes it as a view and hands its states to the next piece. Nothing is padded, so no step is computed that no
sequence has, and nothing can leak out of padding. Nothing waits for the device, because the CPU knows how many sequences a step
has. There are as many pieces as different lengths, at most the batch size.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from . import functional
from .cells import Cell


def pieces_of(batch_sizes: list[int], rows: int) -> list[tuple[int, int]]:
    """Returns (steps, sequences) of each piece. Raises ValueError unless batch_sizes never grow and sum to `rows`."""
    pieces = [(sum(1 for _ in steps), size) for size, steps in itertools.groupby(batch_sizes)]
    sizes = [size for _, size in pieces]
    if not sizes or sizes[-1] < 0 or sizes != sorted(sizes, reverse=True) or sum(batch_sizes) != rows:
        raise ValueError(
            f"batch_sizes of a PackedSequence must never grow and sum to its {rows} rows of data, got {batch_sizes}"
        )
    return pieces


def layer(
    data: Tensor,
    weights: Sequence[Tensor | None],
    states: Sequence[Tensor],
    cell: Cell,
    *,
    pieces: list[tuple[int, int]],
    reverse: bool = False,
    **options: Any,
) -> functional.Results:
    """Returns y[N,H] and the last states, each [B,H], of data[N,I], whose rows lie as `pieces` says, and the first states.

    B is the size of the first piece. Each sequence starts from its row of the first states at its own first step (with `reverse`, at
    its own last one), and its row of the last ones is what it has after the other end. All else is as in functional.layer.
    """
    parts = data.split([steps * size for steps, size in pieces])
    # how many sequences end with each piece; rows of states are ordered by length, the longest first
    ending = [size - after for (_, size), (_, after) in itertools.pairwise([*pieces, (0, 0)])]
    ys: list[Tensor] = []
    if not reverse:
        current: Sequence[Tensor] = states
        ended: list[Sequence[Tensor]] = []
        for part, (steps, size), n in zip(parts, pieces, ending):
            y, last = functional.layer(part.unflatten(0, (steps, size)), weights, current, cell, **options)
            ys.append(y.flatten(0, 1))
            current, over = zip(*[t.split([size - n, n]) for t in last])
            ended.append(over)
        return _joined(ys), tuple([_joined(rows) for rows in zip(*ended[::-1])])
    # of each piece, the last one first, those of the sequences that start with it
    starts: Iterable[Sequence[Tensor]] = zip(*[t.split(ending[::-1]) for t in states]) if states else [()] * len(pieces)
    for part, (steps, size), n, start in zip(parts[::-1], pieces[::-1], ending[::-1], starts):
        if ys:
            start = [torch.cat([t, start[i] if start else t.new_zeros(n, t.shape[1])]) for i, t in enumerate(last)]
        y, last = functional.layer(part.unflatten(0, (steps, size)), weights, start, cell, reverse=True, **options)
        ys.append(y.flatten(0, 1))
    return _joined(ys[::-1]), last


def _joined(parts: tuple[Tensor, ...] | list[Tensor]) -> Tensor:
    """Returns the parts joined along the first dimension; a single part as it is, without a copy."""
    return torch.cat(parts) if len(parts) > 1 else parts[0]
