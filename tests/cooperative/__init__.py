"""Triton's interpreter with all programs of a launch alive at once, for kernels whose programs wait for each other.

    with cooperate(schedule="random", seed=3) as run:
        run.poison(y)           # fill with NaN; plain reads of what nobody has written are errors
        run.channel(ring)       # fill with the sentinel; a channel whose data are their own flag
        kernel[(programs,)](x, y, ring, counter)
    run.stats, run.problems

Programs are coroutines, one runs at a time; a schedule, a function of its seed, picks the next at every access
that synchronises. Needs TRITON_INTERPRET=1; arithmetic, inline assembly and helper implementations are those of
`rnn_triton.interpreter`. Inline assembly that is not registered there and has pack == 1 is executed as PTX, so
its loads, stores, atomics, fences and barriers count. See `cooperate` for the options.

What reports what:

detector        races="raise" (default): accesses not ordered by happens-before, whatever the schedule was;
                reads of unwritten memory. Sees order, not values.
weak memory     memory="weak": stores become visible late and piecemeal, loads may be stale until an acquire;
                missing order then shows in the numbers.
contract        always: computed sentinels, channel stores narrower than the word, channels not pre-filled.
deadlock        always: who waits where, for which words, holding what.
numbers         the test's own comparison, under several schedules.

No mode is enough alone. None sees inside a CTA (shared memory, warps), the compiler, or time; of a CTA's threads
the model knows only "thread 0" (scalar accesses, assembly guarded by %tid) and "all".
"""

from .errors import (
    ContractError,
    CooperativeError,
    DeadlockError,
    LivelockError,
    NotModelledError,
    OutOfBoundsError,
    RaceError,
    UninitializedReadError,
)
from .explore import Failure, exhaustive, explore
from .schedules import SCHEDULES, Schedule
from .session import Session, cooperate

__all__ = [
    "SCHEDULES",
    "ContractError",
    "CooperativeError",
    "DeadlockError",
    "Failure",
    "LivelockError",
    "OutOfBoundsError",
    "RaceError",
    "Schedule",
    "Session",
    "UninitializedReadError",
    "NotModelledError",
    "cooperate",
    "exhaustive",
    "explore",
]
