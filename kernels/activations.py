"""Computes activations elementwise on fp32 tiles (fp64 for "double").  ACCURACY says what the storage dtype can hold; the errors are
relative, at every size of z (tests/test_activations.py), so that a small signal arrives as a large one does:

"approx"  2^-11: tanh.approx.f32, one instruction; bf16's unit roundoff is 2^-8.  sigmoid is that of "fast": 0.5 + 0.5 tanh(z / 2)
          would save an instruction of two, but lose a gate that is nearly closed
"fast"    2^-14: fp16, and fp32 in "tf32", which round to 2^-11
"full"    8 fp32 unit roundoffs: fp32 in "tf32x3" and "ieee"
"double"  8 fp64 unit roundoffs: fp64

1 - 2 / (exp(2 z) + 1) loses what is small beside 1, so that each but the first has another formula near zero.
None overflows: exp(2 z) = inf gives 1, exp(2 z) = 0 gives -1; NaN stays NaN.
"""

import triton
import triton.language as tl


@triton.jit
def tanh_approx(z):
    return tl.inline_asm_elementwise(
        "tanh.approx.f32 $0, $1;", "=f,f", [z], dtype=tl.float32, is_pure=True, pack=1
    )


@triton.jit
def reciprocal_approx(z):
    return tl.inline_asm_elementwise(
        "rcp.approx.ftz.f32 $0, $1;", "=f,f", [z], dtype=tl.float32, is_pure=True, pack=1
    )


@triton.jit
def tanh(z, ACCURACY: tl.constexpr):
    if ACCURACY == "approx":
        return tanh_approx(z)
    elif ACCURACY == "double":
        # The continued fraction z / (1 + z^2 / (3 + z^2 / (5 + ..))), cut off after 13: all terms are positive, what is cut
        # off is 5e-17 of tanh z at most.  One division for both formulas.
        q = z * z
        small = tl.abs(z) < 0.45
        numerator = z * (135135.0 + q * (17325.0 + q * (378.0 + q)))
        denominator = 135135.0 + q * (62370.0 + q * (3150.0 + q * 28.0))
        quotient = tl.where(small, numerator, -2.0) / tl.where(small, denominator, tl.exp(2.0 * z) + 1.0)
        return tl.where(small, quotient, 1.0 + quotient)
    else:
        t = 1.0 - 2.0 * reciprocal_approx(tl.exp2(z * 2.8853900817779268) + 1.0)  # 2 / ln 2; absolute error 3e-7
        if ACCURACY == "fast":
            return tl.where(tl.abs(z) < 0.01, z, t)  # z^2 / 3 and 3e-7 / z are 3e-5 there
        else:
            tl.static_assert(ACCURACY == "full", "unknown ACCURACY")
            # z (1 + z^2 P(z^2)), P by relative least squares on (0, 0.6], relative error 1.1e-7 in fp32
            q = z * z
            p = -0.3333330032181517 + q * (
                0.13331978496479452
                + q * (-0.05378798261189225 + q * (0.02080880098310757 - q * 0.005909046756606071))
            )
            return tl.where(tl.abs(z) < 0.6, z + z * (q * p), t)


@triton.jit
def relu(z):
    return tl.where(z <= 0.0, 0.0, z)  # NaN goes through, as in torch


@triton.jit
def sigmoid(z, ACCURACY: tl.constexpr):
    """1 / (1 + exp(-z)).  Below -88.7 (fp64: -709.7) exp overflows, and the result is 0."""
    if ACCURACY == "double":
        return 1.0 / (1.0 + tl.exp(-z))
    elif ACCURACY == "full":
        # exp2 of a rounded product would err by its size; what rounding loses of it is a factor of its own
        p = z * -1.4426950408889634  # 1 / ln 2
        lost = tl.fma(z, -1.4426950216293335, -p) - z * 1.925963033500011e-08  # in two parts, the first a number of fp32
        lost = tl.where(tl.abs(z) < 128.0, lost, 0.0)  # inf - inf
        return 1.0 / (1.0 + tl.exp2(p) * (1.0 + lost * 0.6931471805599453))
    else:
        tl.static_assert(ACCURACY == "approx" or ACCURACY == "fast", "unknown ACCURACY")
        return reciprocal_approx(tl.exp2(z * -1.4426950408889634) + 1.0)
