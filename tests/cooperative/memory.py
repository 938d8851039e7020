"""The address map of a launch, and memory that is only as coherent as a GPU's."""

import bisect
import ctypes

import numpy as np

WORD = 4  # bytes: the unit of a channel whose data are their own flag


class View:
    """A tensor argument: names an address by its indices."""

    def __init__(self, name, tensor):
        self.name, self.item = name, tensor.element_size()
        self.base = tensor.data_ptr()
        strides = sorted(zip(tensor.stride(), range(tensor.dim()), tensor.shape, strict=True), reverse=True)
        self.axes = [(stride, axis) for stride, axis, size in strides if stride > 0 and size > 1]
        self.dim = tensor.dim()
        span = 1 + sum((size - 1) * stride for stride, _, size in strides)
        self.end = self.base + span * self.item

    def describe(self, address):
        offset, index = (address - self.base) // self.item, [0] * self.dim
        for stride, axis in self.axes:
            index[axis], offset = divmod(offset, stride)
        return f"{self.name}[{', '.join(map(str, index))}]"


class Region:
    """Bytes [base, end) seen through one or more views, in shadow cells of the narrowest view's element.

    role  None
          "poison": a cell of 0xFF bytes is unwritten
          "channel": words are exchanged by polling them until they are not the sentinel, 0xFF bytes; cell = word
          "ring": a channel whose words are armed again, by storing the sentinel
    """

    def __init__(self, base, end, views, role=None):
        self.base, self.end, self.views, self.role = base, end, views, role
        self.channel = role in ("channel", "ring")
        self.cell = WORD if self.channel else min(view.item for view in views)
        self.n = -(-(end - base) // self.cell)
        self.bytes = np.frombuffer((ctypes.c_uint8 * (end - base)).from_address(base), np.uint8)
        self.shadow = None  # the race detector's
        self.final = None  # of a channel, bool [n]: words that an earlier launch has stored

    @property
    def name(self):
        return self.views[0].name

    def describe(self, address):
        view = next(view for view in self.views if view.base <= address < view.end)
        return view.describe(int(address))

    def offsets(self, addresses):
        return (addresses - np.uint64(self.base)).astype(np.int64)

    def cells(self, addresses, item):
        """[len(addresses), cells per element]"""
        first = self.offsets(addresses) // self.cell
        return first[:, None] + np.arange(max(1, item // self.cell))

    def address(self, cell):
        return self.base + int(cell) * self.cell

    def index(self, addresses, item):
        """Byte indices [len(addresses), item]."""
        return self.offsets(addresses)[:, None] + np.arange(item)

    def unwritten(self, raw):
        """bool [elements, cells per element], from the elements' bytes uint8 [elements, item]."""
        width = min(self.cell, raw.shape[1])
        return np.ascontiguousarray(raw).view(f"u{width}") == (1 << 8 * width) - 1

    def get(self, addresses, item):
        """uint8 [len(addresses), item]"""
        return self.bytes[self.index(addresses, item)]

    def put(self, addresses, raw):
        """Returns bool [len(addresses)]: changed."""
        index = self.index(addresses, raw.shape[1])
        changed = (self.bytes[index] != raw).any(axis=1)
        self.bytes[index] = raw
        return changed


class MemoryMap:
    """The regions of a launch's tensors. A range with a role is a region of its own.

    tensors: (name, tensor) pairs; marks: (base, end, role).
    """

    def __init__(self, tensors, marks):
        views = sorted((View(name, t) for name, t in tensors if t.numel()), key=lambda v: (v.base, -v.end))
        spans = []
        for view in views:
            if spans and view.base < spans[-1][1]:
                spans[-1][1] = max(spans[-1][1], view.end)
            else:
                spans.append([view.base, view.end])
        self.regions = []
        for base, end in spans:
            cuts = {base, end} | {c for mark in marks for c in mark[:2] if base < c < end}
            edges = sorted(cuts)
            for low, high in zip(edges, edges[1:], strict=False):
                inside = [view for view in views if view.base < high and low < view.end]
                role = next((m[2] for m in reversed(marks) if m[0] <= low and high <= m[1]), None)
                self.regions.append(Region(low, high, inside, role))
        self.bases = [region.base for region in self.regions]

    def find(self, address):
        i = bisect.bisect_right(self.bases, address) - 1
        return self.regions[i] if i >= 0 and address < self.regions[i].end else None

    def split(self, addresses, item):
        """[(region, or None outside all; which of the addresses: None for all, or indices)]"""
        region = self.find(int(addresses.min()))
        if region is not None and int(addresses.max()) + item <= region.end:
            return [(region, None)]
        owners = np.searchsorted(np.array(self.bases, np.uint64), addresses, side="right") - 1
        ends = np.array([region.end for region in self.regions], np.uint64)
        owners = np.where((owners >= 0) & (addresses + np.uint64(item) <= ends[owners]), owners, -1)
        return [(self.regions[i] if i >= 0 else None, np.flatnonzero(owners == i)) for i in np.unique(owners)]


class WeakMemory:
    """Store buffers and stale copies, per program.

    A plain store stays in the program's buffer until it executes a release or fence, until the scheduler drains
    elements at random, or until everybody waits. An element is never torn: it drains as it was stored.
    A plain load may hit a copy of the 32-byte sector that an earlier plain load of anything in it made; an
    acquire drops the copies. Volatile, .cg and atomic accesses bypass the copies.
    """

    SECTOR = 32

    def __init__(self, programs, rng):
        self.rng = rng
        # per program, region -> (dirty, value, ordered by a CTA barrier, offset of the element), each per byte
        self.buffers = [{} for _ in range(programs)]
        # per program, region -> (sector valid, copy of the bytes)
        self.copies = [{} for _ in range(programs)]

    def store(self, pid, region, addresses, raw, by_thread0):
        size = region.end - region.base
        if region not in self.buffers[pid]:
            dirty, ordered = np.zeros(size, bool), np.zeros(size, bool)
            self.buffers[pid][region] = dirty, np.zeros(size, np.uint8), ordered, np.zeros(size, np.int64)
        dirty, values, ordered, element = self.buffers[pid][region]
        index = region.index(addresses, raw.shape[1])
        dirty[index], values[index], ordered[index], element[index] = True, raw, by_thread0, index[:, :1]

    def load(self, pid, region, addresses, item, bypass):
        index = region.index(addresses, item)
        if bypass:
            raw = region.bytes[index]
        else:
            size = region.end - region.base
            if region not in self.copies[pid]:
                sectors = -(-size // self.SECTOR)
                self.copies[pid][region] = np.zeros(sectors, bool), np.zeros(size, np.uint8)
            valid, copy = self.copies[pid][region]
            sectors = np.unique(index // self.SECTOR)
            for sector in sectors[~valid[sectors]]:
                span = slice(sector * self.SECTOR, (sector + 1) * self.SECTOR)
                copy[span] = region.bytes[span]
                valid[sector] = True
            raw = copy[index]
        if region in self.buffers[pid]:
            dirty, values, *_ = self.buffers[pid][region]
            raw = np.where(dirty[index], values[index], raw)
        return raw

    def refresh(self, pid, region, index):
        """The program's own write to memory shows in its copies."""
        if region in self.copies[pid]:
            self.copies[pid][region][1][index] = region.bytes[index]

    def acquire(self, pid):
        self.copies[pid].clear()

    def cta_barrier(self, pid):
        for dirty, _, ordered, _ in self.buffers[pid].values():
            ordered[dirty] = True

    def pending(self, pid):
        return any(dirty.any() for dirty, *_ in self.buffers[pid].values())

    def _write(self, pid, region, index):
        """Buffer -> memory. Returns [(low, high)], the addresses between which memory changed, or []."""
        dirty, values, *_ = self.buffers[pid][region]
        changed = index[region.bytes[index] != values[index]]
        region.bytes[index] = values[index]
        dirty[index] = False
        self.refresh(pid, region, index)
        if not changed.size:
            return []
        return [(region.base + int(changed.min()), region.base + int(changed.max()) + 1)]

    def drain(self, pid, only_ordered=False):
        """Everything, or what a CTA barrier has ordered."""
        changed = []
        for region, (dirty, _, ordered, _) in self.buffers[pid].items():
            changed += self._write(pid, region, np.flatnonzero(dirty & ordered if only_ordered else dirty))
        return changed

    def drain_some(self, pid):
        """A random half of the elements, at least one per region."""
        changed = []
        for region, (dirty, _, _, element) in self.buffers[pid].items():
            index = np.flatnonzero(dirty)
            if index.size:
                elements = np.unique(element[index])
                chosen = elements[self.rng.random(elements.size) < 0.5]
                if not chosen.size:
                    chosen = self.rng.choice(elements, 1)
                changed += self._write(pid, region, index[np.isin(element[index], chosen)])
        return changed

    def drain_at(self, pid, region, addresses, item):
        """A program's own atomic or volatile access comes after its earlier stores to the same bytes."""
        if region not in self.buffers[pid]:
            return []
        index = region.index(addresses, item).reshape(-1)
        return self._write(pid, region, index[self.buffers[pid][region][0][index]])
