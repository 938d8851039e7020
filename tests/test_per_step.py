"""A launch per time step: by interpreter or on a GPU, what it launches, and what the kernel compiles to.

Reference: reference.py in fp64, of the same rounded inputs; tolerances are test_kernels.py's.  Blocks are chosen small, so
that sizes of a few dozen have several tiles with ragged ends in every dimension.
"""

import itertools

import pytest
import torch
from support.memory import reserved
from support.problems import SMALL_SIGNALS
from test_gates import KINDS as ROUNDING
from test_kernels import KINDS, assert_close, fp64, inputs, kinds, tolerance

from bench.compiled import machine_code, resources
from rnn_triton import cells
from rnn_triton.cells import reference
from rnn_triton.kernels.per_step import per_step as kernel
from rnn_triton.launch import per_step
from rnn_triton.plan import candidates, hardware
from rnn_triton.plan.problem import DTYPES, PerStep, Problem, row_units

ACCURACY = {"bf16": "approx", "fp16": "fast", "tf32": "fast", "tf32x3": "full", "ieee": "full", "fp64": "double"}


def plan(kind, block_b=8, block_h=16, block_k=16, warps=4, stages=3):
    return PerStep(
        block_b=block_b, block_h=block_h, block_k=block_k, warps=warps, stages=stages, formulation="tiles",
        precision=KINDS[kind][1] or "ieee", accuracy=ACCURACY[kind], w_ih_home="gemm", reason="a test's",
    )  # fmt: skip


def problem(direction, kind, B, I, H, nonlinearity="tanh"):
    dtype, precision = KINDS[kind]
    return Problem(direction, B, I, H, DTYPES[dtype], precision, f"elman_{nonlinearity}")


def forward(kind, tensors, nonlinearity="tanh", reverse=False, **blocks):
    x, _, w_hh = tensors[:3]
    site = per_step.Steps(problem("forward", kind, *x.shape[1:], len(w_hh), nonlinearity), plan(kind, **blocks))
    y, (hn,), _ = site.forward(*tensors[:5], tensors[5:], reverse)
    return y, hn


def backward(kind, w_hh, y, dy, dhn, nonlinearity="tanh", reverse=False, **blocks):
    B, H = y.shape[1:]
    site = per_step.Steps(problem("backward", kind, B, 1, H, nonlinearity), plan(kind, **blocks))
    return site.backward(w_hh, y, None, dy, (dhn,), reverse)[0]


def given(kind, device, *sizes, **options):
    return [None if t is None else t.detach().to(device) for t in inputs(kind, *sizes, **options)]


def check_forward(kind, tensors, nonlinearity="tanh", reverse=False, signal=1.0, **blocks):
    y, hn = forward(kind, tensors, nonlinearity, reverse, **blocks)
    exact = [None if t is None else t.detach() for t in fp64(tensors)]
    assert_close([y, hn], reference.rnn(*exact, nonlinearity, reverse), tolerance(kind, len(y), signal))
    assert y.is_contiguous() and hn.is_contiguous()
    assert torch.equal(hn, y[0 if reverse else -1]) and hn.untyped_storage().data_ptr() != y.untyped_storage().data_ptr()


def cotangents(kind, device, T, B, H):
    """w_hh, y with |y| < 1 (half of it not positive, some zero), dy, dhn"""
    dtype, _ = KINDS[kind]
    g = torch.Generator().manual_seed(T * B + H)
    w_hh = (torch.rand(H, H, generator=g, dtype=torch.float64) * 2 - 1) / H**0.5
    y = torch.rand(T, B, H, generator=g, dtype=torch.float64) * 2 - 1
    y[..., ::5] = 0
    dy, dhn = (torch.randn(s, generator=g, dtype=torch.float64) for s in ((T, B, H), (B, H)))
    return [t.to(dtype).to(device) for t in (w_hh, y, dy, dhn)]


def exact_backward(w_hh, y, dy, dhn, nonlinearity="tanh", reverse=False):
    w_hh, y, dy, dhn = (None if t is None else t.double().cpu() for t in (w_hh, y, dy, dhn))
    da = torch.empty_like(y)
    dh = torch.zeros_like(y[0]) if dhn is None else dhn
    for t in range(len(y)) if reverse else reversed(range(len(y))):
        dh = dh if dy is None else dh + dy[t]
        da[t] = dh * (1 - y[t] ** 2) if nonlinearity == "tanh" else torch.where(y[t] <= 0, 0, dh)
        dh = da[t] @ w_hh
    return da


def check_backward(kind, tensors, nonlinearity="tanh", reverse=False, **blocks):
    da = backward(kind, *tensors, nonlinearity, reverse, **blocks)
    assert_close([da], [exact_backward(*tensors, nonlinearity, reverse)], tolerance(kind, len(da)))
    assert da.is_contiguous()


# T, B, I, H: one of everything; whole tiles; ragged ends; rows that need padding; more batch tiles than a group has
SHAPES = [(1, 1, 1, 1), (2, 8, 16, 32), (3, 11, 5, 40), (4, 3, 7, 37), (2, 75, 3, 17)]


@pytest.mark.executed("ptx-3-11-5-40-bf16")
@pytest.mark.thin(3)
@kinds
@pytest.mark.parametrize("T, B, I, H", SHAPES)
def test_forward(kind, T, B, I, H, device):
    check_forward(kind, given(kind, device, T, B, I, H))


@pytest.mark.executed("ptx-3-11-5-40-tf32")
@pytest.mark.thin(3)
@kinds
@pytest.mark.parametrize("T, B, I, H", SHAPES)
def test_backward(kind, T, B, I, H, device):
    check_backward(kind, cotangents(kind, device, T, B, H))


@pytest.mark.executed
@pytest.mark.thin(3)
@kinds
@pytest.mark.parametrize("nonlinearity, reverse", [("tanh", True), ("relu", False), ("relu", True)])
def test_nonlinearity_and_direction(kind, nonlinearity, reverse, device):
    check_forward(kind, given(kind, device, 4, 3, 5, 19), nonlinearity, reverse)
    check_backward(kind, cotangents(kind, device, 4, 3, 19), nonlinearity, reverse)


@pytest.mark.thin(3)
@kinds
def test_small_signals(kind, device):
    signal = SMALL_SIGNALS[kind]
    check_forward(kind, given(kind, device, 3, 3, 9, 20, signal=signal), signal=signal)


@pytest.mark.executed
@pytest.mark.parametrize("which", ["weight", "state"])
def test_tf32_rounds_to_nearest(which, device):
    """The tensor core alone would cut 1 + 0.75 * 2^-10 down to 1."""
    value, one = torch.tensor([1 + 0.75 * 2.0**-10, 1.0], device=device)
    w_hh = torch.eye(24, device=device) * (value if which == "weight" else one)
    h0 = torch.full((2, 24), value if which == "state" else one, device=device)
    x, w_ih = torch.zeros(1, 2, 3, device=device), torch.ones(24, 3, device=device)
    _, hn = forward("tf32", [x, w_ih, w_hh, None, None, h0], "relu")
    assert torch.equal(hn, torch.full_like(hn, 1 + 2.0**-10))


@pytest.mark.executed
@pytest.mark.parametrize("blocks", [dict(block_b=32, block_h=64, block_k=32), dict(block_b=16, block_h=32, block_k=64)])
def test_blocks_larger_than_the_problem(blocks, device):
    check_forward("bf16", given("bf16", device, 3, 9, 5, 21), **blocks)
    check_backward("bf16", cotangents("bf16", device, 3, 9, 21), **blocks)


@pytest.mark.executed
@pytest.mark.parametrize("bias", list(itertools.product([False, True], repeat=2)))
@pytest.mark.parametrize("h0", [False, True])
def test_optional_inputs(bias, h0, device):
    for reverse in (False, True):
        check_forward("fp16", given("fp16", device, 2, 2, 6, 18, bias=bias, h0=h0), reverse=reverse)


@pytest.mark.executed
@pytest.mark.parametrize("kind", ["bf16", "ieee", "fp64"])
@pytest.mark.parametrize("absent", [2, 3])
def test_one_cotangent(kind, absent, device):
    for T, reverse in ((1, False), (3, False), (3, True)):
        tensors = cotangents(kind, device, T, 2, 18)
        tensors[absent] = None
        check_backward(kind, tensors, reverse=reverse)


@pytest.mark.executed
@pytest.mark.parametrize("H", [16, 21])
@pytest.mark.parametrize("kind", ["bf16", "tf32", "fp64"])
def test_strides(kind, H, device):
    """x and dy expanded, transposed, misaligned, of an inner stride of 2; transposed weights and states"""
    dtype, _ = KINDS[kind]
    T, B = 3, 4
    big = torch.randn(B, T, 2 * H + 1, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    big = big.to(dtype).to(device)
    w_ih, w_hh, b_ih, b_hh, h0 = (t.t().contiguous().t() for t in given(kind, device, T, B, H, H)[1:])
    _, y, _, dhn = cotangents(kind, device, T, B, H)
    for t in (
        big[:, :, :H].transpose(0, 1),
        big[:, :, 1 : H + 1].transpose(0, 1),
        big[:, :, 1 : 2 * H : 2].transpose(0, 1),
        big[:1, :, :H].transpose(0, 1).expand(T, B, H),
        big[:1, :1, :1].expand(T, B, H),
    ):
        check_forward(kind, [t, w_ih, w_hh, b_ih, b_hh, h0])
        check_backward(kind, [w_hh, y.transpose(0, 1).contiguous().transpose(0, 1), t, dhn.t().contiguous().t()])


@pytest.mark.executed
@pytest.mark.parametrize("strides", [(2**31, 16, 1), (32, 2**31, 1)])
def test_strides_beyond_32_bits(strides, device):
    """The steps or the rows of dy 2^31 elements apart: strides of 32 bits, in vectors, and offsets of more.  The memory
    between them is never touched."""
    if device == "cuda" and torch.cuda.mem_get_info()[0] < 20 * 2**30:
        pytest.fail("needs 20 GB of GPU memory")
    w_hh, y, dy, dhn = cotangents("ieee", device, 2, 2, 16)
    far = reserved(2**31 + 64, device).as_strided((2, 2, 16), strides)
    far.copy_(dy)
    site = per_step.Steps(problem("backward", "ieee", 2, 1, 16), plan("ieee"))
    expected, ours = (site.backward(w_hh, y, None, t, (dhn,))[0] for t in (dy, far))
    assert torch.equal(ours, expected)


@kinds
def test_every_element_is_written(kind, device, monkeypatch):
    """Outputs are allocated full of NaN, and memory around them is not touched."""
    guard, made = 64, []

    def poisoned(like, *shape):
        n = torch.Size(shape).numel()
        t = torch.full((n + 2 * guard,), float("nan"), dtype=like.dtype, device=like.device)
        made.append((t, n))
        return t[guard : guard + n].view(shape)

    monkeypatch.setattr(per_step, "empty", poisoned)
    for B, H in ((9, 17), (8, 16)):
        check_forward(kind, given(kind, device, 2, B, 5, H))
        check_backward(kind, cotangents(kind, device, 2, B, H))
    assert len(made) == 4
    for t, n in made:
        assert t[:guard].isnan().all() and t[guard + n :].isnan().all()
        assert not t[guard : guard + n].isnan().any()


def same_kind(ours, exact, limit):
    """NaN and inf where the reference has them, close elsewhere"""
    ours = ours.double().cpu()
    assert torch.equal(ours.isnan(), exact.isnan()) and torch.equal(ours.isinf(), exact.isinf())
    finite = exact.isfinite()
    assert_close([ours[finite]], [exact[finite]], limit)


@pytest.mark.executed
@pytest.mark.thin(3)
@kinds
@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_nan_and_inf(kind, nonlinearity, bad, device):
    """They reach what they reach in torch, and no other row of the batch; padding (H = 17) spreads none."""
    x, *weights = given(kind, device, 3, 3, 4, 17)
    x[1, 1, 2] = bad
    y, _ = forward(kind, [x, *weights], nonlinearity)
    exact, _ = reference.rnn(*(t.detach() for t in fp64([x, *weights])), nonlinearity)
    same_kind(y, exact, tolerance(kind, 3))
    w_hh, y, dy, dhn = cotangents(kind, device, 3, 3, 17)
    dy[2, 1, 4] = bad
    y[1, 2, 3] = float("nan")
    da = backward(kind, w_hh, y, dy, dhn, nonlinearity)
    same_kind(da, exact_backward(w_hh, y, dy, dhn, nonlinearity), tolerance(kind, 3))


@pytest.mark.executed
@pytest.mark.parametrize("H", [16, 17])
@kinds
def test_infinite_weight(kind, H, device):
    """The first forward step multiplies zeros by it where there is no h0; the first backward step does not, as in torch."""
    tensors = given(kind, device, 2, 3, 4, H, h0=False)
    tensors[2][5, 7] = float("inf")
    y, _ = forward(kind, tensors, "relu")
    assert y[..., 5].isnan().all()
    w_hh, y, dy, dhn = cotangents(kind, device, 2, 3, H)
    w_hh[5, 7] = float("inf")
    da = backward(kind, w_hh, y, dy, dhn)
    assert da[-1].isfinite().all() and not da[0, :, 7].isfinite().any()
    same_kind(da, exact_backward(w_hh, y, dy, dhn), tolerance(kind, 2))


@pytest.mark.gpu
def test_cuda_graph():
    """Capture and replay of forward and backward: no host sync, nothing keyed to host state"""
    tensors = given("bf16", "cuda", 6, 9, 16, 70)

    def run():
        y, hn = forward("bf16", tensors)
        return [y, hn, backward("bf16", tensors[2], y, y, hn)]

    expected = [t.clone() for t in run()]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run()
    for _ in range(2):
        for t in captured:
            t.fill_(float("nan"))
        graph.replay()
        torch.cuda.synchronize()
        assert all(torch.equal(a, b) for a, b in zip(captured, expected, strict=True))


@pytest.mark.gpu
@pytest.mark.long
def test_offsets_beyond_32_bits():
    """u of more than 2^31 vectors, y of more than 2^33 elements"""
    if torch.cuda.mem_get_info()[0] < 60 * 2**30:
        pytest.fail("needs 60 GB of GPU memory")
    T, B, I, H = 2**14 + 8, 512, 8, 1024
    x, *weights = given("bf16", "cuda", 8, B, I, H)
    x = x.repeat(T // 8, 1, 1)
    blocks = dict(block_b=64, block_h=64, block_k=64)
    y, hn = forward("bf16", [x, *weights], **blocks)
    assert torch.equal(y[-1], hn)
    again, _ = forward("bf16", [x[-8:], *weights[:4], y[-9]], **blocks)
    assert torch.equal(y[-8:], again)


# Cells of several gates, against torch.nn's in fp64

MODULES = {"gru": torch.nn.GRU, "lstm": torch.nn.LSTM}


def gated_inputs(name, kind, T, B, I, H):
    """(module in fp64, x, [h0] or [h0, c0], gradients of y and of the last states), all of values that the dtype has"""
    generator = torch.Generator().manual_seed(T + B + I + H)
    dtype = KINDS[kind][0]

    def normal(*shape):
        return torch.randn(shape, generator=generator).to(dtype).double()

    module = MODULES[name](I, H, dtype=torch.float64)
    for p in module.parameters():
        p.data = ((torch.rand(p.shape, generator=generator) * 2 - 1) / H**0.5).to(dtype).double()
    states = [normal(B, H) for _ in cells.named(name).states]
    return module, normal(T, B, I), states, [normal(T, B, H), *[normal(B, H) for _ in states]]


def check_gated(name, kind, device, T, B, I, H, reverse=False, bias=True, **blocks):
    """Forward and backward, and the gradients that follow from da, relative in the Frobenius norm as in test_gates.py"""
    module, x, states, cotangents = gated_inputs(name, kind, T, B, I, H)
    dtype, precision = KINDS[kind]
    of = cells.named(name)
    if not bias:
        module.bias_ih_l0.data.zero_()
        module.bias_hh_l0.data.zero_()
    leaves = [x, *module.parameters(), *states]
    for t in leaves:
        t.requires_grad_()
    last = tuple([t[None] for t in states]) if len(states) > 1 else states[0][None]
    exact_y, last = module(x.flip(0) if reverse else x, last)
    exact_y = exact_y.flip(0) if reverse else exact_y
    exact = [exact_y, *[t[0] for t in (last if len(states) > 1 else (last,))]]
    gradients = torch.autograd.grad(exact, leaves, cotangents)

    tensors = [t.detach().to(device, dtype) for t in leaves]
    biases, first = tensors[3:5] if bias else [None, None], tensors[5:]
    dy, *dstates = [t.to(device, dtype) for t in cotangents]
    plans = plan(kind, **blocks)
    site = per_step.Steps(Problem("forward", B, I, H, DTYPES[dtype], precision, name), plans)
    y, last, kept = site.forward(*tensors[:3], *biases, first, reverse, True)
    again = site.forward(*tensors[:3], *biases, first, reverse)
    assert torch.equal(again[0], y) and again[2] is None
    assert all(t.is_contiguous() and t.dtype == dtype for t in (y, *last, kept)) and kept.shape == (T, B, of.kept, H)
    site = per_step.Steps(Problem("backward", B, 1, H, DTYPES[dtype], precision, name), plans)
    da, dfirst = site.backward(tensors[2], y, kept, dy, dstates, reverse)

    da = da.double().cpu()
    d_in, split = da[..., -len(of.gates) * H :], len(of.split) * H
    d_rec = torch.cat([da[..., split : len(of.gates) * H], da[..., :split]], -1)  # the gates of W_hh in torch's order
    y, last = y.double().cpu(), [t.double().cpu() for t in last]
    x, w_ih, w_hh, h0 = (t.detach() for t in (x, module.weight_ih_l0, module.weight_hh_l0, states[0]))
    before = torch.cat([y[1:], h0[None]] if reverse else [h0[None], y[:-1]])
    lacking = [0 if t is None else t.double().cpu() for t in dfirst]
    found = [
        y, *last, d_in @ w_ih, torch.einsum("tba,tbi->ai", d_in, x), torch.einsum("tba,tbk->ak", d_rec, before), d_in.sum((0, 1)),
        d_rec.sum((0, 1)), d_rec[-1 if reverse else 0] @ w_hh + lacking[0], *lacking[1:],
    ]  # fmt: skip
    *_, u_state, u_product = ROUNDING[kind]
    limit = 4 * (u_state * (1 + of.kept) ** 0.5 + 2 * u_product) * (2 * T + 1) ** 0.5
    for n, (ours, value) in enumerate(zip(found, [*exact, *gradients], strict=True)):
        error = (ours - value).norm() / value.norm()
        assert error <= limit, f"number {n}: error {error:.2e} > {limit:.2e}"


@pytest.mark.executed("ptx-bf16-4-11-5-40-False-gru", "ptx-tf32-3-3-7-21-True-lstm")
@pytest.mark.parametrize("name", list(MODULES))
@pytest.mark.parametrize("kind, T, B, I, H, reverse", [
    ("bf16", 4, 11, 5, 40, False), ("fp16", 1, 3, 4, 16, False), ("tf32", 3, 3, 7, 21, True), ("tf32x3", 2, 2, 3, 19, False),
    ("ieee", 3, 9, 6, 33, True), ("fp64", 3, 3, 5, 21, True), ("fp64", 1, 2, 3, 7, False),
])  # fmt: skip
def test_gates(name, kind, T, B, I, H, reverse, device):
    check_gated(name, kind, device, T, B, I, H, reverse)


@pytest.mark.parametrize("name", list(MODULES))
def test_gates_without_biases(name, device):
    check_gated(name, "ieee", device, 2, 3, 4, 18, bias=False, block_h=32, block_k=32)


@pytest.mark.parametrize("name", list(MODULES))
def test_gates_without_what_is_optional(name, device):
    """States that are not given are zeros; of the gradients one is enough."""
    module, x, states, (dy, *dstates) = gated_inputs(name, "fp64", 3, 2, 4, 18)
    tensors = [t.detach().to(device) for t in (x, *module.parameters())]
    site = per_step.Steps(Problem("forward", 2, 4, 18, "fp64", None, name), plan("fp64"))
    zeros = [torch.zeros_like(t).to(device) for t in states]
    y, last, kept = site.forward(*tensors, [None] * len(states), False, True)
    expected = site.forward(*tensors, zeros)
    assert all(map(torch.equal, (y, *last), (expected[0], *expected[1])))
    site = per_step.Steps(Problem("backward", 2, 1, 18, "fp64", None, name), plan("fp64"))
    given = [dy, *dstates]
    for n in range(len(given)):
        some = [t.to(device) if k == n else None for k, t in enumerate(given)]
        whole = [t.to(device) if k == n else torch.zeros_like(t).to(device) for k, t in enumerate(given)]
        of_some, of_whole = (site.backward(tensors[2], y, kept, of[0], of[1:]) for of in (some, whole))
        assert torch.equal(of_some[0], of_whole[0])


# What is launched: with a kernel that is none, where there is no GPU


@pytest.fixture
def calls(monkeypatch):
    """Launches through Triton ("jit", grid, arguments) and by the kept kernel ("kept", grid, arguments, stream)"""
    made = []

    class Kernel:  # stands for triton's CompiledKernel
        def __getitem__(self, grid):
            return lambda *arguments, stream=None: made.append(("kept", grid, arguments, stream))

    class Jit:
        def __getitem__(self, grid):
            def run(*arguments, num_warps, num_stages, maxnreg, **constexprs):
                made.append(("jit", grid, (*arguments, *constexprs.values())))
                return Kernel()

            return run

    class Driver:
        def get_current_device(self):
            return 3

        def get_current_stream(self, device):
            return 100 + device

    monkeypatch.setattr(per_step, "per_step", Jit())
    monkeypatch.setattr(torch.cuda, "current_device", lambda: None)  # a CPU tensor's index
    monkeypatch.setattr(type(per_step.driver), "active", Driver())
    return made


@pytest.mark.parametrize("reverse", [False, True])
def test_launches_of_a_forward(calls, reverse):
    tensors = given("bf16", "cpu", 4, 19, 8, 40)
    site = per_step.Steps(problem("forward", "bf16", 19, 8, 40), plan("bf16"))
    order = [3, 2, 1, 0] if reverse else [0, 1, 2, 3]
    for first in ("jit", "kept"):
        calls.clear()
        y, *_ = site.forward(*tensors[:5], tensors[5:], reverse)
        assert [call[0] for call in calls] == [first, "kept", "kept", "kept"]
        addresses = [[t if isinstance(t, int) else t.data_ptr() for t in call[2][:11]] for call in calls]
        w_hh, h0, out = tensors[2].data_ptr(), tensors[5].data_ptr(), y.data_ptr()
        assert addresses[0][1:] == [w_hh, out, out, h0, *[out] * 6]
        assert [a[1:] for a in addresses[1:]] == [[w_hh, *[out] * 9]] * 3
        assert len({a[0] for a in addresses}) == 1
        strides = (19 * 40 // 4, 40 // 4)  # of u, which is fp32, in vectors
        assert [call[2][15:21] for call in calls] == [
            (t, before, 40, 19, *strides) for t, before in zip(order, [0, *order], strict=False)
        ]
        assert {call[1] for call in calls} == {(9, 1, 1)}
        assert {len(call[2]) for call in calls} == {len(kernel.arg_names)}
        assert {call[3] for call in calls[1:]} == {103}  # the current device's current stream


def test_launches_of_a_backward(calls):
    w_hh, y, dy, dhn = cotangents("bf16", "cpu", 3, 2, 40)
    da, _ = per_step.Steps(problem("backward", "bf16", 2, 1, 40), plan("bf16")).backward(w_hh, y, None, dy, (dhn,))
    assert [call[0] for call in calls] == ["jit", "kept", "kept"]
    for _, _, arguments, *_ in calls:
        pointers = [t if isinstance(t, int) else t.data_ptr() for t in arguments[:11]]
        assert pointers == [t.data_ptr() for t in (dy, w_hh, da, da, da, dhn, y, *[da] * 4)]
    assert [call[2][15:21] for call in calls] == [
        (2, 0, 0, 2, 10, 5), (1, 2, 40, 2, 10, 5), (0, 1, 40, 2, 10, 5),
    ]  # fmt: skip


def test_wide_strides_go_through_triton(calls):
    """which compiles another kernel for 64-bit arguments"""
    w_hh, y, _, _ = cotangents("bf16", "cpu", 3, 2, 16)
    site = per_step.Steps(problem("backward", "bf16", 2, 1, 16), plan("bf16"))
    near = torch.zeros(3, 2, 16, dtype=torch.bfloat16)
    site.backward(w_hh, y, None, near, (None,))
    calls.clear()
    far = torch.empty_strided((3, 2, 16), (2**34, 16, 1), dtype=torch.bfloat16, device="meta")
    site.backward(w_hh, y, None, far, (None,))
    assert [call[0] for call in calls] == ["jit"] * 3


def test_operands_are_in_the_kernels_order():
    """A launch hands them over by position."""
    names = [f"{name}_ptr" for name in per_step.Operands._fields]
    assert [name for name in kernel.arg_names if name.endswith("_ptr")] == kernel.arg_names[: len(names)] == names


def test_constants_are_in_the_kernels_order():
    """A kept launcher takes them by position."""
    for direction in ("forward", "backward"):
        of = problem(direction, "bf16", 3, 4, 5)
        names = list(per_step.constants(of, plan("bf16"), tuple(per_step.present(of).values())))
        assert [n for n in kernel.arg_names if n not in names] == kernel.arg_names[:21]
        assert names == kernel.arg_names[21:]


# Compiled, without a GPU

# (block_b, block_h, block_k, warps, stages): the smallest, and the largest that fits everywhere
LARGEST = {
    "bf16": (128, 128, 64, 8, 3),
    "fp16": (128, 128, 64, 8, 3),
    "tf32": (64, 128, 32, 8, 3),
    "tf32x3": (32, 64, 32, 4, 4),
    "ieee": (64, 64, 32, 4, 3),
    "fp64": (64, 64, 16, 8, 3),
}
SMALLEST = {"bf16": (8, 32, 128, 4, 4), "fp16": (8, 32, 128, 4, 4), "fp64": (16, 64, 16, 4, 3)}


DEFAULT = [("bf16", 90, 1001), ("tf32x3", 90, 1001), ("fp64", 80, 1001)]  # of cells of several gates


def compiled_cases():
    for kind, capability, direction, H in itertools.product(KINDS, (90, 80, 100), ("forward", "backward"), (1024, 1001)):
        for sizes in (LARGEST[kind], SMALLEST.get(kind, (8, 32, 64, 4, 3))):
            default = (
                (kind != "fp16" and (capability == 90 or kind == "bf16"))
                and direction == "backward"
                and (H == 1001) == (capability == 90)
                and sizes == LARGEST[kind]
            )
            yield pytest.param(kind, capability, direction, H, sizes, marks=() if default else pytest.mark.long)


@pytest.mark.compiled
@pytest.mark.parametrize("kind, capability, direction, H, sizes", list(compiled_cases()))
def test_compiles(kind, capability, direction, H, sizes):
    """No spills, shared memory that every device has, tensor cores, and operands in 16-byte asynchronous copies."""
    kernel = per_step.compile_ahead(
        problem(direction, kind, 500, 64, H), plan(kind, *sizes), hardware.RECORDS[f"sm_{capability}"]
    )
    (_, stack, _), listing = resources._cuobjdump(kernel.asm["cubin"])
    opcodes = [instruction.opcode for instruction in machine_code.parse_sass(listing)]

    def count(*prefixes):
        return sum(opcode.startswith(prefixes) for opcode in opcodes)

    assert stack == 0 and not count("STL", "LDL")
    assert kernel.metadata.shared <= 99 * 1024
    if kind == "fp64":  # Triton has no fp64 instruction of sm_100's tensor core
        assert bool(count("DMMA")) == (capability < 100)
    else:
        assert bool(count("HMMA", "HGMMA", "UTCHMMA")) == (kind != "ieee")
    copies = [opcode for opcode in opcodes if opcode.startswith("LDGSTS")]
    assert copies and all(".128" in opcode for opcode in copies)
    # a thread of the smallest tile has two elements
    assert all(machine_code.width_of(opcode) >= 4 for opcode in opcodes if opcode.startswith(("LDG.", "STG.")))


@pytest.mark.compiled
@pytest.mark.parametrize("name", list(MODULES))
@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("kind, capability, H", [
    *[pytest.param(kind, capability, H, marks=[pytest.mark.long] if (kind, capability, H) not in DEFAULT else [])
      for kind in KINDS for capability in (90, 80, 100) for H in (1024, 1001)],
])  # fmt: skip
def test_planned_gates_compile(name, direction, kind, capability, H):
    """The planned tiles of the largest batch: no spills, and shared memory that every device has"""
    device = hardware.RECORDS[f"sm_{capability}"]
    dtype, precision = KINDS[kind]
    of = Problem(direction, 500, 64 if direction == "forward" else 1, H, DTYPES[dtype], precision, name)
    (planned,) = candidates.per_step(of, device, False, {})
    kernel = per_step.compile_ahead(of, planned, device)
    (_, stack, _), listing = resources._cuobjdump(kernel.asm["cubin"])
    opcodes = [instruction.opcode for instruction in machine_code.parse_sass(listing)]
    assert stack == 0 and not any(opcode.startswith(("STL", "LDL")) for opcode in opcodes)
    assert kernel.metadata.shared <= 99 * 1024
    copies = [opcode for opcode in opcodes if opcode.startswith("LDGSTS")]
    assert copies and all(".128" in opcode for opcode in copies)


@pytest.mark.parametrize("kind", ["bf16", "tf32", "fp64"])
def test_rows_are_whole_vectors(kind):
    for H in (1, 7, 8, 1000, 1001):
        p = problem("forward", kind, 3, 4, H)
        constants = per_step.constants(p, plan(kind), tuple(per_step.present(p).values()))
        shape = constants["SHAPE"].plain
        assert shape["H"] == H and shape["row"] == row_units(H, p.dtype)
        assert shape["row"] % shape["u_unit"] == 0
