"""Tests in other processes: killed when they hang, in an environment of their own, several at once.

`Pool` runs the tests it is given, in order, on one or more `Worker` processes while the parent goes on; the
parent asks for each test's reports when its turn comes. A test that hangs, crashes or exits costs its worker,
which is replaced, and is itself reported as failed: no other test is lost.
"""

import collections
import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import Future
from pathlib import Path

START_LIMIT = 300  # s, imports and collection on a loaded machine


def file_of(nodeid):
    return nodeid.partition("::")[0]


class WorkerDied(Exception):
    """The worker hung or ended; the text says how, with what it wrote last."""


class StartFailed(WorkerDied):
    """The worker never got to the point of running tests."""


class Worker:
    """One process, started at the first test and again after each death."""

    def __init__(self, arguments, directory, environment):
        self.arguments, self.directory, self.environment = arguments, directory, environment
        self.process = None

    def run(self, nodeid, following, limit):
        """What worker_main answers for the test; raises WorkerDied, after `limit` seconds at the latest."""
        if self.process is None:
            self._start()
        self.mark = os.fstat(self.log.fileno()).st_size
        return self._exchange((nodeid, following), limit)

    def stop(self):
        """End the process: at once if it answers, by force if not."""
        if self.process is None:
            return
        with contextlib.suppress(OSError):
            self.connection.send(None)
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.kill()
        self._forget()

    def kill(self):
        process = self.process
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # its own session: takes what it started along

    def _start(self):
        self.connection, theirs = multiprocessing.Pipe()
        self.log = tempfile.TemporaryFile(
            "ab"
        )  # append: the parent reads it without moving the child's position
        self.mark = 0
        main = Path(__file__).with_name("worker_main.py")
        self.process = subprocess.Popen(
            [sys.executable, str(main), str(theirs.fileno()), *self.arguments],
            cwd=self.directory, env=self.environment, pass_fds=[theirs.fileno()], start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=self.log, stderr=subprocess.STDOUT,
        )  # fmt: skip
        theirs.close()  # ours would keep the pipe open after the child's death
        try:
            self._exchange(None, START_LIMIT)
        except WorkerDied as died:
            raise StartFailed(f"no worker: {died}") from None

    def _exchange(self, request, limit):
        try:
            if request is not None:
                self.connection.send(request)
            if self.connection.poll(limit):
                return self.connection.recv()
        except (EOFError, OSError):
            status = self.process.wait()
            how = f"signal {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
            raise WorkerDied(f"worker ended with {how}{self._forget()}") from None
        # pytest's fault handler answers SIGABRT with the stack of every thread
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGABRT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(5)
        self.kill()
        self.process.wait()
        raise WorkerDied(f"timed out after {limit:g} s, worker killed{self._forget()}")

    def _forget(self):
        """Drop the dead process; returns what it wrote since the test began, its last 8000 bytes."""
        size = os.fstat(self.log.fileno()).st_size
        with open(f"/dev/fd/{self.log.fileno()}", "rb") as log:
            log.seek(max(self.mark, size - 8000))
            text = log.read().decode(errors="replace").strip()
        self.log.close()
        self.connection.close()
        self.process = None
        return f"; it wrote:\n{text}" if text else ""


class Pool:
    """Runs [(node id, limit in s)] in order on `workers`, all tests of a file of `together` on one of them; `result` waits
    for a test."""

    def __init__(self, tests, workers, together=()):
        self.together = set(together)
        self.waiting = collections.deque(tests)
        self.results = {nodeid: Future() for nodeid, _ in tests}
        self.workers = workers
        self.broken = None
        self.owners = {}  # of the files of `together` that are begun
        self.lock = threading.Lock()
        self.threads = [
            threading.Thread(target=self._feed, args=(worker,), daemon=True) for worker in workers
        ]
        for thread in self.threads:
            thread.start()

    def result(self, nodeid):
        """(serialised reports, or a str why there are none; seconds it took)"""
        return self.results[nodeid].result()

    def close(self):
        """End the workers, whatever they do."""
        with self.lock:
            self.waiting.clear()
        for worker in self.workers:
            worker.kill()
        for thread in self.threads:
            thread.join()

    def _for(self, worker):
        """The waiting tests that are not another worker's"""
        return (test for test in self.waiting if self.owners.get(file_of(test[0]), worker) is worker)

    def _feed(self, worker):
        while True:
            with self.lock:
                if not self.waiting:
                    break
                chosen = next(self._for(worker), None)
                if chosen is None:
                    break
                self.waiting.remove(chosen)
                nodeid, limit = chosen
                if file_of(nodeid) in self.together:
                    self.owners[file_of(nodeid)] = worker
                # a guess, as another worker may take it: the fixtures that both tests share are kept for it
                following = next((other for other, _ in self._for(worker)), None)
            began = time.monotonic()
            try:
                answer = self.broken or worker.run(nodeid, following, limit)
            except WorkerDied as died:
                answer = str(died)
                if isinstance(died, StartFailed):
                    self.broken = answer  # it would not start for the others either
            except (
                BaseException
            ) as error:  # a fault of this file: an answer all the same, or the parent waits for ever
                answer = f"worker machinery: {error!r}"
            self.results[nodeid].set_result((answer, time.monotonic() - began))
        worker.stop()
