"""CTAs, and gangs of their warps: which block runs next, divergence, barriers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from . import translate
from .errors import PtxError
from .memory import Shared
from .warps import Warps

if TYPE_CHECKING:
    from .launch import Launch


class Cta:
    def __init__(self, launch: Launch, index: tuple[int, int, int]) -> None:
        self.launch, self.index = launch, index
        self.number = index[0] + launch.grid[0] * (index[1] + launch.grid[1] * index[2])
        self.shared = Shared(launch.shared_bytes, launch.bytewise)
        self.live = 32 * launch.warps
        self.arrived = 0
        self.barriers = 0
        self.gangs: list[Gang] = []

    def __str__(self) -> str:
        return f"CTA {self.index[0]},{self.index[1]}"


class Gang(Warps):
    def add(self, where: dict[int, np.ndarray | None], block: int, m: np.ndarray | None) -> None:
        if block in where:
            m = self.mask_of(where[block]) | self.mask_of(m)
            if m.all():
                m = None
        where[block] = m

    def _choose(self) -> tuple[int, np.ndarray | None]:
        """The fragment of the smallest block number, in which all lanes meet again that parted.  One that has just polled in vain
        lets other warps of the gang go on, but not other lanes of its own warps: they wait where they meet."""
        order = sorted(self.fragments)
        if order[0] == self.polled:
            polling = self.mask_of(self.fragments[order[0]]).reshape(-1, 32).any(1)
            others = ~np.repeat(polling, 32)
            for number in order[1:]:
                m = self.mask_of(self.fragments[number])
                free = m & others
                if free.any():
                    stay = m & ~others
                    if stay.any():
                        self.fragments[number] = stay
                    else:
                        del self.fragments[number]
                    return number, None if free.all() else free
        return order[0], self.fragments.pop(order[0])

    def step(self) -> bool:
        """Run a block; true if it may have been in vain: a poll that goes back"""
        launch = self.launch
        fragments = self.fragments
        if self.late:
            self.flush()
        if len(fragments) == 1:
            number = next(iter(fragments))
            m = fragments.pop(number)
        else:
            number, m = self._choose()
        b = launch.program.blocks[number]
        if m is None:
            launch.runs[number] += len(self.warps)
            f = b.full
            if f is None:
                f = b.full = translate.function(launch.program, b, False)
        else:
            launch.runs[number] += int(m.reshape(-1, 32).any(1).sum())
            f = b.masked
            if f is None:
                f = b.masked = translate.function(launch.program, b, True)
        try:
            p = f(self, self.R) if m is None else f(self, self.R, m)
        except (TypeError, AttributeError) as error:
            if "None" in str(error):
                raise PtxError(f"a register that was never written: {launch.kernel_name}, block at {launch.program.where(b.code[0])}: {error}") from error
            raise
        kind = b.kind
        if kind == "fall":
            self.add(fragments, b.next, m)
        elif kind == "bra":
            self.add(fragments, b.target, m)
        elif kind == "branch":
            p = self.full(p)
            taken = p if m is None else p & m
            if taken.any():
                rest = ~p if m is None else m & ~p
                if rest.any():
                    self.add(fragments, b.target, taken)
                    self.add(fragments, b.next, rest)
                else:
                    self.add(fragments, b.target, m)
                if b.waits:
                    self.polled = b.target
                    self.polls += 1
                    launch.polls += 1
                    return True
            else:
                self.add(fragments, b.next, m)
        elif kind == "ret":
            self._exit(m)
        elif kind == "condret":
            p = self.full(p)
            taken = p if m is None else p & m
            rest = ~p if m is None else m & ~p
            if taken.any():
                self._exit(taken)
            if rest.any():
                self.add(fragments, b.next, None if rest.all() else rest)
        elif kind == "bar":
            self._arrive(b, m)
        self.polled = None
        return False

    def _exit(self, m: np.ndarray | None) -> None:
        self.flush()
        m = self.mask_of(m)
        self.exited = m if self.exited is None else self.exited | m
        self.cta.live -= int(m.sum())
        self.launch.progress += 1
        if self.cta.live and self.cta.arrived == self.cta.live:
            self._release()

    def _arrive(self, b: Any, m: np.ndarray | None) -> None:
        self.flush()
        full = self.mask_of(m)
        live = np.ones(self.N, bool) if self.exited is None else ~self.exited
        per, alive = full.reshape(-1, 32), live.reshape(-1, 32)
        part = per.any(1) & (per != alive).any(1)
        if part.any():
            raise self.error("a part of a warp at a CTA barrier", b.code[-1])
        self.add(self.waiting, b.next, m)
        self.cta.arrived += int(full.sum())
        if self.cta.arrived == self.cta.live:
            self._release()

    def _release(self) -> None:
        cta = self.cta
        cta.arrived = 0
        cta.barriers += 1
        cta.shared.epoch += 1
        self.launch.barriers += 1
        self.launch.progress += 1
        for gang in cta.gangs:
            for block, m in gang.waiting.items():
                gang.add(gang.fragments, block, m)
            gang.waiting = {}
            gang.sync = gang.sync + 1
            if gang.fragments:
                self.launch.ready.add(gang)
