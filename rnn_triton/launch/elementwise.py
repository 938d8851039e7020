"""Launches kernels/elementwise.py: a cell's device function alone, over rows that do not depend on each other."""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

from torch import Tensor

from ..cells import Cell
from ..kernels import facts
from ..kernels.elementwise import elementwise
from .launcher import POINTERS, TRITON_DTYPES, Launcher, compiled_ahead, facts_of

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


def run(cell: Cell, forward: bool, dtype: str, accuracy: str, tensors: Operands) -> None:
    """Runs the cell's function of a pass, by values of `of_x`, which has a row for each of N; `dtype` is that of storage."""
    assert tensors.of_x is not None
    N, *_, H = tensors.of_x.shape
    launcher = _launcher(tensors.of_x.device, cell, forward, H, dtype, accuracy)
    launcher(tensors, tensors.of_x, (N,), (math.ceil(N * H / _BLOCK), 1, 1))


@functools.lru_cache(maxsize=256)
def _launcher(_device: Any, *of: Any) -> Launcher:
    """Returns a launcher; each device has its own, because a kernel that is kept is loaded on one device."""
    return Launcher(elementwise, None, functools.partial(_constants, *of), dict(num_warps=4))


def _constants(cell: Cell, forward: bool, H: int, dtype: str, accuracy: str, present: tuple[bool, ...]) -> dict[str, Any]:
    there = dict(zip(Operands._fields, present, strict=True))
    results = facts.Results(**{name: there[name] for name in ("published", "after", "kept", "counts")})
    elements, shape = facts.Elements(dtype=TRITON_DTYPES[dtype], block=_BLOCK), facts.ElementsShape(H=H)
    return dict(TILE=elements, SHAPE=shape, HAS=results, CELL=facts_of(cell, forward, accuracy))


def compile_ahead(
    cell: Cell, forward: bool, H: int, dtype: str, accuracy: str, capability: int, absent: tuple[str, ...] = ("published", "after", "counts")
) -> Any:
    """Returns the kernel for a device which need not be here, by default the one that computes again what a cell keeps."""
    stored = dict.fromkeys(("carried_ptr", "saved_ptr", "kept_ptr"), POINTERS[dtype]) | {"counts_ptr": "*i32"}
    wide = "*fp64" if dtype == "fp64" else "*fp32"
    constants = _constants(cell, forward, H, dtype, accuracy, tuple(name not in absent for name in Operands._fields))
    return compiled_ahead(
        elementwise, constants, lambda name: stored.get(name, wide) if name.endswith("_ptr") else "i32", dict(num_warps=4), capability
    )
