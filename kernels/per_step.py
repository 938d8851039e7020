"""Runs one time step as a plain launch, for weights that no group of CTAs can hold on chip.

    s_t = CELL(u_t + W_rec s_{t-1}, saved_t)

Forward:   W_rec = W_hh,   s = h, u = x W_ih^T, projected before by a GEMM, and the biases.
Backward:  W_rec = W_hh^T, s = da, u_t = dy_t, saved_t = y_t; dhn is added to u at the first step, which has no product.

A cell of several gates has blocks of W_hh, and facts.Routes says which pre-activations there are, and which tiles a step publishes
and exchanges.  Forward the blocks lie below each other, and each makes a pre-activation of its own from the one exchanged tile, h.
Backward their transposes lie side by side, and the exchanged tiles, which follow each other in a row of out, are multiplied as
one long state.

One program computes a tile of BLOCK_H hidden units by BLOCK_B batch rows, with an accumulator for each pre-activation that starts
from u, in a loop over K pipelined by Triton (the launch option num_stages).  Hidden units are the rows of the product: a small
batch then wastes no rows of the tensor core's instructions, the narrowest of which have 16 rows and 8 columns.

Rows of H elements are stored as ROW, H rounded up to whole 16-byte vectors: copies of single elements from global memory
cannot be pipelined.  Padding of W_rec and of the first state holds zeros, that of every state after it is set to zero
here (an infinite state makes NaN of its products with padding), so that products over it are exact zeros.

Invariant: a launch reads s_{t-1} and writes s_t, never the same memory; programs do not talk to each other, and the
stream orders the launches.  Nothing is kept on chip from one step to the next.

Cost of a step: a launch, and from L2 W_rec once for each batch tile and s_{t-1} once for each tile of hidden units
(W_rec comes from DRAM where it is larger than L2).  Programs of the same rows of W_rec run next to each other.

Where sequences end or begin anew (HAS.lengths, HAS.reset) a row of s_{t-1} may be one of `first` or `restart`, by its address, and a row
that is not live publishes zeros and leaves what it carries as it is.

Numerics: as kernels/one_cta.py, products in the storage dtype (fp32 per PRECISION) with fp32 accumulation (fp64:
fp64), the state rounded to the storage dtype each step.  What a cell carries is read and written in fp32 (fp64), in place, by the
one program that owns it.
"""

import triton
import triton.language as tl

from .facts import kernel_name
from .fragments import operand, replaced, saved_tiles

GROUP: tl.constexpr = tl.constexpr(8)  # batch tiles that follow each other over the same rows of W_rec


@triton.jit(do_not_specialize=["t", "t_state", "K", "B", "stride_u_t", "stride_u_b"], repr=kernel_name("per_step"))
def per_step(
    u_ptr,  # [T, B, in_parts, ROW] where HAS.u, strides (stride_u_t, stride_u_b, 1) counted in vectors of U_UNIT elements
    w_rec_ptr,  # W_hh[gates, ROW, ROW] contiguous, gates in the order of rec_gates; W_rec has their transposes in the backward pass
    bias0_ptr,  # [gates, ROW] where HAS.bias0
    bias1_ptr,  # [gates, ROW] where HAS.bias1
    state_ptr,  # [.., B, published, ROW] contiguous: s_{t-1} is number t_state
    first_ptr,  # [B, ROW] contiguous where HAS.first: backward dhn, added to u at a row's first step; forward h0, with HAS.lengths alone
    saved_ptr,  # [T, B, ROW] contiguous where HAS.saved: y
    out_ptr,  # [T, B, published, ROW] contiguous: s_t is number t
    carried_ptr,  # fp32 (fp64) [carried, B, ROW] contiguous, where there are any: left by the step before, and then to the next one
    kept_ptr,  # [T, B, kept, ROW] contiguous where HAS.kept: written forward, read backward
    vectors_ptr,  # fp32 (fp64) [vectors, ROW] contiguous, where there are any
    lengths_ptr,  # int32 [B] where HAS.lengths: how many steps a row has
    reset_ptr,  # int32 [T + 2, B] where HAS.reset: 1 in row t + 1 where step t does not follow the one before it
    restart_ptr,  # [B, ROW] contiguous where HAS.restart: what s is before such a step, in place of zeros, in the forward pass
    restart_carried_ptr,  # and what is carried, as carried
    t,
    t_state,
    K,  # elements of s_{t-1} a batch row, or 0 where there is no state before this step
    B,
    stride_u_t,
    stride_u_b,
    TILE: tl.constexpr,  # facts.StepTile
    SHAPE: tl.constexpr,  # facts.StepShape
    HAS: tl.constexpr,  # facts.Has
    CELL: tl.constexpr,  # facts.Cell
):
    ROUTES: tl.constexpr = CELL.routes
    INTO: tl.constexpr = ROUTES.into
    WEIGHTS: tl.constexpr = len(ROUTES.rec_gates) // ROUTES.exchanged  # blocks of W_rec below each other
    READ: tl.constexpr = ROUTES.kept if HAS.kept and not CELL.forward else 0  # saved tiles beside y
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
    tiles_t = t * step_out + row0 * ROW
    offsets = rows * ROW + units
    COLUMNS: tl.constexpr = ROUTES.exchanged * ROW
    OUT_ROW: tl.constexpr = ROUTES.published * ROW
    KEPT_ROW: tl.constexpr = ROUTES.kept * ROW

    # of each row: is it live, is there no state before this step, does it begin anew?
    every = mask
    alone = K == 0
    follows = mask
    if HAS.lengths:
        lengths = tl.load(lengths_ptr + row0 + rows, mask=is_row, other=0)
        every = mask & (t < lengths)
        starts = (t_state > t) & (t == lengths - 1)  # where time runs down, after the first launch
        alone = alone | starts
    if HAS.reset:
        anew = (tl.load(reset_ptr + (t + 1).to(tl.int64) * B + row0 + rows, mask=is_row, other=0) != 0) & (CELL.forward | (K > 0))
        alone = alone | anew
        follows = mask & (anew == 0)

    # issued first, so that they land while the pipeline fills
    acc = ()
    for n in tl.static_range(ROUTES.parts):
        acc = acc + (tl.zeros((BLOCK_H, BLOCK_B), ACC),)
    if HAS.u:
        u_tile = u_ptr + (t.to(tl.int64) * stride_u_t + row0 * stride_u_b) * U_UNIT + unit0
        u_offsets = rows.to(tl.int64) * stride_u_b * U_UNIT + units
        for g in tl.static_range(len(INTO)):
            u = tl.load(u_tile + (u_offsets + g * ROW if g > 0 else u_offsets), mask=mask, other=0).to(ACC)
            acc = replaced(acc, INTO[g], acc[INTO[g]] + u)
    if HAS.first and not CELL.forward:
        begins = K == 0
        if HAS.lengths:
            begins = begins | starts
        first = tl.load(first_ptr + tile + offsets, mask=mask & begins, other=0).to(ACC)
        acc = replaced(acc, 0, acc[0] + first)
    if HAS.bias0:
        for g in tl.static_range(len(INTO)):
            bias = tl.load(bias0_ptr + g * ROW + unit0 + units, mask=is_unit, other=0).to(ACC)
            acc = replaced(acc, INTO[g], acc[INTO[g]] + bias)
    if HAS.bias1:
        for n in tl.static_range(len(ROUTES.rec_gates)):
            bias = tl.load(bias1_ptr + ROUTES.rec_gates[n] * ROW + unit0 + units, mask=is_unit, other=0).to(ACC)
            acc = replaced(acc, ROUTES.rec_parts[n], acc[ROUTES.rec_parts[n]] + bias)
    saved = ()
    if HAS.saved:
        saved = saved + (tl.load(saved_ptr + tiles_t + unit0 + offsets, mask=mask, other=0).to(ACC),)
    kept_tile = kept_ptr + tiles_t * ROUTES.kept + unit0
    for n in tl.static_range(READ):
        saved = saved + (tl.load(kept_tile + (rows * KEPT_ROW + n * ROW + units), mask=mask, other=0).to(ACC),)
    carried = ()
    for n in tl.static_range(ROUTES.carried):
        c = carried_ptr + n * step_out + tile
        if HAS.restart:
            c = tl.where(anew, restart_carried_ptr + n * step_out + tile, c)
        there = follows if n < ROUTES.carried - (0 if CELL.forward else ROUTES.vectors) and not HAS.restart else mask
        carried = carried + (tl.load(c + offsets, mask=there, other=0),)
    vectors = ()
    for n in tl.static_range(ROUTES.vectors):
        vectors = vectors + (tl.load(vectors_ptr + n * ROW + unit0 + units, mask=is_unit, other=0),)

    w_tile = w_rec_ptr + unit0.to(tl.int64) * STRIDE_H + (units * STRIDE_H + ks[None, :] * STRIDE_K)
    s_tile = state_ptr + t_state * (step_out * ROUTES.published) + row0 * OUT_ROW + (rows * OUT_ROW + ks[:, None])
    there = is_row
    if CELL.forward and HAS.lengths and HAS.first:
        s_tile = tl.where(starts, first_ptr + row0 * ROW + (rows * ROW + ks[:, None]), s_tile)
    if CELL.forward and HAS.reset:
        if HAS.restart:
            s_tile = tl.where(anew, restart_ptr + row0 * ROW + (rows * ROW + ks[:, None]), s_tile)
        else:
            there = is_row & (anew == 0)
    by_itself = acc
    for k in range(0, K, BLOCK_K):
        w = ()
        for n in tl.static_range(WEIGHTS):
            w = w + (tl.load(w_tile + n * (ROW * ROW), mask=is_unit & (k + ks < COLUMNS)[None, :], other=0),)
        s = tl.load(s_tile, mask=(k + ks < COLUMNS)[:, None] & there, other=0)
        for n in tl.static_range(WEIGHTS):
            a = acc[ROUTES.rec_parts[n]]
            a = tl.dot(operand(w[n], PRECISION), operand(s, PRECISION), a, input_precision=PRECISION, out_dtype=ACC)
            acc = replaced(acc, ROUTES.rec_parts[n], a)
        w_tile += BLOCK_K * STRIDE_K
        s_tile += BLOCK_K
    if not CELL.forward and (HAS.lengths or HAS.reset):  # there is no state before, and 0 * W_rec is NaN where W_rec is infinite
        acc = replaced(acc, 0, tl.where(alone, by_itself[0], acc[0]))
    published, carried, kept = CELL.step(acc, carried, saved, vectors, CELL.accuracy)
    kept = saved_tiles(kept, carried, ROUTES)
    out_tile = out_ptr + tiles_t * ROUTES.published + unit0
    for n in tl.static_range(ROUTES.published):
        new = published[n].to(TILE.dtype)
        if ROW != SHAPE.H:
            new = tl.where(unit0 + units < SHAPE.H, new, 0.0)
        if HAS.lengths:
            new = tl.where(t < lengths, new, 0.0)
        tl.store(out_tile + (rows * OUT_ROW + n * ROW + units), new, mask=mask)
    if HAS.kept and CELL.forward:
        for n in tl.static_range(ROUTES.kept):
            tl.store(kept_tile + (rows * KEPT_ROW + n * ROW + units), kept[n].to(TILE.dtype), mask=mask)
    for n in tl.static_range(ROUTES.carried):
        tl.store(carried_ptr + n * step_out + tile + offsets, carried[n], mask=every)
