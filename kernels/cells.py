"""Cell functions: what a recurrent layer does elementwise, once per step.  The engine calls

    published = CELL.step(a, saved, CELL.accuracy)

with the complete pre-activation tile a = W_rec s + W_in x_t + u_t (fp32; fp64 for fp64), `saved` the tile of the
saved stream at this step (0.0 where the cell has none), and publishes the result as the state of the next step.
A backward cell publishes da_t, the gradient of the pre-activation; its a is dh_t = W_hh^T da_{t+1} + dy_t.
"""

import triton
import triton.language as tl

from .activations import relu, tanh


@triton.jit
def elman_tanh_forward(a, saved, ACCURACY: tl.constexpr):
    return tanh(a, ACCURACY)


@triton.jit
def elman_tanh_backward(a, saved, ACCURACY: tl.constexpr):
    return a * (1.0 - saved * saved)  # saved = y_t, tanh' = 1 - tanh^2


@triton.jit
def elman_relu_forward(a, saved, ACCURACY: tl.constexpr):
    return relu(a)


@triton.jit
def elman_relu_backward(a, saved, ACCURACY: tl.constexpr):
    # torch's threshold_backward: no gradient where y <= 0; a NaN output passes it on
    return tl.where(saved <= 0.0, 0.0, a)
