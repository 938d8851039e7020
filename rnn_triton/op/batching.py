"""vmap over the ops: data joins the batch, weights make an ensemble, and dropout, whose masks go by place, goes sample by sample, as do
models whose sequences end or begin anew at other steps."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from ..launch.launcher import is_batched
from . import network, product
from .gradients import DH0, DX
from .layers import Settings


def _join(t: Any, mapped: Any, n: int) -> Any:
    """Returns t[..,B,N], or a list of such, with the mapped dimension (or n copies) merged into B, as its outer part."""
    if isinstance(t, list | tuple):
        return [_join(*pair, n) for pair in zip(t, mapped, strict=True)]
    if t is None:
        return None
    t = t.unsqueeze(-3).expand(*t.shape[:-2], n, *t.shape[-2:]) if mapped is None else t.movedim(mapped, -3)
    return t.flatten(-3, -2)


def _part(t: Tensor, n: int, B: int) -> tuple[Tensor, int]:
    """Returns what `_join` merged, n times B, as a dimension of its own again, and which."""
    t = t.unflatten(-2, (n, B))
    return t, t.dim() - 3


def _stack(t: Any, mapped: Any, n: int, nested: bool) -> Any:
    """Returns t, or a list of such, as of the models of an ensemble, which share what is not mapped; `nested`: it has models already."""
    if isinstance(t, list | tuple):
        return [_stack(*pair, n, nested) for pair in zip(t, mapped, strict=True)]
    if t is None:
        return None
    t = t.expand(n, *t.shape) if mapped is None else t.movedim(mapped, 0)
    return t.flatten(0, 1) if nested else t


def _unstack(t: Tensor, n: int, nested: bool) -> tuple[Tensor, int]:
    return (t.unflatten(0, (n, t.shape[0] // max(n, 1))) if nested else t), 0


def _one_by_one(run: Any, n: int, dims: tuple, arguments: tuple) -> tuple[Any, Any]:
    def sample(t: Any, d: Any, i: int) -> Any:
        if isinstance(d, list | tuple):
            return [sample(*pair, i) for pair in zip(t, d, strict=True)]
        return t if d is None else t.select(d, i)

    samples = [run(*[sample(t, d, i) for t, d in zip(arguments, dims, strict=True)]) for i in range(n)]
    stacked = [torch.stack(t) if isinstance(t[0], Tensor) else list(map(torch.stack, zip(*t))) for t in zip(*samples)]
    return tuple(stacked), tuple(0 if isinstance(t, Tensor) else [0] * len(t) for t in stacked)


def _sizes(x: Tensor, w_hh: Tensor, dims: tuple) -> tuple[int, bool, int | None]:
    """Returns B of one sample, whether it is an ensemble, and the number of its models if they share x, which lacks them."""
    of_x, of_w_hh = [[n for dim, n in enumerate(t.shape) if dim != mapped] for t, mapped in ((x, dims[0]), (w_hh, dims[1][1]))]
    nested = len(of_w_hh) == 3
    return of_x[-2], nested, of_w_hh[0] if nested and len(of_x) == 3 else None


def _stack_x(x: Tensor, mapped: int | None, n: int, nested: bool, models: int | None) -> Tensor:
    """Returns what `_stack` does, of an x that the `models` of each sample share (None: they do not)."""
    if models is not None:
        x, mapped = x.expand(models, *x.shape), None if mapped is None else mapped + 1
    return _stack(x, mapped, n, nested)


def _unzip(results: list[Any]) -> tuple[Any, Any]:
    """Returns the tensors of pairs (tensor, mapped dimension), and of lists of pairs, and the dimensions."""
    both = [tuple(map(list, zip(*pairs))) or ([], []) if isinstance(pairs, list) else pairs for pairs in results]
    return tuple(zip(*both))  # type: ignore[return-value]


_COUNT = 4 + len(Settings._fields)  # arguments that both ops begin with


def _join_rows(t: Tensor | None, mapped: int | None, n: int) -> Tensor | None:
    """Returns what `_join` does, of lengths[B] or reset[T,B]."""
    return None if t is None else _join(t.unsqueeze(-1), mapped, n).squeeze(-1)


def _joined_sequences(sequences: Any, dims: Any, n: int) -> tuple[Any, ...]:
    lengths, reset, restart = sequences
    return _join_rows(lengths, dims[0], n), _join_rows(reset, dims[1], n), _join(restart, dims[2], n)


def _goes_one_by_one(n: int, dims: tuple, arguments: tuple) -> bool:
    """True if the samples cannot be one call: with dropout, and models of which each has lengths or resets of its own."""
    seed, (lengths, reset, _) = arguments[3], dims[-3:]
    apart = (lengths is not None or reset is not None) and any(d is not None for d in dims[1])
    return n > 0 and (seed is not None or apart)  # of none nothing is dropped


def _complete(count: int, dims: tuple, arguments: tuple) -> tuple[tuple, tuple]:
    """Returns (dims, arguments) with all `count` arguments, the last ones of which may have been left out."""
    defaults = (None, None, None)[len(arguments) - count :] if len(arguments) < count else ()
    return (*dims, *defaults), (*arguments, *defaults)


def _forward(info: Any, dims: tuple, *arguments: Any) -> tuple[Any, Any]:
    dims, arguments = _complete(_COUNT + 4, dims, arguments)
    x, weights, states, _, *settings, lengths, reset, restart = arguments
    n, sequences = info.batch_size, (lengths, reset, restart)
    if _goes_one_by_one(n, dims, arguments):
        return _one_by_one(network.forward, n, dims, arguments)
    B, nested, models = _sizes(x, weights[1], dims)
    if any(d is not None for d in dims[1]):
        tensors = [_stack_x(x, dims[0], n, nested, models), *[_stack(t, d, n, nested) for t, d in zip((weights, states), dims[1:])]]
        sequences = (lengths, reset, _stack(restart, dims[-1], n, nested))
        outputs, apart = network.forward(*tensors, None, *settings, *sequences), lambda t: _unstack(t, n, nested)
    else:
        joined, sequences = _join(states, dims[2], n), _joined_sequences(sequences, dims[-3:], n)
        outputs = network.forward(_join(x, dims[0], n), weights, joined, None, *settings, *sequences)
        apart = lambda t: _part(t, n, B)  # noqa: E731
    return _unzip([[apart(t) for t in o] if isinstance(o, list) else apart(o) for o in outputs])


def _backward(info: Any, dims: tuple, *arguments: Any) -> tuple[Any, Any]:
    dims, arguments = _complete(_COUNT + 8, dims, arguments)
    x, weights, states, _, *settings, kept, dy, dlast, needs, pieces, lengths, reset, restart = arguments
    n, sequences = info.batch_size, (lengths, reset, restart)
    if _goes_one_by_one(n, dims, arguments):
        return _one_by_one(network.backward, n, dims, arguments)
    B, nested, models = _sizes(x, weights[1], dims)
    of_outputs, output_dims = (kept, dy, dlast), dims[-8:-5]
    if any(d is not None for d in dims[1]):
        tensors = [_stack_x(x, dims[0], n, nested, models), *[_stack(t, d, n, nested) for t, d in zip((weights, states), dims[1:])]]
        of_outputs = [_stack(t, d, n, nested) for t, d in zip(of_outputs, output_dims)]  # type: ignore[assignment]
        sequences = (lengths, reset, _stack(restart, dims[-1], n, nested))
        results = network.backward(*tensors, None, *settings, *of_outputs, needs, pieces, *sequences)
        x_part = data_part = weight_part = lambda t: _unstack(t, n, nested)  # noqa: E731
        if models is not None:
            x_part = lambda t: (_unstack(t, n, nested)[0].sum(1), 0)  # noqa: E731
    else:
        of_outputs = [_join(t, d, n) for t, d in zip(of_outputs, output_dims)]  # type: ignore[assignment]
        x, states = _join(x, dims[0], n), _join(states, dims[2], n)
        sequences = _joined_sequences(sequences, dims[-3:], n)
        results = network.backward(x, weights, states, None, *settings, *of_outputs, needs, n * (pieces or 1), *sequences)
        x_part = data_part = lambda t: _part(t, n, B)  # noqa: E731
        dim = int(nested)  # behind the models
        weight_part = lambda t: (t if pieces is None else t.unflatten(dim, (n, pieces)), dim)  # noqa: E731
    (dx, dstates, dweights), absent = results, lambda t: (t, None)
    wanted = [need & bit for need in needs[1:] for bit in Settings(*settings).gradients]
    parts = [
        (x_part if needs[0] & DX else absent)(dx),
        [(data_part if needs[0] & DH0 else absent)(t) for t in dstates],
        [(weight_part if want else absent)(t) for t, want in zip(dweights, wanted, strict=True)],
    ]
    return _unzip(parts)


def _matmul(info: Any, dims: tuple, a: Tensor, b: Tensor, precision: str | None) -> tuple[Tensor, int]:
    n, nested = info.batch_size, a.dim() - (dims[0] is not None) == 3
    return _unstack(product.matmul(_stack(a, dims[0], n, nested), _stack(b, dims[1], n, nested), precision), n, nested)


torch.library.register_vmap("rnn_triton::matmul", _matmul)
torch.library.register_vmap("rnn_triton::forward", _forward)
torch.library.register_vmap("rnn_triton::backward", _backward)


def _older(op: Any, *arguments: Any) -> Any:
    """An op under torch's legacy vmap (is_grads_batched=True), whose fallback does not accept lists of tensors."""
    level = torch._C._vmapmode_increment_nesting() - 1  # of the batches: it says the one within
    torch._C._vmapmode_decrement_nesting()

    def mapped(t: Any) -> bool:
        return isinstance(t, Tensor) and is_batched(t)

    plain = tree_map(lambda t: torch._remove_batch_dim(t, level, 1, 0) if mapped(t) else t, arguments)
    dims = tree_map(lambda t: 0 if mapped(t) else None, arguments)
    return tree_map(lambda t: torch._add_batch_dim(t, 0, level), torch.vmap(op, in_dims=dims)(*plain))


torch.library.impl("rnn_triton::forward", "Batched")(functools.partial(_older, network.forward))
torch.library.impl("rnn_triton::matmul", "Batched")(functools.partial(_older, product.matmul))
torch.library.impl("rnn_triton::backward", "Batched")(functools.partial(_older, network.backward))
