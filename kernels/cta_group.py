"""Runs the recurrence of one_cta.py over a group of CTAs, where W_rec does not fit on one of them.

    a_t = W_rec s_{t-1} + W_in x_t + u_t          s_t, c_t = CELL(a_t, c_{t-1}, saved_t)          t in launch order

A group of CTAS programs computes UNITS hidden units each; programs p CTAS .. (p + 1) CTAS - 1 are group p.  Batch tiles
of BLOCK_B rows are dealt out to the groups: tile i to group i mod P.  A group takes all its tiles through a time step
before the next step, so while one tile's state travels the others are computed, and any batch size runs in one launch.

CELL.routes says which tiles a cell has and which products make which of them (rnn_triton/cells/cell.py).  A CTA has its units
of all of them.  Each part of a has an accumulator of its own.  The published tiles lie side by side in a row of out; the first
of them are s, which W_rec multiplies, the others are results alone.  What is carried, c, is fp32 and nobody else's: it is stored
at the end of a step and loaded again in the shadow of the next gather.

On chip for the whole launch: the CTA's rows of W_rec (SHARED_TILES K tiles in shared memory, the rest in registers), of
W_in where its home is "registers" or "shared", biases and vectors.  The state is exchanged through out (exchange.py): every CTA
gathers all of s_{t-1} of a tile, each warp its part of K, straight into mma fragments.

A step of a tile, in order:
    acc = W_in x_t                                       in the shadow of the exchange; x_t was loaded a step ago
    issue the loads of the next u, saved
    CTA barrier                                          frees the reduction's buffer off the critical path
    issue the load of c_{t-1}
    gather s_{t-1}                                       critical: until every CTA of the group has published it
    issue the loads of the next x                        TILE.x_loads "behind"; "before": with those of u
    acc += W_rec s_{t-1}; sum over warps                 critical: K / (16 WARPS CHAINS) dependent mma, shared memory
    s_t, c_t = CELL(acc + bias + u_t, c_{t-1}, saved_t)  critical: s_t is rounded and published to out[t]
    store c_t and what the backward pass will need

Lanes.  The second axis of programs is LANES networks of groups side by side, each with its own weights and its own part
of every tensor.  Two meanings:

    LINKED      lanes are layers of a stack, a wavefront: x of every lane but the first is out of the lane before, at the
                same t, waited for by the sentinel in the shadow of the lane's own exchange.  Forward lane n is layer n;
                backward it is layer LANES - 1 - n, W_in is W_ih^T of the layer above it, x that layer's da of W_ih's gates,
                the last tiles of a row: what has passed between two layers goes back the same way.  Only the first lane has
                u, and x where I is not 0.
    otherwise   directions of one layer: the second lane runs through time the other way, over the same x.

With DROPOUT what passes from layer to layer is dropped by a mask that both passes compute again (dropout.py).  Tensors
with a part for each lane are numbered by layer, whichever way the lanes run.

Nobody waits for a later lane, and out of a layer is written once per step and never again: a lane may run ahead of the
next one, or that one fall behind, by any number of steps, and nothing is overrun.

Rows may end before step T (HAS.lengths) or begin anew at a step.  A word of each turn says whether a row begins anew, or has its first
step (HAS.events, events.py); a turn without either goes around what follows from it.  A row that is not live publishes zeros and stores nothing
of what it carries; its last state is read behind the last step from its own last step.  A row that begins anew is gathered from
`restart`, and from `first` in its first step, where time runs down: its address alone is selected.  Backward all rows are
gathered, and a select behind the sum over warps leaves out what does not follow.

Invariants.  A word of out is stored once, and by one program: s_t of a unit and a row belongs to one CTA.  A tile's step
t is computed by a CTA only after it has seen all of step t - 1 of that tile, so no CTA is ever more than a step ahead of
another at one tile, which the counters rely on (without them a CTA may run ahead of rows that begin anew: exchange.py).  All rows are whole 16-byte vectors (ROW elements, H of them hidden
units): the launch pads what is not, and units in the padding publish zeros, whatever their products are.

A group that fails (exchange.py) leaves NaN from the failing step on, and for what is left of all steps, and reports itself; a
CTA that was through before keeps what it has, which is right.  A turn of the time loop, one tile and step, looks at the error word once in LOOK_EVERY:
all warps of all CTAs read it, from one slice of L2.  The same group of every later linked lane fails too, from that step
or the one before on, without a report of its own.

Cost of a step (sm_90, bf16, H = 1024, UNITS = 16, BLOCK_B = 8): gather 16 KB from L2 a CTA, 16 dependent mma less the
chains, 2 barriers; the hand-over through L2 is most of it.  Global traffic inside the loop: x, u, what
is saved, c and the state.
"""

import triton
import triton.language as tl

from .dropout import drop_input, drop_products, kept_scale
from .events import is_event, kept_apart, live_rows, rows_of_word
from .exchange import (
    LINE,
    NAN,
    SENTINEL,
    arrive,
    cycle,
    gather,
    gathered_rows,
    load_words,
    publish,
    verdict,
    verify,
    word_pointers,
)
from .facts import kernel_name
from .fragments import operand, replaced, saved_tiles
from .slices import (
    add_halves,
    append_halves,
    load_own,
    load_vector,
    load_weight,
    of_rows,
    operand_tiles,
    own_tile,
    own_units,
    own_words,
    round_to_words,
    store_own,
    store_words,
    sum_over_warps,
)


@triton.jit
def _products(acc, a, b, first: tl.constexpr, INTO: tl.constexpr, TILE: tl.constexpr):
    """acc with products of a K tile: the tiles a[n] of block n of a weight times those of b, added to the accumulators of part
    INTO[n] in turn, beginning with number `first`"""
    for n in tl.static_range(len(a)):
        for i in tl.static_range(len(b)):
            v = tl.dot(
                a[n][i], operand(b[i], TILE.precision), acc[INTO[n] * TILE.chains + (first + i) % TILE.chains],
                input_precision=TILE.precision,
            )  # fmt: skip
            acc = replaced(acc, INTO[n] * TILE.chains + (first + i) % TILE.chains, v)
    return acc


@triton.jit
def _parts(acc, TILE: tl.constexpr):
    """The sum of each part's accumulators"""
    sums = ()
    for n in tl.static_range(len(acc) // TILE.chains):
        v = acc[n * TILE.chains]
        for i in tl.static_range(1, TILE.chains):
            v += acc[n * TILE.chains + i]
        sums = sums + (v,)
    return sums


@triton.jit
def _weights(ptr, row0, SHARED_TILES: tl.constexpr, BLOCKS: tl.constexpr, COLUMNS: tl.constexpr, SHAPE: tl.constexpr, TILE: tl.constexpr):
    """K tiles of a CTA's rows of contiguous [BLOCKS, SHAPE.row, COLUMNS], each a tuple of its tiles of all blocks, the first
    SHARED_TILES for shared memory"""
    K: tl.constexpr = 16 * TILE.warps * TILE.e
    tiles = ()
    for k in tl.static_range((COLUMNS + K - 1) // K):
        blocks = ()
        for n in tl.static_range(BLOCKS):
            w = load_weight(ptr + n * (SHAPE.row * COLUMNS), row0, k * K, SHAPE.row, COLUMNS, k < SHARED_TILES, TILE)
            rounded = ()
            for i in tl.static_range(len(w)):
                rounded = rounded + (operand(w[i], TILE.precision),)
            blocks = blocks + (rounded,)
        tiles = tiles + (blocks,)
    return tiles


@triton.jit
def _load_inputs(pointers, words, TILES: tl.constexpr, WHOLE: tl.constexpr, MODE: tl.constexpr, TILE: tl.constexpr):
    """K tiles of x_t, by `word_pointers`: the first `words` words of a row, which are at least WHOLE"""
    K_TILE: tl.constexpr = 16 * TILE.warps
    x = ()
    for k in tl.static_range(TILES):
        x = x + (load_words(pointers, k * K_TILE, True, words, (k + 1) * K_TILE > WHOLE, MODE, TILE),)
    return x


@triton.jit
def _load_tiles(ptr, stride_b, place, NUMBER: tl.constexpr, WIDE: tl.constexpr, SHAPE: tl.constexpr, TILE: tl.constexpr):
    """NUMBER tiles that lie side by side in a row, as a tuple of `load_own`s"""
    raw = ()
    for n in tl.static_range(NUMBER):
        raw = raw + (load_own(ptr + n * SHAPE.row, stride_b, place, WIDE, SHAPE, TILE),)
    return raw


@triton.jit
def _abandon(outputs, at, time, part, SHAPE: tl.constexpr, TILE: tl.constexpr):
    """NaN in all of the CTA's outputs from step `at` on.  outputs: of each tile (pointer, words from a batch row to the next, from a
    step to the next: 0 where there is one for all), a word of int32 or int64.  time: (T, t of step 0, from a step's t to the next
    one's).  part: what is the CTA's, (B, group, groups, tiles of the group, unit0)."""
    T, t_first, dt = time
    B, group, groups, own_tiles, unit0 = part
    nan = tl.full((TILE.block_b, TILE.units // 2), NAN, tl.int64)
    nan = nan << 32 | nan
    for k in range(at * own_tiles, T * own_tiles):
        tile = group + k % own_tiles * groups
        row0 = (tile * TILE.block_b).to(tl.int64)
        t = t_first + dt * (k // own_tiles)
        for n in tl.static_range(len(outputs)):
            ptr, row_words, step_words = outputs[n]
            for i in tl.static_range(2 // TILE.e):
                offsets, mask = own_words(unit0, B - tile * TILE.block_b, i, row_words, SHAPE, TILE)
                tl.store(ptr + (t * step_words + row0 * row_words) + offsets, nan.to(ptr.dtype.element_ty), mask=mask)


@triton.jit(
    do_not_specialize=[
        "T", "B", "reverse", "stride_x_t", "stride_x_b", "stride_u_t", "stride_u_b", "launch", "limit", "dropped", "bottom"
    ],
    repr=kernel_name("cta_group"),
)  # fmt: skip
def cta_group(
    # all contiguous where no strides are given; N: LANES, R: ROW, of several directions [.., N, ROW]; see "Lanes" above
    x_ptr,  # [T, B, I], strides (stride_x_t, stride_x_b, 1), both in 16-byte vectors; where TILE.w_in_home is "none": unused
    w_in_ptr,  # [N, G, ROW, K], K = I, of linked lanes ROW; backward [N, ROW, G ROW]: W_ih^T, its G gates side by side
    w_rec_ptr,  # [N, G, ROW, ROW]: W_hh; backward [N, ROW, G ROW]: its transpose, the gates in the order of ROUTES.rec_gates
    bias0_ptr,  # [N, G, ROW] where HAS.bias0: of W_ih's gates
    bias1_ptr,  # [N, G, ROW] where HAS.bias1: of W_hh's
    first_ptr,  # [B, R], linked [N, B, ROW], where HAS.first: forward s before the first step, h0, backward p of it, dhn
    u_ptr,  # [T, B, G, ROW], of several directions [T, B, N, G, ROW], backward dy [T, B, R], stream where HAS.u, strides (stride_u_t, stride_u_b, 1), in 16-byte vectors of the dtype; fp32 where SHAPE.wide_u
    saved_ptr,  # [T, B, R], linked [N, T, B, ROW], stream where HAS.saved: y
    out_ptr,  # int32 words of [T, B, R], linked [N, T, B, ROW], each row the published tiles'; filled with 0xFF bytes before step 0
    last_ptr,  # int32 words, as first, where HAS.last: s of the last step
    sync_ptr,  # int32 [N (P + batch tiles), 32], filled with 0xFF bytes before step 0: error words of groups, counters of tiles
    report_ptr,  # int64 [1] in memory of the host: what failed (rnn_triton/launch/faults.py), not written otherwise
    seed_ptr,  # int64 [1] where DROPOUT
    carried_ptr,  # fp32 [N, carried tiles, B, ROW] where there are any: c before the first step, and in the end after the last one
    kept_ptr,  # [N, T, B, kept tiles, ROW] where HAS.kept: written forward, a stream backward
    vectors_ptr,  # fp32 [N, vectors, ROW] where there are any
    lengths_ptr,  # int32 [B], the same of all lanes, where HAS.lengths: how many steps a row has
    events_ptr,  # int64 [T * batch tiles + 1], of two directions [N * T * batch tiles + 1], where HAS.events: events.py, of groups
    restart_ptr,  # as first, which then is there, too, where HAS.restart, of the forward pass: what s is before a row begins anew
    restart_carried_ptr,  # and what is carried, as carried
    T,
    B,
    reverse,  # 1: time runs from T - 1 down to 0
    stride_x_t,
    stride_x_b,
    stride_u_t,
    stride_u_b,
    launch,  # what the report calls this launch
    limit,  # polls before a group gives up
    dropped,  # of 65536 elements between layers, where DROPOUT (dropout.py)
    bottom,  # number of layer 0 in the network, by which masks are told
    TILE: tl.constexpr,  # facts.GroupTile
    SHAPE: tl.constexpr,  # facts.GroupShape
    HAS: tl.constexpr,  # facts.Has
    CELL: tl.constexpr,  # facts.Cell
    SHARE: tl.constexpr,  # facts.Share
):
    I: tl.constexpr = SHAPE.I
    H: tl.constexpr = SHAPE.H
    ROW: tl.constexpr = SHAPE.row
    FIRST_IS_STATE: tl.constexpr = CELL.forward
    ROUTES: tl.constexpr = CELL.routes
    PARTS: tl.constexpr = ROUTES.parts
    GATES: tl.constexpr = len(ROUTES.rec_gates)
    INTO: tl.constexpr = ROUTES.into
    REC_INTO: tl.constexpr = ROUTES.rec_into
    PUBLISHED: tl.constexpr = ROUTES.published
    CARRIED: tl.constexpr = ROUTES.carried
    KEPT: tl.constexpr = ROUTES.kept if HAS.kept else 0
    VECTORS: tl.constexpr = ROUTES.vectors
    CTAS: tl.constexpr = TILE.ctas
    UNITS: tl.constexpr = TILE.units
    BLOCK_B: tl.constexpr = TILE.block_b
    WARPS: tl.constexpr = TILE.warps
    PROBE_DELAY: tl.constexpr = TILE.probe_delay
    LANES: tl.constexpr = SHARE.lanes
    LINKED: tl.constexpr = SHARE.linked
    DROPOUT: tl.constexpr = SHARE.dropout
    E: tl.constexpr = TILE.e
    K_TILE: tl.constexpr = 16 * WARPS  # words
    WORDS: tl.constexpr = SHAPE.words
    ROW_S: tl.constexpr = SHAPE.apart
    ROW_WORDS: tl.constexpr = SHAPE.row_words
    K_REC: tl.constexpr = ROW * ROUTES.exchanged  # columns of W_rec
    K_LINK: tl.constexpr = ROW if FIRST_IS_STATE else GATES * ROW  # and of W_in, from the lane before
    K_IN: tl.constexpr = K_LINK if LINKED else I
    X_WORDS: tl.constexpr = I // E
    X_MODE: tl.constexpr = "probe" if LINKED else "plain"
    ON_CHIP: tl.constexpr = TILE.w_in_home != "none"
    X_TILES: tl.constexpr = (K_IN // E + K_TILE - 1) // K_TILE
    group = tl.program_id(0) // CTAS
    unit0 = tl.program_id(0) % CTAS * UNITS
    groups = tl.num_programs(0) // CTAS
    tiles = (B + BLOCK_B - 1) // BLOCK_B
    own_tiles = (tiles - group + groups - 1) // groups
    error_ptr = sync_ptr + group * LINE
    counters = sync_ptr + LANES * groups * LINE
    zero = (T < 0).to(tl.float32)  # that the compiler cannot see: a known one would merge the chains
    x_words = x_ptr.to(tl.pointer_type(tl.int32), bitcast=True)
    step_x = stride_x_t.to(tl.int64) * 4
    row_x = stride_x_b.to(tl.int64) * 4
    step_u = stride_u_t.to(tl.int64) * (4 * E)
    row_u = stride_u_b.to(tl.int64) * (4 * E)
    step_s = B.to(tl.int64) * ROW_S
    step_words = B.to(tl.int64) * ROW_WORDS
    tile_c = B.to(tl.int64) * ROW
    step_k = B.to(tl.int64) * (KEPT * ROW)

    # ---- the lane's own tensors
    number = group  # in the report
    first_lane = True
    x_width = X_WORDS
    if LANES > 1:
        lane = tl.program_id(1)
        number += lane * groups
        error_ptr += lane * groups * LINE
        counters += lane * tiles * LINE
        layer = lane  # which of the tensors' N
        if LINKED:
            if not FIRST_IS_STATE:
                layer = LANES - 1 - lane
            first_lane = lane == 0
            apart = T * step_words  # words from one layer's s to the next one's
            out_ptr += layer * apart
            saved_ptr += layer * (T * step_s)
            first_ptr += layer * step_s
            last_ptr += layer * (B.to(tl.int64) * (ROW_S // E))
            # x of all lanes but the first is what the lane before publishes, in its own time
            x_words = tl.where(first_lane, x_words, out_ptr - apart if FIRST_IS_STATE else out_ptr + apart + (ROW_WORDS - K_LINK // E))
            step_x = tl.where(first_lane, step_x, step_words)
            row_x = tl.where(first_lane, row_x, ROW_WORDS)
            if I != K_LINK:
                x_width = tl.where(first_lane, X_WORDS, K_LINK // E)
        else:
            out_ptr += lane * (PUBLISHED * WORDS)
            saved_ptr += lane * ROW
            u_ptr += lane * (len(INTO) * ROW)
            first_ptr += lane * ROW
            last_ptr += lane * WORDS
            reverse = reverse ^ lane
        w_in_ptr += layer.to(tl.int64) * (len(INTO) * ROW * K_IN)
        w_rec_ptr += layer.to(tl.int64) * (len(REC_INTO) * ROW * K_REC)
        bias0_ptr += layer * (GATES * ROW)
        bias1_ptr += layer * (GATES * ROW)
        carried_ptr += layer * (CARRIED * tile_c)
        if HAS.restart:
            restart_ptr += layer * step_s if LINKED else lane * ROW
            if CARRIED > 0:
                restart_carried_ptr += layer * (CARRIED * tile_c)
        if HAS.events and not LINKED:
            events_ptr += lane * (T * tiles.to(tl.int64))
        kept_ptr += layer * (T * step_k)
        vectors_ptr += layer * (VECTORS * ROW)
    if DROPOUT:
        seed = tl.load(seed_ptr)
        lane_dropped = tl.where(first_lane, 0, dropped)
        scale = kept_scale(lane_dropped)
    t_first = reverse * (T - 1)
    dt = 1 - 2 * reverse

    # ---- on chip for the whole launch
    w_rec = _weights(w_rec_ptr, unit0, TILE.shared_tiles, len(REC_INTO), K_REC, SHAPE, TILE)
    w_in = ()
    if ON_CHIP:
        w_in = _weights(w_in_ptr, unit0, X_TILES if TILE.w_in_home == "shared" else 0, len(INTO), K_IN, SHAPE, TILE)
    # what belongs to units comes in halves (slices.py), and of several tiles as tuples of them: (low, high)
    units = own_units(unit0, TILE)
    bias = ((), ())
    for n in tl.static_range(PARTS):
        bias = append_halves(bias, (tl.zeros((1, UNITS // 2), tl.float32), tl.zeros((1, UNITS // 2), tl.float32)))
    for n in tl.static_range(GATES):
        if HAS.bias0:
            bias = add_halves(bias, INTO[n], load_vector(bias0_ptr + n * ROW, units, SHAPE))
        if HAS.bias1:
            bias = add_halves(bias, REC_INTO[n], load_vector(bias1_ptr + n * ROW, units, SHAPE))
    vectors = ((), ())
    for n in tl.static_range(VECTORS):
        vectors = append_halves(vectors, load_vector(vectors_ptr + n * ROW, units, SHAPE))

    # ---- what the first step has prefetched
    own_rows = tl.arange(0, BLOCK_B)[:, None]
    columns = tl.arange(0, BLOCK_B)[None, None, :]
    rows = B - group * BLOCK_B
    row0 = (group * BLOCK_B).to(tl.int64)
    x_raw = ()
    if ON_CHIP:
        x_t = word_pointers(x_words + t_first * step_x + row0 * row_x, row_x, rows, TILE)
        x_raw = _load_inputs(x_t, x_width, X_TILES, X_WORDS, X_MODE, TILE)
    u_raw = ()
    saved_raw = ()
    kept_raw = ()
    if HAS.u:
        u_t = u_ptr + t_first * step_u + row0 * row_u
        u_raw = _load_tiles(u_t, row_u, (rows, first_lane, unit0), len(INTO), SHAPE.wide_u, SHAPE, TILE)
    if HAS.saved:
        saved_t = saved_ptr + t_first * step_s + row0 * ROW_S
        saved_raw = load_own(saved_t, ROW_S, (rows, True, unit0), False, SHAPE, TILE)
    if not FIRST_IS_STATE:
        kept_t = kept_ptr + t_first * step_k + row0 * (KEPT * ROW)
        kept_raw = _load_tiles(kept_t, KEPT * ROW, (rows, True, unit0), KEPT, False, SHAPE, TILE)

    if HAS.events:
        events_ptr += (group * (tiles // groups) + tl.minimum(group, tiles % groups)) * T.to(tl.int64)
        next_word = tl.load(events_ptr)

    error = tl.load(error_ptr, volatile=True)
    published_at = cycle()
    delay = tl.where(own_tiles == 1, PROBE_DELAY, 0)  # of several, the others' work has taken longer
    step = 0
    own = 0  # which of the group's tiles
    for turn in range(T * own_tiles):
        t = t_first + dt * step
        tile = group + own * groups
        rows = B - tile * BLOCK_B
        row0 = (tile * BLOCK_B).to(tl.int64)
        # the next tile, or the first one of the next step; after the last of all, one that is there and not used
        own_1 = tl.where(own + 1 == own_tiles, 0, own + 1)
        step_1 = tl.minimum(tl.where(own_1 == 0, step + 1, step), T - 1)
        t_1 = t_first + dt * step_1
        tile_1 = group + own_1 * groups
        rows_1 = B - tile_1 * BLOCK_B
        row0_1 = (tile_1 * BLOCK_B).to(tl.int64)

        # ---- in the shadow of the exchange
        acc = ()
        for n in tl.static_range(PARTS * TILE.chains):
            acc = acc + (tl.zeros((WARPS, UNITS, BLOCK_B), tl.float32) + zero,)
        if ON_CHIP:
            if LINKED:
                x_t = word_pointers(x_words + t * step_x + row0 * row_x, row_x, rows, TILE)
                below = (error_ptr - groups * LINE).to(tl.int64)
                x_raw = verify(
                    x_t.to(tl.int64), x_raw, (first_lane | (error != SENTINEL)).to(tl.int32),
                    (error_ptr.to(tl.int64), step, 2 * limit, below), 4 * K_TILE, TILE,
                )  # fmt: skip
            for k in tl.static_range(X_TILES):
                v = x_raw[k]
                if DROPOUT and FIRST_IS_STATE:
                    v = drop_input(v, (seed, bottom + layer - 1, lane_dropped, scale), k * K_TILE, tile * BLOCK_B, t, 16, TILE)
                acc = _products(acc, w_in[k], operand_tiles(v, TILE), k * E, INTO, TILE)
            if DROPOUT and FIRST_IS_STATE:
                scaled = ()
                for n in tl.static_range(len(acc)):
                    scaled = scaled + (acc[n] * scale,)
                acc = scaled
            if DROPOUT and not FIRST_IS_STATE:
                whole = _parts(acc, TILE)
                for n in tl.static_range(PARTS):
                    v = drop_products(
                        whole[n], (seed, bottom + layer, lane_dropped, scale), unit0, tile * BLOCK_B, t, TILE
                    )
                    acc = replaced(acc, n * TILE.chains, v)
                    for i in tl.static_range(1, TILE.chains):
                        acc = replaced(acc, n * TILE.chains + i, tl.zeros((WARPS, UNITS, BLOCK_B), tl.float32) + zero)
            x_t = word_pointers(x_words + t_1 * step_x + row0_1 * row_x, row_x, rows_1, TILE)
            if TILE.x_loads == "before":
                x_raw = _load_inputs(x_t, x_width, X_TILES, X_WORDS, X_MODE, TILE)
        u = bias
        saved = ((), ())
        if HAS.u:
            if FIRST_IS_STATE:
                for n in tl.static_range(len(INTO)):
                    u = add_halves(u, INTO[n], own_tile(u_raw[n], SHAPE.wide_u, TILE))
            else:  # dy, and no bias
                u = append_halves(((), ()), own_tile(u_raw[0], SHAPE.wide_u, TILE))
            u_t = u_ptr + t_1 * step_u + row0_1 * row_u
            u_raw = _load_tiles(u_t, row_u, (rows_1, first_lane, unit0), len(INTO), SHAPE.wide_u, SHAPE, TILE)
        if HAS.saved:
            saved = append_halves(saved, own_tile(saved_raw, False, TILE))
            saved_t = saved_ptr + t_1 * step_s + row0_1 * ROW_S
            saved_raw = load_own(saved_t, ROW_S, (rows_1, True, unit0), False, SHAPE, TILE)
        if not FIRST_IS_STATE:
            for n in tl.static_range(KEPT):
                saved = append_halves(saved, own_tile(kept_raw[n], False, TILE))
            kept_t = kept_ptr + t_1 * step_k + row0_1 * (KEPT * ROW)
            kept_raw = _load_tiles(kept_t, KEPT * ROW, (rows_1, True, unit0), KEPT, False, SHAPE, TILE)
        alone = step == 0  # with no state before it
        alone_column = step == 0
        if HAS.first and not FIRST_IS_STATE:
            dhn = load_own(first_ptr + row0 * ROW_S, ROW_S, (rows, step == 0, unit0), False, SHAPE, TILE)
            u = add_halves(u, 0, own_tile(dhn, False, TILE))
        # where s_{t-1} and what is carried lie, and is that given, or does the step follow on nothing?
        before = out_ptr + ((t - dt) * step_words + row0 * ROW_WORDS)
        given = step < 0
        first_words = first_ptr.to(tl.pointer_type(tl.int32), bitcast=True) + row0 * ROW_WORDS
        if HAS.first and FIRST_IS_STATE:
            before = tl.where(step > 0, before, first_words)
            given = step == 0
        carried_t = carried_ptr + row0 * ROW
        follows = True
        if HAS.events:
            word = next_word
            events_ptr += 1
            next_word = tl.load(events_ptr)
            if FIRST_IS_STATE:
                before += tl.zeros_like(gathered_rows(rows, TILE))
                if HAS.restart and CARRIED > 0:
                    carried_t += tl.zeros_like(own_rows)
            else:
                alone = (step == 0) & (own_rows >= 0)
                alone_column = (step == 0) & (columns >= 0)
                follows = own_rows >= 0
            if HAS.lengths:
                live = live_rows(word, own_rows)
            if is_event(word):
                nothing = kept_apart(dt * dt)
                word |= nothing
                at = t + nothing
                if FIRST_IS_STATE:
                    anew = rows_of_word(word, gathered_rows(rows, TILE))
                    begins = anew  # its own first step, where time runs down
                    if HAS.restart:
                        restart_words = restart_ptr.to(tl.pointer_type(tl.int32), bitcast=True) + row0 * ROW_WORDS
                        before = tl.where(anew, restart_words, before)
                        own_anew = rows_of_word(word, own_rows)
                        if HAS.lengths:
                            begins = at == reverse * of_rows(lengths_ptr + row0, gathered_rows(rows, TILE), rows) - 1
                            own_anew = own_anew & (at != reverse * of_rows(lengths_ptr + row0, own_rows, rows) - 1)
                        if CARRIED > 0:
                            carried_t = tl.where(own_anew, restart_carried_ptr + row0 * ROW, carried_t)
                    if HAS.lengths and HAS.first:
                        before = tl.where(begins, first_words, before)
                elif step > 0:  # step 0 follows on nothing anyhow, but for what is carried
                    alone = rows_of_word(word, own_rows)
                    alone_column = rows_of_word(word, columns)
                    follows = alone == 0
                    if HAS.lengths:
                        begins = at == reverse * of_rows(lengths_ptr + row0, own_rows, rows) - 1
                        follows = follows | begins
                        if HAS.first:
                            dhn = load_own(first_ptr + row0 * ROW_S, ROW_S, (rows, begins, unit0), False, SHAPE, TILE)
                            u = add_halves(u, 0, own_tile(dhn, False, TILE))
        if LINKED and not FIRST_IS_STATE:
            projected = _parts(acc, TILE)  # all there is in the first step: no state yet, and 0 * W_rec may be NaN
        failed = error != SENTINEL
        look = turn % TILE.look_every == TILE.look_every - 1
        error = tl.load(error_ptr, mask=look, other=error, volatile=True)  # for the next step, which need not wait for it
        tl.debug_barrier()

        # ---- critical path
        carried_raw = ()
        for n in tl.static_range(CARRIED):  # behind the barrier, since other threads have stored it
            enable = follows if n < CARRIED - VECTORS else True
            carried_raw = carried_raw + (load_own(carried_t + n * tile_c, ROW, (rows, enable, unit0), True, SHAPE, TILE),)
        words = gather(
            (before, rows, step > 0, given), (failed, error_ptr, counters + tile * LINE, CTAS * step - 1, step, limit),
            (published_at, delay), HAS.first and FIRST_IS_STATE, HAS.restart or (HAS.lengths and HAS.first and FIRST_IS_STATE), SHAPE, TILE,
        )  # fmt: skip
        if ON_CHIP and TILE.x_loads == "behind":
            x_raw = _load_inputs(x_t, x_width, X_TILES, X_WORDS, X_MODE, TILE)
        for k in tl.static_range(len(w_rec)):
            acc = _products(acc, w_rec[k], operand_tiles(words[k], TILE), k * E, REC_INTO, TILE)
        parts = _parts(acc, TILE)
        if LINKED and not FIRST_IS_STATE:
            for n in tl.static_range(PARTS):
                parts = replaced(parts, n, tl.where(alone_column, projected[n], parts[n]))
        sums = sum_over_warps(parts, TILE)
        carried = ((), ())
        for n in tl.static_range(CARRIED):
            carried = append_halves(carried, own_tile(carried_raw[n], True, TILE))
        published = ()
        after = ()
        kept = ()
        for half in tl.static_range(2):
            a = ()
            for n in tl.static_range(PARTS):
                v = sums[half][n]
                if not LINKED and not FIRST_IS_STATE:
                    v = tl.where(alone, 0.0, v)  # there is no state yet, and 0 * W_rec is NaN where W_rec is infinite
                a = a + (v + u[half][n],)
            new, c, k = CELL.step(a, carried[half], saved[half], vectors[half], CELL.accuracy)
            if H != CTAS * UNITS:
                # an infinite state makes NaN of its products with padding, and NaN would spread in the next step
                for n in tl.static_range(PUBLISHED):
                    new = replaced(new, n, tl.where(units[half] < H, new[n], 0.0))
            published = published + (new,)
            after = after + (c,)
            kept = kept + (saved_tiles(k, c, ROUTES),)
        out_t = out_ptr + (t * step_words + row0 * ROW_WORDS)
        for n in tl.static_range(PUBLISHED):
            out_words = round_to_words(published[0][n], published[1][n], TILE)
            for i in tl.static_range(len(out_words)):
                offsets, mask = own_words(unit0, rows, i, ROW_WORDS, SHAPE, TILE)
                if HAS.lengths:  # words: half as many selects as of elements
                    out_words = replaced(out_words, i, tl.where(live, out_words[i], 0))
                publish(out_t + n * WORDS + offsets, out_words[i], mask)
        arrive(counters + tile * LINE, TILE)
        if PROBE_DELAY > 0:
            published_at = cycle()
        if FIRST_IS_STATE:
            kept_words = kept_ptr.to(tl.pointer_type(tl.int32), bitcast=True) + (t * step_k + row0 * (KEPT * ROW)) // E
            for n in tl.static_range(KEPT):
                store_words(kept_words + n * WORDS, round_to_words(kept[0][n], kept[1][n], TILE), (rows, unit0), KEPT * WORDS, SHAPE, TILE)
        stored = rows
        if HAS.lengths:
            stored = tl.where(live, rows, 0)
        for n in tl.static_range(CARRIED):
            c = carried_ptr + (n * tile_c + row0 * ROW)
            store_own(c, (after[0][n], after[1][n]), ROW, (stored, unit0), SHAPE, TILE)
        own = own_1
        step = tl.where(own_1 == 0, step + 1, step)

    if HAS.last:
        tl.debug_barrier()
        for k in range(own_tiles):
            tile = group + k * groups
            row0 = (tile * BLOCK_B).to(tl.int64)
            for i in tl.static_range(2 // E):
                offsets, mask = own_words(unit0, B - tile * BLOCK_B, i, ROW_WORDS, SHAPE, TILE)
                if HAS.lengths:
                    steps = of_rows(lengths_ptr + row0, own_rows, B - tile * BLOCK_B)
                    last = out_ptr + ((1 - reverse) * tl.maximum(steps - 1, 0) * step_words + row0 * ROW_WORDS)
                    if HAS.first:
                        first_words = first_ptr.to(tl.pointer_type(tl.int32), bitcast=True)
                        last = tl.where(steps > 0, last, first_words + row0 * ROW_WORDS)
                    else:
                        mask = mask & (steps > 0)
                    s_last = tl.load(last + offsets, mask=mask, other=0)
                else:
                    s_last = tl.load(out_ptr + ((t_first + dt * (T - 1)) * step_words + row0 * ROW_WORDS) + offsets, mask=mask)
                offsets, mask = own_words(unit0, B - tile * BLOCK_B, i, ROW_S // E, SHAPE, TILE)
                tl.store(last_ptr + row0 * (ROW_S // E) + offsets, s_last, mask=mask)

    tl.debug_barrier()  # what is abandoned has been stored
    at, found = verdict(error_ptr, lane if LINKED else 0, groups * LINE, LINKED)
    if at != SENTINEL:
        outputs = ()
        for n in tl.static_range(PUBLISHED):
            outputs = outputs + ((out_ptr + n * WORDS, ROW_WORDS, step_words),)
        if HAS.last:
            outputs = outputs + ((last_ptr, ROW_S // E, 0),)
        if FIRST_IS_STATE:
            for n in tl.static_range(KEPT):
                words_of = kept_ptr.to(tl.pointer_type(tl.int32), bitcast=True) + n * WORDS
                outputs = outputs + ((words_of, KEPT * WORDS, step_k // E),)
        for n in tl.static_range(CARRIED):
            pairs = carried_ptr.to(tl.pointer_type(tl.int64 if E == 2 else tl.int32), bitcast=True) + n * tile_c // E
            outputs = outputs + ((pairs, WORDS, 0),)
        _abandon(outputs, at, (T, t_first, dt), (B, group, groups, own_tiles, unit0), SHAPE, TILE)
        tl.store(report_ptr, (launch.to(tl.int64) << 44) | (number.to(tl.int64) << 32) | at, mask=found)
