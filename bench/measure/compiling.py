"""Fills the caches of compilers before anything is measured: calls of all providers in parallel processes, the very calls that will be timed.

Ours are made up to the launch itself, so that the variants with absent tensors, the GEMMs and what the planner falls back on are compiled too.
Others' are made over few steps (Provider.prepare). """

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

import torch
from triton.compiler import CompiledKernel
from triton.runtime.jit import JITFunction

import rnn_triton

from ..cases.case import Case, Job
from ..cases.inputs import tensors
from ..instruments.worker import in_parallel
from ..providers.registry import PROVIDERS
from ..records.schema import OURS
from .run import short_of

Choices = tuple[tuple[str, Any], ...]  # of a plan, as rnn_triton.overriding takes them


@dataclass(frozen=True)
class Call:
    """One call of a provider: forward only ("fwd") or with its backward ("train"); ours under `choices` of a plan."""

    case: Case
    pass_: str = "train"
    choices: Choices = ()
    provider: str = OURS


def calls_of(jobs: Iterable[Job], here: Collection[str]) -> list[Call]:
    """What jobs compile, in their order: every pass of every provider that is `here`, compiles anything and runs the case, over
    both numbers of steps that are timed."""
    return [
        Call(case, pass_, provider=name)
        for job in jobs
        for name in job.providers
        if name in here and PROVIDERS[name].compiles and not PROVIDERS[name].unsupported(job.case)
        for case in (job.case, short_of(job.case))
        for pass_ in job.passes
    ]


@contextlib.contextmanager
def launches_compile() -> Iterator[None]:
    """A launch compiles and loads its kernel, and is not made, whether it comes by Triton's own path, as the first one of every
    kernel does, or by the kernel itself, as those after it do (rnn_triton/launch/launcher.py).  Loading tells what does not fit the
    device, so that the planner's next choice is compiled as well."""
    run, load = JITFunction.run, CompiledKernel.__getitem__

    def compile_only(function: Any, *arguments: Any, **options: Any) -> Any:
        kernel = run(function, *arguments, **{**options, "warmup": True})
        kernel[(1, 1, 1)]
        return kernel

    def load_only(kernel: Any, grid: Any) -> Callable[..., None]:
        load(kernel, grid)
        return lambda *arguments, **options: None

    with mock.patch.object(JITFunction, "run", compile_only), mock.patch.object(CompiledKernel, "__getitem__", load_only):
        yield


def compile_call(call: Call) -> None:
    """Compile what the call launches, for the GPU at hand; nothing where no plan has the choices."""
    torch.set_num_threads(1)  # there is a process on every core
    provider, device = PROVIDERS[call.provider], torch.device("cuda")
    if call.provider != OURS:
        provider.prepare(call.case, call.pass_, device)
        return
    # ValueError: no such plan, NotImplementedError: no plan at all; both show again when the case runs
    with contextlib.suppress(ValueError, NotImplementedError):
        session = provider.session(call.case, tensors(call.case, device))
        with launches_compile(), rnn_triton.overriding(**dict(call.choices)):
            session.forward() if call.pass_ == "fwd" else session.train()


def compile_calls(
    calls: Iterable[Call], seconds: float | None = None, function: Callable[[Call], None] = compile_call
) -> tuple[dict[Call, str], int]:
    """(failures, how many were cut off): each different call compiled, in parallel, in order, for `seconds` at most."""
    distinct = list(dict.fromkeys(replace(call, case=PROVIDERS[call.provider].shortest(call.case)) for call in calls))
    failures = {}
    done = 0
    for i, answer in in_parallel(function, distinct, "compiling", seconds):
        done += 1
        if isinstance(answer, BaseException):
            failures[distinct[i]] = str(answer)
    return failures, len(distinct) - done


def choices_of(**choices: Any) -> Choices:
    """As the `choices` of a Call: hashable"""
    return tuple(sorted(choices.items()))


def named(name: str, choices: Choices) -> str:
    """A case's name with its choices; the regime of one that chooses more goes without saying"""
    told = {k: v for k, v in dict(choices).items() if k != "regime" or len(dict(choices)) == 1}
    return " ".join([name, *(f"{k}={v}" for k, v in told.items())])
