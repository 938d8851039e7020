"""A launch per time step: by interpreter or on a GPU, what it launches, and what the kernel compiles to.

Reference: reference.py in fp64, of the same rounded inputs; tolerances are test_kernels.py's.  Blocks are chosen small, so
that sizes of a few dozen have several tiles with ragged ends in every dimension.
"""

import itertools

import pytest
import torch
from support.memory import reserved
from support.problems import SMALL_SIGNALS
from test_kernels import KINDS, assert_close, fp64, inputs, kinds, tolerance

from bench.compiled import machine_code, resources
from rnn_triton.cells import reference
from rnn_triton.kernels.per_step import per_step as kernel
from rnn_triton.launch import per_step
from rnn_triton.plan import hardware
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
        addresses = [[t if isinstance(t, int) else t.data_ptr() for t in call[2][:6]] for call in calls]
        w_hh, h0, out = tensors[2].data_ptr(), tensors[5].data_ptr(), y.data_ptr()
        assert addresses[0][1:] == [w_hh, h0, out, out, out]
        assert [a[1:] for a in addresses[1:]] == [[w_hh, out, out, out, out]] * 3
        assert len({a[0] for a in addresses}) == 1
        strides = (19 * 40 // 4, 40 // 4)  # of u, which is fp32, in vectors
        assert [call[2][6:12] for call in calls] == [
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
        pointers = [t if isinstance(t, int) else t.data_ptr() for t in arguments[:6]]
        assert pointers == [t.data_ptr() for t in (dy, w_hh, da, dhn, y, da)]
    assert [call[2][6:12] for call in calls] == [
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
        names = list(per_step.constants(problem(direction, "bf16", 3, 4, 5), plan("bf16"), per_step.BACKWARD))
        assert [n for n in kernel.arg_names if n not in names] == kernel.arg_names[:12]
        assert names == kernel.arg_names[12:]


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


@pytest.mark.parametrize("kind", ["bf16", "tf32", "fp64"])
def test_rows_are_whole_vectors(kind):
    for H in (1, 7, 8, 1000, 1001):
        p = problem("forward", kind, 3, 4, H)
        constants = per_step.constants(p, plan(kind), per_step.FORWARD)
        shape = constants["SHAPE"].plain
        assert shape["H"] == H and shape["row"] == row_units(H, p.dtype)
        assert shape["row"] % shape["u_unit"] == 0
