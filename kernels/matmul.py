"""Products of fp32 matrices in a precision of the caller's choice, for the GEMMs around the recurrence.

    out[s, p] = a[p, :, K_s] @ b[p, K_s, :]        K_s = [s SPLIT_K, min((s + 1) SPLIT_K, K))

One shape family has K = T B in the millions beside M, N of a few hundred (weight gradients): K is split over
programs, whose partial products the caller adds in a fixed order. The other has a huge M (dx) and one part.
"""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["stride_a_p", "stride_b_p"])  # 0 of one product: always the same kernel
def matmul_kernel(
    a_ptr,  # [P, M, K] fp32, any strides
    b_ptr,  # [P, K, N] fp32, any strides
    out_ptr,  # [splits, P, M, N] fp32, contiguous
    M,
    N,
    K,
    stride_a_p,
    stride_a_m,
    stride_a_k,
    stride_b_p,
    stride_b_k,
    stride_b_n,
    SPLIT_K,  # a multiple of BLOCK_K
    PRECISION: tl.constexpr,  # of tl.dot: "tf32" (truncates its operands), "tf32x3", "ieee"
    OFFSETS: tl.constexpr,  # of an element from its tile's first: tl.int32 where that suffices, else tl.int64
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Grid (P times tiles of M times tiles of N, splits): only the first dimension of a grid may exceed 65535."""
    tiles_n = tl.cdiv(N, BLOCK_N)
    tiles = tl.cdiv(M, BLOCK_M) * tiles_n
    products = tl.num_programs(0) // tiles
    product = (tl.program_id(0) // tiles).to(tl.int64)
    tile = tl.program_id(0) % tiles
    split = tl.program_id(1).to(tl.int64)
    # int64 for where a tile begins, as a matrix may have more than 2^31 elements
    first_m = (tile // tiles_n).to(tl.int64) * BLOCK_M
    first_n = (tile % tiles_n).to(tl.int64) * BLOCK_N
    first_k = split * SPLIT_K
    left = tl.minimum(SPLIT_K, K - first_k).to(tl.int32)
    step = tl.full((), BLOCK_K, tl.int64)
    m = tl.arange(0, BLOCK_M).to(OFFSETS)[:, None]
    n = tl.arange(0, BLOCK_N).to(OFFSETS)[None, :]
    k = tl.arange(0, BLOCK_K).to(OFFSETS)
    mask_m = m < M - first_m
    mask_n = n < N - first_n
    a_ptr += product * stride_a_p + first_m * stride_a_m + first_k * stride_a_k
    b_ptr += product * stride_b_p + first_k * stride_b_k + first_n * stride_b_n
    offs_a = m * stride_a_m + k[None, :] * stride_a_k
    offs_b = k[:, None] * stride_b_k + n * stride_b_n
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for _ in range(0, tl.cdiv(left, BLOCK_K)):
        a = tl.load(a_ptr + offs_a, mask=mask_m & (k < left)[None, :], other=0.0)
        b = tl.load(b_ptr + offs_b, mask=(k < left)[:, None] & mask_n, other=0.0)
        acc = tl.dot(a, b, acc, input_precision=PRECISION)
        left -= BLOCK_K
        a_ptr += step * stride_a_k
        b_ptr += step * stride_b_k
    out_ptr += ((split * products + product) * M + first_m) * N + first_n
    tl.store(out_ptr + m * N + n, acc, mask=mask_m & mask_n)
