"""Layers with heads: a block-diagonal W_hh, against the dense layer that has zeros in place of the blocks that are not there."""

import copy

import pytest
import torch
from support import ops
from support.memory import Allocations
from support.pairs import TOLERANCE, data, flat
from support.problems import gradients, like
from test_ensembles import launches as launches  # a fixture
from test_kernels import assert_close, tolerance
from torch.nn.utils.rnn import pack_sequence
from torch.utils.flop_counter import FlopCounterMode

import rnn_triton
from rnn_triton.launch.operands import Operands
from rnn_triton.op.gradients import DX

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


def test_compiled():
    module, x = make("RNN", heads=N), data(T, B, I).requires_grad_()
    found = []
    for run in (module, torch.compile(module, fullgraph=True, backend="aot_eager")):
        outputs = flat(run(x))
        found.append((outputs, gradients(outputs, like(outputs), [x, *module.parameters()])))
    torch.testing.assert_close(*found, **TOLERANCE)


def test_flops_are_those_of_the_blocks():
    net, x = make("RNN", heads=N), data(T, B, I).requires_grad_()
    with FlopCounterMode(display=False) as counter:
        net(x)[0].sum().backward()
    steps_with_h = T + (T - 1) + T  # forward, from step to step, of W_hh
    assert counter.get_total_flops() == 2 * B * H * (3 * T * I + steps_with_h * H // N)


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
    with pytest.raises(ValueError, match=r"w_hh must have shape \[N, H/N, H/N\] = \[2, 6, 6\], got \[12, 12\]"):
        torch.func.functional_call(net, dict(weight_hh_l0=data(H, H)), (data(T, B, I),))


# of x more columns than a head has rows of W_ih, so that dx is one product of all heads, and fewer, so that it is one for each
@pytest.mark.parametrize("name, size", [("RNN", 16), ("LSTM", I)])
def test_all_heads_share_a_launch(name, size, device, launches):
    """of each pass; and the kernels compute what the dense layer does in fp64"""
    torch.manual_seed(0)
    ours, whole = make(name, size, H, heads=N, dtype=torch.float32), getattr(torch.nn, name)(size, H, dtype=torch.float64)
    whole.load_state_dict({name: dense(name, t) for name, t in ours.state_dict().items()})
    ours.precision = "ieee"
    x = data(T, B, size, dtype=torch.float32)
    near, exact = x.to(device).requires_grad_(), x.double().requires_grad_()
    outputs = flat(ours.to(device)(near))
    assert len(launches) == 1
    expected = flat(whole(exact))
    assert_close(outputs, [t.detach() for t in expected], tolerance("ieee", T))
    dy = like(expected)
    dx, dw_ih = gradients(outputs, [d.float().to(device) for d in dy], [near, ours.weight_ih_l0])
    assert len([1 for tensors, _ in launches if isinstance(tensors, Operands)]) == 2  # the others are products
    expected_dx, expected_dw_ih = gradients(expected, dy, [exact, whole.weight_ih_l0])
    assert_close([dx, dense("weight_ih_l0", dw_ih)], [expected_dx, expected_dw_ih], tolerance("ieee", 2 * T))


ROWS = 8 * B


def head_tensors(size, hidden, heads, dtype, device="cpu"):
    """(x, w_ih, w_hh, b_ih, b_hh, h0) of an Elman layer with heads as the ops take them, y and its gradient"""
    h = hidden // heads
    shapes = (8, B, size), (heads, h, size), (heads, h, h), (heads, h), (heads, h), (heads, B, h), *[(heads, 8, B, h)] * 2
    *tensors, y, dy = [data(*shape, seed=n, dtype=dtype).to(device) for n, shape in enumerate(shapes)]
    return tensors, y, dy


def elements_of_dx(size, hidden, heads, device="cpu"):
    """What a backward pass for dx alone takes at most at a time, for each row of x"""
    tensors, y, dy = head_tensors(size, hidden, heads, torch.float64, device)
    with Allocations() as memory:
        dx, *_ = ops.run_backward(tensors, y, dy, None, [DX, 0])
    assert dx.shape == tensors[0].shape
    return memory.peak / (ROWS * dx.element_size())


def test_dx_takes_no_memory_for_each_head():
    assert elements_of_dx(96, 24, 6) < 6 * 96


def test_dx_by_the_kernels_takes_no_memory_for_each_head(device, launches):
    """nor, of an x with few columns, a copy of da, beside da itself"""
    launches.run = False
    assert elements_of_dx(96, 24, 6, device) < 2 * 96
    assert elements_of_dx(1, 96, 3, device) < 2 * 96


def test_dx_of_all_heads_is_rounded_once():
    """where torch computes; other gradients are what they are without an x that is shared"""
    tensors, y, dy = head_tensors(5, 12, 3, torch.bfloat16)
    x, *others = tensors
    dx, dh0, dweights = ops.run_backward(tensors, y, dy, None)
    wide_dx, *_ = ops.run_backward([t.float() for t in tensors], y.float(), dy.float(), None)
    assert torch.equal(dx, wide_dx.bfloat16())
    dx_of_each, *apart = ops.run_backward([x.expand(3, *x.shape), *others], y, dy, None)
    assert dx_of_each.shape == (3, *x.shape)
    torch.testing.assert_close([dh0, dweights], apart, rtol=0, atol=0)


def test_heads_within_transforms():
    """An ensemble of layers with heads, and a batch of inputs: values and gradients of each, also where layers share x"""
    nets = [make("GRU", heads=N) for _ in range(2)]
    state, _ = torch.func.stack_module_state(nets)

    def loss(weights, x):
        return torch.func.functional_call(nets[0], weights, (x,))[0].pow(2).sum()

    alone = [dict(net.named_parameters()) for net in nets]
    xs = data(2, T, B, I)
    both = torch.func.grad_and_value(loss, argnums=(0, 1))
    for dims in ((0, 0), (0, None), (None, 0)):
        given = state if dims[0] == 0 else alone[0], xs if dims[1] == 0 else xs[0]
        expected = [both(alone[n if dims[0] == 0 else 0], xs[n if dims[1] == 0 else 0]) for n in range(2)]
        stacked = torch.utils._pytree.tree_map(lambda *t: torch.stack(t), *expected)
        torch.testing.assert_close(torch.vmap(both, in_dims=dims)(*given), stacked, **TOLERANCE)
    x = xs[0].requires_grad_()  # of which the gradient is the sum of that of all heads of both layers
    (dx,) = torch.autograd.grad(torch.vmap(loss, in_dims=(0, None))(state, x).sum(), x)
    torch.testing.assert_close(dx, sum(torch.func.grad(loss, 1)(weights, x) for weights in alone), **TOLERANCE)
    tangent = data(T, B, I, seed=3)
    _, pushed = torch.func.jvp(lambda x: loss(alone[0], x), (x.detach(),), (tangent,))
    torch.testing.assert_close(pushed, (torch.func.grad(loss, 1)(alone[0], x) * tangent).sum(), **TOLERANCE)


def test_under_autocast():
    net, x = make("GRU", heads=N, dtype=torch.float32), data(T, B, I, dtype=torch.float32).requires_grad_()
    narrow, near = copy.deepcopy(net).bfloat16(), x.detach().bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        found = flat(net(x))
    expected = flat(narrow(near))
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    found, expected = (
        gradients(y, like(y), [x, *net.parameters()]) for y, x, net in ((found, x, net), (expected, near, narrow))
    )
    torch.testing.assert_close(found, expected, rtol=0, atol=0, check_dtype=False)
