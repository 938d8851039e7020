"""Export to ONNX, whose own operator RNN takes the place of this package's layers.

`torch.onnx.export(..., dynamo=True)` needs nothing from here: while it traces a module, each layer and direction becomes an RNN
node (op/onnx_node.py). A program that `torch.export` made before holds this package's own operators instead;
`program.run_decompositions(rnn_triton.onnx.decompositions())` replaces them by RNN nodes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .errors import UnsupportedError
from .op import network, onnx_node


def decompositions() -> dict[Any, Callable[..., Any]]:
    """Returns the decompositions that turn the package's operators into ONNX's RNN: pass them to the `run_decompositions` of a
    program that torch.export made. An ensemble, and dropout between layers, raise UnsupportedError when the program is decomposed."""

    def layer(*arguments: Any) -> tuple[Tensor, Tensor]:
        if arguments[0].dim() != 3:
            raise UnsupportedError("ONNX has no operator for an ensemble (vmap over weights): export its models one by one")
        return onnx_node.rnn(*arguments[:-1])  # without the precision

    def stack(x: Tensor, weights: list[Tensor], h0: Tensor | None, seed: Tensor | None, *settings: Any) -> network.Results:
        *of, keep = settings
        net = network.Settings(*of)
        if net.dropped:
            raise UnsupportedError("ONNX has no operator for this dropout between layers: export model.eval()")
        outputs: list[Tensor] = []

        def one(x: Tensor, *layer: Any, h0: Tensor | None, reverse: bool) -> tuple[Tensor, Tensor]:
            w_ih, w_hh, b_ih, b_hh = layer
            return onnx_node.rnn(x, w_ih, w_hh, b_ih, b_hh, h0, net.nonlinearity, reverse)

        def between(y: Tensor, _: int) -> Tensor:
            outputs.append(y)
            return y

        y, hn = network.in_turn(x, net.layers(weights), h0, net.bidirectional, one=one, between=between)
        return y, hn, torch.stack([*outputs, y]) if keep and outputs else x.new_empty(0)

    return {torch.ops.rnn_triton.rnn_forward.default: layer, torch.ops.rnn_triton.network_forward.default: stack}
