"""One test body under many schedules."""

from .errors import CooperativeError
from .schedules import Replay

DEFAULT = (
    ("rr", 0),
    ("ahead", 0),
    ("ahead", 1),
    ("ahead", 2),
    ("starve", 0),
    ("starve", 1),
    ("random", 0),
    ("random", 1),
    ("pct", 0),
    ("pct", 1),
)


class Failure:
    """A schedule (name and seed, or the choices of a Replay) and what it brought to light."""

    def __init__(self, schedule, seed, error):
        self.schedule, self.seed, self.error = schedule, seed, error

    def __repr__(self):
        return f"schedule={self.schedule!r}, seed={self.seed!r}: {type(self.error).__name__}: {self.error}"


def explore(body, schedules=DEFAULT, **options):
    """Run body(schedule=, seed=, **options), which opens `cooperate` with them, launches and asserts.

    Returns the Failures: CooperativeErrors and AssertionErrors; any other exception passes.
    """
    failures = []
    for schedule, seed in schedules:
        try:
            body(schedule=schedule, seed=seed, **options)
        except (CooperativeError, AssertionError) as error:
            failures.append(Failure(schedule, seed, error))
    return failures


def exhaustive(body, limit=10_000, preemptions=None, **options):
    """Run body(schedule=, **options), one launch each, under every interleaving of its switch points.

    preemptions: at most so many switches away from a program that could go on. For tiny launches only.
    Returns (runs, whether that was all within `limit`, Failures).
    """
    choices, runs, failures = [], 0, []
    while True:
        schedule = Replay(choices, preemptions)
        try:
            body(schedule=schedule, **options)
        except (CooperativeError, AssertionError) as error:
            failures.append(Failure("replay", choices, error))
        runs += 1
        trace = schedule.trace
        while trace and trace[-1][0] + 1 >= trace[-1][1]:
            trace.pop()
        if not trace:
            return runs, True, failures
        if runs == limit:
            return runs, False, failures
        choices = [choice for choice, _ in trace]
        choices[-1] += 1
