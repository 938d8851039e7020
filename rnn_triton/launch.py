"""The only file that launches the recurrence kernel.

`forward` and `backward` run it on CUDA tensors, or on CPU tensors by Triton's interpreter; `compile_ahead` compiles the
same configuration for a device that need not be here.  All three build the constexpr parameters with `_constants`, so
what is checked ahead of time is what runs.
"""

from __future__ import annotations

import contextlib
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
    problem = Problem("forward", B, I, H, DTYPES[x.dtype], precision, nonlinearity)
    p = plan(problem, hardware.of(x.device))
    if x.stride(2) != 1 and I > 1:
        x = x.contiguous()
    w_ih, w_hh = w_ih.contiguous(), _w_rec(w_hh, p)
    h0 = None if h0 is None else h0.contiguous()
    y = _empty(x, T, B, H)
    hn = _empty(x, B, H)
    unit = _input_unit(problem, p)
    stride_x_t, stride_x_b, x_aligned = _strides(x, unit)
    _run(
        problem,
        p,
        dict(x=x, w_in=w_ih, w_rec=w_hh, bias0=b_ih, bias1=b_hh, first=h0, out=y, last=hn),
        (T, B, int(reverse), stride_x_t, stride_x_b, 0, 0),
        x_aligned=x_aligned,
        w_aligned=_aligned(w_ih, I, unit),
        u_aligned=False,
        w_rec_aligned=_aligned(w_hh, w_hh.shape[1], _state_unit(p)),
        s_aligned=all(_aligned(t, H, _state_unit(p)) for t in (y, hn, h0) if t is not None),
    )
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
    problem = Problem("backward", B, 1, H, DTYPES[y.dtype], precision, nonlinearity)
    p = plan(problem, hardware.of(y.device))
    y, w_hh = y.contiguous(), _w_rec(w_hh, p)
    dhn = None if dhn is None else dhn.contiguous()
    stride_u_t = stride_u_b = 0
    u_aligned = False
    unit = _state_unit(p)
    if dy is not None:
        if dy.stride(2) != 1 and H > 1:
            dy = dy.contiguous()
        stride_u_t, stride_u_b, u_aligned = _strides(dy, unit)
    da = _empty(y, T, B, H)
    _run(
        problem,
        p,
        dict(w_rec=w_hh, first=dhn, u=dy, saved=y, out=da),
        (T, B, int(not reverse), 0, 0, stride_u_t, stride_u_b),
        x_aligned=False,
        w_aligned=False,
        u_aligned=u_aligned,
        w_rec_aligned=_aligned(w_hh, w_hh.shape[1], unit),
        s_aligned=all(_aligned(t, H, unit) for t in (y, da, dhn) if t is not None),
    )
    return da


def compile_ahead(problem: Problem, p: Plan, device: Device) -> Any:
    """The compiled kernel (.asm, .metadata) of a plan for a device, which need not be present: the variant with every
    optional tensor of its pass and with aligned rows wherever the sizes allow them."""
    from triton.backends.compiler import GPUTarget

    forward = problem.direction == "forward"
    present = {"w_rec", "first", "out"} | ({"x", "w_in", "bias0", "bias1", "last"} if forward else {"u", "saved"})
    constants = _constants(
        problem,
        p,
        present,
        x_aligned=problem.I % _input_unit(problem, p) == 0,
        w_aligned=problem.I % _input_unit(problem, p) == 0,
        u_aligned=problem.H % _state_unit(p) == 0,
        w_rec_aligned=p.pad_w_hh or problem.H % _state_unit(p) == 0,
        s_aligned=problem.H % _state_unit(p) == 0,
    )
    names = recurrence.arg_names
    pointer = _POINTERS[problem.dtype]
    signature = {n: "constexpr" if n in constants else pointer if n.endswith("_ptr") else "i32" for n in names}
    aligned = {(i,): [["tt.divisibility", 16]] for i, n in enumerate(names) if n.endswith("_ptr")}
    source = triton.compiler.ASTSource(
        fn=recurrence,
        signature=signature,
        constexprs={(names.index(n),): v for n, v in constants.items()},
        attrs=aligned,
    )
    return triton.compile(source, target=GPUTarget("cuda", device.capability, 32), options=_options(p))


def _w_rec(w_hh: Tensor, p: Plan) -> Tensor:
    """W_hh as the plan wants it in global memory"""
    if p.pad_w_hh:
        missing = p.h_pad - w_hh.shape[0]
        return torch.nn.functional.pad(w_hh, (0, missing, 0, missing))
    return w_hh.contiguous()


def _empty(like: Tensor, *shape: int) -> Tensor:
    return torch.empty(shape, dtype=like.dtype, device=like.device)


def _run(
    problem: Problem,
    p: Plan,
    tensors: dict[str, Tensor | None],
    scalars: tuple[int, ...],
    *,
    x_aligned: bool,
    w_aligned: bool,
    w_rec_aligned: bool,
    u_aligned: bool,
    s_aligned: bool,
) -> None:
    out = tensors["out"]
    assert out is not None
    present = {name for name, t in tensors.items() if t is not None}
    # An absent tensor is never read; some pointer has to stand in its place.
    pointers = [out if (t := tensors.get(name)) is None else t for name in _TENSORS]
    constants = _constants(
        problem,
        p,
        present,
        x_aligned=x_aligned,
        w_aligned=w_aligned,
        w_rec_aligned=w_rec_aligned,
        u_aligned=u_aligned,
        s_aligned=s_aligned,
    )
    grid = (math.ceil(problem.B / p.block_b),)
    if out.is_cuda:
        # Triton launches on the current device's current stream.
        with torch.cuda.device(out.device) if out.device.index != torch.cuda.current_device() else _NO_CONTEXT:
            recurrence[grid](*pointers, *scalars, **constants, **_options(p))
    else:
        with interpreter.accurate():
            recurrence[grid](*pointers, *scalars, **constants, **_options(p))


_TENSORS = ("x", "w_in", "w_rec", "bias0", "bias1", "first", "u", "saved", "out", "last")
_NO_CONTEXT = contextlib.nullcontext()


def _options(p: Plan) -> dict[str, int]:
    return dict(num_warps=p.warps, num_stages=1)  # pipelined loads would be hoisted above the stores of a step


def _constants(
    problem: Problem,
    p: Plan,
    present: set[str],
    *,
    x_aligned: bool,
    w_aligned: bool,
    w_rec_aligned: bool,
    u_aligned: bool,
    s_aligned: bool,
) -> dict[str, Any]:
    forward = problem.direction == "forward"
    return dict(
        I=problem.I,
        H=problem.H,
        CELL=_CELLS[problem.nonlinearity, problem.direction],
        ACCURACY=p.accuracy,
        FIRST_IS_STATE=forward,
        TRANSPOSED=not forward,
        HAS_BIAS0="bias0" in present,
        HAS_BIAS1="bias1" in present,
        HAS_FIRST="first" in present,
        HAS_U="u" in present,
        HAS_SAVED="saved" in present,
        HAS_LAST="last" in present,
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


def _aligned(t: Tensor, row: int, unit: int) -> bool:
    """Do rows of `row` elements from t's address on divide into aligned vectors of `unit`?"""
    return row % unit == 0 and t.data_ptr() % (unit * t.element_size()) == 0


def _strides(t: Tensor, unit: int) -> tuple[int, int, bool]:
    """Strides of the first two dimensions of t[T,B,N] in vectors of `unit` elements and True, or in elements and False
    where they, the rows or the address are not whole vectors."""
    # The stride of a dimension of one is arbitrary and never used.
    first = t.stride(0) if t.shape[0] > 1 else 0
    second = t.stride(1) if t.shape[1] > 1 else 0
    if first % unit == 0 and second % unit == 0 and _aligned(t, t.shape[2], unit):
        return first // unit, second // unit, True
    return first, second, False
