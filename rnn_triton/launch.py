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
    if I > 1 and x.stride(2) != 1:
        x = x.contiguous()
    w_ih, w_hh = w_ih.contiguous(), _w_rec(w_hh, site.plan)
    b_ih = None if b_ih is None else b_ih.contiguous()
    b_hh = None if b_hh is None else b_hh.contiguous()
    h0 = None if h0 is None else h0.contiguous()
    y = _empty(x, T, B, H)
    hn = _empty(x, B, H)
    stride_t, stride_b, x_aligned = _strides(x, site.input_unit)
    tensors = (x, w_ih, w_hh, b_ih, b_hh, h0, None, None, y, hn)
    _run(site, tensors, (T, B, int(reverse), stride_t, stride_b, 0, 0), x_aligned, False)
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
    y, w_hh = y.contiguous(), _w_rec(w_hh, site.plan)
    dhn = None if dhn is None else dhn.contiguous()
    stride_t, stride_b, u_aligned = 0, 0, False
    if dy is not None:
        if H > 1 and dy.stride(2) != 1:
            dy = dy.contiguous()
        stride_t, stride_b, u_aligned = _strides(dy, site.state_unit)
    da = _empty(y, T, B, H)
    tensors = (None, None, w_hh, None, None, dhn, dy, y, da, None)
    _run(site, tensors, (T, B, int(not reverse), 0, 0, stride_t, stride_b), False, u_aligned)
    return da


def compile_ahead(problem: Problem, p: Plan, device: Device) -> Any:
    """The compiled kernel (.asm, .metadata) of a plan for a device, which need not be present: the variant with every
    optional tensor of its pass and with aligned rows wherever the sizes allow them."""
    from triton.backends.compiler import GPUTarget

    if problem.direction == "forward":
        present = tuple(name in ("x", "w_in", "w_rec", "bias0", "bias1", "first", "out", "last") for name in _TENSORS)
    else:
        present = tuple(name in ("w_rec", "first", "u", "saved", "out") for name in _TENSORS)
    constants = _constants(problem, p, present, *_rows_aligned(problem, p))
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
    costs.  A site keeps the compiled kernel's own launcher for each variant instead (what `kernel.warmup` is for)."""

    def __init__(self, problem: Problem, p: Plan) -> None:
        self.problem = problem
        self.plan = p
        self.grid = (math.ceil(problem.B / p.block_b), 1, 1)
        self.input_unit = _input_unit(problem, p)
        self.state_unit = _state_unit(p)
        self.rows_aligned = _rows_aligned(problem, p)
        self.launchers: dict[tuple[Any, ...], tuple[Any, tuple[Any, ...]]] = {}


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


def _run(
    site: _Site, tensors: tuple[Tensor | None, ...], scalars: tuple[int, ...], x_aligned: bool, u_aligned: bool
) -> None:
    out = tensors[_OUT]
    present = tuple([t is not None for t in tensors])
    pointers = [out if t is None else t for t in tensors]
    _, w_aligned, w_rec_aligned, _, s_aligned = site.rows_aligned
    bits = 0
    for t in pointers:
        bits |= t.data_ptr()  # type: ignore[union-attr]
    whole = bits % 16 == 0
    if not whole:  # somebody's view into a larger tensor; every vector is of at most 16 bytes
        w_aligned = w_rec_aligned = s_aligned = False
    variant = (present, x_aligned, w_aligned, w_rec_aligned, u_aligned, s_aligned)
    # Triton compiles one kernel for aligned addresses and 32-bit scalars: that one is kept.
    _launch(site, variant, pointers, scalars, whole and max(scalars) < 2**31)


def _launch(
    site: _Site, variant: tuple[Any, ...], pointers: list[Any], scalars: tuple[int, ...], ordinary: bool
) -> None:
    if interpreter.active():
        with interpreter.accurate():
            recurrence[site.grid](*pointers, *scalars, **_constants(site.problem, site.plan, *variant))
        return
    device = pointers[_OUT].device
    # Triton launches on the current device's current stream.
    with _NO_CONTEXT if device.index == torch.cuda.current_device() else torch.cuda.device(device):
        known = site.launchers.get(variant) if ordinary else None
        if known is not None:
            kernel, constants = known
            kernel[site.grid](*pointers, *scalars, *constants)
            return
        constexprs = _constants(site.problem, site.plan, *variant)
        kernel = recurrence[site.grid](*pointers, *scalars, **constexprs, **_options(site.plan))
        if ordinary:
            site.launchers[variant] = kernel, tuple(constexprs.values())


_NO_CONTEXT = contextlib.nullcontext()


def _options(p: Plan) -> dict[str, int]:
    return dict(num_warps=p.warps, num_stages=1)  # pipelined loads would be hoisted above the stores of a step


def _rows_aligned(problem: Problem, p: Plan) -> tuple[bool, bool, bool, bool, bool]:
    """(x, w_in, w_rec, u, everything else [.., H]): do rows divide into vectors, addresses and outer strides apart?"""
    inputs = problem.I % _input_unit(problem, p) == 0
    units = problem.H % _state_unit(p) == 0
    return inputs, inputs, p.pad_w_hh or units, units, units


def _constants(
    problem: Problem,
    p: Plan,
    present: tuple[bool, ...],
    x_aligned: bool,
    w_aligned: bool,
    w_rec_aligned: bool,
    u_aligned: bool,
    s_aligned: bool,
) -> dict[str, Any]:
    """The constexpr parameters of the kernel, in its order"""
    forward = problem.direction == "forward"
    has = dict(zip(_TENSORS, present, strict=True))
    return dict(
        I=problem.I,
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
        X_ALIGNED=x_aligned,
        W_ALIGNED=w_aligned,
        W_REC_ALIGNED=w_rec_aligned,
        W_ROWS=p.h_pad if p.pad_w_hh else problem.H,
        U_ALIGNED=u_aligned,
        S_ALIGNED=s_aligned,
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


def _w_rec(w_hh: Tensor, p: Plan) -> Tensor:
    """W_hh as the plan wants it in global memory"""
    if p.pad_w_hh:
        missing = p.h_pad - w_hh.shape[0]
        return torch.nn.functional.pad(w_hh, (0, missing, 0, missing))
    return w_hh.contiguous()


def _empty(like: Tensor, *shape: int) -> Tensor:
    return torch.empty(shape, dtype=like.dtype, device=like.device)


def _strides(t: Tensor, unit: int) -> tuple[int, int, bool]:
    """Strides of the first two dimensions of t[T,B,N] in vectors of `unit` elements and True, or in elements and False
    where they, the rows or the address are not whole vectors."""
    T, B, N = t.shape
    first, second, _ = t.stride()
    if T == 1:
        first = 0  # the stride of a dimension of one is arbitrary and never used
    if B == 1:
        second = 0
    if first % unit or second % unit or N % unit or t.data_ptr() % (unit * t.element_size()):
        return first, second, False
    return first // unit, second // unit, True
