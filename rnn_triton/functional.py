"""A layer, or a network of L layers in D directions, as a function: checks the arguments and calls an operator.

Layers and directions of a network go together, as one operator that shares launches where it pays (op/network.py), or one after
the other.  One after the other goes what the operator cannot do: without a GPU, packed sequences, torch.func's transforms,
forward-mode derivatives, tensor subclasses, dropout in fp64.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from .checks import settled, settled_network
from .launch.launcher import batched, has_kernels
from .op import dropout as masks
from .op import layer
from .op.network import Settings, apply, in_turn, layers_of


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
    return layer.rnn(x, w_ih, w_hh, b_ih, b_hh, h0, nonlinearity, reverse, precision)


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
    count = 4 if bias else 2  # tensors of a layer
    if h0 is not None and h0.shape[0] * count != len(weights):
        raise RuntimeError(f"Expected {len(weights) // count} initial states, got h0 of shape {list(h0.shape)}")
    one: Callable[..., tuple[Tensor, Tensor]] = rnn if packed is None else packed
    if len(weights) == count:
        h = None if h0 is None else h0[0]
        y, hn = one(x, *weights, h0=h, nonlinearity=nonlinearity, precision=precision)
        return y, hn[None]

    layers = layers_of(weights, count)
    dropout = dropout if len(layers) > (2 if bidirectional else 1) else 0.0
    if packed is None and _may_share(x, weights, h0, dropout):
        x, flat, h0, precision = settled_network(x, layers, h0, nonlinearity, bidirectional, precision)
        dropped = masks.count(dropout)
        seed = masks.new_seed(x.device) if dropped else None
        return apply(x, flat, h0, seed, Settings(bias, nonlinearity, bidirectional, precision, dropped))
    return in_turn(
        x, layers, h0, bidirectional,
        one=functools.partial(one, nonlinearity=nonlinearity, precision=precision),
        between=lambda y, _: nn.functional.dropout(y, dropout) if dropout else y,
    )  # fmt: skip


_PLAIN = (Tensor, nn.Parameter)


def _may_share(x: Tensor, weights: Sequence[Tensor], h0: Tensor | None, dropout: float) -> bool:
    """True if layers may share a launch: there are kernels on this device, which take these tensors, and masks of the dtype."""
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
