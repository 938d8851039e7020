"""What the compiler made of the kernels, ahead of time and without a GPU.

Every plan of bench/compiled/planned.py is compiled for its device and taken apart (bench/compiled/resources.py): no spills, registers and
shared memory within the device, W_hh not read from global memory inside the time loop, at most two CTA barriers a step in
the tensor core forms.  Where CTAs exchange data, also what kernels/exchange.py takes for granted: how wide loads and
stores are, which addresses the assembly sees, a barrier before every release.  A fixed subset runs by default, all of it
with --long; the table is `python -m bench resources`.
"""

import importlib.util
import itertools
import pathlib
import re

import pytest
import torch
from support import first_reads
from support.layouts import check_verify_layout
from support.planned import gated, planned_otherwise

from bench.compiled import machine_code, resources
from bench.compiled.planned import planned
from rnn_triton import cells, overriding
from rnn_triton.kernels.dropout import drop
from rnn_triton.kernels.matmul import matmul_kernel
from rnn_triton.kernels.per_step import per_step
from rnn_triton.launch import cta_group, dispatch, one_cta
from rnn_triton.launch.operands import Operands, Scalars
from rnn_triton.plan import candidates, choose, hardware
from rnn_triton.plan.candidates import FORMS, Form, k_tiles
from rnn_triton.plan.problem import ONE, Bundle, Problem, row_units

pytestmark = pytest.mark.compiled


def barrier_limit(p):
    """Two at batch tiles <= 8: a grid's frees the reduction's buffer and fills it, the counter protocol waits and releases
    behind two more, weights in shared memory are fetched behind one.  The fma form's operands pass through shared memory:
    one more in its forward pass, two for a second chain."""
    if p.regime == "cta_group":
        return 2 + 2 * (p.protocol == "counter") + (p.w_ih_home == "shared")
    if p.formulation != "fma":
        return 2
    return 2 + (p.w_ih_home not in ("gemm", "none")) + 2 * (p.chains == 2)


def name(job):
    problem, device = job
    p = choose.plan(problem, device)
    precision = f"-{problem.precision}" if problem.precision else ""
    return (
        f"{problem.direction}-sm{device.capability}-{problem.dtype}{precision}-B{problem.B}-I{problem.I}-H{problem.H}"
        f"-{p.w_ih_home}"
    )


def in_subset(job):
    """The largest shapes of every kind on sm_90, bf16 in both widths and its ragged shapes; one on the oldest and on the newest device."""
    problem, device = job
    if problem.H > 256:
        if device.capability in (80, 100):
            return (problem.direction, problem.dtype, problem.B, problem.I, problem.H) == ("forward", "bf16", 8, 512, 512)
        sizes = {"bf16": {8: (384, 1024, 4096), 64: (1760,), 256: (1024,)}, "fp32": {8: (1000,)}}
        if device.capability != 90:
            return False
        if problem.precision == "tf32x3":
            return problem.H == 384 and problem.I == 384
        return problem.I != 64 and problem.H in sizes.get(problem.dtype, {}).get(problem.B, ())
    if problem.B != 8 or problem.dtype == "fp16":
        return False
    if device.capability != 90:
        return problem.dtype == "bf16" and (problem.I, problem.H) == (256, 128)
    if problem.dtype == "bf16":
        return problem.H in (125, 128, 253, 256) and problem.I not in (8, 64, 384, 1000)
    return problem.H == (64 if problem.dtype == "fp64" else 128) and problem.I not in (8, 32, 64, 192, 1000)


@pytest.mark.parametrize("regime", [one_cta, cta_group])
def test_constants_are_in_the_kernels_order(regime):
    """A kept launcher takes them by position."""
    kernel = one_cta.one_cta if regime is one_cta else cta_group.cta_group
    jobs = [job for job in planned() if choose.plan(*job).regime == regime.__name__.rpartition(".")[2]]
    for problem, device in jobs[:20]:
        names = list(regime.constants(problem, choose.plan(problem, device), (True,) * len(Operands._fields)))
        assert names == kernel.arg_names[-len(names) :]


@pytest.mark.parametrize("kernel, without", [(one_cta.one_cta, 0), (cta_group.cta_group, 3)])
def test_operands_and_scalars_are_in_the_kernels_order(kernel, without):
    """A launch hands them over by position."""
    names = [f"{name}_ptr" for name in Operands._fields] + list(Scalars._fields[: len(Scalars._fields) - without])
    assert kernel.arg_names[: len(names)] == names
    assert kernel.params[len(names)].is_constexpr, "no parameter of a call is left out"


KERNELS = [one_cta.one_cta, cta_group.cta_group, per_step, drop, matmul_kernel]


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda k: k.__name__)
def test_a_cache_key_is_that_of_every_process(kernel):
    """Triton lists the globals a kernel uses by name, and those of one name by the addresses of their modules' dictionaries."""
    assert kernel.cache_key
    names = [name for name, _ in kernel.used_global_vals]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda k: k.__name__)
def test_no_kernel_depends_on_the_value_of_an_integer(kernel):
    """A value of 1 would be a constexpr, without `.to`, and one that 16 divides another kernel."""
    integers = [p for p in kernel.params if not p.is_constexpr and not p.name.endswith("_ptr")]
    assert integers and all(p.do_not_specialize for p in integers)


def test_a_kept_launcher_gets_what_triton_was_given(monkeypatch):
    """The second call goes to the compiled kernel of the first, with every argument in its place."""
    calls = []

    class Kernel:  # stands for triton's CompiledKernel
        def __getitem__(self, grid):
            return lambda *arguments: calls.append(("kept", grid, arguments))

    class Jit:
        def __getitem__(self, grid):
            def run(*arguments, num_warps, num_stages, maxnreg, **constexprs):
                calls.append(("jit", grid, (*arguments, *constexprs.values())))
                return Kernel()

            return run

    names = one_cta.one_cta.arg_names
    monkeypatch.setattr(one_cta, "one_cta", Jit())
    monkeypatch.setattr(torch.cuda, "current_device", lambda: None)  # a CPU tensor's index
    dispatch._launch_for.cache_clear()

    def tensors(T, B):
        shapes = ((T, B, 16), (32, 16), (32, 32), (32,), (32,), (B, 32))
        return [torch.rand(shape, dtype=torch.bfloat16) for shape in shapes]

    try:
        for T, present in ((3, 6), (5, 6), (5, 5)):  # other T: the same kernel; no h0: another
            given = tensors(T, 9)
            arguments = given[:present] + [None] * (6 - present)
            y, (hn,), _ = dispatch.forward(*arguments[:-1], arguments[-1:], "elman_tanh", False, None)
            kind, grid, got = calls[-1]
            assert grid == (2, 1, 1)
            assert kind == ("jit" if (T, present) != (5, 6) else "kept")
            absent = [y] * (6 - present) + [y, y, y, hn]
            absent += 6 * [y]  # what launches of several recurrences have, and cells with more tiles
            assert [t.data_ptr() for t in got[:16]] == [t.data_ptr() for t in given[:present] + absent]
            assert got[16:20] == (None,) * 4  # nothing is said of sequences
            assert got[20:33] == (T, 9, 0, 9 * 16 // 8, 16 // 8, 0, 0, 0, 0, 0, 0, 0, 0)
            assert len(got) == len(names)
    finally:
        dispatch._launch_for.cache_clear()


def check(kernel, problem, p, device):
    r = resources.analyze(kernel)
    assert (r.spill_stores, r.spill_loads) == (0, 0), "registers spill"
    assert r.shared_bytes <= device.shared_bytes
    assert r.registers * 32 * r.warps <= device.registers
    assert "w_rec_ptr" not in r.global_load_arguments, "W_hh is read from global memory every step"
    read = {"u_ptr"} if p.w_ih_home == "gemm" else {"x_ptr"}
    if problem.direction == "backward":
        read = {"u_ptr", "saved_ptr"}
    if p.regime == "cta_group":
        read |= {"out_ptr", "sync_ptr", "first_ptr"}
        check_exchange(kernel, r, problem, p)
    assert set(r.global_load_arguments) <= read
    assert r.barriers <= barrier_limit(p)
    if p.regime == "one_cta":
        check_runs_ahead(kernel, r, problem, p)


def check_runs_ahead(kernel, r, problem, p):
    """What is loaded for later steps is not waited for in this one, and comes from L2.

    A thread that holds x of two steps has a step and what is before x's product to wait; less where fp32 rounds x early, and in a
    batch tile of 16, whose loads ptxas delays.  Where it holds one x, the load stands behind the product that frees its registers, a
    part of the step from where it is read.  What a GEMM made of x is loaded where the step begins, or behind the products where a
    thread holds one step of it, and read where the next step's products begin.  What ptxas makes for sm_100, and backward the fma
    form in fp32, move what was loaded about half a step ago or more."""
    moves = r.arch == "sm_100" or (p.formulation == "fma" and problem.dtype == "fp32" and problem.direction == "backward")
    behind, moved = first_reads.of(kernel)
    assert moved == 0 or (moves and behind >= 0.45), "a prefetched register is moved in the step that loads it"
    assert r.l2_prefetches > 0
    if problem.direction == "forward":
        apart = 0.25
        if p.w_ih_home == "gemm":
            apart = 0.1 if p.formulation == "fma" else 0.2  # ptxas delays the load
            if p.x_depth == 2:
                apart = 0.95 if p.formulation == "mma16" and p.block_b == 8 else 0.5
        elif p.formulation == "fma":
            apart = 0.9
        elif p.x_depth == 2:
            apart = 0.98 if p.formulation == "mma16" and p.block_b == 8 else 0.8
        assert behind >= (apart if p.x_depth else 0.1)


def check_exchange(kernel, r, problem, p):
    """What kernels/exchange.py takes for granted of the compiler"""
    assert p.ctas * p.groups <= hardware.RECORDS[r.arch].sms
    # publishing: the words of out, by stores of whole words, and around L1
    ptx = kernel.asm["ptx"]
    published = re.findall(r"st\.global\.cg\.(\S+)", ptx)
    assert len(published) == (1 if p.formulation == "mma16" else 2)
    assert all(re.fullmatch(r"(v[24]\.)?b32|b64|b128", width) for width in published), "narrower than a word"
    assert all(width >= 4 for width in r.global_stores)
    # gathering: 16 bytes a load, every chunk of the state once
    chunks = -(-row_units(problem.H, problem.dtype) // (16 * p.warps * (2 if p.formulation == "mma16" else 1)))
    chunks *= p.block_b // 8
    kind = "volatile.global" if p.protocol == "sentinel" else "global.cg"
    gathered = re.findall(rf"ld\.{kind}\.v4\.b32", ptx)
    assert len(gathered) == chunks, "h is not read in 16-byte loads, once each"
    assert r.shuffles == 0 and r.shared_stores <= 2 * p.block_b * p.units / 32, "h passes through a layout conversion"
    if p.protocol == "sentinel":
        check_verify_layout(kernel.asm["ttgir"], p)
    else:
        body = ptx[: ptx.index("gpu.release.add")]
        last_barrier = body.rindex("bar.sync")
        assert not re.search(r"st\.global", body[last_barrier:]), "a store between the barrier and the release"
        assert last_barrier > body.rindex("st.global.cg"), "no CTA barrier between the stores and the release"
        assert "ld.acquire.gpu" in ptx


JOBS = [pytest.param(job, marks=() if in_subset(job) else pytest.mark.long, id=name(job)) for job in planned()]


@pytest.mark.thin(3)
@pytest.mark.parametrize("job", JOBS)
def test_plan(job):
    problem, device = job
    p = choose.plan(problem, device)
    check(dispatch.compile_ahead(problem, p, device), problem, p, device)


def barriers_of_gates(problem, p):
    """Two, as where there is one gate.  In tf32 a group sums the parts of its gates up in two passes, each with a barrier more; in tf32x3
    and ieee every exchanged tile of one CTA passes through shared memory by itself."""
    exchanged = len(cells.named(problem.cell).gates) if problem.direction == "backward" else 1
    if p.regime == "cta_group":
        return barrier_limit(p) + 2 * (problem.precision == "tf32" and problem.direction == "forward")
    if p.formulation == "fma" and p.chains == 2:
        return barrier_limit(p) + 2 * (exchanged - 1)
    return 2 * exchanged if p.precision != "tf32" and p.formulation != "mma16" else 2


def in_subset_of_gates(job):
    """The largest of one CTA in 16 bits and in tf32, and one of a group"""
    problem, device = job
    largest = {("lstm", "bf16", 128), ("lstm", "fp32", 64), ("gru", "bf16", 1024)}
    return device.capability == 90 and (problem.cell, problem.dtype, problem.H) in largest


GATED = [
    pytest.param(job, marks=() if in_subset_of_gates(job) else pytest.mark.long, id=f"{job[0].cell}-{name(job)}") for job in gated()
]


@pytest.mark.parametrize("job", GATED)
def test_plan_of_gates(job):
    problem, device = job
    p = choose.plan(problem, device)
    r = resources.analyze(dispatch.compile_ahead(problem, p, device))
    assert (r.spill_stores, r.spill_loads) == (0, 0)
    assert r.shuffles == 0 or p.formulation == "fma"  # whose sums over K pass between threads, for one gate as for several
    assert r.shared_bytes <= device.shared_bytes
    assert r.barriers <= barriers_of_gates(problem, p)
    assert "w_rec_ptr" not in r.global_load_arguments, "W_hh is read from global memory every step"


BESIDE = {"models": (3, ONE), "directions": (1, Bundle(2)), "layers": (1, Bundle(2, True)), "layers-dropout": (1, Bundle(2, True, True))}
BY_DEFAULT = {("lstm", "layers-dropout", "backward"), ("lstm", "models", "forward")}


@pytest.mark.parametrize("cell, beside, direction", [
    pytest.param(*how, marks=() if how in BY_DEFAULT else pytest.mark.long)
    for how in itertools.product(("lstm", "gru", "leaky_tanh"), BESIDE, ("forward", "backward"))
])  # fmt: skip
def test_gates_of_one_cta_each(cell, beside, direction):
    """The largest in 16 bits that share a launch, with whole rows and with ragged ones"""
    (models, bundle), device = BESIDE[beside], hardware.RECORDS["sm_90"]
    largest = 32 if bundle.linked and cell != "leaky_tanh" else 128
    for H in (largest, largest - 3):
        problem = Problem(direction, 8, H if direction == "forward" else 1, H, "bf16", None, cell, models)
        (p,) = candidates.one_cta(problem, device, {}, bundle)
        r = resources.analyze(dispatch.compile_ahead(problem, p, device, bundle))
        assert (r.spill_stores, r.spill_loads, r.shuffles, r.barriers) == (0, 0, 0, 2), H
        assert "w_rec_ptr" not in r.global_load_arguments and "w_in_ptr" not in r.global_load_arguments


OTHERWISE = [
    pytest.param(
        job, marks=() if job[1].capability == 90 else pytest.mark.long,
        id=f"{job[0].direction}-sm{job[1].capability}-{job[0].dtype}-H{job[0].H}-" + "-".join(map(str, job[2].values())),
    )
    for job in planned_otherwise()
]  # fmt: skip


@pytest.mark.thin(3)
@pytest.mark.parametrize("job", OTHERWISE)
def test_plan_that_is_asked_for(job):
    problem, device, choices = job
    with overriding(**choices):
        p = choose.plan(problem, device)
    check(dispatch.compile_ahead(problem, p, device), problem, p, device)


@pytest.mark.parametrize("capability", [90, *(pytest.param(c, marks=pytest.mark.long) for c in (80, 100))])
@pytest.mark.parametrize("choices", [{}, {"x_loads": "before", "look_every": 1, "probe_delay": 0}], ids=["chosen", "otherwise"])
def test_settings_of_a_group_in_machine_code(choices, capability):
    """x is loaded behind the gather or ahead of it, the error word in a turn in 64 or in each, the counter of cycles read or not"""
    device = hardware.RECORDS[f"sm_{capability}"]
    problem = Problem("forward", 8, 512, 512, "bf16", None, "elman_tanh")
    with overriding(regime="cta_group", w_ih_home="registers", **choices):
        p = choose.plan(problem, device)
    code = machine_code.parse_sass(resources._cuobjdump(dispatch.compile_ahead(problem, p, device).asm["cubin"])[1])
    probes = [n for n, i in enumerate(code) if i.opcode.startswith("LDG.E.128.STRONG") and not i.predicated]
    x_loads = [n for n, i in enumerate(code) if i.opcode == "LDG.E.128"]
    tiles = k_tiles(512, p.warps, "bf16")
    assert len(probes) == tiles
    # those behind the last probe; ahead of it lie those of the first step and of the weights
    assert sum(n > probes[-1] for n in x_loads) == (0 if choices else tiles)
    looks = [i for i in code[: probes[0]] if i.opcode.startswith("LDG.E.STRONG")]
    assert looks[-1].predicated == (not choices)
    assert any("SR_CLOCK" in i.text for i in code[probes[0] - 12 : probes[0]]) == (not choices)


# of one warp, at most; Triton 3.7.1 takes 100 and 117, 3.6.0 100.5 and 117
INSTRUCTIONS = {"forward": 102, "backward": 117}


@pytest.mark.parametrize("direction", list(INSTRUCTIONS))
def test_instructions_of_a_step(direction):
    device = hardware.RECORDS["sm_90"]
    problem = Problem(direction, 8, 128, 128, "bf16", None, "elman_tanh")
    r = resources.analyze(dispatch.compile_ahead(problem, choose.plan(problem, device), device))
    assert r.instructions <= INSTRUCTIONS[direction] and r.l2_prefetches > 0


@pytest.mark.parametrize("I", [32, 128])
def test_x_arrives_in_16_byte_loads(I):
    """and no layout conversion stands between global memory and the tensor core: no shuffles, no extra shared memory"""
    device = hardware.RECORDS["sm_90"]
    problem = Problem("forward", 8, I, 128, "bf16", None, "elman_tanh")
    r = resources.analyze(dispatch.compile_ahead(problem, choose.plan(problem, device), device))
    assert r.global_loads == {16: I // 32}
    assert r.shuffles == 0
    assert r.mma == (128 + I) // 16
    assert r.shared_loads <= 4  # s alone: W_hh and W_ih stay in registers


def test_large_batches_take_large_tiles():
    """where the model finds that they cost less; small ones for a batch that large ones would leave on few CTAs"""
    tiles = {B: choose.plan(Problem("backward", B, 1, 1024, "bf16", None, "elman_tanh"), hardware.RECORDS["sm_90"]).block_b
             for B in (8, 64, 256)}  # fmt: skip
    assert tiles == {8: 8, 64: 8, 256: 32}


def test_planned_reaches_every_kind_of_plan():
    plans = {(p.formulation, p.precision, p.w_ih_home) for p in (choose.plan(*job) for job in planned())}
    for formulation, precision in (("mma16", "ieee"), ("mma32", "tf32"), ("mma32", "tf32x3")):
        for home in ("none", "registers", "shared", "gemm"):
            assert (formulation, precision, home) in plans
    for home in ("none", "shared", "gemm"):
        assert ("fma", "ieee", home) in plans


def test_reloading_w_is_rejected(monkeypatch, tmp_path):
    """The same engine with W_hh read again every step does not pass `check`."""
    source = pathlib.Path(one_cta.one_cta.fn.__code__.co_filename).read_text()
    start, end = "    w = ()\n", "    w_in = ()\n"
    loop = "    for step in tl.range(0, T, loop_unroll_factor=UNROLL):\n"
    assert source.count(start) == source.count(end) == source.count(loop) == 1
    weights = source[source.index(start) : source.index(end)]
    again = "".join(f"    {line}\n" for line in weights.splitlines())
    mutant = source.replace(loop, loop + again).replace("from .", "from rnn_triton.kernels.")
    path = tmp_path / "mutant.py"
    path.write_text(mutant)
    spec = importlib.util.spec_from_file_location("mutant", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(one_cta, "one_cta", module.one_cta)
    device = hardware.RECORDS["sm_90"]
    problem = Problem("forward", 8, 64, 64, "bf16", None, "elman_tanh")
    p = choose.plan(problem, device)
    with pytest.raises(AssertionError, match="W_hh is read from global memory every step"):
        check(dispatch.compile_ahead(problem, p, device), problem, p, device)


def test_the_limits_can_fail(monkeypatch):
    """One size more than the planner allows does spill: the plan's limits are where they belong."""
    device = hardware.RECORDS["sm_90"]
    form = FORMS["16-bit"]
    monkeypatch.setitem(FORMS, "16-bit", Form(**{**vars(form), "registers": (8, 8)}))
    problem = Problem("forward", 8, 256, 256, "bf16", None, "elman_tanh")
    p = choose._decide.__wrapped__(problem, device, (), ())
    assert p.w_ih_home == "registers"
    with pytest.raises(AssertionError, match="spill"):
        check(dispatch.compile_ahead(problem, p, device), problem, p, device)
