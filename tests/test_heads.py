"""Layers with heads: a block-diagonal W_hh, against the dense layer that has zeros in place of the blocks that are not there."""

import copy

import pytest
import torch
from support.pairs import TOLERANCE, data, flat
from support.problems import gradients, like
from test_ensembles import launches as launches  # a fixture
from test_kernels import assert_close, tolerance
from torch.nn.utils.rnn import pack_sequence

import rnn_triton
from rnn_triton.launch.operands import Operands

T, B, I, H, N = 4, 3, 3, 12, 3
MODULES = [
    dict(name="RNN"), dict(name="GRU"), dict(name="LSTM"), dict(name="LeakyRNN", leak=0.3, learn_leak=True),
    dict(name="Recurrent", cell="gru"),
]  # fmt: skip
modules = pytest.mark.parametrize("module", MODULES, ids=lambda m: m["name"])


def make(name, *sizes, cell=None, dtype=torch.float64, **options):
    return getattr(rnn_triton, name)(*[cell] * (cell is not None), *(sizes or (I, H)), dtype=dtype, **options)


def dense(name, t):
    """A parameter of a layer with N heads as that of the layer which computes the same with one block."""
    if name.startswith("weight_hh"):
        blocks = t.unflatten(1, (-1, H // N)).transpose(0, 1)  # [G,N,H/N,H/N]
        return torch.cat([torch.block_diag(*gate) for gate in blocks])
    # [G*H,..] head by head, and in each gate by gate, to gate by gate
    return t.unflatten(0, (N, -1, H // N)).transpose(0, 1).flatten(0, 2)


def pair(module, options):
    """A layer with heads, and the dense one."""
    torch.manual_seed(0)
    ours, whole = make(**module, **options, heads=N), make(**module, **options)
    whole.load_state_dict({name: dense(name, t) for name, t in ours.state_dict().items()})
    return ours, whole


@modules
@pytest.mark.parametrize(
    "options", [{}, dict(bidirectional=True, bias=False), dict(num_layers=2, batch_first=True)], ids=["plain", "both", "stack"]
)
def test_a_layer_with_heads_is_a_dense_one_with_zeros(module, options):
    ours, whole = pair(module, options)
    number = ours.num_layers * (2 if ours.bidirectional else 1)
    for given in (data(T, B, I), data(T, I), pack_sequence([data(n, I, seed=n) for n in (4, 2, 1)])):
        shape = (number, B, H) if given[0].dim() == 2 or not isinstance(given, torch.Tensor) else (number, H)
        hx = [data(*shape, seed=5 + n).requires_grad_() for n in range(2 if ours.mode == "LSTM" else 1)]
        if isinstance(given, torch.Tensor) and ours.batch_first and given.dim() == 3:
            given = given.transpose(0, 1)
        x = (given if isinstance(given, torch.Tensor) else given.data).clone().requires_grad_()
        found = []
        for net in (ours, whole):
            arguments = x if isinstance(given, torch.Tensor) else given._replace(data=x)
            y, last = net(arguments, hx[0] if len(hx) == 1 else tuple(hx))
            outputs = flat((y if isinstance(y, torch.Tensor) else y.data, last))
            found.append((outputs, gradients(outputs, like(outputs), [x, *hx, *net.parameters()])))
        (outputs, ours_g), (expected, whole_g) = found
        torch.testing.assert_close(outputs, expected, **TOLERANCE)
        data_count = 1 + len(hx)
        torch.testing.assert_close(ours_g[:data_count], whole_g[:data_count], **TOLERANCE)
        for (name, w), got, want in zip(ours.named_parameters(), ours_g[data_count:], whole_g[data_count:], strict=True):
            there = dense(name, torch.ones_like(w))  # a dense layer has gradients where no block is, too
            torch.testing.assert_close(dense(name, got), want * there, **TOLERANCE)


def test_second_derivatives():
    net = make("LSTM", 2, 4, heads=2, bidirectional=True)
    names = [n for n, _ in net.named_parameters()]

    def call(x, *weights):
        return tuple(flat(torch.func.functional_call(net, dict(zip(names, weights, strict=True)), (x,))))

    inputs = [data(2, 2, 2).requires_grad_(), *[p.detach().clone().requires_grad_() for p in net.parameters()]]
    assert torch.autograd.gradgradcheck(call, inputs, fast_mode=True)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("how", ["export", "trace"])
def test_exported_and_traced(how):
    """for other T and B, too"""
    module = make("LSTM", num_layers=2, bidirectional=True, heads=N).eval()

    def given(T, B):
        return data(T, B, I), (data(4, B, H), data(4, B, H)), torch.arange(B)

    if how == "export":
        t, b = torch.export.Dim("t", min=2), torch.export.Dim("b", min=2)
        program = torch.export.export(module, given(T, B), dynamic_shapes=({0: t, 1: b}, ({1: b}, {1: b}), {0: b})).module()
    else:
        program = torch.jit.trace(module, given(T, B))
    for sizes in ((T, B), (6, 5)):
        torch.testing.assert_close(program(*given(*sizes)), module(*given(*sizes)), **TOLERANCE)


def test_parameters():
    torch.manual_seed(0)
    net = make("GRU", 5, 64, heads=4, dtype=torch.float32)
    shapes = {name: tuple(t.shape) for name, t in net.state_dict().items()}
    assert shapes == dict(weight_ih_l0=(192, 5), weight_hh_l0=(4, 48, 16), bias_ih_l0=(192,), bias_hh_l0=(192,))
    for name, t in net.named_parameters():  # drawn up to 1/sqrt(H), and of W_hh to 1/sqrt(H/N); of so many some come near
        bound = 64**-0.5 if name != "weight_hh_l0" else 16**-0.5
        assert 0.95 * bound < t.abs().max() <= bound, name
    again = make("GRU", 5, 64, heads=4, dtype=torch.float32)
    again.load_state_dict(net.state_dict())
    x = data(2, 3, 5, dtype=torch.float32)
    for other in (again, copy.deepcopy(net)):
        assert torch.equal(other(x)[0], net(x)[0])
    assert repr(net) == "GRU(5, 64, heads=4)"
    with pytest.raises(RuntimeError, match="size mismatch for weight_hh_l0"):
        make("GRU", 5, 64, dtype=torch.float32).load_state_dict(net.state_dict())
    assert rnn_triton.restore(net).kept == {"": "torch.nn has no layers with heads"}
    one, usual = make("GRU", 5, 64, heads=1), make("GRU", 5, 64)
    assert one.weight_hh_l0.shape == usual.weight_hh_l0.shape and repr(one) == repr(usual)


@modules
def test_wrong_heads(module):
    for heads in (0, -1, 5, 24, 2.0, True, "2"):
        with pytest.raises(ValueError, match=rf"^heads must be a positive number that divides hidden_size = {H}, got {heads!r}$"):
            make(**module, heads=heads)
    if module["name"] == "LSTM":
        with pytest.raises(ValueError, match="^heads must be 1 with a proj_size, got heads=3 and proj_size=2$"):
            make(**module, heads=3, proj_size=2)


def test_an_error_is_that_of_the_layer():
    net = make("RNN", heads=2)
    with pytest.raises(RuntimeError, match=rf"Expected hidden size \(1, {B}, {H}\), got \[1, {B}, 6\]"):
        net(data(T, B, I), data(1, B, 6))
    with pytest.raises(RuntimeError, match=rf"input.size\(-1\) must be equal to input_size. Expected {I}, got 7"):
        net(data(T, B, 7))


@pytest.mark.parametrize("name", ["RNN", "LSTM"])
def test_all_heads_share_a_launch(name, device, launches):
    """of each pass; and the kernels compute what the dense layer does in fp64"""
    torch.manual_seed(0)
    ours, whole = make(name, heads=N, dtype=torch.float32), getattr(torch.nn, name)(I, H, dtype=torch.float64)
    whole.load_state_dict({name: dense(name, t) for name, t in ours.state_dict().items()})
    ours.precision = "ieee"
    x = data(T, B, I, dtype=torch.float32)
    near, exact = x.to(device).requires_grad_(), x.double().requires_grad_()
    outputs = flat(ours.to(device)(near))
    assert len(launches) == 1
    expected = flat(whole(exact))
    assert_close(outputs, [t.detach() for t in expected], tolerance("ieee", T))
    dy = like(expected)
    (dx,) = gradients(outputs, [d.float().to(device) for d in dy], [near])
    assert len([1 for tensors, _ in launches if isinstance(tensors, Operands)]) == 2  # the others are products
    assert_close([dx], gradients(expected, dy, [exact]), tolerance("ieee", 2 * T))
