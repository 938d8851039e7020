"""Computes one CTA's slice of the recurrence in a group: `units` rows of the weights, K split over the warps.

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

from .fragments import replaced, round_pair, words_to_halves


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


@triton.constexpr_function
def _levels(n):
    """Of a binary tree with n leaves"""
    return (n - 1).bit_length()


@triton.jit
def _joined(tiles):
    """A tuple of tiles of one shape [..] -> [.., P], P the next power of 2; the last one again where there are fewer"""
    LEVELS: tl.constexpr = _levels(len(tiles))
    for _ in tl.static_range((1 << LEVELS) - len(tiles)):
        tiles = tiles + (tiles[len(tiles) - 1],)
    for _ in tl.static_range(LEVELS):  # the first one joins what the highest bit of a number tells apart
        pairs = ()
        for n in tl.static_range(len(tiles) // 2):
            pairs = pairs + (tl.join(tiles[n], tiles[n + len(tiles) // 2]),)
        tiles = pairs
    return tiles[0]


@triton.jit
def _split_all(tiles):
    """Tiles [.., 2], numbered, -> twice as many [..]: what was first in the last dimension, then what was second"""
    first = ()
    second = ()
    for n in tl.static_range(len(tiles)):
        x, y = tl.split(tiles[n])
        first = first + (x,)
        second = second + (y,)
    return first, second


@triton.jit
def sum_over_warps(acc, TILE: tl.constexpr):
    """A tuple of [WARPS, UNITS, BLOCK_B] -> (low, high), tuples of the halves of as many state tiles, by one pass through shared memory
    for all of them (tl.sum takes 3 to 5 barriers).  All values of a unit and a row end in one thread."""
    PARTS: tl.constexpr = len(acc)
    LEVELS: tl.constexpr = _levels(PARTS)
    HALF: tl.constexpr = TILE.units // 2
    a = tl.reshape(_joined(acc), (TILE.warps, TILE.units, TILE.block_b, 1 << LEVELS))
    if TILE.e == 2:
        a = tl.permute(tl.reshape(a, (TILE.warps, HALF, 2, TILE.block_b, 1 << LEVELS)), (3, 1, 2, 4, 0))
    else:
        a = tl.permute(tl.reshape(a, (TILE.warps, 2, HALF, TILE.block_b, 1 << LEVELS)), (3, 2, 1, 4, 0))
    for n in tl.static_range(_levels(TILE.warps)):
        a = tl.reshape(a, (TILE.block_b, HALF, 2, 1 << LEVELS, TILE.warps >> (n + 1), 2))
        x, y = tl.split(a)
        a = x + y
    tiles = (a,)
    for n in tl.static_range(LEVELS):  # the lowest bit of a part's number first
        shaped = ()
        for i in tl.static_range(len(tiles)):
            shaped = shaped + (tl.reshape(tiles[i], (TILE.block_b, HALF, 2, 1 << (LEVELS - n - 1), 2)),)
        first, second = _split_all(shaped)
        tiles = first + second
    shaped = ()
    for i in tl.static_range(PARTS):
        shaped = shaped + (tl.reshape(tiles[i], (TILE.block_b, HALF, 2)),)
    return _split_all(shaped)


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
def of_rows(ptr, row, rows):
    """Of the shape of `row`: ptr[row], of the last one of `rows` where there are fewer"""
    return tl.load(ptr + tl.minimum(row, rows - 1))


@triton.jit
def load_vector(ptr, units, SHAPE: tl.constexpr):
    """[1, UNITS / 2] for each half, fp32: a vector [SHAPE.row] at the `own_units`"""
    low, high = units
    return (
        tl.load(ptr + low, mask=low < SHAPE.row, other=0).to(tl.float32),
        tl.load(ptr + high, mask=high < SHAPE.row, other=0).to(tl.float32),
    )


@triton.jit
def add_halves(tiles, NUMBER: tl.constexpr, halves):
    """(low, high), tuples of the halves of state tiles, with `halves` added to tile NUMBER"""
    low, high = tiles
    low = replaced(low, NUMBER, low[NUMBER] + halves[0])
    return low, replaced(high, NUMBER, high[NUMBER] + halves[1])


@triton.jit
def append_halves(tiles, halves):
    """(low, high), tuples of the halves of state tiles, with one tile more"""
    return tiles[0] + (halves[0],), tiles[1] + (halves[1],)


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
def store_own(ptr, halves, stride_b, place, SHAPE: tl.constexpr, TILE: tl.constexpr):
    """The halves of a state tile, fp32, to ptr[row * stride_b + unit], where `load_own` finds them, WIDE; place: (rows, unit0)"""
    rows, unit0 = place
    low, high = halves
    row = tl.arange(0, TILE.block_b)[:, None]
    i = tl.arange(0, TILE.units // 2)[None, :]
    if TILE.e == 1:
        unit = unit0 + i
        p = ptr + (row * stride_b + unit)
        tl.store(p, low, mask=(row < rows) & (unit < SHAPE.row))
        tl.store(p + TILE.units // 2, high, mask=(row < rows) & (unit + TILE.units // 2 < SHAPE.row))
    else:
        pair = unit0 // 2 + i
        words = ptr.to(tl.pointer_type(tl.int64), bitcast=True)
        both = high.to(tl.int32, bitcast=True).to(tl.int64) << 32 | low.to(tl.int32, bitcast=True).to(tl.int64) & 0xFFFFFFFF
        tl.store(words + (row * (stride_b // 2) + pair), both, mask=(row < rows) & (pair < SHAPE.row // 2))


@triton.jit
def round_to_words(low, high, TILE: tl.constexpr):
    """The halves of a state tile, fp32 -> int32 words as they lie in memory, 2 / E tiles [BLOCK_B, UNITS / 2].

    The conversion makes 0x7FFF of every NaN, and words by construction: no store is narrower."""
    if TILE.dtype == tl.float32:
        return (low.to(tl.int32, bitcast=True), high.to(tl.int32, bitcast=True))
    else:
        return (round_pair(low, high, TILE.dtype),)


@triton.jit
def own_words(unit0, rows, number: tl.constexpr, ROW_WORDS: tl.constexpr, SHAPE: tl.constexpr, TILE: tl.constexpr):
    """(offsets, mask) in int32 [rows, SHAPE.words], rows ROW_WORDS apart, of tile `number` of `round_to_words`"""
    row = tl.arange(0, TILE.block_b)[:, None]
    word = unit0 // TILE.e + TILE.units // 2 * number + tl.arange(0, TILE.units // 2)[None, :]
    return row * ROW_WORDS + word, (row < rows) & (word < SHAPE.words)


@triton.jit
def store_words(ptr, words, place, ROW_WORDS: tl.constexpr, SHAPE: tl.constexpr, TILE: tl.constexpr):
    """`round_to_words`' tiles to int32 ptr[rows, SHAPE.words], rows ROW_WORDS apart, of which no other program reads in this launch;
    place: (rows, unit0)"""
    rows, unit0 = place
    for i in tl.static_range(len(words)):
        offsets, mask = own_words(unit0, rows, i, ROW_WORDS, SHAPE, TILE)
        tl.store(ptr + offsets, words[i], mask=mask)
