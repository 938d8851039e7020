"""What the time loop of one CTA prefetches into L2 (kernels/prefetch.py), by interpreter: every line of every stream, in time, and
nothing outside of them.  What the compiler makes of it is in test_compile.py."""

import numpy as np
import pytest
import torch

from rnn_triton.interpret import interpreter
from rnn_triton.kernels import prefetch
from rnn_triton.launch import dispatch, gemm
from rnn_triton.plan import choose, hardware
from rnn_triton.plan.problem import Problem

pytestmark = pytest.mark.interpret

LINE = 128
AHEAD = getattr(prefetch.AHEAD, "value", prefetch.AHEAD)
TEXT = "{ .reg .pred p; setp.ne.b32 p, $2, 0; @p prefetch.global.L2 [$1]; mov.b32 $0, 0; }"


@pytest.fixture
def asked(monkeypatch):
    """Addresses of each prefetch that is executed, in order"""
    calls = []

    def record(address, enable):
        calls.append(address[enable != 0].astype(np.int64))
        return np.zeros_like(enable)

    monkeypatch.setitem(interpreter._asm, TEXT, record)
    return calls


def rows(stream, order):
    """(launch step, row, address, bytes) of each row of a tensor [T, B, width] that is read at the times `order`"""
    length = stream.shape[-1] * stream.element_size()
    return [
        (step, row, stream[t, row].data_ptr(), length) for step, t in enumerate(order) for row in range(stream.shape[1])
    ]


def check(calls, streams, order, tiles, warps):
    """Each tile, one after the other, asks for all lines of the streams' rows: of the first AHEAD steps before the loop, of the
    others AHEAD to 2 AHEAD - 1 steps before they are read."""
    expected = {}
    for stream in streams:
        for step, row, start, length in rows(stream, order):
            for address in range(start, start + length, LINE):
                expected[address] = (step, row)
    lines = [-(-s.shape[-1] * s.element_size() // LINE) for s in streams] + [0] * (4 - len(streams))
    at_once, period = prefetch.across(*lines, 8, warps), prefetch.period(*lines, 8, warps)
    chunks, before = -(-max(lines) // at_once), AHEAD // period
    assert len(calls) == tiles * chunks * (before + len(order))
    found = {}
    for number, addresses in enumerate(calls):
        tile, number = divmod(number, len(calls) // tiles)
        now = number // chunks - before
        for address in addresses.tolist():
            assert address in expected, "outside of the streams"
            step, row = expected[address]
            assert row // 8 == tile
            assert step < AHEAD if now < 0 else AHEAD <= step - now < 2 * AHEAD
            found[address] = found.get(address, 0) + 1
    assert found == dict.fromkeys(expected, 1), "not every line once"


def parameters(dtype, H, I):
    generator = torch.Generator().manual_seed(1)
    shapes = ((H, I), (H, H), (H,), (H,))
    return [(torch.rand(shape, generator=generator) - 0.5).to(dtype) for shape in shapes]


@pytest.fixture
def projected(monkeypatch):
    """What GEMMs made of x, in order"""
    made, project = [], gemm.project

    def record(*tensors):
        made.append(project(*tensors))
        return made[-1]

    monkeypatch.setattr(gemm, "project", record)
    return made


# T, B, I, H: shorter than what is ahead; rows of several lines and two tiles; x projected before the launch; rows of more lines than
# the threads ask for at once
SHAPES = [(5, 3, 8, 16), (37, 11, 200, 20), (33, 2, 1000, 16), (18, 2, 500, 16), (18, 2, 130, 64)]
DTYPES = {"bf16": torch.bfloat16, "tf32": torch.float32, "ieee": torch.float32, "fp64": torch.float64}


@pytest.mark.thin(3)
@pytest.mark.parametrize("kind", list(DTYPES))
@pytest.mark.parametrize("T, B, I, H", SHAPES)
def test_both_passes(T, B, I, H, kind, asked, projected):
    dtype, precision = DTYPES[kind], kind if DTYPES[kind] == torch.float32 else None
    x = torch.rand(T, B, I).to(dtype)
    w_ih, w_hh, b_ih, b_hh = parameters(dtype, H, I)
    tiles, warps = -(-B // 8), max(16, 1 << (H - 1).bit_length()) // 16
    for reverse in (False, True):
        order = list(range(T))[:: -1 if reverse else 1]
        asked.clear()
        projected.clear()
        y, *_ = dispatch.forward(x, w_ih, w_hh, b_ih, b_hh, (None,), "elman_tanh", reverse, precision)
        problem = Problem("forward", B, I, H, kind if precision is None else "fp32", precision, "elman_tanh")
        forward = choose.plan(problem, hardware.of(x.device))
        assert len(projected) == (forward.w_ih_home == "gemm")
        check(asked, projected or [x], order, tiles, warps)
        dy = torch.rand(T, B, H).to(dtype).transpose(0, 1).contiguous().transpose(0, 1)  # strides of its own
        asked.clear()
        dispatch.backward(w_hh, y, None, dy, (None,), "elman_tanh", reverse, precision)
        check(asked, [dy, y], order[::-1], tiles, warps)


def test_no_stream_but_y(asked):
    """A loss of h_n alone: there is no dy"""
    w_hh = parameters(torch.bfloat16, 16, 1)[1]
    y, dhn = torch.rand(20, 3, 16).bfloat16(), torch.rand(3, 16).bfloat16()
    dispatch.backward(w_hh, y, None, None, (dhn,), "elman_tanh", False, None)
    check(asked, [y], range(19, -1, -1), 1, 1)
