"""One layer in one direction on CPU tensors, where no kernels run: torch's own layer, or the reference of a cell that torch has not;
backward the same again, recorded by autograd.  fp32 is multiplied as it is.

`layer` is a Layer, `states` are [B,H] each, () for zeros; an ensemble has M in front of every shape.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import _VF, Tensor
from torch.utils._pytree import tree_map, tree_map_only

from ..cells import Cell, reference
from .gradients import DB, DH0, DV, DW_HH, DW_IH, DX
from .layers import Layer, States
from .recording import recording

Gradients = tuple[Tensor | None, list[Tensor | None], list[Tensor | None]]


def forward(x: Tensor, layer: Layer, states: States, cell: Cell, reverse: bool) -> tuple[Tensor, States]:
    """Returns y[T,B,H] and the last states, no views."""
    if x.dim() == 4:
        run: Any = _forward
        return _each(len(x), lambda *model: run(*model, cell, reverse), x, layer, states)
    return _forward(x, layer, states, cell, reverse)


def _forward(x: Tensor, layer: Layer, states: States, cell: Cell, reverse: bool) -> tuple[Tensor, States]:
    dtype = x.dtype
    if not cell.aten:
        x, layer, states = _wide((x, layer, states))
    y, last = _layer(x, layer, states, cell, reverse)
    # detach: torch marks y as a view of something, and autograd would then refuse in-place changes to it
    return y.to(dtype).detach(), tuple([state.to(dtype).detach() for state in last])


def backward(
    x: Tensor, layer: Layer, states: States, dy: Tensor | None, dlast: Sequence[Tensor | None], cell: Cell, reverse: bool,
    needs: int, groups: int | None = None,
) -> Gradients:  # fmt: skip
    """Returns (dx, [gradients of the states], [dw_ih, dw_hh, ..]) as Settings.gradients has them, each None unless `needs` asks for
    it.  dy or some of dlast, the gradients of the last states, may be None, not all.  `groups` as in network.py."""
    whole: Any = _backward
    settings, given = (cell, reverse, needs), (x, layer, states, dy, dlast)

    def run(*one: Any) -> Gradients:
        return whole(*one, *settings) if groups is None else _in_groups(groups, settings, *one)

    return run(*given) if x.dim() == 3 else _each(len(x), run, *given)


def _backward(
    x: Tensor, layer: Layer, states: States, dy: Tensor | None, dlast: Sequence[Tensor | None], cell: Cell, reverse: bool, needs: int
) -> Gradients:
    dtype = x.dtype
    b_ih, b_hh = (torch.zeros_like(layer.w_ih[:, 0]) if b is None and needs & DB else b for b in layer[2:4])
    states = states or (x.new_zeros(x.shape[1], layer.w_hh.shape[1]),) * len(cell.states)
    with recording("cpu"):
        x, layer, states = tree_map_only(Tensor, torch.Tensor.detach, _wide((x, layer._replace(b_ih=b_ih, b_hh=b_hh), states)))
        bits: list[tuple[Any, int]] = [(x, DX), *[(s, DH0) for s in states], (layer.w_ih, DW_IH), (layer.w_hh, DW_HH)]
        bits += [(b, DB) for b in (layer[2:4] if cell.split else layer[2:3])] + [(v, DV) for v in layer.vectors]
        leaves = [t.requires_grad_() for t, bit in bits if needs & bit]
        y, last = _layer(x, layer, states, cell, reverse)
        pairs = [(o, d.to(o.dtype)) for o, d in zip((y, *last), (dy, *dlast), strict=True) if d is not None]
        outputs, cotangents = zip(*pairs)
        found = iter(torch.autograd.grad(outputs, leaves, cotangents, allow_unused=True, materialize_grads=True) if leaves else ())
    dx, *others = [next(found).to(dtype) if needs & bit else None for _, bit in bits]
    return dx, others[: len(states)], others[len(states) :]


def _layer(x: Tensor, layer: Layer, states: States, cell: Cell, reverse: bool) -> tuple[Tensor, States]:
    w_ih, w_hh, b_ih, b_hh, vectors = layer
    if not cell.aten:
        return reference.recurrence(x, w_ih, w_hh, b_ih, b_hh, states, cell, reverse, vectors)
    weights = [w_ih, w_hh]
    if b_ih is not None or b_hh is not None:
        weights += [w_hh.new_zeros(w_hh.shape[0]) if b is None else b for b in (b_ih, b_hh)]
    states = states or (x.new_zeros(x.shape[1], w_hh.shape[1]),) * len(cell.states)
    hx = [state.unsqueeze(0) for state in states]
    options = (len(weights) == 4, 1, 0.0, torch.is_grad_enabled(), False, False)
    y, *last = getattr(_VF, cell.aten)(x.flip(0) if reverse else x, hx if len(hx) > 1 else hx[0], weights, *options)
    return y.flip(0) if reverse else y, tuple([state.squeeze(0) for state in last])


def _wide(tensors: Any) -> Any:
    """Returns tensors as what sums are accumulated in, fp32 (fp64)."""
    return tree_map_only(Tensor, lambda t: t.to(torch.promote_types(t.dtype, torch.float32)), tensors)


def _each(count: int, run: Callable[..., Any], *given: Any) -> Any:
    """Returns run(*given) of each model of an ensemble, stacked."""
    results = [run(*tree_map_only(Tensor, lambda t: t[i], given)) for i in range(count)]  # noqa: B023
    return _joined(results, torch.stack)


def _in_groups(groups: int, settings: tuple[Any, ...], x: Tensor, layer: Layer, *others: Any) -> Gradients:
    """Returns the gradients of each of equal parts of the batch: those of data as they are, those of weights [G,..]."""
    run: Any = _backward
    results = []
    for n in range(groups):
        x_n, others_n = tree_map_only(Tensor, lambda t: t.chunk(groups, -2)[n], (x, others))  # noqa: B023
        results.append(run(x_n, layer, *others_n, *settings))
    dx, dstates = _joined([(dx, dstates) for dx, dstates, _ in results], lambda parts: torch.cat(parts, -2))
    return dx, dstates, _joined([dweights for *_, dweights in results], torch.stack)


def _joined(results: Sequence[Any], join: Callable[[Any], Tensor]) -> Any:
    return tree_map(lambda *parts: None if parts[0] is None else join(parts), *results)
