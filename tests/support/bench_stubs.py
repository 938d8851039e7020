"""Functions for worker processes that start fast: nothing here imports torch."""

import os
import time

from support.bench_records import timing


def misbehave(what):
    if what == "hang":
        time.sleep(60)
    if what == "crash":
        os._exit(17)
    if what == "raise":
        raise RuntimeError("no such luck")
    return os.getpid(), what


def measure(job):
    """Stands in for run.measure: hangs at H = 2, raises at H = 3."""
    if job.case.H == 2:
        time.sleep(60)
    if job.case.H == 3:
        raise RuntimeError("planted")
    records = [timing(job.case, pass_, name, 1.0) for name in job.providers for pass_ in job.passes]
    return [{k: v for k, v in r.items() if k not in ("schema", "kind", "run", "environment")} for r in records]
