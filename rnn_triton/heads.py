"""Runs a layer whose W_hh is block-diagonal: each of its N heads of H/N hidden units reads its own units of the state before, and all of x.

A head is a layer of its own on the same x, so the layer is an ensemble of N models that share x: one launch for all heads where one CTA
holds a head's W_hh.  The projections of x are together those of a dense W_ih, multiplication by multiplication.

The rows of w_ih, of biases and of gates lie head by head, and in each head gate by gate, so that a head's are a view:
w_ih[G*H,I], w_hh[N,G*H/N,H/N], b_ih[G*H], b_hh[G*H], vectors and states [..,H].
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .cells.sequences import Sequences
from .op import autograd
from .op.layers import Settings, States


def check(heads: int, hidden_size: int, proj_size: int) -> None:
    """Raises ValueError unless a layer of hidden_size units, projected to proj_size, can have so many heads."""
    if isinstance(heads, bool) or not isinstance(heads, int) or heads < 1 or hidden_size % heads:
        raise ValueError(f"heads must be a positive number that divides hidden_size = {hidden_size}, got {heads!r}")
    if heads > 1 and proj_size:
        raise ValueError(f"heads must be 1 with a proj_size, got heads={heads} and proj_size={proj_size}")


def layer(
    x: Tensor, weights: Sequence[Tensor], states: States, net: Settings, sequences: Sequences, heads: int
) -> tuple[Tensor, States]:
    """Returns y[T,B,H] and the last states of a layer, with the arguments of autograd.network but for the weights, which are as above."""
    weights = [t if n == 1 else t.unflatten(0, (heads, -1)) for n, t in enumerate(weights)]  # all but w_hh
    states, restart = [tuple([t.unflatten(-1, (heads, -1)).movedim(-2, 0) for t in some]) for some in (states, sequences.restart)]
    sequences = sequences._replace(restart=restart) if restart else sequences
    if torch.compiler.is_exporting() or torch.jit.is_tracing():  # one head after the other, as ONNX has no ensembles
        each = []
        for n in range(heads):
            of_head = sequences._replace(restart=tuple([t[n] for t in restart])) if restart else sequences
            each.append(autograd.network(x, [t[n] for t in weights], tuple([t[n] for t in states]), None, net, of_head))
        ys, lasts = zip(*each)
        return torch.cat(ys, -1), tuple([torch.cat(parts, -1) for parts in zip(*lasts)])
    y, last = autograd.network(x, weights, states, None, net, sequences)
    return y.movedim(0, -2).flatten(-2), tuple([t.movedim(0, -2).flatten(-2) for t in last])
