"""The tests of kernels whose CTAs exchange data can fail: defects planted in the real source of kernels/ are each noticed.

`MUTANTS` in support/mutants.py is the table: what is changed, and which modes notice it.  A mode is a way to look at a
launch in the cooperative interpreter:

numbers   the results against the reference, the race detector off
detector  accesses that nothing orders, whatever came of them
weak      the results again, in a memory as weak as a GPU's, the detector off
contract  stores that the sentinel protocol forbids, launches without the fill
deadlock  who waits for ever
stuck     a program leaves early: results, report, end (support/stuck.py)

Every mode that the table names must notice the mutant by itself, in one of its schedules; the source as it is must pass
all of them.  Inside a CTA, and in the compiler, none of them sees anything: see test_compile.py for that.
"""

import numpy as np
import pytest
import torch
from cooperative import (
    ContractError,
    CooperativeError,
    DeadlockError,
    LivelockError,
    OutOfBoundsError,
    RaceError,
    UninitializedReadError,
    ptx,
)
from support import stuck
from support.grids import assert_same_where_finite
from support.mutants import (
    MUTANTS,
    STUCK_LAYERS,
    TEXT_MUTANTS,
    Change,
    NoLongerAppliesError,
    changed,
    patched,
)
from support.stacks import Stack

from rnn_triton.kernels import exchange
from rnn_triton.launch import cta_group, faults, recurrence

interpret = pytest.mark.interpret
CPU = torch.device("cpu")

SCHEDULES = (
    dict(schedule="starve", seed=1),
    dict(schedule="ahead"),
    dict(schedule="rr"),
    dict(schedule="random", switch="mem", seed=1),
)
# options, and what the mode reports by
MODES = {
    "numbers": (dict(races="off"), AssertionError),
    "detector": (dict(), (RaceError, UninitializedReadError)),
    "weak": (dict(races="off", memory="weak"), AssertionError),
    "contract": (dict(races="off"), (ContractError, OutOfBoundsError)),
    "deadlock": (dict(races="off"), (DeadlockError, LivelockError)),
    "stuck": (dict(), (AssertionError, DeadlockError, LivelockError)),
}


def inputs(case, direction, data):
    tensors = case.inputs(direction)
    integers = {2: torch.int16, 4: torch.int32}[case.dtype.itemsize]
    if data == "sentinels":  # in h0, or dy
        tensors[5 if direction == "forward" else 2].view(integers)[..., 1, 4:12] = -1
    elif data == "infinite weight":
        w_hh = tensors[0] if torch.is_tensor(tensors[0]) else tensors[1][-1]  # of a stack the top layer's
        w_hh[3, 5] = float("inf")
    elif data == "infinite x":  # and positive weights: inf, not NaN, in all units
        x, w_ih, w_hh, *_ = tensors
        w_hh.abs_().clamp_(min=0.01)
        w_ih.abs_()
        x.abs_()[0, 1] = float("inf")
    else:
        assert data == "plain"
    return tensors


def look(mode, case, direction, data, changes=()):
    """What each schedule of the mode brings to light, until one does: None, or the exception"""
    options, reports = MODES[mode]
    tensors = inputs(case, direction, data)
    expected = case.expected(direction, tensors)
    with patched(*changes, *[stuck.DEAD] if mode == "stuck" else []) as kernels:
        for schedule in SCHEDULES[:1] if mode == "stuck" else SCHEDULES:
            try:
                if mode == "stuck":
                    stuck.check(case, direction, kernels)
                else:
                    results = case.run(direction, tensors, module=kernels.recurrence, mode={**schedule, **options})
                    assert_same_where_finite(results, expected, case.tolerance)
            except reports as error:
                return error
            except CooperativeError as error:
                if not changes:
                    return error  # not this mode's to report, but the source as it is has none
            finally:
                faults.word(CPU).zero_()  # one run's report is not the next one's
    return None


STACKS_BY_DEFAULT = ("x is taken as it is found", "its own state for x")  # of the wait between layers, one a mode


def by_default(mutant):
    return not isinstance(mutant.case, Stack) or mutant.name in STACKS_BY_DEFAULT


# by default the first mode of each mutant but of most of stacks, with --long every one
TABLE = [
    pytest.param(
        m, mode, id=f"{m.name} - {mode}", marks=() if mode == m.killed_by[0] and by_default(m) else pytest.mark.long
    )
    for m in MUTANTS
    for mode in m.killed_by
]


@pytest.mark.thin(3)
@interpret
@pytest.mark.parametrize("mutant, mode", TABLE)
def test_is_noticed(mutant, mode):
    found = look(mode, mutant.case, mutant.direction, mutant.data, mutant.changes)
    assert found is not None, f"'{mutant.name}' survives {mode}"


def runs(default):
    """by default one of each mode and direction; test_stack.py runs stacks"""
    if not default:
        return {(mode, m.case, m.direction, m.data) for m in MUTANTS for mode in m.killed_by}
    first = {}
    for m in MUTANTS:
        if not isinstance(m.case, Stack):
            first.setdefault((m.killed_by[0], m.direction), (m.killed_by[0], m.case, m.direction, m.data))
    return set(first.values())


@interpret
@pytest.mark.parametrize(
    "mode, case, direction, data",
    [pytest.param(*r, marks=() if r in runs(True) else pytest.mark.long) for r in sorted(runs(False), key=str)],
    ids=str,
)
def test_the_source_as_it_is_passes(mode, case, direction, data):
    found = look(mode, case, direction, data)
    if found is not None:
        raise found


def test_the_table():
    """Mutants have names of their own and a mode each; every mode is needed by some mutant that no other notices."""
    assert len(MUTANTS) >= 26 and len({m.name for m in MUTANTS}) == len(MUTANTS)
    alone = {m.killed_by[0] for m in MUTANTS if len(m.killed_by) == 1}
    assert alone == set(MODES) - {"weak"}  # what weak memory shows, the detector sees too


def test_a_change_that_no_longer_applies():
    for source in ("b", "a a"):
        with pytest.raises(NoLongerAppliesError):
            changed(source, Change("cta_group.py", "a", "c"))
    with pytest.raises(NoLongerAppliesError), patched(Change("cta_group.py", "nothing like it", "")):
        pass


def test_patching_leaves_the_source_alone():
    with patched(stuck.DEAD) as kernels:
        assert kernels.recurrence.cta_group.cta_group is kernels.cta_group.cta_group is not cta_group.cta_group
        assert kernels.recurrence.operands is kernels.operands is not recurrence.operands
        assert kernels.recurrence.faults is recurrence.faults, "else tests look at another word than launches report in"
        assert kernels.cta_group.cta_group.fn.__code__.co_filename != cta_group.cta_group.fn.__code__.co_filename
    assert recurrence.Recurrence.__module__ == "rnn_triton.launch.recurrence"


@interpret
@pytest.mark.long
@pytest.mark.parametrize("name", STUCK_LAYERS)
def test_a_failure_that_does_not_reach_later_layers(name):
    """test_stack.py's test_stuck passes with the same changes less this one."""
    change, happens, direction = STUCK_LAYERS[name]
    case = Stack(5, 3, 8, 40, layers=3, nonlinearity="relu")
    with patched(change, getattr(stuck, happens)(0)) as kernels:
        try:
            with pytest.raises((AssertionError, DeadlockError, LivelockError)):
                stuck.check_layers(case, direction, kernels, 0, happens == "dead")
        finally:
            faults.word(CPU).zero_()


# ---- the text of verify ---------------------------------------------------------------------------------------------
#
# Inline assembly of several elements an invocation: what the interpreter runs in its place (rnn_triton/interpret/assembly.py)
# is another program.  Here the text itself is executed, one thread of it, against a memory that follows a script.

SENTINEL = 0xFFFFFFFF
BASES = (1 << 20, 1 << 21)  # of a thread's chunks j = 0, 1 of the first tile
APART, ERROR = 512, 64


class Script:
    """Memory: `words[address]` is a list of what successive loads get, the last one for ever."""

    def __init__(self, words, error=SENTINEL):
        self.words = {address: list(values) for address, values in words.items()}
        self.words[ERROR] = list(error) if isinstance(error, tuple) else [error]
        self.loads, self.stores, self.looks, self.fences = [], [], 0, 0

    def load(self, addresses, lanes, dtype, sem, scope, cache, alone):
        (address,) = addresses.tolist()
        assert address in self.words, f"a load of address {address}"
        assert sem == "relaxed" and scope == "gpu"
        self.loads.append(address)
        self.looks += address == ERROR
        values = self.words[address]
        return np.array([values.pop(0) if len(values) > 1 else values[0]], dtype)

    def store(self, addresses, values, lanes, sem, scope, cache, alone):
        assert sem == "relaxed" and scope == "gpu"
        self.stores.append((int(addresses[0]), int(values[0])))

    def fence(self, acquire, release, alone):
        assert acquire and release
        self.fences += 1

    def atomic(self, name, addresses, values, lanes, operation, sem, scope, alone):
        assert name == "red.min" and not self.fences
        self.store(addresses, values[0], lanes, sem, scope, "", alone)


class Thread(ptx.Machine):
    """of an invocation that ends"""

    left = 20_000

    def execute(self, *arguments):
        self.left -= 1
        assert self.left, "spins on"
        super().execute(*arguments)


def execute(text, memory, words, skip=0, step=7, limit=128):
    """The words that a thread comes out with.  words: [tiles][pack]"""
    tiles, pack = len(words), len(words[0])
    n = tiles * pack
    registers = {}

    def give(first, values, dtype):
        registers.update({f"${first + i}": np.array([v], dtype) for i, v in enumerate(values)})

    give(n, [BASES[i // 4] + 4 * (i % 4) for i in range(pack)], np.uint64)
    give(n + pack, [skip] * pack, np.uint32)
    give(n + 2 * pack, [ERROR] * pack, np.uint64)
    give(n + 3 * pack, [step] * pack, np.uint32)
    give(n + 4 * pack, [limit] * pack, np.uint32)
    give(n + 5 * pack, [w for tile in words for w in tile], np.uint32)
    Thread(memory, text, registers, 1).run()
    return [[int(registers[f"${k * pack + i}"][0]) for i in range(pack)] for k in range(tiles)]


def chunk_address(tile, i):
    return BASES[i // 4] + APART * tile + 4 * (i % 4)


def check_text(verify_text, tiles, pack, lowers=False):
    """`verify`'s contract, of `tiles` tiles with `pack` words a thread; lowers: whoever goes on without words says so"""
    text = verify_text(tiles, pack, APART, lowers=lowers)
    told = [(ERROR, 7)] if lowers else []
    data = [[100 * k + i for i in range(pack)] for k in range(tiles)]
    places = [(k, i) for k in range(tiles) for i in range(pack)]

    def memory(late=(), polls=1, **options):
        """in which the words `late` are the sentinel for the first `polls` - 1 loads, all others are there"""
        return Script({
            chunk_address(k, i): [SENTINEL] * (polls - 1 if (k, i) in late else 0) + [data[k][i]] for k, i in places
        }, **options)  # fmt: skip

    def found(late):
        return [[SENTINEL if (k, i) in late else data[k][i] for i in range(pack)] for k in range(tiles)]

    # all there: no load at all; given data are taken as they are
    everything = memory()
    assert execute(text, everything, data) == data and not everything.loads
    given = memory()
    assert execute(text, given, found(places), skip=1) == found(places) and not given.loads
    assert given.stores == told
    # each word alone is missing: its chunk, and no other, is read until it is there
    for k, i in places:
        one = memory([(k, i)], polls=3)
        assert execute(text, one, found([(k, i)])) == data
        chunk = [chunk_address(k, i // 4 * 4 + j) for j in range(4)]
        assert one.loads == 3 * chunk and not one.stores and not one.fences
    # all missing, and each chunk's first word comes last
    late = [(k, i) for k, i in places if i % 4 == 0]
    every = memory(late, polls=5)
    assert execute(text, every, found(places)) == data
    # never there: the group is told at the limit, neither before nor long after, and what the thread stores next comes behind that
    for limit in (128, 256):
        never = memory(places, polls=10_000)
        assert execute(text, never, found(places), limit=limit) == found(places)
        assert never.stores == [(ERROR, 7)] and never.fences == 1
        assert never.loads.count(chunk_address(0, 0)) == limit and never.looks == limit // exchange.POLLS_PER_LOOK.value
    # another has failed, before or meanwhile: no more waiting
    for error, looks in ((3, 1), ((SENTINEL, 3), 2)):
        failed = memory(places, polls=10_000, error=error)
        assert execute(text, failed, found(places), limit=1 << 20) == found(places)
        assert failed.looks == looks and failed.stores == told and failed.fences == 1


SIZES = [(1, 4), (2, 4), (3, 8)]


@pytest.mark.parametrize("lowers", [False, True])
@pytest.mark.parametrize("tiles, pack", SIZES)
def test_text_of_verify(tiles, pack, lowers):
    check_text(exchange._verify_text.fn, tiles, pack, lowers)


@pytest.mark.parametrize("name", TEXT_MUTANTS)
def test_changed_text_of_verify_is_noticed(name):
    with patched(Change("exchange.py", *TEXT_MUTANTS[name])) as kernels:
        with pytest.raises(AssertionError):
            for tiles, pack in SIZES:
                for lowers in (False, True):
                    check_text(kernels.exchange._verify_text.fn, tiles, pack, lowers)
