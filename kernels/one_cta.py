"""Runs a persistent affine recurrence with its input projection on one CTA, all T steps in one launch.

    a_t = W_rec s_{t-1} + W_in x_t + u_t          s_t = CELL(a_t, saved_t)          t in launch order

A cell of several gates has a block of W_rec and of W_in for each, several a, and may publish several tiles, of which the first
are exchanged; facts.Routes says what is multiplied with what and added to which a.

Forward:   W_rec = W_hh,   s = h, u = b_ih + b_hh.  x is projected by W_ih, or before the launch by a GEMM, and then in u.
Backward:  W_rec = W_hh^T, s = da, no projection, u_t = dy_t (stream), saved_t = y_t (stream); dhn is the first p below.

One program (CTA) owns BLOCK_B rows of the batch of one model and all H hidden units: the grid is models x batch tiles, and
an ordinary call has one model.  On chip for the whole launch: W_rec (registers; in the fma forms wherever Triton puts it),
W_in, the bias.  The state never leaves the CTA between steps: its accumulator
tile is rounded to the storage dtype and becomes the next operand B through shared memory.  That is the exchange of a group
of one CTA; invariant: nobody reads s_{t-1} before the CTA barrier behind its last store, which is the one Triton places
inside the layout conversion.

A step, in order:
    prefetch lines of the streams into L2                   of 16 to 31 steps ahead, every few steps (prefetch.py)
    p_{t+1} = W_in x_{t+1}                                  independent of s: fills the gaps of the chain below
    issue the load of x_{t+2}                               raw words; they land during this step and the next
    a_t = p_t + W_rec s_{t-1} + u_t                         critical: exchange, K / 16 / CHAINS dependent mma, the cell
    issue the load of u_{t+1}
    s_t = CELL(a_t, saved_t), rounded; stored to out[t]
    issue the load of saved_{t+1}
A load comes into registers whose last values are used up, or, where a trip of the loop is two steps (UNROLL), into others.  The
fma forms write x_{t+1} to shared memory with s, and project it at the end of the step.  Where even one x takes too many
registers (X_DEPTH 0) x_{t+1} is loaded at the top and projected at the end of step t.

CHAINS = 2 splits K in two independent accumulators (one starts from p, one from u): the mma latency (24 cycles on
sm_90), not its rate, is what a step of a small batch tile waits for.  They are added with the cell's first operation.

Lanes.  The second axis of programs, as in cta_group.py: LANES single launches side by side, each with its own weights and its
own part of every tensor.  In the other tensors' shapes below, of several lanes:

    LINKED      layers of a stack, a wavefront: first, saved, out, last [LANES, ..], numbered by layer; forward lane n is
                layer n, backward layer LANES - 1 - n.  x of every lane but the first is out of the lane before, at the same
                t; backward W_in is W_ih^T of the layer above.  Only the first lane has u, and x where I is not 0.
    otherwise   directions of one layer: first, u, saved, out, last [.., LANES, H]; the second lane runs through time the
                other way, over the same x, and nobody waits for anybody.

w_in, w_rec and the biases are [LANES, ..] in both.  Linked lanes wait for x by the sentinel (exchange.py), with no barrier:

    p_t = W_in x_t                        independent of s: fills the gaps of the chain below
    a_t = p_t + W_rec s_{t-1} + u_t       critical
    verify x_{t+1}                        in the shadow of the products: read again what is still the sentinel
    issue the loads of x_{t+2}, u_{t+1}   into registers that are free by now
    s_t = CELL(a_t, saved_t), rounded; published to out[t]
    issue the load of saved_{t+1}

Where registers are short (X_DEPTH 1) p_{t+1} is computed as soon as x_{t+1} is verified, and x_{t+2} takes its registers.  A
lane that fails leaves NaN from the step on whose x never came, and so does every later one, from that step or the one
before on.

Sequences (HAS.events).  A row may have fewer than T steps, and begin anew at a step; every row runs all steps.  What a row
computes in a step that is not live, t at or beyond its length, is anything, NaN for instance: it stays in the row, and reaches no result.  Only
`kept` has it, of which the backward pass makes nothing either.
What happens to rows happens between two steps, and seldom.  A word of a tile says whether anything does (events), and a step without an
event pays for no more than the look at it:

    a row has had its last step   s and what is carried are stored: they are its last states
    a row has its first step next s and what is carried are loaded once more; backward dhn enters, and the step leaves out the products of s
    a row begins anew             s and what is carried are put back to zeros or `restart`; backward what is carried, and the step leaves
                                  out the products of s

A row of out is stored while it is live; before the launch it has zeros.  Linked lanes, which publish out, publish the zeros.  Gradients of
vectors are sums over all rows, so these a row that is not live leaves as they are.

Cost of a step (sm_90, bf16, H = 128, BLOCK_B = 8): 2 barriers, 2 stmatrix, 4 ldmatrix, 4 dependent mma, the cell.
Global traffic inside the loop: x, the streams, out.

Only linked lanes need to be co-resident; no other programs talk to each other.  Numerics: products in the storage dtype (tf32 per
PRECISION for fp32) with fp32 accumulation (fp64: fp64), the state rounded to the storage dtype each step.
"""

import triton
import triton.language as tl

from .dropout import drop_input, drop_values, kept_scale
from .events import next_event, rows_of_word
from .exchange import LINE, SENTINEL, verdict, verify
from .facts import kernel_name
from .fragments import (
    halves_of_state,
    halves_of_weight,
    hidden_units,
    input_addresses,
    input_tiles,
    is_unit,
    load_input,
    load_input_weight,
    load_recurrent,
    load_rows,
    load_rows_of_state,
    load_state,
    load_stream,
    operand,
    projection_tile,
    projection_zeros,
    replaced,
    saved_tiles,
    state_index,
    store_state,
    stream_tile,
    written_out,
)
from .prefetch import AHEAD, across, lines_ahead, period, prefetch, row_lines


@triton.jit
def _products(acc, a, b, TILE: tl.constexpr):
    """acc + the products of two tuples of tiles"""
    for i in tl.static_range(len(a)):
        acc = tl.dot(
            operand(a[i], TILE.precision), operand(b[i], TILE.precision), acc, input_precision=TILE.precision, out_dtype=TILE.acc
        )
    return acc


@triton.jit
def _added(a, b):
    """The sums of two tuples, element by element"""
    sums = ()
    for i in tl.static_range(len(a)):
        sums = sums + (a[i] + b[i],)
    return sums


@triton.jit
def _rounded(tiles, DTYPE: tl.constexpr):
    """The tuple `tiles` in DTYPE"""
    results = ()
    for n in tl.static_range(len(tiles)):
        results = results + (tiles[n].to(DTYPE),)
    return results


@triton.constexpr_function
def _place(values, value):
    """Where a tuple has the value; -1: nowhere"""
    return values.index(value) if value in values else -1


@triton.jit
def _products_of_states(start, start_2, w, s, ROUTES: tl.constexpr, TILE: tl.constexpr):
    """Every a: start + start_2 + the products of its gates with the exchanged states.  w, of each product, and s, of each state: a
    tile, or two halves for two chains, of which one begins with start and one with start_2"""
    if TILE.chains == 2:
        a = start
        a_2 = start_2
    else:
        a = _added(start, start_2)
    for n in tl.static_range(len(ROUTES.rec_gates)):
        s_n = s[ROUTES.rec_states[n]]
        v = tl.dot(w[n][0], s_n[0], a[ROUTES.rec_parts[n]], input_precision=TILE.precision, out_dtype=TILE.acc)
        a = replaced(a, ROUTES.rec_parts[n], v)
        if TILE.chains == 2:
            v = tl.dot(w[n][1], s_n[1], a_2[ROUTES.rec_parts[n]], input_precision=TILE.precision, out_dtype=TILE.acc)
            a_2 = replaced(a_2, ROUTES.rec_parts[n], v)
    if TILE.chains == 2:
        a = _added(a, a_2)
    return a


@triton.jit
def _load_inputs(ptr, source, N_CHUNKS: tl.constexpr, STORED: tl.constexpr, TILE: tl.constexpr):
    x = ()
    for c in tl.static_range(N_CHUNKS):
        x = x + (load_input(ptr, source, c * TILE.chunk, STORED, TILE),)
    return x


@triton.jit
def _load_streams(streams, t, rows, STORED: tl.constexpr, TILE: tl.constexpr):
    """what streams have for time t, raw; a stream: (pointer, elements from a step to the next, `load_stream`'s stride_b)"""
    raw = ()
    for i in tl.static_range(len(streams)):
        ptr, step, stride_b = streams[i]
        raw = raw + (load_stream(ptr + t * step, stride_b, rows, STORED, TILE),)
    return raw


@triton.jit
def _received(x_raw, addresses, step, link, TILE: tl.constexpr):
    """x_raw, words as they were found at these addresses (`input_addresses`) in memory that another lane writes, once it has.
    step: of the words, in launch order"""
    skip, error_ptr, source_ptr, limit = link
    return verify(addresses, x_raw, skip, (error_ptr.to(tl.int64), step, limit, source_ptr.to(tl.int64)), 64, TILE)


@triton.jit
def _dropped_input(x_raw, drop, row0, t, CELL: tl.constexpr, TILE: tl.constexpr):
    """What another lane has published at time t, with zeros for what is dropped; x_raw where nothing is (drop is ()), and in the
    backward pass, which drops behind the product"""
    if len(drop) == 0 or not CELL.forward:
        return x_raw
    else:
        kept = ()
        for c in tl.static_range(len(x_raw)):
            start = c * TILE.chunk // TILE.e
            kept = kept + (drop_input(x_raw[c], drop, start, row0, t, 0, TILE),)
        return kept


@triton.jit
def _project(x_raw, w_in, STORED: tl.constexpr, TILE: tl.constexpr):
    """W_in x with W_in on chip"""
    acc = projection_zeros(TILE)
    for c in tl.static_range(len(x_raw)):
        acc = _products(acc, w_in[c], input_tiles(x_raw[c], STORED, TILE), TILE)
    return projection_tile(acc, TILE)


@triton.jit
def _projected(zeros, x_raw, w_in, PARTS: tl.constexpr, STORED: tl.constexpr, TILE: tl.constexpr):
    """W_in x for every a, zeros where it has none; w_in: of each gate, PARTS: which a"""
    p = zeros
    for g in tl.static_range(len(PARTS)):
        p = replaced(p, PARTS[g], _project(x_raw, w_in[g], STORED, TILE))
    return p


@triton.jit
def _dropped_products(p, drop, row0, t, CELL: tl.constexpr, TILE: tl.constexpr):
    """W_in x of what another lane has published at time t; with dropout scaled, and in the backward pass dropped, which follows
    W_in there"""
    if len(drop) == 0:
        return p
    elif CELL.forward:
        return p * drop[3]
    else:
        unit = hidden_units(TILE)
        row = row0 + tl.arange(0, TILE.block_b)[None, :]
        return drop_values(p, drop, unit, row, t, TILE)


@triton.jit
def _products_of_below(x_raw, w_in, drop, row0, t, STORED: tl.constexpr, CELL: tl.constexpr, TILE: tl.constexpr):
    """Of each block of W_in what it makes of x, which another lane has published at time t"""
    products = ()
    for g in tl.static_range(len(w_in)):
        products = products + (_dropped_products(_project(x_raw, w_in[g], STORED, TILE), drop, row0, t, CELL, TILE),)
    return products


@triton.jit
def _with_products(tiles, products, PARTS: tl.constexpr):
    """The tuple `tiles` with products of blocks of W_in added, PARTS: to which of them"""
    for g in tl.static_range(len(PARTS)):
        tiles = replaced(tiles, PARTS[g], tiles[PARTS[g]] + products[g])
    return tiles


@triton.jit
def _project_first(ptr, source, w_in_ptr, STORED: tl.constexpr, SHAPE: tl.constexpr, TILE: tl.constexpr):
    """W_in x of the first step, with W_in read from global memory: its use outside of the loop would change where Triton keeps it"""
    acc = projection_zeros(TILE)
    for k in range(0, SHAPE.k_in + source[2], TILE.chunk):  # + zero: else ptxas unrolls it all and spills
        w = load_input_weight(w_in_ptr, k, False, SHAPE, TILE)
        x = load_input(ptr, source, k, STORED, TILE)
        acc = _products(acc, w, input_tiles(x, STORED, TILE), TILE)
    return projection_tile(acc, TILE)


@triton.jit
def _put(tiles, rows_to, ptr, apart, enable, rows, N: tl.constexpr, GIVEN: tl.constexpr, STORED: tl.constexpr, TILE: tl.constexpr):
    """The tuple `tiles`, of which the first N have in rows `rows_to` [1, BLOCK_B] what lies at ptr, `apart` elements further on for each
    next one, or zeros if not GIVEN.  enable: `rows_to` for `load_state`."""
    for n in tl.static_range(N):
        if GIVEN:
            given = load_state(ptr + n * apart, STORED.apart, rows, enable, STORED, TILE).to(tiles[n].dtype)
            tiles = replaced(tiles, n, tl.where(rows_to, given, tiles[n]))
        else:
            tiles = replaced(tiles, n, tl.where(rows_to, 0.0, tiles[n]))
    return tiles


@triton.jit
def _begin_anew(s, carried, word, restart, rows, HAS: tl.constexpr, STATES: tl.constexpr, CARRIED: tl.constexpr, SHAPE: tl.constexpr, TILE: tl.constexpr):
    """Of the rows that begin anew: which they are, [1, BLOCK_B], and s and carried with zeros in them or, where HAS.restart, what is given.
    STATES and CARRIED: how many tiles of them."""
    anew = rows_of_word(word, tl.arange(0, TILE.block_b)[None, :])
    there = rows_of_word(word, state_index(TILE)[0])
    ptr, carried_ptr, step_own = restart
    S: tl.constexpr = SHAPE.s  # Triton 3.6 hands on no attribute of an attribute object
    OWN: tl.constexpr = SHAPE.carried
    s = _put(s, anew, ptr, 0, there, rows, STATES, HAS.restart, S, TILE)
    carried = _put(carried, anew, carried_ptr, step_own, there, rows, CARRIED, HAS.restart, OWN, TILE)
    return anew, s, carried


_PER_CALL = ["T", "B", "reverse", "stride_x_t", "stride_x_b", "stride_u_t", "stride_u_b"]
_PER_CALL += ["launch", "limit", "dropped", "bottom", "per_model", "stride_x_m", "stride_u_m"]


@triton.jit(do_not_specialize=_PER_CALL, repr=kernel_name("one_cta"))
def one_cta(
    # where SHARE.models: of all shapes [M, ..], of w_in, w_rec, bias0, bias1 and first as per_model says; of LANES see "Lanes"
    x_ptr,  # [T, B, I], strides (stride_x_t, stride_x_b, 1); where TILE.w_in_home is "none": unused
    w_in_ptr,  # [gates, H, I] contiguous
    # [gates, W_ROWS, W_ROWS] contiguous W_hh, W_ROWS being H or, with zeros, H_PAD; in the backward pass of lanes of one gate transposed
    w_rec_ptr,
    bias0_ptr,  # [gates, H] where HAS.bias0
    bias1_ptr,  # [gates, H] where HAS.bias1
    first_ptr,  # [B, H] contiguous where HAS.first: forward s before the first step (h0), backward p of it (dhn)
    u_ptr,  # [T, B, gates, H] stream where HAS.u, rows padded to whole vectors where U.aligned, strides (stride_u_t, stride_u_b, 1)
    saved_ptr,  # [T, B, H] contiguous stream where HAS.saved: y
    out_ptr,  # [T, B, published tiles, H] contiguous: s_t
    last_ptr,  # [B, H] contiguous where HAS.last: s of the last step
    sync_ptr,  # int32 [LANES programs, 32], filled with 0xFF bytes, where LINKED: error words
    report_ptr,  # int64 [1] in memory of the host, where LINKED: what failed (rnn_triton/launch/faults.py), not written otherwise
    seed_ptr,  # int64 [1] where DROPOUT
    carried_ptr,  # fp32 (fp64) [carried tiles, B, H] contiguous, where there are any: before the first step, and in the end after the last one
    kept_ptr,  # [T, B, kept tiles, H] contiguous where HAS.kept: written forward, a stream backward
    vectors_ptr,  # fp32 (fp64) [vectors, H] contiguous, where there are any
    lengths_ptr,  # int32 [B], the same of all models and lanes, where HAS.events: how many steps a row has
    events_ptr,  # int64 [batch tiles, T], the same of all models, of several directions [LANES, ..], and a word, where HAS.events: events.py
    restart_ptr,  # as first, where HAS.restart: what s is then, in place of zeros, in the forward pass
    restart_carried_ptr,  # and what is carried, as carried
    T,
    B,
    reverse,  # 1: time runs from T - 1 down to 0
    stride_x_t,
    stride_x_b,
    stride_u_t,
    stride_u_b,
    launch,  # what the report calls this launch, where LINKED
    limit,  # polls before the second lane gives up, where LINKED
    dropped,  # of 65536 elements between layers, where DROPOUT (dropout.py)
    bottom,  # number of layer 0 in the network, by which masks are told
    per_model,  # bits 0-4: do w_in, w_rec, bias0, bias1, first have a part for each model?  Else the models share one
    stride_x_m,  # counted as the others; 0 where the models share x
    stride_u_m,
    TILE: tl.constexpr,  # facts.OneCtaTile
    SHAPE: tl.constexpr,  # facts.OneCtaShape
    HAS: tl.constexpr,  # facts.Has
    CELL: tl.constexpr,  # facts.Cell
    SHARE: tl.constexpr,  # facts.Share
):
    I: tl.constexpr = SHAPE.I
    H: tl.constexpr = SHAPE.row
    W_ROWS: tl.constexpr = SHAPE.w_rows
    K_IN: tl.constexpr = SHAPE.k_in
    X: tl.constexpr = SHAPE.x
    U: tl.constexpr = SHAPE.u
    S: tl.constexpr = SHAPE.s
    OUT: tl.constexpr = SHAPE.out
    KEPT: tl.constexpr = SHAPE.kept
    OWN: tl.constexpr = SHAPE.carried
    ROW: tl.constexpr = S.apart
    ROUTES: tl.constexpr = CELL.routes
    INTO: tl.constexpr = ROUTES.into
    GATES: tl.constexpr = len(ROUTES.rec_gates)
    PUBLISHED: tl.constexpr = ROUTES.published
    READ: tl.constexpr = ROUTES.kept if HAS.kept and not CELL.forward else 0  # streams beside y
    FIRST_IS_STATE: tl.constexpr = CELL.forward
    DTYPE: tl.constexpr = TILE.dtype
    ACC: tl.constexpr = TILE.acc
    FORM: tl.constexpr = TILE.form
    PRECISION: tl.constexpr = TILE.precision
    H_PAD: tl.constexpr = TILE.h_pad
    BLOCK_B: tl.constexpr = TILE.block_b
    WARPS: tl.constexpr = TILE.warps
    CHUNK: tl.constexpr = TILE.chunk
    CHAINS: tl.constexpr = TILE.chains
    X_DEPTH: tl.constexpr = TILE.x_depth
    LANES: tl.constexpr = SHARE.lanes
    LINKED: tl.constexpr = SHARE.linked
    DROPOUT: tl.constexpr = SHARE.dropout
    # What is loaded before its registers' last values are used up comes into other registers, and ptxas moves it at the end of a
    # trip, where it waits for it.  So a trip is two steps, whose registers change places.  Where that takes too many (X_DEPTH 1,
    # fp64) or makes shuffles of unpacking (16-bit streams), each load stands behind the last use of its registers.  A step of the
    # fma form in fp32 takes longer than a read from L2: backward its moves wait for nothing.
    TWICE: tl.constexpr = X_DEPTH == 2 if FIRST_IS_STATE else HAS.saved and FORM == "mma32"
    UNROLL: tl.constexpr = 2 if TWICE and not LINKED else 1
    EARLY: tl.constexpr = UNROLL == 2 or (FORM == "fma" and DTYPE == tl.float32 and not FIRST_IS_STATE)  # u and saved, at the head of a step
    HAS_X: tl.constexpr = TILE.w_in_home != "none" and I > 0 and not (LINKED and X_DEPTH == 1)  # no registers there
    X_LINES: tl.constexpr = row_lines(I, DTYPE) if HAS_X else 0
    U_WIDTH: tl.constexpr = U.length * (len(INTO) - 1) + H
    U_LINES: tl.constexpr = row_lines(U_WIDTH, u_ptr.dtype.element_ty) if HAS.u else 0
    SAVED_LINES: tl.constexpr = row_lines(H, DTYPE) if HAS.saved else 0
    KEPT_LINES: tl.constexpr = row_lines(READ * H, DTYPE)
    LINES: tl.constexpr = max(X_LINES, U_LINES, SAVED_LINES, KEPT_LINES)
    PREFETCHED: tl.constexpr = LINES > 0
    ACROSS: tl.constexpr = across(X_LINES, U_LINES, SAVED_LINES, KEPT_LINES, BLOCK_B, WARPS)
    PERIOD: tl.constexpr = period(X_LINES, U_LINES, SAVED_LINES, KEPT_LINES, BLOCK_B, WARPS)
    tl.static_assert(X_DEPTH > 0 or FORM != "fma")
    N_CHUNKS: tl.constexpr = (K_IN + CHUNK - 1) // CHUNK if TILE.w_in_home != "none" else 0
    tile = tl.program_id(0)
    if SHARE.models:  # one dimension of the grid, since the second ends at 65,535
        tiles = (B + BLOCK_B - 1) // BLOCK_B
        model = (tile // tiles).to(tl.int64)
        tile = tile % tiles
    row0 = tile * BLOCK_B
    rows = B - row0
    rows_u = rows
    zero = (T < 0).to(tl.int32)
    step_out = tl.cast(B, tl.int64) * ROW  # of what has one tile
    step_own = tl.cast(B, tl.int64) * H  # of what each lane has apart from the others
    start = row0.to(tl.int64) * ROW
    X_UNIT: tl.constexpr = CHUNK // 4 if X.aligned and FORM != "fma" else 1
    U_UNIT: tl.constexpr = 2 * TILE.r if U.aligned else 1
    S_UNIT: tl.constexpr = 2 * TILE.r if S.aligned else 1
    step_x = stride_x_t.to(tl.int64) * X_UNIT
    step_u = stride_u_t.to(tl.int64) * U_UNIT

    # ---- the lane's own tensors
    x_width = I
    link = ()
    drop = ()
    if LANES > 1:
        lane = tl.program_id(1)
        layer = lane  # which of the tensors' parts
        out_ptr = out_ptr.to(tl.pointer_type(DTYPE), bitcast=True)
        last_ptr = last_ptr.to(tl.pointer_type(DTYPE), bitcast=True)
        if LINKED:
            if not FIRST_IS_STATE:
                layer = LANES - 1 - lane
            first_lane = lane == 0
            apart = T * step_out * PUBLISHED  # from one layer's s to the next one's
            out_ptr += layer * apart
            saved_ptr += layer * (T * step_out)
            first_ptr += layer * step_out
            last_ptr += layer * step_out
            # x of all lanes but the first is what the lane before publishes, in its own time
            below = out_ptr - apart if FIRST_IS_STATE else out_ptr + apart + (PUBLISHED * H - K_IN)
            x_ptr = tl.where(first_lane, x_ptr.to(below.dtype, bitcast=True), below)
            step_x = tl.where(first_lane, step_x, step_out * PUBLISHED)
            stride_x_b = tl.where(first_lane, stride_x_b, PUBLISHED * H // X_UNIT)
            if I != K_IN:
                x_width = tl.where(first_lane, I, K_IN)
            rows_u = tl.where(first_lane, rows, 0)
            lanes_apart = tl.num_programs(0) * LINE
            error_ptr = sync_ptr + (lane * tl.num_programs(0) + tile) * LINE
            # each later lane waits longer, so that the first one that waits in vain is the one that says so; of more than
            # 16 that may be a later one, for nobody shall wait for minutes
            link = (first_lane.to(tl.int32), error_ptr, error_ptr - lanes_apart, tl.minimum(lane, 16) * limit)
            if DROPOUT:
                lane_dropped = tl.where(first_lane, 0, dropped)
                boundary = bottom + (layer - 1 if FIRST_IS_STATE else layer)  # the layer below it
                drop = (tl.load(seed_ptr), boundary, lane_dropped, kept_scale(lane_dropped))
        else:
            out_ptr += lane * (PUBLISHED * H)
            saved_ptr += lane * H
            u_ptr += lane * (len(INTO) * U.length)
            first_ptr += lane * H
            last_ptr += lane * H
            reverse = reverse ^ lane
        w_in_ptr += layer * (len(INTO) * H * K_IN)
        w_rec_ptr += layer * (GATES * W_ROWS * W_ROWS)
        bias0_ptr += layer * (GATES * H)
        bias1_ptr += layer * (GATES * H)
        carried_ptr += layer * (step_own * ROUTES.carried)
        if HAS.restart:
            restart_ptr += layer * step_out if LINKED else lane * H
            if ROUTES.carried > 0:
                restart_carried_ptr += layer * (step_own * ROUTES.carried)
        if HAS.events and not LINKED:
            events_ptr += lane * (T * tl.cdiv(B, BLOCK_B).to(tl.int64))
        kept_ptr += layer * (T * step_own * ROUTES.kept)
        vectors_ptr += layer * (ROUTES.vectors * H)
    t = reverse * (T - 1)
    dt = 1 - 2 * reverse
    x_ptr += row0.to(tl.int64) * stride_x_b * X_UNIT
    u_ptr += row0.to(tl.int64) * stride_u_b * U_UNIT
    first_ptr += start
    saved_ptr += start
    out_ptr += start * PUBLISHED
    last_ptr += start
    start_own = row0.to(tl.int64) * H
    kept_ptr += start_own * ROUTES.kept
    carried_ptr += start_own
    if HAS.restart:
        restart_ptr += start
        if ROUTES.carried > 0:
            restart_carried_ptr += start_own
    if SHARE.models:
        x_ptr += model * stride_x_m * X_UNIT
        u_ptr += model * stride_u_m * U_UNIT
        w_in_ptr += model * (per_model & 1) * (GATES * H * I)
        w_rec_ptr += model * (per_model >> 1 & 1) * (GATES * W_ROWS * W_ROWS)
        bias0_ptr += model * (per_model >> 2 & 1) * (GATES * H)
        bias1_ptr += model * (per_model >> 3 & 1) * (GATES * H)
        first_ptr += model * (per_model >> 4 & 1) * step_out
        saved_ptr += model * T * step_out
        out_ptr += model * T * (step_out * PUBLISHED)
        last_ptr += model * step_out
        carried_ptr += model * (step_own * ROUTES.carried)
        if HAS.restart:
            restart_ptr += model * step_out
            if ROUTES.carried > 0:
                restart_carried_ptr += model * (step_own * ROUTES.carried)
        kept_ptr += model * T * (step_own * ROUTES.kept)
        vectors_ptr += model * (ROUTES.vectors * H)

    # ---- of each row: t of its first step and of its last one in this pass, -1: it has none
    OF_VECTORS: tl.constexpr = 0 if CELL.forward else ROUTES.vectors  # carried tiles that are sums over all steps
    if HAS.events:
        lengths = load_rows(lengths_ptr + row0, rows, TILE)
        lengths_of = load_rows_of_state(lengths_ptr + row0, rows, TILE)  # in the layout of loads and stores
        first_t = tl.where(lengths > 0, reverse * (lengths - 1), -1)
        first_t_of = tl.where(lengths_of > 0, reverse * (lengths_of - 1), -1)
        last_t_of = tl.where(lengths_of > 0, (1 - reverse) * (lengths_of - 1), -1)
        events_ptr += tile * T.to(tl.int64)
        event = tl.load(events_ptr)
        restart = (restart_ptr, restart_carried_ptr, step_own)

    # ---- what the loop will read, into L2
    streams = ()
    if HAS_X:
        streams = streams + ((x_ptr, step_x, stride_x_b.to(tl.int64) * X_UNIT, rows_u, I),)
    if HAS.u:
        streams = streams + ((u_ptr, step_u, stride_u_b.to(tl.int64) * U_UNIT, rows_u, U_WIDTH),)
    if HAS.saved:
        streams = streams + ((saved_ptr, step_out, ROW, rows, H),)
    if READ > 0:
        streams = streams + ((kept_ptr, step_own * READ, H * READ, rows, H * READ),)
    if PREFETCHED:
        line, line_step, line_steps, line_left = lines_ahead(streams, t, dt, T, BLOCK_B, PERIOD, ACROSS)
        for ahead in range(0, AHEAD, PERIOD):
            prefetch(line, ahead < line_steps, line_left, LINES, ACROSS)
            line += line_step * PERIOD

    # ---- on chip for the whole launch
    w = ()
    for n in tl.static_range(len(ROUTES.rec_gates)):
        block = w_rec_ptr + ROUTES.rec_gates[n] * (W_ROWS * W_ROWS)
        whole = operand(load_recurrent(block, not FIRST_IS_STATE and (LANES == 1 or GATES > 1), SHAPE, TILE), PRECISION)
        if CHAINS == 2:
            w = w + (halves_of_weight(whole, TILE),)
        else:
            w = w + ((whole,),)
    w_in = ()
    for g in tl.static_range(len(INTO)):
        w_g = ()
        for c in tl.static_range(N_CHUNKS):
            w_c = load_input_weight(w_in_ptr + g * (H * K_IN), c * CHUNK, TILE.w_in_home == "shared", SHAPE, TILE)
            w_g = w_g + (w_c,)
        w_in = w_in + (w_g,)
    bias = ()
    for n in tl.static_range(ROUTES.parts):
        # Where there is neither bias nor u, a zero the compiler cannot see: a known zero would merge the two chains.
        bias0 = bias0_ptr + _place(INTO, n) * H
        bias_n = load_state(bias0, 0, BLOCK_B, (HAS.bias0 and _place(INTO, n) >= 0) or T < 0, S, TILE).to(ACC)
        if HAS.bias1 and _place(ROUTES.rec_parts, n) >= 0:
            bias1 = bias1_ptr + ROUTES.rec_gates[_place(ROUTES.rec_parts, n)] * H
            bias_n += load_state(bias1, 0, BLOCK_B, True, S, TILE).to(ACC)
        bias = bias + (bias_n,)
    vectors = ()
    for n in tl.static_range(ROUTES.vectors):
        vectors = vectors + (load_state(vectors_ptr + n * H, 0, BLOCK_B, True, S, TILE),)

    # ---- before the first step: s, p of the first step, what the first step has prefetched
    s = ()
    for k in tl.static_range(ROUTES.exchanged):
        s = s + (tl.zeros((H_PAD, BLOCK_B), DTYPE),)
    p = ()
    for n in tl.static_range(ROUTES.parts):
        p = p + (tl.zeros((H_PAD, BLOCK_B), ACC),)
    carried = ()
    for n in tl.static_range(ROUTES.carried):
        carried = carried + (load_state(carried_ptr + n * step_own, H, rows, True, OWN, TILE),)
    if HAS.first:
        first = load_state(first_ptr, ROW, rows, True, S, TILE)
        if FIRST_IS_STATE:
            s = replaced(s, 0, first)
        else:
            p = replaced(p, 0, p[0] + first.to(ACC))
    if HAS.events and HAS.last:  # of rows without a step
        store_state(last_ptr, s[0], tl.where(lengths_of == 0, rows, 0), False, S, TILE, ())
    if HAS.events and FIRST_IS_STATE:
        _, s, carried = _begin_anew(s, carried, event, restart, rows, HAS, len(s), ROUTES.carried, SHAPE, TILE)
    if HAS.events:
        next_link = next_event(event)
        event = tl.load(events_ptr + next_link)
        alone = tl.full((1, BLOCK_B), True, tl.int1)
    x_raw = ()
    source = (stride_x_b, rows, zero, x_width)  # of x
    x_1 = x_ptr + (t + dt * tl.minimum(1, T - 1)) * step_x
    if LINKED:
        x_0 = x_ptr + t * step_x
        x = _load_inputs(x_0, source, N_CHUNKS, X, TILE)
        x = _received(x, input_addresses(x_0, source, TILE), 0, link, TILE)
        x = _dropped_input(x, drop, row0, t, CELL, TILE)
        if X_DEPTH == 1:
            p = _with_products(p, _products_of_below(x, w_in, drop, row0, t, X, CELL, TILE), INTO)
    elif TILE.w_in_home != "none":
        for g in tl.static_range(len(INTO)):
            p_g = _project_first(x_ptr + t * step_x, source, w_in_ptr + g * (H * K_IN), X, SHAPE, TILE)
            p = replaced(p, INTO[g], p[INTO[g]] + p_g)
    if N_CHUNKS > 0 and X_DEPTH > 0:
        x_raw = _load_inputs(x_1, source, N_CHUNKS, X, TILE)
    u_streams = ()
    if HAS.u:
        for g in tl.static_range(len(INTO)):
            u_streams = u_streams + ((u_ptr + g * U.length, step_u, stride_u_b),)
    saved_streams = ()
    if HAS.saved:
        saved_streams = saved_streams + ((saved_ptr, step_out, ROW // S_UNIT),)
    for k in tl.static_range(READ):
        saved_streams = saved_streams + ((kept_ptr + k * H, step_own * READ, H // S_UNIT * READ),)
    u_raw = _load_streams(u_streams, t, rows_u, U, TILE)
    saved_raw = _load_streams(saved_streams, t, rows, S, TILE)

    for step in tl.range(0, T, loop_unroll_factor=UNROLL):
        if PREFETCHED:
            prefetch(line, (step % PERIOD == 0) & (step < line_steps - AHEAD), line_left, LINES, ACROSS)
            line += line_step
        # ---- in the shadow of the exchange
        states = ()
        for k in tl.static_range(ROUTES.exchanged):
            rounded = operand(s[k], PRECISION)
            if CHAINS == 2:
                # written out first: s and x can share their barriers; rounded before the halves are cut: behind, each takes its own
                states = states + (halves_of_state(rounded, TILE),)
            else:
                states = states + ((rounded,),)
        u = bias
        if HAS.u:
            for g in tl.static_range(len(INTO)):
                u = replaced(u, INTO[g], stream_tile(u_raw[g], U, TILE).to(ACC) + bias[INTO[g]])
        saved = ()
        for k in tl.static_range(len(saved_raw)):
            saved = saved + (stream_tile(saved_raw[k], S, TILE).to(ACC),)
        t_1 = t + dt * tl.minimum(1, T - 1 - step)
        t_2 = t + dt * tl.minimum(2, T - 1 - step)
        p_next = ()
        for n in tl.static_range(ROUTES.parts):
            p_next = p_next + (tl.zeros((H_PAD, BLOCK_B), ACC),)
        if N_CHUNKS > 0 and not LINKED:
            if FORM == "fma":
                x_late = written_out(x_raw)
            elif X_DEPTH > 0:
                p_next = _projected(p_next, x_raw, w_in, INTO, X, TILE)
            x_next = _load_inputs(x_ptr + (t_2 if X_DEPTH > 0 else t_1) * step_x, source, N_CHUNKS, X, TILE)
            if X_DEPTH > 0:
                x_raw = x_next
            else:
                x_late = x_next
        elif LINKED and X_DEPTH == 2:
            p_t = _products_of_below(x, w_in, drop, row0, t, X, CELL, TILE)
            for n in tl.static_range(ROUTES.parts):
                p_next = replaced(p_next, n, p_next[n] + zero.to(ACC))  # a known zero would merge the chains
        if EARLY:
            u_raw = _load_streams(u_streams, t_1, rows_u, U, TILE)
            saved_raw = _load_streams(saved_streams, t_1, rows, S, TILE)
        # ---- critical path
        a = _products_of_states(p, u, w, states, ROUTES, TILE)
        if LINKED:
            x = _received(x_raw, input_addresses(x_1, source, TILE), step + 1, link, TILE)
            x = _dropped_input(x, drop, row0, t_1, CELL, TILE)
            if X_DEPTH == 2:
                a = _with_products(a, p_t, INTO)
                p = _with_products(p, p_t, INTO)
            else:
                p_t = _products_of_below(x, w_in, drop, row0, t_1, X, CELL, TILE)
                for g in tl.static_range(len(INTO)):
                    p_next = replaced(p_next, INTO[g], p_t[g])
            x_1 = x_ptr + t_2 * step_x
            x_raw = _load_inputs(x_1, source, N_CHUNKS, X, TILE)
        if not EARLY:
            u_raw = _load_streams(u_streams, t_1, rows_u, U, TILE)
        if not FIRST_IS_STATE:
            if not HAS.events:
                alone = step == 0
            for n in tl.static_range(ROUTES.parts):  # there is no state yet, and 0 * W_rec is NaN where W_rec is infinite
                a = replaced(a, n, tl.where(alone, p[n] + u[n], a[n]))
        published, after, kept = CELL.step(a, carried, saved, vectors, CELL.accuracy)
        if HAS.events:
            for n in tl.static_range(ROUTES.carried - OF_VECTORS, ROUTES.carried):
                after = replaced(after, n, tl.where(t < lengths, after[n], carried[n]))
        carried = after
        kept = saved_tiles(kept, carried, ROUTES)
        results = _rounded(published, DTYPE)
        if not EARLY:
            saved_raw = _load_streams(saved_streams, t_1, rows, S, TILE)
        out_t = out_ptr + t * step_out * PUBLISHED
        s = ()
        for n in tl.static_range(PUBLISHED):
            new = published[n]
            rounded = results[n]
            if HAS.events and FIRST_IS_STATE:  # rounded behind the events: two ways that join carry 16-bit elements one by one
                rounded = new
            if SHAPE.H != H_PAD:
                # an infinite input makes NaN of its products with padding, and NaN would spread in the next step
                unit = is_unit(SHAPE.H, TILE)
                rounded = tl.where(unit, rounded, 0.0)
                if LINKED:
                    new = tl.where(unit, new, 0.0)
            if not HAS.events:
                store_state(out_t + n * H, new if LINKED else rounded, rows, LINKED, OUT, TILE, ())
            elif LINKED:
                store_state(out_t + n * H, new, rows, LINKED, OUT, TILE, (t < lengths_of,))
            else:
                store_state(out_t + n * H, rounded, tl.where(t < lengths_of, rows, 0), LINKED, OUT, TILE, ())
            if n < ROUTES.exchanged:
                s = s + (rounded,)
        if HAS.kept and FIRST_IS_STATE:
            kept_t = kept_ptr + t * step_own * ROUTES.kept
            for n in tl.static_range(ROUTES.kept):
                store_state(kept_t + n * H, kept[n].to(DTYPE), rows, False, KEPT, TILE, ())
        # ---- behind it, what has no registers to run ahead
        if N_CHUNKS > 0 and not LINKED and (FORM == "fma" or X_DEPTH == 0):
            p_next = _projected(p_next, x_late, w_in, INTO, X, TILE)
        if HAS.events:
            alone = tl.full((1, BLOCK_B), False, tl.int1)
            if step + 1 == next_link:
                ended = tl.where(t == last_t_of, rows, 0)
                if HAS.last:
                    store_state(last_ptr, s[0].to(DTYPE), ended, False, S, TILE, ())
                for n in tl.static_range(ROUTES.carried - OF_VECTORS):
                    store_state(carried_ptr + n * step_own, carried[n], ended, False, OWN, TILE, ())
                alone, s, carried = _begin_anew(
                    s, carried, event, restart, rows, HAS, len(s) if FIRST_IS_STATE else 0, ROUTES.carried - OF_VECTORS, SHAPE, TILE
                )  # fmt: skip
                begins = t_1 == first_t
                begins_of = t_1 == first_t_of
                if FIRST_IS_STATE:
                    s = _put(s, begins, first_ptr, 0, begins_of, rows, len(s), HAS.first, S, TILE)
                elif HAS.first:
                    p_next = replaced(p_next, 0, p_next[0] + load_state(first_ptr, ROW, rows, begins_of, S, TILE).to(ACC))
                carried = _put(carried, begins, carried_ptr, step_own, begins_of, rows, ROUTES.carried - OF_VECTORS, True, OWN, TILE)
                next_link = next_event(event)
                event = tl.load(events_ptr + next_link)
            if FIRST_IS_STATE:
                s = _rounded(s, DTYPE)
        p = p_next
        t = t_1
    ended = rows
    if HAS.events:
        ended = tl.where(t == last_t_of, rows, 0)
    if HAS.last:
        store_state(last_ptr, s[0], ended, False, S, TILE, ())
    for n in tl.static_range(ROUTES.carried):
        store_state(carried_ptr + n * step_own, carried[n], ended if n < ROUTES.carried - OF_VECTORS else rows, False, OWN, TILE, ())
    if LINKED:
        tl.debug_barrier()  # what is abandoned has been stored
        at, found = verdict(error_ptr, lane, lanes_apart, True)
        if at != SENTINEL:
            nan = tl.full((H_PAD, BLOCK_B), float("nan"), ACC)
            for step in range(at, T):
                t = reverse * (T - 1) + dt * step
                for n in tl.static_range(PUBLISHED):
                    store_state(out_ptr + (t * step_out * PUBLISHED + n * H), nan, rows, True, OUT, TILE, ())
                if HAS.kept and FIRST_IS_STATE:
                    for n in tl.static_range(ROUTES.kept):
                        kept_t = kept_ptr + (t * step_own * ROUTES.kept + n * H)
                        store_state(kept_t, nan.to(DTYPE), rows, False, KEPT, TILE, ())
            if HAS.last:
                store_state(last_ptr, nan.to(DTYPE), rows, False, S, TILE, ())
            for n in tl.static_range(ROUTES.carried):
                store_state(carried_ptr + n * step_own, nan, rows, False, OWN, TILE, ())
            number = lane * tl.num_programs(0) + tile
            tl.store(report_ptr, (launch.to(tl.int64) << 44) | (number.to(tl.int64) << 32) | at, mask=found)
