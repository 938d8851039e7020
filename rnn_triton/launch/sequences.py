"""Brings what a call says of its sequences (rnn_triton/cells/sequences.py) into the form that kernels take."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from ..cells.sequences import Sequences
from ..kernels.events import events as kernel
from .launcher import Launcher
from .operands import whole

_BLOCK = 128  # links that a program looks at together, a thread each; on one CTA the launch looks at one of them at least

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


def cuts(sequences: Sequences, T: int, descending: bool) -> Tensor | None:
    """Returns int32 [T+2,B], or None: 1 in row t + 1 where step t does not follow on the one that the launch runs before it; the first and
    the last row are zeros.  `descending`: the launch runs from T - 1 down to 0.

    These are the same flags in both passes: what links two neighbouring steps in one links them in the other."""
    if sequences.reset is None:
        return None
    flags = sequences.reset.new_zeros((T + 2, sequences.reset.shape[1]), dtype=torch.int32)
    flags[1:-1] = sequences.cuts(T, descending)  # type: ignore[assignment]  # there is a reset
    return flags


def events(sequences: Sequences, T: int, rows: int, groups: int, live: bool, *descending: bool) -> Tensor:
    """Returns int64 [lanes*T*tiles+1], of tiles of `rows` rows each, at most 32: what happens to rows between the steps of a launch of
    so many groups, as kernels/events.py says, with live rows in place of the next link if `live`, and a word that is read and not used.
    `descending` as for `cuts`, of each lane, of which two run in different directions."""
    reset, steps = sequences.reset, lengths(sequences)
    given = reset if reset is not None else steps
    assert given is not None
    tiles = -(-given.shape[-1] // rows)
    out = torch.empty(len(descending) * T * tiles + 1, dtype=torch.int64, device=given.device)
    tensors = None if reset is None else whole(reset).view(torch.uint8), steps, out
    _launcher(given.device, rows, live)(tensors, out, (T, given.shape[-1], groups, int(descending[0])), (tiles * -(-T // _BLOCK), len(descending), 1))
    return out


@functools.lru_cache(maxsize=64)
def _launcher(_device: Any, rows: int, live: bool) -> Launcher:
    """Returns a launcher; each device has its own, because a kernel that is kept is loaded on one device."""
    return Launcher(kernel, None, functools.partial(_constants, rows, live), dict(num_warps=4))


def _constants(rows: int, live: bool, present: tuple[bool, ...]) -> dict[str, Any]:
    return dict(HAS_RESET=present[0], HAS_LENGTHS=present[1], LIVE=live, ROWS=rows, BLOCK=_BLOCK)


def not_read(sequences: Sequences, T: int, *descending: bool) -> Tensor | None:
    """Returns bool [B], of several lanes [lanes,B], or None: rows whose first state no step reads, since step 0 begins anew.  `descending`
    is that of the backward pass, in which such a layer, which runs forwards in time, comes to step 0 at last."""
    if sequences.reset is None:
        return None
    at_0 = sequences.cuts(T, False)[0]  # type: ignore[index]
    return at_0 if descending == (True,) else torch.stack([at_0 if down else torch.zeros_like(at_0) for down in descending]).squeeze(0)


def last_of(y: Tensor, first: Tensor | None, sequences: Sequences, reverse: bool) -> Tensor:
    """Returns [B,H] in memory of its own: of y[T,B,H] what each row has at the last of its steps, and the first state where it has none."""
    if sequences.lengths is None:
        return y[0 if reverse else -1].clone()
    steps = sequences.lengths.to(torch.int64)
    at = torch.zeros_like(steps) if reverse else (steps - 1).clamp_min(0)
    last = y[at, torch.arange(len(at), device=y.device)]
    return last if first is None else torch.where((steps > 0).unsqueeze(-1), last, first)


def before(states: Tensor, first: Tensor | None, restart: Tensor | None, sequences: Sequences, reverse: bool) -> Tensor:
    """Returns [..,T,B,H], the state that each step reads: of `states` [..,T,B,H] the one of the step before it, `first` [..,B,H] in a row's
    first step, `restart` [..,B,H] where it begins anew; None for zeros.  Beyond a length it means nothing."""
    T = states.shape[-3]
    zeros = torch.zeros_like(states.narrow(-3, 0, 1))
    begin = zeros if first is None else first.unsqueeze(-3)
    parts = [states.narrow(-3, 1, T - 1), begin] if reverse else [begin, states.narrow(-3, 0, T - 1)]
    found = torch.cat(parts, -3)
    if sequences.lengths is not None and reverse:
        times = torch.arange(T, device=states.device).unsqueeze(1)
        found = torch.where((times == sequences.lengths - 1).unsqueeze(-1), begin, found)
    anew = sequences.cuts(T, reverse)
    return found if anew is None else torch.where(anew.unsqueeze(-1), zeros if restart is None else restart.unsqueeze(-3), found)
