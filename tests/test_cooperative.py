"""The cooperative interpreter against small kernels: silent on the correct ones, loud on each planted bug."""

import inspect
import threading

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from cooperative import (
    ContractError,
    DeadlockError,
    LivelockError,
    OutOfBoundsError,
    RaceError,
    Schedule,
    UninitializedReadError,
    UnsupportedError,
    cooperate,
    exhaustive,
    explore,
)

from rnn_triton import interpreter

pytestmark = pytest.mark.interpret

STEPS, PROGRAMS, UNITS = 5, 3, 4  # UNITS per program
WIDTH = PROGRAMS * UNITS

# -- one recurrence, three protocols -------------------------------------------------------------------------
#
# y[t, u] = (y[t-1, 0] + ... + y[t-1, WIDTH-1]) / WIDTH + x[t, u], y[-1] = 0; a program owns UNITS units.

WAIT = tl.constexpr("""{
.reg .pred p, q; .reg .b32 v, n, t;
mov.u32 $0, 0;
mov.u32 t, %tid.x;
setp.ne.u32 q, t, 0;
@q bra DONE;
mov.u32 n, 0;
SPIN:
ld.acquire.gpu.global.u32 v, [$1];
setp.ge.s32 p, v, $2;
@p bra DONE;
add.u32 n, n, 1;
setp.lt.u32 p, n, 0x1000000;
@p bra SPIN;
DONE:
}""")
WAIT_RELAXED = tl.constexpr(WAIT.value.replace("ld.acquire", "ld.relaxed"))


@triton.jit
def wait_asm(counter_ptr, target, TEXT: tl.constexpr, BARRIER: tl.constexpr):
    """One thread waits, a CTA barrier tells the others."""
    tl.inline_asm_elementwise(
        TEXT, "=&r,l,r", [counter_ptr.to(tl.int64), target], dtype=tl.int32, is_pure=False, pack=1
    )
    if BARRIER:
        tl.debug_barrier()


@triton.jit
def counter_kernel(x_ptr, y_ptr, counter_ptr, T, N: tl.constexpr, WIDTH: tl.constexpr, BUG: tl.constexpr):
    """Waits until all have counted up for the step before; x[T, WIDTH], y[T, WIDTH] fp32."""
    pid = tl.program_id(0)
    programs = tl.num_programs(0)
    own = pid * N + tl.arange(0, N)
    every = tl.arange(0, 16)
    for t in range(T):
        a = tl.load(x_ptr + t * WIDTH + own)
        if t > 0:
            if BUG == "wrong step":
                wait_asm(counter_ptr, programs * (t - 1), WAIT, True)
            elif BUG == "off by one":
                wait_asm(counter_ptr, programs * t - 1, WAIT, True)
            elif BUG == "waits for itself":
                wait_asm(counter_ptr, programs * (t + 1), WAIT, True)
            elif BUG == "missing acquire":
                wait_asm(counter_ptr, programs * t, WAIT_RELAXED, True)
            elif BUG == "missing CTA barrier after the wait":
                wait_asm(counter_ptr, programs * t, WAIT, False)
            elif BUG == "volatile":
                while tl.load(counter_ptr, volatile=True) < programs * t:
                    pass
            elif BUG == "plain":
                while tl.load(counter_ptr) < programs * t:
                    pass
            elif BUG == "atomic":
                while tl.atomic_add(counter_ptr, 0, sem="acquire") < programs * t:
                    pass
            elif BUG != "missing wait":
                wait_asm(counter_ptr, programs * t, WAIT, True)
            before = tl.load(y_ptr + (t - 1) * WIDTH + every, mask=every < WIDTH, other=0.0)
            a += tl.sum(before) / WIDTH
        if BUG == "early signal":
            tl.debug_barrier()
            tl.atomic_add(counter_ptr, 1, sem="release")
        tl.store(y_ptr + t * WIDTH + own, a)
        if BUG != "missing CTA barrier before the release":
            tl.debug_barrier()
        if BUG == "missing release":
            tl.atomic_add(counter_ptr, 1, sem="relaxed")
        elif BUG == "wrong scope":
            tl.atomic_add(counter_ptr, 1, sem="release", scope="cta")
        elif BUG == "not atomic":
            tl.store(counter_ptr, tl.load(counter_ptr, volatile=True) + 1)
        elif BUG != "early signal":
            tl.atomic_add(counter_ptr, 1, sem="release")


@triton.jit
def words_kernel(x_ptr, y_ptr, T, N: tl.constexpr, WIDTH: tl.constexpr, BUG: tl.constexpr):
    """y[T, WIDTH] bf16, given as int32 words, is its own flag: a word -1 is not there yet. x fp32."""
    pid = tl.program_id(0)
    pair = pid * (N // 2) + tl.arange(0, N // 2)
    every = tl.arange(0, 8)
    there = every < WIDTH // 2
    for t in range(T):
        low = tl.load(x_ptr + t * WIDTH + 2 * pair)
        high = tl.load(x_ptr + t * WIDTH + 2 * pair + 1)
        if t > 0:
            before_ptr = y_ptr + (t - 1) * (WIDTH // 2)
            if BUG == "wrong step":
                before_ptr = y_ptr + tl.maximum(t - 2, 0) * (WIDTH // 2)
            elif BUG == "waits for itself":
                before_ptr = y_ptr + t * (WIDTH // 2)
            if BUG == "probe of one word":
                while tl.load(before_ptr, volatile=True) == -1:
                    pass
                words = tl.load(before_ptr + every, mask=there, other=0, volatile=True)
            elif BUG == "missing wait":
                words = tl.load(before_ptr + every, mask=there, other=0, volatile=True)
            elif BUG == "plain read":
                words = tl.load(before_ptr + every, mask=there, other=0, volatile=True)
                while tl.max((words == -1).to(tl.int32)) != 0:
                    words = tl.load(before_ptr + every, mask=there, other=0, volatile=True)
                words = tl.load(y_ptr + (t - 1) * (WIDTH // 2) + every, mask=there, other=0)
            elif BUG == "plain poll":
                words = tl.load(before_ptr + every, mask=there, other=0)
                while tl.max((words == -1).to(tl.int32)) != 0:
                    words = tl.load(before_ptr + every, mask=there, other=0)
            else:
                words = tl.load(before_ptr + every, mask=there, other=0, volatile=True)
                while tl.max((words == -1).to(tl.int32)) != 0:
                    words = tl.load(before_ptr + every, mask=there, other=0, volatile=True)
            halves = (words << 16).to(tl.float32, bitcast=True)
            halves += (words & -65536).to(tl.float32, bitcast=True)
            mean = tl.sum(halves) / WIDTH
            low += mean
            high += mean
        if BUG == "16-bit store":
            halves_ptr = y_ptr.to(tl.pointer_type(tl.bfloat16), bitcast=True) + t * WIDTH + 2 * pair
            tl.store(halves_ptr, low.to(tl.bfloat16))
            tl.store(halves_ptr + 1, high.to(tl.bfloat16))
        else:
            lower = low.to(tl.bfloat16).to(tl.uint16, bitcast=True).to(tl.int32)
            upper = high.to(tl.bfloat16).to(tl.uint16, bitcast=True).to(tl.int32)
            word = lower | (upper << 16)
            if BUG == "computed sentinel":
                word = tl.where((t == 1) & (pair == 0), -1, word)
            tl.store(y_ptr + t * (WIDTH // 2) + pair, word)


@triton.jit
def fence():
    tl.inline_asm_elementwise(
        "fence.acq_rel.gpu; mov.u32 $0, 0;", "=r", [], dtype=tl.int32, is_pure=False, pack=1
    )


@triton.jit
def ring_kernel(
    x_ptr, y_ptr, ring_ptr, T, N: tl.constexpr, WIDTH: tl.constexpr, DEPTH: tl.constexpr, BUG: tl.constexpr
):
    """The channel is a ring of DEPTH slots, ring[DEPTH, WIDTH] int32, armed again as they are used up.

    Who has read all of step t-1 knows that all have read step t-2: slot (t+1) % DEPTH, which holds step t+1-DEPTH,
    may be armed if DEPTH >= 3, and must be before step t is published.
    """
    pid = tl.program_id(0)
    own = pid * N + tl.arange(0, N)
    every = tl.arange(0, 16)
    for t in range(T):
        a = tl.load(x_ptr + t * WIDTH + own)
        if t > 0:
            slot_ptr = ring_ptr + ((t - 1) % DEPTH) * WIDTH + every
            words = tl.load(slot_ptr, mask=every < WIDTH, other=0, volatile=True)
            while tl.max((words == -1).to(tl.int32)) != 0:
                words = tl.load(slot_ptr, mask=every < WIDTH, other=0, volatile=True)
            a += tl.sum(words.to(tl.float32, bitcast=True)) / WIDTH
        if BUG != "never armed again":
            if t + 1 >= DEPTH:
                tl.store(ring_ptr + ((t + 1) % DEPTH) * WIDTH + own, tl.full([N], -1, tl.int32))
        if BUG != "missing fence":
            fence()
        tl.store(ring_ptr + (t % DEPTH) * WIDTH + own, a.to(tl.int32, bitcast=True))
        tl.store(y_ptr + t * WIDTH + own, a)


def expected(x, dtype):
    y, mean = [], torch.zeros(())
    for row in x:
        y.append((row + mean).to(dtype))
        mean = y[-1].float().mean()
    return torch.stack(y)


def recur(protocol, bug, **options):
    """One launch; raises what the interpreter finds, AssertionError if the numbers are wrong."""
    x = torch.linspace(-1, 1, STEPS * WIDTH).roll(7).reshape(STEPS, WIDTH)
    dtype = torch.bfloat16 if protocol == "words" else torch.float32
    y = torch.empty(STEPS, WIDTH, dtype=dtype)
    with cooperate(**options) as run:
        if protocol == "words":
            run.sentinel(y)
            words_kernel[(PROGRAMS,)](x, y.view(torch.int32), STEPS, UNITS, WIDTH, bug)
        else:
            run.poison(y)
            if protocol == "counter":
                counter = torch.zeros(1, dtype=torch.int32)
                counter_kernel[(PROGRAMS,)](x, y, counter, STEPS, UNITS, WIDTH, bug)
            else:
                depth = 2 if bug == "ring too shallow" else 3
                ring = run.sentinel(torch.empty(depth, WIDTH, dtype=torch.int32))
                ring_kernel[(PROGRAMS,)](x, y, ring, STEPS, UNITS, WIDTH, depth, bug)
    # sums of 12 terms below 4 in another order: fp32 errs by 12 * 2^-24 * 4 < 3e-6, which can turn one bf16 rounding
    # (2^-8 of 4 at most); the errors of later steps are means of those
    atol = 2**-6 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(y, expected(x, dtype), rtol=0, atol=atol)
    return run


# What finds which bug, under a few schedules: the detector; weak memory, by its numbers; the numbers of
# sequentially consistent memory, switching at every access. Deadlocks and broken contracts show in each.
MODES = {
    "detector": {},
    "weak": {"races": "off", "memory": "weak"},
    "numbers": {"races": "off", "switch": "mem"},
}
SCHEDULES = (("rr", 0), ("ahead", 1), ("random", 0), ("starve", 1))
ALL = ("detector", "weak", "numbers")
BUGS = {
    ("counter", "missing wait"): ALL,
    ("counter", "wrong step"): ALL,
    ("counter", "off by one"): ALL,
    ("counter", "waits for itself"): ALL,
    ("counter", "early signal"): ALL,
    ("counter", "missing acquire"): ("detector",),
    ("counter", "missing CTA barrier after the wait"): ("detector",),
    ("counter", "plain"): ("detector", "weak"),
    ("counter", "missing release"): ("detector", "weak"),
    ("counter", "missing CTA barrier before the release"): ("detector", "weak"),
    ("counter", "wrong scope"): ("detector", "weak"),
    ("counter", "not atomic"): ALL,
    ("words", "missing wait"): ("weak", "numbers"),
    ("words", "wrong step"): ("weak", "numbers"),
    ("words", "probe of one word"): ("weak", "numbers"),
    ("words", "waits for itself"): ALL,
    ("words", "plain poll"): ("detector", "weak"),
    ("words", "plain read"): ("detector",),
    ("words", "computed sentinel"): ALL,
    ("words", "16-bit store"): ALL,
    ("ring", "never armed again"): ALL,
    ("ring", "missing fence"): ("detector", "weak"),
    ("ring", "ring too shallow"): ALL,
}


@pytest.mark.parametrize("protocol, bug", BUGS, ids=lambda v: v.replace(" ", "_"))
def test_bug_is_found(protocol, bug):
    found = {
        mode: explore(lambda **o: recur(protocol, bug, **o), SCHEDULES, **options)
        for mode, options in MODES.items()
    }
    print({mode: [type(f.error).__name__ for f in failures] for mode, failures in found.items()})
    assert tuple(mode for mode in MODES if found[mode]) == BUGS[protocol, bug]


CORRECT = [("counter", ""), ("counter", "atomic"), ("words", ""), ("ring", "")]
EVERY_MODE = {**MODES, "all": {"memory": "weak", "switch": "mem"}}


@pytest.mark.parametrize("mode", EVERY_MODE)
@pytest.mark.parametrize("protocol, variant", CORRECT)
def test_no_false_alarm(protocol, variant, mode):
    assert explore(lambda **o: recur(protocol, variant, **o), SCHEDULES, **EVERY_MODE[mode]) == []
