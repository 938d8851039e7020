"""Cells of several gates over groups of CTAs (kernels/cta_group.py), as test_grid.py has Elman's: in the cooperative interpreter, with
its race detector, in several schedules and memory models, outputs poisoned.  The reference is torch's, in fp64 of the same rounded
inputs; tolerances: support/gated_groups.py.  That these tests can fail is what test_mutants.py shows."""

import itertools
import re

import pytest
import torch
from support import stuck
from support.gated_groups import GATES, Gated, compiled, step
from support.grids import MODES, assert_close
from support.layouts import check_verify_layout
from support.mutants import Change, patched

from bench.compiled import resources
from rnn_triton import cells
from rnn_triton.errors import ExchangeError
from rnn_triton.launch import faults
from rnn_triton.plan.candidates import k_tiles

CASES = [
    Gated(3, 5, 13, 40),
    Gated(2, 3, 9, 37, protocol="counter", reverse=True, chains=1),
    Gated(3, 19, 16, 24, groups=2, kind="fp16", home="gemm"),
    Gated(3, 11, 8, 20, kind="tf32", warps=8, home="shared"),
    Gated(2, 17, 150, 24, block_b=16, home="shared"),
    Gated(2, 9, 5, 33, block_b=16, kind="tf32", protocol="counter", chains=1, home="gemm"),
    Gated(3, 3, 9, 19, kind="tf32x3", reverse=True),
    Gated(2, 3, 9, 140, units=32, shared=2, look_every=1, x_loads="before", probe_delay=0),
    # in a launch of several
    Gated(3, 3, 9, 24, layers=3),
    Gated(2, 11, 8, 21, layers=2, kind="tf32"),
    Gated(3, 9, 9, 21, both=True, groups=2),
]  # fmt: skip


@pytest.mark.executed(
    "ptx-forward-T=3-B=5-I=13-H=40-cell=lstm", "ptx-backward-T=3-B=11-I=8-H=20-kind=tf32-warps=8-home=shared-cell=gru",
    "ptx-backward-T=3-B=5-I=13-H=40-cell=leaky_tanh",
)
@pytest.mark.thin(3)
@pytest.mark.parametrize("direction, case, mode", [
    pytest.param(direction, case.having(cell=name), MODES[i % len(MODES)], id=f"{direction}-{case.having(cell=name)}")
    for i, (case, name, direction) in enumerate(itertools.product(CASES, GATES, ("forward", "backward")))
])  # fmt: skip
def test_values(direction, case, mode, device):
    case.check(direction, device=device, mode=mode)


@pytest.mark.interpret
@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("name", list(GATES))
def test_dropout_between_layers(name, direction):
    Gated(3, 3, 9, 24, layers=2, cell=name, kind="tf32", dropped=20000).check(direction, seed=5)


def test_the_reference_is_torch_s():
    """of the cells that torch has"""
    g = torch.Generator().manual_seed(0)
    for name, module in (("gru", torch.nn.GRU), ("lstm", torch.nn.LSTM)):
        layer = module(3, 4, dtype=torch.float64)
        x, h, c = (torch.randn(*shape, generator=g, dtype=torch.float64) for shape in ((5, 2, 3), (2, 4), (2, 4)))
        expected, _ = layer(x, (h[None], c[None]) if name == "lstm" else h[None])
        for t in range(5):
            of_x = (x[t] @ layer.weight_ih_l0.T + layer.bias_ih_l0).unflatten(1, (-1, 4))
            of_h = (h @ layer.weight_hh_l0.T + layer.bias_hh_l0).unflatten(1, (-1, 4))
            h, c = step(name, of_x, of_h, h, c, None)
            torch.testing.assert_close(h, expected[t])


# ---- stuck launches -------------------------------------------------------------------------------------------------


# group 1 has failed in step 3 for no reason: all its words are there, and nobody looks before the end
GIVES_UP = Change(
    "cta_group.py", "        own = own_1\n",
    "        if (group == 1) & (step == 2):\n            tl.store(error_ptr, 3)\n        own = own_1\n",
)  # fmt: skip


def check_stuck(direction, case, reason, *changes):
    """As stuck.check: what is carried, and what the forward pass keeps, are NaN where y or da are.  reason: stuck.DEAD or GIVES_UP"""
    tensors = case.inputs()
    y, _, _, kept = case.forward(tensors)
    mode = dict(schedule="random", seed=5, races="off", max_idle=20 * 64, poisoned=(), continued=True)
    with patched(reason, *changes) as kernels:
        kernels.operands.SPIN_LIMIT = 64
        if direction == "forward":
            steps, *last = case.forward(tensors, kernels.recurrence, mode=mode)
            *last, kept = last
            by_step = [steps, kept]
        else:
            *by_step, carried = case.backward(tensors, y, kept, kernels.recurrence, mode=mode)
            last = [carried]
    with pytest.raises(ExchangeError, match=f"group 1 .*time step {stuck.STEP} "):
        faults.synchronize("cpu")
    lost, order = stuck.steps_lost(case, direction)
    # units of programs that do not leave
    alive = slice(0, (-(-case.H // case.units) - 1) * case.units) if reason is stuck.DEAD else slice(None)
    for result in by_step:
        assert result[0][lost].isnan().all() and result[0][~lost][..., alive].isfinite().all()
    for result in last:
        rows = lost[order[-1]]
        assert result[0][rows][:, alive].isnan().all() and result[0][~rows].isfinite().all()
    expected = case.expected(direction, tensors)
    rows = ~lost.any(0)
    assert_close([by_step[0][:, :, rows], last[-1][:, rows]], [expected[0][:, :, rows], expected[2][:, rows]], case.tolerance)


STUCK = Gated(5, 29, 8, 40, groups=2)


@pytest.mark.interpret
@pytest.mark.parametrize("direction, case", [
    ("forward", STUCK), ("backward", STUCK.having(protocol="counter", reverse=True)), ("forward", STUCK.having(cell="gru", kind="tf32")),
    ("backward", STUCK.having(cell="gru")),
])  # fmt: skip
def test_stuck(direction, case):
    check_stuck(direction, case, stuck.DEAD)


@pytest.mark.interpret
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_a_group_that_gives_up(direction):
    check_stuck(direction, STUCK, GIVES_UP)


@pytest.mark.interpret
@pytest.mark.parametrize("direction, old, new", [
    ("forward", "outputs = outputs + ((words_of, KEPT * WORDS, step_k // E),)", "pass"),
    ("backward", "outputs = outputs + ((pairs, WORDS, 0),)", "pass"),
    ("backward", "((out_ptr + n * WORDS, ROW_WORDS, step_words),)", "((out_ptr, ROW_WORDS, step_words),)"),
    ("forward", "    nan = nan << 32 | nan\n", ""),
])  # fmt: skip
def test_what_outlives_a_failure_is_noticed(direction, old, new):
    try:
        with pytest.raises(AssertionError):
            check_stuck(direction, STUCK, GIVES_UP, Change("cta_group.py", old, new))
    finally:
        faults.word(torch.device("cpu")).zero_()


# ---- machine code ---------------------------------------------------------------------------------------------------

PLANS = {  # of sm_90, by H: home of W_ih, K tiles of W_hh in shared memory, forward and backward
    512: ("registers", dict(lstm=(0, 0), gru=(0, 0))),
    1000: ("gemm", dict(lstm=(0, 8), gru=(0, 4))),
    1024: ("gemm", dict(lstm=(0, 8), gru=(0, 4))),
    2048: ("gemm", dict(lstm=(4, 27), gru=(3, 14))),
}


# of a step at H = 1024, of one warp, at most: Triton 3.7.1 and 3.6.0 take 330, 335, 383, 383
INSTRUCTIONS = dict(gru=(331, 336), lstm=(384, 384))


@pytest.mark.compiled
@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("name", ["gru", "lstm"])
@pytest.mark.parametrize("H", [512, 1024, *(pytest.param(H, marks=pytest.mark.long) for H in (1000, 2048))])
def test_what_is_compiled(H, name, direction):
    """No spills, no shuffles, two barriers a step; W_hh on chip; every tile of the state is read once and published in whole words"""
    home, shared = PLANS[H]
    kernel, problem, p = compiled(name, direction, H, "bf16", home=home, shared=shared[name][direction == "backward"])
    r = resources.analyze(kernel)
    assert (r.spill_stores, r.spill_loads, r.shuffles, r.barriers) == (0, 0, 0, 2)
    assert "w_rec_ptr" not in r.global_load_arguments and "w_in_ptr" not in r.global_load_arguments
    forward, gates = direction == "forward", GATES[name]
    tiles = k_tiles(H, p.warps, "bf16") if forward else k_tiles(gates * H, p.warps, "bf16")
    assert len(re.findall(r"ld\.volatile\.global\.v4\.b32", kernel.asm["ptx"])) == tiles
    assert r.mma == 2 * tiles * (gates if forward else 1) * (1 + (home == "registers" and forward))
    published = re.findall(r"st\.global\.cg\.(\S+)", kernel.asm["ptx"])
    assert published == ["b32"] * cells.named(name).routes(forward).published
    check_verify_layout(kernel.asm["ttgir"], p)
    assert H != 1024 or r.instructions <= INSTRUCTIONS[name][not forward]
