"""Keeps compiled kernels ready to launch, with the facts they are compiled for, and compiles them ahead of time."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.runtime.errors import OutOfResources, PTXASError

from .. import cells
from ..interpret import assembly as _  # noqa: F401  (registers what it implements)
from ..interpret import interpreter
from ..kernels import facts
from ..plan.problem import Plan, Problem

TRITON_DTYPES = {"bf16": tl.bfloat16, "fp16": tl.float16, "fp32": tl.float32, "fp64": tl.float64}
POINTERS = {"bf16": "*bf16", "fp16": "*fp16", "fp32": "*fp32", "fp64": "*fp64"}


def tile(kind: type[facts.Tile], problem: Problem, p: Plan) -> facts.Tile:
    """Returns what a plan puts on chip, as facts of this kind, whose fields mostly have the names of the plan's."""
    names = {"form": "formulation", "shared_tiles": "w_hh_shared", "w_in_home": "w_ih_home"}
    values = {field.name: getattr(p, names.get(field.name, field.name)) for field in fields(kind) if field.name != "dtype"}
    if values.get("w_in_home") == "gemm":
        values["w_in_home"] = "none"
    return kind(dtype=TRITON_DTYPES[problem.dtype], **values)


def cell(problem: Problem, accuracy: str) -> facts.Cell:
    """Returns the facts of a problem's cell in its pass, to the accuracy of a plan."""
    return facts_of(cells.named(problem.cell), problem.direction == "forward", accuracy, problem.recompute)


def facts_of(description: cells.Cell, forward: bool, accuracy: str, recompute: bool = False) -> facts.Cell:
    """Returns the facts of a cell in one pass; `recompute` is that of Problem."""
    return facts.Cell(
        name=description.name,
        step=description.forward if forward else description.backward,
        accuracy=accuracy,
        forward=forward,
        routes=facts.Routes(**description.routes(forward, recompute)._asdict()),
    )


_TOO_MANY = "too many blocks in cooperative launch"  # the driver's text for CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE


class DoesNotCompile(Exception):
    """Raised if a kernel needs more registers or shared memory than there are; nothing was launched."""


class DoesNotFit(RuntimeError):
    """Raised if a cooperative launch has more CTAs than run at the same time on the device; nothing was launched."""

    def __init__(self, ctas: int) -> None:
        super().__init__(f"a cooperative launch of {ctas} CTAs does not fit")
        self.ctas = ctas


_NO_CONTEXT = contextlib.nullcontext()


def current(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Returns a context in which the device is torch's current one, on whose current stream Triton launches."""
    return _NO_CONTEXT if device.index == torch.cuda.current_device() else torch.cuda.device(device)


def has_kernels(t: Tensor) -> bool:
    """True if kernels run on this tensor's device."""
    return t.is_cuda or (t.is_cpu and interpreter.active())


is_batched = torch._C._functorch.is_legacy_batchedtensor  # made by is_grads_batched and by torch.autograd.functional


class Launcher:
    """A kernel, its grid and its options, to be called with tensors, None for absent ones, and integers.

    Triton's own launch path binds some 50 arguments and builds a cache key from them on every call, which takes many times as long
    as all the rest.  This class keeps the compiled kernel for each set of present tensors instead, and calls it directly.  Apart
    from them only the width of an integer may differ between calls: addresses are always whole vectors."""

    def __init__(
        self, kernel: Any, grid: tuple[int, int, int] | None, constants: Callable[[tuple[bool, ...]], dict[str, Any]],
        options: dict[str, Any], optional: int = 0,
    ) -> None:  # fmt: skip
        """`grid` is None where every call has its own.  `constants` returns the constexpr parameters, in the kernel's order, for a
        tuple that says of each tensor whether it is present.  Of the last `optional` tensors absent ones are no parameters of the
        compiled kernel, which is then the same as if there were none."""
        self.kernel = kernel
        self.optional = optional
        self.grid = grid
        self.constants = functools.cache(constants)
        self.options = options
        self.kept: dict[tuple[bool, ...], tuple[Any, tuple[Any, ...]]] = {}

    def __call__(
        self, tensors: tuple[Tensor | None, ...], out: Tensor, scalars: tuple[int, ...], grid: tuple[int, int, int] | None = None
    ) -> None:
        """Launches the kernel on the device of `out`, whose address stands for that of absent tensors, which are never read, but for the
        optional ones."""
        grid = self.grid if grid is None else grid
        assert grid is not None
        present = tuple([t is not None for t in tensors])
        pointers: list[Tensor | None] = [out if t is None else t for t in tensors]
        if self.optional:
            pointers[-self.optional :] = tensors[-self.optional :]
        if interpreter.active():
            with interpreter.accurate():
                self.kernel[grid](*pointers, *scalars, **self.constants(present))
            return
        with current(out.device):
            ordinary = max(scalars) < 2**31  # wider strides are arguments of another type, and of another kernel
            kept = self.kept.get(present) if ordinary else None
            try:
                if kept is not None:
                    kernel, constants = kept
                    kernel[grid](*pointers, *scalars, *constants)
                    return
                constexprs = self.constants(present)
                kernel = self.kernel[grid](*pointers, *scalars, **constexprs, **self.options)
            except (OutOfResources, PTXASError) as error:
                raise DoesNotCompile(" ".join(str(error).split())[:200]) from error
            except RuntimeError as error:
                if _TOO_MANY in str(error):
                    raise DoesNotFit(math.prod(grid)) from error
                raise
            if ordinary and kernel is not None:  # None: a hook of Triton's took the launch over
                self.kept[present] = kernel, tuple(constexprs.values())


def compiled_ahead(
    kernel: Any, constants: dict[str, Any], signature: Callable[[str], str], options: dict[str, Any], capability: int
) -> Any:
    """Returns the kernel compiled for sm_<capability>, which need not be here.  `signature` gives the type of a parameter, by its
    name, that is no constant."""
    names = kernel.arg_names
    types = {n: "constexpr" if n in constants else signature(n) for n in names}
    # Hints as Triton's launch path gives them, so that a launch finds the kernel in the cache: D for an aligned address;
    # constants have none (3.6: only strings have one, their own text).
    strings_only = triton.__version__.startswith("3.6.")
    special = {p.name for p in kernel.params if not p.do_not_specialize}
    hints = {n: "D" for n in names if types[n].startswith("*") and n in special}
    hints |= {n: v if strings_only else "" for n, v in constants.items() if isinstance(v, str) or not strings_only}
    source = triton.compiler.ASTSource(
        fn=kernel,
        signature=types,  # all three in order: the key is text
        constexprs={(names.index(n),): v for n, v in constants.items()},
        attrs={(i,): [["tt.divisibility", 16]] if "D" in hints[n] else [] for i, n in enumerate(names) if n in hints},
    )
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
