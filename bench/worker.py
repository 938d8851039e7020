"""A function in a process of its own: a crash or a hang costs the one call that caused it."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import traceback
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from typing import Any


class WorkerError(Exception):
    """The call did not return: `status` is "error" (it raised, or its process died) or "timeout"."""

    def __init__(self, status: str, message: str):
        super().__init__(message)
        self.status = status


class Worker:
    """Calls `function` (importable by name) in a spawned process, kept warm between calls.

    After any failure the process is ended and the next call starts a fresh one: a CUDA context does not survive an
    illegal access, and a call that hangs must not outlive its time.
    """

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

    def call(self, argument: Any, timeout: float) -> Any:
        """function(argument), or WorkerError; `timeout` in seconds includes the start of the process."""
        connection = self._start()
        try:
            connection.send(argument)
            if not connection.poll(timeout):
                self.stop()
                raise WorkerError("timeout", f"no answer within {timeout:.0f} s")
            succeeded, value = connection.recv()
        except (EOFError, OSError) as error:
            code = self._exit_code()
            self.stop()
            raise WorkerError("error", f"the process died with exit code {code}") from error
        if not succeeded:
            self.stop()
            raise WorkerError("error", value)
        return value

    def _start(self) -> Connection:
        if self._connection is None:
            context = multiprocessing.get_context("spawn")
            self._connection, theirs = context.Pipe()
            self._process = context.Process(target=_serve, args=(self.function, theirs), daemon=True)
            before = dict(os.environ)
            os.environ.update(self.environment)
            try:
                self._process.start()
            finally:
                os.environ.clear()
                os.environ.update(before)
            theirs.close()
        return self._connection

    def _exit_code(self) -> int | None:
        self._process.join(5)
        return self._process.exitcode

    def stop(self) -> None:
        """End the process, if there is one."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
        if self._connection is not None:
            self._connection.close()
        self._process = self._connection = None

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def in_words(error: BaseException) -> str:
    """An exception and where it came from"""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({os.path.basename(last.filename)}:{last.lineno})"


def _serve(function: Callable[[Any], Any], connection: Connection) -> None:
    with contextlib.suppress(EOFError, KeyboardInterrupt, BrokenPipeError):
        while True:
            argument = connection.recv()
            try:
                reply = (True, function(argument))
            except Exception as error:
                reply = (False, in_words(error))
            connection.send(reply)
