"""Brings operands on chip: its loads put every element where the tensor core wants it, with no shuffle and no shared memory.

Formulations of the step's products (FORM), by dtype:
  "mma16"  bf16, fp16: mma m16n8k16 fragments
  "mma32"  fp32 as tf32 (also tf32x3): mma m16n8k8 fragments
  "fma"    fp32 "ieee" and fp64: plain tiles, Triton's own layout

In the text below H_PAD, BLOCK_B, WARPS and CHUNK are those of TILE (facts.OneCtaTile), R is its row blocks a warp.  STORED says how
rows of a tensor lie in memory (facts.Stored).

Hidden order.  In the mma forms, row m of a tile is hidden unit `hidden(m)`: with R = H_PAD / (16 WARPS) row blocks a
warp, m = (rep, warp, i, l) in mixed radix (R, WARPS, 2, 8) and

    hidden(m) = (8 warp + l) 2R + 2 rep + i

so that the 2R rows a thread owns in the accumulator are neighbours in memory.  W_hh's columns carry the same order, so
the products are unchanged; only global loads and stores know of it.  q = lane % 4 and l = lane / 4 are the two lane
coordinates of an mma fragment.  In the fma form (R = 1) Triton's own accumulator layout already gives a thread two
neighbouring rows and two neighbouring columns: m = (warp, l, i), hidden(m) = m.

`tl.max_contiguous` is used as an order of dimensions, not as a fact: Triton's coalescing pass sorts dimensions by
contiguity, and the hints make it assign lanes to (q, l), warps to w and registers to the rest, which is the fragment
layout itself; tests/test_compile.py checks that no conversion appears.  For lanes and warps the hints are false, which is
harmless as long as a thread has one element along those dimensions.  Along all others they must be true: from 3.9 on Triton
computes the addresses of what a thread has from the first one by the hints alone.  So there is none where pointers do not
depend on the first dimensions, and others might be given to a thread.
"""

import triton
import triton.language as tl

from .exchange import published

# ---------------------------------------------------------------------------------------------- index helpers


@triton.jit
def _axis(n: tl.constexpr, AT: tl.constexpr, RANK: tl.constexpr):
    """arange(n) along dimension AT of RANK"""
    i = tl.arange(0, n)
    for d in tl.static_range(RANK):
        if d != AT:
            i = tl.expand_dims(i, d)
    return i


@triton.jit
def round_tf32(v):
    """fp32 rounded to tf32, to nearest; the tensor core alone would truncate"""
    return tl.inline_asm_elementwise("cvt.rna.tf32.f32 $0, $1;", "=r,r", [v], dtype=tl.float32, is_pure=True, pack=1)


@triton.jit
def replaced(tiles, NUMBER: tl.constexpr, tile):
    """The tuple `tiles` with `tile` in place of number NUMBER"""
    new = ()
    for n in tl.static_range(len(tiles)):
        if n == NUMBER:
            new = new + (tile,)
        else:
            new = new + (tiles[n],)
    return new


@triton.jit
def saved_tiles(kept, carried, ROUTES: tl.constexpr):
    """What a forward step saves for the backward pass: what its cell keeps, or in its place what it carries"""
    if len(ROUTES.kept_states) == 0:
        return kept
    else:
        tiles = ()
        for n in tl.static_range(len(ROUTES.kept_states)):
            tiles = tiles + (carried[ROUTES.kept_states[n]],)
        return tiles


@triton.jit
def operand(v, PRECISION: tl.constexpr):
    """what the tensor core reads: tf32 rounds to nearest here, the hardware alone would truncate"""
    if PRECISION == "tf32":
        return round_tf32(v)
    else:
        return v


# ---------------------------------------------------------------------------------------------- state tiles


@triton.jit
def state_index(TILE: tl.constexpr):
    """(batch row, hidden unit) of each element of a raw state tile [4 q, 8 l, WARPS, 2 e, BLOCK_B / 8, 2R v], int32"""
    V: tl.constexpr = TILE.h_pad // (8 * TILE.warps)  # 2R
    row = _axis(TILE.block_b // 8, 4, 6) * 8 + _axis(4, 0, 6) * 2 + _axis(2, 3, 6)
    unit = (_axis(TILE.warps, 2, 6) * 8 + _axis(8, 1, 6)) * V + _axis(V, 5, 6)
    return row, unit


@triton.jit
def hidden_units(TILE: tl.constexpr):
    """[H_PAD, 1]: the hidden unit that row m of a state tile is"""
    m = tl.arange(0, TILE.h_pad)[:, None]
    if TILE.form == "fma":
        return m
    else:
        R: tl.constexpr = TILE.r
        return (8 * ((m // 16) % TILE.warps) + m % 8) * (2 * R) + 2 * (m // (16 * TILE.warps)) + (m // 8) % 2


@triton.jit
def is_unit(H: tl.constexpr, TILE: tl.constexpr):
    """[H_PAD, 1]: is row m of a state tile a hidden unit, and not padding?"""
    return hidden_units(TILE) < H


@triton.jit
def state_tile(v, TILE: tl.constexpr):
    """raw state tile -> [H_PAD, BLOCK_B] in hidden order"""
    v = tl.reshape(v, (4, 8, TILE.warps, 2, TILE.block_b // 8, TILE.r, 2))  # q l w e j rep i
    if TILE.form == "fma":
        v = tl.permute(v, (5, 2, 1, 6, 4, 0, 3))
    else:
        v = tl.permute(v, (5, 2, 6, 1, 4, 0, 3))
    return tl.reshape(v, (TILE.h_pad, TILE.block_b))


@triton.jit
def raw_state(v, TILE: tl.constexpr):
    """[H_PAD, BLOCK_B] in hidden order -> raw state tile"""
    R: tl.constexpr = TILE.r
    if TILE.form == "fma":
        v = tl.permute(tl.reshape(v, (R, TILE.warps, 8, 2, TILE.block_b // 8, 4, 2)), (5, 2, 1, 6, 4, 0, 3))  # rep w l i j q e
    else:
        v = tl.permute(tl.reshape(v, (R, TILE.warps, 2, 8, TILE.block_b // 8, 4, 2)), (5, 3, 1, 6, 4, 0, 2))  # rep w i l j q e
    return tl.reshape(v, (4, 8, TILE.warps, 2, TILE.block_b // 8, 2 * R))


@triton.jit
def _load_raw_state(ptr, offsets, mask, ALIGNED: tl.constexpr):
    p = ptr + offsets
    if ALIGNED:
        return tl.load(tl.max_contiguous(p, [32, 16, 4, 1, 1, 64]), mask=mask, other=0)
    else:
        return tl.load(tl.max_contiguous(p, [32, 16, 4, 1, 1, 1]), mask=mask, other=0)


@triton.jit
def load_state(ptr, stride_b, rows, enable, STORED: tl.constexpr, TILE: tl.constexpr):
    """[H_PAD, BLOCK_B] in hidden order from ptr[row * stride_b + unit], zero outside rows x H or where not enable.

    stride_b = 0 broadcasts a vector [H] over the batch."""
    row, unit = state_index(TILE)
    mask = (row < rows) & (unit < STORED.length) & enable
    if stride_b == 0:  # no hint: the pointers do not depend on the row, and lanes would not be what the hint orders first
        v = tl.load(ptr + unit, mask=mask, other=0)
    else:
        v = _load_raw_state(ptr, row.to(tl.int64) * stride_b + unit, mask, STORED.aligned)
    return state_tile(v, TILE)


@triton.jit
def load_rows(ptr, rows, TILE: tl.constexpr):
    """[1, BLOCK_B]: ptr[row], 0 from `rows` on; of int32, since Triton takes an operand that depends on bytes for one of bytes, in whose
    order of k (k-width 4) the weights are not"""
    row = tl.arange(0, TILE.block_b)[None, :]
    return tl.load(ptr + row, mask=row < rows, other=0)


@triton.jit
def load_rows_of_state(ptr, rows, TILE: tl.constexpr):
    """The same for `load_state`, to compare with what enables it: its rows, of the hidden units one"""
    row, _ = state_index(TILE)
    return tl.load(ptr + row, mask=row < rows, other=0)


@triton.jit
def _pair_index(TILE: tl.constexpr):
    """pair of hidden units of each word of a 16-bit raw state tile [4, 8, WARPS, 2, BLOCK_B / 8, R], int32"""
    R: tl.constexpr = TILE.r
    return (_axis(TILE.warps, 2, 6) * 8 + _axis(8, 1, 6)) * R + _axis(R, 5, 6)


@triton.jit
def round_pair(low, high, DTYPE: tl.constexpr):
    """fp32 -> int32 words of two elements of DTYPE, 16-bit; 0x7FFF for every NaN"""
    if DTYPE == tl.bfloat16:
        return tl.inline_asm_elementwise(
            "cvt.rn.bf16x2.f32 $0, $2, $1;", "=r,f,f", [low, high], dtype=tl.int32, is_pure=True, pack=1
        )
    else:
        return tl.inline_asm_elementwise(
            "cvt.rn.f16x2.f32 $0, $2, $1;", "=r,f,f", [low, high], dtype=tl.int32, is_pure=True, pack=1
        )


@triton.jit
def store_state(ptr, v, rows, PUBLISH: tl.constexpr, STORED: tl.constexpr, TILE: tl.constexpr, live):
    """[H_PAD, BLOCK_B] in hidden order to ptr[row * ROW + unit]; rows: how many, or a tile of them, of the shape of `load_rows_of_state`

    PUBLISH: other CTAs wait for it (exchange.py): by 32-bit words, aligned, never the sentinel, in the mma forms.  v is fp32, and
    rounded here: values rounded before would be converted one by one, in 15 cycles each, to be put together in words.
    live, where PUBLISH: a tuple of one tile, of the shape of `load_rows_of_state`, or (): zeros in rows where it is not.
    v of fp32 becomes 16-bit words at once, too, where rows are aligned."""
    row, unit = state_index(TILE)
    mask = (row < rows) & (unit < STORED.length)
    p = ptr + (row * STORED.apart + unit)
    v = raw_state(v, TILE)
    WORDS: tl.constexpr = TILE.form == "mma16" and STORED.aligned and v.dtype == tl.float32 and ptr.dtype.element_ty == TILE.dtype
    if PUBLISH or WORDS:
        words = ptr.to(tl.pointer_type(tl.int32), bitcast=True)
        if TILE.form == "mma16":
            pair = _pair_index(TILE)
            low, high = tl.split(tl.reshape(v, (4, 8, TILE.warps, 2, TILE.block_b // 8, TILE.r, 2)))
            v = round_pair(low, high, ptr.dtype.element_ty)
            p = words + (row * (STORED.apart // 2) + pair)
            mask = (row < rows) & (pair < STORED.length // 2)
        else:
            p = words + (row * STORED.apart + unit)
        if len(live) > 0:
            v = tl.where(live[0], v.to(tl.int32, bitcast=True), 0)
        if PUBLISH:
            v = published(v.to(tl.int32, bitcast=True))
            tl.store(tl.max_contiguous(p, [32, 16, 4, 1, 1, 64]), v, mask=mask, cache_modifier=".cg")
        else:
            tl.store(tl.max_contiguous(p, [32, 16, 4, 1, 1, 64]), v, mask=mask)
    elif STORED.aligned:
        tl.store(tl.max_contiguous(p, [32, 16, 4, 1, 1, 64]), v, mask=mask)
    else:
        tl.store(tl.max_contiguous(p, [32, 16, 4, 1, 1, 1]), v, mask=mask)


# ---------------------------------------------------------------------------------------------- streams [T, B, H]
# A stream is read one step ahead, so its raw tile crosses the loop's back edge.  16-bit values must not: LLVM makes
# 16-bit phis of them and ptxas re-packs those right behind the load, which waits for it.  So 16-bit streams travel as
# the int32 words they were loaded as and are unpacked where they are used.


@triton.jit
def words_to_halves(v, DTYPE: tl.constexpr):
    """int32 words -> their low and high 16-bit elements"""
    low = (v & 0xFFFF).to(tl.uint16).to(DTYPE, bitcast=True)
    high = ((v >> 16) & 0xFFFF).to(tl.uint16).to(DTYPE, bitcast=True)
    return low, high


@triton.jit
def load_stream(ptr, stride_b, rows, STORED: tl.constexpr, TILE: tl.constexpr):
    """raw tile of one step of a stream: int32 words [4, 8, WARPS, 2, BLOCK_B / 8, R] for aligned 16-bit, else elements

    stride_b in units of 2R elements where STORED.aligned: the factor in the code is what shows
    Triton the alignment."""
    row, unit = state_index(TILE)
    R: tl.constexpr = TILE.r
    UNIT: tl.constexpr = 2 * R if STORED.aligned else 1
    if TILE.form == "mma16" and STORED.aligned and not STORED.wide:
        pair = _pair_index(TILE)
        words = ptr.to(tl.pointer_type(tl.int32), bitcast=True)
        mask = (row < rows) & (pair < STORED.length // 2)
        return _load_raw_state(words, row.to(tl.int64) * stride_b * R + pair, mask, True)
    else:
        mask = (row < rows) & (unit < STORED.length)
        return _load_raw_state(ptr, row.to(tl.int64) * stride_b * UNIT + unit, mask, STORED.aligned)


@triton.jit
def stream_tile(v, STORED: tl.constexpr, TILE: tl.constexpr):
    """raw stream tile -> [H_PAD, BLOCK_B] in the tile's dtype, or fp32 where STORED.wide"""
    if TILE.form == "mma16" and STORED.aligned and not STORED.wide:
        low, high = words_to_halves(v, TILE.dtype)
        v = tl.reshape(tl.join(low, high), (4, 8, TILE.warps, 2, TILE.block_b // 8, TILE.h_pad // (8 * TILE.warps)))
    return state_tile(v, TILE)


# ---------------------------------------------------------------------------------------------- recurrent weights


@triton.jit
def _load_weight(
    ptr, k0, stride_m, stride_k, M: tl.constexpr, K: tl.constexpr, M_PAD: tl.constexpr, K_PAD: tl.constexpr
):  # fmt: skip
    """[M_PAD, K_PAD] operand A of the fma form: columns k0.. of [M, K], which are small.

    Triton puts it in shared memory in the order of the load, which is the order of dimensions where the hint leaves none
    contiguous.  A warp of FFMA reads 16 rows of one column at once, DMMA (fp64) 8 rows of 4 columns: other orders have them in
    the same banks."""
    m = tl.arange(0, M_PAD)
    k = k0 + tl.arange(0, K_PAD)
    if ptr.dtype.element_ty == tl.float64:
        p = ptr + (m[:, None] * stride_m + k[None, :] * stride_k)
        return tl.load(tl.max_contiguous(p, [1, 1]), mask=(m[:, None] < M) & (k[None, :] < K), other=0)
    else:
        p = ptr + (m[None, :] * stride_m + k[:, None] * stride_k)
        return tl.trans(tl.load(tl.max_contiguous(p, [1, 1]), mask=(m[None, :] < M) & (k[:, None] < K), other=0))


@triton.jit
def load_recurrent(ptr, TRANSPOSED: tl.constexpr, SHAPE: tl.constexpr, TILE: tl.constexpr):
    """[H_PAD, H_PAD] operand A in hidden order, of contiguous W[N, N] or of its transpose, N <= H_PAD"""
    if TILE.form == "fma":
        if TRANSPOSED:
            return _load_weight(ptr, 0, 1, SHAPE.w_rows, SHAPE.w_rows, SHAPE.w_rows, TILE.h_pad, TILE.h_pad)
        else:
            return _load_weight(ptr, 0, SHAPE.w_rows, 1, SHAPE.w_rows, SHAPE.w_rows, TILE.h_pad, TILE.h_pad)
    else:
        R: tl.constexpr = TILE.r
        V: tl.constexpr = 2 * R
        M_AXIS: tl.constexpr = 6 if TRANSPOSED else 3  # the memory-contiguous one of (m, k) comes last
        K_AXIS: tl.constexpr = 3 if TRANSPOSED else 6
        q = _axis(4, 0, 7)
        g = _axis(2, 5, 7)
        k_lane = 2 * q + g if TILE.form == "mma16" else 4 * g + q
        m = (_axis(TILE.warps, 2, 7) * 8 + _axis(8, 1, 7)) * V + _axis(V, M_AXIS, 7)
        k = (_axis(TILE.warps, 4, 7) * 8 + k_lane) * V + _axis(V, K_AXIS, 7)
        p = ptr + (k * SHAPE.w_rows + m if TRANSPOSED else m * SHAPE.w_rows + k)
        if SHAPE.w_rec_aligned:
            p = tl.max_contiguous(p, [32, 16, 4, 1, 1, 1, 64])
        else:
            p = tl.max_contiguous(p, [32, 16, 4, 1, 1, 1, 1])
        if SHAPE.w_rows == TILE.h_pad:
            v = tl.load(p)
        else:
            v = tl.load(p, mask=(m < SHAPE.w_rows) & (k < SHAPE.w_rows), other=0)
        if TRANSPOSED:
            v = tl.permute(tl.reshape(v, (4, 8, TILE.warps, R, 2, TILE.warps, 2, R, 2)), (0, 1, 2, 7, 8, 5, 6, 3, 4))
        v = tl.reshape(v, (4, 8, TILE.warps, R, 2, TILE.warps, 2, R, 2))  # q l w m_rep m_i kw g k_rep k_i
        if TILE.form == "mma16":
            v = tl.permute(v, (3, 2, 4, 1, 7, 5, 8, 0, 6))
        else:
            v = tl.permute(v, (3, 2, 4, 1, 7, 5, 8, 6, 0))
        return tl.reshape(v, (TILE.h_pad, TILE.h_pad))


@triton.jit
def halves_of_weight(w, TILE: tl.constexpr):
    """[H_PAD, H_PAD] -> two [H_PAD, H_PAD / 2], the even and odd 8-blocks of k"""
    a, b = tl.split(tl.permute(tl.reshape(w, (TILE.h_pad, TILE.h_pad // 16, 2, 8)), (0, 1, 3, 2)))
    return tl.reshape(a, (TILE.h_pad, TILE.h_pad // 2)), tl.reshape(b, (TILE.h_pad, TILE.h_pad // 2))


@triton.jit
def halves_of_state(h, TILE: tl.constexpr):
    """[H_PAD, BLOCK_B] -> two [H_PAD / 2, BLOCK_B], matching halves_of_weight"""
    a, b = tl.split(tl.permute(tl.reshape(h, (TILE.h_pad // 16, 2, 8, TILE.block_b)), (0, 2, 3, 1)))
    return tl.reshape(a, (TILE.h_pad // 2, TILE.block_b)), tl.reshape(b, (TILE.h_pad // 2, TILE.block_b))


# ---------------------------------------------------------------------------------------------- input projection
# A batched product, one batch entry a warp: [WARPS, 16 R, CHUNK] x [WARPS, CHUNK, BLOCK_B].  Every warp needs all of x_t,
# and with the warp as a dimension of the tile each loads its own copy straight into operand B, without a barrier.
#
# K runs in chunks of CHUNK inputs, one 16-byte load a thread: thread q of a quad holds inputs (CHUNK / 4) q + r.  Which
# of them is which logical k is free as long as W_ih and x agree:
#     mma32  logical k = 8 j + 4 g + q      <->  r = 2 j + g
#     mma16  two products of K = 16, the low and the high halves (h) of the 32-bit words, so that unpacking x is one
#            byte permute a register:  logical k = 8 g + 2 q + e  <->  r = 4 g + 2 e + h
# Operands are tuples of tiles: 2 a chunk for mma16, else 1.


@triton.jit
def load_input_weight(ptr, k0, SHARED: tl.constexpr, SHAPE: tl.constexpr, TILE: tl.constexpr):
    """operand A: columns k0.. of contiguous W_ih[H, I], rows in hidden order; tiles [WARPS, 16 R, 16] (fma: [H_PAD, CHUNK]).

    SHARED: a plain tile; used once inside the loop, Triton keeps it in shared memory."""
    ROW: tl.constexpr = tl.int64 if SHAPE.row * SHAPE.k_in >= 2**31 else tl.int32
    if TILE.form == "fma":
        return (_load_weight(ptr, k0, SHAPE.k_in, 1, SHAPE.row, SHAPE.k_in, TILE.h_pad, TILE.chunk),)
    elif SHARED:
        R: tl.constexpr = TILE.r
        i = _axis(16 * R, 1, 3)
        m = ((8 * _axis(TILE.warps, 0, 3) + i % 8) * (2 * R) + i // 8).to(ROW)
        j = _axis(16, 2, 3)
        if TILE.form == "mma16":
            k = k0 + 8 * ((j // 2) % 4) + 4 * (j // 8) + 2 * (j % 2)
            low = tl.load(ptr + (m * SHAPE.k_in + k), mask=(m < SHAPE.row) & (k < SHAPE.k_in), other=0)
            high = tl.load(ptr + (m * SHAPE.k_in + k + 1), mask=(m < SHAPE.row) & (k + 1 < SHAPE.k_in), other=0)
            return (low, high)
        else:
            k = k0 + 4 * (j % 4) + 2 * (j // 8) + (j // 4) % 2
            return (tl.load(ptr + (m * SHAPE.k_in + k), mask=(m < SHAPE.row) & (k < SHAPE.k_in), other=0),)
    else:
        R: tl.constexpr = TILE.r
        E: tl.constexpr = TILE.chunk // 4
        m = ((_axis(TILE.warps, 2, 5) * 8 + _axis(8, 1, 5)) * (2 * R) + _axis(2 * R, 3, 5)).to(ROW)
        k = k0 + _axis(4, 0, 5) * E + _axis(E, 4, 5)
        p = ptr + (m * SHAPE.k_in + k)
        if SHAPE.w_aligned:
            p = tl.max_contiguous(p, [32, 16, 4, 1, 64])
        else:
            p = tl.max_contiguous(p, [32, 16, 4, 1, 1])
        v = tl.load(p, mask=(m < SHAPE.row) & (k < SHAPE.k_in), other=0)
        if TILE.form == "mma16":
            v = tl.reshape(v, (4, 8, TILE.warps, 2 * R, 2, 2, 2))  # q l w (rep i) g e h
            low, high = tl.split(tl.permute(v, (2, 3, 1, 4, 0, 5, 6)))
            return (tl.reshape(low, (TILE.warps, 16 * R, 16)), tl.reshape(high, (TILE.warps, 16 * R, 16)))
        else:
            v = tl.reshape(v, (4, 8, TILE.warps, 2 * R, 2, 2))  # q l w (rep i) j g
            return (tl.reshape(tl.permute(v, (2, 3, 1, 4, 5, 0)), (TILE.warps, 16 * R, 16)),)


@triton.jit
def load_input(ptr, source, k0, STORED: tl.constexpr, TILE: tl.constexpr):
    """raw tile of inputs k0.. of one step: int32 words [4, 8, WARPS, BLOCK_B / 8, 4] for aligned 16-bit or STORED.written, else
    elements.  Zero from input I, constant or not, on.

    source: (stride_b, rows, zero, I).  STORED.written: aligned, not fma.  stride_b in units of CHUNK / 4 elements where aligned (not
    fma).  zero is a 0 the compiler cannot see: a tile that visibly does not depend on its warp would be loaded once and
    broadcast, and its rows spread over the warps."""
    stride_b, rows, zero, width = source
    if TILE.form == "fma":
        k = k0 + tl.arange(0, TILE.chunk)[:, None]
        row = tl.arange(0, TILE.block_b)[None, :]
        p = ptr + (row.to(tl.int64) * stride_b + k)
        if ptr.dtype.element_ty == tl.float32:
            p = tl.max_contiguous(p, [1, 1])  # rows together in shared memory, as `_load_weight`
        return tl.load(p, mask=(row < rows) & (k < width), other=0)
    else:
        E: tl.constexpr = TILE.chunk // 4
        row = _axis(8, 1, 5) + 8 * _axis(TILE.block_b // 8, 3, 5)
        warp = _axis(TILE.warps, 2, 5) * (zero * 16)
        if (TILE.form == "mma16" and STORED.aligned) or STORED.written:
            PER: tl.constexpr = E // 4  # elements a word
            word = k0 // PER + _axis(4, 0, 5) * 4 + _axis(4, 4, 5)
            words = ptr.to(tl.pointer_type(tl.int32), bitcast=True)
            p = words + (row.to(tl.int64) * stride_b * 4 + word + warp)
            mask = (row < rows) & (word < width // PER)
            return tl.load(tl.max_contiguous(p, [32, 16, 4, 1, 64]), mask=mask, other=0, volatile=STORED.written)
        else:
            k = k0 + _axis(4, 0, 5) * E + _axis(E, 4, 5)
            UNIT: tl.constexpr = E if STORED.aligned else 1
            p = ptr + (row.to(tl.int64) * stride_b * UNIT + k + warp)
            if STORED.aligned:
                p = tl.max_contiguous(p, [32, 16, 4, 1, 64])
            else:
                p = tl.max_contiguous(p, [32, 16, 4, 1, 1])
            return tl.load(p, mask=(row < rows) & (k < width), other=0)


@triton.jit
def input_addresses(ptr, source, TILE: tl.constexpr):
    """int64: where the words of the first tile of `load_input` lie, STORED.written; those of the next ones 64 bytes further on each"""
    stride_b, _, zero, _ = source
    row = _axis(8, 1, 5) + 8 * _axis(TILE.block_b // 8, 3, 5)
    words = ptr.to(tl.pointer_type(tl.int32), bitcast=True)
    word = _axis(4, 0, 5) * 4 + _axis(4, 4, 5) + _axis(TILE.warps, 2, 5) * (zero * 16)
    p = words + (row.to(tl.int64) * stride_b * 4 + word)
    return tl.max_contiguous(p, [32, 16, 4, 1, 64]).to(tl.int64)


@triton.jit
def input_tiles(v, STORED: tl.constexpr, TILE: tl.constexpr):
    """raw input tile -> operand B, tiles [WARPS, 16, BLOCK_B] (fma: [CHUNK, BLOCK_B])"""
    if TILE.form == "fma":
        return (v,)
    elif TILE.form == "mma16":
        if STORED.aligned:
            low, high = words_to_halves(v, TILE.dtype)
        else:
            low, high = tl.split(tl.reshape(v, (4, 8, TILE.warps, TILE.block_b // 8, 4, 2)))
        return (_input_operand(low, TILE), _input_operand(high, TILE))
    else:
        if v.dtype == tl.int32:
            v = v.to(TILE.dtype, bitcast=True)
        return (_input_operand(v, TILE),)


@triton.jit
def written_out(tiles):
    """The raw input tiles of the fma form, as values made here.  Triton writes an operand to shared memory right behind what makes
    it: here together with the state, with no barrier of its own; behind the load, or in front of the product, with one."""
    made = ()
    for c in tl.static_range(len(tiles)):
        if tiles[c].dtype == tl.float64:
            v = tl.inline_asm_elementwise("mov.b64 $0, $1;", "=l,l", [tiles[c]], dtype=tl.float64, is_pure=True, pack=1)
        else:
            v = tl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r", [tiles[c]], dtype=tl.float32, is_pure=True, pack=1)
        made = made + (v,)
    return made


@triton.jit
def _input_operand(v, TILE: tl.constexpr):
    """[4 q, 8 l, WARPS, BLOCK_B / 8, 4] -> [WARPS, 16, BLOCK_B]"""
    v = tl.reshape(v, (4, 8, TILE.warps, TILE.block_b // 8, 2, 2))  # q l w J, (g e) or (j g)
    if TILE.form == "mma16":
        v = tl.permute(v, (2, 4, 0, 5, 3, 1))
    else:
        v = tl.permute(v, (2, 4, 5, 0, 3, 1))
    return tl.reshape(v, (TILE.warps, 16, TILE.block_b))


@triton.jit
def projection_tile(acc, TILE: tl.constexpr):
    """accumulator of the projection [WARPS, 16 R, BLOCK_B] -> [H_PAD, BLOCK_B] in hidden order"""
    if TILE.form == "fma":
        return acc
    else:
        acc = tl.permute(tl.reshape(acc, (TILE.warps, TILE.r, 16, TILE.block_b)), (1, 0, 2, 3))
        return tl.reshape(acc, (TILE.h_pad, TILE.block_b))


@triton.jit
def projection_zeros(TILE: tl.constexpr):
    if TILE.form == "fma":
        return tl.zeros((TILE.h_pad, TILE.block_b), TILE.acc)
    else:
        return tl.zeros((TILE.warps, TILE.h_pad // TILE.warps, TILE.block_b), TILE.acc)
