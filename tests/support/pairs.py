"""Our modules beside torch.nn's, with the same weights."""

import torch
from torch import nn

import rnn_triton

from .problems import gradients, like

I, H, T, B = 3, 4, 5, 2
# what is more than one layer in one direction
STACKS = [dict(num_layers=3), dict(bidirectional=True), dict(num_layers=2, bidirectional=True, bias=False)]
# the modules that stand in for torch's, as arguments of `pair`
MODULES = [dict(name="RNN"), dict(name="GRU"), dict(name="LSTM"), dict(name="LSTM", proj_size=3)]
IDS = ["RNN", "GRU", "LSTM", "projected"]
# fp64: 2^-53 a rounding, T * sqrt(I + H) < 15 of them deep, on values up to about 10, and a decade to spare
TOLERANCE = dict(rtol=0, atol=10 * 15 * 10 * 2.0**-53)


def pair(*arguments, name="RNN", dtype=torch.float64, **options):
    """Ours and torch's module of this name, with the same weights."""
    ours = getattr(rnn_triton, name)(*(arguments or (I, H)), dtype=dtype, **options)
    theirs = getattr(nn, name)(*(arguments or (I, H)), dtype=dtype, **options)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def state(module, *batch, seed=1):
    """hx for a module, which may be torch's."""
    number = module.num_layers * (2 if module.bidirectional else 1)
    h = data(number, *batch, module.proj_size or module.hidden_size, seed=seed)
    return (h, data(number, *batch, module.hidden_size, seed=seed + 100)) if module.mode == "LSTM" else h


def data(*shape, dtype=torch.float64, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def outcome(call):
    """What a call raises, as (class, message), its results otherwise."""
    try:
        return call()
    except Exception as error:
        return type(error), str(error)


def flat(results):
    """The tensors in results or arguments, None left out."""
    if results is None or isinstance(results, torch.Tensor):
        return [] if results is None else [results]
    return [t for part in results for t in flat(part)]


def same(ours, theirs, x, hx=None):
    """Outputs, last states and all gradients."""
    x = x.detach().requires_grad_()
    states = [t.detach().requires_grad_() for t in flat(hx)]
    arguments = [x, *([tuple(states)] if isinstance(hx, tuple) else states)]
    results = []
    for module in (ours, theirs):
        outputs = flat(module(*arguments))
        results.append((outputs, gradients(outputs, like(outputs), [x, *states, *module.parameters()])))
    torch.testing.assert_close(*results, **TOLERANCE)
