"""The lanes of a gang: its registers' values, masks, and what errors say of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import PtxError
from .memory import Extent
from .numerics import I4, I8, U4

if TYPE_CHECKING:
    from .gang import Cta


class Lanes:
    def __init__(self, cta: Cta, warps: list[int]) -> None:
        self.cta, self.launch = cta, cta.launch
        self.warps = warps
        self.N = 32 * len(warps)
        self.R: list[Any] = [None] * len(self.launch.program.widths)
        lanes = np.tile(np.arange(32, dtype=U4), len(warps))
        self.lane_warp = np.repeat(np.array(warps, np.int16), 32)
        self.lane = np.arange(self.N)
        tid = (self.lane_warp.astype(U4) * U4(32)) + lanes
        f = lambda v: np.full(self.N, v, U4)  # noqa: E731
        gx, gy, gz = self.launch.grid
        x, y, z = cta.index
        self.special = {
            "%tid.x": tid, "%tid.y": f(0), "%tid.z": f(0), "%ntid.x": f(32 * self.launch.warps), "%ntid.y": f(1),
            "%ntid.z": f(1), "%ctaid.x": f(x), "%ctaid.y": f(y), "%ctaid.z": f(z), "%nctaid.x": f(gx), "%nctaid.y": f(gy),
            "%nctaid.z": f(gz), "%laneid": lanes, "%warpid": self.lane_warp.astype(U4),
        }  # fmt: skip
        self.cycles = 2**32 - 100  # soon to go through zero
        self.fragments: dict[int, np.ndarray | None] = {0: None}
        self.waiting: dict[int, np.ndarray | None] = {}
        self.exited: np.ndarray | None = None
        self.sync = np.zeros(self.N, np.int32)  # bar.warp.sync so far
        self.late: list[Any] = []  # stores of some lanes that have not taken effect
        self.polled: int | None = None
        self.polls = 0
        self.cache: dict[Any, Any] = {}
        self.sites: dict[int, Extent] = {}
        self.cp_now: list[Any] = []
        self.cp_groups: list[list[Any]] = []
        self.wg_now: list[Any] = []
        self.wg_groups: list[list[Any]] = []
        self.wg_acc: dict[tuple[int, ...], list[np.ndarray]] = {}

    def full(self, x: Any) -> np.ndarray:
        if isinstance(x, np.ndarray) and x.shape == (self.N,):
            return x
        return np.full(self.N, x)

    def clock(self) -> np.ndarray:
        """Of all lanes the same: a reading takes 32 cycles, and nothing else takes any"""
        self.cycles += 32
        return np.full(self.N, self.cycles % 2**32, U4)

    def param(self, name: str, dtype: Any) -> np.ndarray:
        key = (name, dtype)
        if key not in self.cache:
            value = self.launch.params[name]
            bits = 8 * np.dtype(dtype).itemsize
            v = int(value) & ((1 << bits) - 1)
            if dtype in (I4, I8) and v >> (bits - 1):
                v -= 1 << bits
            self.cache[key] = np.full(self.N, dtype(v))
        return self.cache[key]

    def error(self, what: str, ins: Any, lanes: Any = None) -> PtxError:
        who = f"{self.cta}, warps {self.warps}"
        if lanes is not None and np.size(lanes):
            lane = int(np.atleast_1d(lanes)[0])
            who = f"{self.cta}, warp {self.warps[lane // 32]}, lane {lane % 32}"
        return PtxError(f"{what}: {self.launch.kernel_name}, {who}: {self.launch.program.where(ins)}")

    def active(self, q: Any) -> np.ndarray:
        return self.lane if q is None else np.nonzero(q)[0]

    def converged(self, q: Any, ins: Any) -> None:
        if q is None:
            return
        per = q.reshape(-1, 32)
        some = per.any(1)
        if (some & ~per.all(1)).any():
            raise self.error("a warp-wide instruction by a part of a warp", ins)

    def mask_of(self, m: np.ndarray | None) -> np.ndarray:
        return np.ones(self.N, bool) if m is None else m
