"""The relative error of every tanh and sigmoid of the kernels, at every size of the pre-activation, against mpmath.

Limits by ACCURACY, of the hardware's instructions and of the correctly rounded ones of the interpreter alike:

approx  2^-11, what the manual states of tanh.approx.f32
fast    2^-14: ex2.approx errs by 2 ulp, exp(2 z) + 1 rounds by 2^-24 of it, rcp.approx by an ulp, which makes 3e-7 of 1 - 2 / (..)
        or, at |z| = 0.01, 3e-5 of it; tanh z = z, below, errs by z^2 / 3 = 3.3e-5
full    8 unit roundoffs: the same 3e-7 with the factor 2 / (exp(2 z) + 1) <= 0.46 at |z| >= 0.6, where tanh z is 0.54
double  8 unit roundoffs: exp to 2, its sum with 1 and the quotient to 1 each of 0.58, where tanh z is 0.42 or more; below, the
        quotient of two sums of positive terms, a rounding for each of z^2, its last product, both last sums, z and the division

Of sigmoid, 1 / (1 + exp(-z)), the same limits: where exp(-z) is large its relative error is the result's.  It is 4 roundoffs of ex2
and, in "fast", those of its argument, which are |z| of the product's: 89 * 2^-24 at most, or 2^-17.  In "full" the argument is exact
to 2^-40; the factor that makes it so, the sum and the division round once each.
"""

import mpmath
import pytest
import torch
import triton
import triton.language as tl

from rnn_triton.interpret import interpreter
from rnn_triton.kernels.activations import sigmoid, tanh

LIMITS = {"approx": 2.0**-11, "fast": 2.0**-14, "full": 8 * 2.0**-24, "double": 8 * 2.0**-53}
# where one formula gives way to another, and the ends of the range of exp
EDGES = (0.01, 0.45, 0.6, 44.0, 88.8, 355.0, 710.0)


@triton.jit
def apply_tanh(z_ptr, out_ptr, ACCURACY: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out_ptr + i, tanh(tl.load(z_ptr + i), ACCURACY))


@triton.jit
def apply_sigmoid(z_ptr, out_ptr, ACCURACY: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out_ptr + i, sigmoid(tl.load(z_ptr + i), ACCURACY))


FUNCTIONS = {
    "tanh": (apply_tanh, torch.tanh, mpmath.tanh),
    "sigmoid": (apply_sigmoid, torch.sigmoid, lambda z: 1 / (1 + mpmath.exp(-z))),
}


def computed(function, z, accuracy):
    out = torch.full_like(z, float("nan"))
    with interpreter.accurate():
        FUNCTIONS[function][0][(len(z) // 128,)](z, out, ACCURACY=accuracy, BLOCK=128)
    return out.cpu()


def sizes(dtype):
    """512 sizes evenly by their logarithm, from 1e-38 to 20, 512 between 0 and 1, and 64 on either side of each edge"""
    g = torch.Generator().manual_seed(0)
    small = torch.rand(512, generator=g, dtype=torch.float64) * (torch.tensor(20.0).log10() + 38) - 38
    near = [edge * (1 + (torch.rand(128, generator=g, dtype=torch.float64) - 0.5) * 0.02) for edge in EDGES]
    middle = torch.rand(512, generator=g, dtype=torch.float64)
    z = torch.cat([10**small, middle, *near]).to(dtype)
    return torch.cat([z, -z])


@pytest.mark.parametrize("accuracy", LIMITS)
@pytest.mark.parametrize("function", FUNCTIONS)
def test_relative_error(function, accuracy, device):
    z = sizes(torch.float64 if accuracy == "double" else torch.float32)
    got = computed(function, z.to(device), accuracy)
    lost = torch.finfo(z.dtype).tiny if function == "sigmoid" else 0  # where exp(-z) overflows
    with mpmath.workprec(120):
        exact = [FUNCTIONS[function][2](mpmath.mpf(value)) for value in z.tolist()]
        errors = [0 if abs(e) < lost and 0 <= a <= lost else abs(mpmath.mpf(a) / e - 1) for a, e in zip(got.tolist(), exact, strict=True)]
    worst = max(range(len(errors)), key=errors.__getitem__)
    assert errors[worst] <= LIMITS[accuracy], f"{float(errors[worst]):.2e} at {z[worst].item():.6e}"
    assert (got.abs() <= 1).all()


@pytest.mark.parametrize("accuracy", LIMITS)
@pytest.mark.parametrize("function", FUNCTIONS)
def test_ends(function, accuracy, device):
    """0, the smallest numbers, what saturates, NaN"""
    dtype = torch.float64 if accuracy == "double" else torch.float32
    tiny = torch.finfo(dtype).tiny
    z = torch.tensor([0.0, tiny, tiny / 4, 50.0, 1e30, torch.finfo(dtype).max, float("inf"), float("nan")], dtype=dtype)
    z = torch.cat([z, -z]).repeat(8)
    got = computed(function, z.to(device), accuracy)
    expected = FUNCTIONS[function][1](z)
    assert torch.equal(got.isnan(), z.isnan())
    there = ~z.isnan()
    if function == "sigmoid":
        there &= z != -50.0  # no end: exp(-50)
    assert torch.equal(got[there], expected[there])
