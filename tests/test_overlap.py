"""A backward pass in chunks (rnn_triton/overlap.py): the kernel's range of steps, gradients chunk by chunk, the decision, the
order of streams.

Without a GPU: the kernel in the cooperative interpreter, streams and events by stand-ins that know what has happened before
what.  On one: gradients with chunks against those without, on several streams and in a CUDA graph.
"""

import contextlib
import dataclasses
import itertools
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from cooperative import CooperativeError, cooperate
from support import stuck
from support.grids import Case, assert_close, bits
from support.mutants import Change, patched
from support.problems import gradients, like, problem
from support.stacks import Stack

import rnn_triton
from rnn_triton import dropout, explain, faults, grid, hardware, latency, overlap, plan, reference
from rnn_triton.gradients import DB, DH0, DW_HH, DW_IH, DX, Layer, times
from rnn_triton.grid import Backward
from rnn_triton.launcher import Launcher
from rnn_triton.overlap import Schedule, schedule
from rnn_triton.plans import ONE, Lanes, Problem, SingleCta

CPU = torch.device("cpu")


# ---- the kernel's range of steps ------------------------------------------------------------------------------------


def by_chunks(bounds, seen=None):
    """`Cooperative.backward` by a launch for each two neighbours of `bounds`; seen: gets the report after each"""

    def backward(self, *arguments):
        started = self.start_backward(*arguments)
        for begin, end in pairwise(bounds):
            started.launch(begin, end)
            if seen is not None:
                seen.append(faults.word(CPU).item())
                faults.word(CPU).zero_()
        return started.da

    return backward


CHUNKED = [
    # steps, tiles and units that nothing divides; one step a launch
    (Case(5, 11, 8, 21, groups=2), (0, 2, 3, 5)),
    (Stack(3, 3, 8, 24, layers=2, dropped=30000), (0, 1, 3)),
    (Case(4, 19, 8, 24, kind="tf32", groups=2, protocol="counter", reverse=True, first=False), (0, 1, 4)),
    (Stack(3, 9, 8, 21, both=True, kind="tf32", protocol="counter"), (0, 2, 3)),
    (Case(3, 3, 8, 40, kind="fp16", protocol="counter", nonlinearity="relu"), (0, 1, 2, 3)),
]
MODE = dict(schedule="random", switch="mem", seed=1, memory="weak", poisoned=(), continued=True)


@pytest.mark.interpret
@pytest.mark.parametrize("case, bounds", [
    *CHUNKED[:-1], pytest.param(*CHUNKED[-1], marks=pytest.mark.long)
], ids=str)  # fmt: skip
def test_chunks_are_one_launch_to_the_bit(case, bounds, monkeypatch):
    how = dict(seed=3) if isinstance(case, Stack) else {}
    tensors = case.inputs("backward")
    (whole,) = case.run("backward", tensors, mode=MODE, **how)
    monkeypatch.setattr(grid.Cooperative, "backward", by_chunks(bounds))
    (chunked,) = case.run("backward", tensors, mode=MODE, **how)
    assert torch.equal(bits(chunked), bits(whole))
    if not how or case.dropped is None:
        assert_close([chunked], case.expected("backward", tensors), case.tolerance)


SMALL = Case(5, 11, 8, 21)
DEFECTS = {
    "begins with the first step's dy": ("u_t = u_ptr + t_begin", "u_t = u_ptr + t_first", SMALL),
    "begins with the first step's y": ("saved_t = saved_ptr + t_begin", "saved_t = saved_ptr + t_first", SMALL),
    "begins with no state": ("rows, step > 0, given", "rows, step > begin, given", SMALL),
    "the first step of every launch has dhn": ("rows, step == 0, unit0", "rows, step == begin, unit0", SMALL),
    "begins with the first step's number": ("    step = begin\n", "    step = 0 * begin\n", SMALL),
    "begins with the first step's x": (
        "x_t = x_words + t_begin * step_x", "x_t = x_words + t_first * step_x", Stack(3, 3, 8, 24, layers=2),
    ),
}  # fmt: skip


@pytest.mark.interpret
@pytest.mark.parametrize("defect", [
    pytest.param(name, marks=() if name == "begins with no state" else pytest.mark.long) for name in DEFECTS
])  # fmt: skip
def test_a_kernel_that_takes_every_launch_for_the_first_is_noticed(defect):
    old, new, case = DEFECTS[defect]
    tensors = case.inputs("backward")
    expected = case.expected("backward", tensors)
    mode = dict(schedule="rr", races="off", poisoned=(), continued=True, max_idle=400)
    for changes, right in (((), True), ((Change("grid.py", old, new),), False)):
        noticed = pytest.raises((AssertionError, CooperativeError))
        with contextlib.nullcontext() if right else noticed, patched(*changes) as kernels:
            kernels.host.SPIN_LIMIT = 64
            kernels.host.Cooperative.backward = by_chunks((0, 2, case.T))
            results = case.run("backward", tensors, module=case.module(kernels), mode=mode)
            assert_close(results, expected, case.tolerance)
        faults.word(CPU).zero_()


@pytest.mark.interpret
@pytest.mark.parametrize("bounds", [(0, 4, 5), pytest.param((0, 2, 5), marks=pytest.mark.long)])
@pytest.mark.parametrize("case", [
    Case(5, 29, 8, 24, groups=2, kind="fp16", nonlinearity="relu", reverse=True),
    pytest.param(Case(5, 29, 8, 21, groups=2, protocol="counter", nonlinearity="relu"), marks=pytest.mark.long),
], ids=str)  # fmt: skip
def test_stuck(case, bounds):
    """in step 3: NaN from there on, in later launches, too, and the rest right; one report, by the launch of that step"""
    seen = []
    failing = next(n for n, (begin, end) in enumerate(pairwise(bounds)) if begin <= stuck.STEP < end)

    def backward(self, *arguments):
        da = by_chunks(bounds, seen)(self, *arguments)
        faults.word(CPU).fill_(seen[failing])
        return da

    with patched(stuck.DEAD) as kernels:
        kernels.host.Cooperative.backward = backward
        stuck.check(case, "backward", kernels)
    assert [n for n, report in enumerate(seen) if report] == [failing]


@pytest.mark.long
@pytest.mark.interpret
@pytest.mark.parametrize("bounds, reports", [((0, 4, 6), [0]), ((0, 2, 6), [1]), ((0, 3, 6), [0, 1])])
def test_stuck_layers(bounds, reports):
    """The top layer fails in step 3 of 6, for a part of step 2 is missing, and so the next one in step 2.  Where a launch ends
    between the two, the next layer is the first to wait in vain, and reports itself; the top one in the launch after."""
    case = Stack(6, 3, 8, 24, layers=2)
    seen = []

    def backward(self, *arguments):
        da = by_chunks(bounds, seen)(self, *arguments)
        faults.word(CPU).fill_(seen[reports[-1]])
        return da

    with patched(stuck.dead(0)) as kernels:
        kernels.host.Cooperative.backward = backward
        stuck.check_layers(case, "backward", kernels, 0, True)
    assert [n for n, report in enumerate(seen) if report] == reports


# ---- gradients chunk by chunk ---------------------------------------------------------------------------------------

T, B, I, H = 7, 3, 5, 4
NEEDS = (DX, DW_IH, DW_HH, DB, DH0)


def of_layer(dtype, reverse, has_h0, needs, bounds, x_as=lambda x: x):
    """(gradients from da in chunks, the exact ones in fp64)"""
    g = torch.Generator().manual_seed(1)
    da, x, y = (torch.randn(T, B, n, generator=g).to(dtype) for n in (H, I, H))
    w_ih, w_hh, h0 = (torch.randn(*shape, generator=g).to(dtype) for shape in ((H, I), (H, H), (B, H)))
    layer = Layer(x_as(x), w_ih, w_hh, h0 if has_h0 else None, y, reverse, "ieee", needs)
    for begin, end in pairwise(bounds):
        hidden = da.clone()  # what is not final yet
        t0, t1 = times(0, end, T, reverse)
        hidden[:t0] = hidden[t1:] = float("nan")
        layer.take(hidden, begin, end)
        assert (layer.dh0 is not None) == (end == T and needs & DH0 > 0)  # once, of the last step
    da, x, y, w_ih, w_hh, h0 = (t.double() for t in (da, x, y, w_ih, w_hh, h0))
    first = h0[None] if has_h0 else torch.zeros(1, B, H, dtype=torch.float64)
    before = torch.cat([y[1:], first] if reverse else [first, y[:-1]])
    exact = (
        da @ w_ih, torch.einsum("tbh,tbi->hi", da, x), torch.einsum("tbh,tbk->hk", da, before), da.sum((0, 1)),
        da[-1 if reverse else 0] @ w_hh,
    )  # fmt: skip
    return layer.gradients(), exact


BOUNDS = [(0, 7), (0, 3, 7), (0, 1, 4, 5, 7), tuple(range(8))]


@pytest.mark.parametrize("bounds", BOUNDS, ids=str)
@pytest.mark.parametrize("reverse, has_h0", list(itertools.product([False, True], repeat=2)))
def test_gradients_of_every_subset(bounds, reverse, has_h0):
    """In fp64: the difference is the order of at most 21 additions of values up to about 10, 1e-16 each"""
    for subset in itertools.product([0, 1], repeat=5):
        needs = sum(n for n, wanted in zip(NEEDS, subset, strict=True) if wanted)
        found, exact = of_layer(torch.float64, reverse, has_h0, needs, bounds)
        for got, want, wanted in zip(found, exact, subset, strict=True):
            if wanted:
                assert got.shape == want.shape and (got - want).abs().max() < 1e-12
            else:
                assert got.numel() == 0
        assert len({t.data_ptr() for t in found if t.numel()}) == sum(subset)


@pytest.mark.parametrize("dtype, unit", [(torch.bfloat16, 2.0**-9), (torch.float16, 2.0**-12), (torch.float32, 0.0)])
def test_sums_over_chunks_are_rounded_once(dtype, unit):
    """Half a unit in the last place, and fp32's rounding of 21 products of values up to about 4, added up: 21 16 2^-24.
    Rounded in each of seven chunks they would miss it by several units."""
    found, exact = of_layer(dtype, False, True, DW_IH | DW_HH | DB, BOUNDS[-1])
    for got, want in zip(found[1:4], exact[1:4], strict=True):
        assert got.dtype is dtype
        assert ((got.double() - want).abs() <= 1.0001 * unit * 2 ** want.abs().log2().ceil() + 21 * 16 * 2.0**-24).all()


def test_x_by_chunks():
    """a function of the time steps in place of x"""
    asked = []

    def of(x):
        return lambda t0, t1: asked.append((t0, t1)) or x[t0:t1]

    found, exact = of_layer(torch.float64, False, True, DW_IH, (0, 3, 7), of)
    assert (found[1] - exact[1]).abs().max() < 1e-12 and asked == [(4, 7), (0, 4)]


@pytest.mark.interpret
def test_dropped_chunks_are_parts_of_the_whole():
    y = torch.randn(5, 3, 21)
    seed = torch.tensor([4])
    whole = dropout.drop(y, seed, 2, 30000)
    assert torch.equal(dropout.drop(y[2:4], seed, 2, 30000, 2), whole[2:4])
    assert not torch.equal(dropout.drop(y[2:4], seed, 2, 30000), whole[2:4])


@pytest.fixture
def launched(monkeypatch):
    """(begin, end) of every backward launch of a grid"""
    original, found = Launcher.__call__, []

    def call(self, tensors, out, scalars):
        if self.kernel is grid.grid and tensors[grid.TENSORS.index("last")] is None:
            found.append(scalars[2:4])
        return original(self, tensors, out, scalars)

    monkeypatch.setattr(Launcher, "__call__", call)
    return found


@pytest.mark.interpret
@pytest.mark.parametrize("T, chunks, reverse, h0, expected", [
    (5, 4, False, True, [(0, 1), (1, 2), (2, 3), (3, 5)]),
    (2, 3, True, False, [(0, 1), (1, 2)]),
    (3, 1, False, True, [(0, 3)]),
])  # fmt: skip
def test_operator(T, chunks, reverse, h0, expected, launched):
    """The gradients of a layer whose backward pass is cut up; steps that nothing divides, fewer steps than chunks"""
    tensors = problem(T, 3, 6, 21, dtype=torch.bfloat16, h0=h0)
    exact = [None if t is None else t.detach().double().requires_grad_() for t in tensors]
    with plan.overriding(regime="grid", chunks=chunks), cooperate(races="off", channels=("out_ptr",), continued=True):
        ours = rnn_triton.rnn(*tensors, reverse=reverse)
        found = gradients(ours, like(ours), tensors)
    theirs = reference.rnn(*exact, "tanh", reverse)
    wanted = gradients(theirs, [c.double() for c in like(ours)], exact)
    assert_close(found, wanted, Case(2 * T, 3, 6, 21).tolerance)  # a second pass
    assert launched == expected


@pytest.mark.interpret
def test_other_regimes_are_never_cut():
    tensors = problem(3, 2, 6, 16, dtype=torch.bfloat16)
    y, _ = rnn_triton.rnn(*tensors)
    first = torch.autograd.grad(y.sum(), tensors, retain_graph=True)
    with plan.overriding(chunks=2):
        second = torch.autograd.grad(y.sum(), tensors)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("chunks", [0, -1, "two"])
def test_bad_numbers_of_chunks(chunks):
    with pytest.raises(ValueError, match="chunks must be an integer of at least 1"), plan.overriding(chunks=chunks):
        pass


# ---- the decision ---------------------------------------------------------------------------------------------------

H200 = hardware.RECORDS["sm_90"]


def decided(B, H, T, dtype="bf16", precision=None, asked=None, widths=None, device=H200):
    of = Problem("backward", B, 1, H, dtype, precision, "tanh")
    return schedule(of, plan.plan(of, device), ONE, device, T, widths or (H, H, H), asked)


def test_decision():
    """Where the GEMMs are small, or the recurrence fills the chip, one launch; several where both are not so"""
    assert decided(8, 512, 512).chunks == 1  # 8 us of GEMMs
    assert decided(64, 1024, 512).chunks == 1  # 128 of 132 SMs
    assert decided(64, 2048, 4096).chunks == 1
    assert decided(8, 2048, 4096).chunks > 1  # 64 of 132 SMs
    assert decided(8, 2048, 64).chunks == 1  # a tenth of little
    assert decided(8, 2048, 4096, widths=(2048,)).chunks == 1  # of one weight's gradient
    found = decided(8, 2048, 4096)
    assert found.saved_us == found.in_turn_us - found.us >= max(overlap.LEAST_US, overlap.LEAST_SHARE * found.in_turn_us)
    small = decided(8, 128, 512)
    assert small is None and isinstance(plan.plan(Problem("backward", 8, 1, 128, "bf16", None, "tanh"), H200), SingleCta)


def test_all_gradients_of_a_layer():
    x, y, w_ih, w_hh = torch.empty(2, 1, 5), torch.empty(2, 1, 3), torch.empty(3, 5), torch.empty(3, 3)
    everything = Layer(x, w_ih, w_hh, None, y, False, "ieee", sum(NEEDS))
    assert everything.widths == overlap.all_widths(ONE, 5, 3)


def test_more_free_sms_save_more():
    device = [dataclasses.replace(H200, sms=sms) for sms in (80, 100, 132)]
    of = Problem("backward", 8, 1, 2048, "bf16", None, "tanh")
    fixed = plan.plan(of, H200)
    times = [schedule(of, fixed, ONE, d, 4096, (2048,) * 3, 4).us for d in device]
    assert times == sorted(times, reverse=True)


def test_what_a_launch_more_costs():
    """Without GEMMs: it is launched, and loads W_hh; of linked lanes also W_in, and all but one of them wait to begin"""
    of = Problem("backward", 8, 1, 2048, "bf16", None, "tanh")
    p = plan.plan(of, H200)
    c, dram = latency.CONSTANTS, latency.rates(H200).dram
    for lanes, weights in ((ONE, 1), (Lanes(3, True), 6), (Lanes(2), 2)):
        found = schedule(of, p, lanes, H200, 1000, (), 5)
        fill = (lanes.count - 1) * latency.lanes_us(of, p, H200, lanes) if lanes.linked else 0.0
        each = c.node_us + c.cooperative_us + weights * 2 * 2048**2 / dram + fill
        assert abs(found.us - found.in_turn_us - 4 * each) < 1e-6


def test_gemms_beside_the_recurrence():
    """take the SMs that it leaves; the last chunk's come behind it"""
    of = Problem("backward", 8, 1, 2048, "bf16", None, "tanh")
    p = plan.plan(of, H200)
    alone, found = (schedule(of, p, ONE, H200, 4096, widths, 4) for widths in ((), (2048,)))
    gemm = found.in_turn_us - alone.in_turn_us
    waited = 3 * gemm / 4 / (16 * 16 / 132)  # for a GEMM's programs of one wave, before each launch
    assert abs(found.us - (alone.us + waited + gemm / 4)) < 1e-6


def test_what_is_asked_for():
    assert decided(64, 1024, 512, asked=5).chunks == 5
    assert decided(64, 1024, 3, asked=5).chunks == 3
    assert decided(8, 2048, 4096, asked=1) == Schedule(1, *[decided(8, 2048, 4096).in_turn_us] * 2)
    of = Problem("backward", 8, 1, 2048, "bf16", None, "tanh")
    interpreter = dataclasses.replace(H200, cooperative=False)
    assert schedule(of, plan.plan(of, H200), ONE, interpreter, 4096, (2048,) * 3).chunks == 1
    small = dataclasses.replace(of, H=128)
    assert schedule(small, plan.plan(small, H200), ONE, H200, 4096, (128,) * 3, 4) is None  # one CTA keeps its state


def test_explain():
    told = explain(4096, 8, 2048, 2048, dtype=torch.bfloat16, device=H200, direction="backward")
    found = decided(8, 2048, 4096)
    assert f"cut into {found.chunks} launches" in told and f"{found.us:.0f} us" in told and "estimated." in told
    assert "cut into" not in explain(512, 64, 1024, 1024, dtype=torch.bfloat16, device=H200, direction="backward")
    assert "cut into" not in explain(4096, 8, 2048, 2048, dtype=torch.bfloat16, device=H200)
    with plan.overriding(chunks=3):
        told = explain(512, 64, 1024, 1024, dtype=torch.bfloat16, device=H200, direction="backward")
    assert "cut into 3 launches" in told and "as asked for" in told


# ---- streams --------------------------------------------------------------------------------------------------------


class Streams:
    """Stands for torch.cuda: every stream knows what has happened before its next operation.  `forgotten`: the number of a
    wait that does nothing."""

    def __init__(self, forgotten=None):
        self.forgotten, self.waits = forgotten, 0
        self.now = self.caller = self.Stream()
        self.caller.before.add("allocated")

    def Stream(self, device=None, priority=0):
        made = SimpleNamespace(before=set(), priority=priority, device=device, device_index=0, cuda_stream=object())

        def wait(before):
            self.waits += 1
            if self.waits - 1 != self.forgotten:
                made.before |= before

        made.record_event = lambda: frozenset(made.before)
        made.wait_event = wait
        made.wait_stream = lambda other: wait(frozenset(other.before))
        return made

    def current_stream(self, device):
        return self.now

    @contextlib.contextmanager
    def stream(self, stream):
        previous, self.now = self.now, stream
        try:
            yield
        finally:
            self.now = previous


STEPS = [(0, 3), (3, 5), (5, 7)]


def run_beside(monkeypatch, forgotten=None, failing=None):
    """The pass with its steps on `Streams`, which raise AssertionError where something begins too early"""
    streams = Streams(forgotten)
    monkeypatch.setattr(overlap, "torch", SimpleNamespace(cuda=streams))
    monkeypatch.setattr(overlap, "_sides", {})

    def launch(begin, end):
        assert "allocated" in streams.now.before, "memory that its former user may still need"
        assert streams.now is not streams.caller and streams.now.priority == -1
        streams.now.before.add(("launch", begin))

    def take(da, begin, end):
        assert streams.now is streams.caller
        assert ("launch", begin) in streams.now.before, "da is read before it is there"
        taken.append((begin, end))
        if begin == failing:
            raise MemoryError

    taken = []
    started = SimpleNamespace(da=SimpleNamespace(device="cuda"), launch=launch)
    try:
        overlap._beside(started, STEPS, SimpleNamespace(take=take))
    finally:
        assert {("launch", begin) for begin, _ in STEPS} <= streams.caller.before, "memory is given back too early"
    assert taken == STEPS
    return streams


def test_streams(monkeypatch):
    assert run_beside(monkeypatch).waits == 1 + len(STEPS)


@pytest.mark.parametrize("forgotten", range(1 + len(STEPS)))
def test_every_wait_is_needed(monkeypatch, forgotten):
    with pytest.raises(AssertionError):
        run_beside(monkeypatch, forgotten)


def test_the_streams_are_joined_after_an_error(monkeypatch):
    """as memory is given back then, and a capture ended"""
    with pytest.raises(MemoryError):
        run_beside(monkeypatch, failing=3)
    with pytest.raises(AssertionError, match="given back too early"):
        run_beside(monkeypatch, forgotten=3, failing=3)


@pytest.mark.parametrize("cuda, chunks, expected", [(True, 3, True), (True, 1, False), (False, 3, False)])
def test_streams_where_there_are_some(monkeypatch, cuda, chunks, expected):
    """of a GPU, for more than one chunk; the same steps in all cases"""
    calls, beside = [], []

    def run(begin, end):
        calls.append((begin, end))

    started = Backward(SimpleNamespace(is_cuda=cuda, device=CPU), 7, run)
    site = SimpleNamespace(start_backward=lambda: started, plan=plan.plan(Problem("backward", 8, 1, 512, "bf16", None, "tanh"), H200),
                           problem=None, lanes=ONE, chunks={(7, (), chunks): chunks})  # fmt: skip
    work = SimpleNamespace(widths=(), take=lambda da, begin, end: calls.append((begin, end)))
    monkeypatch.setattr(overlap, "_beside", lambda _, steps, __: beside.append(steps))
    with plan.overriding(chunks=chunks):
        assert overlap.backward(work, site) is started.da
    steps = [(0, 2), (2, 4), (4, 7)] if chunks == 3 else [(0, 7)]
    assert beside == [steps] * expected
    assert calls == ([] if expected else [s for s in steps for _ in range(2)])


def test_every_stream_of_the_caller_has_one_of_its_own(monkeypatch):
    streams = Streams()
    monkeypatch.setattr(overlap, "torch", SimpleNamespace(cuda=streams))
    monkeypatch.setattr(overlap, "_sides", {})
    one, two = streams.Stream(), streams.Stream()
    assert overlap._side(one) is overlap._side(one) is not overlap._side(two)


# ---- on a GPU only --------------------------------------------------------------------------------------------------


def step(T, B, H, dtype=torch.bfloat16, reverse=False):
    """A function of the number of chunks: all gradients of a layer"""
    tensors = [t.detach().cuda().requires_grad_() for t in problem(T, B, H, H, dtype=dtype)]
    cotangents = [t.cuda() for t in like([torch.empty(T, B, H, dtype=dtype), torch.empty(B, H, dtype=dtype)])]

    def run(chunks):
        with plan.overriding(regime="grid", chunks=chunks):
            return gradients(rnn_triton.rnn(*tensors, reverse=reverse), cotangents, tensors)

    return run


def assert_as_without(found, whole, dtype):
    """Sums over time differ in the order of fp32 additions and the rounding of two of them (dw_hh and h0's term of it), 3 units;
    the rest is the same but for cuBLAS, which may choose another kernel for fewer rows."""
    unit = {torch.bfloat16: 2.0**-8, torch.float32: 2.0**-11}[dtype]
    assert_close(found, whole, 3 * unit)


@pytest.mark.gpu
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("T, B, H", [(50, 8, 1024), (33, 70, 512)])
def test_gradients_with_chunks(T, B, H, dtype, reverse):
    run = step(T, B, H, dtype, reverse)
    whole = run(1)
    for chunks in (2, 5):
        first, second = run(chunks), run(chunks)
        assert_as_without(first, [w.double() for w in whole], dtype)
        assert all(torch.equal(bits(a), bits(b)) for a, b in zip(first, second, strict=True))
    faults.synchronize("cuda")


@pytest.mark.gpu
def test_on_another_stream_and_reused_memory():
    """Twenty passes whose memory is given back and taken again at once"""
    run = step(40, 8, 1024)
    expected = run(4)
    torch.cuda.synchronize()
    other = torch.cuda.Stream()
    other.wait_stream(torch.cuda.current_stream())
    for _ in range(20):
        for stream in (other, torch.cuda.current_stream()):
            with torch.cuda.stream(stream):
                found = run(4)
                same = [torch.equal(bits(f), bits(e)) for f, e in zip(found, expected, strict=True)]
                del found
                torch.empty(1 << 24, device="cuda").fill_(float("nan"))
            assert all(same)
    faults.synchronize("cuda")


@pytest.mark.gpu
def test_cuda_graph():
    run = step(40, 8, 1024)
    run(4)
    expected = run(4)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run(4)
    for _ in range(3):
        for t in captured:
            t.fill_(float("nan"))
        graph.replay()
        faults.synchronize("cuda")
        assert all(torch.equal(bits(c), bits(e)) for c, e in zip(captured, expected, strict=True))
