"""Fetches streams into L2, ahead of the loop that reads them one step after the other.

A step of one CTA takes less time than a read from DRAM and more than one from L2.  So every `period` steps each thread asks
for lines of the steps AHEAD .. AHEAD + period - 1 from now, as a rule one, and what the loop loads into registers one or two
steps ahead comes from L2.  A prefetch waits for nothing, and no address lies outside of its stream.

A stream is a tuple (pointer, elements from a step to the next, elements from a row to the next, rows, elements of a row).
"""

import triton
import triton.language as tl

AHEAD = tl.constexpr(16)  # steps at least; less than twice as many at most
LINE_BYTES = tl.constexpr(128)  # not LINE, which exchange.py has: kernels use both, and a cache key must not depend on their order


@triton.constexpr_function
def row_lines(width, dtype):
    """Lines of a row, if it begins one"""
    return -(-width * dtype.primitive_bitwidth // (8 * LINE_BYTES.value))


@triton.constexpr_function
def threads(x, u, saved, kept, block_b, warps):
    """Of a CTA for each row of each stream; its rows have so many lines, by `row_lines`, 0 where there is none"""
    return 32 * warps // (triton.next_power_of_2(max(1, (x > 0) + (u > 0) + (saved > 0) + (kept > 0))) * block_b)


@triton.constexpr_function
def across(x, u, saved, kept, block_b, warps):
    """Lines of a row that the threads ask for at once, a power of two"""
    return max(1, min(triton.next_power_of_2(max(1, x, u, saved, kept)), threads(x, u, saved, kept, block_b, warps)))


@triton.constexpr_function
def period(x, u, saved, kept, block_b, warps):
    """Steps, a power of two"""
    return max(1, min(16, threads(x, u, saved, kept, block_b, warps) // across(x, u, saved, kept, block_b, warps)))


@triton.jit
def lines_ahead(
    streams, t, dt, T, BLOCK_B: tl.constexpr, PERIOD: tl.constexpr, ACROSS: tl.constexpr
):  # fmt: skip
    """(address of a line of each thread, bytes from there to the same line of the next step, steps from that line's on whose line
    is in the stream, bytes of the row from there on), of the first steps from time t on"""
    N: tl.constexpr = PERIOD * BLOCK_B * ACROSS
    n = tl.arange(0, N * triton.next_power_of_2(len(streams)))
    line = n % ACROSS
    row = n // ACROSS % BLOCK_B
    i = n // (ACROSS * BLOCK_B) % PERIOD
    address = tl.zeros(n.shape, tl.int64)
    further = tl.zeros(n.shape, tl.int64)
    steps = tl.zeros(n.shape, tl.int32)
    left = tl.zeros(n.shape, tl.int32)
    for s in tl.static_range(len(streams)):
        ptr, step, stride_b, rows, width = streams[s]
        size = ptr.dtype.element_ty.primitive_bitwidth // 8
        offset = ((t + dt * i) * step + row * stride_b) * size + line * LINE_BYTES
        mine = n // N == s
        address = tl.where(mine, ptr.to(tl.int64) + offset, address)
        further = tl.where(mine, dt * step * size, further)
        steps = tl.where(mine & (row < rows), T - i, steps)
        left = tl.where(mine, width * size - line * LINE_BYTES, left)
    return address, further, steps, left


@triton.jit
def prefetch(address, enable, left, LINES: tl.constexpr, ACROSS: tl.constexpr):
    """Where enable the lines at `address`, and of the same rows every ACROSS-th further on.  By a predicate: a branch takes more
    instructions."""
    for c in tl.static_range((LINES + ACROSS - 1) // ACROSS):
        tl.inline_asm_elementwise(
            "{ .reg .pred p; setp.ne.b32 p, $2, 0; @p prefetch.global.L2 [$1]; mov.b32 $0, 0; }", "=r,l,r",
            [address + c * ACROSS * LINE_BYTES, (enable & (left > c * ACROSS * LINE_BYTES)).to(tl.int32)], dtype=tl.int32, is_pure=False,
            pack=1,
        )  # fmt: skip
