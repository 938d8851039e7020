"""Layers as ONNX's own operator RNN, for the tracer of torch.onnx.export."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..cells import named
from .layers import Settings, in_turn

LEGACY = (
    "torch.onnx.export(dynamo=False) cannot take rnn_triton's operators: export with torch.onnx.export(..., dynamo=True), "
    "which writes ONNX's own RNN"
)


def network(
    x: Tensor, weights: Sequence[Tensor], h0: Tensor | None, net: Settings, between: Callable[[Tensor, int], Tensor]
) -> tuple[Tensor, Tensor]:
    """Returns what the operator does, a node for each layer and direction.  `between` is that of `in_turn`."""

    def one(x: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
        *operands, n = arguments
        return rnn(x, *operands, cell=net.cell, reverse=net.reverse(n))  # type: ignore[misc]

    return in_turn(x, net.layers(weights), h0, net.directions, one=one, between=between)


def rnn(
    x: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
    h0: Tensor | None,
    cell: str,
    reverse: bool,
) -> tuple[Tensor, Tensor]:
    """Returns (y[T,B,H], hn[B,H]) of x[T,B,I] and h0[B,H] (zeros if None) by a node RNN of ONNX.

    The runtime decides the precision. bf16, which the node does not take, is computed in fp32 between casts."""
    if x.dtype is torch.bfloat16:
        wide = [None if t is None else t.float() for t in (x, w_ih, w_hh, b_ih, b_hh, h0)]
        arguments: Any = (*wide, cell, reverse)
        y, hn = rnn(*arguments)
        return y.bfloat16(), hn.bfloat16()
    T, B, _ = x.shape
    H = w_hh.shape[0]
    bias = None
    if b_ih is not None or b_hh is not None:
        bias = torch.cat([w_hh.new_zeros(H) if b is None else b for b in (b_ih, b_hh)]).unsqueeze(0)
    inputs = [x, w_ih.unsqueeze(0), w_hh.unsqueeze(0), bias, None, None if h0 is None else h0.unsqueeze(0)]
    while inputs[-1] is None:
        inputs.pop()
    operator, activations = named(cell).onnx
    y, hn = torch.onnx.ops.symbolic_multi_out(
        operator,
        inputs,
        {
            "activations": list(activations),
            "direction": "reverse" if reverse else "forward",
            "hidden_size": H,
        },
        dtypes=(x.dtype, x.dtype),
        shapes=((T, 1, B, H), (1, B, H)),
    )
    return y.squeeze(1), hn.squeeze(0)
