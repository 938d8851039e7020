"""Compiles the planned kernels in parallel, into Triton's cache, before the first GPU test needs one."""

import os
import traceback
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context


def compile_one(job):
    """None, or the traceback as text. A problem beyond the device is not an error."""
    from rnn_triton.errors import UnsupportedError
    from rnn_triton.launch import dispatch
    from rnn_triton.plan.choose import plan

    try:
        problem, device = job
        dispatch.compile_ahead(problem, plan(problem, device), device)
    except UnsupportedError:
        pass
    except Exception:
        return f"{job}:\n{traceback.format_exc()}"


def compile_planned():
    """Compile every plan of bench/compiled/planned.py that is for this machine's device; returns the failures as text."""
    import torch

    from bench.compiled.planned import planned

    capability = 10 * torch.cuda.get_device_capability()[0] + torch.cuda.get_device_capability()[1]
    jobs = [(problem, device) for problem, device in planned() if device.capability == capability]
    return run(compile_one, jobs)


def run(compile_job, jobs, processes=None):
    """[text of each job that failed]; `compile_job` runs in fresh processes, which inherit no CUDA state."""
    processes = min(processes or os.cpu_count() or 1, len(jobs))
    if processes == 0:
        return []
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        return [failure for failure in pool.map(compile_job, jobs) if failure]
