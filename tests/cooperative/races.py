"""Race detection by vector clocks: happens-before after the PTX memory model, per program.

plain     tl.load, tl.store: a race unless ordered with every conflicting access
relaxed   volatile loads, relaxed atomics, ld/st.relaxed: may meet each other, but not plain accesses
sync      acquire and release atomics, fences: make order

A program's clock has three rows, one more permissive than the other:
  0  happens-before proper;
  1  plus order carried by channel words: who has read a datum knows that its producer had read what it needed.
     Judges overwriting of channel words only.
  2  plus release fences carried by channel words to a polling reader that has no acquire fence of its own (polls
     are volatile loads and issue in order behind a branch). Judges polls against re-arming only.

Of a CTA's threads, a release by thread 0 covers what all wrote before the last CTA barrier, and an acquire by
thread 0 alone reaches the others at the next one (both only if cta_strict).
"""

import numpy as np


class Shadow:
    """Per cell: who wrote it last, when, where; by program: when it read, or accessed atomically."""

    def __init__(self, n, programs):
        self.shape = n, programs
        self.writer = np.full(n, -1, np.int16)
        self.written = np.zeros(n, np.int32)
        self.site = np.zeros(n, np.int32)
        self.armer = np.full(n, -1, np.int16)  # channel words: the last to store the sentinel
        self.armed = np.zeros(n, np.int32)
        self.arm_site = np.zeros(n, np.int32)
        self.tables = {}

    def table(self, which):
        """int32 [cells, programs], "read", "atomic read" or "atomic write": each program's last, 0 for never."""
        if which not in self.tables:
            self.tables[which] = np.zeros(self.shape, np.int32)
        return self.tables[which]


class Detector:
    TRACKED = 1 << 24  # entries: reads of larger tensors that nobody has written (weights) are not recorded

    def __init__(self, programs, report, cta_strict):
        """report(kind, pid, site, other kind, other pid, other's site or None, region, address)"""
        self.programs, self.report, self.strict = programs, report, cta_strict
        self.clocks = np.zeros((programs, 3, programs), np.int32)
        self.clocks[range(programs), :, range(programs)] = 2
        self.barrier = np.ones(programs, np.int32)  # own time covered by the last CTA barrier
        self.released = {}  # address -> clock
        self.relaxed = np.zeros_like(self.clocks)  # seen by relaxed reads: acquired by a later fence
        self.alone = np.zeros_like(self.clocks)  # acquired by thread 0 only
        self.fenced = [None] * programs  # clock that thread 0's later relaxed atomics carry
        self.fenced_all = [None] * programs  # the same for stores by all threads, each behind its own fence
        self.fenced_at = [0] * programs
        self.stored = {}  # (pid, time) of a channel store -> (row 1, fenced_all)
        self.sites, self.site_ids = [None], {}
        self.read_sites = {}  # (region, pid)

    def _site(self, site):
        if site not in self.site_ids:
            self.site_ids[site] = len(self.sites)
            self.sites.append(site)
        return self.site_ids[site]

    def _shadow(self, region):
        if region.shadow is None:
            region.shadow = Shadow(region.n, self.programs)
        return region.shadow

    # -- order ---------------------------------------------------------------------------------------------------

    def _tick(self, pid):
        self.clocks[pid, :, pid] += 1

    def _publish(self, pid):
        """What a release by thread 0 makes visible."""
        clock = np.maximum(self.clocks[pid], self.alone[pid])
        if self.strict:
            clock[:, pid] = self.barrier[pid]
        return clock

    def cta_barrier(self, pid):
        np.maximum(self.clocks[pid], self.alone[pid], out=self.clocks[pid])
        self.barrier[pid] = self.clocks[pid, 0, pid]
        if self.fenced[pid] is not None:  # all threads fenced, then met: thread 0 carries it for all
            own = self.fenced[pid][:, pid]
            np.maximum(own, self.fenced_at[pid], out=own)
        self._tick(pid)

    def fence(self, pid, acquire, release, alone):
        if acquire:
            target = self.alone if alone and self.strict else self.clocks
            np.maximum(target[pid], self.relaxed[pid], out=target[pid])
        if release:
            self.fenced[pid] = self._publish(pid)
            if not (alone and self.strict):
                self.fenced_all[pid] = self.clocks[pid].copy()
                self.fenced_at[pid] = int(self.clocks[pid, 0, pid])
            self._tick(pid)

    # -- checks --------------------------------------------------------------------------------------------------

    def _race(self, kind, pid, site, other, other_pid, other_site, region, cell):
        self.report(kind, pid, site, other, int(other_pid), other_site, region, region.address(cell))

    def _after_writes(self, kind, pid, region, cells, site, clock, other="write"):
        shadow = self._shadow(region)
        bad = shadow.written[cells] > clock[shadow.writer[cells]]
        if bad.any():
            cell = cells[np.argmax(bad)]
            where = self.sites[shadow.site[cell]]
            self._race(kind, pid, site, other, shadow.writer[cell], where, region, cell)

    def _after(self, which, kind, pid, region, cells, site, clock):
        table = self._shadow(region).tables.get(which)
        if table is None:
            return
        bad = table[cells] > clock
        if bad.any():
            i, other = np.argwhere(bad)[0]
            where = None if which == "atomic write" else self.read_sites.get((region, int(other)))
            self._race(kind, pid, site, which, other, where, region, cells[i])

    def read(self, pid, region, cells, site):
        clock = self.clocks[pid, 0]
        self._after_writes("plain read", pid, region, cells, site, clock)
        self._after("atomic write", "plain read", pid, region, cells, site, clock)
        shadow = region.shadow
        if shadow.tables or (shadow.writer >= 0).any() or region.n * self.programs <= self.TRACKED:
            shadow.table("read")[cells, pid] = clock[pid]
            self.read_sites[region, pid] = site

    def write(self, pid, region, cells, site, by_thread0):
        clock = self.clocks[pid, 0]
        self._after_writes("plain write", pid, region, cells, site, clock)
        for which in ("read", "atomic write", "atomic read"):
            self._after(which, "plain write", pid, region, cells, site, clock)
        shadow = region.shadow
        shadow.writer[cells] = pid
        # thread 0 releases its own stores without a CTA barrier in between
        shadow.written[cells] = self.barrier[pid] if self.strict and by_thread0 else clock[pid]
        shadow.site[cells] = self._site(site)

    def atomic(self, pid, region, addresses, item, writes, site, access, *, reads, rmw):
        """An atomic or volatile access; writes: bool per address."""
        kind, cells = access.kind, region.cells(addresses, item)
        self._after_writes(kind, pid, region, cells.reshape(-1), site, self.clocks[pid, 0], "plain write")
        written = cells[writes].reshape(-1)
        if written.size:
            self._after("read", kind, pid, region, written, site, self.clocks[pid, 0])
        shadow = region.shadow
        if reads:
            if not access.acquires:
                target = self.relaxed
            else:
                target = self.alone if access.alone and self.strict else self.clocks
            for address in set(addresses.tolist()) & self.released.keys():
                np.maximum(target[pid], self.released[address], out=target[pid])
            shadow.table("atomic read")[cells, pid] = self.clocks[pid, 0, pid]
            self.read_sites[region, pid] = site
        if written.size:
            clock = self._publish(pid) if access.releases else self.fenced[pid]
            for address in set(addresses[writes].tolist()):
                before = self.released.get(address) if rmw else None  # an rmw continues a release sequence
                both = [c for c in (before, clock) if c is not None]
                if both:
                    self.released[address] = np.maximum(both[0], both[-1])
                else:
                    self.released.pop(address, None)
            shadow.table("atomic write")[written, pid] = self.clocks[pid, 0, pid]
            self._tick(pid)

    # -- channel words -------------------------------------------------------------------------------------------

    def channel_store(self, pid, region, cells, armed, site):
        """armed: bool per cell, the value stored is the sentinel."""
        clock = self.clocks[pid]
        kind = "store to a channel word"
        self._after_writes(kind, pid, region, cells, site, clock[1], "store")
        self._after("atomic read", kind, pid, region, cells, site, clock[1])
        shadow, now, site_id = region.shadow, int(clock[0, pid]), self._site(site)
        self.stored[pid, now] = clock[1].copy(), self.fenced_all[pid]
        shadow.writer[cells], shadow.written[cells], shadow.site[cells] = pid, now, site_id
        cells = cells[armed]
        shadow.armer[cells], shadow.armed[cells], shadow.arm_site[cells] = pid, now, site_id
        self._tick(pid)

    def channel_poll(self, pid, region, cells, fresh, site):
        """fresh: bool per cell, not the sentinel."""
        shadow, clock = self._shadow(region), self.clocks[pid]
        # the sentinel must be in place before anybody polls, or the previous value passes for the next
        bad = shadow.armed[cells] > clock[2][shadow.armer[cells]]
        if bad.any():
            cell = cells[np.argmax(bad)]
            where = self.sites[shadow.arm_site[cell]]
            kind = "poll of a channel word"
            self._race(kind, pid, site, "re-arming store", shadow.armer[cell], where, region, cell)
        cells = cells[fresh]
        cells_known = cells[shadow.writer[cells] >= 0]
        keys = shadow.writer[cells_known].astype(np.int64) << 32 | shadow.written[cells_known]
        for key in np.unique(keys).tolist():
            knew, fenced = self.stored[key >> 32, key & 0xFFFFFFFF]
            np.maximum(clock[1], knew, out=clock[1])
            if fenced is not None:
                np.maximum(self.relaxed[pid], fenced, out=self.relaxed[pid])
                np.maximum(clock[2], fenced[0], out=clock[2])
        shadow.table("atomic read")[cells, pid] = clock[0, pid]
        self.read_sites[region, pid] = site

    def channel_read(self, pid, region, cells, site):
        clock = self.clocks[pid, 0]
        self._after_writes("plain read of a channel word", pid, region, cells, site, clock, "store")
        region.shadow.table("atomic read")[cells, pid] = clock[pid]
        self.read_sites[region, pid] = site
