"""Multiplies fp32 matrices in a precision of the caller's choice, for the GEMMs around the recurrence.

    out[s, p] = a[p, :, K_s] @ b[p, K_s, :]        K_s = [s SPLIT, min((s + 1) SPLIT, K))

One shape family has K = T B in the millions beside M, N of a few hundred (weight gradients): K is split over
programs, whose partial products the caller adds in a fixed order. The other has a huge M (dx) and one part.

Nothing is specialised on M, N, K or a stride: a kernel is compiled once for each of its constexprs. Memory is read in
16-byte vectors where a matrix has its *_UNIT = 4: its address is aligned, and its other strides and the size along its
inner dimension are whole vectors. They are then counted in vectors, which the compiler sees.
"""

import triton
import triton.language as tl

from .fragments import operand

_PER_CALL = ["a_ptr", "b_ptr", "out_ptr", "M", "N", "K", "stride_a_p", "stride_a_m", "stride_a_k"]
_PER_CALL += ["stride_b_p", "stride_b_k", "stride_b_n", "split"]


@triton.jit(do_not_specialize=_PER_CALL)
def matmul_kernel(
    a_ptr,  # [P, M, K] fp32
    b_ptr,  # [P, K, N] fp32
    out_ptr,  # [splits, P, M, N] fp32, contiguous
    M,  # counted in M_UNIT elements, N in N_UNIT, K in K_UNIT
    N,
    K,
    stride_a_p,  # counted in A_UNIT elements
    stride_a_m,
    stride_a_k,
    stride_b_p,  # counted in B_UNIT elements
    stride_b_k,
    stride_b_n,
    split,  # SPLIT, counted in BLOCK_K elements
    PRECISION: tl.constexpr,  # of tl.dot: "tf32", "tf32x3", "ieee"
    OFFSETS: tl.constexpr,  # of an element from its tile's first: tl.int32 where that suffices, else tl.int64
    A_INNER: tl.constexpr,  # dimension of stride 1: "m", "k", or "" where there is none
    A_UNIT: tl.constexpr,
    B_INNER: tl.constexpr,  # "n", "k", ""
    B_UNIT: tl.constexpr,
    M_UNIT: tl.constexpr,
    N_UNIT: tl.constexpr,  # 4: rows of out are whole aligned vectors, too
    K_UNIT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """CtaGroup (P times tiles of M times tiles of N, splits): only the first dimension of a grid may exceed 65535."""
    a_m = 1 if A_INNER == "m" else stride_a_m.to(OFFSETS) * A_UNIT
    a_k = 1 if A_INNER == "k" else stride_a_k.to(OFFSETS) * A_UNIT
    b_k = 1 if B_INNER == "k" else stride_b_k.to(OFFSETS) * B_UNIT
    b_n = 1 if B_INNER == "n" else stride_b_n.to(OFFSETS) * B_UNIT
    tiles_n = tl.cdiv(N, BLOCK_N // N_UNIT)
    tiles = tl.cdiv(M, BLOCK_M // M_UNIT) * tiles_n
    products = tl.num_programs(0) // tiles
    product = (tl.program_id(0) // tiles).to(tl.int64)
    tile = tl.program_id(0) % tiles
    part = tl.program_id(1).to(tl.int64)
    # int64 for where a tile begins, as a matrix may have more than 2^31 elements
    first_m = (tile // tiles_n).to(tl.int64) * BLOCK_M
    first_n = (tile % tiles_n).to(tl.int64) * BLOCK_N
    first_k = part * split * BLOCK_K
    left = tl.minimum(split * (BLOCK_K // K_UNIT), K - first_k // K_UNIT).to(tl.int32)
    step = tl.full((), BLOCK_K, tl.int64)
    m = tl.arange(0, BLOCK_M)[:, None]
    n = tl.arange(0, BLOCK_N)[None, :]
    k = tl.arange(0, BLOCK_K)
    mask_m = m // M_UNIT < M - first_m // M_UNIT
    mask_n = n // N_UNIT < N - first_n // N_UNIT
    a_ptr += product * stride_a_p * A_UNIT + first_m * a_m + first_k * a_k
    b_ptr += product * stride_b_p * B_UNIT + first_k * b_k + first_n * b_n
    a_ptr = tl.multiple_of(a_ptr, 4 * A_UNIT)  # bytes
    b_ptr = tl.multiple_of(b_ptr, 4 * B_UNIT)
    offs_a = m.to(OFFSETS) * a_m + k.to(OFFSETS)[None, :] * a_k
    offs_b = k.to(OFFSETS)[:, None] * b_k + n.to(OFFSETS) * b_n
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for _ in range(0, tl.cdiv(left, BLOCK_K // K_UNIT)):
        there = k // K_UNIT < left
        a = tl.load(a_ptr + offs_a, mask=mask_m & there[None, :], other=0.0)
        b = tl.load(b_ptr + offs_b, mask=there[:, None] & mask_n, other=0.0)
        acc = tl.dot(operand(a, PRECISION), operand(b, PRECISION), acc, input_precision=PRECISION)
        left -= BLOCK_K // K_UNIT
        a_ptr += step * a_k
        b_ptr += step * b_k
    M, N = M.to(tl.int64) * M_UNIT, N.to(tl.int64) * N_UNIT
    out_ptr += ((part * products + product) * M + first_m) * N + first_n
    out_ptr = tl.multiple_of(out_ptr, 4 * N_UNIT)
    tl.store(out_ptr + m * N + n, acc, mask=mask_m & mask_n)
