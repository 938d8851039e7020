"""The operator's arguments for a layer, from (x, w_ih, w_hh, b_ih, b_hh, h0), and layers of every cell."""

import torch

from rnn_triton import cells
from rnn_triton.cells import reference
from rnn_triton.cells.elman import ELMAN
from rnn_triton.op import autograd, network
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


class Layer:
    """A layer of a cell: `ours` by the operator and `theirs` by the reference are functions of what `problem` returns, and give
    (y, *last states)"""

    def __init__(self, cell, reverse=False):
        self.cell, self.reverse = cells.named(cell), reverse

    def apart(self, tensors):
        """(x, w_ih, w_hh, b_ih, b_hh), states, vectors"""
        number = 5 + len(self.cell.states)
        states = tensors[5:number]
        return tensors[:5], () if all(s is None for s in states) else tuple(states), tuple(tensors[number:])

    def arguments(self, tensors):
        """(x, weights, states, seed, *settings) of the forward op"""
        (x, *weights), states, vectors = self.apart(tensors)
        there = [w is not None for w in weights[2:]]
        precision = "ieee" if x.dtype is torch.float32 else None
        net = Settings(*there, self.cell.name, "reverse" if self.reverse else "forward", precision)
        return x, [*[w for w in weights if w is not None], *vectors], list(states), None, *net

    def ours(self, *tensors):
        x, weights, states, seed, *net = self.arguments(tensors)
        y, last = autograd.network(x, weights, tuple(states), seed, Settings(*net))
        return y, *last

    def theirs(self, *tensors):
        data, states, vectors = self.apart(tensors)
        y, last = reference.recurrence(*data, states, self.cell, self.reverse, vectors)
        return y, *last


CELLS = ["elman_tanh", "gru", "lstm", "leaky_tanh"]
