"""Computes again what a forward pass would have kept for the backward one, from y and the carried states that y does not give.

All of x W_ih^T and y_{t-1} W_hh^T are there, so two GEMMs make the pre-activations of many steps at once, and the cell's own forward
function makes of them what it keeps (kernels/elementwise.py).  This goes through time in pieces: pre-activations are in fp32, and
of all T steps they would take more memory than is saved.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from .. import cells
from ..cells.sequences import Sequences
from ..plan.candidates import accuracy
from ..plan.problem import DTYPES, Problem
from . import elementwise, gemm
from .elementwise import Operands
from .operands import States
from .sequences import ALL
from .sequences import before as states_before

_PIECE_BYTES = 1 << 26  # of pre-activations, unless a single step has more


def kept(
    x: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor | None, b_hh: Tensor | None, y: Tensor, states: States, saved: Tensor | None,
    cell: str, reverse: bool, precision: str | None, vectors: Tensor | None = None, out: Tensor | None = None,
    sequences: Sequences = ALL,
) -> Tensor:  # fmt: skip
    """Returns kept[T,B,K,H] of one recurrence, in `out` if it is given (contiguous).

    The arguments are those of dispatch.forward and its results: y[T,B,H] and, with keep="states", saved[T,B,S,H] (None if there are
    none); `states` are those before the first step.  x and y may have any strides.  Ensembles have M in front of every shape.
    What is carried and not in `saved` is taken from y, where it was rounded."""
    of = cells.named(cell)
    if out is None:
        out = y.new_empty((*y.shape[:-1], of.kept, y.shape[-1]))
    if x.dim() == 4:
        tensors = (x, w_ih, w_hh, b_ih, b_hh, y, tuple(states), saved)
        for m in range(x.shape[0]):
            of_model = tree_map_only(Tensor, operator.itemgetter(m), (*tensors, cell, reverse, precision, vectors, out))
            restart = tuple([state[m] for state in sequences.restart])
            arguments: tuple[Any, ...] = (*of_model, sequences._replace(restart=restart))
            kept(*arguments)
        return out
    T, B, H = y.shape
    problem = Problem("forward", B, x.shape[-1], H, DTYPES[x.dtype], precision, cell)
    began = None
    if sequences is not ALL:  # what each step reads, made at once: a copy for each state
        anew: States = sequences.restart or (None,) * len(of.states)
        of_states = [y, *[saved[:, :, of.unseen.index(of.carried.index(s))] for s in of.states[1:]]]  # type: ignore[index]
        began = [states_before(v, s, r, sequences, reverse) for v, s, r in zip(of_states, states, anew, strict=True)]
    first, step = (T - 1, 1) if reverse else (0, -1)
    for steps in _pieces(T, first, max(1, _PIECE_BYTES // (8 * len(of.gates) * B * H))):
        before: list[Tensor] = []  # the states before each of these steps
        for n, state in enumerate(of.states):
            if began is not None:
                before.append(began[n][steps])
                continue
            if steps.start == first:
                given = states[n]
                before.append(y.new_zeros(1, B, H) if given is None else given[None])
                continue
            at = slice(steps.start + step, steps.stop + step)
            if n == 0:
                before.append(y[at])
            else:
                assert saved is not None
                before.append(saved[at, :, of.unseen.index(of.carried.index(state))])
        of_x = gemm.project(x[steps], w_ih, b_ih, None, precision).flatten(0, 1).unflatten(-1, (-1, H))
        of_h = gemm.project(before[0], w_hh, b_hh, None, precision).flatten(0, 1).unflatten(-1, (-1, H))
        carried = [before[of.states.index(state)].flatten(0, 1) for state in of.carried]
        together = torch.stack(carried, 1) if carried else None
        operands = Operands(of_x=of_x, of_h=of_h, carried=together, vectors=vectors, kept=out[steps])
        elementwise.run(of, True, problem.dtype, accuracy(problem), operands)
    return out


def _pieces(T: int, first: int, most: int) -> Iterator[slice]:
    """Yields the steps of T in pieces of at most `most`, the step `first` by itself."""
    yield slice(first, first + 1)
    begin, end = (0, T - 1) if first else (1, T)
    for start in range(begin, end, most):
        yield slice(start, min(start + most, end))
