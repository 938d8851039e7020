"""What warps and warp groups do together: exchanges of registers, and wgmma."""

from __future__ import annotations

from typing import Any

import numpy as np

from . import tensorcore as tc
from .errors import UnknownOpcode
from .numerics import F4, F8, U4, U8, bf16_to_f32, f16_to_f32, tf32_of
from .shared_memory import SharedMemory
from .translate import SHARED_BASE


class Warps(SharedMemory):
    def warp_sync(self, q: Any, members: Any, ins: Any) -> None:
        if q is None:
            self.sync = self.sync + 1
        else:
            self.converged(q, ins)
            self.sync = np.where(q, self.sync + 1, self.sync)

    def shfl(self, mode: str, a: np.ndarray, b: np.ndarray, c: np.ndarray, q: Any, ins: Any) -> tuple[np.ndarray, np.ndarray]:
        lane = (self.lane % 32).astype(np.int64)
        bval, cval = b.astype(np.int64) & 31, c.astype(np.int64) & 31
        segment = (c.astype(np.int64) >> 8) & 31
        top = (lane & segment) | (cval & ~segment & 31)
        bottom = lane & segment
        if mode == "up":
            j = lane - bval
            ok = j >= top
        elif mode == "down":
            j = lane + bval
            ok = j <= top
        elif mode == "bfly":
            j = lane ^ bval
            ok = j <= top
        elif mode == "idx":
            j = bottom | (bval & ~segment & 31)
            ok = j <= top
        else:
            raise UnknownOpcode(f"shfl {mode}")
        j = np.where(ok, j, lane)
        source = self.lane - lane + j
        self.converged(q, ins)
        return a[source], ok

    def ballot(self, p: np.ndarray, q: Any) -> np.ndarray:
        p = self.full(p) if q is None else self.full(p) & q
        bits = (p.reshape(-1, 32).astype(U8) << np.arange(32, dtype=U8)).sum(1).astype(U4)
        return np.repeat(bits, 32)

    def redux(self, operation: str, a: np.ndarray, q: Any, ins: Any) -> np.ndarray:
        self.converged(q, ins)
        combine: Any = {"add": np.add, "min": np.minimum, "max": np.maximum}[operation]
        return np.repeat(combine.reduce(a.reshape(-1, 32), axis=1, dtype=a.dtype), 32)

    def elect(self, q: Any) -> tuple[np.ndarray, np.ndarray]:
        self.converged(q, self.launch.program.code[0])
        return np.zeros(self.N, U4), self.lane % 32 == 0

    def trap(self, q: Any, ins: Any) -> None:
        if q is None or q.any():
            raise self.error("trap", ins, self.active(q))

    # ---- wgmma: carried out when it is waited for, with what is in shared memory then

    def wgmma(self, R: Any, d: list[int], a: Any, b: Any, scale: Any, rest: list[int], shape: Any, kind: str, q: Any, ins: Any) -> None:
        if q is not None and not q.all():
            raise self.error("wgmma by a part of a warp group", ins)
        if len(self.warps) % 4 or [w % 4 for w in self.warps] != [0, 1, 2, 3] * (len(self.warps) // 4):
            raise NotImplementedError("gangs of whole warp groups are needed for wgmma")
        key = tuple(d)
        if key not in self.wg_acc:
            if any(R[i] is None for i in d):
                if np.any(scale):
                    raise self.error("wgmma adds to an accumulator that was never written, or is still being written", ins)
                self.wg_acc[key] = [np.zeros(self.N, U4) for _ in d]
            else:
                self.wg_acc[key] = [R[i] for i in d]
        for i in d:
            R[i] = None
        self.wg_now.append((key, a, b, np.broadcast_to(scale, self.N), rest, shape, kind, ins))
        self._wg_operands(self.wg_now[-1])  # what must be there already

    def wgmma_commit(self, q: Any) -> None:
        self.wg_groups.append(self.wg_now)
        self.wg_now = []

    def wgmma_wait(self, R: Any, n: int, q: Any) -> None:
        while len(self.wg_groups) > n:
            for item in self.wg_groups.pop(0):
                self._wg_compute(item)
        busy = {item[0] for group in [*self.wg_groups, self.wg_now] for item in group}
        for key in [k for k in self.wg_acc if k not in busy]:
            for i, value in zip(key, self.wg_acc.pop(key)):
                R[i] = value

    def _wg_operands(self, item: Any) -> list[tuple[np.ndarray, np.ndarray]]:
        """(A[64, K], B[N, K]) of every warp group"""
        key, a, b, scale, rest, (M, N, K), kind, ins = item
        size = 4 if kind == "tf32" else 2
        if rest[:2] != [1, 1]:
            raise UnknownOpcode("wgmma with negated operands")
        trans = rest[2:]
        out = []
        for g in range(len(self.warps) // 4):
            lanes = np.arange(128 * g, 128 * g + 128)
            if isinstance(a, tuple):
                regs = [r[lanes] for r in a]
                values = tc._unpack(regs, kind)  # [elements, 4, 32]
                A = tc._matrix(values, tc.shapes(kind, 16, 8, K)[0], 16, K).reshape(64, K)
                trans_b = trans[0] if trans else 0
            else:
                A = self._wg_tile(a, lanes, 64, K, size, kind, "mn" if trans and trans[0] else "k", ins)
                trans_b = trans[1] if trans else 0
            B = self._wg_tile(b, lanes, N, K, size, kind, "mn" if trans_b else "k", ins)
            out.append((A, B))
        return out

    def _wg_tile(self, d: np.ndarray, lanes: np.ndarray, rows: int, k: int, size: int, kind: str, major: str, ins: Any) -> np.ndarray:
        d = d[lanes]
        if (d != d[0]).any():
            raise self.error("wgmma: a descriptor that is not the same in the whole warp group", ins)
        off = tc.tile_addresses(int(d[0]), rows, k, size, major) - SHARED_BASE
        flat = off.reshape(-1)
        if flat.min() < 0 or flat.max() + size > self.cta.shared.size:
            raise self.error("wgmma: operand out of shared memory", ins)
        self._read_check(flat, size, np.full(len(flat), lanes[0]), ins)
        bits = self.cta.shared.views[size][flat // size].reshape(rows, k)
        return {"tf32": tf32_of, "bf16": bf16_to_f32, "f16": f16_to_f32}[kind](bits)

    def _wg_compute(self, item: Any) -> None:
        key, _, _, scale, _, (M, N, K), _, ins = item
        acc = self.wg_acc[key]
        rows, cols = tc.accumulator(N)
        new = [x.copy() for x in acc]
        for g, (A, B) in enumerate(self._wg_operands(item)):
            P = A.astype(F8) @ B.astype(F8).T
            lanes = np.arange(128 * g, 128 * g + 128)
            for i in range(len(acc)):
                c = np.where(scale[lanes], acc[i][lanes].view(F4), F4(0))
                new[i][lanes] = (P[rows[i], cols[i]] + c).astype(F4).view(U4)
        self.wg_acc[key] = new
