"""Shared memory as a gang accesses it, with its races; matrices of tensor cores; asynchronous copies into it."""

from __future__ import annotations

from typing import Any

import numpy as np

from . import tensorcore as tc
from .errors import UnknownOpcode
from .global_memory import GlobalMemory
from .numerics import U1, U2, U4, U8
from .translate import SHARED_BASE

_ARANGE = {n: np.arange(n) for n in (1, 2, 4, 8, 16)}


class SharedMemory(GlobalMemory):
    def _shared(self, a: np.ndarray, size: int, lanes: np.ndarray, ins: Any) -> np.ndarray:
        off = a.astype(np.int64) - SHARED_BASE
        if int(np.bitwise_or.reduce(a)) & (size - 1):
            bad = np.nonzero(a & a.dtype.type(size - 1))[0]
            raise self.error(f"misaligned shared address {int(a[bad[0]]):#x} for {size} bytes", ins, lanes[bad])
        if off.min() < 0 or off.max() + size > self.cta.shared.size:
            bad = np.nonzero((off < 0) | (off + size > self.cta.shared.size))[0]
            raise self.error(
                f"shared access of {size} bytes out of bounds (at {int(off[bad[0]])} of {self.cta.shared.size})", ins, lanes[bad]
            )
        return off

    def _units(self, off: np.ndarray, size: int) -> np.ndarray:
        shift = self.cta.shared.shift
        return (off >> shift)[:, None] + _ARANGE[size >> shift]

    def _read_check(self, off: np.ndarray, size: int, lanes: np.ndarray, ins: Any, sources: np.ndarray | None = None) -> None:
        """`sources`: the lanes that are responsible, if other than `lanes`"""
        s = self.cta.shared
        u = self._units(off, size)
        w = self.lane_warp[lanes][:, None]
        if s.pending[u].any():
            bad = np.nonzero(s.pending[u].any(1))[0]
            raise self.error(f"read of shared memory while cp.async is under way (byte {int(off[bad[0]])})", ins, lanes[bad])
        if not s.init[u].all():
            bad = np.nonzero(~s.init[u].all(1))[0]
            raise self.error(f"read of shared memory that was never written (byte {int(off[bad[0]])})", ins, lanes[bad])
        now = s.w_epoch[u] == s.epoch
        race = now & (s.w_warp[u] != w)
        if race.any():
            bad = np.nonzero(race.any(1))[0]
            other = int(s.w_warp[u][bad[0]].max())
            raise self.error(
                f"race: shared byte {int(off[bad[0]])} is read, and was written by warp {other}, with no barrier between", ins,
                lanes[bad],
            )  # fmt: skip
        if self.launch.lane_checks:
            hazard = now & (s.w_lane[u] != (lanes % 32)[:, None]) & (s.w_sync[u] == self.sync[lanes][:, None])
            if hazard.any():
                self.launch.lane_hazards[self.launch.program.where(ins)] += 1
        same = s.r_epoch[u] == s.epoch
        s.r_multi[u] = same & (s.r_multi[u] | (s.r_warp[u] != w))
        s.r_epoch[u] = s.epoch
        s.r_warp[u] = w
        other = s.r_warp[u] != w
        if other.any():
            s.r_multi[u[other]] = True

    def _write_check(self, off: np.ndarray, size: int, lanes: np.ndarray, ins: Any, data: Any = None) -> None:
        """`data`: the bytes, [lanes, size], or a function that gives them; None: cp.async begins, which writes later.  Warps that hold the
        same elements may write the same values to the same place: Triton's conversions of replicated layouts do."""
        s = self.cta.shared
        u = self._units(off, size)
        w = np.broadcast_to(self.lane_warp[lanes][:, None], u.shape)
        if s.pending[u].any():
            raise self.error("write to shared memory while cp.async is under way", ins, lanes)
        race = (s.r_epoch[u] == s.epoch) & (s.r_multi[u] | (s.r_warp[u] != w))
        kind = "read"
        if not race.any():
            race = (s.w_epoch[u] == s.epoch) & (s.w_warp[u] != w)
            kind = "written"
            if race.any() and data is not None:
                race = race & (self._data(data, size) != s.units[u])
                self.launch.same_values += not race.any()
        if race.any():
            bad = np.nonzero(race.any(1))[0]
            raise self.error(
                f"race: shared byte {int(off[bad[0]])} is written, and was {kind} by another warp, with no barrier between", ins,
                lanes[bad],
            )  # fmt: skip
        if data is None:
            s.pending[u] = True
            return
        s.w_warp[u] = w
        s.w_epoch[u] = s.epoch
        other = s.w_warp[u] != w
        if other.any():  # in this very instruction
            new = self._data(data, size)
            last = np.zeros_like(s.units)
            last[u] = new
            if (other & (last[u] != new)).any():
                raise self.error("race: two warps write the same shared bytes in one instruction", ins, lanes)
            self.launch.same_values += 1
        s.init[u] = True
        if self.launch.lane_checks:
            s.w_lane[u] = (lanes % 32)[:, None]
            s.w_sync[u] = self.sync[lanes][:, None]

    def _data(self, data: Any, size: int) -> np.ndarray:
        """[lanes, units]"""
        raw = np.ascontiguousarray(data() if callable(data) else data).view(U1).reshape(-1, size)
        return raw.view(U2) if self.cta.shared.shift else raw

    def sld(self, a: np.ndarray, size: int, n: int, q: Any, ins: Any) -> list[np.ndarray]:
        lanes = self.active(q)
        if a.ndim == 0:
            a = np.full(self.N, a)
        a = a if q is None else a[lanes]
        off = self._shared(a, size * n, lanes, ins)
        self._read_check(off, size * n, lanes, ins)
        if self.launch.counting:
            self._banks(off, size * n, lanes, ins)
        view = self.cta.shared.views[size]
        index = off // size
        out = []
        for k in range(n):
            v = view[index + k]
            if q is not None:
                column = np.zeros(self.N, v.dtype)
                column[lanes] = v
                v = column
            out.append(v)
        return out

    def sst(self, a: np.ndarray, values: tuple[np.ndarray, ...], size: int, q: Any, ins: Any) -> None:
        lanes = self.active(q)
        if a.ndim == 0:
            a = np.full(self.N, a)
        a = a if q is None else a[lanes]
        total = size * len(values)
        off = self._shared(a, total, lanes, ins)
        self._write_check(off, total, lanes, ins, lambda: np.stack([v[lanes] for v in values], 1))
        if self.launch.counting:
            self._banks(off, total, lanes, ins)
        view = self.cta.shared.views[size]
        index = off // size
        for k, v in enumerate(values):
            view[index + k] = v[lanes]
            if self.launch.lane_checks and (view[index + k] != v[lanes]).any():
                self.launch.lane_hazards["two lanes store different values: " + self.launch.program.where(ins)] += 1

    def _banks(self, off: np.ndarray, size: int, lanes: np.ndarray, ins: Any, matrices: int = 0) -> None:
        """Counts wavefronts: 128 bytes at most each, in phases of 8 lanes of 16 bytes, 16 of 8, 32 of 4 or less"""
        phase = {16: 8, 8: 16}.get(size, 32)
        group = self.lane_warp[lanes].astype(np.int64) * 8 + (lanes % 32) // phase
        total = ideal = 0
        for g in np.unique(group):
            words = np.unique((off[group == g][:, None] + 4 * _ARANGE[max(1, size // 4)]) >> 2)
            total += int(np.bincount(words % 32).max())
            ideal += 1
        self.launch.wavefronts[ins.parts[0]] += total
        self.launch.conflicts[ins.parts[0]] += total - ideal
        if total > ideal:
            self.launch.conflict_sites[self.launch.program.where(ins)] += total - ideal

    def _matrix_rows(self, a: np.ndarray, n: int, q: Any, ins: Any) -> tuple[np.ndarray, np.ndarray]:
        """(active lanes that give addresses, their byte offsets); the warps must be whole"""
        self.converged(q, ins)
        if a.ndim == 0:
            a = np.full(self.N, a)
        gives = (self.lane % 32) < 8 * n
        if q is not None:
            gives &= q
        lanes = np.nonzero(gives)[0]
        return lanes, self._shared(a[lanes], 16, lanes, ins)

    def ldmatrix(self, a: np.ndarray, n: int, trans: bool, q: Any, ins: Any) -> list[np.ndarray]:
        lanes, off = self._matrix_rows(a, n, q, ins)
        self._read_check(off, 16, lanes, ins)
        if self.launch.counting:
            self._banks(off, 16, lanes, ins)
        data = self.cta.shared.views[2][(off >> 1)[:, None] + _ARANGE[8]]  # [warps * 8 n, 8]
        data = data.reshape(-1, n, 8, 8)
        out = []
        warps = np.unique(lanes // 32)
        for k in range(n):
            reg = tc.to_lanes(data[:, k], trans)
            if len(warps) != len(self.warps):
                whole = np.zeros((len(self.warps), 32), U4)
                whole[warps] = reg.reshape(-1, 32)
                reg = whole.reshape(-1)
            out.append(reg)
        return out

    def stmatrix(self, a: np.ndarray, values: tuple[np.ndarray, ...], n: int, trans: bool, q: Any, ins: Any) -> None:
        lanes, off = self._matrix_rows(a, n, q, ins)
        warps = np.unique(lanes // 32)
        rows = np.stack([tc.from_lanes(v, trans)[warps] for v in values], 1).reshape(-1, 8)  # [warps * 8 n, 8]
        self._write_check(off, 16, lanes, ins, rows)
        if self.launch.lane_checks:  # a row is written by the lanes that hold its elements: no one lane
            self.cta.shared.w_lane[self._units(off, 16)] = -2
        if self.launch.counting:
            self._banks(off, 16, lanes, ins)
        self.cta.shared.views[2][(off >> 1)[:, None] + _ARANGE[8]] = rows

    # ---- asynchronous copies

    def cp_async(self, to: np.ndarray, source: np.ndarray, size: int, copied: Any, q: Any, ins: Any) -> None:
        lanes = self.active(q)
        off = self._shared(to[lanes], size, lanes, ins)
        self._write_check(off, size, lanes, ins)
        if self.launch.counting:
            self._banks(off, size, lanes, ins)
        count = np.full(len(lanes), size) if copied is None else copied[lanes].astype(np.int64)
        if (count > size).any():
            raise self.error("cp.async copies more than its size", ins, lanes)
        self.cp_now.append((off, source[lanes], size, count, lanes, ins))

    def cp_commit(self, q: Any) -> None:
        self.cp_groups.append(self.cp_now)
        self.cp_now = []

    def cp_wait(self, n: int, q: Any) -> None:
        while len(self.cp_groups) > n:
            for off, source, size, count, lanes, ins in self.cp_groups.pop(0):
                s = self.cta.shared
                data = np.zeros((len(lanes), size), U1)
                for c in np.unique(count):
                    if c == 0:
                        continue
                    which = np.nonzero(count == c)[0]
                    a = source[which]
                    if int(c) & (int(c) - 1):
                        raise UnknownOpcode(f"cp.async of {c} bytes")
                    if int(np.bitwise_or.reduce(a)) & (size - 1):
                        raise self.error(f"misaligned address for cp.async of {size} bytes", ins, lanes[which])
                    e = self._extent(a, int(c), ins, lanes[which])
                    parts = [(e, np.arange(len(a)))] if e is not None else self._each_extent(a, int(c))
                    for e, inside in parts:
                        at = (a[inside] - U8(e.start)).astype(np.int64)
                        data[which[inside], : int(c)] = e.views[1][at[:, None] + np.arange(int(c))]
                        e.loaded += int(c) * len(at)
                        if self.launch.counting:
                            e.load_sectors += self._sectors(a[inside], int(c), lanes[which][inside])
                s.pending[self._units(off, size)] = False
                self._write_check(off, size, lanes, ins, data)
                s.raw[off[:, None] + np.arange(size)] = data
