"""What every launch has in common: kernels kept ready."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable
from typing import Any

import torch
import triton.language as tl
from torch import Tensor
from triton.runtime.errors import OutOfResources, PTXASError

from .. import cells
from ..interpret import assembly as _  # noqa: F401  (registers what it implements)
from ..interpret import interpreter
from ..kernels import facts
from ..plan.problem import Problem

TRITON_DTYPES = {"bf16": tl.bfloat16, "fp16": tl.float16, "fp32": tl.float32, "fp64": tl.float64}
POINTERS = {"bf16": "*bf16", "fp16": "*fp16", "fp32": "*fp32", "fp64": "*fp64"}


def cell(problem: Problem, accuracy: str) -> facts.Cell:
    """Returns the facts of a problem's cell in its pass, to the accuracy of a plan."""
    forward = problem.direction == "forward"
    known = cells.named(problem.cell)
    return facts.Cell(
        name=known.name,
        step=known.forward if forward else known.backward,
        accuracy=accuracy,
        forward=forward,
        routes=facts.Routes(**known.routes(forward)._asdict()),
    )


_TOO_MANY = "too many blocks in cooperative launch"  # the driver's text for CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE


class DoesNotCompile(Exception):
    """Registers or shared memory do not suffice for a kernel; nothing was launched."""


class DoesNotFit(RuntimeError):
    """A cooperative launch of more CTAs than run at the same time on the device; nothing was launched."""

    def __init__(self, ctas: int) -> None:
        super().__init__(f"a cooperative launch of {ctas} CTAs does not fit")
        self.ctas = ctas


_NO_CONTEXT = contextlib.nullcontext()


def current(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """In which the device is torch's current one: Triton launches on that one's current stream."""
    return _NO_CONTEXT if device.index == torch.cuda.current_device() else torch.cuda.device(device)


def has_kernels(t: Tensor) -> bool:
    """Do kernels run on this tensor's device?"""
    return t.is_cuda or (t.is_cpu and interpreter.active())


is_batched = torch._C._functorch.is_legacy_batchedtensor  # by is_grads_batched, and by torch.autograd.functional


class Launcher:
    """A kernel, its grid and its options, called with tensors (None: absent) and integers.

    Triton's own launch path binds some 50 arguments and builds a cache key from them on every call, many times what the
    rest costs.  This keeps the compiled kernel's own launcher for each set of present tensors instead (what
    `kernel.warmup` is for).  Nothing else may change between calls but the width of an integer: addresses are whole
    vectors always."""

    def __init__(
        self,
        kernel: Any,
        grid: tuple[int, int, int] | None,
        constants: Callable[[tuple[bool, ...]], dict[str, Any]],
        options: dict[str, Any],
    ) -> None:
        """`grid`: None where every call has its own.  `constants`: from which tensors are present to the constexpr parameters,
        in the kernel's order."""
        self.kernel = kernel
        self.grid = grid
        self.constants = functools.cache(constants)
        self.options = options
        self.kept: dict[tuple[bool, ...], tuple[Any, tuple[Any, ...]]] = {}

    def __call__(
        self,
        tensors: tuple[Tensor | None, ...],
        out: Tensor,
        scalars: tuple[int, ...],
        grid: tuple[int, int, int] | None = None,
    ) -> None:
        """`out`'s address stands for that of absent tensors, which the kernel never reads; its device is the launch's."""
        grid = self.grid if grid is None else grid
        assert grid is not None
        present = tuple([t is not None for t in tensors])
        pointers = [out if t is None else t for t in tensors]
        if interpreter.active():
            with interpreter.accurate():
                self.kernel[grid](*pointers, *scalars, **self.constants(present))
            return
        with current(out.device):
            ordinary = max(scalars) < 2**31  # wider strides are arguments of another type, and of another kernel
            known = self.kept.get(present) if ordinary else None
            try:
                if known is not None:
                    kernel, constants = known
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
    """The kernel compiled for sm_<capability>, which need not be here; `signature`: of a parameter that is no constant."""
    import triton
    from triton.backends.compiler import GPUTarget

    names = kernel.arg_names
    given = {n: "constexpr" if n in constants else signature(n) for n in names}
    # As Triton's launch path describes its arguments, so that a launch finds the kernel in the cache: by alignment, D for an
    # aligned address; constants have none (3.6: only strings are described, and by their own text).
    strings_only = triton.__version__.startswith("3.6.")
    special = {p.name for p in kernel.params if not p.do_not_specialize}
    described = {n: "D" for n in names if given[n].startswith("*") and n in special}  # in order: the key is text
    described |= {n: v if strings_only else "" for n, v in constants.items() if isinstance(v, str) or not strings_only}
    source = triton.compiler.ASTSource(
        fn=kernel,
        signature=given,
        constexprs={(names.index(n),): v for n, v in constants.items()},
        attrs={(names.index(n),): [["tt.divisibility", 16]] if "D" in d else [] for n, d in described.items()},
    )
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
