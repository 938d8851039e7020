"""One time step as a plain launch: for weights that no group of CTAs can hold on chip.

    s_t = CELL(u_t + W_rec s_{t-1}, saved_t)

Forward:   W_rec = W_hh,   s = h, u = x W_ih^T + b_ih + b_hh, projected before by a GEMM.
Backward:  W_rec = W_hh^T, s = da, u_t = dy_t, saved_t = y_t; dhn is added to u at the first step, which has no product.

One program computes a tile of BLOCK_H hidden units by BLOCK_B batch rows in an accumulator that starts from u, in a
loop over K pipelined by Triton (the launch option num_stages).  Hidden units are the rows of the product: a small batch
then wastes no rows of the tensor core's instructions, the narrowest of which have 16 rows and 8 columns.

Rows of H elements are stored as ROW, H rounded up to whole 16-byte vectors: copies of single elements from global memory
cannot be pipelined.  Padding of W_rec and of the first state holds zeros, that of every state after it is set to zero
here (an infinite state makes NaN of its products with padding), so that products over it are exact zeros.

Invariant: a launch reads s_{t-1} and writes s_t, never the same memory; programs do not talk to each other, and the
stream orders the launches.  Nothing is kept on chip from one step to the next.

Cost of a step: a launch, and from L2 W_rec once for each batch tile and s_{t-1} once for each tile of hidden units
(W_rec comes from DRAM where it is larger than L2).  Programs of the same rows of W_rec run next to each other.

Numerics: as kernels/one_cta.py, products in the storage dtype (fp32 per PRECISION) with fp32 accumulation (fp64:
fp64), the state rounded to the storage dtype each step.
"""

import triton
import triton.language as tl

from .facts import kernel_name
from .fragments import operand

GROUP: tl.constexpr = tl.constexpr(8)  # batch tiles that follow each other over the same rows of W_rec


@triton.jit(do_not_specialize=["t", "t_state", "K", "B", "stride_u_t", "stride_u_b"], repr=kernel_name("per_step"))
def per_step(
    u_ptr,  # [T, B, ROW] where HAS.u, strides (stride_u_t, stride_u_b, 1) counted in vectors of U_UNIT elements
    w_rec_ptr,  # W_hh[ROW, ROW] contiguous; W_rec is its transpose in the backward pass
    state_ptr,  # [.., B, ROW] contiguous: s_{t-1} is number t_state
    first_ptr,  # [B, ROW] contiguous where HAS.first: added to u where K is 0
    saved_ptr,  # [T, B, ROW] contiguous where HAS.saved
    out_ptr,  # [T, B, ROW] contiguous: s_t is number t
    t,
    t_state,
    K,  # ROW, or 0 where there is no state before this step
    B,
    stride_u_t,
    stride_u_b,
    TILE: tl.constexpr,  # facts.StepTile
    SHAPE: tl.constexpr,  # facts.StepShape
    HAS: tl.constexpr,  # facts.Has
    CELL: tl.constexpr,  # facts.Cell
):
    ROUTES: tl.constexpr = CELL.routes
    tl.static_assert(ROUTES.single)
    ROW: tl.constexpr = SHAPE.row
    U_UNIT: tl.constexpr = SHAPE.u_unit
    PRECISION: tl.constexpr = TILE.precision
    ACC: tl.constexpr = TILE.acc
    BLOCK_B: tl.constexpr = TILE.block_b
    BLOCK_H: tl.constexpr = TILE.block_h
    BLOCK_K: tl.constexpr = TILE.block_k
    STRIDE_H: tl.constexpr = ROW if CELL.forward else 1  # of W_rec[h, k]
    STRIDE_K: tl.constexpr = 1 if CELL.forward else ROW
    TILES_H: tl.constexpr = (ROW + BLOCK_H - 1) // BLOCK_H
    group = tl.program_id(0) // (GROUP * TILES_H)
    member = tl.program_id(0) % (GROUP * TILES_H)
    size = tl.minimum(tl.cdiv(B, BLOCK_B) - group * GROUP, GROUP)
    row0 = (group * GROUP + member % size).to(tl.int64) * BLOCK_B
    unit0 = (member // size) * BLOCK_H

    units = tl.arange(0, BLOCK_H)[:, None]
    rows = tl.arange(0, BLOCK_B)[None, :]
    ks = tl.arange(0, BLOCK_K)
    is_unit = unit0 + units < ROW
    is_row = rows < B - row0
    mask = is_unit & is_row
    # 64 bits for where a tile begins, 32 for the offsets in it
    step_out = tl.cast(B, tl.int64) * ROW
    tile = row0 * ROW + unit0
    offsets = rows * ROW + units

    # issued first, so that they land while the pipeline fills
    acc = tl.zeros((BLOCK_H, BLOCK_B), ACC)
    if HAS.u:
        u_tile = u_ptr + (t.to(tl.int64) * stride_u_t + row0 * stride_u_b) * U_UNIT + unit0
        acc += tl.load(u_tile + (rows.to(tl.int64) * stride_u_b * U_UNIT + units), mask=mask, other=0).to(ACC)
    if HAS.first:
        acc += tl.load(first_ptr + tile + offsets, mask=mask & (K == 0), other=0).to(ACC)
    saved = ()
    if HAS.saved:
        saved = (tl.load(saved_ptr + t * step_out + tile + offsets, mask=mask, other=0).to(ACC),)

    w_tile = w_rec_ptr + unit0.to(tl.int64) * STRIDE_H + (units * STRIDE_H + ks[None, :] * STRIDE_K)
    s_tile = state_ptr + t_state * step_out + row0 * ROW + (rows * ROW + ks[:, None])
    for k in range(0, K, BLOCK_K):
        w = tl.load(w_tile, mask=is_unit & (k + ks < ROW)[None, :], other=0)
        s = tl.load(s_tile, mask=(k + ks < ROW)[:, None] & is_row, other=0)
        acc = tl.dot(operand(w, PRECISION), operand(s, PRECISION), acc, input_precision=PRECISION, out_dtype=ACC)
        w_tile += BLOCK_K * STRIDE_K
        s_tile += BLOCK_K
    published, _, _ = CELL.step((acc,), (), saved, (), CELL.accuracy)
    new = published[0].to(TILE.dtype)
    if ROW != SHAPE.H:
        new = tl.where(unit0 + units < SHAPE.H, new, 0.0)
    tl.store(out_ptr + t * step_out + tile + offsets, new, mask=mask)
