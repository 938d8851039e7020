"""torch.vmap over weights: an ensemble is one launch of the kernel that runs one model, and every model what it is alone.

By the kernels: by interpreter where there is no GPU, on it where there is one.  tests/test_op.py has such transforms where
torch computes.  Tolerances are those of tests/test_kernels.py: rounding of a step and of a product, as derived there.
"""

import dataclasses
from types import SimpleNamespace

import pytest
import torch
from support import ops
from support.memory import reserved
from support.problems import gradients, like, over_present, problem
from support.recorder import Recorder
from test_compile import check as check_compiled
from test_compile import name as name_of
from test_kernels import KINDS, assert_close, tolerance

import rnn_triton
from bench.compiled.planned import planned
from rnn_triton.cells import reference
from rnn_triton.kernels.facts import Share
from rnn_triton.launch import dispatch, gemm, launcher, one_cta, recurrence
from rnn_triton.launch.operands import Operands
from rnn_triton.op import gradients as gradients_of
from rnn_triton.op import network
from rnn_triton.plan import choose, hardware, latency
from rnn_triton.plan.problem import Problem

kinds = pytest.mark.parametrize("kind", list(KINDS))
M = 2  # models


def members(kind, T, B, I, H, device, n=M, **options):
    """[x, w_ih, w_hh, b_ih, b_hh, h0] of each of n models"""
    dtype = KINDS[kind][0]
    found = [problem(T, B, I, H, dtype=dtype, seed=seed, **options) for seed in range(n)]
    return [[None if t is None else t.detach().to(device) for t in one] for one in found]


def stacked(models, shared=()):
    """(in_dims, tensors) of the ensemble; those whose place is in `shared` are the first model's"""
    columns = list(zip(*models))
    dims = tuple(None if i in shared or column[0] is None else 0 for i, column in enumerate(columns))
    return dims, [column[0] if d is None else torch.stack(column) for d, column in zip(dims, columns)]


def rnn(kind, nonlinearity="tanh", reverse=False):
    options = dict(nonlinearity=nonlinearity, reverse=reverse, precision=KINDS[kind][1])
    return lambda *tensors: rnn_triton.rnn(*tensors, **options)


def leaves(tensors):
    return [None if t is None else t.clone().requires_grad_() for t in tensors]


class Launches(list):
    """What every launch was given: (tensors, scalars)"""

    run = True  # False: nothing is computed


@pytest.fixture
def launches(monkeypatch):
    seen = Launches()
    run = launcher.Launcher.__call__

    def call(self, tensors, out, scalars):
        seen.append((tensors, scalars))
        if seen.run:
            run(self, tensors, out, scalars)

    monkeypatch.setattr(launcher.Launcher, "__call__", call)
    return seen


def check(kind, models, shared=(), nonlinearity="tanh", reverse=False):
    """(outputs, gradients) of the ensemble, compared with the reference of each model in fp64"""
    dims, tensors = stacked(models, shared)
    tensors = leaves(tensors)
    outputs = torch.vmap(rnn(kind, nonlinearity, reverse), in_dims=dims)(*tensors)
    alone = [[models[0][i] if i in shared else t for i, t in enumerate(model)] for model in models]
    alone = [leaves([None if t is None else t.double().cpu() for t in model]) for model in alone]
    each = [reference.rnn(*model, nonlinearity, reverse) for model in alone]
    T = tensors[0].shape[-3]
    assert_close(outputs, [torch.stack(column).detach() for column in zip(*each)], tolerance(kind, T))
    cotangents = like(outputs)
    ours = gradients(outputs, cotangents, tensors)
    theirs = [gradients(e, [c[m].double().cpu() for c in cotangents], alone[m]) for m, e in enumerate(each)]
    present = [dim for dim, t in zip(dims, tensors) if t is not None]
    for dim, got, expected in zip(present, ours, zip(*theirs), strict=True):
        assert_close([got], [sum(expected) if dim is None else torch.stack(expected)], tolerance(kind, 2 * T))
    return outputs, ours


# ---- values, gradients, launches -----------------------------------------------------------------------------------


# rows of no whole vectors, and of them
@pytest.mark.executed
@pytest.mark.thin(2)
@pytest.mark.parametrize(
    "kind, I, H, reverse",
    [
        pytest.param(kind, *of, marks=() if kind in ("bf16", "ieee") else pytest.mark.long)
        for kind in KINDS for of in ((13, 17, False), (16, 16, True))
    ],
)  # fmt: skip
def test_each_model_is_what_it_is_alone(kind, I, H, reverse, device):
    """bit for bit: y, hn and da"""
    models = members(kind, 2, 3, I, H, device)
    dims, tensors = stacked(models)
    function = rnn(kind, reverse=reverse)
    outputs = torch.vmap(function, in_dims=dims)(*tensors)
    for got, expected in zip(outputs, zip(*[function(*model) for model in models]), strict=True):
        assert all(torch.equal(g, e) for g, e in zip(got, expected, strict=True))
    y, hn = outputs
    da, _ = dispatch.backward(tensors[2], y, None, y, (hn,), "elman_tanh", reverse, KINDS[kind][1])
    for m, model in enumerate(models):
        alone, _ = dispatch.backward(model[2], y[m], None, y[m], (hn[m],), "elman_tanh", reverse, KINDS[kind][1])
        assert torch.equal(da[m], alone)


# T, B, I, H: padding of H and ragged rows of x; one unit; two batch tiles; a T of one
SHAPES = [(2, 3, 13, 17), *[pytest.param(*s, marks=pytest.mark.long) for s in ((2, 1, 1, 1), (2, 9, 16, 16), (1, 3, 40, 24))]]


@pytest.mark.executed("ptx-2-3-13-17-bf16")
@pytest.mark.thin(3)
@kinds
@pytest.mark.parametrize("T, B, I, H", SHAPES)
def test_values_and_gradients(kind, T, B, I, H, device):
    check(kind, members(kind, T, B, I, H, device))


@pytest.mark.executed
@pytest.mark.thin(3)
@pytest.mark.parametrize("nonlinearity, reverse", [("tanh", True), ("relu", False), ("relu", True)])
def test_nonlinearity_and_direction(nonlinearity, reverse, device):
    check("bf16", members("bf16", 2, 2, 9, 20, device), nonlinearity=nonlinearity, reverse=reverse)


@pytest.mark.executed
@pytest.mark.thin(2)
@pytest.mark.parametrize("bias, h0", [((False, True), True), ((True, False), False), ((False, False), True)])
def test_optional_inputs(bias, h0, device):
    check("fp16", members("fp16", 2, 2, 6, 18, device, bias=bias, h0=h0))


SHARED = [(0,), (1,), (2,), (3, 4), (5,), (0, 1, 2, 4, 5), (0, 1, 3, 4, 5), (0, 2, 3, 4, 5)]


@pytest.mark.executed
@pytest.mark.thin(3)
@pytest.mark.parametrize("shared", SHARED)
def test_what_models_share(shared, device):
    check("fp64", members("fp64", 2, 2, 5, 16, device), shared)


@pytest.mark.parametrize("kind", ["bf16", "fp64"])
@pytest.mark.parametrize("shared", SHARED)
def test_what_models_share_is_read_where_it_lies(kind, shared, device, launches):
    dims, tensors = stacked(members(kind, 2, 3, 16, 16, device), shared)
    launches.run = False
    torch.vmap(rnn(kind), in_dims=dims)(*tensors)
    [(given, scalars)] = launches
    per_model, stride_x = scalars[-3:-1]
    assert [per_model >> i & 1 for i in range(5)] == [int(i not in shared) for i in range(1, 6)]
    assert (stride_x == 0) == (0 in shared)
    assert all(given[i].data_ptr() == t.data_ptr() for i, t in enumerate(tensors))


def test_a_copy_of_what_models_share_is_one(device, launches):
    """x and h0 in the middle of a 16-byte vector, where kernels cannot read"""
    launches.run = False
    x, *weights, h0 = members("bf16", 2, 3, 16, 16, device)[0]
    x, h0 = (torch.cat([t.new_zeros(1), t.flatten()])[1:].view(t.shape).expand(M, *t.shape) for t in (x, h0))
    ops.run_forward(x, *[t.expand(M, *t.shape) for t in weights], h0, "tanh", False, None)
    [(given, scalars)] = launches
    assert given[0].numel() == x[0].numel() and given[5].numel() == h0[0].numel()
    assert scalars[-3:] == (0, 0, 0)


def test_nothing_is_copied(device, launches):
    """into the launches: neither what is stacked nor what is shared"""
    launches.run = False
    x, *rest = stacked(members("bf16", 3, 2, 16, 16, device))[1]
    with Recorder() as recorder:
        for given in (x, x[:1].expand(M, -1, -1, -1)):
            y, hn = ops.run_forward(given, *rest, "tanh", False, None)
            dispatch.backward(rest[1], y, None, y, (hn,), "elman_tanh", False, None)
    assert set(recorder.names) == {"aten::new_empty", "aten::select.int", "aten::slice.Tensor", "aten::expand"}


@pytest.mark.parametrize("kind", ["bf16", "ieee"])
def test_forward_and_backward_are_a_launch_each(kind, device, launches, monkeypatch):
    """and the GEMMs are as many as those of one model: dx, dw_ih, dw_hh with h0's part, dh0"""
    products = []

    def counted(product):
        return lambda *a: products.append(a) or product(*a)

    monkeypatch.setattr(gradients_of, "gemm", SimpleNamespace(matmul=counted(gemm.matmul), wide=counted(gemm.wide)))
    dims, tensors = stacked(members(kind, 3, 2, 5, 18, device, n=7))
    launches.run = False
    tensors = leaves(tensors)
    outputs = torch.vmap(rnn(kind), in_dims=dims)(*tensors)
    assert len(launches) == 1
    gradients(outputs, like(outputs), tensors)
    assert len(launches) == 2
    assert len(products) == 5


def test_frozen_weights_cost_no_gemm(device, launches, monkeypatch):
    launches.run = False
    products = []

    def counted(product):
        return lambda *a: products.append(a) or product(*a)

    monkeypatch.setattr(gradients_of, "gemm", SimpleNamespace(matmul=counted(gemm.matmul), wide=counted(gemm.wide)))
    dims, tensors = stacked(members("ieee", 3, 2, 5, 18, device))
    for wanted, count in (((1,), 1), ((2,), 2), ((3, 4), 0), ((0, 5), 2)):
        given = [t.clone().requires_grad_(i in wanted) for i, t in enumerate(tensors)]
        outputs = torch.vmap(rnn("ieee"), in_dims=dims)(*given)
        products.clear()
        gradients(outputs, like(outputs), given)
        assert len(products) == count


@pytest.mark.executed
@pytest.mark.long
@pytest.mark.parametrize(
    "kind, I, H, home",
    [
        ("bf16", 304, 16, "shared"), ("fp64", 200, 16, "gemm"),
        pytest.param("bf16", 9, 250, "gemm", marks=pytest.mark.long),
    ],
)  # fmt: skip
def test_homes_of_the_weights(kind, I, H, home, device):
    """W_ih in shared memory, x projected by a GEMM, W_hh padded in global memory"""
    forward = choose.plan(
        Problem("forward", 2, I, H, kind, None, "elman_tanh", M),
        hardware.RECORDS["sm_90"],
    )
    assert (forward.w_ih_home, forward.pad_w_hh) == (home, H == 250)
    check(kind, members(kind, 2, 2, I, H, device))


@pytest.mark.executed
@pytest.mark.long
@pytest.mark.parametrize("kind", ["bf16", pytest.param("fp16", marks=pytest.mark.long)])
def test_a_crowded_chip_takes_tiles_of_16(kind, device, monkeypatch):
    """More batch tiles of 8, of all models together, than there are SMs"""
    of = hardware.of
    monkeypatch.setattr(dispatch.hardware, "of", lambda d: dataclasses.replace(of(d), sms=4))
    dispatch._launch_for.cache_clear()
    try:
        call = (19, 40, 24, KINDS[kind][0], None, "elman_tanh", (), torch.device(device))  # three tiles of 8, six of two models
        assert dispatch._launch_for(("forward", *call), ()).plan.block_b == 8
        assert dispatch._launch_for(("forward", M, *call), ()).plan.block_b == 16
        check(kind, members(kind, 1, 19, 40, 24, device))
    finally:
        dispatch._launch_for.cache_clear()


@pytest.mark.executed
@pytest.mark.long
@pytest.mark.parametrize("kind", ["bf16", *[pytest.param(k, marks=pytest.mark.long) for k in ("tf32", "fp64")]])
def test_strides(kind, device):
    """Models last, misaligned, batch first, and strides that are no multiples of a vector"""
    models = members(kind, 2, 2, 16, 16, device)
    (x, *rest) = stacked(models)[1]
    exact = [[t.double().cpu() for t in model] for model in models]
    expected = [torch.stack(column) for column in zip(*[reference.rnn(*model) for model in exact])]
    behind = x.movedim(0, -1).contiguous()  # [T, B, I, M]
    apart = torch.cat([x.flatten(1), x.new_zeros(M, 3)], 1)[:, : x[0].numel()].view(x.shape)  # 3 elements between models
    first = x.transpose(1, 2).contiguous().transpose(1, 2)
    shifted = torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape)
    for dim, given in ((3, behind), (0, apart), (0, first), (0, shifted)):
        outputs = torch.vmap(rnn(kind), in_dims=(dim, 0, 0, 0, 0, 0))(given, *rest)
        assert_close(outputs, expected, tolerance(kind, 2))
    turned = [t.movedim(0, -1).contiguous() for t in rest]
    outputs = torch.vmap(rnn(kind), in_dims=(0, 2, 2, 1, 1, 2))(x, *turned)
    assert_close(outputs, expected, tolerance(kind, 2))


@pytest.mark.executed
@pytest.mark.parametrize("which", ["x", "dy"])
def test_model_stride_beyond_32_bits(which, device):
    """Two models whose data lie 2^31 elements apart, after a call with narrow strides; the memory between them is never
    touched."""
    if device == "cuda" and torch.cuda.mem_get_info()[0] < 20 * 2**30:
        pytest.fail("needs 20 GB of GPU memory")
    T, B, N = 2, 2, 17
    x, *weights = stacked(members("ieee", T, B, N, N, device, n=2))[1]
    far = reserved(2**31 + T * B * N, device).as_strided((2, T, B, N), (2**31, B * N, N, 1))
    far.copy_(x)
    if which == "x":
        expected, ours = (ops.run_forward(t, *weights, "tanh", False, "ieee")[0] for t in (x, far))
    else:
        y = torch.rand(2, T, B, N, generator=torch.Generator().manual_seed(0)).to(device)
        expected, ours = (dispatch.backward(weights[1], y, None, t, (None,), "elman_tanh", False, "ieee")[0] for t in (x, far))
    assert torch.equal(ours, expected)


@pytest.mark.long
@pytest.mark.parametrize("kind", ["bf16", *[pytest.param(k, marks=pytest.mark.long) for k in KINDS if k != "bf16"]])
def test_every_element_is_written(kind, device, monkeypatch):
    """Outputs are allocated full of NaN, and memory around them is not touched."""
    guard = 64
    made = []

    def poisoned(like, *shape):
        n = torch.Size(shape).numel()
        t = torch.full((n + 2 * guard,), float("nan"), dtype=like.dtype, device=like.device)
        made.append((t, n))
        return t[guard : guard + n].view(shape)

    dims, tensors = stacked(members(kind, 2, 9, 5, 17, device))
    monkeypatch.setattr(recurrence, "empty", poisoned)
    tensors = leaves(tensors)
    outputs = torch.vmap(rnn(kind), in_dims=dims)(*tensors)
    gradients(outputs, like(outputs), tensors)
    assert len(made) == 3  # y, hn and da
    for t, n in made:
        assert t[:guard].isnan().all() and t[guard + n :].isnan().all()
        assert not t[guard : guard + n].isnan().any()


@pytest.mark.parametrize("kind", ["bf16", "ieee"])
def test_nan_of_one_model_stays_there(kind, device):
    models = members(kind, 3, 2, 5, 18, device)
    expected = check(kind, models)
    models[1][2][3, 4] = float("nan")
    dims, tensors = stacked(models)
    tensors = leaves(tensors)
    outputs = torch.vmap(rnn(kind), in_dims=dims)(*tensors)
    found = gradients(outputs, like(outputs), tensors)
    assert outputs[0][1].isnan().any() and found[2][1].isnan().any()
    for got, clean in zip((*outputs, *found), (*expected[0], *expected[1]), strict=True):
        assert torch.equal(got[0], clean[0])


def test_an_empty_batch(device, launches):
    dims, tensors = stacked(members("fp64", 3, 0, 4, 5, device))
    tensors = leaves(tensors)
    y, hn = torch.vmap(rnn("fp64"), in_dims=dims)(*tensors)
    assert y.shape == (M, 3, 0, 5) and hn.shape == (M, 0, 5)
    for t, g in zip(tensors, gradients((y, hn), (y.detach(), hn.detach()), tensors), strict=True):
        assert torch.equal(g, torch.zeros_like(t))
    assert not launches


def test_no_models(device, launches):
    """As torch: empty results, and gradients of nothing."""
    x, w_ih, w_hh = (torch.zeros(s, device=device, dtype=torch.float64) for s in ((3, 2, 4), (5, 4), (5, 5)))
    none, no_data = w_hh.new_empty(0, 5, 5), x.new_empty(0, 3, 2, 4)
    for f, given in ((lambda w: rnn_triton.rnn(x, w_ih, w), none), (lambda x: rnn_triton.rnn(x, w_ih, w_hh), no_data)):
        y, hn = torch.vmap(f)(given)
        assert y.shape == (0, 3, 2, 5) and hn.shape == (0, 2, 5)
        assert torch.vmap(torch.func.grad(lambda v, f=f: f(v)[0].sum()))(given).shape == given.shape
    assert not launches


def test_a_shared_input_is_copied_once_at_most(device):
    """A batch_first x that all models share: dw_ih of all of them reads one copy."""
    x = torch.zeros(2, 3, 4, dtype=torch.float64, device=device).transpose(0, 1).expand(M, 3, 2, 4)
    assert gradients_of._rows(x).shape == (M, 6, 4) and gradients_of._rows(x).stride(0) == 0
    own = torch.zeros(M, 3, 2, 4, dtype=torch.float64, device=device)
    assert gradients_of._rows(own).data_ptr() == own.data_ptr()


def test_one_model(device):
    check("ieee", members("ieee", 2, 2, 5, 18, device, n=1))


# ---- the ways to an ensemble ---------------------------------------------------------------------------------------


def test_stacked_modules(device, launches):
    """torch.func.stack_module_state, functional_call and vmap: one launch each way, and models train as they do alone"""
    options = dict(dtype=torch.float64, device=device)
    nets = [rnn_triton.RNN(5, 18, batch_first=True, **options) for _ in range(M)]
    state, buffers = torch.func.stack_module_state(nets)
    skeleton = rnn_triton.RNN(5, 18, batch_first=True, device="meta", dtype=torch.float64)
    x = like([torch.empty(2, 3, 5, **options)])[0]

    def one(state, buffers, x):
        return torch.func.functional_call(skeleton, (state, buffers), (x,))

    y, hn = torch.vmap(one, in_dims=(0, 0, None))(state, buffers, x)
    assert len(launches) == 1
    (y.pow(2).sum() + hn.sum()).backward()
    assert len(launches) == 2
    for m, net in enumerate(nets):
        y_alone, hn_alone = net(x)
        assert torch.equal(y[m], y_alone) and torch.equal(hn[m], hn_alone)
        (y_alone.pow(2).sum() + hn_alone.sum()).backward()
        for key, parameter in net.named_parameters():
            torch.testing.assert_close(state[key].grad[m], parameter.grad)


def reference_of(*tensors):
    return reference.rnn(*tensors)


FP64 = rnn("fp64")


def same(transform, *arguments):
    torch.testing.assert_close(transform(FP64)(*arguments), transform(reference_of)(*arguments))


def test_gradients_within_the_map(device, launches):
    """vmap(grad): a gradient for each model, shared tensors included"""
    shared = (0, 1)
    dims, tensors = stacked(members("fp64", 3, 2, 4, 5, device), shared)

    def transform(f):
        def loss(*t):
            y, hn = f(*t)
            return y.pow(2).sum() + hn.sum()

        return torch.vmap(torch.func.grad(loss, argnums=tuple(range(6))), in_dims=dims)

    transform(FP64)(*tensors)
    assert len(launches) == 2
    same(transform, *tensors)


def test_data_of_an_ensemble(device, launches):
    """vmap over data around, and within, vmap over weights joins the batch of every model."""
    (x, *weights, h0) = stacked(members("fp64", 3, 2, 4, 5, device))[1]
    xs = torch.stack(like([x] * 4))  # [4, M, T, B, I]
    in_models = (0, 0, 0, 0, 0, 0)
    around = (0, *[None] * 5)

    def outside(f):
        return torch.vmap(torch.vmap(f, in_dims=in_models), in_dims=around)

    def inside(f):
        return torch.vmap(torch.vmap(f, in_dims=around), in_dims=(1, *[0] * 5))

    for transform in (outside, inside):
        launches.clear()
        transform(FP64)(xs, *weights, h0)
        assert len(launches) == 1
        same(transform, xs, *weights, h0)


@pytest.mark.parametrize("h0", [False, True])
def test_per_sample_gradients_of_an_ensemble(h0, device, launches):
    (x, *weights, state) = stacked(members("fp64", 3, 2, 4, 5, device, h0=h0))[1]
    xs = torch.stack(like([x] * 4), 2)  # [M, T, 4, B, I]

    def transform(f):
        def loss(x, *weights_and_state):
            y, hn = f(x, *weights_and_state)
            return y.pow(2).sum() + hn.sum()

        per_sample = torch.vmap(torch.func.grad(loss, argnums=(0, 1, 2, 3, 4)), in_dims=(1, *[None] * 5))
        return torch.vmap(per_sample, in_dims=(0, *[0] * 4, 0 if h0 else None))

    transform(FP64)(xs, *weights, state)
    assert len(launches) == 2
    same(transform, xs, *weights, state)


@pytest.mark.long
def test_ensembles_of_ensembles(device, launches):
    (x, *rest) = stacked(members("fp64", 3, 2, 4, 5, device))[1]
    w_hh = torch.stack(like([rest[1]] * 3))  # [3, M, H, H]
    dims = (None, None, 0, None, None, None)

    def transform(f):
        def loss(*t):
            return f(*t)[0].pow(2).sum()

        return torch.vmap(torch.vmap(torch.func.grad(loss, argnums=(0, 1, 2, 3, 4, 5))), in_dims=dims)

    arguments = (x, rest[0], w_hh, *rest[2:])
    transform(FP64)(*arguments)
    assert len(launches) == 2
    same(transform, *arguments)


@pytest.mark.parametrize("order", [1, 2])
def test_derivatives_of_derivatives(order, device):
    """of a penalty on the gradient, itself by create_graph, through the kernels and the reference"""
    dims, tensors = stacked(members("fp64", 2, 2, 3, 4, device), shared=(0,))

    def penalty(f):
        given = leaves(tensors)
        value = sum(o.pow(2).sum() for o in torch.vmap(f, in_dims=dims)(*given))
        for _ in range(order):
            found = torch.autograd.grad(value, given, create_graph=True)
            value = sum(g.pow(2).sum() for g in found)
        return torch.autograd.grad(value, given)

    # fp64 sums of squares of sums, a thousandfold the unit roundoff per order
    torch.testing.assert_close(penalty(FP64), penalty(reference_of), rtol=1e-12 * 1000**order, atol=1e-12)


@pytest.mark.long
def test_forward_mode_and_jacobians(device):
    dims, tensors = stacked(members("fp64", 2, 2, 3, 4, device), shared=(0, 1))
    tangents = tuple(like(tensors))
    mapped = lambda f: lambda *t: torch.vmap(f, in_dims=dims)(*t)  # noqa: E731
    same(lambda f: lambda *t: torch.func.jvp(mapped(f), t, tangents), *tensors)
    same(lambda f: torch.vmap(torch.func.jacrev(f, argnums=(2, 5)), in_dims=dims), *tensors)
    same(lambda f: torch.vmap(torch.func.jacfwd(f, argnums=2), in_dims=dims), *tensors)

    def hessian(f):
        return torch.vmap(torch.func.hessian(lambda *t: f(*t)[1].pow(2).sum(), argnums=3), in_dims=dims)

    same(hessian, *tensors)


def test_the_op_itself():
    """with M in front of every shape: what a traced vmap records; differentiable to any order"""
    tensors = tuple(leaves(stacked(members("fp64", 2, 2, 2, 3, "cpu"))[1]))

    def function(*t):
        y, last, _ = network.forward(*ops.arguments(t), True)
        return y, *last

    assert torch.autograd.gradcheck(function, tensors, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, tensors, fast_mode=True)


def opcheck(pieces, needs, device):
    x, weights, states, seed, *net = ops.arguments(stacked(members("fp64", 2, 4, 3, 5, device))[1])
    forward = (x, weights, states, seed, *net, True)
    y, last, _ = network.forward(*forward)
    if needs == 31:
        torch.library.opcheck(network.forward, forward)
    wanted = [needs & (1 | 16), needs & (2 | 4 | 8)]
    torch.library.opcheck(network.backward, (x, weights, states, seed, *net, [y], y, last, wanted, pieces))


@pytest.mark.long
@pytest.mark.parametrize(
    "pieces, needs",
    [(None, 31), (2, 9), *[pytest.param(g, n, marks=pytest.mark.long) for g in (None, 2) for n in (0, 2, 4, 9, 31)]],
)
def test_opcheck(pieces, needs):
    opcheck(pieces, needs, "cpu")


@pytest.mark.long
def test_opcheck_of_the_kernels(device):
    opcheck(2, 31, device)


# ---- what one launch cannot hold -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind, H", [("fp64", 66), ("bf16", 20)])
def test_models_one_after_the_other(kind, H, device, launches):
    """Beyond one CTA: model after model, each what it is alone, shared tensors where they lie"""
    models = members(kind, 2, 2, 3, H, device)
    dims, tensors = stacked(models, shared=(0,))
    choices = {} if kind == "fp64" else dict(regime="per_step")
    with rnn_triton.overriding(**choices):
        function = rnn(kind)
        outputs = torch.vmap(function, in_dims=dims)(*tensors)
        assert len(launches) == M * 2  # a launch a step
        check(kind, models, shared=(0,))
    assert outputs[0].shape == (M, 2, 2, H)


def explained(**options):
    return rnn_triton.explain(10, 8, 64, dtype=torch.bfloat16, device=hardware.RECORDS["sm_90"], **options)


def test_explain_names_the_launch_and_the_order_of_models():
    one, many, models = (explained(H=h, models=m).splitlines() for h, m in ((128, 1), (128, 64), (512, 5)))
    assert "one launch of 1 CTA of 8 warps" in one[0] and "models" not in one[0]
    assert "of each of 64 models" in many[0] and "one launch of 64 CTAs of 8 warps" in many[0]
    assert "all of W_hh of one model" in many[0]
    assert "of each of 5 models" in models[0]
    assert "5 models, one after the other: one launch of 32 CTAs" in models[0]
    assert "for one model after the other" in many[2] and "for one model" not in one[2]
    with pytest.raises(ValueError, match="models must be at least 1, got 0"):
        explained(H=128, models=0)


def test_the_plan_of_an_ensemble():
    """As many CTAs side by side as there are SMs cost what one costs; waves cost their number times one."""
    device = hardware.RECORDS["sm_90"]
    one = Problem("forward", 8, 128, 128, "bf16", None, "elman_tanh")
    many = dataclasses.replace(one, models=64)
    p = choose.plan(one, device)
    assert p == choose.plan(many, device)
    assert latency.practical_us(many, p, device) <= 1.3 * latency.practical_us(one, p, device)
    large = dataclasses.replace(one, H=512)
    p = choose.plan(large, device)
    once = latency.practical_us(large, p, device)
    assert latency.practical_us(dataclasses.replace(large, models=5), p, device) == pytest.approx(5 * once)
    for other in (many, dataclasses.replace(large, models=5), dataclasses.replace(many, models=1000)):
        p = choose.plan(other, device)
        assert latency.floor_us(other, device) <= latency.practical_us(other, p, device)


def default(job):
    one, device = job
    if device.capability != 90 or one.dtype != "bf16" or one.B != 8:
        return False
    return (one.direction, one.I, one.H) in (("forward", 256, 128), ("backward", 256, 256))


ONE_CTA = [job for job in planned() if choose.plan(*job).regime == "one_cta"]


@pytest.mark.compiled
@pytest.mark.parametrize(
    "job", [pytest.param(job, marks=() if default(job) else pytest.mark.long, id=name_of(job)) for job in ONE_CTA]
)
def test_the_kernel_of_an_ensemble(job):
    """The kernel of one model and addresses: no spills, no barrier more, no other access to memory in the time loop"""
    one, device = job
    many = dataclasses.replace(one, models=2)
    p = choose.plan(many, device)
    present = (True,) * len(Operands._fields)
    of_one = one_cta.constants(one, p, present)
    assert of_one["SHARE"] == Share() and one_cta.constants(many, p, present) == {**of_one, "SHARE": Share(models=True)}
    check_compiled(dispatch.compile_ahead(many, p, device), many, p, device)


def test_the_reference_of_an_ensemble_has_gradients_of_its_own(device):
    """Guard of the tests above: models differ, so that one taken for another shows"""
    function, present = over_present(rnn("fp64"), members("fp64", 2, 2, 3, 4, device)[0])
    others = [over_present(rnn("fp64"), m)[1] for m in members("fp64", 2, 2, 3, 4, device)[1:]]
    assert all(not torch.equal(function(*present)[0], function(*other)[0]) for other in others)
