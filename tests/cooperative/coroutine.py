"""Coroutines made of threads that pass a baton: Triton calls kernels as plain functions, which cannot yield."""

import threading


class Killed(BaseException):
    """Unwinds a program. Not an Exception: Triton catches those."""


class Coroutine:
    """`resume` runs the function until it pauses or ends, and raises what it raised."""

    def __init__(self, function):
        self.function = function
        self.done = self.killed = False
        self.error = None
        self.go, self.back = threading.Lock(), threading.Lock()
        self.go.acquire()
        self.back.acquire()
        self.thread = None

    def _main(self):
        self.go.acquire()
        try:
            if not self.killed:
                self.function()
        except Killed:
            pass
        except BaseException as error:  # for `resume` to raise
            self.error = error
        self.done = True
        self.back.release()

    def resume(self):
        if self.thread is None:
            self.thread = threading.Thread(target=self._main, daemon=True)
            self.thread.start()
        self.go.release()
        self.back.acquire()
        if self.error is not None:
            raise self.error

    def pause(self):
        """Called by the function itself."""
        self.back.release()
        self.go.acquire()
        if self.killed:
            raise Killed

    def kill(self):
        if self.thread is not None:
            if not self.done:
                self.killed = True
                self.go.release()
            self.thread.join()
