"""Cells: what a recurrent layer does elementwise, once per step.  The engine calls

    published, carried, kept = CELL.step(a, carried, saved, vectors, CELL.accuracy)

Everything but the accuracy (activations.py) is a tuple of fp32 tiles (fp64 in fp64) of one shape, that of the hidden units and
batch rows at hand; an empty tuple where there is nothing.  What a cell does may not depend on the shape, nor on which units and
rows these are: an engine may call it for parts of a tile, one after the other.

    a          the complete pre-activations, each W_rec s + W_in x_t + u_t of the gates that facts.Routes adds up in it.  Of a backward
               cell one: dh_t, what W_hh^T makes of da_{t+1}, + dy_t
    carried    what the step before left to this one: elementwise state, never rounded, never exchanged
    saved      of a backward cell: y_t, if it reads it, and behind it what the forward cell kept of this step
    vectors    parameters of the cell itself, a value a hidden unit
    published  what the launch writes to out and rounds to the storage dtype.  Of a forward cell one: h_t.  Of a backward cell the
               gradients of the pre-activations; W_hh's gates have the first of them, which are exchanged
    carried    the same for the next step.  Behind a backward cell's own ones come the gradients of vectors, which start at zero, and to
               which it adds what this step contributes
    kept       of a forward cell: what its backward cell gets, rounded to the storage dtype

How many there are of each says the cell's description, rnn_triton/cells/cell.py.  Every kernel runs any cell; how large a layer of it
fits on chip says rnn_triton/plan/candidates.py.
"""

import triton
import triton.language as tl

from .activations import relu, sigmoid, tanh


@triton.jit
def elman_tanh_forward(a, carried, saved, vectors, ACCURACY: tl.constexpr):
    return (tanh(a[0], ACCURACY),), (), ()


@triton.jit
def elman_tanh_backward(a, carried, saved, vectors, ACCURACY: tl.constexpr):
    y = saved[0]
    return (a[0] * (1.0 - y * y),), (), ()  # tanh' = 1 - tanh^2


@triton.jit
def elman_relu_forward(a, carried, saved, vectors, ACCURACY: tl.constexpr):
    return (relu(a[0]),), (), ()


@triton.jit
def elman_relu_backward(a, carried, saved, vectors, ACCURACY: tl.constexpr):
    # torch's threshold_backward: no gradient where y <= 0; a NaN output passes it on
    return (tl.where(saved[0] <= 0.0, 0.0, a[0]),), (), ()


# What the forward cells below keep are derivatives: a backward step then only multiplies, and each of them is rounded once.  1 - n * n
# of an n near 1 that was rounded to 16 bits would be mostly rounding error.


@triton.jit
def _leaky_forward(f, df, carried, vectors):
    # carried: h before it was rounded, which at a leak of 0.02 would lose four times what it does at 1
    change = f - carried[0]
    h = carried[0] + vectors[0] * change
    return (h,), (h,), (vectors[0] * df, change)


@triton.jit
def _leaky_backward(a, carried, saved, vectors):
    dh = a[0] + carried[0]
    return (dh * saved[0],), ((1.0 - vectors[0]) * dh, carried[1] + dh * saved[1]), ()


@triton.jit
def leaky_tanh_forward(a, carried, saved, vectors, ACCURACY: tl.constexpr):
    f = tanh(a[0], ACCURACY)
    return _leaky_forward(f, 1.0 - f * f, carried, vectors)


@triton.jit
def leaky_tanh_backward(a, carried, saved, vectors, ACCURACY: tl.constexpr):
    return _leaky_backward(a, carried, saved, vectors)


@triton.jit
def leaky_relu_forward(a, carried, saved, vectors, ACCURACY: tl.constexpr):
    f = relu(a[0])
    return _leaky_forward(f, tl.where(f <= 0.0, 0.0, 1.0), carried, vectors)


@triton.jit
def leaky_relu_backward(a, carried, saved, vectors, ACCURACY: tl.constexpr):
    return _leaky_backward(a, carried, saved, vectors)


@triton.jit
def gru_forward(a, carried, saved, vectors, ACCURACY: tl.constexpr):
    # parts: r, z, and n in two, W_hn h + b_hn and W_in x + b_in; carried: h before it was rounded
    r = sigmoid(a[0], ACCURACY)
    z = sigmoid(a[1], ACCURACY)
    n = tanh(a[3] + r * a[2], ACCURACY)
    h = n + z * (carried[0] - n)
    dn = (1.0 - z) * (1.0 - n * n)
    return (h,), (h,), (dn, r, dn * a[2] * r * (1.0 - r), (carried[0] - n) * z * (1.0 - z), z)


@triton.jit
def gru_backward(a, carried, saved, vectors, ACCURACY: tl.constexpr):
    # publishes the gradients of W_hn h + b_hn, r, z and W_in x + b_in
    dh = a[0] + carried[0]
    dn = dh * saved[0]
    return (dn * saved[1], dh * saved[2], dh * saved[3], dn), (dh * saved[4],), ()


@triton.jit
def lstm_forward(a, carried, saved, vectors, ACCURACY: tl.constexpr):
    # parts: i, f, g, o; carried: c
    i = sigmoid(a[0], ACCURACY)
    f = sigmoid(a[1], ACCURACY)
    g = tanh(a[2], ACCURACY)
    o = sigmoid(a[3], ACCURACY)
    c = f * carried[0] + i * g
    tanh_c = tanh(c, ACCURACY)
    kept = (
        g * i * (1.0 - i), carried[0] * f * (1.0 - f), i * (1.0 - g * g), tanh_c * o * (1.0 - o),
        o * (1.0 - tanh_c * tanh_c), f,
    )  # fmt: skip
    return (o * tanh_c,), (c,), kept


@triton.jit
def lstm_backward(a, carried, saved, vectors, ACCURACY: tl.constexpr):
    # carried: what reaches c of this step from the next one; publishes the gradients of i, f, g, o
    dh = a[0]
    dc = carried[0] + dh * saved[4]
    return (dc * saved[0], dc * saved[1], dc * saved[2], dh * saved[3]), (dc * saved[5],), ()
