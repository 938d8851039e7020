"""A cell of a user's own: an LSTM whose gates look at c through peepholes, vectors of its own."""

import torch
import triton
import triton.language as tl

from rnn_triton.cells import Cell
from rnn_triton.kernels.activations import sigmoid, tanh


@triton.jit
def forward(a, carried, saved, vectors, ACCURACY: tl.constexpr):
    before = carried[0]
    i = sigmoid(a[0] + vectors[0] * before, ACCURACY)
    f = sigmoid(a[1] + vectors[1] * before, ACCURACY)
    g = tanh(a[2], ACCURACY)
    c = f * before + i * g
    o = sigmoid(a[3] + vectors[2] * c, ACCURACY)
    tanh_c = tanh(c, ACCURACY)
    of_gates = (g * i * (1.0 - i), before * f * (1.0 - f), i * (1.0 - g * g), tanh_c * o * (1.0 - o))
    return (o * tanh_c,), (c,), of_gates + (o * (1.0 - tanh_c * tanh_c), f, before, c)


@triton.jit
def backward(a, carried, saved, vectors, ACCURACY: tl.constexpr):
    dh = a[0]
    do = dh * saved[3]
    dc = carried[0] + dh * saved[4] + do * vectors[2]
    di = dc * saved[0]
    df = dc * saved[1]
    of_vectors = (carried[1] + di * saved[6], carried[2] + df * saved[6], carried[3] + do * saved[7])
    return (di, df, dc * saved[2], do), (dc * saved[5] + di * vectors[0] + df * vectors[1],) + of_vectors, ()


def step(a, states, vectors):
    i, f = (torch.sigmoid(a[n] + vectors[n] * states[1]) for n in (0, 1))
    c = f * states[1] + i * torch.tanh(a[2])
    return torch.sigmoid(a[3] + vectors[2] * c) * torch.tanh(c), c


CELL = Cell(
    name="peepholes", gates=("i", "f", "g", "o"), states=("h", "c"), carried=("c",), vectors=("p_i", "p_f", "p_o"), kept=8,
    step=step, forward=forward, backward=backward, special=8,
)  # fmt: skip
