"""reference.py against torch.nn.RNN in fp64, values and gradients."""

import itertools

import pytest
import torch
from support.problems import gradients, like, problem

from rnn_triton import cells
from rnn_triton.cells import reference

# fp64: 2^-53 a rounding, sqrt(I+H) * T < 30 of them deep, on values up to about 10, and a decade to spare
TOLERANCE = dict(rtol=0, atol=10 * 30 * 10 * 2.0**-53)

SHAPES = [(1, 1, 1, 1), (1, 3, 4, 5), (4, 1, 5, 7), (5, 3, 7, 4), (6, 2, 3, 17)]
kinds = pytest.mark.parametrize(
    "nonlinearity, reverse", list(itertools.product(["tanh", "relu"], [False, True]))
)


def of_nn(x, w_ih, w_hh, b_ih, b_hh, h0, nonlinearity, reverse):
    """The same from torch.nn.RNN; in reverse, from the second direction of a bidirectional one."""
    H = w_hh.shape[0]
    suffix = "_reverse" if reverse else ""
    weights = dict(weight_ih=w_ih, weight_hh=w_hh)
    weights |= {
        name: x.new_zeros(H) if b is None else b for name, b in (("bias_ih", b_ih), ("bias_hh", b_hh))
    }
    module = torch.nn.RNN(x.shape[2], H, nonlinearity=nonlinearity, bidirectional=reverse, dtype=x.dtype)
    h0 = x.new_zeros(x.shape[1], H) if h0 is None else h0
    hx = torch.stack([torch.zeros_like(h0), h0]) if reverse else h0.unsqueeze(0)
    weights = {f"{name}_l0{suffix}": t for name, t in weights.items()}
    output, h_n = torch.func.functional_call(module, weights, (x, hx))
    return output[..., -H:], h_n[-1]


@kinds
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bias, h0", [((True, True), True), ((False, False), False), ((True, False), True)])
def test_rnn_and_its_autograd_match_torch(shape, nonlinearity, reverse, bias, h0):
    tensors = problem(*shape, bias=bias, h0=h0)
    ours = reference.rnn(*tensors, nonlinearity, reverse)
    theirs = of_nn(*tensors, nonlinearity, reverse)
    torch.testing.assert_close(ours, theirs, **TOLERANCE)
    cotangents = like(ours)
    torch.testing.assert_close(
        gradients(ours, cotangents, tensors), gradients(theirs, cotangents, tensors), **TOLERANCE
    )


@kinds
def test_gradcheck(nonlinearity, reverse):
    assert torch.autograd.gradcheck(lambda *t: reference.rnn(*t, nonlinearity, reverse), problem(3, 2, 3, 4))


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("states", [False, True])
@pytest.mark.parametrize("name, module", [("gru", torch.nn.GRU), ("lstm", torch.nn.LSTM)])
def test_cells_with_gates_and_their_autograd_match_torch(name, module, states, reverse):
    T, B, I, H = 5, 3, 7, 4
    x, *weights_and_states = problem(T, B, I, H, h0=states, cell=name)
    weights, given = weights_and_states[:4], tuple(t for t in weights_and_states[4:] if t is not None)
    net = module(I, H, dtype=torch.float64)
    y, last = reference.recurrence(x, *weights, given, cells.named(name), reverse)
    hx = None if not given else tuple(t[None] for t in given) if len(given) > 1 else given[0][None]
    names = dict(zip([n for n, _ in net.named_parameters()], weights))
    expected, after = torch.func.functional_call(net, names, (x.flip(0) if reverse else x, hx))
    theirs = [expected.flip(0) if reverse else expected, *[t[0] for t in (after if isinstance(after, tuple) else (after,))]]
    torch.testing.assert_close([y, *last], theirs, **TOLERANCE)
    cotangents, leaves = like(theirs), [x, *weights, *given]
    found, wanted = (gradients(o, cotangents, leaves) for o in ([y, *last], theirs))
    torch.testing.assert_close(found, wanted, **TOLERANCE)


def test_relu_at_zero_and_nan_as_torch():
    a = torch.tensor([[[0.0]], [[float("nan")]], [[-1.0]], [[1.0]]], dtype=torch.float64, requires_grad=True)
    expected = torch.autograd.grad(torch.relu(a).sum(), a)[0]
    one, zero = a.new_ones(1, 1), a.new_zeros(1, 1)
    dx = [torch.autograd.grad(reference.rnn(t, one, zero, None, None, None, "relu")[0].sum(), t)[0] for t in a.unsqueeze(1)]
    assert torch.equal(torch.cat(dx), expected)
