"""Exchanges the state between the programs (CTAs) of one launch.  No other file lets them talk to each other.

A group of CTAs computes s_t[rows, H] together, each CTA its own hidden units, and every CTA needs all of s_{t-1}.  That
is an all-gather through L2 at every step.  The state is exchanged where it is a result anyway, in out[T, B, H].  The unit
of the protocols is the 32-bit word of out, whatever the dtype.  There are two protocols:

"sentinel"  The data are the flag.  `out` is filled with 0xFF bytes before the first step, and no producer ever stores the
            word 0xFFFFFFFF: it is a NaN in every format, and `published` puts another NaN in its place.  A consumer loads
            the words (the probe) and loads each 16-byte chunk again while one of its words is 0xFFFFFFFF.  Invariant: a
            word is written once per fill, by one 32-bit store, so a word that is not the sentinel is final.  The protocol
            needs no fence, no atomic and no order between words.
"counter"   A counter for each batch tile counts the finished slices.  A producer stores its slice; behind a CTA barrier it
            adds 1 with release semantics.  Thread 0 of a consumer acquires the counter until all CTAs of the group are
            through with the step before, and a CTA barrier hands that on.  The barrier before the release is not optional:
            Triton up to 3.8 emits none of its own, and the stores of the other threads would not be covered.  Counters
            start at -1, from the same fill.

Co-residency.  Every spin waits for another CTA of the same launch, so all of them must run at once: the launch is
cooperative, and its grid is at most what fits.  Every spin is bounded all the same.

Failure.  A CTA that has polled `limit` times lowers the error word of its group, from the largest unsigned number, to the
step in which it waits, and goes on with what it has found: sentinels, which are NaN.  From then on its group is lost, and
these invariants hold:

    A group notices in a bounded time.  A CTA looks at the error word after every POLLS_PER_LOOK polls of a wait, and the
        time loop (cta_group.py) once in LOOK_EVERY turns.  So each CTA polls at most POLLS_PER_LOOK times in each of at most
        LOOK_EVERY turns, and waits no more after that.
    Nothing that is computed meanwhile passes for a result, though a relu, a mask or a select may make numbers of its NaN.
        Such values are published, and others compute with them.  But whoever publishes one has lowered the error word, or
        seen it lowered, or has read such values itself, each time at a step of at least the one in the error word.  Every
        CTA reads the error word once more behind its last step (`verdict`) and overwrites all its outputs from that step
        on with NaN.  A fence on either side keeps it from reading the word as it was before the values it has read.
    What precedes the step in the error word is right.  Who waits in step t has gathered all of step t - 2, so nobody of
        the group waits in vain for words of it.  Where rows begin anew (cta_group.py) a CTA does not gather them, and may run
        ahead; there whoever goes on without words that it lacks lowers the error word to its own step (LOWERS).

Groups of linked lanes (cta_group.py, one_cta.py) wait in one direction more: for what the same group of the lane before
publishes, always by the sentinel.  A lane is lost with any lane before it, which `verdict` looks up, too.

Memory model.  Of the two protocols PTX's memory model covers the counter alone: in the other, stores (weak, `.cg`) race
with relaxed loads.  Stores compile to STG.STRONG.GPU, repeated loads to LDG.STRONG.GPU, and probes, which Triton has as
`ld.volatile`, to LDG.STRONG.SYS.  All of them are single accesses of L2, and words do not tear.  A probe of GPU scope can
be spelled with `.cg` alone, which is a weak load: the compiler might move or merge it.  In inline assembly it would lose
the layout that only a load gets from the hints of `word_pointers`.

Cost on the critical path (sm_90, sentinel): one hand-over from store to load through L2, one maximum a word and one
branch.  A probe that comes too early costs a second gather: `hold_back` delays it.
"""

import triton
import triton.language as tl

SENTINEL = tl.constexpr(-1)
NAN = tl.constexpr(0x7FFF7FFF)  # two bf16 or fp16 NaN, or one fp32 NaN; not the sentinel
LINE = tl.constexpr(32)  # words between synchronisation words: 128 bytes, no two on a line
POLLS_PER_LOOK = tl.constexpr(64)  # at the error word while spinning: a look costs as much as a poll


# ---------------------------------------------------------------------------------------------- words


@triton.constexpr_function
def _maximum(words, name):
    """PTX for the maximum of registers, as a balanced tree: (text, register, registers used)"""
    text, used = "", 0
    while len(words) > 1:
        level = []
        for k in range(0, len(words) - 1, 2):
            text += f"max.u32 {name}{used}, {words[k]}, {words[k + 1]};\n"
            level.append(f"{name}{used}")
            used += 1
        words = level + ([words[-1]] if len(words) % 2 else [])
    return text, words[0], used


@triton.constexpr_function
def _verify_text(tiles, pack, apart, others=False, lowers=False):
    """PTX of `verify`; others: of words that another group publishes; lowers: as there.  Operands, `pack` of each tile: results | addresses |
    skip | error address | step | limit | address of the other group's error word, if others | words.

    The fast path is 4 maxima a chunk and a branch.  The slow path reads every chunk with a sentinel again, all in flight."""
    chunks = tiles * pack // 4
    n = 4 * chunks  # words of a thread; so many results and words
    skip, error, step, limit, source = (f"${n + k * pack}" for k in range(1, 6))
    result = [f"${i}" for i in range(n)]
    word = [f"${n + (5 + others) * pack + i}" for i in range(n)]
    address = [f"${n + 4 * j}+{apart * tile}" for tile in range(tiles) for j in range(pack // 4)]

    def check(label):
        text, tops = "", []
        for c in range(chunks):
            four = result[4 * c : 4 * c + 4]
            text += f"max.u32 c{c}, {four[0]}, {four[1]};\nmax.u32 d, {four[2]}, {four[3]};\nmax.u32 c{c}, c{c}, d;\n"
            tops.append(f"c{c}")
        tree, top, _ = _maximum(tops, "m")
        return text + tree + f"setp.ne.u32 q, {top}, 0xFFFFFFFF;\n@q bra {label};\n"

    text = f"{{\n.reg .pred q, p<{chunks}>;\n.reg .b32 d, n, t, c<{chunks}>, m<{max(chunks, 1)}>;\n"
    text += "".join(f"mov.b32 {result[i]}, {word[i]};\n" for i in range(n))
    text += check("DONE")
    text += f"setp.ne.u32 q, {skip}, 0;\n@q bra LOST;\nmov.u32 n, 0;\nSPIN:\n"
    text += "".join(f"setp.eq.u32 p{c}, c{c}, 0xFFFFFFFF;\n" for c in range(chunks))
    for c in range(chunks):
        four = ", ".join(result[4 * c : 4 * c + 4])
        text += f"@p{c} ld.relaxed.gpu.global.v4.b32 {{{four}}}, [{address[c]}];\n"
    text += check("DONE")
    return text + _give_up(error, step, limit, source if others else None, lowers)


@triton.constexpr_function
def _give_up(error, step, limit, source=None, lowers=False):
    """PTX behind a failed poll: it spins again, unless the group has failed or the limit is reached.  Then at LOST a fence puts
    the error word, as it was lowered or found lowered, before what the thread stores next.

    `source` is where the error word of the group that is waited for lies, if that is another one.  Its failure at this step
    or the next leaves the words of this step incomplete: this group fails, too.

    `lowers`: the error word is lowered to this step also where it has been found lowered."""
    failed = "setp.ne.u32 q, t, 0xFFFFFFFF;\n@q bra LOST;"
    if source is not None:
        failed += f"\nld.relaxed.gpu.global.u32 t, [{source}];\nadd.u32 d, {step}, 1;\nsetp.le.u32 q, t, d;\n@q bra FAIL;"
    failing, lost = ("FAIL:\nLOST:", "") if lowers else ("FAIL:", "LOST:\n")
    return f"""add.u32 n, n, 1;
and.b32 t, n, {POLLS_PER_LOOK.value - 1};
setp.ne.u32 q, t, 0;
@q bra SPIN;
ld.relaxed.gpu.global.u32 t, [{error}];
{failed}
setp.lt.u32 q, n, {limit};
@q bra SPIN;
{failing}
red.relaxed.gpu.global.min.u32 [{error}], {step};
{lost}fence.acq_rel.gpu;
DONE:
}}"""


@triton.constexpr_function
def _verify_constraints(tiles, pack, others=False):
    n = tiles * pack
    inputs = ["l"] * pack + ["r"] * pack + ["l"] * pack + ["r"] * (2 * pack) + ["l"] * (others * pack) + ["r"] * n
    return ",".join(["=&r"] * n + inputs + ["~{memory}"])


@triton.constexpr_function
def _int32s(n):
    return tuple([tl.int32] * n)


@triton.jit
def verify(addresses, words, skip, group, APART: tl.constexpr, TILE: tl.constexpr, LOWERS: tl.constexpr = False):
    """A tuple of tiles [4, 8, warps, rows / 8, 4] of int32 words, as they were found: the words once none is the
    sentinel, or as they are where `skip` is not 0.  addresses: int64, of the first tile's words; the others' lie APART
    bytes further on each.

    group: (address of its error word, step, limit).  Where another group publishes the words, a fourth is the address of that
    one's error word: this group's is lowered when that one has failed, or at the limit, which is larger than the other group's:
    its failure comes first.  LOWERS: it is lowered, too, whenever words are left that are the sentinel.

    BLOCK_B / 2 words of a tile are one thread's; each four are one 16-byte chunk, read again by one instruction from the first
    one's address.  The probe load's layout is the operands' layout and gives a thread these very chunks
    (tests/test_compile.py looks)."""
    OTHERS: tl.constexpr = len(group) == 4
    TILES: tl.constexpr = len(words)
    PACK: tl.constexpr = TILE.block_b // 2
    return tl.inline_asm_elementwise(
        _verify_text(TILES, PACK, APART, OTHERS, LOWERS), _verify_constraints(TILES, PACK, OTHERS), (addresses, skip) + group + words,
        dtype=_int32s(TILES), is_pure=False, pack=PACK,
    )  # fmt: skip


_WAIT = tl.constexpr(
    """{
.reg .pred q;
.reg .b32 n, t;
mov.u32 $0, 0;
mov.u32 t, %tid.x;
setp.ne.u32 q, t, 0;
@q bra DONE;
mov.u32 n, 0;
SPIN:
ld.acquire.gpu.global.u32 t, [$1];
setp.ge.s32 q, t, $2;
@q bra DONE;
"""
    + _give_up.fn("$3", "$4", "$5")
)


@triton.jit
def wait(counter_ptr, target, error_ptr, step, limit):
    """until the counter has reached `target`; what others released before they counted is then visible to the CTA"""
    tl.inline_asm_elementwise(
        _WAIT, "=&r,l,r,l,r,r,~{memory}",
        [counter_ptr.to(tl.int64), target, error_ptr.to(tl.int64), step, limit],
        dtype=tl.int32, is_pure=False, pack=1,
    )  # fmt: skip
    tl.debug_barrier()


@triton.jit
def cycle():
    """int32: the SM's cycle counter, each warp's own reading"""
    return tl.inline_asm_elementwise("mov.u32 $0, %clock; // $1", "=r,r", [0], dtype=tl.int32, is_pure=False, pack=1)


@triton.jit
def hold_back(since, cycles):
    """Wait until `cycles` cycles have passed since `cycle()` was `since`; at most so many, whatever the counter says."""
    tl.inline_asm_elementwise(
        """{
.reg .pred q;
.reg .b32 t;
mov.u32 $0, 0;
SPIN:
mov.u32 t, %clock;
sub.u32 t, t, $1;
setp.lt.u32 q, t, $2;
@q bra SPIN;
}""",
        "=&r,r,r,~{memory}", [since, cycles], dtype=tl.int32, is_pure=False, pack=1,
    )  # fmt: skip


@triton.jit
def gathered_rows(rows, TILE: tl.constexpr):
    """The rows of `word_pointers`, [1, 8 l, 1, BLOCK_B / 8 j, 1]"""
    l = tl.arange(0, 8)[None, :, None, None, None]
    j = tl.arange(0, TILE.block_b // 8)[None, None, None, :, None]
    return tl.minimum(8 * j + l, rows - 1)


@triton.jit
def word_pointers(ptr, row_words, rows, TILE: tl.constexpr):
    """[4 q, 8 l, WARPS, BLOCK_B / 8 j, 4 i]: the address of word 16 w + 4 q + i of row 8 j + l, rows row_words apart, a
    multiple of 4.  Rows beyond `rows` are the last one again: what they load is never stored.

    The layout of mma operand B, by the order of the hints (fragments.py).  A hint sticks to the operation that makes the
    pointer and is lost on its way out of a function, so every function that makes one gives it again."""
    q = tl.arange(0, 4)[:, None, None, None, None]
    l = tl.arange(0, 8)[None, :, None, None, None]
    w = tl.arange(0, TILE.warps)[None, None, :, None, None]
    j = tl.arange(0, TILE.block_b // 8)[None, None, None, :, None]
    i = tl.arange(0, 4)[None, None, None, None, :]
    p = ptr + (tl.minimum(8 * j + l, rows - 1) * row_words + (16 * w + 4 * q + i))
    return tl.max_contiguous(p, [32, 16, 4, 1, 64])


@triton.jit
def load_words(pointers, start, enable, WORDS, MASKED: tl.constexpr, MODE: tl.constexpr, TILE: tl.constexpr):
    """The int32 words `start` further on than `word_pointers`: one K tile of operand B, straight in its layout.
    MASKED: 0 beyond word WORDS (constant or not) of a row, or where not enable.

    MODE: "plain"; "probe": may still be being written; "acquired": by other CTAs, before what was waited for."""
    p = tl.max_contiguous(pointers + start, [32, 16, 4, 1, 64])
    q = tl.arange(0, 4)[:, None, None, None, None]
    w = tl.arange(0, TILE.warps)[None, None, :, None, None]
    mask = (start // 4 + 4 * w + q < WORDS // 4) & enable
    if MODE == "probe":
        if MASKED:
            return tl.load(p, mask=mask, other=0, volatile=True)
        else:
            return tl.load(p, volatile=True)
    elif MODE == "acquired":
        if MASKED:
            return tl.load(p, mask=mask, other=0, cache_modifier=".cg")
        else:
            return tl.load(p, cache_modifier=".cg")
    else:
        if MASKED:
            return tl.load(p, mask=mask, other=0)
        else:
            return tl.load(p)


@triton.jit
def gather(source, group, hold, ALWAYS: tl.constexpr, LOWERS: tl.constexpr, SHAPE: tl.constexpr, TILE: tl.constexpr):
    """All of s_{t-1} of a batch tile, as a tuple of word tiles (`load_words`), once every CTA of the group has published
    its part.

    source: (ptr, rows, enable, given).  ptr: int32 [rows, SHAPE.state_words], rows SHAPE.row_words apart; or a tensor of the shape of
        `gathered_rows`, the same for each row by itself.  Zeros where not enable (ALWAYS: it is); given: ptr is not exchanged but given
        (h0), valid from the start.
    group: (failed, error_ptr, counter_ptr, target, step, limit).  failed: the group has given up, wait for nothing.
    hold: (since, delay).  The first probe comes `delay` cycles after `since` (`cycle`), at the earliest."""
    ptr, rows, enable, given = source
    failed, error_ptr, counter_ptr, target, step, limit = group
    since, delay = hold
    K_TILE: tl.constexpr = 16 * TILE.warps
    TILES: tl.constexpr = (SHAPE.state_words + K_TILE - 1) // K_TILE
    if TILE.protocol == "counter":
        wait(counter_ptr, tl.where(failed, SENTINEL, target), error_ptr, step, limit)
    if ALWAYS:
        enable = True
    pointers = word_pointers(ptr, SHAPE.row_words, rows, TILE)
    if TILE.probe_delay > 0:
        hold_back(since, delay)
    words = ()
    for k in tl.static_range(TILES):
        v = load_words(
            pointers, k * K_TILE, enable, SHAPE.state_words, not ALWAYS or (k + 1) * K_TILE > SHAPE.state_words,
            "probe" if TILE.protocol == "sentinel" else "acquired", TILE,
        )  # fmt: skip
        words = words + (v,)
    if TILE.protocol == "sentinel":
        words = verify(
            pointers.to(tl.int64), words, (given | failed).to(tl.int32), (error_ptr.to(tl.int64), step, limit), 4 * K_TILE, TILE,
            LOWERS,
        )
    return words


@triton.jit
def published(words):
    """int32 words as they may be stored: never the sentinel"""
    return tl.minimum(words.to(tl.uint32, bitcast=True), 0xFFFFFFFE).to(tl.int32, bitcast=True)


@triton.jit
def publish(ptrs, words, mask):
    """Store words of a CTA's part of s_t.  .cg: a store goes to L2 and stays in no L1."""
    tl.store(ptrs, published(words), mask=mask, cache_modifier=".cg")


@triton.jit
def fence():
    """To other CTAs, what this thread has loaded and stored so far comes before what it loads and stores from here on."""
    tl.inline_asm_elementwise(
        "fence.acq_rel.gpu; mov.u32 $0, 0; // $1", "=r,r,~{memory}", [0], dtype=tl.int32, is_pure=False, pack=1
    )


@triton.jit
def verdict(error_ptr, lane, apart, LINKED: tl.constexpr):
    """Of a group that is through with all its steps: (the step from which on its outputs are no result, SENTINEL if they all
    are; is that to be reported as this group's own failure?).  LINKED: a group fails with the same group of any lane before,
    too; their error words lie `apart` words before each other."""
    fence()
    at = tl.load(error_ptr, volatile=True)
    found = at >= 0  # by this group; the sentinel is negative
    if LINKED:  # what came of a layer that has failed is no result, whether or not this one had to wait for it
        earliest = at.to(tl.uint32, bitcast=True)
        for k in range(1, lane + 1):
            source = tl.load(error_ptr - k * apart, volatile=True).to(tl.uint32, bitcast=True)
            found = found & (at.to(tl.uint32, bitcast=True) + 1 < source)  # else that one's failure is the reason
            earliest = tl.minimum(earliest, source)
        at = earliest.to(tl.int32, bitcast=True)
    return at, found


@triton.jit
def arrive(counter_ptr, TILE: tl.constexpr):
    """Let the group know that all of the CTA's words are stored."""
    if TILE.protocol == "counter":
        tl.debug_barrier()
        tl.atomic_add(counter_ptr, 1, sem="release", scope="gpu")
