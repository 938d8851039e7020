"""One layer in one direction on CPU tensors, where no kernels run: torch's own layer, or the reference of a cell that torch has not;
backward the same again, recorded by autograd.  fp32 is multiplied as it is.

`layer` is a Layer, `states` are [B,H] each, () for zeros; an ensemble has M in front of every shape but those of lengths and resets, which
its models share.  Of sequences that end early or begin anew torch's layers run all segments at once, packed: none needs another's states.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import _VF, Tensor
from torch.utils._pytree import tree_map, tree_map_only

from ..cells import Cell, reference
from ..cells.sequences import Sequences
from .gradients import DB, DH0, DV, DW_HH, DW_IH, DX
from .layers import Layer, States
from .recording import recording

Gradients = tuple[Tensor | None, list[Tensor | None], list[Tensor | None]]


def forward(
    x: Tensor, layer: Layer, states: States, cell: Cell, reverse: bool, sequences: Sequences = Sequences()
) -> tuple[Tensor, States]:
    """Returns y[T,B,H] and the last states, no views."""
    whole: Any = _forward

    def run(*one: Any) -> tuple[Tensor, States]:
        return whole(*one, cell, reverse)

    given = (x, layer, states)
    return run(*given, sequences) if x.dim() == 3 else _each(len(x), run, sequences, *given)


def _forward(x: Tensor, layer: Layer, states: States, sequences: Sequences, cell: Cell, reverse: bool) -> tuple[Tensor, States]:
    dtype = x.dtype
    if not cell.aten:
        x, layer, states, sequences = _wide((x, layer, states, sequences))
    y, last = _layer(x, layer, states, cell, reverse, sequences)
    # detach: torch marks y as a view of something, and autograd would then refuse in-place changes to it
    return y.to(dtype).detach(), tuple([state.to(dtype).detach() for state in last])


def backward(
    x: Tensor, layer: Layer, states: States, dy: Tensor | None, dlast: Sequence[Tensor | None], cell: Cell, reverse: bool,
    needs: int, pieces: int | None = None, sequences: Sequences = Sequences(), shared: bool = False,
) -> Gradients:  # fmt: skip
    """Returns (dx, [gradients of the states, and behind them those of sequences.restart], [dw_ih, dw_hh, ..]) as Settings.gradients has
    them, each None unless `needs` asks for it, by DH0 for all states.  dy or some of dlast, the gradients of the last states, may be
    None, not all.  `pieces` as in network.py.  If the models of an ensemble have `shared` x, dx is the sum of theirs, [T,B,I]."""
    whole: Any = _backward
    settings, given = (cell, reverse, needs), (x, layer, states, dy, dlast)

    def run(*one: Any) -> Gradients:
        return whole(*one, *settings) if pieces is None else _in_pieces(pieces, settings, *one)

    if not shared:
        return run(*given, sequences) if x.dim() == 3 else _each(len(x), run, sequences, *given)
    total: Tensor | None = None

    def added(*one: Any) -> Gradients:
        nonlocal total
        dx, dstates, dweights = run(*one)
        if dx is not None:
            total = dx if total is None else total.add_(dx)
        return None, dstates, dweights

    # gradients have the dtype of x: dx is added up in fp32 and rounded once
    _, dstates, dweights = _each(len(x), added, sequences, _wide(x[0]).expand_as(x), *given[1:])
    return tree_map_only(Tensor, lambda t: t.to(x.dtype), (total, dstates, dweights))


def _backward(
    x: Tensor, layer: Layer, states: States, dy: Tensor | None, dlast: Sequence[Tensor | None], sequences: Sequences, cell: Cell,
    reverse: bool, needs: int,
) -> Gradients:  # fmt: skip
    dtype = x.dtype
    b_ih, b_hh = (torch.zeros_like(layer.w_ih[:, 0]) if b is None and needs & DB else b for b in layer[2:4])
    states = states or (x.new_zeros(x.shape[1], layer.w_hh.shape[1]),) * len(cell.states)
    with recording("cpu"):
        given = _wide((x, layer._replace(b_ih=b_ih, b_hh=b_hh), states, sequences))
        x, layer, states, sequences = tree_map_only(Tensor, torch.Tensor.detach, given)
        of_states = (*states, *sequences.restart)
        bits: list[tuple[Any, int]] = [(x, DX), *[(s, DH0) for s in of_states], (layer.w_ih, DW_IH), (layer.w_hh, DW_HH)]
        bits += [(b, DB) for b in (layer[2:4] if cell.split else layer[2:3])] + [(v, DV) for v in layer.vectors]
        leaves = [t.requires_grad_() for t, bit in bits if needs & bit]
        y, last = _layer(x, layer, states, cell, reverse, sequences)
        pairs = [(o, d.to(o.dtype)) for o, d in zip((y, *last), (dy, *dlast), strict=True) if d is not None]
        outputs, cotangents = zip(*pairs)
        found = iter(torch.autograd.grad(outputs, leaves, cotangents, allow_unused=True, materialize_grads=True) if leaves else ())
    dx, *others = [next(found).to(dtype) if needs & bit else None for _, bit in bits]
    return dx, others[: len(of_states)], others[len(of_states) :]


def _layer(x: Tensor, layer: Layer, states: States, cell: Cell, reverse: bool, sequences: Sequences) -> tuple[Tensor, States]:
    w_ih, w_hh, b_ih, b_hh, vectors = layer
    states = states or (x.new_zeros(x.shape[1], w_hh.shape[1]),) * len(cell.states)
    segments = _Segments.of(sequences, x, reverse) if cell.aten else None
    if not cell.aten or segments is not None and not len(segments.rows):
        return reference.recurrence(x, w_ih, w_hh, b_ih, b_hh, states, cell, reverse, vectors, sequences)
    weights = [w_ih, w_hh]
    if b_ih is not None or b_hh is not None:
        weights += [w_hh.new_zeros(w_hh.shape[0]) if b is None else b for b in (b_ih, b_hh)]
    options = (len(weights) == 4, 1, 0.0, torch.is_grad_enabled(), False)
    run = getattr(_VF, cell.aten)

    def hx(states: Sequence[Tensor]) -> Any:
        each = [state.unsqueeze(0) for state in states]
        return each if len(each) > 1 else each[0]

    if segments is None:
        y, *last = run(x.flip(0) if reverse else x, hx(states), weights, *options, False)
        return y.flip(0) if reverse else y, tuple([state.squeeze(0) for state in last])
    rows, sizes, first, ending = segments
    restart = sequences.restart or tuple([torch.zeros_like(state) for state in states])
    starts = [torch.cat(pair)[first] for pair in zip(states, restart, strict=True)]
    y, *last = run(x.flatten(0, 1)[rows], sizes, hx(starts), weights, *options)
    y = y.new_zeros(x.shape[0] * x.shape[1], y.shape[1]).index_copy(0, rows, y).unflatten(0, x.shape[:2])
    # of a row without a live step the first states
    ends = [torch.cat([state, after.squeeze(0)])[ending] for state, after in zip(states, last, strict=True)]
    return y, tuple(ends)


class _Segments(NamedTuple):
    """The segments of sequences as torch packs them, the longest one first."""

    rows: Tensor  # of x as [T*B,I], step by step of the segments
    sizes: Tensor  # how many segments have a step
    first: Tensor  # [segments]: their first states' row in those of the call and, behind them, restart
    ending: Tensor  # [B]: the last states' row in the first ones and, behind them, those after each segment

    @classmethod
    def of(cls, sequences: Sequences, x: Tensor, reverse: bool) -> _Segments | None:
        """Returns None if each sequence of x[T,B,I] is one segment of all steps.  Reads the values of `sequences`."""
        lengths, reset, _ = sequences
        if lengths is None and reset is None:
            return None
        T, B, _ = x.shape
        ends = torch.full((B,), T) if lengths is None else lengths.long()
        cuts = torch.zeros(T, B, dtype=torch.bool) if reset is None else reset
        begins = cuts.index_fill(0, torch.tensor([0]), True) & (torch.arange(T).unsqueeze(1) < ends)
        b, start = begins.T.nonzero().unbind(1)
        final = torch.ones_like(b, dtype=torch.bool)  # of its sequence
        final[:-1] = b[1:] != b[:-1]
        size, order = torch.sort(torch.where(final, ends[b], start.roll(-1)) - start, descending=True)
        b, start, final = b[order], start[order], final[order]
        from_first, to_last = (final, start == 0) if reverse else ((start == 0) & ~cuts[0, b], final)
        step = torch.arange(T).unsqueeze(1)
        there = step < size
        rows = ((start + (size - 1 - step if reverse else step)) * B + b)[there]
        sizes = there.sum(1)
        ending = torch.arange(B).index_copy(0, b[to_last], B + to_last.nonzero().squeeze(1))
        return cls(rows, sizes[sizes > 0], torch.where(from_first, b, B + b), ending)


def _wide(tensors: Any) -> Any:
    """Returns tensors as what sums are accumulated in, fp32 (fp64); integers and bools as they are."""
    return tree_map_only(Tensor, lambda t: t.to(torch.promote_types(t.dtype, torch.float32)) if t.is_floating_point() else t, tensors)


def _each(count: int, run: Callable[..., Any], sequences: Sequences, *given: Any) -> Any:
    """Returns run(*given, sequences) of each model of an ensemble, stacked."""
    results = []
    for n in range(count):
        of_model, restart = tree_map_only(Tensor, lambda t: t[n], (given, sequences.restart))  # noqa: B023
        results.append(run(*of_model, sequences._replace(restart=restart)))
    return _joined(results, torch.stack)


def _in_pieces(pieces: int, settings: tuple[Any, ...], x: Tensor, layer: Layer, *others: Any) -> Gradients:
    """Returns the gradients of each of equal parts of the batch: those of data as they are, those of weights [N,..]."""
    run: Any = _backward
    *data, (lengths, reset, restart) = others
    results = []
    for n in range(pieces):
        x_n, data_n, restart_n = tree_map_only(Tensor, lambda t: t.chunk(pieces, -2)[n], (x, data, restart))  # noqa: B023
        lengths_n, reset_n = tree_map_only(Tensor, lambda t: t.chunk(pieces, -1)[n], (lengths, reset))  # noqa: B023
        results.append(run(x_n, layer, *data_n, Sequences(lengths_n, reset_n, restart_n), *settings))
    dx, dstates = _joined([(dx, dstates) for dx, dstates, _ in results], lambda parts: torch.cat(parts, -2))
    return dx, dstates, _joined([dweights for *_, dweights in results], torch.stack)


def _joined(results: Sequence[Any], join: Callable[[Any], Tensor]) -> Any:
    return tree_map(lambda *parts: None if parts[0] is None else join(parts), *results)
