"""The cells of torch.nn.RNN: h_t = f(a_t), f = tanh or relu."""

from __future__ import annotations

import torch

from ..kernels import cells
from .cell import Cell, Onnx, Tensors, register


def _tanh(a: Tensors, states: Tensors, vectors: Tensors) -> Tensors:
    return (torch.tanh(a[0]),)


def _relu(a: Tensors, states: Tensors, vectors: Tensors) -> Tensors:
    return (torch.relu(a[0]),)


ELMAN = {  # by torch's name of f, its argument `nonlinearity`
    "tanh": register(
        Cell(
            name="elman_tanh",
            gates=("a",),
            states=("h",),
            reads_y=True,
            step=_tanh,
            forward=cells.elman_tanh_forward,
            backward=cells.elman_tanh_backward,
            special=1,
            aten="rnn_tanh",
            onnx=Onnx("RNN", ("Tanh",)),
        )
    ),
    "relu": register(
        Cell(
            name="elman_relu",
            gates=("a",),
            states=("h",),
            reads_y=True,
            step=_relu,
            forward=cells.elman_relu_forward,
            backward=cells.elman_relu_backward,
            special=0,
            aten="rnn_relu",
            onnx=Onnx("RNN", ("Relu",)),
        )
    ),
}
