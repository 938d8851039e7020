"""Global memory as a gang accesses it: by the extents of the launch's tensors."""

from __future__ import annotations

from typing import Any

import numpy as np

from .blocks import is_visible
from .errors import UnknownOpcode
from .lanes import Lanes
from .memory import Extent
from .numerics import U1, U2, U4, U8


class GlobalMemory(Lanes):
    def _extent(self, a: np.ndarray, size: int, ins: Any, lanes: np.ndarray) -> Extent | None:
        """The extent that all addresses are in; None: each may be in another one, and all are in one"""
        low, high = int(a.min()), int(a.max()) + size
        if int(np.bitwise_or.reduce(a)) & (size - 1):
            bad = np.nonzero(a & U8(size - 1))[0]
            raise self.error(f"misaligned address {int(a[bad[0]]):#x} for {size} bytes", ins, lanes[bad])
        last = self.sites.get(id(ins))
        if last is not None and last.base <= low and high <= last.end:
            return last
        for e in self.launch.extents:
            if e.base <= low and high <= e.end:
                self.sites[id(ins)] = e
                return e
        for k, address in enumerate(a):
            address = int(address)
            if not any(e.base <= address and address + size <= e.end for e in self.launch.extents):
                near = min(
                    self.launch.extents, key=lambda e: min(abs(address - e.base), abs(address + size - e.end)), default=None
                )
                where = "no arguments" if near is None else (
                    f"{near.name} has {near.end - near.base} bytes, this is from its byte {address - near.base} on"
                )
                raise self.error(f"access of {size} bytes out of bounds ({where})", ins, lanes[k])
        return None

    def _each_extent(self, a: np.ndarray, size: int) -> list[tuple[Extent, np.ndarray]]:
        left = np.ones(len(a), bool)
        out = []
        for e in self.launch.extents:
            inside = left & (a >= U8(e.base)) & (a + U8(size) <= U8(e.end))
            if inside.any():
                out.append((e, np.nonzero(inside)[0]))
                left &= ~inside
        return out

    def _sectors(self, a: np.ndarray, size: int, lanes: np.ndarray) -> int:
        keys = (a >> U8(5)) + (self.lane_warp[lanes].astype(U8) << U8(56))
        if size > 32:
            raise NotImplementedError
        return len(np.unique(keys))

    def gld(self, a: np.ndarray, size: int, n: int, q: Any, ins: Any) -> list[np.ndarray]:
        lanes = self.active(q)
        a = a if q is None else a[lanes]
        if a.ndim == 0:
            a = np.full(len(lanes), a)
        total = size * n
        e = self._extent(a, total, ins, lanes)
        parts = [(e, slice(None))] if e is not None else self._each_extent(a, total)
        columns = [np.zeros(self.N, self._dtype(size)) for _ in range(n)]
        for e, which in parts:
            at = a[which]
            index = ((at - U8(e.start)) // U8(size)).astype(np.int64)
            view = e.views[size]
            to = lanes[which]
            e.loaded += total * len(at)
            if e.stores is not None and "cg" not in ins.parts and not is_visible(ins):
                bad = e.unordered((at - U8(e.start)).astype(np.int64), total, self.cta.number, self.cta.shared.epoch, self.lane_warp[to])
                if bad.any():
                    raise self.error(
                        f"race: a plain load of {e.name}, which another warp has stored in this launch, with no barrier between", ins, to[bad]
                    )  # fmt: skip
            if self.launch.counting:
                e.load_sectors += self._sectors(at, total, to)
            for k in range(n):
                columns[k][to] = view[index + k] if k else view[index]
        return columns

    def prefetch(self, a: np.ndarray, q: Any, ins: Any) -> None:
        """Nothing happens, and a GPU would not mind an address that is nobody's: here it must be a tensor's."""
        lanes = self.active(q)
        a = np.broadcast_to(a, self.N)[lanes]
        if len(a):
            self._extent(a, 1, ins, lanes)

    @staticmethod
    def _dtype(size: int) -> Any:
        return {1: U1, 2: U2, 4: U4, 8: U8}[size]

    def gst(self, a: np.ndarray, values: tuple[np.ndarray, ...], size: int, q: Any, ins: Any) -> None:
        """Where programs talk to each other, some lanes' stores may take effect later: at the gang's next block"""
        if self.launch.torn and self.launch.random.random() < 0.5:
            mask = self.mask_of(q)
            late = mask & (np.array(self.launch.random.choices((False, True), k=self.N)))
            if late.any():
                self.late.append((a, values, size, late, ins))
                self.launch.preempt = True
                q = mask & ~late
        self._store(a, values, size, q, ins)

    def flush(self) -> None:
        late, self.late = self.late, []
        for item in late:
            self._store(*item)

    def _store(self, a: np.ndarray, values: tuple[np.ndarray, ...], size: int, q: Any, ins: Any) -> None:
        lanes = self.active(q)
        a = a if q is None else a[lanes]
        if not len(a):
            return
        total = size * len(values)
        e = self._extent(a, total, ins, lanes)
        parts = [(e, slice(None))] if e is not None else self._each_extent(a, total)
        for e, which in parts:
            at = a[which]
            to = lanes[which]
            offset = (at - U8(e.start)).astype(np.int64)
            index = offset // size
            e.stored += total * len(at)
            if self.launch.counting:
                e.store_sectors += self._sectors(at, total, to)
            if self.launch.watch_stores:
                e.note_stores(offset, total, self.cta.number, self.cta.shared.epoch, self.lane_warp[to])
            view = e.views[size]
            for k, v in enumerate(values):
                view[index + k] = v[to]
        self.launch.progress += 1

    def atomic(self, a: np.ndarray, operation: str, values: tuple[np.ndarray, ...], dtype: Any, q: Any, ins: Any) -> np.ndarray:
        self.flush()
        lanes = self.active(q)
        old = np.zeros(self.N, dtype)
        if not len(lanes):
            return old
        size = np.dtype(dtype).itemsize
        at = a[lanes]
        e = self._extent(at, size, ins, lanes)
        for lane in lanes:
            ext = e if e is not None else self._each_extent(a[lane : lane + 1], size)[0][0]
            view = ext.views[size].view(dtype)
            index = (int(a[lane]) - ext.start) // size
            was, v = view[index], values[0][lane]
            if operation == "add":
                new = was + v
            elif operation in ("min", "max"):
                new = min(was, v) if operation == "min" else max(was, v)
            elif operation in ("and", "or", "xor"):
                new = {"and": was & v, "or": was | v, "xor": was ^ v}[operation]
            elif operation == "exch":
                new = v
            elif operation == "cas":
                new = values[1][lane] if was == v else was
            else:
                raise UnknownOpcode(f"atomic {operation}")
            old[lane] = was
            view[index] = new
            ext.stored += size
        self.launch.progress += 1
        return old
