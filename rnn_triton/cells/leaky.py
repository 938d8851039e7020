"""Leaky cells: h_t = h_{t-1} + leak (f(a_t) - h_{t-1}), f = tanh or relu, with a leak in (0, 1] of each hidden unit."""

from __future__ import annotations

from typing import Any

import torch

from ..kernels import cells
from .cell import Cell, Tensors, register


def _tanh(a: Tensors, states: Tensors, vectors: Tensors) -> Tensors:
    return (states[0] + vectors[0] * (torch.tanh(a[0]) - states[0]),)


def _relu(a: Tensors, states: Tensors, vectors: Tensors) -> Tensors:
    return (states[0] + vectors[0] * (torch.relu(a[0]) - states[0]),)


def _leaky(nonlinearity: str, special: int, step: Any, forward: Any, backward: Any) -> Cell:
    return register(
        Cell(
            name=f"leaky_{nonlinearity}",
            gates=("a",),
            states=("h",),
            carried=("h",),
            vectors=("leak",),
            kept=2,
            step=step,
            forward=forward,
            backward=backward,
            special=special,
        )
    )


LEAKY = {  # by torch's name of f, as ELMAN
    "tanh": _leaky("tanh", 1, _tanh, cells.leaky_tanh_forward, cells.leaky_tanh_backward),
    "relu": _leaky("relu", 0, _relu, cells.leaky_relu_forward, cells.leaky_relu_backward),
}
