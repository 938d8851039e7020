"""The cooperative interpreter against small kernels: silent on the correct ones, loud on each planted bug."""

import threading

import pytest
import torch
import triton
import triton.language as tl
from cooperative import (
    ContractError,
    DeadlockError,
    LivelockError,
    NotModelledError,
    OutOfBoundsError,
    RaceError,
    Schedule,
    UninitializedReadError,
    cooperate,
    exhaustive,
    explore,
)

from rnn_triton.interpret import interpreter

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
            if BUG != "no guard":
                word = tl.where(word == -1, -2, word)
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
    if bug in ("no guard", "NaN"):
        x[1, 2:4].view(torch.int32).fill_(-1)  # NaN of all ones, which rounding to bf16 may keep
    dtype = torch.bfloat16 if protocol == "words" else torch.float32
    y = torch.empty(STEPS, WIDTH, dtype=dtype)
    with cooperate(**options) as run:
        if protocol == "words":
            run.channel(y)
            words_kernel[(PROGRAMS,)](x, y.view(torch.int32), STEPS, UNITS, WIDTH, bug)
        else:
            run.poison(y)
            if protocol == "counter":
                counter = torch.zeros(1, dtype=torch.int32)
                counter_kernel[(PROGRAMS,)](x, y, counter, STEPS, UNITS, WIDTH, bug)
            else:
                depth = 2 if bug == "ring too shallow" else 3
                ring = run.channel(torch.empty(depth, WIDTH, dtype=torch.int32), rearmed=True)
                ring_kernel[(PROGRAMS,)](x, y, ring, STEPS, UNITS, WIDTH, depth, bug)
    # sums of 12 terms below 4 in another order: fp32 errs by 12 * 2^-24 * 4 < 3e-6, which can turn one bf16 rounding
    # (2^-8 of 4 at most); the errors of later steps are means of those
    atol = 2**-6 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(y, expected(x, dtype), rtol=0, atol=atol, equal_nan=True)
    return run


# What finds which bug, under a few schedules: the detector (sequentially consistent memory), weak memory without it,
# sequentially consistent memory without it. R race, U read of unwritten memory, C contract, D deadlock,
# N no word from the interpreter, but wrong numbers.
MODES = {
    "detector": {},
    "weak": {"races": "off", "memory": "weak"},
    "sc": {"races": "off", "switch": "mem"},
}
SCHEDULES = (("rr", 0), ("ahead", 1), ("random", 0), ("starve", 1))
BUGS = {  # protocol, bug: found by the detector, by weak memory, by neither
    ("counter", "missing wait"): ("RU", "N", "N"),
    ("counter", "wrong step"): ("U", "N", "N"),
    ("counter", "off by one"): ("U", "N", "N"),
    ("counter", "waits for itself"): ("D", "D", "D"),
    ("counter", "early signal"): ("R", "N", "N"),
    ("counter", "missing acquire"): ("R", "N", ""),
    ("counter", "volatile"): ("R", "N", ""),
    ("counter", "plain"): ("R", "D", ""),
    ("counter", "missing CTA barrier after the wait"): ("R", "", ""),
    ("counter", "missing CTA barrier before the release"): ("R", "N", ""),
    ("counter", "missing release"): ("R", "N", ""),
    ("counter", "wrong scope"): ("R", "N", ""),
    ("counter", "not atomic"): ("R", "DN", "D"),
    ("words", "missing wait"): ("N", "N", "N"),
    ("words", "wrong step"): ("N", "N", "N"),
    ("words", "probe of one word"): ("N", "N", "N"),
    ("words", "waits for itself"): ("D", "D", "D"),
    ("words", "plain poll"): ("U", "D", ""),
    ("words", "plain read"): ("R", "N", ""),
    ("words", "no guard"): ("C", "C", "C"),
    ("words", "16-bit store"): ("C", "C", "C"),
    ("ring", "never armed again"): ("R", "N", "N"),
    ("ring", "missing fence"): ("R", "DN", ""),
    ("ring", "ring too shallow"): ("R", "D", "D"),
}
CODES = {
    RaceError: "R",
    UninitializedReadError: "U",
    ContractError: "C",
    DeadlockError: "D",
    LivelockError: "D",
    AssertionError: "N",
}


@pytest.mark.thin(3)
@pytest.mark.parametrize("protocol, bug", BUGS, ids=lambda v: v.replace(" ", "_"))
def test_bug_is_found(protocol, bug):
    found = []
    for options in MODES.values():
        failures = explore(lambda **o: recur(protocol, bug, **o), SCHEDULES, **options)
        found.append("".join(sorted({CODES[type(failure.error)] for failure in failures})))
    assert tuple(found) == BUGS[protocol, bug]


CORRECT = [("counter", ""), ("counter", "atomic"), ("words", ""), ("words", "NaN"), ("ring", "")]
EVERY_MODE = {**MODES, "all": {"memory": "weak", "switch": "mem"}}


@pytest.mark.thin(3)
@pytest.mark.parametrize("mode", EVERY_MODE)
@pytest.mark.parametrize("protocol, variant", CORRECT, ids=lambda v: v or "plain")
def test_no_false_alarm(protocol, variant, mode):
    assert explore(lambda **o: recur(protocol, variant, **o), SCHEDULES, **EVERY_MODE[mode]) == []


@pytest.mark.long
@pytest.mark.parametrize("protocol, variant", CORRECT, ids=lambda v: v or "plain")
def test_no_false_alarm_under_many_schedules(protocol, variant):
    for seed in range(40):
        schedules = [(name, seed) for name in ("random", "ahead", "starve", "pct")]
        options = {"memory": ("sc", "weak")[seed % 2], "switch": ("sync", "mem")[seed // 2 % 2]}
        options["drain"] = (0.0, 0.1, 0.5)[seed % 3]
        assert explore(lambda **o: recur(protocol, variant, **o), schedules, **options) == []


# -- schedules and reports -----------------------------------------------------------------------------------


@triton.jit
def meet_kernel(counter_ptr, out_ptr, ROUNDS: tl.constexpr, BUG: tl.constexpr):
    """All add one, wait for all; out[programs, ROUNDS] what each then sees of the next one's slot."""
    pid = tl.program_id(0)
    programs = tl.num_programs(0)
    for r in range(ROUNDS):
        tl.store(out_ptr + pid * ROUNDS + r, r + 1)
        tl.debug_barrier()
        tl.atomic_add(counter_ptr, 1, sem="release")
        if BUG != "missing wait":
            while tl.atomic_add(counter_ptr, 0, sem="acquire") < programs * (r + 1):
                pass
        there = tl.load(out_ptr + ((pid + 1) % programs) * ROUNDS + r)
        tl.atomic_max(counter_ptr + 1, tl.where(there == r + 1, 0, 1), sem="relaxed")


def meet(programs=2, rounds=1, bug="", **options):
    counter = torch.zeros(2, dtype=torch.int32)
    out = torch.zeros(programs, rounds, dtype=torch.int32)
    with cooperate(**options) as run:
        meet_kernel[(programs,)](counter, out, rounds, bug)
    assert counter.tolist() == [programs * rounds, 0]
    return run


def test_exhaustive():
    runs, complete, failures = exhaustive(meet, limit=500)
    assert complete and runs > 10 and failures == []
    runs, complete, failures = exhaustive(lambda **o: meet(bug="missing wait", **o), limit=500, races="off")
    assert complete and 0 < len(failures) < runs
    bounded, complete, _ = exhaustive(meet, limit=500, preemptions=1)
    assert complete and bounded < exhaustive(meet, limit=500)[0]
    assert exhaustive(meet, limit=3)[:2] == (3, False)


def test_schedules_are_functions_of_their_seed():
    def picks(order, **options):
        class Recording(Schedule):
            def pick(self, ready, last):
                choice = self.rng.choice(ready)
                taken.append(choice)
                return choice

        taken = []
        stats = meet(3, 3, schedule=Recording(order), **options).stats
        return taken, stats

    assert picks(5) == picks(5)
    assert picks(5)[0] != picks(6)[0]
    assert picks(5, memory="weak", seed=2) == picks(5, memory="weak", seed=2)


def test_deadlock_report():
    with pytest.raises(DeadlockError) as caught:
        recur("counter", "waits for itself", schedule="random", seed=4)
    text = str(caught.value)
    assert "schedule=random, seed=4" in text
    assert "waiting: program 0, program 1, program 2" in text
    assert "in wait_asm: tl.inline_asm_elementwise(" in text
    assert "wait_asm(counter_ptr, programs * (t + 1), WAIT, True)   [T=5, " in text
    assert ", t=1]" in text and "counter_ptr[0] = 3" in text
    with pytest.raises(DeadlockError, match=r"6 of 6 words hold the sentinel, first y_ptr\[1, 0\]"):
        recur("words", "waits for itself")


def test_race_report():
    with pytest.raises(RaceError) as caught:
        recur("counter", "missing release")
    first, second, third = str(caught.value).splitlines()
    assert first.startswith("race on y_ptr[0, ") and "is not ordered after the write by program " in first
    assert "counter_kernel: before = tl.load(y_ptr + (t - 1) * WIDTH" in second
    assert "counter_kernel: tl.store(y_ptr + t * WIDTH + own, a)" in third


def test_collected():
    run = recur("counter", "missing release", races="collect")
    assert {type(problem) for problem in run.problems} == {RaceError}
    assert len(run.problems) == len({str(problem) for problem in run.problems})


def test_residency():
    meet(programs=4, resident=4)
    with pytest.raises(DeadlockError, match="never started: program 3"):
        meet(programs=4, resident=3)


@triton.jit
def give_up_kernel(flag_ptr, out_ptr, LIMIT: tl.constexpr):
    polls = 0
    while (tl.load(flag_ptr, volatile=True) == 0) & (polls < LIMIT):
        polls += 1
    tl.store(out_ptr, polls)


def test_bounded_spin():
    """One that counts its polls may go on to its limit, within reason."""
    flag, out = torch.zeros(2, dtype=torch.int32)
    with cooperate():
        give_up_kernel[(1,)](flag, out, 50)
    assert out == 50
    with cooperate(), pytest.raises(LivelockError, match="polls changed nothing"):
        give_up_kernel[(1,)](flag, out, 1_000_000)


# -- memory --------------------------------------------------------------------------------------------------


@triton.jit
def torn_kernel(x_ptr, torn_ptr, N: tl.constexpr, BITS: tl.constexpr):
    """Program 0 fills x bf16[2N] with ones, program 1 looks for words of which it sees one half."""
    if tl.program_id(0) == 0:
        if BITS == 32:
            words_ptr = x_ptr.to(tl.pointer_type(tl.int32), bitcast=True)
            tl.store(words_ptr + tl.arange(0, N), tl.full([N], 0x3F803F80, tl.int32))
        else:
            tl.store(x_ptr + tl.arange(0, 2 * N), tl.full([2 * N], 1.0, tl.bfloat16))
        for i in range(8):  # time for the buffer to drain in parts
            tl.atomic_add(torn_ptr + 1, 1, sem="relaxed")
    else:
        words_ptr = x_ptr.to(tl.pointer_type(tl.int32), bitcast=True)
        for i in range(20):
            words = tl.load(words_ptr + tl.arange(0, N), volatile=True)
            torn = tl.max(((words != 0) & (words != 0x3F803F80)).to(tl.int32))
            tl.atomic_max(torn_ptr, torn, sem="relaxed")


@pytest.mark.parametrize("bits", [32, 16])
def test_weak_memory_tears_nothing_that_was_stored_whole(bits):
    torn = []
    for seed in range(8):
        x, flags = torch.zeros(16, dtype=torch.bfloat16), torch.zeros(2, dtype=torch.int32)
        with cooperate("random", seed, memory="weak", races="off", drain=0.5):
            torn_kernel[(2,)](x, flags, 8, bits)
        assert (x == 1).all()
        torn.append(int(flags[0]))
    assert any(torn) == (bits == 16)


def test_channel_contract():
    x, y = torch.zeros(STEPS, WIDTH), torch.zeros(STEPS, WIDTH, dtype=torch.bfloat16)
    launch = words_kernel[(PROGRAMS,)]
    with (
        cooperate() as run,
        pytest.raises(ContractError, match=r"'y_ptr' is not pre-filled.*first y_ptr\[0, 0\]"),
    ):
        run.channel(y, fill=False)
        launch(x, y.view(torch.int32), STEPS, UNITS, WIDTH, "")
    with cooperate(channels=("y_ptr",)), pytest.raises(ContractError, match="not pre-filled"):
        launch(x, y.view(torch.int32), STEPS, UNITS, WIDTH, "")
    y.view(torch.int16).fill_(-1)
    with cooperate(channels=("y_ptr",)):
        launch(x, y.view(torch.int32), STEPS, UNITS, WIDTH, "")
    with cooperate(channels=("y_ptr",), continued=True), pytest.raises(ContractError, match="what is there is final"):
        launch(x, y.view(torch.int32), STEPS, UNITS, WIDTH, "")
    y.view(torch.int16).fill_(-1)
    with cooperate(channels=("y_ptr",), continued=True):
        launch(x, y.view(torch.int32), STEPS, UNITS, WIDTH, "")
    with cooperate() as run:
        for bad in (y[:, :4], y.view(-1)[1:3], y.view(-1)[:3]):  # strided, not aligned, not whole
            with pytest.raises(ValueError, match="whole 32-bit words"):
                run.channel(bad)


@triton.jit
def copy_kernel(x_ptr, y_ptr, N: tl.constexpr, SHIFT: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(y_ptr + i + SHIFT, tl.load(x_ptr + i))


def test_poison_and_bounds():
    x, y = torch.ones(16, dtype=torch.bfloat16), torch.zeros(16, dtype=torch.bfloat16)
    with cooperate(poisoned=("y_ptr",)) as run:
        copy_kernel[(1,)](x, y[:8], 4, 2)
        assert y[2:6].eq(1).all() and y[:2].isnan().all() and y[6:8].isnan().all() and y[8:].eq(0).all()
        run.poison(x[4:])
        copy_kernel[(1,)](x, y, 4, 0)
        with pytest.raises(
            UninitializedReadError, match=r"program 0 reads x_ptr\[4\], which was never written"
        ):
            copy_kernel[(1,)](x, y, 8, 0)
        with pytest.raises(OutOfBoundsError, match="writes outside.* 2 bytes past the end of 'y_ptr'"):
            copy_kernel[(1,)](x, y[:8], 4, 5)


@triton.jit
def lock_kernel(lock_ptr, sum_ptr, BUG: tl.constexpr):
    while tl.atomic_cas(lock_ptr, 0, 1, sem="acquire") != 0:
        pass
    tl.store(sum_ptr, tl.load(sum_ptr) + tl.program_id(0))
    tl.debug_barrier()
    tl.atomic_xchg(lock_ptr, 0, sem="relaxed" if BUG else "release")


@pytest.mark.parametrize("mode", EVERY_MODE)
def test_lock(mode):
    def run(bug, **options):
        lock, total = torch.zeros(2, dtype=torch.int32)
        with cooperate(**options, **EVERY_MODE[mode]):
            lock_kernel[(4,)](lock, total, bug)
        assert total == 6

    assert explore(lambda **o: run(False, **o), SCHEDULES) == []
    if mode != "sc":
        assert explore(lambda **o: run(True, **o), SCHEDULES)


# -- inline assembly -----------------------------------------------------------------------------------------


@triton.jit
def fences_kernel(x_ptr, counter_ptr, out_ptr, N: tl.constexpr, HOW: tl.constexpr):
    """Relaxed signals and volatile polls, ordered by fences."""
    pid = tl.program_id(0)
    programs = tl.num_programs(0)
    i = tl.arange(0, N)
    tl.store(x_ptr + pid * N + i, (i + pid).to(tl.float32))
    if HOW == "barrier, fence":
        tl.debug_barrier()
    if HOW != "no release":
        fence()
    if HOW != "fence alone" and HOW != "barrier, fence":
        tl.debug_barrier()
    tl.atomic_add(counter_ptr, 1, sem="relaxed")
    while tl.load(counter_ptr, volatile=True) < programs:
        pass
    if HOW != "no acquire":
        fence()
    tl.store(out_ptr + pid * N + i, tl.load(x_ptr + ((pid + 1) % programs) * N + i))


@pytest.mark.parametrize(
    "how", ["fence, barrier", "barrier, fence", "fence alone", "no release", "no acquire"]
)
def test_fences(how):
    def run(**options):
        x, out, counter = torch.zeros(3, 4), torch.zeros(3, 4), torch.zeros(1, dtype=torch.int32)
        with cooperate(**options):
            fences_kernel[(3,)](x, counter, out, 4, how)
        assert torch.equal(out, (torch.arange(4.0) + torch.arange(3)[:, None]).roll(-1, 0))

    failures = explore(run, SCHEDULES)
    assert [type(failure.error) for failure in failures] == [RaceError] * (
        0 if "," in how else len(SCHEDULES)
    )
    if "," in how:
        assert explore(run, SCHEDULES, memory="weak", switch="mem") == []


@triton.jit
def signal_asm(counter_ptr, GUARD: tl.constexpr):
    if GUARD:
        tl.inline_asm_elementwise(
            "{ .reg .pred p; .reg .b32 t; mov.u32 t, %tid.x; setp.eq.u32 p, t, 0;"
            "@p red.release.gpu.global.add.u32 [$1], 1; mov.u32 $0, 0; }",
            "=r,l",
            [counter_ptr],
            dtype=tl.int32,
            is_pure=False,
            pack=1,
        )
    else:
        tl.inline_asm_elementwise(
            "red.release.gpu.global.add.u32 [$1], 1; mov.u32 $0, 0;",
            "=r,l",
            [counter_ptr],
            dtype=tl.int32,
            is_pure=False,
            pack=1,
        )


@triton.jit
def signal_kernel(counter_ptr, GUARD: tl.constexpr):
    signal_asm(counter_ptr, GUARD)


def test_assembly_that_every_thread_executes():
    counter = torch.zeros(1, dtype=torch.int32)
    with cooperate():
        signal_kernel[(3,)](counter, True)
        assert counter == 3
        with pytest.raises(ContractError, match="without a test of %tid"):
            signal_kernel[(3,)](counter, False)


@triton.jit
def four_words(x_ptrs):
    return tl.inline_asm_elementwise(
        "ld.relaxed.gpu.global.v4.b32 {$0, $1, $2, $3}, [$4];",
        "=r,=r,=r,=r,l,l,l,l",
        [x_ptrs],
        dtype=tl.int32,
        is_pure=False,
        pack=4,
    )


@triton.jit
def four_words_kernel(x_ptr, out_ptr):
    i = tl.arange(0, 4)
    tl.store(out_ptr + i, four_words(x_ptr + i))


def test_packed_assembly_needs_an_implementation(monkeypatch):
    x, out = torch.arange(4, dtype=torch.int32), torch.zeros(4, dtype=torch.int32)
    with cooperate(), pytest.raises(NotModelledError, match="(?s)pack = 4.*interpreter_impl"):
        four_words_kernel[(1,)](x, out)
    monkeypatch.setattr(interpreter, "_impls", dict(interpreter._impls))
    interpreter.interpreter_impl(four_words)(lambda x_ptrs: tl.load(x_ptrs, volatile=True))
    with cooperate() as run:
        four_words_kernel[(1,)](x, out)
    assert torch.equal(x, out) and run.stats["operations"] == 2


@triton.jit
def hand_on_kernel(x_ptr, flag_ptr, out_ptr, N: tl.constexpr, HOW: tl.constexpr):
    """Triton 3.9's spellings: program p takes the row of the program before it."""
    pid = tl.program_id(0)
    left = (pid + tl.num_programs(0) - 1) % tl.num_programs(0)
    i = tl.arange(0, N)
    tl.store(out_ptr + pid * N + i, tl.load(x_ptr + pid * N + i))
    tl.debug_barrier()
    tl.atomic_store(flag_ptr + pid, 1, sem="relaxed" if HOW == "relaxed" else "release")
    if HOW == "poll":
        tl.atomic_poll(flag_ptr + left, 1)
    else:
        while tl.atomic_load(flag_ptr + left, sem="acquire") < 1:
            pass
    tl.store(x_ptr + pid * N + i, tl.load(out_ptr + left * N + i))


@pytest.mark.skipif(not hasattr(tl, "atomic_load"), reason="new in Triton 3.9")
@pytest.mark.parametrize("how", ["load", "poll", "relaxed"])
def test_atomic_load_store_poll(how):
    def run(**options):
        x, flags, out = torch.randn(3, 4), torch.zeros(3, dtype=torch.int32), torch.zeros(3, 4)
        want = x.roll(1, 0)
        with cooperate(**options):
            hand_on_kernel[(3,)](x, flags, out, 4, how)
        assert torch.equal(x, want)

    failures = explore(run, SCHEDULES) + explore(run, SCHEDULES, memory="weak", switch="mem")
    assert bool(failures) == (how == "relaxed")


# -- tidiness ------------------------------------------------------------------------------------------------


def test_nothing_stays_patched():
    import triton.runtime.interpreter as stock

    owners = [stock, stock.InterpreterBuilder, stock.GridExecutor, stock.InterpretedFunction]
    owners += [tl, tl.core, tl.math, tl.core.tensor]
    with interpreter.accurate():
        pass  # what it leaves in the stock interpreter's own state is its test's business
    before = [dict(vars(owner)) for owner in owners]
    threads = threading.active_count()
    recur("words", "")
    for bug, options in (("waits for itself", {}), ("16-bit store", {"memory": "weak"})):
        with pytest.raises((DeadlockError, ContractError)):
            recur("words", bug, **options)
    assert threading.active_count() == threads
    for owner, attributes in zip(owners, before, strict=True):
        now = dict(vars(owner))
        changed = [
            name for name in attributes.keys() | now.keys() if attributes.get(name) is not now.get(name)
        ]
        assert changed == [], owner
    x, y = torch.arange(4.0), torch.zeros(4)
    copy_kernel[(1,)](x, y, 4, 0)  # by the stock interpreter
    assert torch.equal(x, y)


def test_bad_use(monkeypatch):
    with cooperate(), pytest.raises(NotModelledError, match="does not nest"):
        with cooperate():
            pass
    with pytest.raises(ValueError, match="memory: one of"):
        with cooperate(memory="strong"):
            pass
    with pytest.raises(KeyError):
        with cooperate("alphabetical"):
            pass
    monkeypatch.setattr(interpreter, "active", lambda: False)
    with pytest.raises(NotModelledError, match="TRITON_INTERPRET=1"), cooperate():
        pass
