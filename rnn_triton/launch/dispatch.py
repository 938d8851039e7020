"""The only way to the recurrence kernels: a plan for the call, and the regime that carries it out.

`forward` and `backward` run on CUDA tensors, or on CPU tensors by Triton's interpreter; `compile_ahead` compiles the
same configuration for a device that need not be here.  A regime (one_cta.py, cta_group.py, per_step.py) builds the
constexpr parameters of all three in one place, so what is checked ahead of time is what runs.  recurrence.py launches the
first two.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torch import Tensor

from ..errors import UnsupportedError
from ..plan import hardware
from ..plan.choose import plan, reject, shared_plan
from ..plan.hardware import Device
from ..plan.overriding import Choices, overrides
from ..plan.problem import DTYPES, ONE, Bundle, PerStep, Plan, Problem
from . import faults, per_step, recurrence
from .launcher import DoesNotCompile, DoesNotFit
from .recurrence import Each


def forward(
    x: Tensor,
    w_ih: Each,
    w_hh: Each,
    b_ih: Each | None,
    b_hh: Each | None,
    h0: Tensor | None,
    cell: str,
    reverse: bool,
    precision: str | None,
    shared: tuple[Any, ...] = (),
    *dropout: Any,
) -> tuple[Tensor, Tensor]:
    """Returns y[T,B,H], contiguous, and hn[B,H], its own memory.  x[T,B,I] of any strides; T, B >= 1.

    An ensemble of M models has M in front of every shape; stride 0 where the models share a tensor.  With `shared` = (bundle, number
    of the bottom layer) one launch carries several recurrences: shapes and lists as in Recurrence, `dropout` its (seed, dropped)."""
    *M, _, B, I = x.shape
    H = (w_hh[0] if shared else w_hh).shape[-1]
    call = ("forward", *M, B, I, H, x.dtype, precision, cell, x.device)
    return run(call, shared, "forward", x, w_ih, w_hh, b_ih, b_hh, h0, reverse, *dropout)


def backward(
    w_hh: Each,
    y: Tensor,
    dy: Tensor | None,
    dhn: Tensor | None,
    cell: str,
    reverse: bool,
    precision: str | None,
    shared: tuple[Any, ...] = (),
    *linked: Any,
) -> Tensor:
    """Returns da[T,B,H], the gradient of every pre-activation, from y[T,B,H], dy[T,B,H] and dhn[B,H]; a view of longer rows, maybe.

    dy or dhn may be None, not both; any strides.  Ensembles and `shared` as in `forward`; `linked` layers have Recurrence's (w_ih,
    seed, dropped)."""
    *M, _, B, H = y.shape
    if shared:
        M, H = [], w_hh[0].shape[-1]
    call = ("backward", *M, B, 1, H, y.dtype, precision, cell, y.device)
    return run(call, shared, "backward", w_hh, y, dy, dhn, reverse, *linked)


def compile_ahead(problem: Problem, p: Plan, device: Device, bundle: Bundle = ONE) -> Any:
    """The compiled kernel (.asm, .metadata) of a plan for a device, which need not be present: the variant with every
    optional tensor of its pass and with aligned rows wherever the sizes allow them."""
    if isinstance(p, PerStep):
        return per_step.compile_ahead(problem, p, device)
    return recurrence.compile_ahead(problem, p, device, bundle)


def prepared(problem: Problem, p: Plan, bundle: Bundle = ONE, first: int = 0) -> Any:
    """The launch of a plan, or all of a call's launches for per_step.py: an object with the methods `forward` and `backward`.  Takes
    what Recurrence takes."""
    return per_step.Steps(problem, p) if isinstance(p, PerStep) else recurrence.Recurrence(problem, p, bundle, first)


def run(call: tuple[Any, ...], shared: tuple[Any, ...], pass_: str, *arguments: Any) -> Any:
    """Calls the method `pass_` of the launch prepared for `call` and `shared`.  Where its kernel does not compile, or its CTAs do not
    all fit on the device at once, prepares another one."""
    device = call[-1]
    faults.check(device)
    failure: Exception | None = None
    while True:
        try:
            launch = _launch_for(call, overrides(), *shared)
        except (UnsupportedError, ValueError) as error:
            raise error from failure
        try:
            return getattr(launch, pass_)(*arguments)
        except DoesNotCompile as error:
            failure = error
            reject(launch.problem, hardware.of(device), launch.plan, str(error), getattr(launch, "bundle", ONE))
        except DoesNotFit as error:
            failure = error
            hardware.too_many(device, error.ctas)
        _launch_for.cache_clear()


@functools.lru_cache(maxsize=1024)
def _launch_for(call: tuple[Any, ...], chosen: Choices, bundle: Bundle = ONE, first: int = 0) -> Any:
    """Returns the launch prepared for a call (direction, [M,] B, I, H, dtype, precision, cell, device) under the overrides `chosen`,
    of the recurrences of `bundle`, `first` being the number of the bottom layer."""
    direction, *M, B, I, H, dtype, precision, cell, device = call
    problem = Problem(direction, B, I, H, DTYPES[dtype], precision, cell, *M)
    p: Plan | None
    if bundle.count == 1:
        p = plan(problem, hardware.of(device), chosen)
    else:
        p = shared_plan(problem, bundle, hardware.of(device), chosen)
    if p is None:
        raise UnsupportedError(f"no plan for {bundle.count} recurrences of {problem} compiles on {hardware.of(device).name}")
    launch = prepared(problem, p, bundle, first)
    return _Models(launch) if M and not p.ensembles else launch


class _Models:
    """An ensemble where a launch has room for one model: one after the other, on the current stream."""

    def __init__(self, launch: Any) -> None:
        self.problem, self.plan = launch.problem, launch.plan
        self.launch = launch

    def forward(self, *arguments: Any) -> tuple[Tensor, Tensor]:
        y, hn = self._each(self.launch.forward, arguments)
        return y, hn

    def backward(self, *arguments: Any) -> Tensor:
        (da,) = self._each(lambda *of_one: (self.launch.backward(*of_one),), arguments)
        return da

    def _each(self, run: Callable[..., tuple[Tensor, ...]], arguments: tuple[Any, ...]) -> list[Tensor]:
        """The results of every model, [M,..], each put in its place as soon as it is there"""
        M = self.problem.models
        out: list[Tensor] = []
        for model in range(M):
            found = run(*[a[model] if isinstance(a, Tensor) else a for a in arguments])
            out = out or [t.new_empty((M, *t.shape)) for t in found]
            for whole, t in zip(out, found, strict=True):
                whole[model] = t
        return out
