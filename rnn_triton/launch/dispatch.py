"""Takes a plan for a call and has it carried out: the only way to the recurrence kernels.

`forward` and `backward` run on CUDA tensors, or on CPU tensors by Triton's interpreter.  `compile_ahead` compiles what they would
run for a device that need not be here.  Both take the constexpr parameters from one function of the regime (one_cta.py,
cta_group.py, per_step.py), so what is checked ahead of time is what runs.
"""

from __future__ import annotations

import functools
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
from .recurrence import Weight


def forward(
    x: Tensor, w_ih: Weight, w_hh: Weight, b_ih: Weight | None, b_hh: Weight | None, h0: Tensor | None,
    cell: str, reverse: bool, precision: str | None, shared: tuple[Any, ...] = (), *dropout: Any,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Returns y[T,B,H], contiguous, and hn[B,H] in memory of its own, from x[T,B,I] of any strides; T, B >= 1.

    An ensemble of M models has M in front of every shape, with stride 0 where the models share a tensor.  With `shared`, (bundle,
    number of the bottom layer), one launch carries several recurrences, whose shapes and lists are those of Recurrence; `dropout`
    is then its (seed, dropped)."""
    *M, _, B, I = x.shape
    H = (w_hh[0] if shared else w_hh).shape[-1]
    call = ("forward", *M, B, I, H, x.dtype, precision, cell, x.device)
    return run(call, shared, "forward", x, w_ih, w_hh, b_ih, b_hh, h0, reverse, *dropout)


def backward(
    w_hh: Weight, y: Tensor, dy: Tensor | None, dhn: Tensor | None,
    cell: str, reverse: bool, precision: str | None, shared: tuple[Any, ...] = (), *linked: Any,
) -> Tensor:  # fmt: skip
    """Returns da[T,B,H], the gradient of every pre-activation, from y[T,B,H], dy[T,B,H] and dhn[B,H] of any strides.

    da may be a view of longer rows.  dy or dhn may be None, but not both.  Ensembles and `shared` are as in `forward`; for layers
    that share a launch `linked` is Recurrence's (w_ih, seed, dropped)."""
    *M, _, B, H = y.shape
    if shared:
        M, H = [], w_hh[0].shape[-1]
    call = ("backward", *M, B, 1, H, y.dtype, precision, cell, y.device)
    return run(call, shared, "backward", w_hh, y, dy, dhn, reverse, *linked)


def compile_ahead(problem: Problem, p: Plan, device: Device, bundle: Bundle = ONE) -> Any:
    """Returns the compiled kernel (.asm, .metadata) of a plan for a device, which need not be present: the variant with every
    optional tensor of its pass, and with aligned rows wherever the sizes allow them."""
    if isinstance(p, PerStep):
        return per_step.compile_ahead(problem, p, device)
    return recurrence.compile_ahead(problem, p, device, bundle)


def prepared(problem: Problem, p: Plan, bundle: Bundle = ONE, first: int = 0) -> Any:
    """Returns the launch of a plan, or per_step.py's launches for all steps: an object with methods `forward` and `backward`.  The
    arguments are those of Recurrence."""
    return per_step.Steps(problem, p) if isinstance(p, PerStep) else recurrence.Recurrence(problem, p, bundle, first)


def run(call: tuple[Any, ...], shared: tuple[Any, ...], pass_: str, *arguments: Any) -> Any:
    """Calls the method `pass_` of the launch that is prepared for `call` and `shared`.

    If its kernel does not compile, or its CTAs do not all fit on the device at once, another launch is prepared."""
    device = call[-1]
    faults.check(device)
    failure: Exception | None = None
    while True:
        try:
            launch = _launch_for(call, overrides(), *shared) if shared else _launch_for(call, overrides())
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
    """Returns the prepared launch of a call (direction, [M,] B, I, H, dtype, precision, cell, device) under the overrides `chosen`.

    It carries the recurrences of `bundle`, of which the bottom layer has the number `first`."""
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
    """Runs the models of an ensemble one after the other on the current stream, where a launch has room for one model."""

    def __init__(self, launch: Any) -> None:
        self.problem, self.plan, self.launch = launch.problem, launch.plan, launch

    def forward(self, *arguments: Any) -> tuple[Tensor, ...]:
        return self._run(self.launch.forward, arguments)

    def backward(self, *arguments: Any) -> Tensor:
        return self._run(lambda *model: (self.launch.backward(*model),), arguments)[0]

    def _run(self, launch: Any, arguments: tuple[Any, ...]) -> tuple[Tensor, ...]:
        """Returns what `launch` returns for every model, [M,..], each result copied to its place before the next model runs."""
        M = self.problem.models
        results: tuple[Tensor, ...] = ()
        for model in range(M):
            parts = launch(*[t[model] if isinstance(t, Tensor) else t for t in arguments])
            results = results or tuple(t.new_empty((M, *t.shape)) for t in parts)
            for result, part in zip(results, parts, strict=True):
                result[model] = part
        return results
