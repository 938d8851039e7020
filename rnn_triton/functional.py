"""A layer, or a network of L layers in D directions, as a function: checks the arguments and calls an operator.

Layers and directions of a network go together, as one operator that shares launches where it pays (op/network.py).  One after the
other go packed sequences, of which each layer is several calls, and dropout by torch's own masks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from . import checks
from .cells.elman import ELMAN
from .checks import settled, settled_network
from .launch.launcher import has_kernels
from .op import autograd
from .op import dropout as masks
from .op.layers import Layer, Settings, in_turn


def rnn(
    x: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
    h0: Tensor | None = None,
    *,
    nonlinearity: str = "tanh",
    reverse: bool = False,
    precision: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Runs an Elman layer, h_t = f(x_t W_ih^T + b_ih + h_{t-1} W_hh^T + b_hh); returns all h_t as y[T,B,H] and the last as hn[B,H].

    x[T,B,I], w_ih[H,I], w_hh[H,H], b_ih[H], b_hh[H] and h0[B,H] (zeros if None) may have any strides, and must be on one device
    and of one dtype: fp32, bf16, fp16 or fp64. f is tanh or relu. `reverse` runs from t = T-1 to 0; y stays in the order of x, and
    hn is then the state at t = 0. Under autocast everything but fp64 is cast to autocast's dtype, and so are the results.

    `precision` says how fp32 is multiplied: "tf32", "tf32x3" (three TF32 products, close to fp32) or "ieee". None follows
    torch.backends.cudnn.rnn.fp32_precision. Other dtypes take None only.

    Raises ValueError or RuntimeError as torch.nn.RNN does, and UnsupportedError if no plan runs the problem.
    """
    x, w_ih, w_hh, b_ih, b_hh, h0, precision = settled(
        x, w_ih, w_hh, b_ih, b_hh, h0, nonlinearity, precision
    )
    direction = "reverse" if reverse else "forward"
    net = Settings(b_ih is not None, b_hh is not None, ELMAN[nonlinearity].name, direction, precision)
    weights: tuple[Any, ...] = (w_ih, w_hh, b_ih, b_hh)
    if b_ih is None or b_hh is None:
        weights = tuple([t for t in weights if t is not None])
    y, (hn,) = autograd.network(x, weights, () if h0 is None else (h0,), None, net)
    return y, hn


def network(
    x: Tensor,
    weights: Sequence[Tensor],
    h0: Tensor | None = None,
    *,
    bias: bool = True,
    nonlinearity: str = "tanh",
    bidirectional: bool = False,
    dropout: float = 0.0,
    precision: str | None = None,
    packed: Callable[..., tuple[Tensor, Tensor]] | None = None,
) -> tuple[Tensor, Tensor]:
    """Returns (y[T,B,D*H], h_n[L*D,B,H]) of x[T,B,I] and h0[L*D,B,H] (zeros if None): L layers in D directions.

    `weights` are w_ih, w_hh and, with `bias`, b_ih, b_hh of every layer and direction in the order of h_n: layer by
    layer, in each first forwards, then, if `bidirectional`, backwards in time. A layer takes the outputs of both
    directions of the one below, each element zeroed with probability `dropout` and else scaled by 1 / (1 - dropout).

    `packed` runs each layer in place of `rnn`, with its arguments, if sequences have unequal lengths: x and y are then
    packed rows, [N,I] and [N,D*H].
    """
    count, directions = 4 if bias else 2, 2 if bidirectional else 1  # tensors of a layer in one direction
    checks.check_layers(weights, count, directions)
    if h0 is not None and h0.shape[0] * count != len(weights):
        raise RuntimeError(f"Expected {len(weights) // count} initial states, got h0 of shape {list(h0.shape)}")
    one: Callable[..., tuple[Tensor, Tensor]] = rnn if packed is None else packed
    if len(weights) == count:
        h = None if h0 is None else h0[0]
        y, hn = one(x, *weights, h0=h, nonlinearity=nonlinearity, precision=precision)
        return y, hn[None]

    dropout = dropout if len(weights) > directions * count else 0.0
    if packed is None and not (dropout and _drops_as_torch(x)):
        net = Settings(bias, bias, checks.elman(nonlinearity).name, "both" if bidirectional else "forward", None, masks.count(dropout))
        x, flat, h0, precision = settled_network(x, [layer[:4] for layer in net.layers(weights)], h0, nonlinearity, bidirectional, precision)
        seed = masks.new_seed(x.device) if net.dropped else None
        y, (hn,) = autograd.network(x, flat, () if h0 is None else (h0,), seed, net._replace(precision=precision))
        return y, hn

    def layer(x: Tensor, weights: Layer, states: tuple[Tensor, ...], n: int) -> tuple[Tensor, tuple[Tensor, ...]]:
        h = states[0] if states else None
        y, hn = one(x, *weights[:4], h, nonlinearity=nonlinearity, reverse=n % directions == 1, precision=precision)
        return y, (hn,)

    layers = [Layer(*weights[n : n + count]) for n in range(0, len(weights), count)]  # type: ignore[arg-type]
    between = lambda y, _: nn.functional.dropout(y, dropout) if dropout else y  # noqa: E731
    y, (hn,) = in_turn(x, layers, () if h0 is None else (h0,), directions, one=layer, between=between)
    return y, hn


def _drops_as_torch(x: Tensor) -> bool:
    """True if dropout between layers takes torch's masks, layer by layer: on CPU tensors, so that they are those of torch.nn.RNN; and
    where the kernels' masks do not reach, in fp64, under torch.func's transforms, traced, and exported to ONNX."""
    return (
        not has_kernels(x)
        or x.dtype is torch.float64
        or torch._C._are_functorch_transforms_active()
        or torch.onnx.is_in_onnx_export()
        or torch.jit.is_tracing()
    )
