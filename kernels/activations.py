"""Activations, elementwise on fp32 tiles (fp64 for "double").  ACCURACY says what the storage dtype can hold:

"approx"  tanh.approx.f32, one instruction, relative error about 2^-11: well below bf16's unit roundoff 2^-8
"fast"    1 - 2 / (exp(2 z) + 1) with hardware exp2 and reciprocal, absolute error about 2e-7: fp16 and tf32
"full"    relative error of a few fp32 unit roundoffs for every z: fp32 in "tf32x3" and "ieee"
"double"  absolute error of about 2e-16: fp64

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
    elif ACCURACY == "fast":
        return 1.0 - 2.0 * reciprocal_approx(tl.exp2(z * 2.8853900817779268) + 1.0)  # 2 / ln 2
    elif ACCURACY == "full":
        # Near zero the quotient cancels; there z (1 + z^2 P(z^2)), P by relative least squares on (0, 0.6],
        # relative error 1.1e-7 in fp32.
        q = z * z
        p = -0.3333330032181517 + q * (
            0.13331978496479452 + q * (-0.05378798261189225 + q * (0.02080880098310757 - q * 0.005909046756606071))
        )
        return tl.where(tl.abs(z) < 0.6, z + z * (q * p), 1.0 - 2.0 / (tl.exp(2.0 * z) + 1.0))
    else:
        tl.static_assert(ACCURACY == "double", "unknown ACCURACY")
        return 1.0 - 2.0 / (tl.exp(2.0 * z) + 1.0)


@triton.jit
def relu(z):
    return tl.where(z <= 0.0, 0.0, z)  # NaN goes through, as in torch
