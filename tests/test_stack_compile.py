"""What the compiler made of launches with several recurrences, as test_compile.py looks at those with one.

L = 2, 4, 8 at H = 64 .. 1024 as choose.shared_plan plans them, with and without dropout, and both directions.  A subset by
default, all of it with --long.
"""

import itertools
import re

import pytest
from support.layouts import check_verify_layout

from bench.compiled import resources
from rnn_triton.launch import dispatch
from rnn_triton.op import dropout
from rnn_triton.plan import choose, hardware
from rnn_triton.plan.candidates import k_tiles
from rnn_triton.plan.problem import Bundle, OneCta, Problem

pytestmark = pytest.mark.compiled


def jobs():
    """(problem, bundle, device)"""
    bundle = [Bundle(2), *(Bundle(n, True, dropout) for n in (2, 4, 8) for dropout in (False, True))]
    shapes = [("bf16", None, "sm_90", of, H) for of in bundle for H in (64, 128, 256, 512, 1024)]
    shapes.remove(("bf16", None, "sm_90", Bundle(8, True, True), 1024))  # too large by a few registers: two launches of four
    shapes += [(dtype, precision, "sm_90", Bundle(4, True), 512) for dtype, precision in
               (("fp16", None), ("fp32", "tf32"), ("fp32", "tf32x3"))]  # fmt: skip
    shapes += [("bf16", None, arch, Bundle(4, True), H) for arch in ("sm_80", "sm_100") for H in (128, 256, 512)]
    # one CTA's largest
    shapes += [(*kind, arch, Bundle(4, True, dropout), H) for arch in ("sm_80", "sm_90", "sm_100") for dropout in (False, True)
               for kind, H in ((("fp16", None), 125), (("fp32", "tf32"), 128), (("fp32", "tf32"), 64), (("fp32", "tf32x3"), 64))]  # fmt: skip
    shapes += [("fp64", None, "sm_90", Bundle(2), 64), ("fp32", "ieee", "sm_90", Bundle(2), 128)]
    for (dtype, precision, arch, of, H), direction in itertools.product(shapes, ("forward", "backward")):
        I = H if direction == "forward" else 1
        yield Problem(direction, 8, I, H, dtype, precision, "elman_tanh"), of, hardware.RECORDS[arch]


def in_subset(problem, bundle, device):
    """On sm_90, in bf16: one for each number of layers; one CTA, W_in in registers, in shared memory; dropout"""
    if device.capability != 90 or problem.dtype != "bf16":
        return False
    return (problem.direction, problem.H, bundle) in (
        ("backward", 128, Bundle(2, True)),
        ("backward", 1024, Bundle(4, True, True)),
        ("forward", 1024, Bundle(8, True)),
    )


def name(problem, bundle, device):
    kind = f"{bundle.count}{'-layers' if bundle.linked else '-directions'}{'-dropout' if bundle.dropout else ''}"
    precision = f"-{problem.precision}" if problem.precision else ""
    return f"{problem.direction}-sm{device.capability}-{problem.dtype}{precision}-H{problem.H}-{kind}"


JOBS = [pytest.param(*job, marks=() if in_subset(*job) else pytest.mark.long, id=name(*job)) for job in jobs()]


@pytest.mark.parametrize("problem, bundle, gpu", JOBS)
def test_plan(problem, bundle, gpu):
    check(problem, bundle, gpu, choose.shared_plan(problem, bundle, gpu, ()))


@pytest.mark.parametrize("direction, bundle, dtype, precision", [
    ("backward", Bundle(2, True), "bf16", None),
    *(pytest.param(*how, marks=pytest.mark.long) for how in (
        ("forward", Bundle(2, True), "bf16", None), ("forward", Bundle(2), "bf16", None), ("backward", Bundle(2), "bf16", None),
        ("forward", Bundle(2), "fp32", "tf32"), ("backward", Bundle(2), "fp32", "tf32x3"),
    )),
])  # fmt: skip
def test_batch_tiles_of_32_rows(direction, bundle, dtype, precision):
    """which no launch of eight rows takes by itself"""
    problem = Problem(direction, 64, 384 if direction == "forward" else 1, 384, dtype, precision, "elman_tanh")
    gpu = hardware.RECORDS["sm_90"]
    p = choose.shared_plan(problem, bundle, gpu, (("block_b", 32), ("regime", "cta_group")))
    check(problem, bundle, gpu, p)


def check(problem, bundle, gpu, p):
    alone = isinstance(p, OneCta)
    assert alone or problem.H > (64 if problem.dtype == "fp32" else 128)
    kernel = dispatch.compile_ahead(problem, p, gpu, bundle)
    r = resources.analyze(kernel)
    assert (r.spill_stores, r.spill_loads) == (0, 0), "registers spill"
    assert r.shared_bytes <= gpu.shared_bytes
    assert r.registers * 32 * r.warps <= gpu.registers
    read = {"x_ptr", "u_ptr", "saved_ptr", "out_ptr", "first_ptr", "sync_ptr"}
    assert set(r.global_load_arguments) <= read, "weights are read from global memory every step"
    # that a lane waits for another costs no barrier
    if alone:
        assert r.barriers <= (2 if p.formulation != "fma" else 5)
    else:
        assert r.barriers <= 2 + (p.w_ih_home == "shared")
    assert r.shuffles == 0 or p.formulation == "fma"
    ptx = kernel.asm["ptx"]
    published = re.findall(r"st\.global\.cg\.(\S+)", ptx)
    if not alone:
        assert len(published) == (1 if p.formulation == "mma16" else 2)
    assert all(re.fullmatch(r"(v[24]\.)?b32|b64|b128", width) for width in published), "narrower than a word"
    assert bool(published) == (bundle.linked or not alone)
    if bundle.linked:
        check_x(kernel, problem, p)


def check_x(kernel, problem, p):
    """x, by 16 bytes a load: before the loop and in it, beside the state where that comes from others; on one CTA, where each
    warp has all of x, also that of the first step"""
    ptx = kernel.asm["ptx"]
    chunks = -(-problem.H // p.chunk) if isinstance(p, OneCta) else k_tiles(problem.H, p.warps, problem.dtype)
    chunks *= p.block_b // 8
    gathered = re.findall(r"ld\.volatile\.global\.v4\.b32", ptx)
    assert len(gathered) == 3 * chunks
    assert ptx.count("red.relaxed.gpu.global.min") == 2
    lines = kernel.asm["ttgir"].splitlines()  # a line for x and one for the state, or for x_0 and the others
    polls = [i for i, line in enumerate(lines) if "elementwise_inline_asm" in line and "ld.relaxed.gpu.global.v4" in line]
    assert len(polls) == 2
    for i in polls:
        check_verify_layout("\n".join(line for k, line in enumerate(lines) if k == i or k not in polls), p)


@pytest.mark.parametrize("dtype", ["bf16", *(pytest.param(d, marks=pytest.mark.long) for d in ("fp16", "fp32"))])
def test_dropout_of_whole_tensors(dtype):
    """16 bytes a load and a store, no layout conversion"""
    kernel = dropout.compile_ahead(dtype, hardware.RECORDS["sm_90"])
    ptx = kernel.asm["ptx"]
    assert "ld.global.v4.b32" in ptx and "st.global.v4.b32" in ptx and "shfl" not in ptx and "bar.sync" not in ptx
