"""Executes the PTX that Triton emits, on the CPU, on the memory of torch CPU tensors: every thread, every fragment, every
access to shared memory, with the checks of a memcheck, an initcheck, a racecheck and a synccheck on top.

    driver = ptx_executor.install()     # in this process, for good
    kernel[(programs,)](x, y)           # of CPU tensors: compiled to PTX, executed

parser.py           PTX -> instructions with resolved registers, labels and scopes of inline assembly
blocks.py           its basic blocks, and in which order lanes that have parted run them
translate.py        basic blocks -> Python functions over registers as numpy arrays, one element a lane
numerics.py         what single instructions compute: 16-bit formats, TF32, bit fields
tensorcore.py       mma, ldmatrix, stmatrix, wgmma: fragment layouts, descriptors, swizzles
memory.py           the extents of tensors, and a CTA's shared memory
lanes.py, global_memory.py, shared_memory.py, warps.py, gang.py     what a gang of warps does
launch.py           a launch: arguments, CTAs, the scheduler
driver.py           a Triton driver
counts.py           dynamic counts of a launch

How it executes.  Registers are arrays over the lanes of a *gang*: some warps of a CTA that execute together.  gang=0: all
warps of a CTA (fast), gang=1: single warps (most interleavings), None: by the seed.  Where lanes diverge those at the block that
comes first in the graph's weak topological order run first, so they meet again where their paths do.  A gang that polls in vain or waits at a barrier
lets the others go on; which one runs next is drawn from the seed.  Programs that talk to each other are cut around every
access that others can notice.  A cooperative launch has all its CTAs at once, another launch one after the other.

Memory is sequentially consistent: what a weak memory model allows beyond that is not shown.  Accesses take effect at once, but
cp.async at its wait (reading before is an error), wgmma at its wait (with what is in shared memory then; accumulators cannot
be read before), and, where CTAs wait for each other, half of the stores to global memory in two parts, some lanes now and the
rest at the warps' next block (`tear`).

What is an error (PtxError, with kernel, CTA, warp, lane and the source line of `.loc`): a global access or prefetch outside the extents of
the tensors that the launch was given (by their own bytes, not by the allocation's), a misaligned one, a read of shared memory
that was never written, two warps at the same shared bytes without a CTA barrier between them (unless both write the same value,
as Triton's conversions of replicated layouts do), a plain load of global memory that another warp has stored in this
launch with no barrier between, a warp-wide instruction or a barrier by a part of a warp, a register that was never written, a
trap, a deadlock, with a list of who waits where.  An opcode, modifier or form that is not implemented raises UnknownOpcode
with its text: nothing is ignored but fences.  Noted, and no error (`lane_hazards`): lanes of one warp that
exchange through shared memory without a warp barrier.

What it does not show: ptxas and the machine code (registers, scheduling, its own barriers and convergence), weak memory, time,
the exact bits of approximations (tanh.approx, ex2.approx, rcp.approx are computed in fp64 and rounded) and of the tensor core's
accumulation (fp64, rounded once).
"""

from .counts import Counts, count, per_step, total
from .driver import PtxDriver, install
from .errors import PtxError, UnknownOpcode
from .launch import Launch
from .parser import parse

__all__ = [
    "Counts",
    "Launch",
    "PtxDriver",
    "PtxError",
    "UnknownOpcode",
    "count",
    "install",
    "parse",
    "per_step",
    "total",
]
