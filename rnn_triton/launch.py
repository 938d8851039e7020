"""The only file that launches the recurrence kernel.

`forward` and `backward` run it on CUDA tensors, or on CPU tensors by Triton's interpreter; `compile_ahead` compiles the
same configuration for a device that need not be here.  All three build the constexpr parameters with `_constants`, so
what is checked ahead of time is what runs.
"""

from __future__ import annotations

import contextlib
import functools
import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import hardware, interpreter
from .hardware import Device
from .kernels import cells
from .kernels.recurrence import recurrence
from .plan import DTYPES, SIZES, Plan, Problem, plan

_TRITON_DTYPES = {"bf16": tl.bfloat16, "fp16": tl.float16, "fp32": tl.float32, "fp64": tl.float64}
_POINTERS = {"bf16": "*bf16", "fp16": "*fp16", "fp32": "*fp32", "fp64": "*fp64"}
_CELLS = {
    ("tanh", "forward"): cells.elman_tanh_forward,
    ("tanh", "backward"): cells.elman_tanh_backward,
    ("relu", "forward"): cells.elman_relu_forward,
    ("relu", "backward"): cells.elman_relu_backward,
}


def forward(
    x: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
    h0: Tensor | None,
    nonlinearity: str,
    reverse: bool,
    precision: str | None,
) -> tuple[Tensor, Tensor]:
    """y[T,B,H], contiguous, and hn[B,H], its own memory, by one launch.  x[T,B,I] of any strides; T, B >= 1."""
    T, B, I = x.shape
    H = w_hh.shape[0]
    site = _site("forward", B, I, H, x.dtype, precision, nonlinearity, x.device)
    x, stride_t, stride_b = _strided(x, site.input_unit)
    b_ih = None if b_ih is None else _whole(b_ih)
    b_hh = None if b_hh is None else _whole(b_hh)
    h0 = None if h0 is None else _whole(h0)
    y = _empty(x, T, B, H)
    hn = _empty(x, B, H)
    tensors = (x, _whole(w_ih), _w_rec(w_hh, site.plan), b_ih, b_hh, h0, None, None, y, hn)
    _run(site, tensors, (T, B, int(reverse), stride_t, stride_b, 0, 0))
    return y, hn


def backward(
    w_hh: Tensor,
    y: Tensor,
    dy: Tensor | None,
    dhn: Tensor | None,
    nonlinearity: str,
    reverse: bool,
    precision: str | None,
) -> Tensor:
    """da[T,B,H], the gradient of every pre-activation, by one launch, from y[T,B,H], dy[T,B,H] and dhn[B,H].

    dy or dhn may be None, not both; any strides."""
    T, B, H = y.shape
    site = _site("backward", B, 1, H, y.dtype, precision, nonlinearity, y.device)
    stride_t = stride_b = 0
    if dy is not None:
        dy, stride_t, stride_b = _strided(dy, site.state_unit)
    dhn = None if dhn is None else _whole(dhn)
    da = _empty(y, T, B, H)
    tensors = (None, None, _w_rec(w_hh, site.plan), None, None, dhn, dy, _whole(y), da, None)
    _run(site, tensors, (T, B, int(not reverse), 0, 0, stride_t, stride_b))
    return da


def compile_ahead(problem: Problem, p: Plan, device: Device) -> Any:
    """The compiled kernel (.asm, .metadata) of a plan for a device, which need not be present: the variant with every
    optional tensor of its pass and with aligned rows wherever the sizes allow them."""
    from triton.backends.compiler import GPUTarget

    if problem.direction == "forward":
        present = tuple(name in ("x", "w_in", "w_rec", "bias0", "bias1", "first", "out", "last") for name in _TENSORS)
    else:
        present = tuple(name in ("w_rec", "first", "u", "saved", "out") for name in _TENSORS)
    constants = _constants(problem, p, present)
    names = recurrence.arg_names
    pointer = _POINTERS[problem.dtype]
    signature = {n: "constexpr" if n in constants else pointer if n.endswith("_ptr") else "i32" for n in names}
    source = triton.compiler.ASTSource(
        fn=recurrence,
        signature=signature,
        constexprs={(names.index(n),): v for n, v in constants.items()},
        attrs={(i,): [["tt.divisibility", 16]] for i, n in enumerate(names) if n.endswith("_ptr")},
    )
    return triton.compile(source, target=GPUTarget("cuda", device.capability, 32), options=_options(p))


# The pointer parameters of the kernel, in order; an absent tensor is never read.
_TENSORS = ("x", "w_in", "w_rec", "bias0", "bias1", "first", "u", "saved", "out", "last")
_OUT = _TENSORS.index("out")


class _Site:
    """What is known of a call from its sizes and options alone, and the kernels compiled for it so far.

    Triton's own launch path binds 50 arguments and builds a cache key from them on every call, many times what the rest
    costs.  A site keeps the compiled kernel's own launcher for each set of present tensors instead (what `kernel.warmup`
    is for).  Nothing else can change between calls but the width of a stride: addresses are whole vectors always."""

    def __init__(self, problem: Problem, p: Plan) -> None:
        self.problem = problem
        self.plan = p
        self.grid = (math.ceil(problem.B / p.block_b), 1, 1)
        self.input_unit = _input_unit(problem, p)
        self.state_unit = _state_unit(p)
        self.launchers: dict[tuple[bool, ...], tuple[Any, tuple[Any, ...]]] = {}


@functools.lru_cache(maxsize=1024)
def _site(
    direction: str,
    B: int,
    I: int,
    H: int,
    dtype: torch.dtype,
    precision: str | None,
    nonlinearity: str,
    device: torch.device,
) -> _Site:
    problem = Problem(direction, B, I, H, DTYPES[dtype], precision, nonlinearity)
    return _Site(problem, plan(problem, hardware.of(device)))


def _run(site: _Site, tensors: tuple[Tensor | None, ...], scalars: tuple[int, ...]) -> None:
    out = tensors[_OUT]
    present = tuple([t is not None for t in tensors])
    _launch(site, present, [out if t is None else t for t in tensors], scalars)


def _launch(site: _Site, present: tuple[bool, ...], pointers: list[Any], scalars: tuple[int, ...]) -> None:
    if interpreter.active():
        with interpreter.accurate():
            recurrence[site.grid](*pointers, *scalars, **_constants(site.problem, site.plan, present))
        return
    device = pointers[_OUT].device
    # Triton launches on the current device's current stream.
    with _NO_CONTEXT if device.index == torch.cuda.current_device() else torch.cuda.device(device):
        ordinary = max(scalars) < 2**31  # wider strides are arguments of another type, and of another kernel
        known = site.launchers.get(present) if ordinary else None
        if known is not None:
            kernel, constants = known
            kernel[site.grid](*pointers, *scalars, *constants)
            return
        constexprs = _constants(site.problem, site.plan, present)
        kernel = recurrence[site.grid](*pointers, *scalars, **constexprs, **_options(site.plan))
        if ordinary and kernel is not None:  # None: a hook of Triton's took the launch over
            site.launchers[present] = kernel, tuple(constexprs.values())


_NO_CONTEXT = contextlib.nullcontext()


def _options(p: Plan) -> dict[str, int]:
    options = dict(num_warps=p.warps, num_stages=1)  # pipelined loads would be hoisted above the stores of a step
    if p.formulation != "fma":  # there ptxas would hoist loads until it runs out
        options["maxnreg"] = 255  # else ptxas spills a few registers to fit one more CTA on an SM
    return options


def _constants(problem: Problem, p: Plan, present: tuple[bool, ...]) -> dict[str, Any]:
    """The constexpr parameters of the kernel, in its order"""
    forward = problem.direction == "forward"
    inputs = problem.I % _input_unit(problem, p) == 0
    units = problem.H % _state_unit(p) == 0
    has = dict(zip(_TENSORS, present, strict=True))
    return dict(
        I=problem.I if forward else 1,  # not read without a projection: one kernel for every I
        H=problem.H,
        CELL=_CELLS[problem.nonlinearity, problem.direction],
        ACCURACY=p.accuracy,
        FIRST_IS_STATE=forward,
        TRANSPOSED=not forward,
        HAS_BIAS0=has["bias0"],
        HAS_BIAS1=has["bias1"],
        HAS_FIRST=has["first"],
        HAS_U=has["u"],
        HAS_SAVED=has["saved"],
        HAS_LAST=has["last"],
        X_ALIGNED=inputs,
        W_ALIGNED=inputs,
        W_REC_ALIGNED=p.pad_w_hh or units,
        W_ROWS=p.h_pad if p.pad_w_hh else problem.H,
        U_ALIGNED=units,
        S_ALIGNED=units,
        DTYPE=_TRITON_DTYPES[problem.dtype],
        FORM=p.formulation,
        PRECISION=p.precision,
        W_IN_HOME=p.w_ih_home,
        H_PAD=p.h_pad,
        BLOCK_B=p.block_b,
        WARPS=p.warps,
        CHUNK=p.chunk,
        CHAINS=p.chains,
        X_DEPTH=p.x_depth,
        STREAM_UNROLL=p.stream_unroll,
    )


def _input_unit(problem: Problem, p: Plan) -> int:
    """Elements of x in one 16-byte vector; the fma form counts strides in elements."""
    return 1 if p.formulation == "fma" else 16 // SIZES[problem.dtype]


def _state_unit(p: Plan) -> int:
    """Neighbouring hidden units a thread owns"""
    return p.h_pad // (8 * p.warps)


def _whole(t: Tensor) -> Tensor:
    """t, contiguous and at an address that vectors of 16 bytes divide; copied where it is not."""
    t = t.contiguous()
    return t.clone() if t.data_ptr() % 16 else t


def _w_rec(w_hh: Tensor, p: Plan) -> Tensor:
    """W_hh as the plan wants it in global memory"""
    if p.pad_w_hh:
        missing = p.h_pad - w_hh.shape[0]
        w_hh = torch.nn.functional.pad(w_hh, (0, missing, 0, missing))
    return _whole(w_hh)


def _empty(like: Tensor, *shape: int) -> Tensor:
    return torch.empty(shape, dtype=like.dtype, device=like.device)


def _strided(t: Tensor, unit: int) -> tuple[Tensor, int, int]:
    """t[T,B,N] and the strides of T and B as the kernel takes them: in vectors of `unit` elements where rows are whole
    vectors, else in elements.  t is copied where its address or, rows being whole vectors, its strides are not."""
    T, B, N = t.shape
    first, second, inner = t.stride()
    if T == 1:
        first = 0  # the stride of a dimension of one is arbitrary and never used
    if B == 1:
        second = 0
    if N % unit:
        unit = 1
    whole = not (first % unit or second % unit or t.data_ptr() % 16)
    if whole and (inner == 1 or N == 1):
        return t, first // unit, second // unit
    return t.clone(memory_format=torch.contiguous_format), B * N // unit, N // unit
