"""A step of every planned kernel, counted on the executor of PTX (support/counts.py), keeps to its row of docs/resources.md,
and the rows to what the kernels are designed for.
"""

import pytest
import triton
from support import counts
from support.mutants import Change, patched

from rnn_triton.plan import problem
from rnn_triton.plan.problem import SIZES, row_units

pytestmark = pytest.mark.ptx
long = pytest.mark.long

JOBS = list(counts.jobs())
DEFAULT = {
    "forward-bf16-B8-I256-H128", "backward-bf16-B8-I128-H128", "forward-fp32-tf32-B8-I128-H128",
    "backward-fp32-tf32-B8-I128-H128", "forward-bf16-B8-I64-H512", "backward-bf16-B8-I512-H512",
}  # fmt: skip


@pytest.fixture(scope="module")
def limits():
    return counts.limits()


# The limits hold on Triton 3.6 and 3.7.  Later ones make code with more barriers (CHANGELOG, "Open"), and which of the changes
# below reach the compiled code depends on the compiler.
VERSION = tuple(map(int, triton.__version__.split(".")[:2]))


@pytest.mark.skipif(VERSION > (3, 7), reason="the limits are those of Triton 3.6 and 3.7")
@pytest.mark.parametrize("job", [pytest.param(job, marks=() if job.name in DEFAULT else long, id=job.name) for job in JOBS])
def test_step(job, limits):
    assert counts.counted(job).beyond(limits[job.key]) == []


def test_the_table_has_every_planned_kernel(limits):
    assert sorted(limits) == sorted(job.key for job in JOBS) and len({job.name for job in JOBS}) == len(JOBS)
    assert {job.name for job in JOBS} >= DEFAULT


# ---- what the kernels are designed for ------------------------------------------------------------------------------


def held(job):
    """{argument: bytes of it that the CTA's threads need in a step}; what several threads need counts as often"""
    of, p, bundle = job.problem, job.plan, job.bundle
    size, forward = SIZES[of.dtype], of.direction == "forward"
    alone, threads = isinstance(p, problem.OneCta), 32 * p.warps
    linked = bundle.linked and bundle.count > 1
    row = row_units(of.H, of.dtype)
    units = of.H if alone else p.units
    # a thread of a group has two units of a row; in a CTA alone each warp has all of x, but in the fma form an element
    own = p.block_b * units if alone else max(p.block_b * units, 2 * threads)
    x = p.block_b * (of.I if forward else 1)
    x = max(x, threads) if p.formulation == "fma" else x * p.warps if alone else x
    found = {}
    if linked:  # the last lane's x is the out of the one before
        found["out"] = (p.warps if alone else 1) * p.block_b * row * size
    elif forward and p.w_ih_home not in ("gemm", "none"):
        found["x"] = x * size
    if forward and p.w_ih_home == "gemm":
        found["u"] = own * max(size, 4)
    if not forward:
        found["saved"] = own * size
        if not linked:
            found["u"] = own * size
    if not alone:
        found["out"] = found.get("out", 0) + p.block_b * row * size
        found["sync"] = 32 * (p.warps + (p.protocol == "counter"))
    return found


def barriers(job):
    """One frees and one fills the buffer of the exchange or the reduction; the counter protocol waits and releases behind two more,
    weights in shared memory are fetched behind one.  Two more for a second chain of the fma form, and one more where padding splits
    its x."""
    p = job.plan
    if p.formulation == "fma":
        return 2 + 2 * (p.chains == 2) + (p.w_ih_home == "shared")
    return 2 + 2 * (getattr(p, "protocol", "") == "counter") + (p.regime == "cta_group" and p.w_ih_home == "shared")


# What is not as designed, and takes what the table says
ODD_ROWS = "their rows begin at any element, and are loaded one by one"
BEYOND = {
    "forward-bf16-B4096-I63-H61": (["bytes from x"], ODD_ROWS),
    "backward-bf16-B8-I255-H253": (["conflicts", "bytes from saved", "bytes from u"], ODD_ROWS),
    "backward-fp32-ieee-B8-I63-H61": (["bytes from saved", "bytes from u"], ODD_ROWS),
    "backward-bf16-B8-I256-H256": (["conflicts"], "32 of 320 wavefronts, since its loads are behind the products"),
}  # fmt: skip

def test_the_limits_are_those_of_the_design(limits):
    """W_hh is not loaded; of the rest no more than it has.  In the tensor core forms two barriers and no conflicts, in the fma form
    next to none; DMMA (fp64) has some."""
    more = {}
    for job in JOBS:
        if job.plan.regime == "per_step":  # it keeps nothing on chip
            continue
        found = limits[job.key]
        fma = job.plan.formulation == "fma"
        design = counts.Step(
            barriers(job), found.wavefronts, found.wavefronts * (0.25 if job.problem.dtype == "fp64" else 0.06) * fma,
            # what a warp loads of a row at once is at least a sector, and may begin within one
            {name: 2 * n for name, n in held(job).items()},
        )  # fmt: skip
        if texts := found.beyond(design):
            more[job.name] = [text.partition(":")[0] for text in texts]
    assert more == {name: kinds for name, (kinds, _) in BEYOND.items()}


# ---- each limit can fail --------------------------------------------------------------------------------------------

WIDE, SHARED = "forward-bf16-B8-I64-H512", "forward-bf16-B8-I1024-H1024-cta_group-w_ih_home=shared"
AT = "\n        # ---- critical path"


@pytest.mark.skipif(VERSION != (3, 7), reason="the changes are to what Triton 3.7 makes of the source")
@pytest.mark.parametrize("name, change, kinds", [
    pytest.param(WIDE, Change("cta_group.py", AT, f"\n        tl.debug_barrier(){AT}"), ["barriers"], id="a-barrier-more"),
    pytest.param(
        WIDE,
        Change("cta_group.py", AT, """
        w_rec = _weights(w_rec_ptr, unit0, TILE.shared_tiles, len(REC_INTO), K_REC, SHAPE, TILE)""" + AT),
        ["bytes from w_rec"], id="weights-from-memory",
    ),
    pytest.param(
        SHARED, Change("slices.py", "column), [2, 1, 4])", "column), [1, 1, 4])"), ["wavefronts", "conflicts"],
        id="rows-in-the-same-banks",
    ),
])  # fmt: skip
def test_more_than_the_limit_fails(name, change, kinds, limits):
    job = next(job for job in JOBS if job.name == name)
    with patched(change) as kernels:
        found = counts.counted(job, kernels.recurrence).beyond(limits[job.key])
    assert [text.partition(":")[0] for text in found] == kinds
