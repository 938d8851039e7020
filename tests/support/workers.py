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
from typing import NamedTuple

TICK = 1 / os.sysconf("SC_CLK_TCK")  # s, the unit of /proc


class Limit(NamedTuple):
    """Seconds for one answer: of CPU time of the worker and of all that it started, and of wall time.  The first is what a
    busy machine does not change; the second ends what hangs without computing.  Of one long gap between two looks at the
    clock only a part counts: a virtual machine may stand still for hours."""

    cpu: float
    wall: float


START_LIMIT = Limit(120, 1200)  # imports and collection
STOP_LIMIT = Limit(30, 300)  # fixtures kept until now are torn down
ABORT_LIMIT = 60  # s of wall time to write a stack


def cpu_seconds(session):
    """CPU seconds of the processes of a session, those that ended and were waited for among them"""
    total = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            fields = stat.read_text().rpartition(")")[2].split()  # the name before ")" may hold anything
            if int(fields[3]) == session:
                total += sum(map(int, fields[11:15]))
    return total * TICK


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
        """What worker_main answers for the test; raises WorkerDied, beyond its Limit at the latest."""
        if self.process is None:
            self._start()
        self.mark = os.fstat(self.log.fileno()).st_size
        return self._exchange(limit, (nodeid, following))

    def stop(self):
        """End the process: at once if it answers, by force if not."""
        if self.process is not None:
            with contextlib.suppress(WorkerDied):
                self._exchange(STOP_LIMIT, None)

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
            self._exchange(START_LIMIT)
        except WorkerDied as died:
            raise StartFailed(f"no worker: {died}") from None

    def _exchange(self, limit, *requests):
        """The answer to the requests; raises WorkerDied where there is none."""
        pause = min(limit) / 20
        looked, before = time.monotonic(), None  # most answer before the first look at their CPU time
        wall = cpu = 0
        try:
            for request in requests:
                self.connection.send(request)
            while wall < limit.wall and cpu < limit.cpu:
                if self.connection.poll(pause):
                    return self.connection.recv()
                total = cpu_seconds(self.process.pid)
                before = total if before is None else before
                now = time.monotonic()
                wall += min(now - looked, 10 * pause)
                looked, cpu = now, total - before
        except (EOFError, OSError):
            status = self.process.wait()
            how = f"signal {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
            raise WorkerDied(f"worker ended with {how}{self._forget()}") from None
        # pytest's fault handler answers SIGABRT with the stack of every thread
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGABRT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(ABORT_LIMIT)
        self.kill()
        self.process.wait()
        spent = f"{cpu:.1f} of {limit.cpu:g} s of CPU time, {wall:.1f} of {limit.wall:g} s of wall time"
        raise WorkerDied(f"timed out: {spent}; worker killed{self._forget()}")

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
    """Runs [(node id, Limit)] in order on `workers`, all tests of a file of `together` on one of them; `result` waits
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
