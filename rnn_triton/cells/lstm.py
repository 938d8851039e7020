"""torch.nn.LSTM's cell: c_t = f c_{t-1} + i g, h_t = o tanh(c_t), i, f, o = sigmoid of their pre-activations, g = tanh of its."""

from __future__ import annotations

import torch

from ..kernels import cells
from .cell import Cell, Onnx, Tensors, register


def _step(a: Tensors, states: Tensors, vectors: Tensors) -> Tensors:
    i, f, o = (torch.sigmoid(a[gate]) for gate in (0, 1, 3))
    c = f * states[1] + i * torch.tanh(a[2])
    return o * torch.tanh(c), c


LSTM = register(
    Cell(
        name="lstm",
        gates=("i", "f", "g", "o"),
        states=("h", "c"),
        carried=("c",),
        kept=6,
        step=_step,
        forward=cells.lstm_forward,
        backward=cells.lstm_backward,
        special=8,  # three sigmoids and two of tanh
        aten="lstm",
        onnx=Onnx("LSTM", ("Sigmoid", "Tanh", "Tanh"), ("i", "o", "f", "g")),
    )
)
