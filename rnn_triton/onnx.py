"""Export to ONNX, whose own operators RNN, GRU and LSTM take the place of this package's layers.

`torch.onnx.export(..., dynamo=True)` needs nothing from here: while it traces a module, each layer and direction becomes a
node (op/onnx_node.py). A program that `torch.export` made before holds this package's own operators instead;
`program.run_decompositions(rnn_triton.onnx.decompositions())` replaces them by such nodes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .errors import UnsupportedError
from .op import onnx_node
from .op.layers import Settings


def decompositions() -> dict[Any, Callable[..., Any]]:
    """Returns the decompositions that turn the package's operators into ONNX's: pass them to the `run_decompositions` of a
    program that torch.export made. An ensemble, and dropout between layers, raise UnsupportedError when the program is decomposed."""

    def network(x: Tensor, weights: list[Tensor], states: list[Tensor], seed: Tensor | None, *settings: Any) -> tuple[Any, ...]:
        count = len(Settings._fields)
        net, keep, sequences = Settings(*settings[:count]), settings[count], settings[count + 1 :]
        if any(t is not None for t in sequences):
            raise UnsupportedError(onnx_node.NO_SEQUENCES)
        if weights[1].dim() != 2:
            raise UnsupportedError("ONNX has no operator for an ensemble (vmap over weights): export its models one by one")
        if net.dropped:
            raise UnsupportedError("ONNX has no operator for this dropout between layers: export model.eval()")
        outputs: list[Tensor] = []
        between: Any = lambda y, _: outputs.append(y) or y  # type: ignore[func-returns-value]  # noqa: E731
        y, last = onnx_node.network(x, weights, tuple(states), net, between)
        return y, list(last), [torch.stack([*outputs, y])] if keep and outputs else []

    def matmul(a: Tensor, b: Tensor, precision: str | None) -> Tensor:
        return a @ b  # the runtime decides the precision, as it does of its operators

    return {torch.ops.rnn_triton.forward.default: network, torch.ops.rnn_triton.matmul.default: matmul}
