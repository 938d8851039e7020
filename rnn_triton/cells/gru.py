"""torch.nn.GRU's cell: h_t = n + z (h_{t-1} - n), r, z = sigmoid(a_r), sigmoid(a_z), n = tanh(W_in x + b_in + r (W_hn h + b_hn))."""

from __future__ import annotations

import torch

from ..kernels import cells
from .cell import Cell, Onnx, Tensors, register


def _step(a: Tensors, states: Tensors, vectors: Tensors) -> Tensors:
    r, z, n_of_h, n_of_x = a
    n = torch.tanh(n_of_x + torch.sigmoid(r) * n_of_h)
    return (n + torch.sigmoid(z) * (states[0] - n),)


GRU = register(
    Cell(
        name="gru",
        gates=("r", "z", "n"),
        states=("h",),
        split=("n",),
        carried=("h",),
        kept=5,
        step=_step,
        forward=cells.gru_forward,
        backward=cells.gru_backward,
        special=5,  # two sigmoids and a tanh
        aten="gru",
        onnx=Onnx("GRU", ("Sigmoid", "Tanh"), ("z", "r", "n"), (("linear_before_reset", 1),)),
    )
)
