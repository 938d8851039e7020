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
    carried    the same for the next step
    kept       of a forward cell: what its backward cell gets, rounded to the storage dtype

How many there are of each says the cell's description, rnn_triton/cells/cell.py.  One CTA (one_cta.py) runs any, alone in a launch;
groups of CTAs, several recurrences, ensembles and single steps run cells of one pre-activation, with nothing carried, kept or of
their own.
"""

import triton
import triton.language as tl

from .activations import relu, tanh


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
