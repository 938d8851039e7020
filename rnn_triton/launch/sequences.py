"""Brings what a call says of its sequences (rnn_triton/cells/sequences.py) into the form that kernels take."""

from __future__ import annotations

import torch
from torch import Tensor

from ..cells.sequences import Sequences
from .operands import whole

ALL = Sequences()  # every row has all T steps, and begins once


def given(sequences: Sequences) -> tuple[str, ...]:
    """Returns the names of what is given of them, as Problem.sequences has them."""
    if sequences is ALL:
        return ()
    lengths, reset, restart = sequences
    there = (lengths is not None, reset is not None, reset is not None and len(restart) > 0)
    return tuple([name for name, given in zip(Sequences._fields, there, strict=True) if given])


def lengths(sequences: Sequences) -> Tensor | None:
    """Returns the number of steps of each row, int32 [B], or None."""
    return None if sequences.lengths is None else whole(sequences.lengths.to(torch.int32))


def cuts(sequences: Sequences, T: int, *descending: bool) -> Tensor | None:
    """Returns uint8 [T,B], or None: 1 where a step does not follow on the one that the launch runs before it.  `descending`: the launch
    runs from T - 1 down to 0; of several lanes of different directions one for each, and the result is [lanes,T,B].

    These are the same flags in both passes: what links two neighbouring steps in one links them in the other."""
    if sequences.reset is None:
        return None
    flags = [sequences.cuts(T, down) for down in descending]
    return whole((flags[0] if len(flags) == 1 else torch.stack(flags)).to(torch.uint8))  # type: ignore[union-attr, arg-type]


def not_read(sequences: Sequences, T: int, *descending: bool) -> Tensor | None:
    """Returns bool [B], of several lanes [lanes,B], or None: rows whose first state no step reads, since step 0 begins anew.  `descending`
    is that of the backward pass, in which such a layer, which runs forwards in time, comes to step 0 at last."""
    if sequences.reset is None:
        return None
    at_0 = sequences.cuts(T, False)[0]  # type: ignore[index]
    return at_0 if descending == (True,) else torch.stack([at_0 if down else torch.zeros_like(at_0) for down in descending]).squeeze(0)
