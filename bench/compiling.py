"""Fills the caches of compilers before anything is measured: calls of all providers in parallel processes, the
very calls that will be timed.

Ours are made up to the launch itself, so that the variants with absent tensors, the GEMMs and what the planner
falls back on are compiled too. Others' are made over few steps (Provider.prepare).
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, TimeoutError, as_completed
from dataclasses import dataclass, replace
from multiprocessing import get_context
from typing import Any
from unittest import mock

import torch

from .cases import Case, Job
from .progress import Progress
from .providers import PROVIDERS, tensors
from .records import OURS


@dataclass(frozen=True)
class Call:
    """One call of a provider: forward only ("fwd") or with its backward ("train"); ours under `choices` of a plan."""

    case: Case
    pass_: str = "train"
    choices: tuple[tuple[str, Any], ...] = ()
    provider: str = OURS


def calls_of(jobs: Iterable[Job]) -> list[Call]:
    """What jobs compile: every pass of every provider that is here, compiles anything and runs the case, in their
    order."""
    compiling = {name for name, p in PROVIDERS.items() if p.compiles and not p.missing(torch.device("cuda"))}
    return [
        Call(job.case, pass_, provider=name)
        for job in jobs
        for name in job.providers
        if name in compiling and not PROVIDERS[name].unsupported(job.case)
        for pass_ in job.passes
    ]


@contextlib.contextmanager
def first_launches_compile() -> Iterator[None]:
    """A launch that comes by Triton's own path, as the first one of every kernel does, compiles and loads the kernel, and is
    not made.  Loading tells what does not fit the device, so that the planner's next choice is compiled as well."""
    from triton.runtime.jit import JITFunction

    run = JITFunction.run

    def compile_only(function: Any, *arguments: Any, **options: Any) -> Any:
        kernel = run(function, *arguments, **{**options, "warmup": True})
        kernel[(1, 1, 1)]  # loads it
        return kernel

    with mock.patch.object(JITFunction, "run", compile_only):
        yield


def compile_call(call: Call) -> None:
    """Compile what the call launches, for the GPU at hand; nothing where no plan has the choices."""
    torch.set_num_threads(1)  # there is a process on every core
    provider, device = PROVIDERS[call.provider], torch.device("cuda")
    if call.provider != OURS:
        provider.prepare(call.case, call.pass_, device)
        return
    import rnn_triton
    from rnn_triton import launch

    # ValueError: no such plan, NotImplementedError: no plan at all; both show again when the case runs
    with contextlib.suppress(ValueError, NotImplementedError):
        session = provider.session(call.case, tensors(call.case, device))
        try:
            with first_launches_compile(), rnn_triton.overriding(**dict(call.choices)):
                session.forward() if call.pass_ == "fwd" else session.train()
        finally:
            launch._site.cache_clear()  # it keeps kernels, and a kept one would be launched


def compile_ahead(call: Call) -> None:
    """Compile the kernels of the call's plans for an H200, which need not be here; no launch finds them."""
    import rnn_triton
    from rnn_triton import hardware, launch
    from rnn_triton.plan import plan

    from .model import problems

    device = hardware.RECORDS["sm_90"]
    with rnn_triton.overriding(**dict(call.choices)):
        for problem in problems(call.case)[: 1 if call.pass_ == "fwd" else 2]:
            launch.compile_ahead(problem, plan(problem, device), device)


def compile_calls(
    calls: Iterable[Call], seconds: float | None = None, function: Callable[[Call], None] = compile_call
) -> tuple[dict[Call, str], int]:
    """(failures, how many were cut off): each different call compiled, in parallel, in order, for `seconds` at
    most."""
    distinct = list(dict.fromkeys(replace(call, case=PROVIDERS[call.provider].shortest(call.case)) for call in calls))
    failures = {}
    done = 0
    for i, answer in in_parallel(function, distinct, "compiling", seconds):
        done += 1
        if isinstance(answer, BaseException):
            failures[distinct[i]] = f"{type(answer).__name__}: {answer}"
    return failures, len(distinct) - done


def choices_of(**choices: Any) -> tuple[tuple[str, Any], ...]:
    """As the `choices` of a Call: hashable"""
    return tuple(sorted(choices.items()))


def named(name: str, choices: Mapping[str, Any] | tuple[tuple[str, Any], ...]) -> str:
    """A case's name with its choices; the regime of one that chooses more goes without saying"""
    told = {k: v for k, v in dict(choices).items() if k != "regime" or len(dict(choices)) == 1}
    return " ".join([name, *(f"{k}={v}" for k, v in told.items())])


def in_parallel(
    function: Callable[[Any], Any], arguments: Sequence[Any], title: str, seconds: float | None = None
) -> Iterator[tuple[int, Any]]:
    """(index, function(argument)) as each is done, in fresh processes, one a core; an exception in place of a result.

    After `seconds` no more are begun, and those left are not in the answers."""
    if not arguments:
        return
    deadline = None if seconds is None else time.monotonic() + seconds
    processes = min(len(arguments), os.cpu_count() or 1)
    with (
        ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool,
        Progress(title, len(arguments)) as progress,
    ):
        progress.now(f"{processes} processes")
        futures = {pool.submit(function, argument): i for i, argument in enumerate(arguments)}
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        try:
            for future in as_completed(futures, left):
                error = future.exception()
                yield futures[future], future.result() if error is None else error
                progress.step(failed=error is not None)
                progress.now(f"{processes} processes")
        except TimeoutError:
            pool.shutdown(cancel_futures=True)
