"""Layers as ONNX's own operators RNN, GRU and LSTM, for the tracer of torch.onnx.export."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from ..cells import Cell
from ..errors import UnsupportedError
from .layers import Layer, Settings, States, in_turn

LEGACY = (
    "torch.onnx.export(dynamo=False) cannot take rnn_triton's operators: export with torch.onnx.export(..., dynamo=True), "
    "which writes ONNX's own RNN"
)

NO_SEQUENCES = "ONNX's operators take no resets, and rnn_triton exports them without lengths: export a program without lengths and reset"


def network(
    x: Tensor, weights: Sequence[Tensor], states: States, net: Settings, between: Callable[[Tensor, int], Tensor]
) -> tuple[Tensor, States]:
    """Returns what the operator does, a node for each layer and direction.  `between` is that of `in_turn`.

    UnsupportedError: ONNX has no operator for the cell."""

    def one(x: Tensor, layer: Layer, states: States, n: int) -> tuple[Tensor, States]:
        return node(x, layer, states, net.described, net.reverse(n))

    if net.described.onnx is None:
        raise UnsupportedError(f"ONNX has no operator for the cell {net.cell!r}")
    return in_turn(x, net.layers(weights), states, net.directions, one=one, between=between)


def node(x: Tensor, layer: Layer, states: States, cell: Cell, reverse: bool) -> tuple[Tensor, States]:
    """Returns (y[T,B,H], the last states [B,H]) of x[T,B,I] and the first states (zeros if ()) by ONNX's operator of a cell.

    The runtime decides the precision. bf16, which the node does not take, is computed in fp32 between casts."""
    if x.dtype is torch.bfloat16:
        wide: Any = tree_map_only(Tensor, Tensor.float, (x, layer, states))
        y, last = node(*wide, cell, reverse)  # type: ignore[call-arg, misc]
        return y.bfloat16(), tuple([state.bfloat16() for state in last])
    (T, B, _), H, onnx = x.shape, layer.w_hh.shape[1], cell.onnx
    assert onnx is not None

    def in_order(t: Tensor) -> Tensor:
        """Returns a weight or a bias with the gates in ONNX's order."""
        blocks = dict(zip(cell.gates, t.chunk(len(cell.gates))))
        return torch.cat([blocks[gate] for gate in onnx.gates]) if onnx.gates else t

    w_ih, w_hh, *biases, _ = layer
    bias = None
    if any([b is not None for b in biases]):
        bias = torch.cat([w_hh.new_zeros(w_hh.shape[0]) if b is None else in_order(b) for b in biases]).unsqueeze(0)
    given = [state.unsqueeze(0) for state in states]
    inputs = [x, in_order(w_ih).unsqueeze(0), in_order(w_hh).unsqueeze(0), bias, None, *given]
    while inputs[-1] is None:
        inputs.pop()
    outputs = torch.onnx.ops.symbolic_multi_out(
        onnx.operator,
        inputs,
        {
            "activations": list(onnx.activations),
            "direction": "reverse" if reverse else "forward",
            "hidden_size": H,
            **dict(onnx.attributes),
        },
        dtypes=(x.dtype,) * (1 + len(cell.states)),
        shapes=((T, 1, B, H), *[(1, B, H)] * len(cell.states)),
    )
    return outputs[0].squeeze(1), tuple([state.squeeze(0) for state in outputs[1:]])
