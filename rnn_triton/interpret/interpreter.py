"""Triton's CPU interpreter (`TRITON_INTERPRET=1`), corrected until it computes what a GPU computes.

The stock interpreter (3.6 to 3.9) keeps bfloat16 as uint16 and then adds, compares and multiplies those
integers, rounds fp32 -> bf16 wrongly, ignores `input_precision`, knows neither libdevice nor inline assembly,
and patches `triton.language` again on every call of a device function. `accurate()` mends that while it is
open:

* bf16: operands widen to fp32, each result rounds to nearest even (NaN stays NaN, overflow gives inf).
* dot, 16-bit operands: exact products, fp32 accumulation.
* dot, "tf32": operands are TRUNCATED to 10 mantissa bits. The code Triton emits for sm_80, sm_90 and sm_100
  contains no conversion, so the tensor core gets the fp32 bits and drops the low 13. Rounding to nearest
  would have half the error, and would be right only for kernels that round explicitly (`cvt.rna.tf32.f32`,
  below), whose operands truncation does not change.
* dot, "tf32x3": three tf32 products of the big (rna) and small parts, without non-finite cross terms, as in
  compiled code.
* min and max drop NaN as `min.f32` and `max.f32` do (3.6 and 3.7 propagate it); `tl.fma` rounds once.
* sums of 16-bit floats round after every addition, in a tree (scans widen bf16 by themselves).
* libdevice functions, and the inline assembly and helpers registered here.

Not modelled: the tensor core's own accumulation rounding, `ex2.approx` (2 ulp), fusing of a * b + c into fma.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import triton
import triton.language as tl

# Decorators read the environment when a kernel is defined, and not again; neither does this.
_ACTIVE = bool(triton.knobs.runtime.interpret)
if _ACTIVE:  # numpy is needed by the interpreter only
    import numpy as np
    import triton.runtime.interpreter as stock

_asm: dict[str, Callable[..., Any]] = {}
_impls: dict[Any, Callable[..., Any]] = {}
_MISSING = object()


def active() -> bool:
    """True if kernels of this process run in the interpreter (`TRITON_INTERPRET=1` at import)."""
    return _ACTIVE


def register_asm(text: str, implementation: Callable[..., Any]) -> None:
    """Has `implementation` run for `tl.inline_asm_elementwise` with this text (compared up to white space).

    It takes one numpy array per operand, already broadcast (bf16 as uint16 bits), and returns an array, or a
    tuple of arrays for several results. It works element by element, whatever `pack` is.
    """
    _asm[" ".join(text.split())] = implementation


def interpreter_impl(jit_fn: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Returns a decorator that has a Python function run in place of a `@triton.jit` helper while interpreting.

    The function takes and returns what the helper does: `tl.tensor` (values in `.handle.data`) and constexprs.
    """

    def register(implementation: Callable[..., Any]) -> Callable[..., Any]:
        _impls[jit_fn.fn] = implementation
        return implementation

    return register


# -- number formats ------------------------------------------------------------------------------------------


def bf16_to_f32(bits: np.ndarray) -> np.ndarray:
    """Returns the float32 values of bf16 values given as uint16 bits."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def f32_to_bf16(x: np.ndarray) -> np.ndarray:
    """Returns floats rounded to bf16, to nearest even and once, as uint16 bits; NaN stays a (quiet) NaN."""
    if x.dtype == np.float64:
        x = _round_to_odd(x)
    bits = np.ascontiguousarray(x, dtype=np.float32).view(np.uint32)
    half = np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    rounded = np.where(np.isnan(x), bits | np.uint32(0x400000), bits + half)
    return (rounded >> np.uint32(16)).astype(np.uint16).reshape(x.shape)


def _round_to_odd(x: np.ndarray) -> np.ndarray:
    """Returns float64 values as float32 values whose rounding to fewer bits equals that of the float64 values."""
    y = x.astype(np.float32)
    y = np.where(np.abs(y) > np.abs(x), np.nextafter(y, np.float32(0)), y)  # toward zero
    inexact = (y != x) & np.isfinite(x)
    return (y.view(np.uint32) | inexact.astype(np.uint32)).view(np.float32)


def tf32_truncate(x: np.ndarray) -> np.ndarray:
    """Returns fp32 values without their low 13 bits, as a tf32 tensor core reads them."""
    return (np.ascontiguousarray(x).view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32).reshape(x.shape)


def tf32_round(x: np.ndarray) -> np.ndarray:
    """Returns what `cvt.rna.tf32.f32` makes: the nearest, ties away from zero; of NaN the canonical NaN."""
    bits = np.ascontiguousarray(x).view(np.uint32)
    rounded = (bits + np.uint32(0x1000)) & np.uint32(0xFFFFE000)
    special = np.where(np.isnan(x), np.uint32(0x7FFFFFFF), bits)
    return np.where(np.isfinite(x), rounded, special).view(np.float32).reshape(x.shape)


def _flush(x: np.ndarray) -> np.ndarray:
    """Returns x with subnormals replaced by zeros of their sign (.ftz)."""
    return np.where(np.abs(x) < np.finfo(np.float32).tiny, np.copysign(np.float32(0), x), x)


# tanh.approx: the manual bounds the relative error by 2^-11; an 11-bit significand errs by as much, no less.
register_asm("tanh.approx.f32 $0, $1;", lambda x: tf32_round(np.tanh(x)))
register_asm("rcp.approx.ftz.f32 $0, $1;", lambda x: _flush(np.reciprocal(_flush(x))))
register_asm("cvt.rna.tf32.f32 $0, $1;", lambda x: tf32_round(x))
for _move in ("mov.b32 $0, $1;", "mov.b64 $0, $1;"):
    register_asm(_move, lambda x: x)
register_asm(
    "{ .reg .pred p; mov.u32 $0, 0; AGAIN: add.u32 $0, $0, 1; setp.lt.u32 p, $0, $1; @p bra AGAIN; sub.u32 $0, $0, $1; }",
    lambda one: np.zeros_like(one),
)
register_asm(
    "{ .reg .pred p; setp.ne.b32 p, $2, 0; @p prefetch.global.L2 [$1]; mov.b32 $0, 0; }",
    lambda address, enable: np.zeros_like(enable),
)


def _pair(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Returns int32 words of two 16-bit values each."""
    return (low.astype(np.uint32) | high.astype(np.uint32) << np.uint32(16)).view(np.int32)


def _f32_to_fp16(x: np.ndarray) -> np.ndarray:
    """Returns float32 values rounded to fp16, as bits; NaN is canonical, as `cvt` makes it."""
    return np.where(np.isnan(x), np.uint16(0x7FFF), x.astype(np.float16).view(np.uint16))


def _f32_to_bf16_cvt(x: np.ndarray) -> np.ndarray:
    return np.where(np.isnan(x), np.uint16(0x7FFF), f32_to_bf16(x))


register_asm(
    "cvt.rn.bf16x2.f32 $0, $2, $1;", lambda low, high: _pair(_f32_to_bf16_cvt(low), _f32_to_bf16_cvt(high))
)
register_asm("cvt.rn.f16x2.f32 $0, $2, $1;", lambda low, high: _pair(_f32_to_fp16(low), _f32_to_fp16(high)))


# -- arithmetic of the interpreter's builder -----------------------------------------------------------------


def _is_bf16(handle: Any) -> bool:
    return handle.dtype.scalar == tl.bfloat16


def _values(handle: Any) -> np.ndarray:
    return bf16_to_f32(handle.data) if _is_bf16(handle) else handle.data


def _handle(values: np.ndarray, dtype: Any) -> Any:
    """Returns a handle of the values: bools as int1 whatever `dtype` is, floats rounded to `dtype`."""
    if values.dtype == np.bool_:
        return stock.TensorHandle(values, tl.int1)
    if dtype.scalar == tl.bfloat16:
        return stock.TensorHandle(f32_to_bf16(values), tl.bfloat16)
    return stock.TensorHandle(values.astype(stock._get_np_dtype(dtype), copy=False), dtype.scalar)


def _dot(a: np.ndarray, b: np.ndarray, precision: str) -> np.ndarray:
    if precision == "TF32":
        return np.matmul(tf32_truncate(a), tf32_truncate(b))
    if precision == "TF32x3":
        a_big, b_big = tf32_round(a), tf32_round(b)
        cross = np.matmul(tf32_truncate(a - a_big), b_big) + np.matmul(a_big, tf32_truncate(b - b_big))
        # inf - inf in the small parts makes NaN; the compiler drops those, the big product decides
        return np.matmul(a_big, b_big) + np.where(np.isnan(cross), np.float32(0), cross)
    return np.matmul(a, b)


def _tree_sum(x: np.ndarray, rounded: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Returns the sums over the last axis (a power of two long), rounded after every addition."""
    while x.shape[-1] > 1:
        half = x.shape[-1] // 2
        x = rounded(x[..., :half] + x[..., half:])
    return x[..., 0]


def _patch_builder(patches: _Patches) -> None:
    builder = stock.InterpreterBuilder
    binary, unary, cast = builder.binary_op, builder.unary_op, builder.cast_impl
    dot, fma = builder.create_dot, builder.create_fma

    def binary_op(self: Any, lhs: Any, rhs: Any, op: Callable[..., np.ndarray]) -> Any:
        if _is_bf16(lhs) and _is_bf16(rhs):
            return _handle(op(bf16_to_f32(lhs.data), bf16_to_f32(rhs.data)), tl.bfloat16)
        result = binary(self, lhs, rhs, op)
        if result.data.dtype == np.bool_:
            result.dtype = tl.int1  # stock: the operands' type, which later casts and (3.9) masks trip over
        return result

    def unary_op(self: Any, arg: Any, op: Callable[..., np.ndarray]) -> Any:
        return _handle(op(bf16_to_f32(arg.data)), tl.bfloat16) if _is_bf16(arg) else unary(self, arg, op)

    def cast_impl(self: Any, src: Any, dst_type: Any) -> Any:
        if _is_bf16(src) or dst_type.scalar == tl.bfloat16:
            values = _values(src)
            if values.dtype.kind != "f":
                values = values.astype(np.float32)
            return _handle(values, dst_type)
        return cast(self, src, dst_type)

    def create_dot(self: Any, a: Any, b: Any, d: Any, precision: Any, max_num_imprecise_acc: Any) -> Any:
        x, y = _values(a), _values(b)
        if x.dtype != np.float32:  # fp64, and fp16 with products and sums in the accumulator's type
            return dot(self, a, b, d, precision, max_num_imprecise_acc)
        mode = precision.name if a.data.dtype == np.float32 else "IEEE"
        return _handle(_dot(x, y, mode) + d.data, d.dtype)

    def create_fma(self: Any, x: Any, y: Any, z: Any) -> Any:
        if z.data.dtype == np.float64:
            return fma(self, x, y, z)
        product = _values(x).astype(np.float64) * _values(y)  # exact: 2 * 24 bits < 53
        return _handle(product + _values(z), z.dtype)

    def create_clampf(self: Any, arg: Any, low: Any, high: Any, propagate_nans: Any) -> Any:
        if propagate_nans == stock._ir.PROPAGATE_NAN.NONE:
            return self.binary_op(self.binary_op(arg, low, np.fmax), high, np.fmin)
        return self.binary_op(self.binary_op(arg, low, np.maximum), high, np.minimum)

    def create_inline_asm(self: Any, text: str, constraints: str, operands: Any, types: Any, pure: Any, pack: Any) -> Any:
        implementation = _asm.get(" ".join(text.split()))
        if implementation is None:
            raise NotImplementedError(f"no interpreter implementation registered for inline asm: {text}")
        arrays = np.broadcast_arrays(*(v.data for v in operands))
        results = implementation(*arrays)
        results = results if isinstance(results, tuple) else (results,)
        handles = [
            stock.TensorHandle(r.view(stock._get_np_dtype(ty)), ty.scalar)
            for r, ty in zip(results, types, strict=True)
        ]
        return SimpleNamespace(get_result=handles.__getitem__)

    for function in (binary_op, unary_op, cast_impl, create_dot, create_fma, create_clampf, create_inline_asm):
        patches.set_attr(builder, function.__name__, function)
    patches.set_attr(builder, "create_minnumf", lambda self, lhs, rhs: self.binary_op(lhs, rhs, np.fmin))
    patches.set_attr(builder, "create_maxnumf", lambda self, lhs, rhs: self.binary_op(lhs, rhs, np.fmax))
    patches.set_attr(
        builder, "get_bf16", lambda self, value: _handle(np.array([value], np.float32), tl.bfloat16)
    )
    # Its asserts are dead (they need options.debug), yet it multiplies the work of 32-bit integer operations.
    options = replace(stock.interpreter_builder.options, sanitize_overflow=False)
    patches.set_attr(stock.interpreter_builder, "options", options)


def _patch_reductions(patches: _Patches) -> None:
    reduce_sum, min_max = stock.ReduceOps.sum, stock.ReduceOps.min_max

    def sum(self: Any, input: Any) -> Any:
        if input.dtype not in (tl.bfloat16, tl.float16):
            return reduce_sum(self, input)
        is_bf16 = input.dtype == tl.bfloat16
        values = _values(input.handle)
        axis = self.axis
        flat = values.reshape(-1) if axis is None else np.moveaxis(values, axis, -1)
        total = _tree_sum(flat, (lambda x: bf16_to_f32(f32_to_bf16(x))) if is_bf16 else (lambda x: x))
        if self.keep_dims:
            total = total.reshape([1] * values.ndim) if axis is None else np.expand_dims(total, axis)
        return self.to_tensor(f32_to_bf16(np.asarray(total)) if is_bf16 else total, input.dtype)

    def bf16_min_max(self: Any, input: Any, *args: Any, **kwargs: Any) -> Any:
        value = input[0] if isinstance(input, tuple) else input
        if value.dtype != tl.bfloat16:
            return min_max(self, input, *args, **kwargs)
        # values alone: tl.argmax and tl.argmin widen by themselves
        result = min_max(self, self.to_tensor(bf16_to_f32(value.handle.data), tl.float32), *args, **kwargs)
        return self.to_tensor(f32_to_bf16(result.handle.data).reshape(result.shape), tl.bfloat16)

    patches.set_attr(stock.ReduceOps, "sum", sum)
    patches.set_attr(stock.ReduceOps, "min_max", bf16_min_max)


def _libdevice() -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    """Returns what runs in place of libdevice's functions, by name."""

    def vectorized(fn: Callable[[float], float]) -> Callable[[np.ndarray], np.ndarray]:
        return lambda x: np.vectorize(fn, otypes=[x.dtype])(x)

    numpys = "tanh sinh cosh sin cos tan exp exp2 expm1 log log2 log10 log1p sqrt floor ceil rint trunc isnan isinf abs fabs"
    functions: dict[str, Callable[[np.ndarray], np.ndarray]] = {name: getattr(np, name) for name in numpys.split()}
    functions |= {"rsqrt": lambda x: np.reciprocal(np.sqrt(x)), "erf": vectorized(math.erf), "erfc": vectorized(math.erfc)}
    functions |= {"fast_tanhf": lambda x: tf32_round(np.tanh(x)), "fast_expf": np.exp, "fast_logf": np.log}
    return functions


def _patch_libdevice(patches: _Patches) -> None:
    from triton.language.extra import libdevice
    from triton.language.extra.cuda import libdevice as cuda_libdevice

    def extern(name: str, fn: Callable[[np.ndarray], np.ndarray]) -> Callable[..., Any]:
        def call(x: Any, **_: Any) -> Any:
            x = stock.interpreter_semantic.to_tensor(x)
            if x.dtype not in (tl.float32, tl.float64):
                raise TypeError(f"libdevice.{name}: fp32 or fp64 expected, got {x.dtype}")
            handle = _handle(fn(x.handle.data), x.dtype)
            dtype = tl.int1 if handle.data.dtype == np.bool_ else x.dtype
            return tl.core.tensor(handle, x.type.with_element_ty(dtype) if x.type.is_block() else dtype)

        return call

    for name, fn in _libdevice().items():
        for module in (libdevice, cuda_libdevice):
            if hasattr(module, name):
                patches.set_attr(module, name, extern(name, fn))


def _patch_language(patches: _Patches) -> None:
    """Patches once what the stock interpreter patches at every launch and at every call of a device function."""
    patches.set_attr(stock, "_LangPatchScope", lambda: patches)  # the stock patches go on our list
    stock._patch_lang(SimpleNamespace(__globals__={"tl": tl, "core": tl.core}))
    patches.set_attr(stock, "_patch_lang", lambda fn: SimpleNamespace(restore=lambda: None))
    # 3.6 says int(array), which numpy >= 2.4 refuses for one-element arrays
    patches.set_attr(tl.tensor, "__index__", lambda self: int(self.handle.data.item()))
    patches.set_attr(tl.core.condition, "__bool__", lambda self: bool(self.condition))

    call = stock.InterpretedFunction.__call__

    def device_call(self: Any, *args: Any, **kwargs: Any) -> Any:
        implementation = _impls.get(self.fn)
        return call(self, *args, **kwargs) if implementation is None else implementation(*args, **kwargs)

    patches.set_attr(stock.InterpretedFunction, "__call__", device_call)


# -- opening and closing -------------------------------------------------------------------------------------


class _Patches:
    """A list of attributes that were set, in order; `restore` undoes them, `apply` sets them again."""

    def __init__(self) -> None:
        self.entries: list[tuple[Any, str, Any, Any]] = []

    def set_attr(self, owner: Any, name: str, value: Any) -> None:
        self.entries.append((owner, name, vars(owner).get(name, _MISSING), value))
        setattr(owner, name, value)

    def apply(self) -> None:
        for owner, name, _, value in self.entries:
            setattr(owner, name, value)

    def restore(self) -> None:
        for owner, name, old, _ in reversed(self.entries):
            if old is not _MISSING:
                setattr(owner, name, old)
            elif name in vars(owner):
                delattr(owner, name)


_patches: _Patches | None = None
_depth = 0


@contextlib.contextmanager
def accurate() -> Iterator[None]:
    """Has interpreted kernels compute what a GPU computes while it is open; blocks may nest. Does nothing on a GPU."""
    global _depth, _patches
    if not _ACTIVE or _depth:
        yield
        return
    _depth += 1
    first, _patches = _patches is None, _patches or _Patches()
    try:
        if first:
            for patch in (_patch_language, _patch_builder, _patch_reductions, _patch_libdevice):
                patch(_patches)
        else:
            _patches.apply()
        with np.errstate(all="ignore"):  # a GPU overflows, divides by zero and makes NaN silently
            yield
    finally:
        _patches.restore()
        _depth -= 1
