"""Export to ONNX: in a model that torch.onnx.export writes, layers are ONNX's own operator RNN.

Nothing is to be registered or passed: while torch.onnx.export(..., dynamo=True) traces a module, each layer and direction
becomes an RNN node (`rnn`). A program of torch.export made before holds the package's own operators instead;
`program.run_decompositions(rnn_triton.onnx.decompositions())` brings it to the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .errors import UnsupportedError

LEGACY = (
    "torch.onnx.export(dynamo=False) cannot take rnn_triton's operators: export with torch.onnx.export(..., dynamo=True), "
    "which writes ONNX's own RNN"
)


def rnn(
    x: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
    h0: Tensor | None,
    nonlinearity: str,
    reverse: bool,
) -> tuple[Tensor, Tensor]:
    """(y[T,B,H], hn[B,H]) as `op.rnn`, by a node RNN of ONNX. Precision is the runtime's own; bf16, which the node does not
    take, is computed in fp32."""
    if x.dtype is torch.bfloat16:
        wide = [None if t is None else t.float() for t in (x, w_ih, w_hh, b_ih, b_hh, h0)]
        given: Any = (*wide, nonlinearity, reverse)
        y, hn = rnn(*given)
        return y.bfloat16(), hn.bfloat16()
    T, B, _ = x.shape
    H = w_hh.shape[0]
    bias = None
    if b_ih is not None or b_hh is not None:
        bias = torch.cat([w_hh.new_zeros(H) if b is None else b for b in (b_ih, b_hh)]).unsqueeze(0)
    inputs = [x, w_ih.unsqueeze(0), w_hh.unsqueeze(0), bias, None, None if h0 is None else h0.unsqueeze(0)]
    while inputs[-1] is None:
        inputs.pop()
    y, hn = torch.onnx.ops.symbolic_multi_out(
        "RNN",
        inputs,
        {
            "activations": [{"tanh": "Tanh", "relu": "Relu"}[nonlinearity]],
            "direction": "reverse" if reverse else "forward",
            "hidden_size": H,
        },
        dtypes=(x.dtype, x.dtype),
        shapes=((T, 1, B, H), (1, B, H)),
    )
    return y.squeeze(1), hn.squeeze(0)


def decompositions() -> dict[Any, Callable[..., Any]]:
    """What puts ONNX's RNN in place of the package's operators in a program of torch.export, for its run_decompositions"""
    from .op import network  # it needs `op`, which needs this file

    def layer(*arguments: Any) -> tuple[Tensor, Tensor]:
        if arguments[0].dim() != 3:
            raise UnsupportedError("ONNX has no operator for an ensemble (vmap over weights): export its models one by one")
        return rnn(*arguments[:-1])  # without the precision

    def stack(x: Tensor, weights: list[Tensor], h0: Tensor | None, seed: Tensor | None, *settings: Any) -> network.Results:
        *of, keep = settings
        net = network.Settings(*of)
        if net.dropped:
            raise UnsupportedError("ONNX has no operator for this dropout between layers: export model.eval()")
        outputs: list[Tensor] = []

        def one(x: Tensor, *layer: Any, h0: Tensor | None, reverse: bool) -> tuple[Tensor, Tensor]:
            w_ih, w_hh, b_ih, b_hh = layer
            return rnn(x, w_ih, w_hh, b_ih, b_hh, h0, net.nonlinearity, reverse)

        def between(y: Tensor, _: int) -> Tensor:
            outputs.append(y)
            return y

        y, hn = network.in_turn(x, net.layers(weights), h0, net.bidirectional, one=one, between=between)
        return y, hn, torch.stack([*outputs, y]) if keep and outputs else x.new_empty(0)

    return {torch.ops.rnn_triton.rnn_forward.default: layer, torch.ops.rnn_triton.network_forward.default: stack}
