"""Layers and directions of one network: together, as one operator that shares launches where it pays (network.py), or one
layer after the other.

One after the other goes what the operator cannot do: without a GPU, packed sequences, torch.func's transforms, forward-mode
derivatives, tensor subclasses, dropout in fp64.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from . import functional, packed
from .launch.launcher import batched, has_kernels
from .op import dropout as masks
from .op import network
from .op.network import Layer


def rnn(
    x: Tensor,
    weights: Sequence[Tensor],
    h0: Tensor | None = None,
    *,
    bias: bool = True,
    nonlinearity: str = "tanh",
    bidirectional: bool = False,
    dropout: float = 0.0,
    precision: str | None = None,
    runs: list[tuple[int, int]] | None = None,
) -> tuple[Tensor, Tensor]:
    """(y[T,B,D*H], h_n[L*D,B,H]) of x[T,B,I] and h0[L*D,B,H] (zeros if None): L layers in D directions.

    `weights` are w_ih, w_hh and, with `bias`, b_ih, b_hh of every layer and direction in the order of h_n: layer by
    layer, in each first forwards, then, if `bidirectional`, backwards in time. A layer takes the outputs of both
    directions of the one below, each element zeroed with probability `dropout` and else scaled by 1 / (1 - dropout).

    With `runs` (see packed.runs_of), x and y are packed rows, [N,I] and [N,D*H].
    """
    layer: Callable[..., tuple[Tensor, Tensor]] = functional.rnn
    if runs is not None:
        layer = functools.partial(packed.rnn, runs=runs)
    each = 4 if bias else 2
    if h0 is not None and h0.shape[0] * each != len(weights):
        raise RuntimeError(f"Expected {len(weights) // each} initial states, got h0 of shape {list(h0.shape)}")
    if len(weights) == each:
        h = None if h0 is None else h0[0]
        y, hn = layer(x, *weights, h0=h, nonlinearity=nonlinearity, precision=precision)
        return y, hn[None]

    layers = network.layers_of(weights, each)
    dropout = dropout if len(layers) > (2 if bidirectional else 1) else 0.0
    if runs is None and _may_share(x, weights, h0, dropout):
        x, given, h0, precision = _settled(x, layers, h0, nonlinearity, bidirectional, precision)
        dropped = masks.count(dropout)
        seed = masks.new_seed(x.device) if dropped else None
        net = network.Settings(bias, nonlinearity, bidirectional, precision, dropped)
        return network.apply(x, given, h0, seed, net)
    return network.in_turn(
        x, layers, h0, bidirectional,
        one=functools.partial(layer, nonlinearity=nonlinearity, precision=precision),
        between=lambda y, _: nn.functional.dropout(y, dropout) if dropout else y,
    )  # fmt: skip


def _may_share(x: Tensor, weights: Sequence[Tensor], h0: Tensor | None, dropout: float) -> bool:
    """May layers share a launch: kernels on this device, tensors that they can be given, and masks of the dtype?"""
    if not has_kernels(x) or x.dim() != 3 or torch.jit.is_tracing():
        return False
    if x.shape[0] == 0 or x.shape[1] == 0:
        return False
    if torch._C._are_functorch_transforms_active() or (dropout and x.dtype is torch.float64):
        return False
    if torch.compiler.is_compiling():
        return not torch.onnx.is_in_onnx_export()
    tensors = (x, *weights) if h0 is None else (x, h0, *weights)
    return (
        forward_ad._current_level < 0
        and all(type(t) in _PLAIN for t in tensors)
        and not batched(*tensors)
    )


_PLAIN = (Tensor, nn.Parameter)


def _settled(
    x: Tensor,
    layers: Sequence[Layer],
    h0: Tensor | None,
    nonlinearity: str,
    bidirectional: bool,
    precision: str | None,
) -> tuple[Tensor, list[Tensor], Tensor | None, str | None]:
    """(x, weights, h0, precision) as functional.settled has them, layer by layer"""
    directions = 2 if bidirectional else 1
    states = [None] * len(layers) if h0 is None else list(h0)
    found: list[Tensor] = []
    given = x
    for n, layer in enumerate(layers):
        given, *weights, states[n], settled = functional.settled(given, *layer, states[n], nonlinearity, precision)
        found += [w for w in weights if w is not None]
        if n == 0:
            x = given
        if n == directions - 1:  # y of the layer below, as far as a check looks at it
            given = x.new_empty(()).expand(*x.shape[:2], directions * found[1].shape[0])
    if h0 is not None and h0.dtype is not x.dtype:  # autocast
        h0 = torch.stack(states)  # type: ignore[arg-type]
    return x, found, h0, settled
