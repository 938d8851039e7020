"""Several recurrences in a launch (kernels/cta_group.py, kernels/one_cta.py): stacks as a wavefront, both directions side by side,
dropout between layers.  The operator over them is in test_stack_op.py.

Launches by hand-written plans (support/stacks.py) as in test_grid.py: in the cooperative interpreter, whose schedules
make layers run ahead and fall behind, and on a GPU.  That the tests of the wait between layers can fail is what
test_stack_mutants.py shows.
"""

import itertools

import pytest
import torch
from cooperative import Schedule
from support import stuck
from support.grids import MODES, assert_close, assert_same_where_finite, bits
from support.mutants import Change, patched
from support.stacks import Stack, dropout_masks

import rnn_triton
from rnn_triton.errors import ExchangeError
from rnn_triton.launch import faults
from rnn_triton.plan import choose, hardware, latency, sharing
from rnn_triton.plan.problem import Bundle, OneCta, Problem

CPU = torch.device("cpu")
DIRECTIONS = ("forward", "backward")
both_passes = pytest.mark.parametrize("direction", DIRECTIONS)

CASES = [
    # one step; one row; odd sizes; a group of several CTAs a layer, tiles in turn, more layers than steps
    Stack(1, 1, 1, 17),
    Stack(3, 9, 13, 37, kind="tf32", layers=3, groups=2),
    Stack(2, 17, 24, 24, layers=4, first=False, bias=(True, False)),
    Stack(4, 3, 5, 40, kind="fp16", dy=False, units=32),
    # x wider than the layers: projected before the launch
    Stack(3, 3, 70, 20, kind="tf32x3", units=32, bias=(False, False)),
    # W_in of the recurrences in shared memory, several K tiles, warps
    Stack(2, 3, 100, 140, units=64, home="shared", kind="tf32"),
    Stack(3, 3, 9, 72, warps=8, chains=1, nonlinearity="relu"),
    Stack(2, 9, 30, 24, block_b=16, kind="fp16", nonlinearity="relu"),
    # each layer on one CTA
    Stack(3, 9, 9, 21, layers=3, depth=2),
    Stack(3, 3, 40, 50, kind="tf32", nonlinearity="relu", first=False, depth=1, chains=1),
    Stack(2, 3, 33, 64, kind="tf32x3", dy=False, depth=1, chains=1),
    Stack(3, 3, 70, 20, bias=(False, True), depth=2),
    Stack(4, 3, 5, 40, kind="fp16", layers=4, dy=False, depth=2),
    Stack(1, 1, 1, 17, depth=1),
    # both directions
    Stack(3, 9, 11, 21, both=True, kind="fp16", protocol="counter", groups=2),
    Stack(3, 3, 40, 24, both=True, kind="tf32", home="gemm", dy=False),
    Stack(2, 11, 9, 33, both=True, home="gemm", first=False, nonlinearity="relu"),
    Stack(3, 9, 16, 21, both=True, depth=2),
    Stack(2, 3, 9, 24, both=True, home="gemm", kind="fp16", dy=False, depth=1),
    Stack(3, 3, 7, 20, both=True, home="shared", kind="fp64", chains=1, depth=1),
    Stack(3, 3, 7, 20, both=True, home="gemm", kind="ieee", first=False, chains=1, depth=1),
    # batch tiles of 32 rows
    Stack(3, 37, 9, 24, layers=3, block_b=32, chains=1),
    Stack(2, 35, 9, 21, both=True, block_b=32, kind="tf32", protocol="counter"),
    # where x is loaded, how often the error word is, when the state first is
    Stack(3, 11, 24, 24, layers=3, x_loads="before", look_every=1, probe_delay=0),
]


BY_DEFAULT = {
    (0, "forward"), (8, "forward"), (9, "backward"), (11, "backward"), (14, "backward"), (15, "forward"), (18, "forward"),
    (20, "backward"),
}  # fmt: skip


@pytest.mark.executed("ptx-backward-T=3-B=9-I=16-H=21-both=True-depth=2")
@pytest.mark.parametrize("direction, case, mode", [
    # a few of them by default, under different schedules; all with --long
    pytest.param(direction, case, MODES[i % len(MODES)], id=f"{direction}-{case}",
                 marks=() if (i // 2, direction) in BY_DEFAULT else pytest.mark.long)
    for i, (case, direction) in enumerate(itertools.product(CASES, DIRECTIONS))
    if not (direction == "backward" and case.both and case.home in ("gemm",) and case.depth is None)
])  # fmt: skip
def test_values(direction, case, mode, device):
    case.check(direction, device=device, mode=mode)


@pytest.mark.executed
@pytest.mark.long
@pytest.mark.parametrize("depth", [None, 1, 2])
@pytest.mark.parametrize("direction, B, dropped", [
    ("forward", 3, 30000), ("backward", 3, None), *((d, 9, p) for d in DIRECTIONS for p in (None, 30000)),
])  # fmt: skip
def test_every_schedule_gives_the_same_bits(direction, B, dropped, depth, device):
    """Layers that run ahead of the next one to the end, and that are starved: nothing is overrun."""
    case = Stack(3, B, 8, 24, layers=3, dropped=dropped, depth=depth)
    tensors = case.inputs(direction)
    first, *others = (case.run(direction, tensors, device, mode=mode, seed=3) for mode in MODES)
    if dropped is None:
        assert_close(first, case.expected(direction, tensors), case.tolerance)
    for other in others:
        assert all(torch.equal(bits(a), bits(b)) for a, b in zip(first, other, strict=True))


@pytest.mark.long
@pytest.mark.interpret
@both_passes
@pytest.mark.parametrize("depth", [None, 1, 2])
def test_a_layer_far_behind_is_not_overrun(direction, depth):
    """The first lane runs all its steps, and so on, lane by lane; and the last lane is always the last to run."""
    case = Stack(6, 3, 8, 24, layers=3, depth=depth)
    programs = 2 if depth is None else 1
    tensors = case.inputs(direction)
    order = []

    class InOrder(Schedule):
        """The first program that can run, in the order of lanes or against it"""

        def __init__(self, sign):
            super().__init__(0)
            self.sign = sign

        def pick(self, ready, last):
            chosen = sorted(ready)[0 if self.sign > 0 else -1]
            if not order or order[-1] != chosen:
                order.append(chosen)
            return chosen

    for sign in (1, -1):
        order.clear()
        case.check(direction, tensors, mode=dict(schedule=InOrder(sign)))
        if sign > 0:  # nobody of a lane ran before the lanes before it were through: six steps ahead
            bundle = [p // programs for p in order]
            assert bundle == sorted(bundle) and set(bundle) == {0, 1, 2}


@pytest.mark.executed("ptx-bf16-2-forward", "ptx-bf16-2-backward")
@both_passes
@pytest.mark.parametrize("kind, depth", [
    ("bf16", 2), *(pytest.param(*case, marks=pytest.mark.long) for case in (("tf32", 1), ("bf16", None), ("tf32", None))),
])  # fmt: skip
def test_dropout_in_both_passes(direction, kind, depth, device):
    """against the masks that the kernel of whole tensors makes of the same seed"""
    case = Stack(2, 9, 9, 40, layers=3, dropped=20000, bottom=2, kind=kind, depth=depth)
    tensors = case.inputs(direction)
    masks = dropout_masks(case, seed=5, device=device)
    kept = torch.stack(masks) != 0
    assert 0.6 < kept.double().mean() < 0.8 and not torch.equal(kept[0], kept[1])
    results = case.run(direction, tensors, device, mode=MODES[1], seed=5)
    assert_close(results, case.expected(direction, tensors, masks), case.tolerance)


@pytest.mark.executed
@pytest.mark.long
@both_passes
@pytest.mark.parametrize("dropped", [0, 65536])
@pytest.mark.parametrize("depth", [None, 1])
def test_dropout_of_nothing_and_of_all(direction, dropped, depth, device):
    case = Stack(2, 3, 9, 24, dropped=dropped, kind="tf32", depth=depth)
    tensors = case.inputs(direction)
    masks = [torch.full((2, 3, 24), 1.0 - dropped / 65536, dtype=torch.float64)]
    assert_close(case.run(direction, tensors, device, seed=1), case.expected(direction, tensors, masks), case.tolerance)


@pytest.mark.executed
@pytest.mark.parametrize("depth", [pytest.param(None, marks=pytest.mark.long), pytest.param(1, marks=pytest.mark.long), 2])
def test_nan_weights_end_in_nan(depth, device):
    """as in torch, at every layer above, with nobody waiting"""
    case = Stack(2, 3, 9, 24, layers=3, depth=depth)
    tensors = case.inputs("forward")
    tensors[2][1][:] = float("nan")
    expected = case.expected("forward", tensors)
    y, hn = case.run("forward", tensors, device, mode=MODES[1])
    assert y[1:].isnan().all() and hn[1:].isnan().all()
    assert_same_where_finite([y, hn], expected, case.tolerance)


@pytest.mark.executed
@pytest.mark.long
@pytest.mark.parametrize("where", ["w_hh of the top", "w_ih of the top", "dy"])
@pytest.mark.parametrize("depth", [None, 1, 2])
def test_infinite_values_backward(where, depth, device):
    """No product in the first step, where there is no state yet"""
    case = Stack(2, 4, 9, 21, kind="tf32", depth=depth)
    tensors = case.inputs("backward")
    if where == "dy":
        tensors[3][1, 2, 3] = float("inf")
    else:
        tensors[1 if "hh" in where else 0][1][2, 3] = float("inf")
    expected = case.expected("backward", tensors)
    assert not expected[0].isfinite().all()
    assert_same_where_finite(case.run("backward", tensors, device, mode=MODES[1]), expected, case.tolerance)


def changed_dropout():
    """Of a mask's place: another layer, step, row, unit, or seed; no scale; in one of the passes"""
    forward = "drop_input(v, (seed, bottom + layer - 1, lane_dropped, scale), k * K_TILE, tile * BLOCK_B, t,"
    backward = "whole[n], (seed, bottom + layer, lane_dropped, scale), unit0, tile * BLOCK_B, t,"
    for text, direction in ((forward, "forward"), (backward, "backward")):
        for old, new in (("layer", "1 + layer"), (" t,", " t + 1,"), ("BLOCK_B,", "BLOCK_B + 1,"), ("seed", "seed + 1")):
            yield Change("cta_group.py", text, text.replace(old, new)), direction
        yield Change("cta_group.py", text, text.replace("lane_dropped", "dropped - 5000")), direction
    yield Change("cta_group.py", forward, forward.replace("k * K_TILE", "k * K_TILE + 4")), "forward"
    yield Change("cta_group.py", backward, backward.replace("unit0", "unit0 + 8")), "backward"
    yield Change("cta_group.py", "scaled = scaled + (acc[n] * scale,)", "scaled = scaled + (acc[n],)"), "forward"
    yield Change("cta_group.py", backward, backward.replace("scale", "1.0")), "backward"
    # each layer on one CTA
    for old, new, direction in (
        ("start = c * TILE.chunk // TILE.e", "start = c * TILE.chunk // TILE.e + 4", "forward"),
        ("bottom + (layer - 1 if FIRST_IS_STATE else layer)", "bottom + layer + 0 * lane", "forward"),
        ("bottom + (layer - 1 if FIRST_IS_STATE else layer)", "bottom + layer - 1", "backward"),
        ("return p * drop[3]", "return p * 1.0", "forward"),
        ("unit = hidden_units(TILE)", "unit = hidden_units(TILE) + 8", "backward"),
        ("row = row0 + tl.arange(0, TILE.block_b)[None, :]", "row = row0 + 1 + tl.arange(0, TILE.block_b)[None, :]", "backward"),
        ("drop_values(p, drop, unit, row, t,", "drop_values(p, drop, unit, row, t + 1,", "backward"),
        ("lane_dropped = tl.where(first_lane, 0, dropped)", "lane_dropped = dropped + 0 * lane", "forward"),
    ):
        yield Change("one_cta.py", old, new), direction


@pytest.mark.long
@pytest.mark.interpret
@pytest.mark.parametrize(
    "change, direction",
    list(changed_dropout()),
    ids=lambda v: getattr(v, "new", v)[:90],
)
def test_changed_dropout_is_noticed(change, direction):
    case = Stack(2, 9, 9, 24, dropped=20000, kind="tf32", depth=2 if change.file == "one_cta.py" else None)
    tensors = case.inputs(direction)
    expected = case.expected(direction, tensors, dropout_masks(case, seed=5))
    with patched(change) as kernels, pytest.raises(AssertionError):
        assert_close(case.run(direction, tensors, module=kernels.recurrence, seed=5), expected, case.tolerance)


# ---- faults ---------------------------------------------------------------------------------------------------------


STUCK = [  # the change, the lane, is the step before incomplete?
    pytest.param(stuck.dead, 0, True, marks=pytest.mark.long),
    (stuck.dead, 1, True),
    (stuck.gives_up, 0, False),
    (stuck.dead_alone, 0, True),
    (stuck.dead_alone, 1, True),
    (stuck.gives_up_alone, 0, False),
    (stuck.gives_up_alone, 1, False),
]


@pytest.mark.long
@pytest.mark.interpret
@both_passes
@pytest.mark.parametrize("change, lane, missing", STUCK)
def test_stuck(direction, change, lane, missing):
    """and the next launch is right"""
    case = Stack(4, 3, 8, 24, layers=3, nonlinearity="relu", depth=2 if "alone" in change.__name__ else None)
    with patched(change(lane)) as kernels:
        stuck.check_layers(case, direction, kernels, lane, missing)
    case.having(T=1, H=24).check(direction)
    faults.check(CPU)


@pytest.mark.interpret
def test_a_layer_that_never_ran():
    """One CTA waits for nobody but the layer before: the one that waits for it says so, and nobody else."""
    case = Stack(3, 3, 8, 24, layers=3, depth=2)
    tensors = case.inputs("forward")
    absent = Change("one_cta.py", "tl.range(0, T, loop", "tl.range(0, tl.where(lane == 0, 0, T), loop")
    with patched(absent) as kernels:
        kernels.operands.SPIN_LIMIT = 64
        y, hn = case.run(
            "forward", tensors, module=kernels.recurrence, mode=dict(schedule="rr", races="off", max_idle=4000)
        )
    with pytest.raises(ExchangeError, match="group 0 of layer 1 waited .* time step 0 "):
        faults.check(CPU)
    assert y.isnan().all() and hn[1:].isnan().all()


# ---- the plan -------------------------------------------------------------------------------------------------------

H200 = hardware.RECORDS["sm_90"]


def bf16(B, H, direction="forward", I=None):
    return Problem(direction, B, I or H, H, "bf16", None, "elman_tanh")


@pytest.mark.parametrize("L", [2, 4, 8])
@pytest.mark.parametrize("H, B", [(128, 8), (256, 32), (512, 8), (1024, 8), (1024, 32), (2048, 8), (4096, 8)])
def test_every_run_of_layers_fits(H, B, L):
    sizes = sharing.layers_per_launch(bf16(B, H), L, True, H200, ())
    assert sum(sizes) == L and max(sizes) - min(sizes) <= 1
    for size in set(sizes) - {1}:
        for direction in DIRECTIONS:
            p = choose.shared_plan(bf16(B, H, direction), Bundle(size, True, True), H200, ())
            if isinstance(p, OneCta):
                assert H <= 128 and size * -(-B // p.block_b) <= H200.sms and p.w_ih_home == "registers"
                continue
            assert size * p.groups * p.ctas <= H200.sms and p.ctas * p.units >= H and H > 128
            assert p.protocol == "sentinel" and p.w_ih_home in ("registers", "shared")


def test_one_launch_where_it_fits_and_several_where_not():
    assert sharing.layers_per_launch(bf16(8, 512), 4, False, H200, ()) == (4,)
    assert sharing.layers_per_launch(bf16(8, 128), 8, False, H200, ()) == (8,)
    assert sharing.layers_per_launch(bf16(8, 2048), 4, False, H200, ()) == (2, 2)
    assert sharing.layers_per_launch(bf16(8, 512), 70, False, H200, ()) != (70,)  # 70 layers of 4 CTAs or more
    assert set(sharing.layers_per_launch(bf16(128, 2048), 4, False, H200, ())) == {1}
    fp64 = Problem("forward", 8, 64, 64, "fp64", None, "elman_tanh")
    assert sharing.layers_per_launch(fp64, 3, False, H200, ()) == (1, 1, 1) and sharing.share_directions(fp64, H200, ())


def test_overrides_that_one_pass_does_not_have():
    """x is loaded ahead in the forward pass alone: nothing is raised before a backward pass asks for it"""
    chosen = (("x_depth", 2),)
    assert sharing.layers_per_launch(bf16(8, 512), 3, False, H200, chosen) == (1, 1, 1)
    assert not sharing.share_directions(bf16(8, 128), H200, chosen)


def test_a_plan_that_does_not_compile_gives_way(monkeypatch):
    monkeypatch.setattr(choose, "_rejected", {})
    bundle, problem = Bundle(4, True), bf16(8, 512)
    first = choose.shared_plan(problem, bundle, H200, ())
    choose.reject(problem, H200, first, "too large", bundle)
    second = choose.shared_plan(problem, bundle, H200, ())
    assert choose._kernel(second) != choose._kernel(first)
    assert choose.shared_plan(problem, Bundle(2, True), H200, ()) is not None and not choose.rejected(problem, H200)
    for _ in range(choose._TRIES):
        found = choose.shared_plan(problem, bundle, H200, ())
        if found is not None:
            choose.reject(problem, H200, found, "too large", bundle)
    assert choose.shared_plan(problem, bundle, H200, ()) is None


def test_a_wide_input_is_counted_where_it_is_projected():
    """once for a stack, in the run that holds the bottom layer, and for each of both directions; other layers have H columns"""
    wide, narrow = bf16(512, 256, I=4096), bf16(512, 256)
    assert sharing.layers_per_launch(wide, 4, False, H200, ()) == sharing.layers_per_launch(narrow, 4, False, H200, ()) == (1, 1, 1, 1)
    bundle = Bundle(4, True)
    shared = [sharing._shared(of, bundle, H200, ()) for of in (bf16(8, 256, I=4096), bf16(8, 256))]
    gemm = latency._projection_us(bf16(8, 256, I=4096), H200, latency.CONSTANTS)
    assert shared[0] - shared[1] == pytest.approx(gemm) and gemm > 0
    for both in (bf16(64, 1024, I=8192), bf16(8, 128, I=8192)):
        p = choose.shared_plan(both, Bundle(2), H200, ())
        assert p.w_ih_home == "gemm"
        projection = latency.shared_step(both, p, H200, Bundle(2))[1]["projection"]
        assert projection == pytest.approx(2 * latency._projection_us(both, H200, latency.CONSTANTS))
    assert "one launch" in explained(10, 256, 4)[1] and "a GEMM for x, then one launch" not in explained(10, 256, 4)[1]
    text = rnn_triton.explain(10, 8, 4096, 256, dtype=torch.bfloat16, device=H200, num_layers=4)
    assert "layers 0 to 3: a GEMM for x, then one launch" in text


def explained(T, H, layers, **options):
    return rnn_triton.explain(T, 8, H, H, dtype=torch.bfloat16, device=H200, num_layers=layers, **options).splitlines()


def test_explain():
    """The launches, how layers overlap, and the time that the model gives them"""
    first, launch, *_, torchs = explained(1000, 1024, 4)
    assert first.startswith("forward of bf16 T=1000 B=8 I=1024 H=1024, 4 layers, on H200: 1 launch, ")
    assert launch.startswith("layers 0 to 3: one launch of 128 CTAs of 8 warps, 4 layers of 1 x 32 (groups x CTAs of 32 ")
    assert "each a step behind the one before it, 1003 steps for 1000" in launch and "sentinel" in launch
    p = choose.shared_plan(bf16(8, 1024), Bundle(4, True), H200, ())
    us = latency.shared_us(bf16(8, 1024), p, H200, Bundle(4, True)) * 1003 / 1000
    assert f"{us:.2f} us per step" in launch and f"{us:.2f} us per step" in first
    assert "PERSIST_STATIC is" in torchs
    backward = explained(10, 2048, 4, direction="backward")
    assert backward[1].startswith("layers 2 to 3: ") and backward[2].startswith("layers 0 to 1: ")
    assert backward[3].startswith("2 launches, because fewer launches of more layers each do not fit on H200's 132 SMs")
    both = explained(10, 1024, 2, bidirectional=True)
    assert both[2].startswith("layer 1, both directions: one launch of ") and "side by side" in both[2]
    alone = explained(1000, 128, 4)[1]
    assert alone.startswith("layers 0 to 3: one launch of 4 CTAs of 8 warps, 4 layers of 1 CTA, each 8 batch rows and all of W_hh")
    assert "each two steps behind the one before it, 1006 steps for 1000; the state stays in the CTA" in alone
    both = explained(10, 64, 1, bidirectional=True)[1]
    assert both.startswith("layer 0, both directions: one launch of 2 CTAs of 4 warps, 2 directions of 1 CTA") and "side by side" in both
    assert explained(10, 8192, 2)[1].startswith("layer 0: ") and "2 launches" in explained(10, 8192, 2)[0]
    assert explained(10, 1024, 3, models=2)[3].startswith("layer 2: 2 models")
    with rnn_triton.overriding(recurrences=1):
        assert explained(10, 512, 2)[3] == "2 launches, because overriding(recurrences=...) lets no launch hold more."
    ieee = rnn_triton.explain(10, 8, 64, 64, precision="ieee", device=H200, num_layers=2)
    assert "2 launches, because layers share a launch in bf16, fp16, tf32 and tf32x3." in ieee
    both = dict(dtype=torch.float64, device=H200, num_layers=2, bidirectional=True)
    assert "4 launches" in rnn_triton.explain(10, 8, 64, 64, dropout=0.5, **both)
    assert "2 launches" in rnn_triton.explain(10, 8, 64, 64, **both)
    for wrong in (dict(layers=0), dict(layers=2, dropout=1.5)):
        with pytest.raises(ValueError, match="must be"):
            explained(10, 64, **wrong)
