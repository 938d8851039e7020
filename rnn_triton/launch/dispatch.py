"""Takes a plan for a call and has it carried out: the only way to the recurrence kernels.

`forward` and `backward` run on CUDA tensors, or on CPU tensors by Triton's interpreter.  `compile_ahead` compiles what they would
run for a device that need not be here.  Both take the constexpr parameters from one function of the regime (one_cta.py,
cta_group.py, per_step.py), so what is checked ahead of time is what runs.
"""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any, Literal

from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

from ..cells.sequences import Sequences
from ..errors import UnsupportedError
from ..plan import hardware
from ..plan.choose import plan, reject, shared_plan
from ..plan.hardware import Device
from ..plan.overriding import Choices, overrides
from ..plan.problem import DTYPES, ONE, Bundle, PerStep, Plan, Problem
from . import faults
from .launcher import DoesNotCompile, DoesNotFit
from .operands import States, Weight
from .sequences import ALL, given


def forward(
    x: Tensor, w_ih: Weight, w_hh: Weight, b_ih: Weight | None, b_hh: Weight | None, states: States, cell: str, reverse: bool,
    precision: str | None, keep: bool | Literal["states"] = False, vectors: Tensor | None = None, shared: tuple[Any, ...] = (), *dropout: Any,
    sequences: Sequences = ALL,
) -> tuple[Tensor, tuple[Tensor, ...], Tensor | None]:  # fmt: skip
    """Returns y[T,B,H], contiguous, the last states [B,H], each in memory of its own, and with `keep` what the backward pass needs
    besides y, kept[T,B,K,H] (None if that is nothing).  With keep="states" that is no more than recompute.py needs: the carried
    states that y does not give.

    `states` are those before the first step, None for zeros: (h0,), of an LSTM (h0, c0).  `vectors` are the cell's own parameters,
    [V,H] in fp32 (fp64).  x[T,B,I] may have any strides; T, B >= 1.  An ensemble of M models has M in front of every shape; where the
    models share a tensor its stride is 0.  With `shared` = (bundle, number of the bottom layer) one launch carries several
    recurrences: shapes and lists are those of Recurrence, `dropout` is its (seed, dropped).

    `sequences`, whose lengths are clamped to 0 .. T by who made them, are those of all models and recurrences: lengths [B], reset
    [T,B]; `restart` has the shapes of `states`.  What is kept of steps beyond a length means nothing."""
    *M, _, B, I = x.shape
    H = (w_hh[0] if shared else w_hh).shape[-1]
    call = ("forward", *M, B, I, H, x.dtype, precision, cell, () if sequences is ALL else given(sequences), x.device)
    how = (*(shared or (ONE, 0)), True) if keep == "states" else shared
    return run(call, how, "forward", x, w_ih, w_hh, b_ih, b_hh, states, reverse, bool(keep), vectors, *dropout, sequences=sequences)


def backward(
    w_hh: Weight, y: Tensor, kept: Tensor | None, dy: Tensor | None, dstates: States, cell: str, reverse: bool,
    precision: str | None, vectors: Tensor | None = None, shared: tuple[Any, ...] = (), *linked: Any,
    sequences: Sequences = ALL,
) -> tuple[Tensor, States]:  # fmt: skip
    """Returns da[T,B,P*H], the gradients of every pre-activation in the order of Cell.routes, which may be a view of longer rows; and
    of each first state what W_hh^T da_first lacks of its gradient, in fp32 (fp64), or None if it lacks nothing; behind these the
    gradient of each vector, in fp32 (fp64), still to be summed over B.

    y and `kept` are the forward pass's, dy[T,B,H] and `dstates` gradients of y and of the last states.  Any of these may be None, but
    not all; strides may be any.  Ensembles and `shared` are those of `forward`; `linked` layers take (w_ih, seed, dropped) of
    Recurrence.

    `sequences` are the forward pass's.  da is zero beyond a length, whatever y, `kept` and dy hold there.  Gradients of the last states
    enter at a row's last step; what is returned of a first state is zero where step 0 begins anew.  A row without steps has what
    the gradients of its last states but the first one are; that of the first one, dhn, is not returned."""
    *M, _, B, H = y.shape
    if shared:
        M, H = [], w_hh[0].shape[-1]
    call = ("backward", *M, B, 1, H, y.dtype, precision, cell, () if sequences is ALL else given(sequences), y.device)
    return run(call, shared, "backward", w_hh, y, kept, dy, dstates, reverse, vectors, *linked, sequences=sequences)


def compile_ahead(problem: Problem, p: Plan, device: Device, bundle: Bundle = ONE) -> Any:
    """Returns the compiled kernel (.asm, .metadata) of a plan for a device, which need not be present: the variant with every
    optional tensor of its pass, and with aligned rows wherever the sizes allow them."""
    from . import per_step, recurrence  # at the first launch: Triton reads the kernels' source for 0.1 s

    if isinstance(p, PerStep):
        return per_step.compile_ahead(problem, p, device)
    return recurrence.compile_ahead(problem, p, device, bundle)


def prepared(problem: Problem, p: Plan, bundle: Bundle = ONE, first: int = 0) -> Any:
    """Returns the launch of a plan, or per_step.py's launches for all steps: an object with methods `forward` and `backward`.  The
    arguments are those of Recurrence."""
    from . import per_step, recurrence  # see compile_ahead

    return per_step.Steps(problem, p) if isinstance(p, PerStep) else recurrence.Recurrence(problem, p, bundle, first)


def run(call: tuple[Any, ...], shared: tuple[Any, ...], pass_: str, *arguments: Any, sequences: Sequences = ALL) -> Any:
    """Calls the method `pass_` of the launch that is prepared for `call` and `shared`.

    If its kernel does not compile, or its CTAs do not all fit on the device at once, another launch is prepared."""
    device = call[-1]
    faults.check(device)
    failure: Exception | None = None
    while True:
        try:
            launch = _launch_for(call, overrides(), *shared)
        except (UnsupportedError, ValueError) as error:
            raise error from failure
        try:
            return getattr(launch, pass_)(*arguments, sequences=sequences)
        except DoesNotCompile as error:
            failure = error
            reject(launch.problem, hardware.of(device), launch.plan, str(error), getattr(launch, "bundle", ONE))
        except DoesNotFit as error:
            failure = error
            hardware.too_many(device, error.ctas)
        _launch_for.cache_clear()


@functools.lru_cache(maxsize=1024)
def _launch_for(call: tuple[Any, ...], chosen: Choices, bundle: Bundle = ONE, first: int = 0, recompute: bool = False) -> Any:
    """Returns the prepared launch of a call (direction, [M,] B, I, H, dtype, precision, cell, what sequences give, device) under the overrides `chosen`.

    It carries the recurrences of `bundle`, of which the bottom layer has the number `first`.  `recompute` is that of Problem."""
    direction, *M, B, I, H, dtype, precision, cell, sequences, device = call
    problem = Problem(direction, B, I, H, DTYPES[dtype], precision, cell, M[0] if M else 1, recompute, sequences)
    p: Plan | None
    if bundle.count == 1:
        p = plan(problem, hardware.of(device), chosen)
    else:
        p = shared_plan(problem, bundle, hardware.of(device), chosen)
    if p is None:
        raise UnsupportedError(f"no plan for {bundle.count} recurrences of {problem} compiles on {hardware.of(device).name}")
    if M and not p.ensembles:
        return _Models(problem, prepared(replace(problem, models=1), p))
    return prepared(problem, p, bundle, first)


class _Models:
    """Runs the models of an ensemble one after the other on the current stream, where a launch has room for one model."""

    def __init__(self, problem: Problem, launch: Any) -> None:
        self.problem, self.plan, self.launch = problem, launch.plan, launch

    def forward(self, *arguments: Any, sequences: Sequences) -> Any:
        return self._each(self.launch.forward, arguments, sequences)

    def backward(self, *arguments: Any, sequences: Sequences) -> Any:
        return self._each(self.launch.backward, arguments, sequences)

    def _each(self, run: Any, arguments: tuple[Any, ...], sequences: Sequences) -> Any:
        """Runs one model after the other, and returns the results of all, [M,..], each put in its place as soon as it is there."""
        M = self.problem.models
        whole: Any = None
        for model in range(M):
            arguments_of, restart = tree_map_only(Tensor, lambda t: t[model], (arguments, sequences.restart))
            results = run(*arguments_of, sequences=sequences._replace(restart=restart))
            if whole is None:
                whole = tree_map_only(Tensor, lambda t: t.new_empty((M, *t.shape)), results)
            for all_models, t in zip(tree_leaves(whole), tree_leaves(results), strict=True):
                if t is not None:
                    all_models[model] = t
        return whole
