"""Runs a cell's device function alone, over many rows at once: without the recurrence, and in no order.

    published, carried, kept = CELL(a, carried, saved, vectors)        for each row and hidden unit

Forward a comes in two, what W_ih and what W_hh made, which facts.Routes adds up as the recurrence does; backward it is dh.  That is
how launch/recompute.py makes again what a forward pass has kept, and how a cell is compared with its step in torch.

Every tensor is contiguous.  Results of which HAS says that they are not there are not written.
"""

import triton
import triton.language as tl

from .facts import kernel_name
from .fragments import replaced

_PER_CALL = ["of_x_ptr", "of_h_ptr", "carried_ptr", "saved_ptr", "vectors_ptr", "published_ptr", "after_ptr", "kept_ptr", "counts_ptr"]


@triton.jit(do_not_specialize=[*_PER_CALL, "N"], repr=kernel_name("elementwise"))
def elementwise(
    of_x_ptr,  # [N, blocks of W_ih, H] fp32 or fp64, the dtype of all that is computed; backward [N, 1, H], dh
    of_h_ptr,  # [N, blocks of W_hh, H] of that dtype, forward
    carried_ptr,  # [N, carried, H]
    saved_ptr,  # [N, saved, H], backward
    vectors_ptr,  # [vectors, H]
    published_ptr,  # [N, published, H] where HAS.published
    after_ptr,  # [N, carried, H] where HAS.after: what is carried to the next step
    kept_ptr,  # [N, kept, H] where HAS.kept
    counts_ptr,  # int32 [3] where HAS.counts: how many tiles the function returns as published, carried and kept
    N,
    TILE: tl.constexpr,  # facts.Elements
    SHAPE: tl.constexpr,  # facts.ElementsShape
    HAS: tl.constexpr,  # facts.Results
    CELL: tl.constexpr,  # facts.Cell
):
    H: tl.constexpr = SHAPE.H
    BLOCK: tl.constexpr = TILE.block
    ROUTES: tl.constexpr = CELL.routes
    INTO: tl.constexpr = ROUTES.into
    SAVED: tl.constexpr = 0 if CELL.forward else ROUTES.kept + ROUTES.reads_y
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    row, unit = i // H, (i % H).to(tl.int32)
    mask = row < N
    ACC: tl.constexpr = of_x_ptr.dtype.element_ty
    a = ()
    for n in tl.static_range(ROUTES.parts):
        a = a + (tl.zeros((BLOCK,), ACC),)
    of_x = _tiles(of_x_ptr, len(INTO), row, unit, mask, H, ACC)
    for g in tl.static_range(len(INTO)):
        a = replaced(a, INTO[g], a[INTO[g]] + of_x[g])
    if CELL.forward:
        of_h = _tiles(of_h_ptr, len(ROUTES.rec_gates), row, unit, mask, H, ACC)
        for n in tl.static_range(len(ROUTES.rec_gates)):
            a = replaced(a, ROUTES.rec_parts[n], a[ROUTES.rec_parts[n]] + of_h[ROUTES.rec_gates[n]])
    carried = _tiles(carried_ptr, ROUTES.carried, row, unit, mask, H, ACC)
    saved = _tiles(saved_ptr, SAVED, row, unit, mask, H, ACC)
    vectors = _tiles(vectors_ptr, ROUTES.vectors, row * 0, unit, mask, H, ACC)
    published, carried, kept = CELL.step(a, carried, saved, vectors, CELL.accuracy)
    if HAS.counts:
        tl.store(counts_ptr, len(published))
        tl.store(counts_ptr + 1, len(carried))
        tl.store(counts_ptr + 2, len(kept))
    if HAS.published:
        _store(published_ptr, published, ROUTES.published, row, unit, mask, H)
    if HAS.after:
        _store(after_ptr, carried, ROUTES.carried, row, unit, mask, H)
    if HAS.kept:
        _store(kept_ptr, kept, ROUTES.kept, row, unit, mask, H)


@triton.jit
def _tiles(ptr, n: tl.constexpr, row, unit, mask, H: tl.constexpr, ACC: tl.constexpr):
    """n tiles of [.., n, H], at these rows and units"""
    tiles = ()
    for k in tl.static_range(n):
        tiles = tiles + (tl.load(ptr + (row * n + k) * H + unit, mask=mask, other=0).to(ACC),)
    return tiles


@triton.jit
def _store(ptr, tiles, n: tl.constexpr, row, unit, mask, H: tl.constexpr):
    for k in tl.static_range(n):
        if k < len(tiles):  # a cell that is being checked may lack some
            tl.store(ptr + (row * n + k) * H + unit, tiles[k].to(ptr.dtype.element_ty), mask=mask)
