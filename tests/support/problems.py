"""Layers to test with: arguments, cotangents, gradients."""

import torch

from rnn_triton import cells


def problem(T, B, I, H, *, bias=(True, True), h0=True, dtype=torch.float64, seed=0, signal=1.0, cell="elman_tanh"):
    """[x, w_ih, w_hh, b_ih, b_hh, h0], leaves that require grad; of a cell with more states these follow h0, and its vectors follow
    them.  Weights are of torch.nn.RNN's size.  `signal`: the size of all others, and thereby of the states."""
    of = cells.named(cell)
    rows = len(of.gates) * H
    g = torch.Generator().manual_seed(seed)

    def weight(*shape, size=1.0):
        value = torch.rand(*shape, generator=g, dtype=torch.float64) * 2 - 1
        return value.div(H**0.5).mul(size).to(dtype).requires_grad_()

    def data(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64).mul(signal).to(dtype).requires_grad_()

    return [
        data(T, B, I),
        weight(rows, I),
        weight(rows, H),
        weight(rows, size=signal) if bias[0] else None,
        weight(rows, size=signal) if bias[1] else None,
        *[data(B, H) if h0 else None for _ in of.states],
        *[(weight(H).detach().abs() + 0.1).requires_grad_() for _ in of.vectors],
    ]


# Much less than the usual 1: a sum with 1 leaves nothing of it, or next to nothing.  (fp16 has no numbers as small as 1e-7.)
SMALL_SIGNALS = {"bf16": 1e-7, "fp16": 1e-5, "tf32": 1e-7, "tf32x3": 1e-7, "ieee": 1e-7, "fp64": 1e-7}


def state_roundoff(kind, unit, signal):
    """What rounding a state of this size costs, relatively: `unit`, but for fp16's subnormal numbers, multiples of 2^-24"""
    return max(unit, 2.0**-25 / signal) if kind == "fp16" else unit


def like(tensors, seed=1):
    """A standard normal tensor (None for None) of each one's shape, dtype and device."""
    g = torch.Generator().manual_seed(seed)
    return [
        None if t is None else torch.randn(t.shape, generator=g, dtype=torch.float64).to(t) for t in tensors
    ]


def gradients(outputs, cotangents, tensors, **options):
    """Of sum(output * cotangent), None leaving an output out, for the tensors that require grad."""
    loss = sum((o * c).sum() for o, c in zip(outputs, cotangents, strict=True) if c is not None)
    return torch.autograd.grad(loss, [t for t in tensors if t is not None and t.requires_grad], **options)


def over_present(function, tensors):
    """`function` of all `tensors` as a function of those that are not None, and those."""
    present = [i for i, t in enumerate(tensors) if t is not None]

    def reduced(*given):
        arguments = [None] * len(tensors)
        for i, t in zip(present, given, strict=True):
            arguments[i] = t
        return function(*arguments)

    return reduced, tuple(tensors[i] for i in present)
