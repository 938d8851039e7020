"""A launch: its arguments, its CTAs, and the scheduler that interleaves them."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Collection
from typing import Any

import numpy as np
import torch

from .blocks import blocks, is_visible
from .errors import PtxError
from .gang import Cta, Gang
from .memory import Extent, extent_of
from .parser import Program

_addresses: dict[int, tuple[int, int]] = {}  # extents of tensors of earlier launches, for addresses that stand for them


class Launch:
    """Arguments as (name, type, value) of the parameters that are no constants; grid; seed of the schedule.

    gang: warps executed together, or None: whole CTAs for even seeds, single warps for odd ones.
    idle: polls in vain, of all gangs together and without any progress, after which it is a deadlock.
    tear: where CTAs wait for each other's stores, half of the stores take effect in two parts, lane by lane.
    only: CTAs of the grid that are run, the others not; all by default."""

    def __init__(
        self, program: Program, arguments: list[tuple[str, str, Any]], grid: tuple[int, int, int], warps: int, shared: int, *,
        cooperative: bool = False, sms: int = 132, seed: int = 0, gang: int | None = 0, counting: bool = False,
        lane_checks: bool = True, watch_stores: bool = True, idle: int = 200_000, quantum: int = 40, max_blocks: int | None = None,
        tear: bool = True, only: Collection[tuple[int, int, int]] | None = None,
    ) -> None:  # fmt: skip
        self.program, self.arguments, self.grid, self.warps = program, arguments, grid, warps
        self.kernel_name = program.name
        self.shared_bytes = shared
        self.cooperative = cooperative
        self.seed, self.gang, self.counting, self.lane_checks = seed, gang, counting, lane_checks
        self.watch_stores = watch_stores
        self.idle, self.quantum, self.max_blocks = idle, quantum, max_blocks
        program.blocks = program.blocks or blocks(program)
        self.only = only
        self.torn = tear and cooperative and any(is_visible(i) == "load" for i in program.code)
        self.preempt = False
        self.bytewise = any(
            i.parts[0] in ("ld", "st") and "shared" in i.parts and i.parts[-1] in ("b8", "u8", "s8") for i in program.code
        )
        self.random = random.Random(seed)
        self.runs: Counter = Counter()  # block number -> warps
        self.polls = self.barriers = self.progress = 0
        self.wavefronts: Counter = Counter()
        self.conflicts: Counter = Counter()
        self.conflict_sites: Counter = Counter()
        self.lane_hazards: Counter = Counter()
        self.same_values = 0  # stores by which several warps wrote the same values to the same shared bytes
        self.params: dict[str, Any] = {}
        self.extents: list[Extent] = []
        self.ctas: list[Cta] = []
        self._bind()
        if cooperative and grid[0] * grid[1] * grid[2] > sms:
            raise PtxError(f"a cooperative launch of {grid} CTAs on {sms} SMs")

    def _bind(self) -> None:
        names = [name for name, _ in self.program.params]
        by_extent: dict[tuple[int, int], list[str]] = {}
        latest: dict[int, tuple[int, int]] = {}
        for n, (name, _, value) in enumerate(self.arguments):
            if isinstance(value, torch.Tensor):
                self.params[names[n]] = value.data_ptr()
                extent = extent_of(value)
                by_extent.setdefault(extent, []).append(name)
                latest[extent[0]] = max(extent, latest.get(extent[0], extent))
            elif self.arguments[n][1].startswith("*"):
                self.params[names[n]] = value
                by_extent.setdefault(_addresses[value], []).append(name)
            else:
                if not isinstance(value, int):
                    raise NotImplementedError(f"argument {name} = {value!r}")
                self.params[names[n]] = value
        for name in names[len(self.arguments) :]:
            self.params[name] = 0  # scratch memory, of which there is none
        _addresses.update(latest)
        for (base, end), sharing in by_extent.items():
            if end > base:
                self.extents.append(Extent("out_ptr" if "out_ptr" in sharing else sharing[0], base, end))
        self.extents.sort(key=lambda e: e.end - e.base)  # the narrowest first

    def extent(self, name: str) -> Extent | None:
        return next((e for e in self.extents if e.name == name), None)

    def _cta(self, index: tuple[int, int, int]) -> Cta:
        cta = Cta(self, index)
        size = self.gang
        if size is None:
            size = (0, 1, 2)[self.seed % 3]
        size = self.warps if not size else min(size, self.warps)
        if any(i.parts[0] == "wgmma" for i in self.program.code):
            size = self.warps
        for w in range(0, self.warps, size):
            cta.gangs.append(Gang(cta, list(range(w, min(w + size, self.warps)))))
        return cta

    def run(self) -> None:
        gx, gy, gz = self.grid
        order = [(x, y, z) for z in range(gz) for y in range(gy) for x in range(gx)]
        order = [i for i in order if self.only is None or i in self.only]
        with np.errstate(all="ignore"):
            if self.cooperative:
                self._run([self._cta(i) for i in order])
            else:
                self.random.shuffle(order)
                for i in order:
                    self._run([self._cta(i)])

    def _run(self, ctas: list[Cta]) -> None:
        self.ctas = ctas
        self.ready = {g for c in ctas for g in c.gangs}
        order = [g for c in ctas for g in c.gangs]
        idle, seen, blocks = 0, self.progress, 0
        choose = self.random
        while True:
            if not self.ready:
                if all(c.live == 0 for c in ctas):
                    return
                raise PtxError("deadlock: " + self.who_waits())
            alive = [g for g in order if g in self.ready] if len(order) > 1 else order
            g = choose.choice(alive)
            for _ in range(choose.randrange(1, self.quantum)):
                blocks += 1
                vain = g.step()
                if not g.fragments:
                    self.ready.discard(g)
                    break
                if self.preempt:
                    self.preempt = False
                    break
                if vain:
                    if self.progress == seen:
                        idle += 1
                        if idle > self.idle:
                            raise PtxError(f"no progress in {idle} polls: " + self.who_waits())
                    break
            if self.progress != seen:
                seen, idle = self.progress, 0
            if self.max_blocks is not None and blocks > self.max_blocks:
                raise PtxError("the launch takes too long: " + self.who_waits())

    def who_waits(self) -> str:
        places = []
        for c in self.ctas:
            for g in c.gangs:
                for block, _ in g.waiting.items():
                    places.append(f"{c} warps {g.warps} at the barrier before block {block}")
                for block, _ in g.fragments.items():
                    code = self.program.blocks[block].code
                    places.append(f"{c} warps {g.warps} at {self.program.where(code[0]) if code else 'the end'}")
        return f"{self.kernel_name}: " + "; ".join(places[:12]) + (f"; and {len(places) - 12} more" if len(places) > 12 else "")

    # ---- statistics

    def instructions(self, spins: bool = False) -> int:
        """Warp instructions executed; without those of polls that failed if not `spins`"""
        return sum(n * self.program.blocks[b].size for b, n in self.runs.items())
