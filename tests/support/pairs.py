"""Our modules beside torch.nn's, with the same weights."""

import torch
from torch import nn

import rnn_triton

from .problems import gradients, like

I, H, T, B = 3, 4, 5, 2
# what is more than one layer in one direction
STACKS = [dict(num_layers=3), dict(bidirectional=True), dict(num_layers=2, bidirectional=True, bias=False)]
# fp64: 2^-53 a rounding, T * sqrt(I + H) < 15 of them deep, on values up to about 10, and a decade to spare
TOLERANCE = dict(rtol=0, atol=10 * 15 * 10 * 2.0**-53)


def pair(*arguments, dtype=torch.float64, **options):
    """Ours and torch's, with the same weights."""
    ours = rnn_triton.RNN(*(arguments or (I, H)), dtype=dtype, **options)
    theirs = nn.RNN(*(arguments or (I, H)), dtype=dtype, **options)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def data(*shape, dtype=torch.float64, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def outcome(call):
    """What a call raises, as (class, message), its results otherwise."""
    try:
        return call()
    except Exception as error:
        return type(error), str(error)


def same(ours, theirs, x, hx=None):
    """Outputs, h_n and all gradients."""
    arguments = [t.detach().requires_grad_() for t in (x, hx) if t is not None]
    results = []
    for module in (ours, theirs):
        outputs = module(*arguments)
        results.append((outputs, gradients(outputs, like(outputs), [*arguments, *module.parameters()])))
    torch.testing.assert_close(*results, **TOLERANCE)
