"""Leaky cells: h_t = h_{t-1} + leak (f(a_t) - h_{t-1}), f = tanh or relu, with a leak in (0, 1] of each hidden unit."""

from __future__ import annotations

import torch

from ..kernels import cells
from .cell import Cell, Tensors, register


def _tanh(a: Tensors, states: Tensors, vectors: Tensors) -> Tensors:
    return (states[0] + vectors[0] * (torch.tanh(a[0]) - states[0]),)


def _relu(a: Tensors, states: Tensors, vectors: Tensors) -> Tensors:
    return (states[0] + vectors[0] * (torch.relu(a[0]) - states[0]),)


LEAKY = {  # by torch's name of f, as ELMAN
    "tanh": register(
        Cell(
            name="leaky_tanh",
            gates=("a",),
            states=("h",),
            carried=("h",),
            vectors=("leak",),
            kept=2,
            step=_tanh,
            forward=cells.leaky_tanh_forward,
            backward=cells.leaky_tanh_backward,
            special=1,
        )
    ),
    "relu": register(
        Cell(
            name="leaky_relu",
            gates=("a",),
            states=("h",),
            carried=("h",),
            vectors=("leak",),
            kept=2,
            step=_relu,
            forward=cells.leaky_relu_forward,
            backward=cells.leaky_relu_backward,
            special=0,
        )
    ),
}
