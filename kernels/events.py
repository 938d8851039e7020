"""Says between which steps of a launch something happens to rows: one begins anew, or has its first step, or has had its last one.

Kernels that run many steps ask for it between any two, in this form: of each tile of rows, and of the link before each step, an int64 word

    bits 0 to 31    bit r: for row r of the tile this step does not follow on the one before it: it begins anew or, behind the launch's
                    first step, has its own first one
    bits 32 to 63   for groups (LIVE) bit r: row r has this step, by its length
                    for one CTA the number of the next link to look at: the next one at which anything happens, a row's end included,
                    or the first link of the next block of BLOCK links, where nothing need happen; 0: there is none

Links are numbered in the order of the launch, which may run down in time.  What links two steps in one pass links them in the other.

Cost: a program for each block of each tile.  No program waits for another one, so the time of this kernel does not grow with T."""

import triton
import triton.language as tl


@triton.jit
def next_event(word):
    """The number of the next link to look at; 0: there is none"""
    return (word >> 32).to(tl.int32)


@triton.jit
def kept_apart(one):
    """0, for what a branch computes, which then stays a branch: a loop of `one` trip, which is 1 and not known when a kernel is compiled.
    Of a short branch without a loop ptxas makes predicated instructions, which every step issues."""
    return tl.inline_asm_elementwise(
        "{ .reg .pred p; mov.u32 $0, 0; AGAIN: add.u32 $0, $0, 1; setp.lt.u32 p, $0, $1; @p bra AGAIN; sub.u32 $0, $0, $1; }",
        "=&r,r", [one], dtype=tl.int32, is_pure=False, pack=1,
    )  # fmt: skip


@triton.jit
def is_event(word):
    """Is there a row that does not follow on the step before?"""
    return word.to(tl.int32) != 0


@triton.jit
def rows_of_word(word, row):
    """Of the shape of `row`: does this row of the tile not follow on the step before?"""
    return word.to(tl.int32) & (1 << row) != 0


@triton.jit
def live_rows(word, row):
    """Of the shape of `row`: does this row of the tile have this step?"""
    return (word >> 32).to(tl.int32) & (1 << row) != 0


@triton.jit(do_not_specialize=["T", "B", "groups", "reverse"])
def events(
    reset_ptr,  # uint8 [T, B] where HAS_RESET: not 0 where a segment begins
    lengths_ptr,  # int32 [B] where HAS_LENGTHS: how many steps a row has
    words_ptr,  # int64 [LANES * T * tiles]: of each lane and each group of its tiles, by the link, the tile in the group
    T,
    B,
    groups,  # tile i is one of group i mod groups
    reverse,  # 1: the launch runs from T - 1 down to 0; a second lane runs the other way
    HAS_RESET: tl.constexpr,
    HAS_LENGTHS: tl.constexpr,
    LIVE: tl.constexpr,
    ROWS: tl.constexpr,  # of a tile, at most 32
    BLOCK: tl.constexpr,
):
    tiles = tl.cdiv(B, ROWS)
    tile = tl.program_id(0) % tiles
    block = tl.program_id(0) // tiles
    lane = tl.program_id(1)
    group = tile % groups
    own_tiles = (tiles - group + groups - 1) // groups
    before = group * (tiles // groups) + tl.minimum(group, tiles % groups)  # tiles of the groups before
    words_ptr += (lane * tiles + before) * T.to(tl.int64) + tile // groups
    reverse = reverse ^ lane
    bit = tl.arange(0, ROWS)[None, :]
    row = tile * ROWS + bit
    steps = tl.zeros((1, ROWS), tl.int32) + T
    if HAS_LENGTHS:
        steps = tl.load(lengths_ptr + row, mask=row < B, other=0)
    link = block * BLOCK + tl.arange(0, BLOCK)
    t = tl.where(reverse == 1, T - 1 - link, link)[:, None]
    at = t + reverse  # where a segment would begin that parts the two steps
    inside = (t >= 0) & (t < T) & (row < B)
    anew = tl.zeros((BLOCK, ROWS), tl.int32)
    if HAS_RESET:
        flags = tl.load(reset_ptr + at.to(tl.int64) * B + row, mask=inside & (at < steps), other=0)
        anew = (flags != 0).to(tl.int32)
    ends = tl.zeros((BLOCK, ROWS), tl.int32)
    if HAS_LENGTHS:  # where time runs down, the row has its first step then
        ends = (inside & (at == steps) & (link > 0)[:, None]).to(tl.int32)
        anew |= ends * reverse
    if LIVE:
        high = tl.sum((inside & (t < steps)).to(tl.int32) << bit, 1)
    else:
        next_block = tl.where((block + 1) * BLOCK < T, (block + 1) * BLOCK, 0x7FFFFFFF)
        happens = tl.where(tl.max(anew | ends, 1) != 0, link, next_block)
        later = tl.min(tl.where(link[None, :] > link[:, None], happens[None, :], next_block), 1)
        high = tl.where(later < T, later, 0)
    word = high.to(tl.int64) << 32 | tl.sum(anew << bit, 1).to(tl.int64) & 0xFFFFFFFF
    tl.store(words_ptr + link.to(tl.int64) * own_tiles, word, mask=link < T)
