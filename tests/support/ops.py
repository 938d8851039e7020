"""The operator's arguments for a layer, from (x, w_ih, w_hh, b_ih, b_hh, h0)."""

from rnn_triton.cells.elman import ELMAN
from rnn_triton.op import network
from rnn_triton.op.gradients import DB, DH0, DW_HH, DW_IH, DX
from rnn_triton.op.layers import Settings

ALL = [DX | DH0, DW_IH | DW_HH | DB]  # of a layer


def arguments(tensors, nonlinearity="tanh", reverse=False, precision=None):
    """(x, weights, states, seed, *settings)"""
    x, *weights, h0 = tensors
    direction = "reverse" if reverse else "forward"
    net = Settings(weights[2] is not None, weights[3] is not None, ELMAN[nonlinearity].name, direction, precision)
    return x, [w for w in weights if w is not None], [] if h0 is None else [h0], None, *net


def call(x, weights, states, seed, net):
    return network.Call(x, net.layers(weights), tuple(states), seed, net)


def run_forward(*arguments_of_a_layer):
    """(y, hn) of a layer by the forward op's body, from its tensors, nonlinearity, reverse and precision"""
    x, weights, states, seed, *net = arguments(arguments_of_a_layer[:6], *arguments_of_a_layer[6:])
    y, (hn,), _ = call(x, weights, states, seed, Settings(*net)).forward(False)
    return y, hn


def run_backward(tensors, y, dy, dhn, needs=ALL, *options):
    """(dx, dh0, [dw_ih, dw_hh, db]) by the backward op's body"""
    x, weights, states, seed, *net = arguments(tensors, *options)
    dx, (dh0,), dweights = call(x, weights, states, seed, Settings(*net)).backward([y], dy, (dhn,), needs, None)
    return dx, dh0, dweights
