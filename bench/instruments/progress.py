"""A progress bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from typing import TextIO


class Progress(contextlib.AbstractContextManager["Progress"]):
    """Says what runs now, how far it is, how long the rest will take and what failed.

    `weights`: how long each unit is expected to take, in any measure; equal by default. `stream` defaults to standard error."""

    def __init__(
        self, title: str, total: int, stream: TextIO | None = None, weights: Sequence[float] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):  # fmt: skip
        self.title, self.total, self.done, self.failures = title, total, 0, 0
        self.stream = stream or sys.stderr
        self.live = self.stream.isatty()
        self.clock, self.began = clock, clock()
        self._stepped = self.began  # when the last unit was done
        self._weights = list(weights) if weights is not None else [1.0] * total
        self._next_line = 0.0

    def now(self, what: str) -> None:
        """`what` has started."""
        progress = f"{self.done}/{self.total}{self._remaining()}{self._failed()}  {what}"
        if self.live:
            filled = int(24 * self.done / max(self.total, 1))
            columns = shutil.get_terminal_size().columns
            line = f"{self.title} [{'#' * filled + '-' * (24 - filled)}] {progress}"
            self.stream.write("\r" + line[: columns - 1].ljust(columns - 1))
            self.stream.flush()
        elif self.clock() >= self._next_line:  # enough for a log
            self._next_line = self.clock() + 5.0
            print(f"{self.title} {progress}", file=self.stream, flush=True)

    def step(self, failed: bool = False) -> None:
        """One unit is done."""
        self.done += 1
        self._stepped = self.clock()
        self.failures += failed

    def close(self) -> None:
        """Says what was done; of nothing, nothing."""
        if not self.total:
            return
        seconds = self.clock() - self.began
        line = f"{self.title}: {self.done}/{self.total} in {seconds:.0f} s{self._failed()}"
        if self.live:
            self.stream.write("\r" + " " * (shutil.get_terminal_size().columns - 1) + "\r")
        print(line, file=self.stream, flush=True)

    def _failed(self) -> str:
        return f", {self.failures} failed" if self.failures else ""

    def _remaining(self) -> str:
        """By what is done; a unit that is under way does not move the end, until it is past it"""
        behind, ahead = sum(self._weights[: self.done]), sum(self._weights[self.done :])
        if not behind:
            return ""
        end = self._stepped + (self._stepped - self.began) / behind * ahead
        return f", {max(0.0, end - self.clock()):.0f} s left"

    def __exit__(self, *_: object) -> None:
        self.close()
