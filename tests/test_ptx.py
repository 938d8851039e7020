"""What only the executor of PTX shows (tests/ptx_executor).

The kernels' other tests run on it, too, where they are marked `executed` (conftest.py): references and tolerances are theirs.
"""

import contextlib

import pytest
import torch
import triton
import triton.language as tl
from ptx_executor import PtxError, UnknownOpcode
from support import executed, stuck
from support.grids import Case
from support.memory import reserved
from support.mutants import patched
from support.sequences import Rows
from support.stacks import Stack
from test_gated_launches import Network, check_network
from test_kernels import check, inputs

from rnn_triton import overriding
from rnn_triton.kernels import exchange, prefetch
from rnn_triton.launch import faults

pytestmark = pytest.mark.ptx
long = pytest.mark.long
CPU = torch.device("cpu")


def kernels(launches):
    return [launch.kernel_name for launch in launches]


@pytest.mark.parametrize("kind, T, B, I, H, kernel", [
    ("bf16", 3, 8, 64, 512, "cta_group"),
    pytest.param("tf32", 2, 16, 48, 384, "cta_group", marks=long),
    pytest.param("bf16", 3, 8, 64, 128, "one_cta", marks=long),
    pytest.param("fp16", 2, 70, 64, 256, "one_cta", marks=long),
])  # fmt: skip
def test_plans_of_the_planner(kind, T, B, I, H, kernel):
    with executed.observed() as launches:
        check(inputs(kind, T, B, I, H), kind, "cpu")
    assert kernels(launches) == [kernel, kernel]


@pytest.mark.parametrize("name, linked, dropped", [
    ("lstm", True, 20000), ("gru", False, None), pytest.param("gru", True, None, marks=long), pytest.param("lstm", False, None, marks=long),
])  # fmt: skip
def test_layers_and_directions_of_gates_on_one_cta_each(name, linked, dropped):
    network = Network(name, linked, 3, 3, 24, 29, dropped)
    network.together = lambda passes: contextlib.nullcontext()  # the executor runs all CTAs of a launch side by side
    with overriding(regime="one_cta"), executed.observed() as launches:
        check_network(network)
    assert kernels(launches).count("one_cta") == 2


GROUPS = dict(regime="cta_group", warps=4, units=16, block_b=8)


@pytest.mark.parametrize("name, reverse, how", [
    ("lstm", True, dict(regime="one_cta")),
    ("gru", True, GROUPS),
    pytest.param("elman_tanh", False, dict(regime="one_cta"), marks=long),
    pytest.param("elman_tanh", False, GROUPS, marks=long),
    pytest.param("lstm", True, dict(regime="per_step"), marks=long),
])  # fmt: skip
def test_rows_that_end_or_begin_anew(name, reverse, how):
    with overriding(**how):
        Rows(name, "bf16", 4, 9, 24, 30, ("lengths", "reset", "restart"), reverse=reverse).check()


@pytest.mark.parametrize("direction", ["forward", pytest.param("backward", marks=long)])
def test_strides_of_a_group_beyond_32_bits(direction):
    """The rows of x or dy 2^31 elements apart: a stride of 32 bits, in vectors, and offsets of more.  The memory between the
    rows is never touched.  The tests of other regimes have such strides themselves."""
    case = Case(2, 2, 24, 24, kind="tf32")
    tensors = case.inputs(direction)
    expected = case.run(direction, tensors)
    which = 0 if direction == "forward" else 2
    far = reserved(2**31 + 48, CPU).as_strided((2, 2, 24), (24, 2**31, 1))
    tensors[which] = far.copy_(tensors[which])
    results = case.run(direction, tensors)
    assert all(torch.equal(a, b) for a, b in zip(results, expected, strict=True))


# ---- stuck launches -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("direction, case", [
    pytest.param(*case, marks=long if n else (), id="-".join(map(str, case))) for n, case in enumerate(stuck.CASES)
])  # fmt: skip
def test_stuck(direction, case):
    """A CTA leaves early: its group gives up, the host hears of it, and the next launch is right."""
    with patched(stuck.DEAD) as kernels, executed.incomplete():
        stuck.check(case, direction, kernels)
    case.having(T=2, B=5, groups=1).check(direction)
    faults.check(CPU)


@long
@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("change, lane, missing", [
    (stuck.dead, 1, True), (stuck.gives_up, 0, False), (stuck.dead_alone, 0, True), (stuck.gives_up_alone, 1, False),
])  # fmt: skip
def test_stuck_layers(direction, change, lane, missing):
    case = Stack(4, 3, 8, 24, layers=3, nonlinearity="relu", depth=2 if "alone" in change.__name__ else None)
    with patched(change(lane)) as kernels, executed.incomplete():
        stuck.check_layers(case, direction, kernels, lane, missing)
    case.having(T=1, H=24).check(direction)
    faults.check(CPU)


# ---- what the executor is for ---------------------------------------------------------------------------------------


@triton.jit
def _copy(x_ptr, out_ptr, n, MASKED: tl.constexpr, BLOCK: tl.constexpr):
    k = tl.arange(0, BLOCK)
    inside = k < n
    x = tl.load(x_ptr + k, mask=inside if MASKED else None)
    tl.store(out_ptr + k, x, mask=inside)


def test_a_kernel_that_reads_past_the_end_of_a_tensor_fails():
    """by one element, and though the memory behind it is allocated"""
    memory = torch.arange(128.0)
    x, out = memory[:63], torch.zeros(63)
    _copy[(1,)](x, out, 63, MASKED=True, BLOCK=64)
    assert torch.equal(out, x)
    with pytest.raises(PtxError, match="out of bounds .x_ptr has 252 bytes, this is from its byte 252 on.: _copy"):
        _copy[(1,)](x, out, 63, MASKED=False, BLOCK=64)


@triton.jit
def _prefetched(x_ptr, byte, enable):
    left = tl.full((32,), 1, tl.int32)
    prefetch.prefetch(x_ptr.to(tl.int64) + byte + left, left * enable > 0, left, 1, 1)


def test_a_kernel_that_prefetches_past_the_end_of_a_tensor_fails():
    x = torch.arange(128.0)[:63]
    _prefetched[(1,)](x, 250, 1)
    _prefetched[(1,)](x, 251, 0)
    with pytest.raises(PtxError, match="out of bounds .x_ptr has 252 bytes, this is from its byte 252 on.: _prefetched"):
        _prefetched[(1,)](x, 251, 1)


@triton.jit
def _held_back(out_ptr, cycles):
    since = exchange.cycle()
    exchange.hold_back(since, cycles)
    tl.store(out_ptr, exchange.cycle() - since)


@pytest.mark.parametrize("cycles", [0, 40, 200])
def test_a_probe_is_held_back(cycles):
    """so many cycles and no more than a reading of the counter longer, which goes through zero meanwhile"""
    out = torch.zeros(1, dtype=torch.int32)
    _held_back[(1,)](out, cycles)
    assert cycles + 32 <= out.item() <= cycles + 2 * 32  # the executor's readings are 32 cycles apart


@triton.jit
def _reversed_bits(x_ptr, out_ptr):
    x = tl.load(x_ptr)
    tl.store(out_ptr, tl.inline_asm_elementwise("brev.b32 $0, $1;", "=r,r", [x], dtype=tl.int32, is_pure=True, pack=1))


def test_a_kernel_with_an_unknown_opcode_fails_by_name():
    with pytest.raises(UnknownOpcode, match=r"brev\.b32: test_ptx\.py:\d+: brev"):
        _reversed_bits[(1,)](torch.ones(1, dtype=torch.int32), torch.zeros(1, dtype=torch.int32))

