"""What is known of memory: the extents of a launch's tensors, and a CTA's shared memory."""

from __future__ import annotations

import ctypes

import numpy as np
import torch

from .numerics import U1, U2, U4, U8

_EMPTY = np.zeros(0, bool)


class Extent:
    """The memory of a pointer argument, from its first byte to its last"""

    def __init__(self, name: str, base: int, end: int) -> None:
        self.name, self.base, self.end = name, base, end
        self.start = base & ~15
        size = -(-(end - self.start) // 16) * 16
        raw = np.frombuffer((ctypes.c_uint8 * size).from_address(self.start), U1)
        self.views = {1: raw, 2: raw.view(U2), 4: raw.view(U4), 8: raw.view(U8)}
        self.loaded = self.stored = 0
        self.load_sectors = self.store_sectors = 0
        self.stores: np.ndarray | None = None  # times each 2 bytes were stored, and by whom last
        self.by_cta = self.by_warp = self.by_epoch = _EMPTY

    def note_stores(self, offsets: np.ndarray, size: int, cta: int, epoch: int, warps: np.ndarray) -> None:
        if self.stores is None:
            n = len(self.views[2])
            self.stores = np.zeros(n, np.int16)
            self.by_cta, self.by_warp, self.by_epoch = np.zeros(n, np.int32), np.zeros(n, np.int16), np.zeros(n, np.int32)
        for k in range(0, size, 2):
            at = (offsets + k) >> 1
            np.add.at(self.stores, at, 1)
            self.by_cta[at], self.by_warp[at], self.by_epoch[at] = cta, warps, epoch

    def unordered(self, offsets: np.ndarray, size: int, cta: int, epoch: int, warps: np.ndarray) -> np.ndarray:
        """Which of these were stored in this launch by another warp, with no barrier of the CTA since"""
        out = np.zeros(len(offsets), bool)
        for k in range(0, size, 2):
            at = (offsets + k) >> 1
            other = (self.by_cta[at] != cta) | ((self.by_warp[at] != warps) & (self.by_epoch[at] == epoch))
            out |= (self.stores[at] > 0) & other
        return out


def extent_of(t: torch.Tensor) -> tuple[int, int]:
    if t.numel() == 0:
        return t.data_ptr(), t.data_ptr()
    last = sum((n - 1) * s for n, s in zip(t.shape, t.stride()))
    return t.data_ptr(), t.data_ptr() + (last + 1) * t.element_size()


_addresses: dict[int, tuple[int, int]] = {}  # extents of tensors of earlier launches, for addresses that stand for them


class Shared:
    """A CTA's shared memory.  What is watched, by units of 2 bytes, or of 1 where the program accesses single bytes: who wrote and read
    last, and between which CTA barriers."""

    def __init__(self, size: int, bytewise: bool) -> None:
        size = -(-size // 16) * 16
        self.size = size
        self.shift = 0 if bytewise else 1
        self.raw = np.full(size, 0xA5, U1)
        self.views = {1: self.raw, 2: self.raw.view(U2), 4: self.raw.view(U4), 8: self.raw.view(U8)}
        self.units = self.views[1] if bytewise else self.views[2]
        n = len(self.units)
        self.init = np.zeros(n, bool)
        self.pending = np.zeros(n, bool)
        self.w_epoch = np.full(n, -1, np.int32)
        self.w_warp = np.full(n, -1, np.int16)
        self.w_lane = np.full(n, -1, np.int16)
        self.w_sync = np.full(n, -1, np.int32)
        self.r_epoch = np.full(n, -1, np.int32)
        self.r_warp = np.full(n, -1, np.int16)
        self.r_multi = np.zeros(n, bool)
        self.epoch = 0
