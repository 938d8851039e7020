"""The kernels themselves: by interpreter where there is no GPU, on it where there is one.

Reference: reference.py in fp64, of the same rounded inputs.  Tolerances are relative, in the Frobenius norm:

    tolerance = 4 * (u_state + 2 u_product) * sqrt(T + 1)

A step rounds its state once, relative rms at most u / sqrt(3); steps are independent and their errors add in quadrature
through a step map whose gain is about one (the weights of nn.RNN have a spectral norm of about 1.15, act' <= 1).
u_product is what rounding both operands of a product costs (tf32 only: other dtypes multiply their stored values); fp32
accumulates in fp32.  4 covers sqrt(3) - 1 spread, accumulation, tanh, and the second pass of a gradient.
"""

import dataclasses
import itertools

import pytest
import torch
from support import ops
from support.memory import reserved
from support.problems import SMALL_SIGNALS, gradients, like, problem, state_roundoff
from support.recorder import Recorder

import rnn_triton
from rnn_triton.cells import reference
from rnn_triton.launch import dispatch, launcher, recurrence
from rnn_triton.plan import choose, hardware
from rnn_triton.plan.problem import Problem

KINDS = {
    "bf16": (torch.bfloat16, None),
    "fp16": (torch.float16, None),
    "tf32": (torch.float32, "tf32"),
    "tf32x3": (torch.float32, "tf32x3"),
    "ieee": (torch.float32, "ieee"),
    "fp64": (torch.float64, None),
}
U_STATE = {"bf16": 2.0**-8, "fp16": 2.0**-11, "tf32": 2.0**-24, "tf32x3": 2.0**-24, "ieee": 2.0**-24, "fp64": 2.0**-53}
U_PRODUCT = {"tf32": 2.0**-11, "tf32x3": 2.0**-24}

kinds = pytest.mark.parametrize("kind", list(KINDS))


def tolerance(kind, T, signal=1.0):
    return 4 * (state_roundoff(kind, U_STATE[kind], signal) + 2 * U_PRODUCT.get(kind, 0.0)) * (T + 1) ** 0.5


def assert_close(actual, expected, limit):
    """Relative error in the Frobenius norm; an expected zero must come out exactly."""
    for a, e in zip(actual, expected, strict=True):
        assert a.shape == e.shape
        error = (a.detach().double().cpu() - e).norm() / e.norm() if e.norm() > 0 else a.abs().max()
        assert error <= limit, f"error {error:.2e} > {limit:.2e}"  # NaN fails


def fp64(tensors):
    return [None if t is None else t.detach().cpu().double().requires_grad_() for t in tensors]


def check(tensors, kind, device, nonlinearity="tanh", reverse=False, given=(True, True), signal=1.0):
    """y, hn and every gradient of sum(y c) + sum(hn d); an output whose `given` is False has no cotangent."""
    _, precision = KINDS[kind]
    T = tensors[0].shape[0]
    exact = fp64(tensors)
    there = [None if t is None else t.detach().to(device).requires_grad_() for t in tensors]
    ours = rnn_triton.rnn(*there, nonlinearity=nonlinearity, reverse=reverse, precision=precision)
    theirs = reference.rnn(*exact, nonlinearity, reverse)
    assert_close(ours, theirs, tolerance(kind, T, signal))
    cotangents = [c if g else None for c, g in zip(like(ours), given, strict=True)]
    expected = gradients(theirs, [None if c is None else c.cpu().double() for c in cotangents], exact)
    # relu: a unit within rounding of zero may be on here and off there, which is no error of the kernel's
    assert_close(gradients(ours, cotangents, there), expected, tolerance(kind, 2 * T, signal))
    return ours


def inputs(kind, T, B, I, H, **options):
    return problem(T, B, I, H, dtype=KINDS[kind][0], **options)


# T, B, I, H: one step; one row; odd and prime sizes; padding of H; a partly filled second batch tile; several chunks of I
SHAPES = [
    (1, 1, 1, 1), (2, 1, 3, 5), (3, 3, 13, 17), (4, 8, 16, 16), (3, 9, 33, 31), (5, 2, 40, 24), (2, 17, 70, 47),
    (3, 2, 64, 64),
]  # fmt: skip


@pytest.mark.executed("ptx-3-9-33-31-bf16", "ptx-3-3-13-17-tf32", "ptx-3-3-13-17-ieee", "ptx-3-3-13-17-fp64")
@pytest.mark.thin(3)
@kinds
@pytest.mark.parametrize("T, B, I, H", SHAPES)
def test_values_and_gradients(kind, T, B, I, H, device):
    check(inputs(kind, T, B, I, H), kind, device)


@pytest.mark.executed
@pytest.mark.thin(3)
@kinds
@pytest.mark.parametrize("nonlinearity, reverse", [("tanh", True), ("relu", False), ("relu", True)])
def test_nonlinearity_and_direction(kind, nonlinearity, reverse, device):
    check(inputs(kind, 4, 3, 9, 20), kind, device, nonlinearity, reverse)


@pytest.mark.executed
@pytest.mark.thin(3)
@pytest.mark.parametrize("bias", list(itertools.product([False, True], repeat=2)))
@pytest.mark.parametrize("h0", [False, True])
def test_optional_inputs(bias, h0, device):
    for reverse in (False, True):
        check(inputs("fp16", 3, 2, 6, 18, bias=bias, h0=h0), "fp16", device, reverse=reverse)


@pytest.mark.executed
@pytest.mark.thin(3)
@pytest.mark.parametrize("given", [(True, False), (False, True)])
@pytest.mark.parametrize("kind", ["bf16", "ieee", "fp64"])
def test_loss_of_one_output(kind, given, device):
    for reverse in (False, True):
        check(inputs(kind, 3, 2, 5, 18, h0=False), kind, device, reverse=reverse, given=given)


@pytest.mark.executed
@pytest.mark.parametrize("kind, H", [("bf16", 256), ("fp16", 250), ("bf16", 200), ("tf32", 128), ("tf32x3", 127), ("ieee", 128)])
def test_largest_sizes(kind, H, device):
    check(inputs(kind, 2, 2, 9, H), kind, device)


def test_x_of_one_step_alone(device):
    """H above 128 with W_ih in shared memory leaves no registers to load x ahead"""
    problem = Problem("forward", 2, 70, 136, "bf16", None, "elman_tanh")
    p = choose.plan(problem, hardware.of(torch.device(device)))
    assert (p.w_ih_home, p.x_depth) == ("shared", 0)
    check(inputs("bf16", 3, 2, 70, 136), "bf16", device)


@pytest.mark.executed
@pytest.mark.parametrize("kind, I", [("bf16", 304), ("bf16", 1001), ("tf32", 180), ("tf32x3", 100), ("ieee", 200)])
def test_homes_of_w_ih(kind, I, device):
    """registers, shared memory and a GEMM before the launch, as the planner picks them"""
    check(inputs(kind, 3, 2, I, 16), kind, device)


def test_every_home_is_reached():
    device = hardware.RECORDS["sm_90"]
    homes = {
        choose.plan(Problem("forward", 2, I, 16, "bf16", None, "elman_tanh"), device).w_ih_home for I in (9, 304, 1001)
    }
    assert homes == {"registers", "shared", "gemm"}


@pytest.mark.executed
@pytest.mark.parametrize("kind", ["bf16", "fp16"])
def test_batch_tile_of_16(kind, device, monkeypatch):
    """The plan of large batches, reached with few rows by a device record of one SM"""
    of = hardware.of
    monkeypatch.setattr(dispatch.hardware, "of", lambda d: dataclasses.replace(of(d), sms=1))
    dispatch._launch_for.cache_clear()
    try:
        for T, B, I, H in ((3, 37, 40, 24), (2, 16, 130, 64)):
            call = ("forward", B, I, H, KINDS[kind][0], None, "elman_tanh", (), torch.device(device))
            assert dispatch._launch_for(call, ()).plan.block_b == 16
            check(inputs(kind, T, B, I, H), kind, device)
    finally:
        dispatch._launch_for.cache_clear()


@pytest.mark.executed
@pytest.mark.thin(3)
@pytest.mark.parametrize("kind", ["bf16", "tf32", "fp64"])
def test_strides(kind, device):
    """Expanded, transposed (batch_first), sliced, misaligned and non-unit inner strides, of inputs and of cotangents."""
    dtype, precision = KINDS[kind]
    T, B, I, H = 3, 4, 16, 16
    x, *rest = inputs(kind, T, B, I, H)
    w_ih, w_hh, b_ih, b_hh, h0 = rest
    g = torch.Generator().manual_seed(3)
    big = torch.randn(B, T, 2 * I + 1, generator=g, dtype=torch.float64).to(dtype)
    for x in (
        big[:, :, :I].transpose(0, 1),  # batch first, rows 16-byte misaligned
        big[:, :, 1 : 2 * I : 2].transpose(0, 1),  # inner stride 2
        big[:1, :, :I].transpose(0, 1).expand(T, B, I),  # one sequence for the whole batch
        big[:, :1, 1 : I + 1].transpose(0, 1).expand(T, B, I),  # the same input at every step, misaligned
    ):
        tensors = [x, w_ih.t().contiguous().t(), w_hh.t().contiguous().t(), b_ih, b_hh, h0.t().contiguous().t()]
        check(tensors, kind, device)
    exact = fp64([x, *rest])
    there = [t.detach().to(device).requires_grad_() for t in (x, *rest)]
    y, _ = rnn_triton.rnn(*there, precision=precision)
    y_exact, _ = reference.rnn(*exact)
    for c in (
        torch.ones(1, 1, 1, dtype=dtype).expand(T, B, H),
        big[:, :, :H].transpose(0, 1),
        big[:, :, 1 : 2 * H : 2].transpose(0, 1),
    ):
        ours = torch.autograd.grad(y, there, c.to(device), retain_graph=True)
        theirs = torch.autograd.grad(y_exact, exact, c.double(), retain_graph=True)
        assert_close(ours, theirs, tolerance(kind, 2 * T))


@kinds
def test_every_element_is_written(kind, device, monkeypatch):
    """Outputs are allocated full of NaN, and memory around them is not touched."""
    guard = 64
    made = []

    def poisoned(*shape, like):
        n = torch.Size(shape).numel()
        t = torch.full((n + 2 * guard,), float("nan"), dtype=like.dtype, device=like.device)
        made.append((t, n))
        return t[guard : guard + n].view(shape)

    monkeypatch.setattr(recurrence, "empty", lambda like, *shape: poisoned(*shape, like=like))
    for T, B, I, H in ((2, 9, 5, 17), (3, 8, 8, 16)):
        check(inputs(kind, T, B, I, H), kind, device)
    assert len(made) == 2 * 3  # y, hn and da
    for t, n in made:
        assert t[:guard].isnan().all() and t[guard + n :].isnan().all()
        assert not t[guard : guard + n].isnan().any()


@kinds
def test_small_signals(kind, device):
    """keep their relative accuracy: what is small beside 1 is not lost"""
    signal = SMALL_SIGNALS[kind]
    check(inputs(kind, 3, 3, 9, 20, signal=signal), kind, device, signal=signal)


@kinds
def test_saturation(kind, device):
    """Pre-activations far beyond exp's range: +-1 exactly, gradients of zero, no NaN."""
    dtype, precision = KINDS[kind]
    x, w_ih, w_hh, b_ih, b_hh, h0 = (t.detach().to(device) for t in inputs(kind, 3, 2, 4, 18))
    x = (x.sign() * 1e4).requires_grad_()
    w_ih = torch.ones_like(w_ih).mul(0.75)
    x.data[..., 1:] = 0
    y, hn = rnn_triton.rnn(x, w_ih, w_hh, b_ih, b_hh, h0, precision=precision)
    assert torch.equal(y, x[..., :1].sign().expand_as(y).to(dtype))
    (dx,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(dx, torch.zeros_like(dx))


@pytest.mark.executed
@pytest.mark.thin(3)
@pytest.mark.parametrize("kind", ["bf16", "fp16", "tf32", "tf32x3", "ieee", "fp64"])
@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_nan_and_inf(kind, nonlinearity, bad, device):
    """They reach what they reach in torch, and no other row of the batch."""
    dtype, precision = KINDS[kind]
    tensors = inputs(kind, 3, 3, 4, 18)
    tensors[0].data[1, 1, 2] = bad
    exact = fp64(tensors)
    there = [t.detach().to(device).requires_grad_() for t in tensors]
    ours = rnn_triton.rnn(*there, nonlinearity=nonlinearity, precision=precision)
    theirs = reference.rnn(*exact, nonlinearity)
    for a, e in zip(ours, theirs, strict=True):
        a, e = a.detach().cpu().double(), e.detach()
        assert torch.equal(a.isnan(), e.isnan())
        assert torch.equal(a.isinf(), e.isinf())
        finite = e.isfinite()
        assert_close([a[finite]], [e[finite]], tolerance(kind, 3))
    y_ours, y_theirs = ours[0], theirs[0]
    dx_ours = torch.autograd.grad(y_ours.sum(), there[0])[0].cpu()
    dx_theirs = torch.autograd.grad(y_theirs.sum(), exact[0])[0]
    assert torch.equal(dx_ours.isnan(), dx_theirs.isnan())


@pytest.mark.executed
@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("T", [1, 2])
def test_infinite_weight(kind, T, device):
    """W_hh is first multiplied in the second backward step, as in torch: one step has finite gradients."""
    _, precision = KINDS[kind]
    tensors = inputs(kind, T, 3, 4, 18, h0=False)
    tensors[2].data[5, 7] = float("inf")
    tensors[2] = tensors[2].detach()
    there = [None if t is None else t.detach().to(device).requires_grad_(t.requires_grad) for t in tensors]
    exact = [None if t is None else t.detach().double().requires_grad_(t.requires_grad) for t in tensors]
    y, _ = rnn_triton.rnn(*there, nonlinearity="relu", precision=precision)
    y_exact, _ = reference.rnn(*exact, "relu")
    dx, dx_exact = torch.autograd.grad(y.sum(), there[0])[0], torch.autograd.grad(y_exact.sum(), exact[0])[0]
    assert torch.equal(dx[-1].cpu().isfinite(), dx_exact[-1].isfinite())
    assert dx[-1].isfinite().all()


@pytest.mark.executed("ptx-x")
@pytest.mark.parametrize("which", ["x", "dy"])
def test_batch_stride_beyond_32_bits(which, device):
    """Two sequences 2^31 elements apart; the memory between them is never touched.  After a call with narrow strides, whose
    kernel is kept: it has 32 bits for a stride.  (Rows are no whole vectors: strides are counted in elements.)"""
    if device == "cuda" and torch.cuda.mem_get_info()[0] < 20 * 2**30:
        pytest.fail("needs 20 GB of GPU memory")
    T, B, N = 2, 2, 17
    x, *weights = (None if t is None else t.detach().to(device) for t in inputs("ieee", T, B, N, N))
    far = reserved(2**31 + T * N, device).as_strided((T, B, N), (N, 2**31, 1))
    far.copy_(x)
    if which == "x":
        expected, ours = (rnn_triton.rnn(t, *weights, precision="ieee")[0] for t in (x, far))
    else:
        y = torch.rand(T, B, N, generator=torch.Generator().manual_seed(0)).to(device)
        expected, ours = (dispatch.backward(weights[1], y, None, t, (None,), "elman_tanh", False, "ieee")[0] for t in (x, far))
    assert torch.equal(ours, expected)


@pytest.mark.executed
@pytest.mark.parametrize("kind", ["bf16", "ieee"])
def test_misaligned_addresses(kind, device):
    """Every tensor a view that starts in the middle of a 16-byte vector"""
    dtype, precision = KINDS[kind]
    tensors = inputs(kind, 3, 2, 16, 32)

    def shifted(t):
        return torch.cat([t.new_zeros(1), t.detach().flatten()]).to(device)[1:].view(t.shape)

    there = [shifted(t).requires_grad_() for t in tensors]
    assert all(t.data_ptr() % 16 for t in there)
    exact = fp64(tensors)
    y, _ = rnn_triton.rnn(*there, precision=precision)
    y_exact, _ = reference.rnn(*exact)
    c = shifted(like([y])[0].cpu())
    assert_close([y], [y_exact.detach()], tolerance(kind, 3))
    ours, theirs = torch.autograd.grad(y, there, c), torch.autograd.grad(y_exact, exact, c.cpu().double())
    assert_close(ours, theirs, tolerance(kind, 6))


@pytest.mark.parametrize("reverse", [False, True])
def test_gradcheck(reverse, device):
    """First-order gradients by the fp64 kernels against finite differences"""
    tensors = [t.detach().to(device).requires_grad_() for t in inputs("fp64", 3, 2, 3, 4)]
    assert torch.autograd.gradcheck(lambda *a: rnn_triton.rnn(*a, reverse=reverse), tensors, fast_mode=True)


@pytest.mark.parametrize("kind", ["bf16", "tf32", "fp64"])
def test_a_forward_is_one_launch_and_no_gemm(kind, device, monkeypatch):
    launches = []
    original = launcher.Launcher.__call__
    monkeypatch.setattr(launcher.Launcher, "__call__", lambda *a: launches.append(a) or original(*a))
    tensors = [t.detach().to(device) for t in inputs(kind, 3, 2, 16, 32)]
    with Recorder() as recorder:
        ops.run_forward(*tensors, "tanh", False, KINDS[kind][1])
    assert len(launches) == 1
    assert "aten::new_empty" in recorder.names  # the recorder sees what is inside
    assert not [n for n in recorder.names if any(gemm in n for gemm in ("mm", "matmul", "linear", "dot", "conv"))]
    assert "aten::_local_scalar_dense" not in recorder.names  # no host sync


@pytest.mark.executed
@pytest.mark.thin(3)
@kinds
def test_bitwise_the_same_every_run(kind, device):
    _, precision = KINDS[kind]

    def run():
        there = [t.detach().to(device).requires_grad_() for t in inputs(kind, 3, 9, 20, 33)]
        outputs = rnn_triton.rnn(*there, precision=precision)
        return [*outputs, *gradients(outputs, like(outputs), there)]

    assert all(torch.equal(a, b) for a, b in zip(run(), run(), strict=True))


@pytest.mark.gpu
def test_many_steps():
    """T > 65,535, where a 32-bit step offset or a 16-bit grid dimension would break"""
    T, B, I, H = 70_000, 1, 8, 16
    tensors = [t.detach().cuda().requires_grad_() for t in inputs("ieee", T, B, I, H)]
    y, hn = rnn_triton.rnn(*tensors, precision="ieee")
    x, *rest = fp64(tensors)
    expected, _ = reference.rnn(x[:1000], *rest)
    assert_close([y[:1000]], [expected.detach()], tolerance("ieee", 1000))
    assert torch.equal(y[-1], hn) and y.isfinite().all()
    assert all(g.isfinite().all() for g in torch.autograd.grad(y.sum(), tensors))


@pytest.mark.gpu
@pytest.mark.long
def test_offsets_beyond_32_bits():
    """y of more than 2^31 elements"""
    T, B, I, H = 2**18 + 1, 32, 8, 256
    tensors = [t.detach().cuda() for t in inputs("bf16", 8, B, I, H)]
    x = tensors[0].repeat(T // 8 + 1, 1, 1)[:T]
    y, hn = rnn_triton.rnn(x, *tensors[1:])
    assert torch.equal(y[-1], hn)
    again, _ = rnn_triton.rnn(x[-8:], *tensors[1:5], y[-9])
    assert torch.equal(y[-8:], again)


@pytest.mark.gpu
def test_cuda_graph():
    """Capture and replay of forward and backward: no host sync, nothing keyed to host state"""
    x, *weights = (t.detach().cuda().requires_grad_() for t in inputs("bf16", 6, 9, 16, 64))

    def step():
        y, hn = rnn_triton.rnn(x, *weights)
        return [y, hn, *torch.autograd.grad((y.sum() + hn.sum()), [x, *weights])]

    expected = [t.clone() for t in step()]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    for _ in range(2):
        for t in captured:
            t.detach().fill_(float("nan"))
        graph.replay()
        torch.cuda.synchronize()
        assert all(torch.equal(a, b) for a, b in zip(captured, expected, strict=True))
