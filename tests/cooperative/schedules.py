"""Schedules: who runs next. Each is a deterministic function of its seed.

A Schedule object may be given instead of a name; it serves one launch at a time (`start` resets it).
"""

import random


class Schedule:
    """Round robin. Subclasses choose differently."""

    def __init__(self, seed=0):
        self.seed = seed

    def start(self, programs):
        """A launch of this many programs begins."""
        self.programs = programs
        self.rng = random.Random(f"{type(self).__name__}:{self.seed}")

    def pick(self, ready, last):
        """One of `ready` (program ids, ascending, not empty); `last` ran before (None at first)."""
        base = -1 if last is None else last
        return min(ready, key=lambda pid: (pid - base - 1) % self.programs)


class Random(Schedule):
    def pick(self, ready, last):
        return self.rng.choice(ready)


class Ahead(Schedule):
    """One program runs until it blocks, then the next. Seed 0: by id, 1: by id backwards, else shuffled."""

    def start(self, programs):
        super().start(programs)
        order = list(range(programs))
        if self.seed == 1:
            order.reverse()
        elif self.seed > 1:
            self.rng.shuffle(order)
        self.rank = {pid: i for i, pid in enumerate(order)}

    def pick(self, ready, last):
        return last if last in ready else min(ready, key=self.rank.__getitem__)


class Starve(Schedule):
    """Program `seed` runs only when nobody else can; the others at random."""

    def pick(self, ready, last):
        victim = self.seed % self.programs
        return self.rng.choice([pid for pid in ready if pid != victim] or ready)


class Pct(Schedule):
    """Random strict priorities with `depth` - 1 random demotions (Burckhardt et al., ASPLOS 2010)."""

    def __init__(self, seed=0, depth=3, horizon=200):
        super().__init__(seed)
        self.depth, self.horizon = depth, horizon

    def start(self, programs):
        super().start(programs)
        priorities = [self.depth + i for i in range(programs)]
        self.rng.shuffle(priorities)
        self.priority = dict(enumerate(priorities))
        self.demotions = {self.rng.randrange(1, self.horizon): low for low in range(self.depth - 1)}
        self.step = 0

    def pick(self, ready, last):
        self.step += 1
        best = max(ready, key=self.priority.__getitem__)
        if self.step in self.demotions:
            self.priority[best] = self.demotions[self.step]
            best = max(ready, key=self.priority.__getitem__)
        return best


class Replay(Schedule):
    """Follow `choices`, then continue whoever runs; option 0 is always to continue. Records what it did."""

    def __init__(self, choices=(), preemptions=None):
        super().__init__()
        self.choices, self.preemptions = list(choices), preemptions

    def start(self, programs):
        super().start(programs)
        self.trace = []  # (choice, number of options)
        self.used = 0

    def pick(self, ready, last):
        can_stay = last in ready
        if can_stay:
            ready = [last, *(pid for pid in ready if pid != last)]
            if self.used == self.preemptions:
                ready = ready[:1]
        i = len(self.trace)
        choice = min(self.choices[i], len(ready) - 1) if i < len(self.choices) else 0
        self.used += can_stay and choice > 0
        self.trace.append((choice, len(ready)))
        return ready[choice]


SCHEDULES = {"rr": Schedule, "random": Random, "ahead": Ahead, "starve": Starve, "pct": Pct}
