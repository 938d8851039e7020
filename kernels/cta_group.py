"""The engine over a group of CTAs: the recurrence of one_cta.py where W_rec does not fit on one of them.

    a_t = W_rec s_{t-1} + W_in x_t + u_t          s_t = CELL(a_t, saved_t)          t in launch order

A group of CTAS programs computes UNITS hidden units each; programs p CTAS .. (p + 1) CTAS - 1 are group p.  Batch tiles
of BLOCK_B rows are dealt out to the groups: tile i to group i mod P.  A group takes all its tiles through a time step
before the next step, so while one tile's state travels the others are computed, and any batch size runs in one launch.

On chip for the whole launch: the CTA's rows of W_rec (SHARED_TILES K tiles in shared memory, the rest in registers), of
W_in where its home is "registers" or "shared", the bias.  The state is exchanged through out (exchange.py): every CTA
gathers all of s_{t-1} of a tile, each warp its part of K, straight into mma fragments.

A step of a tile, in order:
    acc = W_in x_t                                       in the shadow of the exchange; x_t was loaded a step ago
    issue the loads of the next u, saved
    CTA barrier                                          frees the reduction's buffer off the critical path
    gather s_{t-1}                                       critical: until every CTA of the group has published it
    issue the loads of the next x                        TILE.x_loads "behind"; "before": with those of u
    acc += W_rec s_{t-1}; sum over warps                 critical: K / (16 WARPS CHAINS) dependent mma, shared memory
    s_t = CELL(acc + bias + u_t, saved_t), rounded       critical: published to out[t]

Lanes.  The second axis of programs is LANES networks of groups side by side, each with its own weights and its own part
of every tensor.  Two meanings:

    LINKED      lanes are layers of a stack, a wavefront: x of every lane but the first is out of the lane before, at the
                same t, waited for by the sentinel in the shadow of the lane's own exchange.  Forward lane n is layer n;
                backward it is layer LANES - 1 - n, W_in is W_ih^T of the layer above it, x the da of that layer: what
                has passed between two layers goes back the same way.  Only the first lane has u, and x where I is not 0.
    otherwise   directions of one layer: the second lane runs through time the other way, over the same x.

With DROPOUT what passes from layer to layer is dropped by a mask that both passes compute again (dropout.py).  Tensors
with a part for each lane are numbered by layer, whichever way the lanes run.

Nobody waits for a later lane, and out of a layer is written once per step and never again: a lane may run ahead of the
next one, or that one fall behind, by any number of steps, and nothing is overrun.

Invariants.  A word of out is stored once, and by one program: s_t of a unit and a row belongs to one CTA.  A tile's step
t is computed by a CTA only after it has seen all of step t - 1 of that tile, so no CTA is ever more than a step ahead of
another at one tile, which the counters rely on.  All rows are whole 16-byte vectors (ROW elements, H of them hidden
units): the launch pads what is not, and units in the padding publish zeros, whatever their products are.

A group that fails (exchange.py) leaves NaN from the failing step on and reports itself; a CTA that was through before
keeps what it has, which is right.  A turn of the time loop, one tile and step, looks at the error word once in LOOK_EVERY:
all warps of all CTAs read it, from one slice of L2.  The same group of every later linked lane fails too, from that step
or the one before on, without a report of its own.

Cost of a step (sm_90, bf16, H = 1024, UNITS = 16, BLOCK_B = 8): gather 16 KB from L2 a CTA, 16 dependent mma less the
chains, 2 barriers; the hand-over through L2 is most of it.  Global traffic inside the loop: x, u, saved and
the state.
"""

import triton
import triton.language as tl

from .dropout import drop_input, drop_products, kept_scale
from .exchange import (
    LINE,
    NAN,
    SENTINEL,
    arrive,
    cycle,
    gather,
    load_words,
    publish,
    verdict,
    verify,
    word_pointers,
)
from .facts import kernel_name
from .fragments import operand
from .slices import (
    add_halves,
    load_own,
    load_vector,
    load_weight,
    operand_tiles,
    own_tile,
    own_units,
    own_words,
    round_to_words,
    sum_over_warps,
)


@triton.jit
def _products(acc_a, acc_b, a, b, first: tl.constexpr, TILE: tl.constexpr):
    """Products of two tuples of tiles, added to one accumulator or to two in turn, beginning with number `first`"""
    for i in tl.static_range(len(a)):
        if TILE.chains == 2 and (first + i) % 2 == 1:
            acc_b = tl.dot(a[i], operand(b[i], TILE.precision), acc_b, input_precision=TILE.precision)
        else:
            acc_a = tl.dot(a[i], operand(b[i], TILE.precision), acc_a, input_precision=TILE.precision)
    return acc_a, acc_b


@triton.jit
def _weights(ptr, row0, SHARED_TILES: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, TILE: tl.constexpr):
    """K tiles of a CTA's rows of contiguous [ROWS, COLUMNS], the first SHARED_TILES for shared memory"""
    K: tl.constexpr = 16 * TILE.warps * TILE.e
    tiles = ()
    for k in tl.static_range((COLUMNS + K - 1) // K):
        w = load_weight(ptr, row0, k * K, ROWS, COLUMNS, k < SHARED_TILES, TILE)
        rounded = ()
        for i in tl.static_range(len(w)):
            rounded = rounded + (operand(w[i], TILE.precision),)
        tiles = tiles + (rounded,)
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
def _abandon(outputs, at, time, part, SHAPE: tl.constexpr, TILE: tl.constexpr):
    """NaN in all of the CTA's outputs from step `at` on.  outputs: out and, where it is there, last.  time: (T, t of step 0, from
    a step's t to the next one's).  part: what is the CTA's, (B, group, groups, tiles of the group, unit0)."""
    T, t_first, dt = time
    B, group, groups, own_tiles, unit0 = part
    nan = tl.full((TILE.block_b, TILE.units // 2), NAN, tl.int32)
    step_words = B.to(tl.int64) * SHAPE.row_words
    for k in range(at * own_tiles, T * own_tiles):
        tile = group + k % own_tiles * groups
        row0 = (tile * TILE.block_b).to(tl.int64)
        t = t_first + dt * (k // own_tiles)
        for i in tl.static_range(2 // TILE.e):
            offsets, mask = own_words(unit0, B - tile * TILE.block_b, i, SHAPE, TILE)
            tl.store(outputs[0] + (t * step_words + row0 * SHAPE.row_words) + offsets, nan, mask=mask)
            if len(outputs) == 2:
                tl.store(outputs[1] + row0 * SHAPE.row_words + offsets, nan, mask=mask)


@triton.jit(
    do_not_specialize=[
        "T", "B", "reverse", "stride_x_t", "stride_x_b", "stride_u_t", "stride_u_b", "launch", "limit", "dropped", "bottom"
    ],
    repr=kernel_name("cta_group"),
)  # fmt: skip
def cta_group(
    # all contiguous where no strides are given; N: LANES, R: ROW, of several directions [.., N, ROW]; see "Lanes" above
    x_ptr,  # [T, B, I], strides (stride_x_t, stride_x_b, 1), both in 16-byte vectors; where TILE.w_in_home is "none": unused
    w_in_ptr,  # [N, ROW, K], K = I, of linked lanes ROW
    w_rec_ptr,  # [N, ROW, ROW]: W_hh, backward its transpose
    bias0_ptr,  # [N, ROW] where HAS.bias0
    bias1_ptr,  # [N, ROW] where HAS.bias1
    first_ptr,  # [B, R], linked [N, B, ROW], where HAS.first: forward s before the first step, h0, backward p of it, dhn
    u_ptr,  # [T, B, R] stream where HAS.u, strides (stride_u_t, stride_u_b, 1), in 16-byte vectors of the dtype; fp32 where SHAPE.wide_u
    saved_ptr,  # [T, B, R], linked [N, T, B, ROW], stream where HAS.saved
    out_ptr,  # int32 words of [T, B, R], linked [N, T, B, ROW]: s_t; filled with 0xFF bytes before step 0
    last_ptr,  # int32 words, as first, where HAS.last: s of the last step
    sync_ptr,  # int32 [N (P + batch tiles), 32], filled with 0xFF bytes before step 0: error words of groups, counters of tiles
    report_ptr,  # int64 [1] in memory of the host: what failed (rnn_triton/launch/faults.py), not written otherwise
    seed_ptr,  # int64 [1] where DROPOUT
    carried_ptr,  # of cells that this kernel does not know yet, and so the next two
    kept_ptr,
    vectors_ptr,
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
    ROUTES: tl.constexpr = CELL.routes
    tl.static_assert(ROUTES.single)
    I: tl.constexpr = SHAPE.I
    H: tl.constexpr = SHAPE.H
    ROW: tl.constexpr = SHAPE.row
    FIRST_IS_STATE: tl.constexpr = CELL.forward
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
    K_IN: tl.constexpr = ROW if LINKED else I  # columns of W_in
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
            saved_ptr += layer * apart * E
            first_ptr += layer * step_s
            last_ptr += layer * step_words
            # x of all lanes but the first is what the lane before publishes, in its own time
            x_words = tl.where(first_lane, x_words, out_ptr - apart if FIRST_IS_STATE else out_ptr + apart)
            step_x = tl.where(first_lane, step_x, step_words)
            row_x = tl.where(first_lane, row_x, ROW_WORDS)
            if I != ROW:
                x_width = tl.where(first_lane, X_WORDS, WORDS)
        else:
            out_ptr += lane * WORDS
            saved_ptr += lane * ROW
            u_ptr += lane * ROW
            first_ptr += lane * ROW
            last_ptr += lane * WORDS
            reverse = reverse ^ lane
        w_in_ptr += layer.to(tl.int64) * (ROW * K_IN)
        w_rec_ptr += layer.to(tl.int64) * (ROW * ROW)
        bias0_ptr += layer * ROW
        bias1_ptr += layer * ROW
    if DROPOUT:
        seed = tl.load(seed_ptr)
        lane_dropped = tl.where(first_lane, 0, dropped)
        scale = kept_scale(lane_dropped)
    t_first = reverse * (T - 1)
    dt = 1 - 2 * reverse

    # ---- on chip for the whole launch
    w_rec = _weights(w_rec_ptr, unit0, TILE.shared_tiles, ROW, ROW, TILE)
    w_in = ()
    if ON_CHIP:
        w_in = _weights(w_in_ptr, unit0, X_TILES if TILE.w_in_home == "shared" else 0, ROW, K_IN, TILE)
    units = own_units(unit0, TILE)
    bias = (tl.zeros((1, UNITS // 2), tl.float32), tl.zeros((1, UNITS // 2), tl.float32))
    if HAS.bias0:
        bias = add_halves(bias, load_vector(bias0_ptr, units, SHAPE))
    if HAS.bias1:
        bias = add_halves(bias, load_vector(bias1_ptr, units, SHAPE))

    # ---- what the first step has prefetched
    rows = B - group * BLOCK_B
    row0 = (group * BLOCK_B).to(tl.int64)
    x_raw = ()
    if ON_CHIP:
        x_t = word_pointers(x_words + t_first * step_x + row0 * row_x, row_x, rows, TILE)
        x_raw = _load_inputs(x_t, x_width, X_TILES, X_WORDS, X_MODE, TILE)
    u_raw = ()
    saved_raw = ()
    if HAS.u:
        u_t = u_ptr + t_first * step_u + row0 * row_u
        u_raw = load_own(u_t, row_u, (rows, first_lane, unit0), SHAPE.wide_u, SHAPE, TILE)
    if HAS.saved:
        saved_t = saved_ptr + t_first * step_s + row0 * ROW_S
        saved_raw = load_own(saved_t, ROW_S, (rows, True, unit0), False, SHAPE, TILE)

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
        acc_a = tl.zeros((WARPS, UNITS, BLOCK_B), tl.float32) + zero
        acc_b = tl.zeros((WARPS, UNITS, BLOCK_B), tl.float32) + zero
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
                x = operand_tiles(v, TILE)
                acc_a, acc_b = _products(acc_a, acc_b, w_in[k], x, k * E, TILE)
            if DROPOUT and FIRST_IS_STATE:
                acc_a *= scale
                acc_b *= scale
            if DROPOUT and not FIRST_IS_STATE:
                acc_a = drop_products(
                    acc_a + acc_b, (seed, bottom + layer, lane_dropped, scale), unit0, tile * BLOCK_B, t, TILE
                )
                acc_b = tl.zeros((WARPS, UNITS, BLOCK_B), tl.float32) + zero
            x_t = word_pointers(x_words + t_1 * step_x + row0_1 * row_x, row_x, rows_1, TILE)
            if TILE.x_loads == "before":
                x_raw = _load_inputs(x_t, x_width, X_TILES, X_WORDS, X_MODE, TILE)
        u = bias
        saved = ((), ())  # of each half of a tile, as the cell takes it
        if HAS.u:
            u = add_halves(own_tile(u_raw, SHAPE.wide_u, TILE), bias)
            u_t = u_ptr + t_1 * step_u + row0_1 * row_u
            u_raw = load_own(u_t, row_u, (rows_1, first_lane, unit0), SHAPE.wide_u, SHAPE, TILE)
        if HAS.saved:
            low, high = own_tile(saved_raw, False, TILE)
            saved = ((low,), (high,))
            saved_t = saved_ptr + t_1 * step_s + row0_1 * ROW_S
            saved_raw = load_own(saved_t, ROW_S, (rows_1, True, unit0), False, SHAPE, TILE)
        if HAS.first and not FIRST_IS_STATE:
            dhn = load_own(first_ptr + row0 * ROW_S, ROW_S, (rows, step == 0, unit0), False, SHAPE, TILE)
            u = add_halves(u, own_tile(dhn, False, TILE))
        if LINKED and not FIRST_IS_STATE:
            projected = acc_a + acc_b  # all there is in the first step: no state yet, and 0 * W_rec may be NaN
        failed = error != SENTINEL
        look = turn % TILE.look_every == TILE.look_every - 1
        error = tl.load(error_ptr, mask=look, other=error, volatile=True)  # for the next step, which need not wait for it
        tl.debug_barrier()

        # ---- critical path
        before = out_ptr + ((t - dt) * step_words + row0 * ROW_WORDS)
        given = step < 0
        if HAS.first and FIRST_IS_STATE:
            first_words = first_ptr.to(tl.pointer_type(tl.int32), bitcast=True)
            before = tl.where(step > 0, before, first_words + row0 * ROW_WORDS)
            given = step == 0
        words = gather(
            (before, rows, step > 0, given), (failed, error_ptr, counters + tile * LINE, CTAS * step - 1, step, limit),
            (published_at, delay), HAS.first and FIRST_IS_STATE, SHAPE, TILE,
        )  # fmt: skip
        if ON_CHIP and TILE.x_loads == "behind":
            x_raw = _load_inputs(x_t, x_width, X_TILES, X_WORDS, X_MODE, TILE)
        for k in tl.static_range(len(w_rec)):
            s = operand_tiles(words[k], TILE)
            acc_a, acc_b = _products(acc_a, acc_b, w_rec[k], s, k * E, TILE)
        if TILE.chains == 2:
            acc_a += acc_b
        if LINKED and not FIRST_IS_STATE:
            acc_a = tl.where(step == 0, projected, acc_a)
        sums = sum_over_warps(acc_a, TILE)
        s_t = ()
        for half in tl.static_range(2):
            a = sums[half]
            if not LINKED and not FIRST_IS_STATE:
                a = tl.where(step == 0, 0.0, a)  # there is no state yet, and 0 * W_rec is NaN where W_rec is infinite
            published, _, _ = CELL.step((a + u[half],), (), saved[half], (), CELL.accuracy)
            new = published[0]
            if H != CTAS * UNITS:
                # an infinite state makes NaN of its products with padding, and NaN would spread in the next step
                new = tl.where(units[half] < H, new, 0.0)
            s_t = s_t + (new,)
        out_words = round_to_words(s_t[0], s_t[1], TILE)
        out_t = out_ptr + (t * step_words + row0 * ROW_WORDS)
        for i in tl.static_range(len(out_words)):
            offsets, mask = own_words(unit0, rows, i, SHAPE, TILE)
            publish(out_t + offsets, out_words[i], mask)
        arrive(counters + tile * LINE, TILE)
        if PROBE_DELAY > 0:
            published_at = cycle()
        own = own_1
        step = tl.where(own_1 == 0, step + 1, step)

    if HAS.last:
        tl.debug_barrier()
        for k in range(own_tiles):
            tile = group + k * groups
            at = (tile * BLOCK_B).to(tl.int64) * ROW_WORDS
            for i in tl.static_range(2 // E):
                offsets, mask = own_words(unit0, B - tile * BLOCK_B, i, SHAPE, TILE)
                s_last = tl.load(out_ptr + ((t_first + dt * (T - 1)) * step_words + at) + offsets, mask=mask)
                tl.store(last_ptr + at + offsets, s_last, mask=mask)

    tl.debug_barrier()  # what is abandoned has been stored
    at, found = verdict(error_ptr, lane if LINKED else 0, groups * LINE, LINKED)
    if at != SENTINEL:
        outputs = (out_ptr,)
        if HAS.last:
            outputs = (out_ptr, last_ptr)
        _abandon(outputs, at, (T, t_first, dt), (B, group, groups, own_tiles, unit0), SHAPE, TILE)
        tl.store(report_ptr, (launch.to(tl.int64) << 44) | (number.to(tl.int64) << 32) | at, mask=found)
