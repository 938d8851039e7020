"""Launches kernels/elementwise.py: a cell's device function alone, over rows that do not depend on each other."""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

from torch import Tensor

from ..kernels import facts
from ..kernels.elementwise import elementwise
from ..plan.problem import Problem
from .launcher import POINTERS, TRITON_DTYPES, Launcher, cell, compiled_ahead

_BLOCK = 256


class Operands(NamedTuple):
    """The tensors of a launch, in the order of the kernel's pointer parameters, which give their shapes; None for an absent one.
    Results with their dtypes are the caller's."""

    of_x: Tensor | None = None
    of_h: Tensor | None = None
    carried: Tensor | None = None
    saved: Tensor | None = None
    vectors: Tensor | None = None
    published: Tensor | None = None
    after: Tensor | None = None
    kept: Tensor | None = None
    counts: Tensor | None = None


def run(problem: Problem, accuracy: str, tensors: Operands) -> None:
    """Runs the function of the problem's cell in its pass.  N, the number of rows, is that of `of_x`."""
    assert tensors.of_x is not None
    N, *_, H = tensors.of_x.shape
    _launcher(tensors.of_x.device, problem, accuracy)(tensors, tensors.of_x, (N,), (math.ceil(N * H / _BLOCK), 1, 1))


@functools.lru_cache(maxsize=256)
def _launcher(_device: Any, problem: Problem, accuracy: str) -> Launcher:
    """Returns a launcher; each device has its own, because a kernel that is kept is loaded on one device."""
    return Launcher(elementwise, None, functools.partial(_constants, problem, accuracy), dict(num_warps=4))


def _constants(problem: Problem, accuracy: str, present: tuple[bool, ...]) -> dict[str, Any]:
    there = dict(zip(Operands._fields, present, strict=True))
    results = facts.Results(**{name: there[name] for name in ("published", "after", "kept", "counts")})
    elements = facts.Elements(dtype=TRITON_DTYPES[problem.dtype], block=_BLOCK)
    return dict(TILE=elements, SHAPE=facts.ElementsShape(H=problem.H), HAS=results, CELL=cell(problem, accuracy))


def compile_ahead(problem: Problem, accuracy: str, capability: int) -> Any:
    """Returns the kernel that computes again what a cell keeps, for a device which need not be here."""
    stored = dict.fromkeys(("carried_ptr", "saved_ptr", "kept_ptr"), POINTERS[problem.dtype])
    wide = "*fp64" if problem.dtype == "fp64" else "*fp32"
    constants = _constants(problem, accuracy, tuple(name not in ("published", "after", "counts") for name in Operands._fields))
    return compiled_ahead(
        elementwise, constants, lambda name: stored.get(name, wide) if name.endswith("_ptr") else "i32", dict(num_warps=4), capability
    )
