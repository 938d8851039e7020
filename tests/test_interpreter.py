"""The corrected interpreter against rules written out here, or against torch's own CPU arithmetic."""

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from triton.language.extra import libdevice

from rnn_triton.interpret import interpreter

pytestmark = pytest.mark.interpret

N = 16
INF, NAN = float("inf"), float("nan")


@pytest.fixture(autouse=True)
def opened():
    with interpreter.accurate():
        yield


@triton.jit
def binary_kernel(x_ptr, y_ptr, out_ptr, OP: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + i)
    y = tl.load(y_ptr + i)
    if OP == "add":
        out = x + y
    elif OP == "sub":
        out = x - y
    elif OP == "mul":
        out = x * y
    elif OP == "div":
        out = x / y
    elif OP == "lt":
        out = x < y
    elif OP == "eq":
        out = x == y
    elif OP == "ne":
        out = x != y
    elif OP == "max":
        out = tl.maximum(x, y)
    elif OP == "min":
        out = tl.minimum(x, y)
    elif OP == "clamp":
        out = tl.clamp(x, y, y)
    elif OP == "where":
        out = tl.where(x > y, x, 0.0)
    elif OP == "fma":
        out = tl.fma(x, x, y)
    elif OP == "constant":
        out = tl.full([BLOCK], 1.1, x.dtype) + 0.0 * y
    elif OP == "positive":
        out = (x > 0).to(x.dtype)
    elif OP == "neg":
        out = -x
    tl.store(out_ptr + i, out)


def binary(op, x, y, out_dtype=None):
    out = torch.full(x.shape, 77, dtype=out_dtype or x.dtype)
    binary_kernel[(1,)](x, y, out, OP=op, BLOCK=x.numel())
    return out


def same(a, b):
    """Equal bit for bit, any NaN equal to any other."""
    torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


def awkward(dtype, seed):
    values = torch.randn(256, generator=torch.Generator().manual_seed(seed)) * 3
    values[:12] = torch.tensor([0.0, -0.0, 1.0, -1.0, INF, -INF, NAN, NAN, 3.0e38, -3.0e38, 1e-40, 1.0])
    return values.roll(seed).to(dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("op", ["add", "sub", "mul", "div", "lt", "eq", "ne"])
def test_arithmetic_is_torchs(op, dtype):
    x, y = awkward(dtype, 0), awkward(dtype, 1)
    expected = getattr(torch, op)(x, y)  # torch rounds each 16-bit operation once, to nearest even
    assert expected.double().nan_to_num().abs().max() > 0
    same(binary(op, x, y, expected.dtype), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_min_and_max_drop_nan(dtype):
    x, y = awkward(dtype, 0), awkward(dtype, 1)
    same(binary("max", x, y), torch.fmax(x, y))
    same(binary("min", x, y), torch.fmin(x, y))
    same(binary("where", x, y), torch.where(x > y, x, torch.zeros_like(x)))
    same(binary("positive", x, y), (x > 0).to(dtype))
    same(binary("neg", x, y), -x)


def test_clamp_drops_nan():
    same(binary("clamp", torch.full((N,), NAN), torch.full((N,), 2.0)), torch.full((N,), 2.0))


def test_bf16_constant():
    expected = torch.full((N,), 1.1, dtype=torch.bfloat16)
    same(binary("constant", torch.ones_like(expected), torch.zeros_like(expected)), expected)


def test_fma_rounds_once():
    x = torch.full((N,), 1 + 2.0**-12)  # x*x = 1 + 2^-11 + 2^-24: the last bit survives only unrounded
    same(binary("fma", x, torch.full((N,), -1 - 2.0**-11)), torch.full((N,), 2.0**-24))
    x = torch.full((N,), 1 + 2.0**-7, dtype=torch.bfloat16)
    same(binary("fma", x, torch.full_like(x, -1 - 2.0**-6)), torch.full_like(x, 2.0**-14))


@triton.jit
def cast_kernel(x_ptr, out_ptr, ROUNDING: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out_ptr + i, tl.load(x_ptr + i).to(out_ptr.dtype.element_ty, fp_downcast_rounding=ROUNDING))


def cast(x, dtype, rounding=None):
    out = torch.empty(x.shape, dtype=dtype)
    cast_kernel[(1,)](x, out, ROUNDING=rounding, BLOCK=x.numel())
    return out


@pytest.mark.parametrize("rounding", [None, "rtne"])
def test_fp32_to_bf16_rounds_to_nearest_even(rounding):
    generator = torch.Generator().manual_seed(0)
    bits = torch.randint(-(2**31), 2**31, (4096,), generator=generator, dtype=torch.int64).to(torch.int32)
    bits[:2048] &= -0x8000  # ties and exact values
    same(cast(bits.view(torch.float32), torch.bfloat16, rounding), bits.view(torch.float32).bfloat16())
    low_nan = torch.full((N,), 0x7F800001, dtype=torch.int32).view(torch.float32)  # its kept bits spell inf
    assert cast(low_nan, torch.bfloat16, rounding).isnan().all()


def test_fp64_to_bf16_rounds_once():
    above_tie = torch.full(
        (N,), 1 + 2.0**-8 + 2.0**-40, dtype=torch.float64
    )  # in fp32 it would be the tie itself
    same(cast(above_tie, torch.bfloat16), torch.full((N,), 1 + 2.0**-7, dtype=torch.bfloat16))
    same(cast(-above_tie, torch.bfloat16), torch.full((N,), -1 - 2.0**-7, dtype=torch.bfloat16))
    same(
        cast(torch.full((N,), 1e300, dtype=torch.float64), torch.bfloat16),
        torch.full((N,), INF, dtype=torch.bfloat16),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.int32], ids=str)
def test_bf16_to_others(dtype):
    x = torch.tensor([0.0, -1.5, 300.0, 7.0] * 4, dtype=torch.bfloat16)
    same(cast(x, dtype), x.to(dtype))
    same(cast(x.to(dtype), torch.bfloat16), x.to(dtype).bfloat16())


@triton.jit
def reduce_kernel(x_ptr, out_ptr, OP: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    x = tl.load(x_ptr + tl.arange(0, ROWS)[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :])
    if OP == "sum":
        tl.store(out_ptr + tl.arange(0, ROWS), tl.sum(x, 1))
    elif OP == "sum0":
        tl.store(out_ptr + tl.arange(0, COLUMNS)[None, :], tl.sum(x, 0, keep_dims=True))
    elif OP == "all":
        tl.store(out_ptr, tl.sum(x))
    elif OP == "max":
        tl.store(out_ptr + tl.arange(0, ROWS), tl.max(x, 1).to(x.dtype))
    elif OP == "min":
        tl.store(out_ptr + tl.arange(0, ROWS), tl.reduce(x, 1, tl.standard._elementwise_min))


def reduced(op, x, size):
    out = torch.empty(size, dtype=x.dtype)
    reduce_kernel[(1,)](x, out, OP=op, ROWS=x.shape[0], COLUMNS=x.shape[1])
    return out


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_reductions_of_16_bit(dtype):
    x = torch.randint(-8, 9, (4, 8), generator=torch.Generator().manual_seed(1)).to(
        dtype
    )  # every sum is exact
    same(reduced("sum", x, (4,)), x.sum(1))
    same(reduced("sum0", x, (8,)), x.sum(0))
    same(reduced("all", x, (1,)), x.sum().reshape(1))
    same(reduced("max", x, (4,)), x.amax(1))
    same(reduced("min", x, (4,)), x.amin(1))


@pytest.mark.parametrize(
    "dtype, big", [(torch.bfloat16, 256.0), (torch.float16, 2048.0)], ids=["bf16", "fp16"]
)
def test_sum_rounds_every_addition(dtype, big):
    x = torch.ones((1, 8), dtype=dtype)
    x[0, 0] = big  # big + 1 is a tie and rounds down; the pairs of ones do not
    assert reduced("sum", x, (1,)).item() == big + 6
    assert x.sum().item() == big + 8  # what one rounding at the end would give


@triton.jit
def dot_kernel(a_ptr, b_ptr, out_ptr, PRECISION: tl.constexpr, N: tl.constexpr):
    at = tl.arange(0, N)[:, None] * N + tl.arange(0, N)[None, :]
    a = tl.load(a_ptr + at)
    b = tl.load(b_ptr + at)
    acc = tl.zeros((N, N), dtype=out_ptr.dtype.element_ty)
    tl.store(out_ptr + at, tl.dot(a, b, acc, input_precision=PRECISION, out_dtype=out_ptr.dtype.element_ty))


def dot(a, b, precision="ieee", out_dtype=torch.float32):
    out = torch.empty((N, N), dtype=out_dtype)
    dot_kernel[(1,)](a, b, out, PRECISION=precision, N=N)
    return out


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_dot_16_bit(dtype):
    generator = torch.Generator().manual_seed(2)
    a, b = torch.randn(2, N, N, generator=generator).to(dtype)
    exact = a.double() @ b.double()
    bound = N * 2.0**-24 * (a.double().abs() @ b.double().abs())  # K roundings of fp32 additions
    assert ((dot(a, b).double() - exact).abs() <= bound).all()
    large = torch.full((N, N), 256.0, dtype=dtype)
    same(dot(large, large), torch.full((N, N), N * 65536.0))  # beyond fp16: products and sums are fp32


# Largest error of one product in units of |a b|: operands truncated to 10 bits; Triton's three products leave
# out small*small (2^-22) and truncate the small parts (2^-11 * 2^-10, twice); fp32 keeps its operands
@pytest.mark.parametrize(
    "precision, per_product", [("tf32", 2.0**-9), ("tf32x3", 2.0**-20 + 2.0**-22), ("ieee", 0.0)]
)
def test_dot_fp32_precision(precision, per_product):
    generator = torch.Generator().manual_seed(3)
    a, b = torch.randn(2, N, N, generator=generator)
    exact = a.double() @ b.double()
    scale = a.double().abs() @ b.double().abs()
    error = (dot(a, b, precision).double() - exact).abs() / scale
    assert error.max() <= per_product + 2 * N * 2.0**-24
    if precision == "tf32":
        assert error.max() > 2.0**-12  # and it is not silently computed in fp32


def test_tf32_truncates_and_explicit_rounding_survives():
    eye = torch.eye(N)
    a = torch.full((N, N), 1 + 2.0**-10 + 2.0**-11 + 2.0**-12)
    same(dot(a, eye, "tf32"), torch.full((N, N), 1 + 2.0**-10))
    rounded = asm(a, "cvt")
    same(rounded, torch.full((N, N), 1 + 2.0**-9))
    same(dot(rounded, eye, "tf32"), rounded)
    same(dot(a, eye, "tf32x3"), a)


@pytest.mark.parametrize("precision", ["tf32", "tf32x3", "ieee"])
def test_infinity_through_dot(precision):
    a, b = torch.ones(2, N, N)
    b[0, 0] = INF
    out = dot(a, b, precision)
    assert (out[:, 0] == INF).all() and (out[:, 1:] == N).all()
    b[0, 0] = NAN
    assert dot(a, b, precision)[:, 0].isnan().all()


def test_dot_fp64():
    generator = torch.Generator().manual_seed(4)
    a, b = torch.randn(2, N, N, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(dot(a, b, out_dtype=torch.float64), a @ b, rtol=1e-13, atol=1e-13)


@triton.jit
def doubled(x):
    return x + x


@triton.jit
def asm_kernel(x_ptr, out_ptr, OP: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + i)
    if OP == "tanh":
        x = tl.inline_asm_elementwise(
            "tanh.approx.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )
    elif OP == "rcp":
        x = tl.inline_asm_elementwise(
            "rcp.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )
    elif OP == "cvt":
        x = tl.inline_asm_elementwise(
            "cvt.rna.tf32.f32  $0, $1;", "=r,r", [x], dtype=tl.float32, is_pure=True, pack=1
        )
    elif OP == "bits":
        y = tl.inline_asm_elementwise(
            "cvt.rna.tf32.f32 $0, $1;", "=r,r", [x], dtype=tl.int32, is_pure=True, pack=1
        )
        x = y.to(tl.float32, bitcast=True)
    elif OP == "unknown":
        x = tl.inline_asm_elementwise("ex3.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1)
    elif OP == "two":
        TWO: tl.constexpr = (tl.float32, tl.float32)
        x, y = tl.inline_asm_elementwise("two $0, $1, $2;", "=f,=f,f", [x], dtype=TWO, is_pure=True, pack=1)
        x = x - y
    elif OP == "helper":
        x = doubled(x)
    elif OP == "libdevice":
        x = libdevice.tanh(x)
    elif OP == "isnan":
        x = tl.where(libdevice.isnan(x), 1.0, 0.0).to(x.dtype)
    tl.store(out_ptr + i, x)


def asm(x, op):
    out = torch.empty_like(x)
    asm_kernel[(1,)](x, out, OP=op, BLOCK=x.numel())
    return out


def test_tanh_approx_errs_as_much_as_documented():
    x = torch.linspace(-4, 4, 4096)
    relative = ((asm(x, "tanh").double() - x.double().tanh()) / x.double().tanh()).abs().nan_to_num()
    assert 2.0**-12 < relative.max() <= 2.0**-11 * (1 + 2.0**-10)  # plus an ulp of tanh itself
    same(asm(torch.tensor([INF, -INF, NAN, 0.0]), "tanh"), torch.tensor([1.0, -1.0, NAN, 0.0]))


def test_reciprocal_flushes_subnormals():
    x = torch.tensor([2.0, -4.0, 0.0, -0.0, 1e-38, INF, NAN, 2.0**127])
    same(asm(x, "rcp"), torch.tensor([0.5, -0.25, INF, -INF, INF, 0.0, NAN, 0.0]))


def test_rna_tf32():
    step = 2.0**-10
    x = torch.tensor(
        [1 + step / 2, -1 - step / 2, 1 + step / 2 - 2.0**-23, 1 + 1.5 * step, INF, -INF, NAN, 0.0]
    )
    expected = torch.tensor(
        [1 + step, -1 - step, 1.0, 1 + 2 * step, INF, -INF, NAN, 0.0]
    )  # ties away from zero
    same(asm(x, "cvt"), expected)
    same(asm(x, "bits"), expected)


def test_registered_and_unregistered_asm(monkeypatch):
    monkeypatch.setattr(interpreter, "_asm", dict(interpreter._asm))
    x = torch.arange(8.0)
    with pytest.raises(Exception, match="no interpreter implementation.*ex3"):
        asm(x, "unknown")
    interpreter.register_asm("two  $0,\n $1, $2;", lambda v: (3 * v, v))
    same(asm(x, "two"), 2 * x)


def test_replaced_helper(monkeypatch):
    x = torch.arange(8.0)
    same(asm(x, "helper"), 2 * x)
    monkeypatch.setattr(interpreter, "_impls", {})

    @interpreter.interpreter_impl(doubled)
    def tripled(v):
        return v * 3.0

    same(asm(x, "helper"), 3 * x)


def test_libdevice():
    x = torch.linspace(-9, 9, 64)
    torch.testing.assert_close(
        asm(x, "libdevice").double(), x.double().tanh(), rtol=2.0**-22, atol=0
    )  # 2 ulp
    torch.testing.assert_close(asm(x.double(), "libdevice"), x.double().tanh(), rtol=2.0**-51, atol=0)
    same(asm(torch.tensor([NAN, 1.0]), "isnan"), torch.tensor([1.0, 0.0]))
    with pytest.raises(Exception, match="fp32 or fp64 expected, got bf16"):
        asm(x.bfloat16(), "libdevice")


@triton.jit
def loop_kernel(x_ptr, steps, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    inside = i < BLOCK - 1
    for t in range(steps):
        left = steps - 1 - t
        tl.store(x_ptr + i, tl.load(x_ptr + i) + doubled(1.0), mask=inside & (left > 0))


def test_runtime_loop_bound_and_scalar_in_mask():
    x = torch.zeros(8)
    loop_kernel[(1,)](x, 5, BLOCK=8)
    same(x, torch.tensor([8.0] * 7 + [0.0]))


# Closing restores


def snapshot():
    stock = interpreter.stock
    owners = [
        tl,
        tl.core,
        tl.tensor,
        tl.math,
        tl.core.dtype,
        tl.core.condition,
        tl.core.tensor_descriptor_base,
        libdevice,
    ]
    owners += [stock, stock.InterpreterBuilder, stock.ReduceOps, stock.ScanOps, stock.InterpretedFunction]
    # Python itself adds __annotations__ to a class that is looked through
    return [{k: v for k, v in vars(owner).items() if not k.startswith("__annotat")} for owner in owners] + [
        stock.interpreter_builder.options
    ]


PRISTINE = snapshot() if interpreter.active() else None  # at import: before any test has opened anything


def close_and(monkeypatch, action):
    """Run `action` as if the fixture's accurate() had not been opened."""
    interpreter._patches.restore()
    monkeypatch.setattr(interpreter, "_depth", 0)
    try:
        action()
    finally:
        monkeypatch.undo()
        interpreter._patches.apply()


@pytest.mark.parametrize("first", [True, False])
def test_everything_is_restored(monkeypatch, first):
    def action():
        if first:
            monkeypatch.setattr(interpreter, "_patches", None)
        assert snapshot() == PRISTINE
        with interpreter.accurate():
            during = snapshot()
            assert during != PRISTINE
            with interpreter.accurate():
                assert snapshot() == during
            assert snapshot() == during
            binary("add", *torch.ones(2, N))
        assert snapshot() == PRISTINE
        with pytest.raises(ZeroDivisionError), interpreter.accurate():
            raise ZeroDivisionError
        assert snapshot() == PRISTINE
        assert interpreter._depth == 0

    close_and(monkeypatch, action)


def test_numpy_error_settings_last_as_long_as_the_block(monkeypatch):
    def action():
        with np.errstate(all="raise"):
            with interpreter.accurate():
                assert binary("div", torch.ones(N), torch.zeros(N)).isinf().all()
            assert np.geterr()["divide"] == "raise"

    close_and(monkeypatch, action)
