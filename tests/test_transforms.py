"""Derivatives of every order and kind, torch.func, and what training loops do, through the kernels.

By interpreter where there is no GPU, on it where there is one; tests/test_op.py has the same where torch computes.  fp64
kernels against the reference: what differs is the order of sums, so torch's own fp64 tolerance (1e-7) is ample.
"""

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
from support import ops
from support.problems import gradients, like, problem
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import rnn_triton
from rnn_triton.cells import reference
from rnn_triton.launch import gemm, launcher
from rnn_triton.op.gradients import DB, DH0, DW_HH, DX

T, B, I, H = 2, 2, 3, 4
LAYERS = [ops.Layer(cell, reverse) for cell, reverse in
          [("elman_tanh", False), ("elman_relu", False), ("elman_tanh", True), ("gru", False), ("lstm", True), ("leaky_tanh", False)]]  # fmt: skip
layers = pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: layer.cell.name + "-reverse" * layer.reverse)


def tensors_of(device, *, grad=True, **options):
    found = [None if t is None else t.detach().to(device) for t in problem(T, B, I, H, **options)]
    return [None if t is None else t.requires_grad_(grad) for t in found]


def same(transform, *arguments, layer=LAYERS[0]):
    torch.testing.assert_close(transform(layer.ours)(*arguments), transform(layer.theirs)(*arguments))


@pytest.fixture
def launches(monkeypatch):
    """The tensors of every launch, and then the output"""
    seen = []
    run = launcher.Launcher.__call__

    def call(self, tensors, out, scalars):
        seen.append((*tensors, out))
        run(self, tensors, out, scalars)

    monkeypatch.setattr(launcher.Launcher, "__call__", call)
    return seen


@pytest.fixture
def products(monkeypatch):
    """The operands of every GEMM"""
    seen = []
    matmul = gemm.matmul
    monkeypatch.setattr(gemm, "matmul", lambda *a: seen.append(a[:2]) or matmul(*a))
    return seen


# ---- derivatives ---------------------------------------------------------------------------------------------------


def test_backward_in_eval_mode(device):
    """cuDNN: "cudnn RNN backward can only be called in training mode\""""
    net = rnn_triton.RNN(I, H, dtype=torch.float64, device=device)
    x = like([torch.empty(T, B, I, dtype=torch.float64, device=device)])[0]
    found = []
    for mode in (net.train, net.eval):
        net.zero_grad()
        mode()
        y, hn = net(x)
        (y.pow(2).sum() + hn.sum()).backward()
        found.append([p.grad.clone() for p in net.parameters()])
    assert all(map(torch.equal, *found)) and all(g.abs().sum() > 0 for g in found[1])


@layers
@pytest.mark.parametrize("order", [1, 2, 3])
def test_derivatives_of_order(order, layer, device):
    """First, second and third derivatives of a scalar, exact: create_graph all the way"""

    def derivative(function):
        tensors = tensors_of(device, cell=layer.cell.name)
        value = sum(o.pow(3).sum() for o in function(*tensors))
        for _ in range(order - 1):
            value = sum(g.pow(2).sum() for g in torch.autograd.grad(value, tensors, create_graph=True))
        return torch.autograd.grad(value, tensors)

    found, expected = derivative(layer.ours), derivative(layer.theirs)
    for a, e in zip(found, expected, strict=True):  # squares of sums: a thousandfold the unit roundoff an order
        assert (a - e).abs().max() <= 2.0**-53 * 1000**order * e.abs().max()


@pytest.mark.parametrize("bias", ["b_ih", "b_hh"])
def test_second_derivatives_with_one_bias(bias):
    """of a cell whose two biases have gradients of their own, in reverse and in forward mode"""
    x, w_ih, w_hh, b, _, h0 = tensors_of("cpu", cell="gru")

    def loss(b):
        return sum(t.pow(2).sum() for t in rnn_triton.gru(x, w_ih, w_hh, **{bias: b}, h0=h0))

    (first,) = torch.autograd.grad(loss(b), b, create_graph=True)
    (second,) = torch.autograd.grad(first.pow(2).sum() / 2, b)
    v, eps = first.detach(), 1e-5
    along = [torch.func.grad(loss)((b + s * eps * v).detach()) for s in (1, -1)]
    exact = torch.func.jvp(torch.func.grad(loss), (b.detach(),), (v,))[1]
    torch.testing.assert_close(exact, second)  # the Hessian times v, as it is symmetric
    torch.testing.assert_close((along[0] - along[1]) / (2 * eps), second, rtol=1e-5, atol=1e-5 * second.abs().max().item())


def test_a_gradient_penalty_is_not_silently_wrong(device):
    """against finite differences of the first-order gradient alone: nothing is taken from the reference"""
    x, *rest = tensors_of(device)

    def penalty(x):
        (dx,) = torch.autograd.grad(rnn_triton.rnn(x, *rest)[0].pow(2).sum(), x, create_graph=True)
        return dx.pow(2).sum()

    (exact,) = torch.autograd.grad(penalty(x), x)
    direction, eps = like([x], seed=5)[0], 1e-5
    ends = [penalty((x + s * eps * direction).detach().requires_grad_()).item() for s in (1, -1)]
    slope = (ends[0] - ends[1]) / (2 * eps)
    assert abs((exact * direction).sum().item() - slope) < 1e-6 * abs(slope) + 1e-8  # eps^2 and 2^-53 / eps


@layers
def test_forward_mode(layer, device):
    tensors = tensors_of(device, grad=False, cell=layer.cell.name)
    tangents = like(tensors)

    def tangents_of(function):
        with forward_ad.dual_level():
            outputs = function(*map(forward_ad.make_dual, tensors, tangents))
            return [forward_ad.unpack_dual(o).tangent for o in outputs]

    torch.testing.assert_close(tangents_of(layer.ours), tangents_of(layer.theirs))
    same(lambda f: lambda *t: torch.func.jvp(f, t, tuple(tangents)), *tensors, layer=layer)


def test_hessian(device):
    x, w_ih, w_hh, *rest = tensors_of(device, grad=False)

    def scalar(f):
        return lambda w: f(x, w_ih, w, *rest)[0].pow(2).sum()

    for hessian in (
        lambda f: torch.func.hessian(scalar(f)),  # forward over reverse
        lambda f: torch.func.jacrev(torch.func.jacrev(scalar(f))),
        lambda f: lambda w: torch.autograd.functional.hessian(scalar(f), w),
    ):
        same(hessian, w_hh)


def test_jacobians(device):
    tensors = tensors_of(device, grad=False)
    everything = tuple(range(6))
    same(lambda f: torch.func.jacrev(f, argnums=everything), *tensors)
    same(lambda f: torch.func.jacfwd(f, argnums=everything), *tensors)


# ---- torch.func ----------------------------------------------------------------------------------------------------


def test_func_grad(device, launches):
    tensors = tensors_of(device, grad=False)

    def gradient(f):
        return torch.func.grad(lambda *t: f(*t)[0].pow(2).sum(), argnums=tuple(range(6)))

    gradient(rnn_triton.rnn)(*tensors)
    assert len(launches) == 2
    same(gradient, *tensors)
    same(lambda f: torch.func.grad(lambda *t: gradient(f)(*t)[2].pow(2).sum()), *tensors)


@pytest.mark.parametrize("in_dims", [(0, None), (1, 0), (None, 1), (2, 2)])
def test_stacked_inputs_join_the_batch(in_dims, device, launches):
    x, *weights, h0 = tensors_of(device, grad=False)
    given = [t if d is None else torch.stack(like([t] * 5), d) for t, d in zip((x, h0), in_dims)]

    def mapped(f):
        return torch.vmap(lambda x, h0: f(x, *weights, h0), in_dims=in_dims)

    mapped(rnn_triton.rnn)(*given)
    assert len(launches) == 1
    same(mapped, *given)


def test_per_sample_gradients(device, launches, products):
    """One launch each way for all samples, and a GEMM for each gradient"""
    x, *weights, h0 = tensors_of(device, grad=False)
    xs = torch.stack(like([x] * 5))

    def per_sample(f):
        def loss(x, *weights):
            y, hn = f(x, *weights, h0)
            return y.pow(2).sum() + hn.sum()

        return torch.vmap(torch.func.grad(loss, argnums=(1, 2, 3, 4)), in_dims=(0, *[None] * 4))

    per_sample(rnn_triton.rnn)(xs, *weights)
    assert (len(launches), len(products)) == (2, 3)  # dw_ih; dw_hh in two terms
    same(per_sample, xs, *weights)


# ---- graphs --------------------------------------------------------------------------------------------------------


def test_retain_graph(device):
    tensors = tensors_of(device)
    outputs = rnn_triton.rnn(*tensors)
    cotangents = like(outputs)
    first = gradients(outputs, cotangents, tensors, retain_graph=True)
    assert all(map(torch.equal, first, gradients(outputs, cotangents, tensors)))
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        gradients(outputs, cotangents, tensors)


@pytest.mark.parametrize("wanted, count", [((0,), 1), ((1,), 1), ((2,), 2), ((3, 4), 0), ((5,), 1), ((1, 2), 3)])
def test_what_is_frozen_costs_no_gemm(wanted, count, device, products):
    tensors = [t.detach().requires_grad_(i in wanted) for i, t in enumerate(tensors_of(device))]
    outputs, expected = rnn_triton.rnn(*tensors), reference.rnn(*tensors)
    cotangents = like(outputs)
    found = gradients(outputs, cotangents, tensors)
    assert len(products) == count
    torch.testing.assert_close(found, gradients(expected, cotangents, tensors))


@layers
@pytest.mark.parametrize("h0", [False, True])
def test_loss_of_hn_alone(h0, layer, device, launches):
    tensors = tensors_of(device, h0=h0, cell=layer.cell.name)
    (_, hn, *_), (_, expected, *_) = layer.ours(*tensors), layer.theirs(*tensors)
    c = like([hn])
    found = gradients([hn], c, tensors)
    assert launches[1][6] is None  # no tensor of zeros for the gradient of y
    torch.testing.assert_close(found, gradients([expected], c, tensors))


# Of what gradients need, and of what they do not
EDITS = {
    "y": lambda y, hn, t: y.mul_(2),
    "part of y": lambda y, hn, t: y[0].zero_(),
    "y without grad": lambda y, hn, t: y.detach().add_(1),
    "x": lambda y, hn, t: t[0].detach().mul_(2),
    "w_ih": lambda y, hn, t: t[1].detach().mul_(2),
    "w_hh": lambda y, hn, t: t[2].detach().mul_(2),
    "h0": lambda y, hn, t: t[5].detach().mul_(2),
    "bias": lambda y, hn, t: t[3].detach().mul_(2),  # which the gradients of the gradients read
}
HARMLESS = {
    "hn": lambda y, hn, t: hn.mul_(2),
    "a copy of y": lambda y, hn, t: (y * 1).mul_(2),
}


@pytest.mark.parametrize("edit", EDITS)
def test_in_place_edits_of_what_is_saved_are_errors(edit, device):
    tensors = tensors_of(device)
    y, hn = rnn_triton.rnn(*tensors)
    EDITS[edit](y, hn, tensors)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        (y.sum() + hn.sum()).backward()


@pytest.mark.parametrize("edit", HARMLESS)
def test_other_in_place_edits_change_nothing(edit, device):
    def found(function):
        tensors = tensors_of(device)
        y, hn = function(*tensors)
        HARMLESS[edit](y, hn, tensors)
        return torch.autograd.grad(y.pow(2).sum() + hn.pow(2).sum(), tensors)

    apart = lambda *t: [o.clone() for o in reference.rnn(*t)]  # noqa: E731  (whose hn is saved, too)
    torch.testing.assert_close(found(rnn_triton.rnn), found(apart))


def test_in_place_edit_of_a_modules_view(device):
    """output of batch_first is a transposed view of what is saved"""
    net = rnn_triton.RNN(I, H, batch_first=True, dtype=torch.float64, device=device)
    output, _ = net(torch.ones(B, T, I, dtype=torch.float64, device=device))
    torch.relu_(output)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoint(reentrant, device, launches):
    tensors = tensors_of(device)
    outputs = rnn_triton.rnn(*tensors)
    cotangents = like(outputs)
    expected = gradients(outputs, cotangents, tensors)
    launches.clear()
    again = checkpoint(rnn_triton.rnn, *tensors, use_reentrant=reentrant)
    assert len(launches) == 1
    if reentrant:  # torch.autograd.grad is not for it
        torch.autograd.backward(again, cotangents)
        found = [t.grad for t in tensors]
    else:
        found = gradients(again, cotangents, tensors)
    assert len(launches) == 3  # forward again, backward
    assert all(map(torch.equal, found, expected))


# ---- truncated back-propagation ------------------------------------------------------------------------------------


class Recorder(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **kwargs or {})


COPIES = {"clone", "copy_", "contiguous", "cat", "stack", "_to_copy", "_reshape_copy", "constant_pad_nd", "index_select"}


@pytest.mark.parametrize("batch_first", [False, True])
def test_truncated_bptt_copies_nothing(batch_first, device, monkeypatch):
    """`detach` every k steps: chunks of x are read where they lie, h goes on in its own memory, gradients are right."""
    k, chunks, width, hidden = 2, 3, 4, 8
    options = dict(batch_first=batch_first, device=device, dtype=torch.float64)
    net = rnn_triton.RNN(width, hidden, **options)
    exact = torch.nn.RNN(width, hidden, **options)
    exact.load_state_dict(net.state_dict())
    shape = (B, k * chunks, width) if batch_first else (k * chunks, B, width)
    x = like([torch.empty(shape, dtype=torch.float64, device=device)])[0]
    seen = []
    run = launcher.Launcher.__call__
    monkeypatch.setattr(launcher.Launcher, "__call__", lambda self, t, *a: seen.append(t) or run(self, t, *a))

    def train(net):
        h, carried, outputs = None, [], []
        for chunk in x.split(k, 1 if batch_first else 0):
            h = None if h is None else h.detach()
            output, h = net(chunk, h)
            output.pow(2).mean().backward()
            carried.append(h)
            outputs.append(output)
        return carried, outputs

    for p in net.parameters():
        p.grad = torch.zeros_like(p)  # else autograd gives the two biases, whose gradient is one, memory of their own
    with Recorder() as recorder:
        carried, outputs = train(net)
    assert not COPIES & set(recorder.names)
    forward = seen[::2]
    for i, (tensors, chunk) in enumerate(zip(forward, x.split(k, 1 if batch_first else 0), strict=True)):
        assert tensors[0].data_ptr() == chunk.data_ptr()
        assert (tensors[5] is None) if i == 0 else tensors[5].data_ptr() == carried[i - 1].data_ptr()
    for tensors, output in zip(seen[1::2], outputs, strict=True):
        assert tensors[7].data_ptr() == output.data_ptr()  # backward reads y where it is
    train(exact)
    for p, e in zip(net.parameters(), exact.parameters(), strict=True):
        torch.testing.assert_close(p.grad, e.grad)


@pytest.mark.parametrize("batch_first", [False, True])
def test_no_copy_within_the_ops_either(batch_first, device, monkeypatch):
    """Below the level that a recorder sees from outside; no kernel runs, whose interpreter copies"""
    monkeypatch.setattr(launcher.Launcher, "__call__", lambda *a: None)
    monkeypatch.setattr(gemm, "wide", gemm.matmul)  # whose result is rounded: a copy, but of a weight's size
    x, *rest = (t.detach().to(device) for t in problem(3, 4, 8, 16, dtype=torch.bfloat16))
    x = torch.zeros(4, 6, 8, dtype=x.dtype, device=device)[:, :3].transpose(0, 1) if batch_first else x
    with Recorder() as recorder:
        y, hn = ops.run_forward(x, *rest, "tanh", False, None)
        dy = torch.zeros(4, 3, 16, dtype=y.dtype, device=device).transpose(0, 1) if batch_first else y
        ops.run_backward((x, *rest), y, dy, hn, [DX | DH0, DW_HH | DB])
    assert "mm" in recorder.names and not COPIES & set(recorder.names)
    with Recorder() as recorder:  # dw_ih: the rows of a batch_first x have no common stride
        ops.run_backward((x, *rest), y, dy, hn)
    assert sum(name in COPIES for name in recorder.names) == batch_first


def test_the_recorder_sees_copies(device, monkeypatch):
    """Guard of the two above: an x that kernels cannot read is copied, and that shows."""
    monkeypatch.setattr(launcher.Launcher, "__call__", lambda *a: None)
    x, *rest = (t.detach().to(device) for t in problem(3, 4, 8, 16, dtype=torch.bfloat16))
    with Recorder() as recorder:
        ops.run_forward(x.mT.contiguous().mT, *rest, "tanh", False, None)
    assert COPIES & set(recorder.names)


# ---- determinism ---------------------------------------------------------------------------------------------------


def test_deterministic_algorithms_are_accepted(device):
    expected = None
    for wanted in (False, True):
        tensors = tensors_of(device)
        torch.use_deterministic_algorithms(wanted)
        try:
            outputs = rnn_triton.rnn(*tensors)
            found = [*outputs, *gradients(outputs, like(outputs), tensors)]
        finally:
            torch.use_deterministic_algorithms(False)
        assert expected is None or all(map(torch.equal, found, expected))
        expected = found
