"""Drops elements between layers without a mask in memory: whoever needs an element of the mask computes it again.

The mask is a function of (seed, layer, t, batch row, 16-byte vector of the row): a counter-based generator, Philox4x32
with 7 rounds, the fewest that pass all of BigCrush (Salmon et al., SC '11, table 2), gives 128 bits for it, in each of
its words 16 bits for each element that lies there (fp32: the low 16).  An element is dropped where those, a number below
65536, are less than `dropped`; what is kept is multiplied by 65536 / (65536 - dropped), in fp32, so that expectations
are kept exactly.  p = dropped / 65536 is 0, 1, or the multiple of 2^-16 next to what was asked for.

A dropped value is zero whatever it was, NaN included.

Helpers take drop = (seed, layer, dropped, what kept values are multiplied by)."""

import triton
import triton.language as tl

ROUNDS = tl.constexpr(7)


@triton.jit
def kept_scale(dropped):
    """what kept values are multiplied by, fp32"""
    return tl.where(dropped < 65536, 65536.0 / tl.maximum(65536 - dropped, 1).to(tl.float32), 0.0)


@triton.jit
def _random(seed, vector, row, t, layer):
    return tl.philox(seed, vector, row, t, layer, ROUNDS)


@triton.jit
def _word(i, r):
    """of four random words, tile i (0 .. 3) says which"""
    return tl.where(i == 0, r[0], tl.where(i == 1, r[1], tl.where(i == 2, r[2], r[3])))


@triton.jit
def _kept_words(words, r, dropped, E: tl.constexpr):
    """int32 words of E elements each, zero where dropped; r: random words of their shape"""
    threshold = dropped.to(tl.uint32)
    low = (r & 0xFFFF) >= threshold
    if E == 1:
        return tl.where(low, words, 0)
    else:
        return words & (tl.where(low, 0xFFFF, 0) | tl.where((r >> 16) >= threshold, -65536, 0))


@triton.jit
def drop_input(words, drop, start, row0, t, APART: tl.constexpr, TILE: tl.constexpr):
    """A K tile of operand B, words `start`.. of rows row0.. at step t, with zeros for what is dropped.  APART: words from
    one warp's to the next one's, 16 of `exchange.load_words`, 0 of `fragments.load_input`.

    One call of the generator for a thread's 16 bytes: the vector does not depend on the word, which the compiler sees."""
    seed, layer, dropped, _ = drop
    q = tl.arange(0, 4)[:, None, None, None, None]
    l = tl.arange(0, 8)[None, :, None, None, None]
    w = tl.arange(0, TILE.warps)[None, None, :, None, None]
    j = tl.arange(0, TILE.block_b // 8)[None, None, None, :, None]
    i = tl.arange(0, 4)[None, None, None, None, :]
    row = row0 + 8 * j + l
    r = _random(seed, start // 4 + APART // 4 * w + q + 0 * row, row + 0 * (w + q), t, layer)
    return _kept_words(words, _word(i, r), dropped, TILE.e)


@triton.jit
def drop_products(acc, drop, unit0, row0, t, TILE: tl.constexpr):
    """Products [WARPS, UNITS, BLOCK_B] of units unit0.. and rows row0..: scaled where the element is kept, else zero"""
    unit = unit0 + tl.arange(0, TILE.units)[None, :, None]
    row = row0 + tl.arange(0, TILE.block_b)[None, None, :]
    return drop_values(acc, drop, unit, row, t, TILE)


@triton.jit
def drop_values(acc, drop, unit, row, t, TILE: tl.constexpr):
    """fp32 of these hidden units and rows, which broadcast to acc's shape: scaled where the element is kept, else zero"""
    seed, layer, dropped, scale = drop
    unit, row = unit + 0 * row, row + 0 * unit
    r = _word(unit // TILE.e % 4, _random(seed, unit // (4 * TILE.e), row, t, layer))
    bits = (r >> (unit % TILE.e * 16).to(tl.uint32)) & 0xFFFF
    return tl.where(bits >= dropped.to(tl.uint32), acc * scale, 0.0)


@triton.jit(do_not_specialize=["T", "B", "layer", "dropped"])
def drop(
    x_ptr,  # int32 words of [T, B, ROW] contiguous: a layer's output
    out_ptr,  # the same: what the next layer got of it
    seed_ptr,  # int64 [1]
    T,
    B,
    layer,
    dropped,
    WORDS: tl.constexpr,  # ROW as int32 words, whole vectors of 4
    BLOCK: tl.constexpr,  # vectors a program
    DTYPE: tl.constexpr,
):
    """The dropped output of a layer as a tensor, in its dtype: what the weight gradient of the next layer needs."""
    E: tl.constexpr = 1 if DTYPE == tl.float32 else 2
    vectors = T.to(tl.int64) * B * (WORDS // 4)
    v = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)[:, None]
    i = tl.arange(0, 4)[None, :]
    tb = v // (WORDS // 4)
    t = (tb // B).to(tl.int32)
    r = _random(tl.load(seed_ptr), (v % (WORDS // 4)).to(tl.int32), (tb % B).to(tl.int32), t, layer)
    mask = (v < vectors) & (i >= 0)
    words = _kept_words(tl.load(x_ptr + v * 4 + i, mask=mask, other=0), _word(i, r), dropped, E)
    scale = kept_scale(dropped)
    if E == 1:
        words = (words.to(tl.float32, bitcast=True) * scale).to(tl.int32, bitcast=True)
    else:
        low = (words & 0xFFFF).to(tl.uint16).to(DTYPE, bitcast=True).to(tl.float32) * scale
        high = ((words >> 16) & 0xFFFF).to(tl.uint16).to(DTYPE, bitcast=True).to(tl.float32) * scale
        low = low.to(DTYPE).to(tl.uint16, bitcast=True).to(tl.int32)
        high = high.to(DTYPE).to(tl.uint16, bitcast=True).to(tl.int32)
        words = low | (high << 16)
    tl.store(out_ptr + v * 4 + i, words, mask=mask)
