"""Sequences of a batch that end before its last step, or begin anew within it: what a recurrence is told of them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .cell import Tensors


class Sequences(NamedTuple):
    """Where the sequences of a batch of B rows and T steps end and begin.

    Row b has n_b = lengths[b] steps.  Its steps t >= n_b are not live: y is zero there, whatever x holds, and the states stay what they
    are, so that the last states are those of the last live step, or the first ones where n_b = 0.  In reverse the row begins at
    t = n_b - 1.

    reset[t,b], where t is live, begins a segment at t: the step that the recurrence comes to first in it reads `restart`, not the states
    of the step before.  That is step t forwards, and in reverse step t - 1, if there is one: the segments of both directions are the
    same, and the first states enter in reverse in the last of them.  No gradient passes from a segment to another.
    """

    lengths: Tensor | None = None  # [B], integers from 0 to T; None: all are T
    reset: Tensor | None = None  # [T,B], bool; None: nowhere
    restart: Tensors = ()  # [B,H] each, one for each state of the cell; () for zeros

    def live(self, T: int) -> Tensor | None:
        """Returns [T,B], True where a sequence has a step; None if all have all T."""
        return None if self.lengths is None else torch.arange(T, device=self.lengths.device).unsqueeze(1) < self.lengths

    def cuts(self, T: int, reverse: bool) -> Tensor | None:
        """Returns [T,B], True where a step reads `restart` in place of the states of the step before it; None if there is no reset."""
        if self.reset is None:
            return None
        live = self.live(T)
        begins = self.reset if live is None else self.reset & live
        return torch.cat([begins[1:], torch.zeros_like(begins[:1])]) if reverse else begins
