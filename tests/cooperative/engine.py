"""One launch: its programs, their accesses to memory, waiting, deadlock, reports."""

import collections
import linecache
import os
import sys
from dataclasses import dataclass

import numpy as np
import triton
import triton.language as tl

from rnn_triton.interpret import interpreter

from .coroutine import Coroutine
from .errors import (
    ContractError,
    DeadlockError,
    LivelockError,
    OutOfBoundsError,
    RaceError,
    UninitializedReadError,
)
from .memory import WORD, WeakMemory
from .races import Detector

# code that is not the kernel's
_MACHINERY = (
    os.path.dirname(triton.__file__) + os.sep,
    os.path.dirname(os.path.abspath(__file__)) + os.sep,
    interpreter.__file__,
    "<",
)
_ENTRY = "_cooperative_program"
_PLAIN_READS = 64  # plain loads without a store of one's own: from then on looked at as a spin loop would be
_LONG_RUN = 5000  # accesses without a switch


@dataclass(frozen=True)
class Access:
    """What a memory operation is in the memory model."""

    kind: str = "plain"
    sem: str | None = None  # None: plain; relaxed, acquire, release, acq_rel
    scope: str = "gpu"
    bypass: bool = False  # .cg and up: never a stale copy
    alone: bool = False  # by one thread of the CTA, the others unaware

    @property
    def sync(self):
        return self.sem is not None

    @property
    def acquires(self):
        return self.sem in ("acquire", "acq_rel") and self.scope != "cta"

    @property
    def releases(self):
        return self.sem in ("release", "acq_rel") and self.scope != "cta"


class Program:
    """state: new, ready, waiting (polled, found nothing new), done."""

    def __init__(self, pid, index, function):
        self.pid, self.index, self.function = pid, index, function
        self.coroutine = None
        self.state = "new"
        self.visits = {}  # (code site, addresses) -> (version of memory, low, high)
        self.watched = ()  # address ranges whose change ends the wait
        self.states = set()  # hashes of the states it polled in when nobody else could run
        self.stuck = False
        self.run_length = self.reads = self.polls = self.operations = 0
        self.waits = None  # frames, addresses, item size
        self.registers = None  # of the inline assembly it is in

    def __repr__(self):
        x, y, z = self.index
        return f"program {x}" if y == z == 0 else f"program {self.index}"


class Engine:
    """Runs programs to the end, or raises. Addresses are uint64 arrays."""

    def __init__(self, options, builder, functions, memory_map, problems, rng):
        """functions: {grid index: the program's function of no argument}; problems: collects what is not raised."""
        self.options, self.builder, self.map, self.problems = options, builder, memory_map, problems
        self.programs = [
            Program(pid, index, function) for pid, (index, function) in enumerate(functions.items())
        ]
        self.rng = rng
        self.current = None
        self.version = self.idle = self.switches = 0
        self.log = collections.deque(maxlen=256)  # (version, low, high): writes that changed memory
        self.reported = set()
        count = len(self.programs)
        self.detector = Detector(count, self._race, options.cta_strict) if options.races != "off" else None
        self.weak = WeakMemory(count, rng) if options.memory == "weak" else None
        self.late_acquire = [False] * count  # weak: thread 0's acquire reaches the CTA at the next barrier

    # -- scheduling ----------------------------------------------------------------------------------------------

    def run(self):
        schedule, last = self.options.schedule, None
        schedule.start(len(self.programs))
        try:
            while any(program.state != "done" for program in self.programs):
                ready = self._ready() or self._last_resort()
                if not ready:
                    continue
                if self.weak and self.rng.random() < self.options.drain:
                    self._changed_all(self.weak.drain_some(int(self.rng.integers(len(self.programs)))))
                last = schedule.pick([program.pid for program in ready], last)
                self._resume(self.programs[last])
            if self.weak:
                for program in self.programs:
                    self.weak.drain(program.pid)
        finally:
            self.current = None
            for program in self.programs:
                if program.coroutine is not None:
                    program.coroutine.kill()

    def _ready(self):
        alive = sum(program.state in ("ready", "waiting") for program in self.programs)
        room = len(self.programs) if self.options.resident is None else self.options.resident - alive
        ready = []
        for program in self.programs:
            if program.state == "new" and room > 0:
                room -= 1
                ready.append(program)
            elif program.state == "ready":
                ready.append(program)
        return ready

    def _resume(self, program):
        def _cooperative_program():
            with np.errstate(all="ignore"):  # per thread
                program.function()

        if program.coroutine is None:
            program.coroutine = Coroutine(_cooperative_program)
            program.state = "ready"
        self.switches += 1
        self.idle += 1
        if self.idle > 10 * self.options.max_idle * len(self.programs):
            raise LivelockError(self._stuck_text(f"livelock: {self.idle} switches changed nothing"))
        self.current, self.builder.grid_idx = program, program.index
        program.run_length = 0
        program.coroutine.resume()
        self.current = None
        if program.coroutine.done:
            program.state, program.watched, self.idle = "done", (), 0

    def _last_resort(self):
        """Nobody is ready: drain store buffers, then let pollers prove that they are stuck."""
        if self.weak:
            pending = [program.pid for program in self.programs if self.weak.pending(program.pid)]
            if pending:
                self._changed_all(self.weak.drain_some(int(self.rng.choice(pending))))
                return []
        polling = [program for program in self.programs if program.state == "waiting" and not program.stuck]
        if not polling:
            raise DeadlockError(self._stuck_text("deadlock: all wait for what nobody will write"))
        return [min(polling, key=lambda program: program.polls)]

    def _frames(self):
        """Frames of the kernel and its helpers, innermost first."""
        frame, frames = sys._getframe(2), []
        while frame is not None and frame.f_code.co_name != _ENTRY:
            if not frame.f_code.co_filename.startswith(_MACHINERY):
                frames.append(frame)
            frame = frame.f_back
        return frames

    def _before(self, program, addresses, item, sync, write):
        """A switch point, unless the access is plain; a poll that finds nothing new waits."""
        program.operations += 1
        program.run_length += 1
        program.reads = 0 if write else program.reads + 1
        if not write and (sync or program.reads > _PLAIN_READS) and self._poll(program, addresses, item):
            return
        if sync or self.options.switch == "mem" or program.run_length > _LONG_RUN:
            program.coroutine.pause()

    def _poll(self, program, addresses, item):
        frames = self._frames()
        site = tuple((frame.f_code, frame.f_lasti) for frame in frames)
        key = site, addresses.tobytes()
        low, high = int(addresses.min()), int(addresses.max()) + item
        # reading again what has not changed, having written nothing in between: a poll
        polled = key in program.visits and not self._written_since(program.visits[key][0], low, high)
        if polled:
            program.polls += 1
            program.state = "waiting"
            program.watched = tuple(span for _, *span in list(program.visits.values())[-64:])
            program.waits = frames, addresses, item
            if program.states or not self._ready():
                state = hash((site, _digest(program.registers), *(_digest(f.f_locals) for f in frames)))
                program.stuck = state in program.states
                program.states.add(state)
            self.idle += 1
            if self.idle > self.options.max_idle * len(self.programs):
                raise LivelockError(self._stuck_text(f"livelock: {self.idle} polls changed nothing"))
            program.coroutine.pause()
            program.state, program.waits = "ready", None
        program.visits.pop(key, None)
        program.visits[key] = self.version, low, high
        return polled

    def _written_since(self, version, low, high):
        if self.version - version >= self.log.maxlen:
            return self.version > version
        return any(v > version and l < high and low < h for v, l, h in self.log)

    def _changed(self, low, high):
        """Visible memory changed between two addresses."""
        self.version += 1
        self.idle = 0
        self.log.append((self.version, low, high))
        for program in self.programs:
            if program.state == "waiting":
                program.stuck = False
                program.states.clear()
                if any(l < high and low < h for l, h in program.watched):
                    program.state = "ready"

    def _changed_all(self, spans):
        for low, high in spans:
            self._changed(low, high)

    # -- accesses ------------------------------------------------------------------------------------------------

    def load(self, addresses, item, access):
        """addresses [n] -> bytes uint8 [n, item]"""
        program = self.current
        self._before(program, addresses, item, access.sync, False)
        raw = np.empty((addresses.size, item), np.uint8)
        site = None
        for region, chosen in self._split(addresses, item, "reads"):
            part = addresses if chosen is None else addresses[chosen]
            if self.detector and site is None:
                site = self._site()
            raw[slice(None) if chosen is None else chosen] = self._read(
                program, region, part, item, access, site
            )
        if self.weak and access.acquires:
            self._acquire(program.pid, access.alone)
        return raw

    def _read(self, program, region, addresses, item, access, site):
        # of a channel whole words, whatever the width asked for
        narrow = region.channel and item < WORD
        width = WORD if narrow else item
        where = addresses // np.uint64(WORD) * np.uint64(WORD) if narrow else addresses
        if self.weak is None:
            raw = region.get(where, width)
        else:
            if access.sync:
                self._changed_all(self.weak.drain_at(program.pid, region, where, width))
            raw = self.weak.load(program.pid, region, where, width, access.bypass or access.sync)
        if self.detector:
            cells = region.cells(where, width)
            if region.role is not None:
                unwritten = region.unwritten(raw)
                if not access.sync and unwritten.any():
                    first = where[np.argmax(unwritten.any(axis=1))]
                    what = "holds the sentinel" if region.channel else "was never written"
                    text = f"{program} reads {region.describe(first)}, which {what} "
                    text += f"({int(unwritten.sum())} elements)\n  at {_place(site)}"
                    self._report(UninitializedReadError, text, (site, region.name))
            pid, flat = program.pid, cells.reshape(-1)
            if region.channel and access.sync:
                self.detector.channel_poll(pid, region, flat, ~unwritten.reshape(-1), site)
            elif region.channel:
                self.detector.channel_read(pid, region, flat, site)
            elif access.sync:
                none = np.zeros(where.size, bool)
                self.detector.atomic(pid, region, where, width, none, site, access, reads=True, rmw=False)
            else:
                self.detector.read(pid, region, flat, site)
        if narrow:
            raw = raw[
                np.arange(where.size)[:, None], (addresses - where).astype(int)[:, None] + np.arange(item)
            ]
        return raw

    def store(self, addresses, raw, access, by_thread0):
        """raw: uint8 [n, item]"""
        program, item = self.current, raw.shape[1]
        self._before(program, addresses, item, access.sync, True)
        program.visits.clear()
        site = self._site()
        parts = [
            (
                region,
                addresses if chosen is None else addresses[chosen],
                raw if chosen is None else raw[chosen],
            )
            for region, chosen in self._split(addresses, item, "writes")
        ]
        for region, where, values in parts:
            armed = (
                self._check_channel_store(program, region, where, values, site) if region.channel else None
            )
            if self.detector:
                pid, cells = program.pid, region.cells(where, item).reshape(-1)
                if region.channel:
                    self.detector.channel_store(pid, region, cells, armed, site)
                elif access.sync:
                    every = np.ones(where.size, bool)
                    self.detector.atomic(
                        pid, region, where, item, every, site, access, reads=False, rmw=False
                    )
                else:
                    self.detector.write(pid, region, cells, site, by_thread0)
        if self.weak and access.releases:
            self._release(program.pid)
        for region, where, values in parts:
            if self.weak and not access.sync:
                self.weak.store(program.pid, region, where, values, by_thread0)
            else:
                if self.weak:
                    self._changed_all(self.weak.drain_at(program.pid, region, where, item))
                self._put(program.pid, region, where, values)

    def _check_channel_store(self, program, region, addresses, raw, site):
        """bool per word: it is armed again."""
        item = raw.shape[1]
        if item < WORD or (addresses % np.uint64(WORD)).any():
            raise ContractError(
                f"{program} stores {8 * item}-bit elements to {region.describe(addresses[0])}, a channel of "
                f"{8 * WORD}-bit words: a consumer may take a half-written word\n  at {_place(site)}"
            )
        if region.final is not None:
            stored = region.cells(addresses, item).reshape(-1)
            if region.final[stored].any():
                first = stored[np.argmax(region.final[stored])]
                raise ContractError(
                    f"{program} stores to {region.describe(region.address(first))}, which an earlier launch has stored: "
                    f"what is there is final\n  at {_place(site)}"
                )
        sentinel = region.unwritten(raw).reshape(-1)
        if sentinel.any() and (region.role == "channel" or not sentinel.all()):
            first = region.cells(addresses, item).reshape(-1)[np.argmax(sentinel)]
            raise ContractError(
                f"{program} stores a value that equals the sentinel to "
                f"{region.describe(region.address(first))} ({int(sentinel.sum())} of {sentinel.size} words): "
                f"consumers would wait for ever\n  at {_place(site)}"
            )
        return sentinel

    def _put(self, pid, region, addresses, raw):
        changed = region.put(addresses, raw)
        if self.weak:
            self.weak.refresh(pid, region, region.index(addresses, raw.shape[1]))
        if changed.any():
            where = addresses[changed]
            self._changed(int(where.min()), int(where.max()) + raw.shape[1])
        return changed

    def atomic(self, addresses, dtype, operation, access, always_writes=False):
        """Read-modify-write, lane by lane: operation(old, lane) -> (new, whether it counts as a write).

        Returns the old values, dtype [n]. One that stores what was there (+ 0) counts as a read.
        """
        program, item = self.current, dtype.itemsize
        self._before(program, addresses, item, True, False)
        pid = program.pid
        if self.weak and access.releases:
            self._release(pid)
        site = self._site()
        old = np.empty(addresses.size, dtype)
        for region, chosen in self._split(addresses, item, "updates"):
            lanes = np.arange(addresses.size) if chosen is None else chosen
            where = addresses[lanes]
            if self.weak:
                self._changed_all(self.weak.drain_at(pid, region, where, item))
            wrote = np.full(lanes.size, access.releases and always_writes)
            for i, lane in enumerate(lanes):
                at = where[i : i + 1]
                old[lane] = region.get(at, item).view(dtype)[0, 0]
                new, counts = operation(old[lane], lane)
                raw = np.array([[new]]).astype(dtype).view(np.uint8)
                wrote[i] |= counts | self._put(pid, region, at, raw)[0]
            if wrote.any():
                program.visits.clear()
            if self.detector:
                self.detector.atomic(pid, region, where, item, wrote, site, access, reads=True, rmw=True)
        if self.weak and access.acquires:
            self._acquire(pid, access.alone)
        return old

    def fence(self, acquire, release, alone):
        pid = self.current.pid
        if self.detector:
            self.detector.fence(pid, acquire, release, alone)
        if self.weak:
            if release:  # each thread drains its own stores
                self._changed_all(self.weak.drain(pid, only_ordered=alone and self.options.cta_strict))
            if acquire:
                self._acquire(pid, alone)

    def cta_barrier(self):
        pid = self.current.pid
        if self.detector:
            self.detector.cta_barrier(pid)
        if self.weak:
            self.weak.cta_barrier(pid)
            if self.late_acquire[pid]:
                self._acquire(pid, False)

    def _release(self, pid):
        """By thread 0: the other threads' stores are covered from their last CTA barrier on."""
        self._changed_all(self.weak.drain(pid, only_ordered=self.options.cta_strict))

    def _acquire(self, pid, alone):
        self.late_acquire[pid] = alone and self.options.cta_strict
        if not self.late_acquire[pid]:
            self.weak.acquire(pid)

    # -- reports -------------------------------------------------------------------------------------------------

    def _split(self, addresses, item, what):
        parts = self.map.split(addresses, item)
        for region, chosen in parts:
            if region is None:
                bad = int(addresses[0 if chosen is None else chosen[0]])
                text = f"{self.current} {what} outside every tensor of the launch"
                distance = [(max(r.base - bad, bad + item - r.end), r) for r in self.map.regions]
                nearest, region = min(distance, key=lambda pair: pair[0], default=(1 << 20, None))
                if nearest < 1 << 20:
                    side = "before" if bad < region.base else "past the end of"
                    text += f", {nearest} bytes {side} '{region.name}'"
                raise OutOfBoundsError(f"{text}\n  at {_place(self._site())}")
        return parts

    def _site(self):
        return tuple((f.f_code.co_filename, f.f_lineno, f.f_code.co_name) for f in self._frames())

    def _race(self, kind, pid, site, other, other_pid, other_site, region, address):
        where = _place(other_site) if other_site else "not recorded"
        text = f"race on {region.describe(address)}: {kind} by {self.programs[pid]} is not ordered after the "
        text += f"{other} by {self.programs[other_pid]}\n  {kind}: {_place(site)}\n  {other}: {where}"
        self._report(RaceError, text, (kind, site, other, other_site, region.name))

    def _report(self, error, text, key):
        if self.options.races == "raise":
            raise error(text)
        if key not in self.reported:
            self.reported.add(key)
            self.problems.append(error(text))

    def _stuck_text(self, head):
        lines = [f"{head}  ({self.options})"]
        for state, what in (("done", "finished"), ("new", "never started")):
            programs = [program for program in self.programs if program.state == state]
            if programs:
                lines.append(f"  {what}: {_names(programs)}")
        groups = {}
        for program in self.programs:
            if program.waits is not None:
                frames, addresses, item = program.waits
                where = tuple((f.f_code, f.f_lineno) for f in frames)
                groups.setdefault((where, addresses.tobytes()), []).append(program)
        for programs in groups.values():
            frames, addresses, item = programs[0].waits
            lines.append(f"  waiting: {_names(programs)}")
            lines += [f"    {_frame_text(frame)}" for frame in frames]
            lines += [f"      {text}" for text in self._values(addresses, item)]
        busy = [p for p in self.programs if p.state == "ready" and p.waits is None]
        if busy:
            lines.append(f"  running: {_names(busy)}")
        return "\n".join(lines)

    def _values(self, addresses, item):
        texts, missing = [], []
        for address in addresses:
            region = self.map.find(int(address))
            raw = region.get(np.array([address]), item)
            if region.channel and item == WORD and region.unwritten(raw).all():
                missing.append(region.describe(address))
            elif len(texts) < 4:
                texts.append(f"{region.describe(address)} = {int.from_bytes(raw.tobytes(), 'little')}")
        if missing:
            texts.insert(0, f"{len(missing)} of {addresses.size} words hold the sentinel, first {missing[0]}")
        return texts


def _digest(value):
    """A hash of a local variable's value, as far as a program's progress shows in it."""
    if isinstance(value, tl.core.tensor):
        return _digest(value.handle)
    if isinstance(value, tl.constexpr):
        return _digest(value.value)
    if isinstance(value, np.ndarray):
        return hash(value.tobytes())
    if isinstance(value, dict):
        return hash(tuple((key, _digest(v)) for key, v in value.items()))
    if isinstance(value, (tuple, list)):
        return hash(tuple(_digest(v) for v in value))
    if isinstance(value, (int, float, str, type(None))):
        return hash(value)
    if isinstance(getattr(value, "data", None), np.ndarray):  # a TensorHandle
        return _digest(value.data)
    return id(value)


def _names(programs):
    return ", ".join(map(str, programs))


def _line(file, number):
    return f"{os.path.basename(file)}:{number}", linecache.getline(file, number).strip()


def _place(site):
    """Innermost call with its source line, the callers without."""
    texts = []
    for file, number, function in site:
        place, source = _line(file, number)
        texts.append(f"{place} in {function}" + ("" if texts else f": {source}"))
    return " <- ".join(texts)


def _frame_text(frame):
    place, source = _line(frame.f_code.co_filename, frame.f_lineno)
    scalars = []
    for name, value in frame.f_locals.items():
        if isinstance(value, tl.core.tensor) and getattr(value.handle, "data", None) is not None:
            if value.handle.data.size == 1 and not value.dtype.is_ptr():
                scalars.append(f"{name}={value.handle.data.item()}")
        elif isinstance(value, (int, float)):
            scalars.append(f"{name}={value}")
    return f"{place} in {frame.f_code.co_name}: {source}" + (f"   [{', '.join(scalars)}]" if scalars else "")
