"""The engine over a group of CTAs (kernels/cta_group.py), through launch/recurrence.py with hand-written plans.

Without a GPU: in the cooperative interpreter (tests/cooperative), with its race detector, in several schedules and
memory models, outputs poisoned.  On one: the same cases as real launches, and what only a GPU shows.  The reference is
reference.py in fp64 of the same rounded inputs; tolerances: support/grids.py.  That these tests can fail is what
test_mutants.py shows.
"""

import itertools
import time

import pytest
import torch
from support import stuck
from support.grids import MODES, Case, assert_close, assert_same_where_finite, bits
from support.mutants import Change, patched
from support.problems import SMALL_SIGNALS, gradients, like, problem

import rnn_triton
from rnn_triton.cells import reference
from rnn_triton.errors import ExchangeError
from rnn_triton.kernels import exchange
from rnn_triton.launch import faults, operands

DIRECTIONS = ("forward", "backward")
both = pytest.mark.parametrize("direction", DIRECTIONS)
protocols = pytest.mark.parametrize("protocol", ["sentinel", "counter"])

CASES = [
    # one step; one row; odd and prime sizes, rows padded by the launch
    Case(1, 1, 1, 17),
    Case(1, 3, 5, 40, protocol="counter", first=False),
    Case(2, 1, 3, 47, kind="fp16", protocol="counter"),
    Case(3, 5, 13, 37, kind="tf32"),
    Case(3, 7, 31, 19, kind="tf32x3", protocol="counter"),
    # h0, dhn, dy, biases absent
    Case(3, 2, 9, 33, first=False, bias=(True, False)),
    Case(3, 2, 9, 33, kind="tf32", dy=False, bias=(False, False), protocol="counter"),
    # batch groups, interleaved tiles, unequally many, the last one partly filled
    Case(3, 19, 16, 24, groups=2, protocol="counter"),
    Case(2, 11, 8, 20, kind="tf32", groups=2),
    Case(3, 17, 16, 24, kind="fp16", first=False),
    Case(2, 37, 8, 24, block_b=16, groups=2, kind="fp16", protocol="counter"),
    Case(3, 9, 8, 24, block_b=16, kind="tf32x3"),
    # warps, units, chains
    Case(3, 3, 20, 72, warps=8, chains=1),
    Case(2, 3, 20, 72, warps=16, units=32, protocol="counter"),
    Case(3, 3, 70, 80, units=64, kind="fp16", chains=1),
    Case(2, 3, 20, 40, warps=8, kind="tf32", units=32, chains=1),
    Case(2, 2, 12, 24, warps=16, kind="tf32x3", protocol="counter"),
    # several K tiles, some or all of W_hh in shared memory
    Case(3, 3, 9, 200, shared=1, units=64, protocol="counter"),
    Case(2, 3, 9, 140, shared=2, units=64, kind="fp16"),
    Case(2, 3, 9, 140, shared=3, units=64, kind="tf32", chains=1),
    # homes of W_ih
    Case(3, 3, 150, 24, home="shared", shared=1),
    Case(3, 3, 100, 20, home="shared", kind="tf32", protocol="counter", first=False),
    Case(3, 9, 300, 24, home="shared", kind="fp16"),
    Case(2, 9, 150, 24, home="shared", kind="tf32x3", protocol="counter", groups=2),
    Case(3, 9, 21, 37, home="gemm", groups=2),
    Case(3, 3, 5, 21, home="gemm", kind="tf32", protocol="counter", first=False, bias=(False, True)),
    # batch tiles of 32 rows
    Case(3, 37, 9, 24, block_b=32),
    Case(2, 67, 20, 40, block_b=32, groups=2, kind="fp16", protocol="counter", chains=1, nonlinearity="relu"),
    Case(2, 33, 9, 140, block_b=32, units=64, shared=3, kind="tf32", chains=1, first=False),
    Case(2, 5, 150, 24, block_b=32, home="shared", kind="tf32x3"),
    # where x is loaded, how often the error word is, when the state first is
    Case(4, 11, 20, 33, x_loads="before", look_every=1, probe_delay=0),
    Case(3, 3, 100, 21, x_loads="before", home="shared", kind="tf32", nonlinearity="relu"),
    Case(5, 19, 9, 24, look_every=2, groups=2, kind="fp16"),
    Case(3, 3, 9, 33, look_every=1, protocol="counter", x_loads="before", probe_delay=0),
    # reverse time, relu
    Case(3, 3, 9, 33, reverse=True, kind="fp16", nonlinearity="relu"),
    Case(3, 11, 9, 33, reverse=True, protocol="counter", groups=2),
    Case(4, 3, 9, 40, nonlinearity="relu", kind="tf32", protocol="counter"),
    Case(3, 3, 9, 40, nonlinearity="relu", first=False),
]
WEIGHTS_OF_FORWARD_ONLY = ("shared", "gemm")


@pytest.mark.executed(
    "ptx-forward-T=3-B=3-I=20-H=72-warps=8-chains=1",
    "ptx-backward-T=3-B=2-I=9-H=33-first=False-bias=True,False",
    "ptx-forward-T=3-B=3-I=9-H=200-units=64-shared=1-protocol=counter",
    "ptx-backward-T=3-B=19-I=16-H=24-groups=2-protocol=counter",
    "ptx-forward-T=2-B=11-I=8-H=20-kind=tf32-groups=2",
    "ptx-backward-T=3-B=5-I=13-H=37-kind=tf32",
    "ptx-forward-T=3-B=7-I=31-H=19-kind=tf32x3-protocol=counter",
    "ptx-backward-T=4-B=3-I=9-H=40-kind=tf32-protocol=counter-nonlinearity=relu",
)
@pytest.mark.thin(3)
@pytest.mark.parametrize("direction, case, mode", [
    pytest.param(direction, case, MODES[i % len(MODES)], id=f"{direction}-{case}")
    for i, (case, direction) in enumerate(itertools.product(CASES, DIRECTIONS))
    if not (direction == "backward" and case.home in WEIGHTS_OF_FORWARD_ONLY)  # it has no W_ih
])  # fmt: skip
def test_values(direction, case, mode, device):
    case.check(direction, device=device, mode=mode)


@pytest.mark.executed
@pytest.mark.parametrize("direction, protocol", [
    ("forward", "sentinel"), ("backward", "counter"),
    *(pytest.param(*c, marks=pytest.mark.long) for c in (("forward", "counter"), ("backward", "sentinel"))),
])  # fmt: skip
def test_every_schedule_gives_the_same_bits(direction, protocol, device):
    """Three tiles of two groups, ragged; the modes are the interpreter's, on a GPU they are repetitions."""
    case = Case(2, 19, 8, 24, groups=2, protocol=protocol)
    tensors = case.inputs(direction)
    first, *others = (case.run(direction, tensors, device, mode=mode) for mode in MODES)
    assert_close(first, case.expected(direction, tensors), case.tolerance)
    for other in others:
        assert all(torch.equal(bits(a), bits(b)) for a, b in zip(first, other, strict=True))


@pytest.mark.interpret
def test_programs_wait():
    """The schedules do make programs wait for each other, under both protocols."""
    for protocol in ("sentinel", "counter"):
        case = Case(3, 3, 8, 40, protocol=protocol)
        launch, tensors = case.launch("forward"), case.inputs("forward")
        with case.interpreted("forward", mode=dict(schedule="starve", seed=0)) as session:
            launch.forward(*tensors[:-1], tensors[-1:])
        assert session.stats["programs"] == 3 and session.stats["polls"] > 0


@pytest.mark.executed
@pytest.mark.thin(3)
@both
@pytest.mark.parametrize("kind", ["bf16", "tf32"])
def test_strides(direction, kind, device):
    """x and dy transposed, expanded, with a stride inside, and misaligned"""
    case = Case(2, 3, 24, 24, kind=kind)
    tensors = case.inputs(direction)
    T, B, N = 2, 3, 24
    g = torch.Generator().manual_seed(3)
    big = torch.randn(B, T, 2 * N + 8, generator=g).to(case.dtype)
    for strided in (
        big[:, :, :N].transpose(0, 1),
        big[:, :, 1 : 2 * N : 2].transpose(0, 1),
        big[:1, :, 1 : N + 1].transpose(0, 1).expand(T, B, N),
        big[:, :1, :N].transpose(0, 1).expand(T, B, N),
    ):
        # .to(device) keeps these strides: nothing is contiguous that was not
        tensors[0 if direction == "forward" else 2] = strided
        case.check(direction, tensors, device)


def set_bits(tensor, index):
    """0xFF bytes there: a NaN, and the sentinel's bits"""
    integers = {2: torch.int16, 4: torch.int32}[tensor.element_size()]
    tensor.view(integers)[index] = -1


FORWARD = dict(x=0, w_ih=1, w_hh=2, b_ih=3, h0=5)
BACKWARD = dict(w_hh=0, y=1, dy=2, dhn=3)
NAN, INF = float("nan"), float("inf")


@pytest.mark.executed
@pytest.mark.thin(3)
@protocols
@pytest.mark.parametrize("direction, where, kind, nonlinearity", [
    ("forward", "x", "bf16", "tanh"), ("forward", "h0", "tf32", "relu"), ("forward", "w_hh", "fp16", "relu"),
    ("forward", "w_ih", "tf32x3", "tanh"), ("backward", "dy", "fp16", "tanh"), ("backward", "dhn", "bf16", "relu"),
    ("backward", "w_hh", "tf32", "tanh"), ("backward", "y", "bf16", "tanh"),
])  # fmt: skip
def test_nan_and_inf(direction, where, kind, nonlinearity, protocol, device):
    """They reach what they reach in torch, no other row of the batch, and nobody waits for them.  The infinite value
    and the NaN are in different rows, of the batch or of the weights."""
    case = Case(2, 4, 9, 21, kind=kind, nonlinearity=nonlinearity, protocol=protocol)
    tensors = case.inputs(direction)
    tensor = tensors[(FORWARD if direction == "forward" else BACKWARD)[where]]
    if tensor.dim() == 3:
        tensor[0, 1, 2], tensor[1, 2, 3] = INF, NAN
    else:
        tensor[1, 2], tensor[2, 3] = -INF, NAN
    expected = case.expected(direction, tensors)
    assert not all(e.isfinite().all() for e in expected)
    results = case.run(direction, tensors, device, mode=MODES[1])
    assert_same_where_finite(results, expected, case.tolerance)


@pytest.mark.executed
@pytest.mark.thin(3)
@pytest.mark.parametrize("kind", ["bf16", "tf32"])
@pytest.mark.parametrize(
    "direction, where", [("forward", "x"), ("forward", "h0"), ("backward", "dy"), ("backward", "y")]
)
def test_sentinel_as_data(direction, where, kind, device):
    """0xFF bytes in the data are a NaN like another: no stall, no word of them published."""
    case = Case(3, 4, 9, 21, kind=kind, nonlinearity="relu" if direction == "forward" else "tanh")
    tensors = case.inputs(direction)
    set_bits(tensors[(FORWARD if direction == "forward" else BACKWARD)[where]], (Ellipsis, 1, slice(0, 9)))
    expected = case.expected(direction, tensors)
    assert any(e.isnan().any() for e in expected)
    assert_same_where_finite(case.run(direction, tensors, device), expected, case.tolerance)
    faults.check(torch.device(device))


@pytest.mark.executed
@both
def test_infinite_weight_in_one_step(direction, device):
    """Backward there is no product with W_hh at the first step; forward 0 W_hh is NaN, as in torch."""
    case = Case(1, 3, 8, 21, first=False)
    tensors = case.inputs(direction)
    tensors[2 if direction == "forward" else 0][5, 7] = INF
    expected = case.expected(direction, tensors)
    assert all(e.isfinite().all() for e in expected) == (direction == "backward")
    assert_same_where_finite(case.run(direction, tensors, device), expected, case.tolerance)


@pytest.mark.executed
@protocols
def test_infinite_states_stay_in_their_row(protocol, device):
    """relu lets inf through, and inf times the zeros of the padding is NaN, which must not reach the next step."""
    case = Case(3, 2, 8, 21, kind="tf32", nonlinearity="relu", protocol=protocol, first=False, bias=(False, False))
    tensors = case.inputs("forward")
    x, w_ih, w_hh, *_ = tensors
    w_hh.abs_().clamp_(min=0.01)
    w_ih.abs_()
    x.abs_()[0, 1] = INF
    expected = case.expected("forward", tensors)
    assert expected[0][:, 1].isposinf().all() and expected[0][:, 0].isfinite().all()
    assert_same_where_finite(case.run("forward", tensors, device), expected, case.tolerance)


@pytest.mark.parametrize(
    "kind, home", [("bf16", "registers"), ("fp16", "gemm"), ("tf32", "registers"), ("tf32x3", "shared")]
)
def test_saturation(kind, home, device):
    """Pre-activations far beyond exp's range: +-1 exactly, and gradients of zero behind them"""
    case = Case(2, 3, 8, 21, kind=kind, home=home)
    x, w_ih, *rest = case.inputs("forward")
    x = x.sign() * 1e4
    x[..., 1:] = 0
    y, hn = case.run("forward", [x, torch.full_like(w_ih, 0.75), *rest], device)
    assert torch.equal(y.cpu(), x[..., :1].sign().expand_as(y)) and torch.equal(hn, y[-1])
    w_hh, _, dy, dhn = case.inputs("backward")
    (da,) = case.run("backward", [w_hh, y.cpu(), dy, dhn], device)
    assert torch.equal(da, torch.zeros_like(da))


@pytest.mark.parametrize("kind", ["bf16", "fp16", "tf32", "tf32x3"])
def test_small_signals(kind, device):
    Case(3, 3, 8, 21, kind=kind, signal=SMALL_SIGNALS[kind]).check("forward", device=device)


# ---- stuck launches -------------------------------------------------------------------------------------------------


@pytest.mark.thin(3)
@pytest.mark.interpret
@pytest.mark.parametrize("direction, case", stuck.CASES, ids=str)
def test_stuck(direction, case):
    """and the next launch is right"""
    with patched(stuck.DEAD) as kernels:
        stuck.check(case, direction, kernels)
    case.having(T=2, B=5, groups=1).check(direction)
    faults.check(torch.device("cpu"))


def polls_of_a_failed_group(look_every, limit, *changes):
    """One CTA is left of a group of two, for 19 steps of two tiles, of which it can do none"""
    case = Case(22, 17, 8, 24, groups=1, nonlinearity="relu", look_every=look_every)
    dead = Change(stuck.DEAD.file, stuck.DEAD.old, stuck.DEAD.new.replace("2 * CTAS - 1", "CTAS - 1"))
    with patched(dead, *changes) as kernels:
        kernels.operands.SPIN_LIMIT = limit
        launch, tensors = case.launch("forward", kernels.recurrence), case.inputs("forward")
        mode = dict(schedule="rr", races="off", max_idle=100 * limit, continued=True, poisoned=())
        with case.interpreted("forward", mode=mode) as session:
            y, *_ = launch.forward(*tensors[:-1], tensors[-1:])
    faults.word(torch.device("cpu")).zero_()
    assert y[3:].isnan().all()  # of all units: relu would have made zeros of the sentinel's NaN
    return session.stats["polls"]


@pytest.mark.interpret
@pytest.mark.parametrize("look_every", [4, *(pytest.param(n, marks=pytest.mark.long) for n in (1, 16))])
def test_a_group_that_has_failed_stops_waiting(look_every):
    """Within so many turns, each of which polls until it looks at the error word"""
    limit, per_look = 128, int(exchange.POLLS_PER_LOOK.value)
    assert limit <= polls_of_a_failed_group(look_every, limit) <= limit + (look_every + 1) * per_look


@pytest.mark.interpret
@pytest.mark.parametrize("old, new", [
    ("look = turn % TILE.look_every == TILE.look_every - 1", "look = turn < 0"),
    pytest.param("mask=look, other=error, volatile", "mask=look, other=SENTINEL, volatile", marks=pytest.mark.long),
])  # fmt: skip
def test_a_group_that_goes_on_waiting_is_noticed(old, new):
    """for it never looks between waits, or forgets what it has seen"""
    assert polls_of_a_failed_group(4, 128, Change("cta_group.py", old, new)) > 128 + 10 * int(exchange.POLLS_PER_LOOK.value)


@pytest.mark.interpret
@protocols
def test_programs_that_do_not_run_together(protocol, monkeypatch):
    """Two of three programs at a time: what a launch that is not cooperative may come to.  The third finds the group
    failed and leaves the same."""
    monkeypatch.setattr(operands, "SPIN_LIMIT", 128)
    case = Case(3, 3, 8, 40, protocol=protocol)
    tensors = case.inputs("forward")
    y, hn = case.run("forward", tensors, mode=dict(resident=2, races="off", max_idle=2000))
    with pytest.raises(ExchangeError, match="group 0 .* time step 1 "):
        faults.check(torch.device("cpu"))
    assert_close([y[:1]], [case.expected("forward", tensors)[0][:1]], case.tolerance)
    assert y[1:].isnan().all() and hn.isnan().all()


@pytest.mark.interpret
def test_a_report_stops_the_next_call(monkeypatch):
    """of any layer on the device, and only that one: nobody need ask for it"""
    monkeypatch.setattr(operands, "SPIN_LIMIT", 64)
    case = Case(2, 3, 8, 24)
    tensors = case.inputs("forward")
    case.run("forward", tensors, mode=dict(resident=1, races="off", max_idle=2000))
    with pytest.raises(ExchangeError):
        rnn_triton.rnn(*tensors)
    y, _ = rnn_triton.rnn(*tensors)
    assert_close([y], case.expected("forward", tensors)[:1], case.tolerance)


# ---- on a GPU only --------------------------------------------------------------------------------------------------

CUDA = torch.device("cuda")
PRODUCTS = {"bf16": (torch.bfloat16, None), "fp16": (torch.float16, None), "tf32": (torch.float32, "tf32")}


def layer(kind, T, B, H, protocol, reverse=False, nonlinearity="tanh"):
    """(function of nothing: outputs and gradients of a layer in the grid regime, the tensors, the cotangents)"""
    dtype, precision = PRODUCTS[kind]
    tensors = [t.detach().to(CUDA).requires_grad_() for t in problem(T, B, H, H, dtype=dtype)]
    cotangents = [c.to(CUDA) for c in like([torch.empty(T, B, H, dtype=dtype), torch.empty(B, H, dtype=dtype)])]

    def step():
        with rnn_triton.overriding(regime="cta_group", protocol=protocol):
            ours = rnn_triton.rnn(*tensors, nonlinearity=nonlinearity, reverse=reverse, precision=precision)
            return [*ours, *gradients(ours, cotangents, tensors)]

    return step, tensors, cotangents


@pytest.mark.gpu
@pytest.mark.parametrize(
    "protocol, B, reverse, nonlinearity", [("sentinel", 8, False, "tanh"), ("counter", 70, True, "relu")]
)
@pytest.mark.parametrize("kind", list(PRODUCTS))
@pytest.mark.parametrize("H", [512, 1024, 1760])
def test_layers(H, kind, protocol, B, reverse, nonlinearity):
    """y, hn and all gradients of a layer, by plans that the planner makes"""
    T = 20
    step, tensors, cotangents = layer(kind, T, B, H, protocol, reverse, nonlinearity)
    results = step()
    faults.synchronize(CUDA)
    exact = [t.detach().double().requires_grad_() for t in tensors]
    expected = reference.rnn(*exact, nonlinearity, reverse)
    limit = Case(2 * T, B, H, H, kind=kind).tolerance  # a second pass
    assert_close(results, [*expected, *gradients(expected, [c.double() for c in cotangents], exact)], limit)


@pytest.mark.gpu
@protocols
def test_bitwise_the_same_with_a_second_stream_busy(protocol):
    """Twenty runs beside a stream of GEMMs that take and leave SMs at any time"""
    step, *_ = layer("bf16", 50, 16, 1024, protocol)
    expected = step()
    faults.synchronize(CUDA)
    side, a = torch.cuda.Stream(), torch.randn(2048, 2048, device=CUDA)
    for _ in range(20):
        with torch.cuda.stream(side):
            for _ in range(4):
                a = (a @ a).clamp_(-1, 1)
        results = step()
        assert all(torch.equal(bits(r), bits(e)) for r, e in zip(results, expected, strict=True))
    faults.synchronize(CUDA)


@pytest.mark.gpu
@protocols
def test_cuda_graph(protocol):
    """Captured and replayed: bitwise what it is without"""
    step, *_ = layer("bf16", 20, 9, 512, protocol)
    step()
    expected = step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    for _ in range(3):
        for t in captured:
            t.detach().fill_(float("nan"))
        graph.replay()
        faults.synchronize(CUDA)
        assert all(torch.equal(bits(c), bits(e)) for c, e in zip(captured, expected, strict=True))


@pytest.mark.gpu
@pytest.mark.parametrize("direction, case", stuck.CASES, ids=str)
def test_stuck_on_a_gpu(direction, case):
    """As test_stuck, at the real limit: within ten seconds, in which the host spins"""
    with patched(stuck.DEAD) as kernels:
        limit = kernels.operands.SPIN_LIMIT
        stuck.check(case, direction, kernels, 1 << 14, "cuda")  # compiles; more than the skew of a first launch
        start = time.process_time()
        stuck.check(case, direction, kernels, limit, "cuda")
        assert time.process_time() - start < 10
    case.check(direction, device="cuda")
    faults.synchronize(CUDA)


@pytest.mark.gpu
def test_more_programs_than_fit_raise():
    """at the launch: nothing waits for a CTA that cannot come"""
    sms = torch.cuda.get_device_properties(CUDA).multi_processor_count
    case = Case(2, 8 * 33 * sms, 8, 24, groups=33 * sms)  # 66 an SM; at most 32 fit
    with pytest.raises(RuntimeError, match="cooperative"):
        case.run("forward", case.inputs("forward"), "cuda")
    case.having(B=3, groups=1).check("forward", device="cuda")
