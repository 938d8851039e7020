"""What kernels are called with: which tensors there are, and how they lie in memory: fit for accesses of 16 bytes, with rows
of whole vectors where CTAs exchange them."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from .. import cells
from ..interpret import interpreter
from ..kernels.exchange import LINE
from ..plan.problem import Bundle, Problem, is_wide
from .launcher import POINTERS, Launcher


class Operands(NamedTuple):
    """The tensors of a launch, in the order of the pointer parameters of kernels/one_cta.py and kernels/cta_group.py, which give
    their shapes.  One that is None is absent: the kernel never reads it."""

    x: Tensor | None = None
    w_in: Tensor | None = None
    w_rec: Tensor | None = None
    bias0: Tensor | None = None
    bias1: Tensor | None = None
    first: Tensor | None = None
    u: Tensor | None = None
    saved: Tensor | None = None
    out: Tensor | None = None
    last: Tensor | None = None
    sync: Tensor | None = None
    report: Tensor | None = None
    seed: Tensor | None = None
    carried: Tensor | None = None
    kept: Tensor | None = None
    vectors: Tensor | None = None


class Scalars(NamedTuple):
    """The integers behind them, in order; the last three, of ensembles, are parameters of kernels/one_cta.py alone."""

    T: int
    B: int
    reverse: int
    stride_x_t: int = 0
    stride_x_b: int = 0
    stride_u_t: int = 0
    stride_u_b: int = 0
    launch: int = 0
    limit: int = 0
    dropped: int = 0
    bottom: int = 0
    per_model: int = 0
    stride_x_m: int = 0
    stride_u_m: int = 0


# What a call of the class does, in half the time: arguments by name go straight to its __new__.
new_operands = functools.partial(Operands.__new__, Operands)
new_scalars = functools.partial(Scalars.__new__, Scalars)

LINE_WORDS = int(LINE.value)

# Polls before a group gives up.  A poll takes at least the 0.3 us of an access to L2, so this is more than a second:
# far beyond any step, and far below a watchdog's patience.  Linked recurrences wait up to 16 times as long for each other.
SPIN_LIMIT = 1 << 22
# Triton's interpreter runs one program after another: a plan that is forced on it waits in vain, and slowly.
INTERPRETED_LIMIT = 1 << 10


@dataclass(frozen=True)
class Engine:
    """A kernel made ready for a problem, a plan and the recurrences of a launch, and how it wants its operands to lie"""

    launch: Launcher
    scalars: int  # how many of Scalars are its parameters
    groups: int  # of CTAs that compute a recurrence
    ctas: int  # of a group
    row: int  # elements of a row of first, saved, out and last: H and zeros
    recurrent: int  # rows and columns of W_rec
    input: int  # elements of a row of x, and of W_in of a single recurrence or of directions
    projected: int  # elements of a row of what a GEMM projects
    x_unit: int  # elements in which the strides of x are counted
    u_unit: int
    words: bool = True  # out and last are words, with synchronisation words behind out
    waits: bool = True  # CTAs wait for each other
    transposes: bool = False  # W_rec is W_hh in both passes, which the kernel transposes


def described(problem: Problem, w_ih_home: str, bundle: Bundle, words: bool) -> tuple[tuple[bool, ...], Callable[[str], str]]:
    """Which of Operands the launch with every optional tensor of its pass has, and the type of a parameter by its name.
    `words` as in Engine."""
    forward = problem.direction == "forward"
    routes = cells.named(problem.cell).routes(forward)
    absent = [name for name in ("carried", "kept", "vectors") if not getattr(routes, name)]
    if not routes.reads_y:
        absent.append("saved")
    if not forward:
        absent.append("last")
    if not forward or (w_ih_home == "gemm" and words and not bundle.linked):  # elsewhere the kernel adds the biases
        absent += ["bias0", "bias1"]
    if not bundle.linked and (not forward or w_ih_home == "gemm"):
        absent.append("w_in")
    has_x = forward and w_ih_home != "gemm" and not (bundle.linked and is_wide(problem.I, problem.H, problem.dtype))
    absent.append("u" if has_x else "x")
    if not words:
        absent += ["sync", "report"]
    if not bundle.dropout:
        absent.append("seed")
    pointer = POINTERS[problem.dtype]
    wide = "*fp64" if problem.dtype == "fp64" else "*fp32"
    pointers = {"seed_ptr": "*i64", "carried_ptr": wide, "vectors_ptr": wide}
    if words:
        pointers |= {f"{name}_ptr": "*i32" for name in ("out", "last", "sync")} | {"report_ptr": "*i64"}
    if forward:
        pointers["u_ptr"] = wide
    pointers |= {f"{name}_ptr": pointers.get("out_ptr", pointer) for name in absent}  # out stands for them
    present = tuple([name not in absent for name in Operands._fields])
    return present, lambda name: pointers.get(name, pointer) if name.endswith("_ptr") else "i32"


def poll_limit() -> int:
    """Returns the polls after which a group gives up, in a launch that comes now."""
    return min(SPIN_LIMIT, INTERPRETED_LIMIT) if interpreter.active() else SPIN_LIMIT


def words(like: Tensor, row: int, shape: tuple[int, ...], sync_words: int, filled: bool) -> tuple[Tensor, Tensor]:
    """The int32 words of [*shape, row] elements of `like`, and behind them, on lines of their own, the synchronisation words:
    one allocation and, where they are `filled` with 0xFF bytes, one fill, so that they are together in a CUDA graph, too"""
    of_row = row * like.element_size() // 4
    n = math.prod(shape) * of_row
    start = -(-n // LINE_WORDS) * LINE_WORDS
    buffer = torch.empty(start + sync_words, dtype=torch.int32, device=like.device)
    if filled:
        buffer.fill_(-1)
    return buffer[:n].view(*shape, of_row), buffer[start:]


def missing(columns: int, rows: int = 0) -> tuple[int, ...]:
    """What `padded` takes to add so many zeros behind every row, and so many rows of zeros below"""
    return (0, columns, 0, rows) if rows else (0, columns) if columns else ()


def padded(t: Tensor, missing: tuple[int, ...]) -> Tensor:
    """Returns t with the zeros of `missing` behind its rows, and below them."""
    return pad(t, missing) if missing else t


def unpadded(t: Tensor, missing: tuple[int, ...]) -> Tensor:
    """t without the zeros that `padded` put behind every row: a copy, where there are any"""
    return t[..., : -missing[1]].clone(memory_format=torch.contiguous_format) if missing else t


def units(words: Tensor, dtype: torch.dtype, missing: tuple[int, ...]) -> Tensor:
    """Words of states -> [.., H], contiguous"""
    t = words.view(dtype)
    if missing:
        t = unpadded(t, missing)
    # detach: torch marks t as a view of the words, and autograd would then refuse in-place changes to it
    return t.detach()


def whole(t: Tensor, missing: tuple[int, ...] = ()) -> Tensor:
    """t, `padded`, contiguous and at an address that vectors of 16 bytes divide; copied where it is not."""
    if missing:
        t = pad(t, missing)
    t = t.contiguous()
    return t.clone() if t.data_ptr() % 16 else t


def empty(like: Tensor, *shape: int) -> Tensor:
    return like.new_empty(*shape)  # cheaper on the host than a tuple, and than torch.empty with its keywords


def strided(t: Tensor, unit: int) -> tuple[Tensor, int, int, int]:
    """t[T,B,N] and the strides of T and B as kernels take them: in vectors of `unit` elements where rows are whole
    vectors, else in elements; and 0.  t is copied where its address or, rows being whole vectors, its strides are not.

    t[M,T,B,N] of an ensemble: the stride of M is the last one; 0 where the models share one, which is all that is then
    copied."""
    if t.dim() == 4:
        return _strided_models(t, unit)
    T, B, N = t.shape
    first, second, inner = t.stride()
    if T == 1:
        first = 0  # the stride of a dimension of one is arbitrary and never used
    if B == 1:
        second = 0
    if N % unit:
        unit = 1
    fits = not (first % unit or second % unit or t.data_ptr() % 16)
    if fits and (inner == 1 or N == 1):
        return t, first // unit, second // unit, 0
    return t.clone(memory_format=torch.contiguous_format), B * N // unit, N // unit, 0


def _strided_models(t: Tensor, unit: int) -> tuple[Tensor, int, int, int]:
    one, first, second, _ = strided(t[0], unit)
    apart = 0 if t.shape[0] == 1 else t.stride(0)
    unit = 1 if t.shape[3] % unit else unit
    if one.data_ptr() == t.data_ptr() and apart % unit == 0:
        return t, first, second, apart // unit
    if apart == 0:
        return one, first, second, 0
    t = t.clone(memory_format=torch.contiguous_format)
    return t, t.stride(1) // unit, t.stride(2) // unit, t.stride(0) // unit


def per_model(*tensors: Tensor | None) -> tuple[tuple[Any, ...], int]:
    """w_in, w_rec, bias0, bias1 and first of an ensemble, without M where the models share one; bit i: the i-th has it."""
    parts = tuple([t[0] if t is not None and (t.stride(0) == 0 or t.shape[0] == 1) else t for t in tensors])
    return parts, sum(1 << i for i, (t, part) in enumerate(zip(tensors, parts, strict=True)) if part is t is not None)
