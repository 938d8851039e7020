"""A function in a process of its own: a crash or a hang costs the one call that caused it."""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import os
import queue
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from typing import Any
from unittest import mock

from .progress import Progress


class WorkerError(Exception):
    """The call did not return: `status` is "error" (it raised, or its process died) or "timeout".

    `at`: what the function last told `at()`, None for nothing."""

    def __init__(self, status: str, message: str, at: str | None = None):
        super().__init__(message)
        self.status, self.at = status, at


_parent: Connection | None = None  # in a worker process
_spawning = threading.Lock()  # a process takes its environment from this one's


def at(what: str | None) -> None:
    """Of a function in a worker: it is at `what` now, should it not return.  Its time starts anew."""
    if _parent is not None:
        _parent.send(("at", what))


@contextlib.contextmanager
def _without_interrupts() -> Iterator[None]:
    """A process that is started meanwhile never hears of Ctrl-C, which a terminal sends to all of them: whoever started it ends
    it. A blocked signal stays blocked in the children; the handlers of signals are the main thread's alone to set."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Worker(contextlib.AbstractContextManager["Worker"]):
    """Calls `function` (importable by name) in a spawned process, kept warm between calls.

    After any failure the process is ended and the next call starts a fresh one: a CUDA context does not survive an illegal access, and a
    call that hangs must not outlive its time. """

    def __init__(self, function: Callable[[Any], Any], environment: Mapping[str, str] | None = None):
        """`environment`: variables that are set in the process from its start."""
        self.function = function
        self.environment = environment or {}
        self._process: Any = None
        self._connection: Connection | None = None

    @property
    def is_warm(self) -> bool:
        """Is there a process already?"""
        return self._connection is not None

    def call(self, argument: Any, timeout: float, total: float = math.inf) -> Any:
        """function(argument), or WorkerError.

        `timeout` in seconds from the start, that of the process included, or from the last `at`; `total` in all."""
        connection = self._start()
        deadline = time.monotonic() + total
        kind: Any = "at"
        value: Any = None
        last: Any = None
        try:
            connection.send(argument)
            while kind == "at":
                last = value
                allowed = min(timeout, deadline - time.monotonic())
                if not connection.poll(max(0.0, allowed)):
                    self.stop()
                    raise WorkerError("timeout", f"no answer within {allowed:.0f} s", last)
                kind, value = connection.recv()
        except (EOFError, OSError) as error:
            self._process.join(5)
            code = self._process.exitcode
            self.stop()
            raise WorkerError("error", f"the process died with exit code {code}", last) from error
        if kind == "raised":
            self.stop()
            raise WorkerError("error", value, last)
        return value

    def _start(self) -> Connection:
        if self._connection is None:
            context = multiprocessing.get_context("spawn")
            connection, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(self.function, theirs), daemon=True)
            resource_tracker.ensure_running()  # where it is not, starting a process unblocks the signal
            with _spawning, _without_interrupts(), mock.patch.dict(os.environ, self.environment):
                process.start()
                self._process, self._connection = process, connection
            theirs.close()
        assert self._connection is not None
        return self._connection

    def stop(self) -> None:
        """End the process, if there is one."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
        if self._connection is not None:
            self._connection.close()
        self._process = self._connection = None

    def __exit__(self, *_: object) -> None:
        self.stop()


def in_words(error: BaseException) -> str:
    """An exception and where it came from"""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({os.path.basename(last.filename)}:{last.lineno})"


def _serve(function: Callable[[Any], Any], connection: Connection) -> None:
    global _parent
    _parent = connection
    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            argument = connection.recv()
            try:
                reply = ("returned", function(argument))
            except Exception as error:
                reply = ("raised", in_words(error))
            connection.send(reply)


CALL_TIMEOUT = 120.0  # seconds of one call in a process of a pool
MOST_PROCESSES = 16  # each may hold a CUDA context and a copy of torch


def in_parallel(function: Callable[[Any], Any], arguments: Sequence[Any], title: str, seconds: float | None = None) -> Iterator[tuple[int, Any]]:
    """(index, function(argument)) as each is done, in processes, one a core; an exception in place of a result.

    A call that dies or takes longer than CALL_TIMEOUT costs itself.  After `seconds` no more are begun, those that run are
    ended, and neither is in the answers."""
    if not arguments:
        return
    deadline = math.inf if seconds is None else time.monotonic() + seconds
    processes = min(len(arguments), len(os.sched_getaffinity(0)), MOST_PROCESSES)
    waiting = iter(enumerate(arguments))
    answers: queue.SimpleQueue[tuple[int, Any]] = queue.SimpleQueue()
    lock, ended = threading.Lock(), threading.Event()

    def serve() -> None:
        with Worker(function) as worker:
            while True:
                with lock:
                    i, argument = next(waiting, (-1, None))
                left = deadline - time.monotonic()
                if i < 0 or left <= 0 or ended.is_set():
                    break
                allowed = min(CALL_TIMEOUT, left)
                try:
                    answers.put((i, worker.call(argument, allowed)))
                except WorkerError as error:
                    if error.status == "error" or allowed == CALL_TIMEOUT:
                        answers.put((i, error))
        answers.put((-1, None))  # this thread is done

    threads = [threading.Thread(target=serve, daemon=True) for _ in range(processes)]
    with Progress(title, len(arguments)) as progress:
        progress.now(f"{processes} processes")
        for thread in threads:
            thread.start()
        try:
            while processes:
                i, answer = answers.get()
                if i < 0:
                    processes -= 1
                    continue
                yield i, answer
                progress.step(failed=isinstance(answer, BaseException))
                progress.now(f"{processes} processes")
        finally:
            ended.set()  # whoever asked has gone: no call is begun
