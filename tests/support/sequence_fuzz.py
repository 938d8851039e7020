"""Random calls of the modules with lengths and resets, beside the reference layer by layer: results and gradients, with NaN beyond each end.

A case is all that a number says, as in fuzz.py.  All are in fp64."""

import random

import torch

import rnn_triton
from rnn_triton.cells import reference
from rnn_triton.cells.sequences import Sequences

from .problems import like

NAMES = ("RNN", "GRU", "LSTM", "LeakyRNN")
# fp64: 2^-53 a rounding, up to 3 layers of 7 steps of sums of up to 48 terms deep, and a decade to spare; relative to the largest value
TOLERANCE = 10 * 3 * 7 * 48 * 2.0**-53


def check(number, kernels=False):
    """Raises AssertionError, with the line that runs the case alone, unless the module computes what the reference does."""
    rng = random.Random(number)
    generator = torch.Generator().manual_seed(number)
    T, B, I, heads = rng.randint(1, 7), rng.randint(1, 9), rng.randint(1, 5), rng.choice((1, 1, 1, 2, 3))
    H, name = heads * rng.randint(1, 4), rng.choice(NAMES)
    options = dict(num_layers=rng.randint(1, 2 if kernels else 3), bidirectional=rng.random() < 0.4, bias=rng.random() < 0.7, heads=heads)
    options |= dict(batch_first=rng.random() < 0.3) | (dict(leak=0.3, learn_leak=rng.random() < 0.5) if name == "LeakyRNN" else {})
    options |= dict(recompute=rng.random() < 0.3) if name != "RNN" else dict(nonlinearity=rng.choice(("tanh", "relu")))
    if name == "LSTM" and heads == 1 and rng.random() < 0.4 and H > 1:
        options |= dict(proj_size=rng.randint(1, H - 1))
    torch.manual_seed(number)
    module = getattr(rnn_triton, name)(I, H, dtype=torch.float64, **options)

    def normal(*shape):
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    def states():
        sizes = [module.proj_size or H, H][: len(module._cell.states)]
        return [normal(len(module.all_weights), B, size).requires_grad_() for size in sizes]

    lengths = torch.tensor([rng.choice((0, T, rng.randint(0, T))) for _ in range(B)]) if rng.random() < 0.6 else None
    reset = torch.rand(T, B, generator=generator) < 0.4 if lengths is None or rng.random() < 0.5 else None
    hx = states() if rng.random() < 0.5 else []
    anew = states() if reset is not None and rng.random() < 0.5 else []
    beyond = torch.zeros(T, B, 1, dtype=torch.bool) if lengths is None else ~Sequences(lengths).live(T).unsqueeze(2)
    x = normal(T, B, I).masked_fill(beyond, float("nan")).requires_grad_()
    leaves = [x, *hx, *anew, *module.parameters()]

    one = lambda some: None if not some else some[0] if len(some) == 1 else tuple(some)  # noqa: E731
    turned = lambda t: t.transpose(0, 1) if t is not None and module.batch_first else t  # noqa: E731
    y, last = module(turned(x), one(hx), lengths=lengths, reset=turned(reset), reset_state=one(anew))
    results = [turned(y), *(last if isinstance(last, tuple) else (last,))]
    expected = by_reference(module, x, hx, Sequences(lengths, reset, tuple(anew)))
    cotangents = like(expected)
    dirty = [cotangents[0].masked_fill(beyond, float("nan")), *cotangents[1:]]
    how = dict(allow_unused=True, materialize_grads=True)
    found = [*results, *torch.autograd.grad(results, leaves, dirty, **how)]
    wanted = [*expected, *torch.autograd.grad(expected, leaves, cotangents, **how)]
    for n, (a, b) in enumerate(zip(found, wanted, strict=True)):
        error = (a - b).abs().max().item() if a.shape == b.shape else float("nan")
        if not error <= TOLERANCE * max(1.0, b.abs().max().item()):
            call = f"python -c 'from support import sequence_fuzz; sequence_fuzz.check({number}, {kernels})'"
            raise AssertionError(f"number {n} differs by {error:.2g}: {module}, lengths {lengths is not None}, reset {reset is not None}\n{call}")


def by_reference(module, x, hx, sequences):
    """[y, *last states] by plain torch, one layer, direction and head after the other."""
    lasts, directions = [], 1 + module.bidirectional
    weights = module._weights()
    count = len(weights) // len(module.all_weights)
    for layer in range(module.num_layers):
        ys = []
        for n in range(layer * directions, (layer + 1) * directions):
            of_one = sequences._replace(restart=tuple(s[n] for s in sequences.restart))
            y, last = _layer(module, x, weights[n * count :][:count], tuple(s[n] for s in hx), of_one, n % directions == 1)
            ys.append(y)
            lasts.append(last)
        x = torch.cat(ys, -1)
    return [x, *map(torch.stack, zip(*lasts))]


def _layer(module, x, weights, states, sequences, reverse):
    w_ih, w_hh, *others = weights
    biases, others = (others[:2], others[2:]) if module.bias else ((None, None), others)
    if module.proj_size:
        return _projected(x, w_ih, w_hh, *biases, *others, states, sequences, reverse)
    heads = module.heads
    if heads == 1:
        return reference.recurrence(x, w_ih, w_hh, *biases, states, module._cell, reverse, tuple(others), sequences)
    ys, lasts = [], []
    for n in range(heads):
        part = lambda t, dim=0: None if t is None else t.chunk(heads, dim)[n]  # noqa: B023, E731
        of_head = sequences._replace(restart=tuple(part(s, 1) for s in sequences.restart))
        first, vectors = tuple(part(s, 1) for s in states), tuple(map(part, others))
        y, last = reference.recurrence(x, part(w_ih), w_hh[n], *map(part, biases), first, module._cell, reverse, vectors, of_head)
        ys.append(y)
        lasts.append(last)
    return torch.cat(ys, -1), tuple(torch.cat(parts, -1) for parts in zip(*lasts))


def _projected(x, w_ih, w_hh, b_ih, b_hh, w_hr, states, sequences, reverse):
    """An LSTM whose output is projected, step by step."""
    T, B, _ = x.shape
    zeros = x.new_zeros(B, w_hr.shape[0]), x.new_zeros(B, w_hr.shape[1])
    now, anew = states or zeros, sequences.restart or zeros
    live, cuts, ys = sequences.live(T), sequences.cuts(T, reverse), {}
    chosen = lambda rows, some, rest: tuple(torch.where(rows.unsqueeze(1), a, b) for a, b in zip(some, rest))  # noqa: E731
    for t in range(T - 1, -1, -1) if reverse else range(T):
        there = torch.ones(B, dtype=torch.bool) if live is None else live[t]
        now = now if cuts is None else chosen(cuts[t], anew, now)
        bias = 0 if b_ih is None else b_ih + b_hh
        i, f, g, o = (torch.where(there.unsqueeze(1), x[t], 0) @ w_ih.T + now[0] @ w_hh.T + bias).chunk(4, -1)
        c = f.sigmoid() * now[1] + i.sigmoid() * g.tanh()
        h = (o.sigmoid() * c.tanh()) @ w_hr.T
        now, ys[t] = chosen(there, (h, c), now), torch.where(there.unsqueeze(1), h, 0)
    return torch.stack([ys[t] for t in range(T)]), now
