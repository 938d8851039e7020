"""Functions for worker processes that start fast: nothing here imports torch."""

import os
import time
from dataclasses import dataclass

from bench.instruments.worker import at
from support.bench_records import timing

HANG = 60  # s


def misbehave(what):
    if what == "hang":
        time.sleep(HANG)
    if what == "crash":
        os._exit(17)
    if what == "raise":
        raise RuntimeError("no such luck")
    return os.getpid(), what


def measure(job):
    """Stands in for run.measure: hangs at H = 2 and raises at H = 3 without a word, dies in cuDNN at H = 7 and says so, dies
    without a word where it is given the loop at H = 8, raises before any provider at H = 9; hangs at H = 10 after signs of life."""
    if job.case.H == 2:
        time.sleep(HANG)
    if job.case.H == 3:
        raise RuntimeError("planted")
    if job.case.H == 7:
        for name in job.providers:
            at(name)
            if name == "cudnn":
                os._exit(17)
        at(None)
    if job.case.H == 8 and "loop" in job.providers:
        os._exit(17)
    if job.case.H == 9:
        at("inputs and reference")
        raise RuntimeError("no memory")
    if job.case.H == 10:
        for _ in range(6):
            at("rnn_triton")
            time.sleep(0.5)
    records = [timing(job.case, pass_, name, 1.0) for name in job.providers for pass_ in job.passes]
    return [{k: v for k, v in r.items() if k not in ("schema", "kind", "run", "date", "environment")} for r in records]


@dataclass(frozen=True)
class Item:
    """Stands in for an item of bench/first_run/items.py: `does` says what comes of it."""

    name: str
    section: str
    does: str = "ok"
    timeout: float = 30.0
    kind: str = "behaviour"

    def blank(self):
        fields = {"name": self.name, "case": "h1-b1-t1-bf16", "choices": {}, "status": "ok", "message": "", "seconds": 0.0}
        return [fields]

    def calls(self):
        return []


def perform(item):
    """Stands in for probes.perform."""
    misbehave(item.does)
    (fields,) = item.blank()
    wrong = item.does == "wrong"
    return [fields | {"status": "wrong" if wrong else "ok", "message": "planted" if wrong else str(os.getpid())}]


def mark(path):
    path.write_text("")
    time.sleep(0.05)


def slow(call):
    time.sleep(3)
    raise RuntimeError("no such luck")


def environment(name):
    return os.environ.get(name)


def nothing(call):
    """Stands in for compiling.compile_call."""
