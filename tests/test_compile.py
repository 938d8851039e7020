"""What the compiler made of the kernels, ahead of time and without a GPU.

Every plan in plan.PLANNED is compiled for its device and taken apart (bench/resources.py): no spills, shared memory
within the device, W_hh not read from global memory inside the time loop, at most two CTA barriers a step in the tensor
core forms.  A fixed subset runs by default, all of it with --long; the table is `python -m bench resources`.
"""

import functools

import pytest
import triton
import triton.language as tl

from bench import resources
from rnn_triton import hardware, launch, plan


def barrier_limit(p):
    """Two at batch tiles <= 8.  The fma form's operands pass through shared memory: one more in its forward pass, two
    for a second chain, two in the loop over streamed chunks."""
    if p.formulation != "fma":
        return 2
    return 2 + (p.w_ih_home != "none") + 2 * (p.chains == 2) + 2 * (p.w_ih_home == "stream")


def name(job):
    problem, device = job
    p = plan.plan(problem, device)
    precision = f"-{problem.precision}" if problem.precision else ""
    return (
        f"{problem.direction}-sm{device.capability}-{problem.dtype}{precision}-B{problem.B}-I{problem.I}-H{problem.H}"
        f"-{p.w_ih_home}"
    )


def in_subset(job):
    """bf16 at its widest on sm_90; the largest H of every other kind; one shape on the other architectures."""
    problem, device = job
    widest = problem.H in (128, 256)
    if device.capability == 90:
        if problem.dtype == "bf16":
            return widest and problem.B == 8
        return problem.H == (64 if problem.dtype == "fp64" else 128) and problem.dtype != "fp16"
    return problem.dtype == "bf16" and problem.H == 128 and problem.B == 8


def check(r, problem, p, device):
    assert (r.spill_stores, r.spill_loads) == (0, 0), "registers spill"
    assert r.shared_bytes <= device.shared_bytes
    assert "w_rec_ptr" not in r.global_load_arguments, "W_hh is read from global memory every step"
    read = {"x_ptr"} | ({"w_in_ptr"} if p.w_ih_home == "stream" else set())
    if problem.direction == "backward":
        read = {"u_ptr", "saved_ptr"}
    assert set(r.global_load_arguments) <= read
    assert r.barriers <= barrier_limit(p)


JOBS = [pytest.param(job, marks=() if in_subset(job) else pytest.mark.long, id=name(job)) for job in plan.PLANNED]


@pytest.mark.parametrize("job", JOBS)
def test_plan(job):
    problem, device = job
    p = plan.plan(problem, device)
    check(resources.analyze(launch.compile_ahead(problem, p, device)), problem, p, device)


@pytest.mark.parametrize("I", [32, 128])
def test_x_arrives_in_16_byte_loads(I):
    """and no layout conversion stands between global memory and the tensor core: no shuffles, no extra shared memory"""
    device = hardware.RECORDS["sm_90"]
    problem = plan.Problem("forward", 8, I, 128, "bf16", None, "tanh")
    r = resources.analyze(launch.compile_ahead(problem, plan.plan(problem, device), device))
    assert r.global_loads == {16: I // 32}
    assert r.shuffles == 0
    assert r.mma == (128 + I) // 16


def test_planned_reaches_every_kind_of_plan():
    plans = {(p.formulation, p.precision, p.w_ih_home) for p in (plan.plan(*job) for job in plan.PLANNED)}
    for formulation, precision in (("mma16", "ieee"), ("mma32", "tf32"), ("mma32", "tf32x3")):
        for home in ("none", "registers", "shared", "stream"):
            assert (formulation, precision, home) in plans
    for home in ("none", "shared", "stream"):
        assert ("fma", "ieee", home) in plans


@triton.jit
def _step_products(w_ptr, s_ptr, out_ptr, T, N: tl.constexpr, B: tl.constexpr, RELOAD: tl.constexpr):
    i = tl.arange(0, N)
    b = tl.arange(0, B)
    w = tl.load(w_ptr + i[:, None] * N + i[None, :])
    s = tl.load(s_ptr + b[None, :] * N + i[:, None])
    for t in range(T):
        if RELOAD:
            w = tl.load(w_ptr + t * N * N + i[:, None] * N + i[None, :])
        s = tl.dot(w, s).to(s.dtype)
        tl.store(out_ptr + t * N * B + b[None, :] * N + i[:, None], s)


@functools.cache
def _compiled(reload):
    signature = {"w_ptr": "*bf16", "s_ptr": "*bf16", "out_ptr": "*bf16", "T": "i32"}
    constants = {"N": 64, "B": 16, "RELOAD": reload}
    names = _step_products.arg_names
    source = triton.compiler.ASTSource(
        fn=_step_products,
        signature={n: signature.get(n, "constexpr") for n in names},
        constexprs={(names.index(n),): v for n, v in constants.items()},
        attrs={(i,): [["tt.divisibility", 16]] for i in range(3)},
    )
    target = triton.backends.compiler.GPUTarget("cuda", 90, 32)
    return resources.analyze(triton.compile(source, target=target, options=dict(num_warps=4, num_stages=1)))


def test_the_assertions_can_fail():
    """A kernel that reads its weights every step is told from one that keeps them."""
    assert "w_ptr" not in _compiled(False).global_load_arguments
    assert "w_ptr" in _compiled(True).global_load_arguments


def test_the_limits_can_fail(monkeypatch):
    """One size more than the planner allows does spill: the plan's limits are where they belong."""
    device = hardware.RECORDS["sm_90"]
    form = plan._FORMS["16-bit"]
    monkeypatch.setitem(plan._FORMS, "16-bit", plan._Form(**{**vars(form), "registers": (8, 8)}))
    problem = plan.Problem("forward", 8, 256, 256, "bf16", None, "tanh")
    p = plan.plan.__wrapped__(problem, device)
    assert p.w_ih_home == "registers"
    with pytest.raises(AssertionError, match="spill"):
        check(resources.analyze(launch.compile_ahead(problem, p, device)), problem, p, device)
