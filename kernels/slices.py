"""One CTA's slice of the recurrence in a group: `units` rows of the weights, K split over the warps.

Products are batched, one batch entry a warp: [WARPS, units, 16] x [WARPS, 16, BLOCK_B], each warp its own part of K, so
that a warp loads its share of the state straight from global memory into mma operand B, without shared memory.

A K tile is 16 32-bit words a warp: words 16 w + 4 q + i of the tile belong to warp w, thread q of a quad, one 16-byte
load.  16-bit: i = 2 h + g is the word's place, e the element in it, and the tile is two products of K = 16, h = 0 and 1,
with logical k = 8 g + 2 q + e: a word is one register of the fragment as it is.  fp32: one product, i = 2 j + g, logical
k = 8 j + 4 g + q.  Weights and state agree on the order; nothing else knows of it.

State tiles come in two halves (low, high), [BLOCK_B, UNITS / 2] each, a unit of either in the same thread: neighbouring
hidden units where they share a word (16-bit, E = 2 elements a word), else (fp32, E = 1) units UNITS / 2 apart, each half
contiguous in memory.  Nothing of [.., UNITS / 2, 2] is carried: of several such tiles Triton puts the 2 across threads, and
converts them in a dozen barriers a step.
"""

import triton
import triton.language as tl

from .fragments import round_pair, words_to_halves


@triton.jit
def load_weight(ptr, row0, start, ROWS: tl.constexpr, COLUMNS: tl.constexpr, SHARED: tl.constexpr, TILE: tl.constexpr):
    """operand A: rows row0.. and one K tile, columns start.., of contiguous [ROWS, COLUMNS]; a tuple of [WARPS, UNITS, 16].

    SHARED: plain tiles; used once inside the loop, Triton keeps them in shared memory."""
    if SHARED:
        w = tl.arange(0, TILE.warps)[:, None, None]
        m = row0 + tl.arange(0, TILE.units)[None, :, None]
        n = tl.arange(0, 16)[None, None, :]
        tiles = ()
        for h in tl.static_range(TILE.e):
            column = start + 16 * TILE.e * w + 4 * TILE.e * (n // 4) + 4 * h + n % 4
            # after n threads get w first, then m: each has several m, which then follow k in shared memory; the rows of a matrix
            # would lie in the same banks if w did
            p = tl.max_contiguous(ptr + (m.to(tl.int64) * COLUMNS + column), [2, 1, 4])
            v = tl.load(p, mask=(m < ROWS) & (column < COLUMNS), other=0)
            v = tl.reshape(v, (TILE.warps, TILE.units, 4, 2, 2))
            if TILE.form == "mma16":
                v = tl.permute(v, (0, 1, 3, 2, 4))  # w m q g e -> w m g q e
            else:
                v = tl.permute(v, (0, 1, 3, 4, 2))  # w m q j g -> w m j g q
            tiles = tiles + (tl.reshape(v, (TILE.warps, TILE.units, 16)),)
        return tiles
    else:
        q = tl.arange(0, 4)[:, None, None, None, None]
        l = tl.arange(0, 8)[None, :, None, None, None]
        w = tl.arange(0, TILE.warps)[None, None, :, None, None]
        c = tl.arange(0, TILE.units // 8)[None, None, None, :, None]
        i = tl.arange(0, 4 * TILE.e)[None, None, None, None, :]
        m = row0 + 8 * c + l
        vector = start // (4 * TILE.e) + 4 * w + q
        p = ptr + (m.to(tl.int64) * COLUMNS + (vector * (4 * TILE.e) + i))
        mask = (m < ROWS) & (vector < COLUMNS // (4 * TILE.e)) & (i >= 0)
        v = tl.load(tl.max_contiguous(p, [32, 16, 4, 1, 64]), mask=mask, other=0)
        if TILE.form == "mma16":
            v = tl.reshape(v, (4, 8, TILE.warps, TILE.units // 8, 2, 2, 2))  # q l w c h g e
            first, second = tl.split(tl.permute(v, (2, 3, 1, 5, 0, 6, 4)))
            return (tl.reshape(first, (TILE.warps, TILE.units, 16)), tl.reshape(second, (TILE.warps, TILE.units, 16)))
        else:
            v = tl.reshape(v, (4, 8, TILE.warps, TILE.units // 8, 2, 2))  # q l w c j g
            return (tl.reshape(tl.permute(v, (2, 3, 1, 4, 5, 0)), (TILE.warps, TILE.units, 16)),)


@triton.constexpr_function
def _twice(dtype):
    return (dtype, dtype)


@triton.jit
def chunk_halves(words, DTYPE: tl.constexpr):
    """int32 words [.., 4] -> the 16-bit elements of words 0 and 1, and of words 2 and 3, [.., 4] each.

    Not an instruction: two neighbours of a tile's last dimension share a register, which is the word already.  Shifts
    and masks in their place would cost a byte permute a register on the critical path."""
    return tl.inline_asm_elementwise(
        "mov.b32 $0, $4; mov.b32 $1, $5; mov.b32 $2, $6; mov.b32 $3, $7;", "=r,=r,=r,=r,r,r,r,r", [words],
        dtype=_twice(DTYPE), is_pure=True, pack=4,
    )  # fmt: skip


@triton.jit
def operand_tiles(words, TILE: tl.constexpr):
    """words of a K tile [4, 8, WARPS, BLOCK_B / 8, 4] -> operand B, a tuple of [WARPS, 16, BLOCK_B]"""
    J: tl.constexpr = TILE.block_b // 8
    if TILE.form == "mma16":
        first, second = chunk_halves(words, TILE.dtype)
        first = tl.permute(tl.reshape(first, (4, 8, TILE.warps, J, 2, 2)), (2, 4, 0, 5, 3, 1))  # q l w j g e -> w g q e j l
        second = tl.permute(tl.reshape(second, (4, 8, TILE.warps, J, 2, 2)), (2, 4, 0, 5, 3, 1))
        return (tl.reshape(first, (TILE.warps, 16, TILE.block_b)), tl.reshape(second, (TILE.warps, 16, TILE.block_b)))
    else:
        v = tl.reshape(words.to(TILE.dtype, bitcast=True), (4, 8, TILE.warps, J, 2, 2))  # q l w j k g -> w k g q j l
        return (tl.reshape(tl.permute(v, (2, 4, 5, 0, 3, 1)), (TILE.warps, 16, TILE.block_b)),)


@triton.jit
def sum_over_warps(acc, TILE: tl.constexpr):
    """[WARPS, UNITS, BLOCK_B] -> the halves of a state tile, by one pass through shared memory (tl.sum takes 3 to 5 barriers)"""
    if TILE.e == 1:
        acc = tl.permute(tl.reshape(acc, (TILE.warps, 2, TILE.units // 2, TILE.block_b)), (0, 2, 1, 3))
    if TILE.warps == 4:
        a = tl.permute(tl.reshape(acc, (2, 2, TILE.units // 2, 2, TILE.block_b)), (4, 2, 3, 0, 1))
    elif TILE.warps == 8:
        a = tl.permute(tl.reshape(acc, (2, 2, 2, TILE.units // 2, 2, TILE.block_b)), (5, 3, 4, 0, 1, 2))
    else:
        a = tl.permute(tl.reshape(acc, (2, 2, 2, 2, TILE.units // 2, 2, TILE.block_b)), (6, 4, 5, 0, 1, 2, 3))
        x, y = tl.split(a)
        a = x + y
    if TILE.warps >= 8:
        x, y = tl.split(a)
        a = x + y
    x, y = tl.split(a)
    a = x + y
    x, y = tl.split(a)
    return tl.split(x + y)


# ---------------------------------------------------------------------------------------------- the CTA's own units


@triton.jit
def own_units(unit0, TILE: tl.constexpr):
    """The hidden units of a state tile, [1, UNITS / 2] for each half.  As unit0 + (..): LLVM then knows an even unit from the odd one
    beside it, and that an even H parts no two of them."""
    i = tl.arange(0, TILE.units // 2)[None, :]
    if TILE.e == 2:
        return unit0 + 2 * i, unit0 + (2 * i + 1)
    else:
        return unit0 + i, unit0 + (i + TILE.units // 2)


@triton.jit
def load_vector(ptr, units, SHAPE: tl.constexpr):
    """[1, UNITS / 2] for each half, fp32: a vector [SHAPE.row] at the `own_units`"""
    low, high = units
    return (
        tl.load(ptr + low, mask=low < SHAPE.row, other=0).to(tl.float32),
        tl.load(ptr + high, mask=high < SHAPE.row, other=0).to(tl.float32),
    )


@triton.jit
def add_halves(a, b):
    return a[0] + b[0], a[1] + b[1]


@triton.jit
def load_own(ptr, stride_b, place, WIDE: tl.constexpr, SHAPE: tl.constexpr, TILE: tl.constexpr):
    """ptr[row * stride_b + unit] of the CTA's units, 0 beyond rows x SHAPE.row or where not enable, as tiles [BLOCK_B,
    UNITS / 2]: one of int32 words of two 16-bit elements or, WIDE, of int64 words of two fp32 elements; E = 1: two of fp32.

    place: (rows, enable, unit0).  stride_b in elements (int64, even).  As words: 16-bit values must not cross the loop's back edge (fragments.py), and a
    tile of pairs, or of every other element, would be loaded in a layout of its own and converted."""
    rows, enable, unit0 = place
    row = tl.arange(0, TILE.block_b)[:, None]
    i = tl.arange(0, TILE.units // 2)[None, :]
    if TILE.e == 1:
        unit = unit0 + i
        p = ptr + (row * stride_b + unit)
        low = tl.load(p, mask=(row < rows) & (unit < SHAPE.row) & enable, other=0)
        high = tl.load(p + TILE.units // 2, mask=(row < rows) & (unit + TILE.units // 2 < SHAPE.row) & enable, other=0)
        return (low, high)
    else:
        pair = unit0 // 2 + i
        words = ptr.to(tl.pointer_type(tl.int64 if WIDE else tl.int32), bitcast=True)
        mask = (row < rows) & (pair < SHAPE.row // 2) & enable
        return (tl.load(words + (row * (stride_b // 2) + pair), mask=mask, other=0),)


@triton.jit
def own_tile(raw, WIDE: tl.constexpr, TILE: tl.constexpr):
    """raw of `load_own` -> the halves of a state tile, fp32"""
    if TILE.e == 1:
        return raw[0], raw[1]
    elif WIDE:
        low = (raw[0] & 0xFFFFFFFF).to(tl.int32)
        high = (raw[0] >> 32).to(tl.int32)
        return low.to(tl.float32, bitcast=True), high.to(tl.float32, bitcast=True)
    else:
        low, high = words_to_halves(raw[0], TILE.dtype)
        return low.to(tl.float32), high.to(tl.float32)


@triton.jit
def round_to_words(low, high, TILE: tl.constexpr):
    """The halves of a state tile, fp32 -> int32 words as they lie in memory, 2 / E tiles [BLOCK_B, UNITS / 2].

    The conversion makes 0x7FFF of every NaN, and words by construction: no store is narrower."""
    if TILE.dtype == tl.float32:
        return (low.to(tl.int32, bitcast=True), high.to(tl.int32, bitcast=True))
    else:
        return (round_pair(low, high, TILE.dtype),)


@triton.jit
def own_words(unit0, rows, number: tl.constexpr, SHAPE: tl.constexpr, TILE: tl.constexpr):
    """(offsets, mask) in int32 [rows, SHAPE.words], rows SHAPE.row_words apart, of tile `number` of `round_to_words`"""
    row = tl.arange(0, TILE.block_b)[:, None]
    word = unit0 // TILE.e + TILE.units // 2 * number + tl.arange(0, TILE.units // 2)[None, :]
    return row * SHAPE.row_words + word, (row < rows) & (word < SHAPE.words)
